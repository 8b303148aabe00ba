//! `agentctl buffer inspect`: what is in a spool.
//!
//! Every segment is read, its values' heads only. Times are UTC and those of the records, so that a copy tells the same
//! on another day: a collector's lag is from the newest record on disk back to the first that it has not taken.
//!
//! ```text
//! spool, process, cleanStop, newest   as in `agentctl loss`
//! format         what the file of this name says
//! octets         on disk, of all segments
//! segments       name, first, state "head" | "inUse" | "sealed" | "setAside", octets on disk
//!                last, values, records, start, end (RFC 3339): of what was read; null: nothing could be, or was tried
//! cursors        name, begin, read, taken; lagRecords, lagMs: null when not known
//! checkpoint     sequence, octets; null: none
//! lost           first, last, cause
//! damage         segment, first, last (null: no record is missing for it), cause, known: counted by the agent
//! damaged        files that cannot be read
//! setAside       directories of whole spools of another version
//! ```

use std::io::Write;
use std::time::Duration;

use flowtilla_agent_core::time::WallTime;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::{InspectArgs, damage_line, told};
use crate::cmd::loss::Output;
use crate::cmd::spooled::{
    self, Damage, Event, LostRange, SegmentInfo, SegmentState, SegmentSummary, SmallFile, Survey, Walker,
    Wanted, why,
};
use crate::exit::Exit;
use crate::output::{day_and_clock, grid, grouped, harmless, harmless_json, memory, range, rfc3339, span};

/// Ranges and damages that are printed; `-o json` has all.
const LINES_SHOWN: usize = 20;

/// What was found.
struct Found {
    survey: Survey,
    segments: Vec<(SegmentInfo, Option<SegmentSummary>)>,
    damages: Vec<Damage>,
    lags: Vec<Lag>,
}

/// How far a collector is behind.
struct Lag {
    collector: String,
    taken: u64,
    records: u64,
    /// End of the first value that it has not taken.
    first_waiting: Option<WallTime>,
    time: Option<Duration>,
}

pub(super) async fn run(
    args: &InspectArgs,
    out: &mut (impl Write + Send),
    stop: &CancellationToken,
) -> anyhow::Result<Exit> {
    let survey = spooled::take("DIR", &args.spool.directory)?;
    let Some(found) = Found::read(survey, stop).await? else {
        return Ok(Exit::Interrupted);
    };
    let text = match args.output {
        Output::Text => found.text(),
        Output::Json => found.json()?,
    };
    told(out.write_all(text.as_bytes()))?;
    Ok(Exit::Done)
}

impl Found {
    /// `None`: it was told to end.
    async fn read(survey: Survey, stop: &CancellationToken) -> anyhow::Result<Option<Self>> {
        let lag = |(name, cursor): (&String, &flowtilla_agent_core::spool::Cursor)| Lag {
            collector: name.clone(),
            taken: cursor.taken,
            records: survey.known().saturating_sub(cursor.taken),
            first_waiting: None,
            time: None,
        };
        let mut found = Self {
            segments: Vec::new(),
            damages: Vec::new(),
            lags: survey.cursors.iter().map(lag).collect(),
            survey: survey.clone(),
        };
        let mut newest = WallTime(0);
        let mut progress = Progress::start();
        let mut walker = Walker::start(survey, Wanted::everything(false));
        loop {
            let event = tokio::select! { biased;
                () = stop.cancelled() => return Ok(None),
                event = walker.next() => event?,
            };
            match event {
                None => break,
                Some(Event::Opening { number, of, .. }) => {
                    progress.tick(|| format!("segment {number} of {of}"));
                }
                Some(Event::Value { header, .. }) => {
                    newest = newest.max(header.end);
                    let last = header.first + u64::from(header.records) - 1;
                    for lag in &mut found.lags {
                        if lag.first_waiting.is_none() && last > lag.taken {
                            lag.first_waiting = Some(header.end);
                        }
                    }
                }
                Some(Event::Damage(damage)) => found.damages.push(damage),
                Some(Event::Closed(closed)) => found.segments.push((closed.segment.clone(), Some(closed))),
            }
        }
        progress.clear();
        let aside = found.survey.segments.iter();
        let aside = aside.filter(|segment| segment.state == SegmentState::SetAside);
        found
            .segments
            .extend(aside.map(|segment| (segment.clone(), None)));
        for lag in &mut found.lags {
            lag.time = match lag.first_waiting {
                Some(first) => Some(Duration::from_nanos(newest.0.saturating_sub(first.0))),
                None => (lag.records == 0).then_some(Duration::ZERO),
            };
        }
        Ok(Some(found))
    }

    fn octets(&self) -> u64 {
        self.segments.iter().map(|(segment, _)| segment.octets).sum()
    }

    fn text(&self) -> String {
        let survey = &self.survey;
        let mut lines = vec![
            spooled::heading(survey),
            format!(
                "format {}, {} on disk, last record {}",
                survey.format().trim_start_matches("flowtilla-spool "),
                memory(self.octets()),
                grouped(survey.known())
            ),
        ];
        lines.extend(self.segment_lines());
        lines.extend(self.cursor_lines());
        lines.push(match &survey.checkpoint {
            SmallFile::Absent => "no checkpoint".to_owned(),
            SmallFile::Whole(checkpoint) => format!(
                "checkpoint: up to record {}, {}",
                grouped(checkpoint.sequence),
                memory(checkpoint.octets)
            ),
            SmallFile::Damaged => "the checkpoint is damaged".to_owned(),
        });
        let lost = survey.lost_ranges();
        if !lost.is_empty() {
            lines.push("missing, and counted by the agent:".to_owned());
            lines.extend(shown(lost, |lost: &LostRange| {
                format!("  {}: {}", range(lost.first, lost.last), why(lost.cause))
            }));
        }
        let damages: Vec<&Damage> = self.damages.iter().filter(|damage| damage.is_damage()).collect();
        if !damages.is_empty() {
            lines.push("damaged:".to_owned());
            lines.extend(shown(&damages, |damage| format!("  {}", damage_line(damage))));
        }
        let damaged = self.damaged();
        lines.extend(
            damaged
                .iter()
                .map(|name| format!("{} is damaged", harmless(name))),
        );
        for path in &survey.set_aside {
            let path = harmless(&path.to_string_lossy());
            lines.push(format!("of another version, set aside: {path}"));
        }
        lines.join("\n") + "\n"
    }

    fn segment_lines(&self) -> Vec<String> {
        if self.segments.is_empty() {
            return vec!["no segments".to_owned()];
        }
        let heads = [
            "FIRST", "LAST", "VALUES", "RECORDS", "DISK", "FROM UTC", "SPAN", "STATE",
        ];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        rows.extend(self.segments.iter().map(|(segment, summary)| {
            let summary = summary.as_ref();
            // Plain: they fit, and go into --from and --to as they are.
            let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let times = summary.and_then(|summary| summary.span);
            vec![
                segment.first.to_string(),
                number(summary.and_then(|summary| summary.last)),
                number(summary.map(|summary| summary.values)),
                number(summary.map(|summary| summary.records)),
                memory(segment.octets),
                times.map_or_else(|| "-".to_owned(), |(start, _)| cut_to_minutes(start)),
                times.map_or_else(
                    || "-".to_owned(),
                    |(start, end)| span(Duration::from_nanos(end.0.saturating_sub(start.0))),
                ),
                state(segment.state).to_owned(),
            ]
        }));
        grid(&rows, &[0, 1, 2, 3, 4, 6])
    }

    fn cursor_lines(&self) -> Vec<String> {
        if self.lags.is_empty() {
            return vec!["no collector has a cursor".to_owned()];
        }
        let heads = ["COLLECTOR", "BEGIN", "READ", "TAKEN", "BEHIND", "IN TIME"];
        let mut rows = vec![heads.map(str::to_owned).to_vec()];
        rows.extend(self.lags.iter().map(|lag| {
            let cursor = &self.survey.cursors[&lag.collector];
            vec![
                harmless(&lag.collector),
                grouped(cursor.begin),
                grouped(cursor.read),
                grouped(cursor.taken),
                grouped(lag.records),
                match lag.time {
                    _ if lag.records == 0 => "-".to_owned(),
                    Some(time) => span(time),
                    None => "?".to_owned(),
                },
            ]
        }));
        grid(&rows, &[1, 2, 3, 4, 5])
    }

    /// Files that cannot be read.
    fn damaged(&self) -> Vec<String> {
        let mut names = Vec::new();
        names.extend((self.survey.mark == SmallFile::Damaged).then(|| "mark".to_owned()));
        names.extend((self.survey.lost == SmallFile::Damaged).then(|| "lost".to_owned()));
        let cursors = self.survey.cursors_damaged.iter();
        names.extend(cursors.map(|name| format!("cursors/{name}.json")));
        names
    }

    fn json(&self) -> anyhow::Result<String> {
        let survey = &self.survey;
        let told = Told {
            spool: survey.directory.to_string_lossy().into_owned(),
            process: survey.writer,
            clean_stop: survey.writer.is_none().then(|| !survey.stopped_uncleanly()),
            newest: survey.known(),
            format: survey.format(),
            octets: self.octets(),
            segments: self.segments.iter().map(ToldSegment::from).collect(),
            cursors: self.lags.iter().map(|lag| self.told_cursor(lag)).collect(),
            checkpoint: survey.checkpoint.whole().map(|checkpoint| ToldCheckpoint {
                sequence: checkpoint.sequence,
                octets: checkpoint.octets,
            }),
            lost: survey.lost_ranges(),
            damage: self.damages.iter().map(ToldDamage::from).collect(),
            damaged: self.damaged(),
            set_aside: survey
                .set_aside
                .iter()
                .map(|path| path.to_string_lossy().into_owned())
                .collect(),
        };
        Ok(harmless_json(serde_json::to_string(&told)?) + "\n")
    }

    fn told_cursor<'a>(&self, lag: &'a Lag) -> ToldCursor<'a> {
        let cursor = &self.survey.cursors[&lag.collector];
        ToldCursor {
            name: &lag.collector,
            begin: cursor.begin,
            read: cursor.read,
            taken: cursor.taken,
            lag_records: lag.records,
            lag_ms: lag.time.map(|time| time.as_millis()),
        }
    }
}

fn shown<T>(all: &[T], line: impl Fn(&T) -> String) -> Vec<String> {
    let mut lines: Vec<String> = all.iter().take(LINES_SHOWN).map(line).collect();
    if all.len() > LINES_SHOWN {
        lines.push(format!("  and {} more: see -o json", all.len() - LINES_SHOWN));
    }
    lines
}

fn cut_to_minutes(time: WallTime) -> String {
    let mut text = day_and_clock(time);
    text.truncate("2026-03-01 12:00".len());
    text
}

fn state(state: SegmentState) -> &'static str {
    match state {
        SegmentState::Head => "head",
        SegmentState::InUse => "in use",
        SegmentState::Sealed => "sealed",
        SegmentState::SetAside => "set aside",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    spool: String,
    process: Option<u32>,
    clean_stop: Option<bool>,
    newest: u64,
    format: &'static str,
    octets: u64,
    segments: Vec<ToldSegment<'a>>,
    cursors: Vec<ToldCursor<'a>>,
    checkpoint: Option<ToldCheckpoint>,
    lost: &'a [LostRange],
    damage: Vec<ToldDamage<'a>>,
    damaged: Vec<String>,
    set_aside: Vec<String>,
}

#[derive(Serialize)]
struct ToldSegment<'a> {
    name: &'a str,
    first: u64,
    state: &'static str,
    octets: u64,
    last: Option<u64>,
    values: Option<u64>,
    records: Option<u64>,
    start: Option<String>,
    end: Option<String>,
}

impl<'a> From<&'a (SegmentInfo, Option<SegmentSummary>)> for ToldSegment<'a> {
    fn from((segment, summary): &'a (SegmentInfo, Option<SegmentSummary>)) -> Self {
        let summary = summary.as_ref();
        let times = summary.and_then(|summary| summary.span);
        Self {
            name: &segment.name,
            first: segment.first,
            state: match segment.state {
                SegmentState::Head => "head",
                SegmentState::InUse => "inUse",
                SegmentState::Sealed => "sealed",
                SegmentState::SetAside => "setAside",
            },
            octets: segment.octets,
            last: summary.and_then(|summary| summary.last),
            values: summary.map(|summary| summary.values),
            records: summary.map(|summary| summary.records),
            start: times.map(|(start, _)| rfc3339(start).to_string()),
            end: times.map(|(_, end)| rfc3339(end).to_string()),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ToldCursor<'a> {
    name: &'a str,
    begin: u64,
    read: u64,
    taken: u64,
    lag_records: u64,
    lag_ms: Option<u128>,
}

#[derive(Serialize)]
struct ToldCheckpoint {
    sequence: u64,
    octets: u64,
}

#[derive(Serialize)]
struct ToldDamage<'a> {
    segment: Option<&'a str>,
    first: Option<u64>,
    last: Option<u64>,
    cause: String,
    known: bool,
}

impl<'a> From<&'a Damage> for ToldDamage<'a> {
    fn from(damage: &'a Damage) -> Self {
        Self {
            segment: damage.segment.as_deref(),
            first: damage.range.map(|(first, _)| first),
            last: damage.range.map(|(_, last)| last),
            cause: damage.cause.to_string(),
            known: !damage.is_damage(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::buffer::samples;
    use crate::cmd::up::samples::assert_pinned;

    #[tokio::test(flavor = "multi_thread")]
    async fn words_are_pinned_and_fit_a_terminal() {
        let state = samples::spool();
        let aside = &samples::segments(state.path())[0];
        // What an agent does with a segment that it cannot read; damage beside it.
        std::fs::rename(aside, aside.with_extension("corrupt-0")).expect("it is there");
        std::fs::write(
            state.path().join("spool/lost"),
            r#"{"sum":"8fd8aae5","value":[{"first":1,"last":30,"cause":"spoolDamaged"}]}"#,
        )
        .expect("it can be written");
        let survey = Survey::take(state.path()).expect("it is a spool");
        let found = Found::read(survey, &CancellationToken::new()).await;
        let mut found = found.expect("there is room for a copy").expect("nobody ended it");
        for (n, (segment, summary)) in found.segments.iter_mut().enumerate() {
            // File systems differ, and the least is the widest test.
            segment.octets = (12 << 20) + n as u64;
            if let Some(summary) = summary {
                summary.last = Some(1_234_567_890);
                summary.values = 2_048;
                summary.records = 1_234_567;
                segment.first = 1_233_333_333;
            }
        }
        let text = found.text().replace(&*state.path().to_string_lossy(), "DIR");
        assert!(
            text.lines()
                .all(|line| crate::output::width(line) <= 80 || line.starts_with("  0")),
            "{text}"
        );
        assert_pinned("inspect.txt", &text);
    }
}
