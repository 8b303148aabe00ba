//! `agentctl buffer replay`: the records that are on disk, printed, or sent once more.
//!
//! Printed they have the forms of `agentctl up`: a line each, or one JSON object each. With `--ntopng` they go through the
//! product's own exporter, with its acknowledgements and its pace, under a source id of their own; the cursors of the
//! spool do not move. ntopng counts what comes as new traffic at the time it comes, under another probe: replay to one
//! that has not had the records, or have hosts counted twice. Its loss count of the agent is not touched; but as nested
//! JSON the source id is one of 255, which nobody allots, and an agent may have the same.
//!
//! The spool is read as it is at the start: what an agent appends meanwhile is left out. What cannot be read on the way
//! is told on stderr, and the exit code is 1; what the agent knows to be lost is told only.

use std::future::Future;
use std::io::Write;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flowtilla_agent_core::encode::tlv::Loopback as TlvLoopback;
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::loss::DropPoint;
use flowtilla_agent_core::time::WallTime;
use flowtilla_grpc::causes;
use flowtilla_proto::collector::{Collector, RECORDS_PER_SECOND};
use flowtilla_proto::mistake::Mistake;
use flowtilla_proto::wire;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{Directory, damage_line, told};
use crate::cmd::spooled::{self, CollectorState, CollectorStatus, Event, Replay, Walker, Wanted, wall_now};
use crate::cmd::up::args::{Encoding, Loopback, parse_number, read_key};
use crate::cmd::up::{json, lines};
use crate::exit::{Exit, UsageError, say};
use crate::output::{grouped, harmless, range};
use crate::when::When;

/// Octets of text that are written at once.
const TEXT_OCTETS: usize = 64 << 10;
/// Known losses that are told; the rest is counted.
const KNOWN_SHOWN: u64 = 20;
/// How often it is told how the collector stands.
const STATE: Duration = Duration::from_millis(200);

#[derive(Args, Clone, Debug)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pub(crate) spool: Directory,
    /// How to print: one line a record, or one JSON object a record, as agentctl up does [default: lines].
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Output>,
    /// ntopng that gets the records (its -i tcp://*:PORTc), instead of printing them. It counts them as new traffic.
    #[arg(long, value_name = "tcp://HOST:PORT")]
    pub(crate) ntopng: Option<String>,
    /// ntopng's public CURVE key, or @ and a file that holds it.
    #[arg(long, value_name = "KEY|@FILE")]
    pub(crate) curve_key: Option<String>,
    /// How flow records are written: nestedJson is for ntopng 5.2, which shows pods by it [default: tlv].
    #[arg(long, value_enum)]
    pub(crate) encoding: Option<Encoding>,
    /// What ntopng sees of a loopback address [default: hostAddress, of the host that replays].
    #[arg(long, value_enum)]
    pub(crate) loopback: Option<Loopback>,
    /// Sends each record's identity (boot id, cookie, part) with it.
    #[arg(long)]
    pub(crate) record_ids: bool,
    /// First sequence.
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    pub(crate) from: Option<u64>,
    /// Last sequence.
    #[arg(long, value_name = "SEQUENCE", value_parser = parse_sequence)]
    pub(crate) to: Option<u64>,
    /// Records that ended at this time or later: RFC 3339, or a span before now such as 2h.
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    pub(crate) since: Option<When>,
    /// Records that ended at this time or earlier.
    #[arg(long, value_name = "TIME", value_parser = When::parse)]
    pub(crate) until: Option<When>,
    /// Most records a second [default: without a bound; 20000 with --ntopng, 8000 of nestedJson].
    #[arg(long, value_name = "N", value_parser = parse_number)]
    pub(crate) rate: Option<u64>,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// One line a record.
    Lines,
    /// One JSON object a record.
    Json,
}

/// A sequence as it is printed, with or without commas.
fn parse_sequence(text: &str) -> Result<u64, String> {
    parse_number(&text.replace(',', ""))
}

impl ReplayArgs {
    /// What of the spool is asked for.
    ///
    /// # Errors
    /// Every flag that is refused, one line each.
    pub(super) fn wanted(&self, now: WallTime) -> Result<(Wanted, Option<Collector>), UsageError> {
        let mut refused = Vec::new();
        let wanted = Wanted {
            from: self.from.unwrap_or(0),
            to: self.to.unwrap_or(u64::MAX),
            since: self.since.map_or(WallTime(0), |when| when.at(now)),
            until: self.until.map_or(WallTime(u64::MAX), |when| when.at(now)),
            records: true,
        };
        if wanted.from > wanted.to {
            refused.push("--to: lies before --from; write a sequence that is not smaller".to_owned());
        }
        if wanted.since > wanted.until {
            refused.push("--until: lies before --since; write a later time".to_owned());
        }
        if let Some(rate) = self.rate
            && !RECORDS_PER_SECOND.contains(&rate)
        {
            let most = RECORDS_PER_SECOND.end();
            refused.push(format!("--rate: \"{rate}\" is out of range; write 1 to {most}"));
        }
        let collector = match self.collector() {
            Ok(collector) => collector,
            Err(lines) => {
                refused.extend(lines);
                None
            }
        };
        if refused.is_empty() {
            Ok((wanted, collector))
        } else {
            Err(UsageError(refused))
        }
    }

    fn collector(&self) -> Result<Option<Collector>, Vec<String>> {
        let Some(endpoint) = &self.ntopng else {
            let given = [
                ("--curve-key", self.curve_key.is_some()),
                ("--encoding", self.encoding.is_some()),
                ("--loopback", self.loopback.is_some()),
                ("--record-ids", self.record_ids),
            ];
            let line = |flag| format!("{flag}: there is no collector it is for; write --ntopng too");
            let lines: Vec<_> = given
                .iter()
                .filter(|given| given.1)
                .map(|given| line(given.0))
                .collect();
            return if lines.is_empty() { Ok(None) } else { Err(lines) };
        };
        if self.output.is_some() {
            let line = "--output: nothing is printed with --ntopng; leave one of them out";
            return Err(vec![line.to_owned()]);
        }
        let key = self.curve_key.as_deref().map(read_key).transpose();
        let sent = wire::Collector {
            name: "replay".to_owned(),
            endpoint: endpoint.clone(),
            curve_server_key: key.map_err(|line| vec![line])?,
            // Told above when it is out of range.
            records_per_second: self.rate.filter(|rate| RECORDS_PER_SECOND.contains(rate)),
            record_ids: Some(self.record_ids),
            encoding: Encoding::sent(self.encoding).into(),
            ..wire::Collector::default()
        };
        Collector::try_from(sent).map(Some).map_err(|mistakes| {
            let told = |mistake: Mistake| {
                let flag = match mistake.path.as_str() {
                    "endpoint" => "--ntopng",
                    "curveServerKey" => "--curve-key",
                    other => other,
                };
                let path = flag.to_owned();
                Mistake { path, ..mistake }.to_string()
            };
            mistakes.into_iter().map(told).collect()
        })
    }

    fn loopback(&self) -> TlvLoopback {
        match self.loopback {
            None | Some(Loopback::HostAddress) => TlvLoopback::HostAddress,
            Some(Loopback::Omit) => TlvLoopback::Omit,
            Some(Loopback::AsIs) => TlvLoopback::AsIs,
        }
    }
}

pub(super) async fn run(
    args: &ReplayArgs,
    out: &mut (impl Write + Send),
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    let (wanted, collector) = args.wanted(wall_now())?;
    let survey = spooled::take("DIR", &args.spool.directory)?;
    let source = Source {
        walker: Walker::start(survey, wanted),
        wanted,
        records: Vec::new().into_iter(),
        tally: Tally::default(),
    };
    match collector {
        None => print(args, source, out, stop).await,
        Some(collector) => send(args.loopback(), collector, source, stop).await,
    }
}

/// What was met on the way beside records.
#[derive(Debug, Default)]
struct Tally {
    records: u64,
    damages: u64,
    known: u64,
}

impl Tally {
    fn exit(&self) -> Exit {
        if self.damages == 0 {
            Exit::Done
        } else {
            Exit::Failed
        }
    }
}

/// The wanted records, one after another.
struct Source {
    walker: Walker,
    wanted: Wanted,
    records: std::vec::IntoIter<FlowRecord>,
    tally: Tally,
}

impl Source {
    /// The next record; `None`: that was all. Tells of what is missing.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    async fn next(&mut self) -> anyhow::Result<Option<FlowRecord>> {
        loop {
            if let Some(record) = self.records.next() {
                self.tally.records += 1;
                return Ok(Some(record));
            }
            match self.walker.next().await? {
                None => return Ok(None),
                Some(Event::Value { header, records }) => {
                    let numbered = (header.first..).zip(records);
                    let kept = numbered.filter(|(sequence, record)| self.wanted.has(*sequence, record));
                    let kept: Vec<_> = kept.map(|(_, record)| record).collect();
                    self.records = kept.into_iter();
                }
                Some(Event::Damage(damage)) if damage.is_damage() => {
                    self.tally.damages += 1;
                    say(damage_line(&damage));
                }
                Some(Event::Damage(damage)) => {
                    self.tally.known += 1;
                    if self.tally.known <= KNOWN_SHOWN {
                        let (first, last) = damage.range.unwrap_or_default();
                        say(format_args!(
                            "missing: records {}: {}",
                            range(first, last),
                            damage.cause
                        ));
                    }
                }
                Some(Event::Opening { .. } | Event::Closed(_)) => {}
            }
        }
    }
}

async fn print(
    args: &ReplayArgs,
    mut source: Source,
    out: &mut (impl Write + Send),
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    let render = match args.output {
        None | Some(Output::Lines) => lines::render,
        Some(Output::Json) => json::render,
    };
    let mut text = match args.output {
        None | Some(Output::Lines) => lines::heading(),
        Some(Output::Json) => String::new(),
    };
    let begun = Instant::now();
    loop {
        let next = tokio::select! { biased;
            () = stop.cancelled() => return Ok(Exit::Interrupted),
            next = source.next() => next?,
        };
        let Some(record) = next else { break };
        render(&record, &mut text);
        let pause = args
            .rate
            .and_then(|rate| pause(begun, source.tally.records, rate));
        if text.len() >= TEXT_OCTETS || pause.is_some() {
            write_out(out, &mut text)?;
        }
        if let Some(until) = pause {
            tokio::select! { biased;
                () = stop.cancelled() => return Ok(Exit::Interrupted),
                () = sleep_until(until) => {}
            }
        }
    }
    write_out(out, &mut text)?;
    end(&source.tally);
    Ok(source.tally.exit())
}

fn write_out(out: &mut impl Write, text: &mut String) -> anyhow::Result<()> {
    let written = tokio::task::block_in_place(|| out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    text.clear();
    told(written)
}

/// Until when to wait after this many records; `None`: they are late.
fn pause(begun: Instant, records: u64, rate: u64) -> Option<Instant> {
    let ns = u128::from(records) * 1_000_000_000 / u128::from(rate.max(1));
    let due = begun + Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
    // A timer has a grain of a millisecond: small debts are gathered.
    (due > Instant::now() + Duration::from_millis(5)).then_some(due)
}

fn end(tally: &Tally) {
    if tally.known > KNOWN_SHOWN {
        let more = grouped(tally.known - KNOWN_SHOWN);
        say(format_args!("missing: {more} more ranges; see agentctl loss"));
    }
    if tally.damages > 0 {
        say("not everything could be read; see agentctl buffer verify");
    }
}

async fn send(
    loopback: TlvLoopback,
    collector: Collector,
    mut source: Source,
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    let endpoint = harmless(&collector.endpoint.to_string());
    let mut replay = Replay::start(collector, loopback).map_err(|error| {
        anyhow::anyhow!(
            "{}; set TMPDIR to a directory with some room",
            causes::chain(&error)
        )
    })?;
    let mut watch = Watch::new(&replay, endpoint);
    let outcome = async {
        while let Some(record) = watch.during(source.next()).await? {
            watch.during(replay.push(&record)).await?;
        }
        watch.during(replay.settle()).await?;
        anyhow::Ok(())
    };
    let finished = tokio::select! { biased;
        () = stop.cancelled() => false,
        outcome = outcome => outcome.map(|()| true)?,
    };
    watch.progress.clear();
    let last = replay.finish().await?;
    say(summary(&last));
    end(&source.tally);
    let law = &last.law;
    let lost = law.dropped.lossy().filter(|&(point, _)| !point.is_wanted());
    let lost = law.evicted + lost.map(|(_, n)| n).sum::<u64>();
    Ok(match source.tally.exit() {
        _ if !finished => Exit::Interrupted,
        Exit::Done if lost > 0 => Exit::Failed,
        exit => exit,
    })
}

/// Tells how the collector stands while something else is waited for.
struct Watch {
    status: tokio::sync::watch::Receiver<CollectorStatus>,
    endpoint: String,
    progress: Progress,
    told: Option<String>,
}

impl Watch {
    fn new(replay: &Replay, endpoint: String) -> Self {
        Self {
            status: replay.status(),
            endpoint,
            progress: Progress::start(),
            told: None,
        }
    }

    async fn during<T, E: Into<anyhow::Error>>(
        &mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! { biased;
                done = &mut work => return done.map_err(Into::into),
                () = tokio::time::sleep(STATE) => self.tell(),
            }
        }
    }

    fn tell(&mut self) {
        let (state, law) = {
            let status = self.status.borrow();
            (state(&status.state), status.law)
        };
        if let Some(state) = &state
            && self.told.as_ref() != Some(state)
        {
            self.progress.clear();
            say(format_args!("{}: {state}", self.endpoint));
        }
        self.told = state;
        self.progress
            .tick(|| format!("{} records taken by {}", grouped(law.taken), self.endpoint));
    }
}

/// What keeps records from flowing; `None`: they flow.
fn state(state: &CollectorState) -> Option<String> {
    match state {
        CollectorState::Connecting { why: None } | CollectorState::Streaming { .. } => None,
        CollectorState::Connecting { why: Some(why) } => Some(format!(
            "not connected ({}); tries again until Ctrl-C",
            harmless(why)
        )),
        CollectorState::AwaitingSubscription => Some("connected, not subscribed".to_owned()),
        CollectorState::Stalled => Some("connected, and does not read".to_owned()),
    }
}

fn summary(status: &CollectorStatus) -> String {
    let law = &status.law;
    let mut text = format!(
        "{} records taken by {} in {} messages",
        grouped(law.taken),
        harmless(&status.endpoint),
        grouped(status.messages)
    );
    for (point, n) in law.dropped.lossy() {
        text.push_str(&match point {
            DropPoint::Withheld => format!(", {} withheld (--loopback omit)", grouped(n)),
            DropPoint::ReportedByPeer => format!(", {} told by another agent", grouped(n)),
            DropPoint::ShutdownGrace => format!(", {} not taken", grouped(n)),
            point => format!(", lost at {point}: {} {}", grouped(n), point.unit()),
        });
    }
    text
}

#[cfg(test)]
mod tests;
