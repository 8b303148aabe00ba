//! `agentctl loss`: law 2 of each collector over all runs of an agent, and the name of every gap. Without `--state`:
//! [`fleet::loss`].
//!
//! In: the directory that `agentctl up --state` was given, in use, stopped or copied. Out: the sum per collector in words
//! or as one JSON object, and the exit code: 0 when nothing is lost beyond what a policy withholds, 1 when something is,
//! when a law is broken or when what is stored cannot be read, 2 when there is nothing to read.
//!
//! Records ahead of a collector that are gone already do not count as waiting here; `up` counts them when it comes to
//! them. What a killed agent held without a number (flows in its table, records on their way to the disk) is in no sum.
//!
//! ```text
//! spool          directory
//! process        process that uses it; null: nobody
//! cleanStop      false: the last agent was killed, or this is a copy of a directory in use; null while one runs
//! newest         last sequence given
//! collectors     name; begin, read, taken: sequences of its cursor
//!                law: made, taken, waiting, evicted, dropped {place: records}
//!                missing: made less the rest, 0 when the law holds
//!                lost: records it never gets, withheld ones left out
//!                gaps: first, last, cause "evicted" | "spoolDamaged" | "spoolUnwritable": ahead of it; in the law
//! lost           ranges that the spool knows to be missing, whoever has taken them before
//! unsynced       first, last: given a number, and never on the disk; null: none
//! kernel         laws 1 and 3 over all runs: runs, killed, kernelLaw {observed, reported, held, joined: Octets and Packets
//!                each}, unreportedOctets: what killed runs had seen and not reported, drops {place: number},
//!                recordLaw {records, made, waiting, filtered and sampledOut: {records, octets, packets}},
//!                kernelLeftOut {connections, packets, octets}: left out in the kernel, in no law; absent: nothing;
//!                null: not known
//! damaged        files that cannot be read: "mark", "lost", "ledger", "cursors/NAME.json"
//! nothingLost    the exit code is 0
//! ```

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flowtilla_agent_core::ledger::Ledger;
use flowtilla_agent_core::loss::{CollectorLaw, DropPoint};
use serde::Serialize;

use super::spooled::{self, Account, LostRange, SmallFile, Survey, why};
use super::{buffer, fleet, left_out};
use crate::client::Reach;
use crate::exit::Exit;
use crate::output::{grid, grouped, harmless, harmless_json, range};

/// Ranges that are printed; `-o json` has all.
const RANGES_SHOWN: usize = 20;

#[derive(Args, Clone, Debug)]
pub(crate) struct LossArgs {
    /// Directory that agentctl up --state was given, or a copy of it. An agent may be using it [default: the controller is asked
    /// for all agents].
    #[arg(long, value_name = "DIR", conflicts_with = "context")]
    pub(crate) state: Option<PathBuf>,
    /// How to print: lines for people, or one JSON object.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// Prints the sums.
///
/// # Errors
/// There is no spool to read, or stdout cannot be written.
pub(crate) async fn run(args: LossArgs) -> anyhow::Result<Exit> {
    let Some(state) = &args.state else {
        return fleet::loss::run(&args.reach, args.output == Output::Json).await;
    };
    let survey = spooled::take("--state", state)?;
    let (survey, unsynced) = spooled::unsynced(survey).await?;
    let loss = Loss::of(&survey, unsynced);
    let text = match args.output {
        Output::Text => loss.text(),
        Output::Json => loss.json()?,
    };
    let written = buffer::told(std::io::stdout().write_all(text.as_bytes()));
    let exit = if loss.is_nothing() {
        Exit::Done
    } else {
        Exit::Failed
    };
    buffer::unless_gone(written.map(|()| exit))
}

/// What is told.
struct Loss<'a> {
    survey: &'a Survey,
    accounts: Vec<Account>,
    unsynced: Option<LostRange>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    spool: String,
    process: Option<u32>,
    clean_stop: Option<bool>,
    newest: u64,
    collectors: Vec<ToldCollector<'a>>,
    lost: &'a [LostRange],
    unsynced: Option<LostRange>,
    kernel: Option<&'a Ledger>,
    damaged: Vec<String>,
    nothing_lost: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToldCollector<'a> {
    name: &'a str,
    begin: u64,
    read: u64,
    taken: u64,
    law: CollectorLaw,
    missing: i128,
    lost: u64,
    gaps: &'a [LostRange],
}

impl<'a> From<&'a Account> for ToldCollector<'a> {
    fn from(account: &'a Account) -> Self {
        Self {
            name: &account.collector,
            begin: account.cursor.begin,
            read: account.cursor.read,
            taken: account.cursor.taken,
            law: account.law,
            missing: account.law.missing(),
            lost: account.lost(),
            gaps: &account.gaps,
        }
    }
}

impl<'a> Loss<'a> {
    fn of(survey: &'a Survey, unsynced: Option<LostRange>) -> Self {
        Self {
            survey,
            accounts: survey.accounts(unsynced),
            unsynced,
        }
    }

    /// Nothing is lost, every law holds, and all that says so can be read.
    fn is_nothing(&self) -> bool {
        let kernel = self.survey.ledger.whole();
        self.damaged().is_empty()
            && kernel.is_none_or(|ledger| ledger.kernel_law.holds() && ledger.record_law.missing() == 0)
            && self.unsynced.is_none()
            && self
                .accounts
                .iter()
                .all(|account| account.lost() == 0 && account.law.missing() == 0)
    }

    /// Files that cannot be read.
    fn damaged(&self) -> Vec<String> {
        let survey = self.survey;
        let mut names = Vec::new();
        names.extend((survey.mark == SmallFile::Damaged).then(|| "mark".to_owned()));
        names.extend((survey.lost == SmallFile::Damaged).then(|| "lost".to_owned()));
        names.extend((survey.ledger == SmallFile::Damaged).then(|| "ledger".to_owned()));
        let cursors = survey.cursors_damaged.iter();
        names.extend(cursors.map(|name| format!("cursors/{name}.json")));
        names
    }

    fn text(&self) -> String {
        let mut lines = vec![spooled::heading(self.survey)];
        lines.extend(self.survey.ledger.whole().map(kernel_law).into_iter().flatten());
        if self.accounts.is_empty() {
            lines.push("no collector has a cursor here: nothing was to be delivered".to_owned());
        }
        for account in &self.accounts {
            lines.extend(collector(account));
        }
        let lost = self.survey.lost_ranges();
        if !lost.is_empty() {
            lines.push("missing in the spool, whoever had taken it before:".to_owned());
            lines.extend(ranges(lost));
        }
        if let Some(unsynced) = self.unsynced {
            lines.push(format!(
                "records {} were given a number and are on no disk",
                range(unsynced.first, unsynced.last)
            ));
        }
        if self.survey.stopped_uncleanly() {
            lines.push("what a killed agent had not given a number is not counted here".to_owned());
        }
        for name in self.damaged() {
            lines.push(format!(
                "{} is damaged: what it said is not known",
                harmless(&name)
            ));
        }
        lines.push(self.verdict());
        lines.join("\n") + "\n"
    }

    fn verdict(&self) -> String {
        if self.is_nothing() {
            return "nothing lost".to_owned();
        }
        let broken = self.accounts.iter().filter(|account| account.law.missing() != 0);
        match broken.count() {
            0 if self.accounts.iter().all(|account| account.lost() == 0) => "something is lost".to_owned(),
            0 => {
                let of = |account: &Account| {
                    format!("{} of {}", grouped(account.lost()), harmless(&account.collector))
                };
                let lossy = self.accounts.iter().filter(|account| account.lost() > 0);
                format!("records lost: {}", lossy.map(of).collect::<Vec<_>>().join(", "))
            }
            n => format!(
                "the sum does not hold for {n} of {} collectors",
                self.accounts.len()
            ),
        }
    }

    fn json(&self) -> anyhow::Result<String> {
        let told = Told {
            spool: self.survey.directory.to_string_lossy().into_owned(),
            process: self.survey.writer,
            clean_stop: self
                .survey
                .writer
                .is_none()
                .then(|| !self.survey.stopped_uncleanly()),
            newest: self.survey.known(),
            collectors: self.accounts.iter().map(ToldCollector::from).collect(),
            lost: self.survey.lost_ranges(),
            unsynced: self.unsynced,
            kernel: self.survey.ledger.whole(),
            damaged: self.damaged(),
            nothing_lost: self.is_nothing(),
        };
        Ok(harmless_json(serde_json::to_string(&told)?) + "\n")
    }
}

/// Law 1 over all runs, and what was lost before the table.
fn kernel_law(ledger: &Ledger) -> Vec<String> {
    let law = &ledger.kernel_law;
    let verdict = if law.holds() { "holds" } else { "is BROKEN" };
    let mut lines = vec![format!(
        "law 1 {verdict} over {} runs, {} of them killed, IP octets:\n  observed {} = reported {} + held {} + joined {}",
        grouped(ledger.runs),
        grouped(ledger.killed),
        grouped(law.observed_octets),
        grouped(law.reported_octets),
        grouped(law.held_octets),
        grouped(law.joined_octets),
    )];
    if ledger.unreported_octets > 0 {
        lines.push(format!(
            "  killed runs had seen {} more; those of connections that lived on were seen again",
            grouped(ledger.unreported_octets)
        ));
    }
    lines.extend(left_out::lines(&ledger.record_law));
    if !ledger.kernel_left_out.is_nothing() {
        lines.push("left out in the kernel, by the policy:".to_owned());
        lines.push(format!("  {}", left_out::kernel(&ledger.kernel_left_out)));
    }
    lines.extend(
        ledger
            .drops
            .lossy()
            .map(|(point, n)| format!("  lost: {point} {} {}", grouped(n), point.unit())),
    );
    lines
}

/// A collector's sum, and its gaps.
fn collector(account: &Account) -> Vec<String> {
    let law = &account.law;
    let verdict = match law.missing() {
        0 => "law 2 holds".to_owned(),
        n if n > 0 => format!("law 2 is BROKEN, {n} records are missing"),
        n => format!("law 2 is BROKEN, {} records are too many", n.unsigned_abs()),
    };
    let mut lines = vec![format!("{}: {verdict}", harmless(&account.collector))];
    let row = |label: &str, n: u64, unit: &str| vec![format!("  {label}"), grouped(n), unit.to_owned()];
    let mut rows = vec![
        row("  made", law.made, "records"),
        row("= taken", law.taken, "records"),
        row("+ waiting", law.waiting, "records"),
        row("+ evicted", law.evicted, "records"),
    ];
    rows.extend(law.dropped.lossy().map(|(point, n)| {
        let unit = match point {
            DropPoint::Withheld => "records, withheld on purpose",
            DropPoint::ReportedByPeer => "records, told by the agent at the other end",
            point => point.unit(),
        };
        row(&format!("+ {point}"), n, unit)
    }));
    lines.extend(grid(&rows, &[1]));
    if !account.gaps.is_empty() {
        lines.push("  gone before it came to them:".to_owned());
        lines.extend(ranges(&account.gaps));
    }
    lines
}

fn ranges(ranges: &[LostRange]) -> Vec<String> {
    let told = |lost: &LostRange| format!("    {}: {}", range(lost.first, lost.last), why(lost.cause));
    let mut lines: Vec<String> = ranges.iter().take(RANGES_SHOWN).map(told).collect();
    if ranges.len() > RANGES_SHOWN {
        lines.push(format!(
            "    and {} more: see -o json",
            ranges.len() - RANGES_SHOWN
        ));
    }
    lines
}

#[cfg(test)]
mod tests;
