//! `agentctl buffer verify`: is what is on the disk what was written?
//!
//! Every value is read: its checksums, its records, its place in the sequence. Out: a line for each damage, as it is
//! found; at the end what is missing with a known cause, the small files, and a sum. Exit code 1 on damage. What the
//! agent knows to be lost (evicted, found damaged before) is no damage: `agentctl loss` tells of it.

use std::io::Write;

use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{VerifyArgs, damage_line, told};
use crate::cmd::spooled::{self, Event, SmallFile, Survey, Walker, Wanted};
use crate::exit::Exit;
use crate::output::{grouped, harmless, memory, range};

/// What is known to be missing and printed; the rest is counted.
const KNOWN_SHOWN: usize = 20;

#[derive(Default)]
struct Sum {
    segments: u64,
    values: u64,
    records: u64,
    octets: u64,
    damages: u64,
    damaged_records: u64,
}

pub(super) async fn run(
    args: &VerifyArgs,
    out: &mut (impl Write + Send),
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    let survey = spooled::take("DIR", &args.spool.directory)?;
    told(writeln!(out, "{}", spooled::heading(&survey)))?;
    let mut sum = Sum::default();
    let mut known = Vec::new();
    let mut progress = Progress::start();
    for line in small_files(&survey) {
        sum.damages += 1;
        told(writeln!(out, "{line}"))?;
    }
    let mut walker = Walker::start(survey, Wanted::everything(true));
    loop {
        let event = tokio::select! { biased;
            () = stop.cancelled() => return Ok(Exit::Interrupted),
            event = walker.next() => event?,
        };
        match event {
            None => break,
            Some(Event::Opening { number, of, .. }) => {
                progress.tick(|| format!("segment {number} of {of}, {} records", grouped(sum.records)));
            }
            Some(Event::Value { .. }) => {}
            Some(Event::Damage(damage)) if damage.is_damage() => {
                progress.clear();
                sum.damages += 1;
                sum.damaged_records += damage.records();
                told(writeln!(out, "{}", damage_line(&damage)))?;
            }
            Some(Event::Damage(damage)) => known.push(damage),
            Some(Event::Closed(closed)) => {
                sum.segments += 1;
                sum.values += closed.values;
                sum.records += closed.records;
                sum.octets += closed.segment.octets;
            }
        }
    }
    progress.clear();
    told(out.write_all(summary(&sum, &known).as_bytes()))?;
    Ok(if sum.damages == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}

/// Damage of what is not in a segment.
fn small_files(survey: &Survey) -> Vec<String> {
    let mut lines = Vec::new();
    if survey.mark == SmallFile::Damaged {
        lines.push("mark: damaged; where the last run ended is not known".to_owned());
    }
    if survey.lost == SmallFile::Damaged {
        lines.push("lost: damaged; what was lost earlier is not known".to_owned());
    }
    if survey.checkpoint == SmallFile::Damaged {
        lines.push("checkpoint: damaged; flows are told from their beginning after a start".to_owned());
    }
    for name in &survey.cursors_damaged {
        let name = harmless(name);
        lines.push(format!(
            "cursors/{name}.json: damaged; {name} gets everything once more"
        ));
    }
    for path in &survey.set_aside {
        let path = harmless(&path.to_string_lossy());
        lines.push(format!(
            "{path}: a spool of another version, set aside; none of it is sent"
        ));
    }
    lines
}

fn summary(sum: &Sum, known: &[spooled::Damage]) -> String {
    let mut text = String::new();
    if !known.is_empty() {
        text.push_str("missing, and counted by the agent:\n");
        for damage in known.iter().take(KNOWN_SHOWN) {
            let (first, last) = damage.range.unwrap_or_default();
            text.push_str(&format!("  {}: {}\n", range(first, last), damage.cause));
        }
        if known.len() > KNOWN_SHOWN {
            text.push_str(&format!("  and {} more ranges\n", known.len() - KNOWN_SHOWN));
        }
    }
    text.push_str(&format!(
        "read {} records in {} values of {} segments, {} on disk\n",
        grouped(sum.records),
        grouped(sum.values),
        grouped(sum.segments),
        memory(sum.octets),
    ));
    text.push_str(&match sum.damages {
        0 => "no damage\n".to_owned(),
        n => format!(
            "damages: {}, of {} records\n",
            grouped(n),
            grouped(sum.damaged_records)
        ),
    });
    text
}
