//! `agentctl doctor --host`: what the agent's own program finds out about the hosts that it was brought to.
//!
//! In: names of hosts and groups, of files or as the controller has them. Out: of each host what its `flowtilla-agent doctor` says, as
//! lines for people or one JSON object; what goes on meanwhile on stderr. Changes nothing, asks for no proof of anybody, and with
//! `--file` needs no controller: it is what one calls when something is amiss.
//!
//! As JSON one object: `captures` (every host does), `hosts`: `host`; then `version`, `captures` and `findings`, as `doctor` has
//! them; or `trouble`: `step`, `why`, `remedy`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flowtilla_proto::hosts::HostGroup;
use futures_util::StreamExt as _;
use futures_util::stream;
use serde::{Deserialize, Serialize};

use super::ssh::{Payload, Ssh};
use super::trouble::{Step, Trouble};
use super::{HOSTS_AT_ONCE, Job, close, jobs, progress, upgrade};
use crate::client::{Client, Reach};
use crate::cmd::fleet::print;
use crate::document::{Documents, files};
use crate::exit::{Exit, FilesError, UsageError, say};
use crate::output::{harmless, harmless_json, word};
use crate::signals::Signals;

/// How long a host may take: programs are loaded, controller and collectors are connected to; the script ends it after 90 s.
const EXAMINED_WITHIN: Duration = Duration::from_secs(120);
/// How the answer begins; what a login shell says before it is not ours.
const BEGINS: &str = "flowtilla-doctor";
/// How its last line begins: how the program ended, and its last words.
const ENDED: &str = "ended=";
/// Exit code of a program that does not know the command. Source: clap.
const USAGE: &str = "2";
/// Exit code of timeout(1).
const TIMED_OUT: &str = "124";
/// Most findings that are taken of a host. The agent has some twenty checks.
const FINDINGS_MAX: usize = 100;
/// Most characters of each of their texts.
const TEXT_MAX: usize = 1_000;
/// Most hosts that the last line names of each kind.
const HOSTS_SHOWN: usize = 8;

/// Which hosts.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ThereArgs {
    /// Asks the agent's program on this host, or those of a group, over ssh, instead of looking at this host. May be repeated [with
    /// --file, default: all]. Of one host every finding is shown, of several what is to be looked at.
    #[arg(long, value_name = "HOST|GROUP", conflicts_with_all = ["state", "controller"])]
    pub(crate) host: Vec<String>,
    /// File, directory (its *.yaml and *.yml), or - for stdin, that has the groups [default: as the controller has them].
    #[arg(short, long = "file", value_name = "PATH", conflicts_with_all = ["state", "controller", "context"])]
    pub(crate) file: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) reach: Reach,
}

impl ThereArgs {
    /// Whether other hosts are meant than this one.
    ///
    /// # Errors
    ///
    /// A controller is named, and nothing to ask it for.
    pub(crate) fn is_there(&self) -> Result<bool, UsageError> {
        let there = !self.host.is_empty() || !self.file.is_empty();
        match there || self.reach.context.is_none() {
            true => Ok(there),
            false => Err(UsageError(vec![
                "--context: says where groups of hosts are; write --host HOST|GROUP, too".to_owned(),
            ])),
        }
    }
}

/// What a program said of its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Report {
    version: String,
    captures: bool,
    findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: String,
    verdict: Verdict,
    what: String,
    remedy: Option<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Fail,
    /// Also what a newer agent calls by another word.
    #[serde(other)]
    Warn,
}

/// What came of a host.
type Examined = Result<Report, Trouble>;

/// Runs the command. `json`: one object instead of lines.
///
/// # Errors
///
/// Files or flags are wrong, no such host or group, or the controller is not reached. What goes wrong with hosts is told, and is
/// [`Exit::Failed`].
pub(crate) async fn run(args: &ThereArgs, json: bool) -> anyhow::Result<Exit> {
    let groups = match args.file.is_empty() {
        true => upgrade::held(&Client::reach(&args.reach).await?).await?,
        false => of_files(&args.file)?,
    };
    // Nothing is written there, so nobody needs to know where their controller is.
    let jobs = jobs(&groups, ("--host", &args.host), "")?;
    let ssh = Ssh::new()?;
    let mut signals = Signals::new()?;
    let all = stream::iter(jobs.iter().map(|job| examine(&ssh, job)));
    let ended = tokio::select! { biased;
        () = signals.next() => None,
        ended = all.buffered(HOSTS_AT_ONCE).collect::<Vec<_>>() => Some(ended),
    };
    close(&ssh, &jobs).await;
    let Some(all) = ended else {
        say("ended before all hosts were looked at");
        return Ok(Exit::Interrupted);
    };
    let names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    print(&match json {
        true => as_json(&names, &all),
        false => as_text(&names, &all),
    })?;
    Ok(match all.iter().all(captures) {
        true => Exit::Done,
        false => Exit::Failed,
    })
}

fn of_files(paths: &[PathBuf]) -> anyhow::Result<Vec<HostGroup>> {
    let texts = files::read(paths, std::io::stdin())?;
    let (documents, complaints) = Documents::read(&texts);
    if !complaints.is_empty() {
        return Err(FilesError(complaints.iter().map(ToString::to_string).collect()).into());
    }
    let groups = documents.host_groups();
    match groups.is_empty() {
        true => Err(UsageError(vec![upgrade::NO_GROUP.to_owned()]).into()),
        false => Ok(groups),
    }
}

async fn examine(ssh: &Ssh, job: &Job) -> Examined {
    progress(job, "looks at it");
    let said = ssh
        .run(
            &job.way,
            Step::Doctor,
            &["doctor"],
            Payload::new(),
            EXAMINED_WITHIN,
        )
        .await;
    said.and_then(|said| read(&said)).map_err(Trouble::not_of_deploy)
}

/// Reads what the script said.
fn read(said: &str) -> Examined {
    let trouble = |why: &str, remedy: &str| Err(Trouble::new(Step::Doctor, why, remedy));
    let mut lines = said.lines().skip_while(|line| *line != BEGINS).skip(1);
    let mut texts = Vec::new();
    let ended = lines.by_ref().find_map(|line| {
        let ended = line.strip_prefix(ENDED);
        texts.extend(ended.is_none().then_some(line));
        ended
    });
    let Some((code, words)) = ended.map(|ended| ended.split_once(' ').unwrap_or((ended, ""))) else {
        return trouble(
            "what came back is no answer of the script, or is cut off",
            "see that the user's login shell runs commands",
        );
    };
    if code.is_empty() {
        return trouble("it has no agent", "agentctl deploy puts one there");
    }
    if let Some(report) = texts.iter().find_map(|text| report(text)) {
        return Ok(report);
    }
    match code {
        USAGE => trouble(
            "its agent is older, and has no doctor",
            "agentctl agents upgrade brings one that has",
        ),
        TIMED_OUT => trouble(
            "its agent's program took too long",
            "see there what flowtilla-agent doctor does",
        ),
        _ => trouble(
            &format!(
                "its agent's program ended with exit code {}: {}",
                word(code),
                shown(words)
            ),
            "see there what flowtilla-agent doctor says",
        ),
    }
}

/// `None`: it is none.
fn report(text: &str) -> Option<Report> {
    #[derive(Deserialize)]
    struct Told {
        version: String,
        captures: bool,
        findings: Vec<ToldFinding>,
    }
    #[derive(Deserialize)]
    struct ToldFinding {
        check: String,
        verdict: Verdict,
        what: String,
        remedy: Option<String>,
    }
    let told: Told = serde_json::from_str(text).ok()?;
    let finding = |told: ToldFinding| Finding {
        check: shown(&told.check),
        verdict: told.verdict,
        what: shown(&told.what),
        remedy: told.remedy.as_deref().map(shown),
    };
    Some(Report {
        version: shown(&told.version),
        captures: told.captures,
        findings: told
            .findings
            .into_iter()
            .take(FINDINGS_MAX)
            .map(finding)
            .collect(),
    })
}

/// A stranger's text: bounded, on one line.
fn shown(text: &str) -> String {
    let one_line = |character: char| if character.is_control() { ' ' } else { character };
    text.chars().take(TEXT_MAX).map(one_line).collect()
}

fn captures(examined: &Examined) -> bool {
    examined.as_ref().is_ok_and(|report| report.captures)
}

/// Each host with its findings, and who cannot capture.
fn as_text(names: &[&str], all: &[Examined]) -> String {
    let mut text = String::new();
    for (name, examined) in names.iter().zip(all) {
        let name = harmless(name);
        let report = match examined {
            Err(trouble) => {
                let _ = writeln!(text, "{name}: FAILED at {trouble}");
                continue;
            }
            Ok(report) => report,
        };
        let count = |verdict| {
            let of_it = report.findings.iter().filter(|found| found.verdict == verdict);
            of_it.count()
        };
        let (ok, warnings, failures) = (count(Verdict::Ok), count(Verdict::Warn), count(Verdict::Fail));
        let verdict = match report.captures {
            true => "flows can be captured",
            false => "NO FLOW CAN BE CAPTURED",
        };
        let _ = writeln!(
            text,
            "{name}: {verdict}: {ok} ok, {warnings} to look at, {failures} to mend (flowtilla-agent {})",
            word(&report.version)
        );
        for found in &report.findings {
            let verdict = match found.verdict {
                Verdict::Ok if names.len() > 1 => continue,
                Verdict::Ok => "ok",
                Verdict::Warn => "WARN",
                Verdict::Fail => "FAIL",
            };
            let (check, what) = (word(&found.check), harmless(&found.what));
            let _ = writeln!(text, "  {verdict:<4} {check:<12} {what}");
            if let Some(remedy) = &found.remedy {
                let _ = writeln!(text, "       {:<12} → {}", "", harmless(remedy));
            }
        }
    }
    text + &sum(names, all)
}

fn sum(names: &[&str], all: &[Examined]) -> String {
    let (mut unable, mut unknown) = (Vec::new(), Vec::new());
    for (name, examined) in names.iter().zip(all) {
        match examined {
            Ok(report) if report.captures => {}
            Ok(_) => unable.push(harmless(name)),
            Err(_) => unknown.push(harmless(name)),
        }
    }
    let able = all.len() - unable.len() - unknown.len();
    let some = |names: &[String]| {
        let shown = names.iter().take(HOSTS_SHOWN).cloned().collect::<Vec<_>>();
        let more = match names.len().saturating_sub(HOSTS_SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        match names.is_empty() {
            true => "0".to_owned(),
            false => format!("{} ({}{more})", names.len(), shown.join(", ")),
        }
    };
    format!(
        "hosts: {able} can capture, {} cannot, {} have not said\n",
        some(&unable),
        some(&unknown)
    )
}

fn as_json(names: &[&str], all: &[Examined]) -> String {
    #[derive(Serialize)]
    struct Told<'a> {
        host: &'a str,
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        report: Option<&'a Report>,
        #[serde(skip_serializing_if = "Option::is_none")]
        trouble: Option<BTreeMap<&'static str, &'a str>>,
    }
    #[derive(Serialize)]
    struct All<'a> {
        captures: bool,
        hosts: Vec<Told<'a>>,
    }
    let hosts = names.iter().zip(all).map(|(host, examined)| Told {
        host,
        report: examined.as_ref().ok(),
        trouble: examined.as_ref().err().map(|trouble| trouble.parts().into()),
    });
    let told = All {
        captures: all.iter().all(captures),
        hosts: hosts.collect(),
    };
    harmless_json(serde_json::to_string(&told).expect("texts are JSON")) + "\n"
}

#[cfg(test)]
mod tests;
