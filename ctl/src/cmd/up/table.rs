//! The live table: which flows it holds, and how they become lines of a given width.
//!
//! In: records, the agent's status, the size of the screen. Out: [`Frame`]s. Draws nothing and reads no clock.
//! One row a flow, newest activity first; octets are the flow's totals. Everything in a frame is harmless to a terminal.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use flowtilla_agent::status::AgentStatus;
use flowtilla_agent_core::flow::record::{BootId, FlowRecord};
use flowtilla_agent_core::observe::Cookie;

use super::{columns, report, row};
use crate::output::{cut, harmless, width};

/// Flows kept for the screen. More than any screen has lines; at twice as many the oldest half goes.
const ROWS_MAX: usize = 512;

/// Narrowest table; on a narrower screen its right side is cut.
const WIDTH_MIN: usize = 40;

/// Between two words of the totals.
const GAP: &str = "   ";

/// How a line is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paint {
    /// Names of the columns, and the totals.
    Frame,
    /// A flow that lives.
    Live,
    /// A flow that ended.
    Ended,
    /// An attempt that failed, a loss.
    Alarm,
}

/// The lines of one picture, each at most as wide as the screen.
pub(crate) type Frame = Vec<(Paint, String)>;

/// A flow: its newest record, and what records tell since the one before only.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) record: Arc<FlowRecord>,
    pub(crate) retransmits: Option<u64>,
}

/// The flows of the live table.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: HashMap<(BootId, Cookie, u64), Row>,
}

impl Table {
    /// Takes a record: a new row, or news of one.
    pub(crate) fn record(&mut self, record: Arc<FlowRecord>) {
        let id = (record.id.boot, record.id.cookie, record.id.stream);
        let news = row::retransmits(&record);
        let row = self.rows.entry(id).or_insert_with(|| Row {
            record: record.clone(),
            retransmits: None,
        });
        row.retransmits = match (row.retransmits, news) {
            (Some(old), Some(new)) => Some(old.saturating_add(new)),
            (old, new) => old.or(new),
        };
        row.record = record;
        if self.rows.len() > 2 * ROWS_MAX {
            self.forget_oldest();
        }
    }

    /// The picture for a screen of `screen` columns and `height` lines. `notes` stand above the totals; with `laws` both laws below them.
    pub(crate) fn render(
        &self,
        status: &AgentStatus,
        notes: &[String],
        laws: bool,
        (screen, height): (usize, usize),
    ) -> Frame {
        let columns = screen.max(WIDTH_MIN);
        let mut foot: Frame = notes.iter().map(|note| (Paint::Alarm, harmless(note))).collect();
        foot.extend(totals(status, columns));
        if laws {
            for law in report::laws(status) {
                let words = law.split(' ').map(str::to_owned).collect::<Vec<_>>();
                foot.extend(
                    wrap(&words, " ", columns)
                        .into_iter()
                        .map(|line| (Paint::Frame, line)),
                );
            }
        }
        // The heading takes one line, the cursor below the table another.
        let room = height.saturating_sub(foot.len() + 2);
        let shown: Vec<&Row> = self.newest().into_iter().take(room).collect();
        let layout = columns::Layout::fit(&shown, columns);
        let mut frame = vec![(Paint::Frame, layout.heading())];
        frame.extend(shown.iter().map(|row| (paint(&row.record), layout.line(row))));
        frame.extend(foot);
        frame.truncate(height.saturating_sub(1));
        frame
            .into_iter()
            .map(|(paint, line)| (paint, cut(&line, columns)))
            .collect()
    }

    fn newest(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.values().collect();
        rows.sort_by_key(|row| Reverse((row.record.end, row.record.id)));
        rows
    }

    fn forget_oldest(&mut self) {
        let mut ends: Vec<_> = self
            .rows
            .values()
            .map(|row| (row.record.end, row.record.id))
            .collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        if let Some(&last) = ends.get(ROWS_MAX - 1) {
            self.rows.retain(|_, row| (row.record.end, row.record.id) >= last);
        }
    }
}

fn paint(record: &FlowRecord) -> Paint {
    match (row::failed(record), row::ended(record)) {
        (true, _) => Paint::Alarm,
        (false, true) => Paint::Ended,
        (false, false) => Paint::Live,
    }
}

/// The bottom: flows, records, losses, owners; then the collectors.
fn totals(status: &AgentStatus, width: usize) -> Frame {
    let paint = if report::lost(status).is_empty() {
        Paint::Frame
    } else {
        Paint::Alarm
    };
    let totals = wrap(&report::totals(status), GAP, width)
        .into_iter()
        .map(|line| (paint, line));
    let collectors = wrap(&report::collectors(status), GAP, width)
        .into_iter()
        .map(|line| (Paint::Frame, line));
    totals.chain(collectors).collect()
}

/// `words` beside one another, on as many lines as they need.
fn wrap(words: &[String], gap: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if width(line) + gap.len() + width(word) <= columns => line.extend([gap, word]),
            _ => lines.push(word.clone()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::up::samples;

    fn table() -> Table {
        let mut table = Table::default();
        samples::all()
            .into_iter()
            .for_each(|record| table.record(Arc::new(record)));
        table
    }

    fn text(frame: &Frame) -> String {
        frame
            .iter()
            .map(|(paint, line)| format!("{:<6}|{line}\n", format!("{paint:?}")))
            .collect()
    }

    #[test]
    fn pictures_of_80_and_200_columns_are_pinned() {
        for (columns, name) in [
            (80, "table-80.txt"),
            (120, "table-120.txt"),
            (200, "table-200.txt"),
        ] {
            let frame = table().render(&samples::status(), &[], false, (columns, 24));
            assert!(frame.iter().all(|(_, line)| width(line) <= columns), "{frame:?}");
            samples::assert_pinned(name, &text(&frame));
        }
        let with_laws = table().render(&samples::status(), &[], true, (80, 30));
        samples::assert_pinned("table-80-laws.txt", &text(&with_laws));
    }

    #[test]
    fn every_size_of_screen_is_kept_to() {
        let mut table = table();
        table.record(Arc::new(samples::harmful()));
        for columns in 40..220 {
            for lines in [1, 2, 5, 9, 50] {
                let frame = table.render(&samples::status(), &["a note".into()], true, (columns, lines));
                assert!(
                    frame.len() < lines.max(1) || lines == 1,
                    "{lines} lines: {}",
                    frame.len()
                );
                assert!(
                    frame.iter().all(|(_, line)| width(line) <= columns),
                    "{columns}: {}",
                    text(&frame)
                );
            }
        }
    }

    #[test]
    fn harmful_names_are_harmless() {
        let mut table = Table::default();
        table.record(Arc::new(samples::harmful()));
        let frame = table.render(&AgentStatus::default(), &["\u{1b}c".into()], false, (200, 24));
        assert!(
            !text(&frame).replace('\n', "").contains(char::is_control),
            "{frame:?}"
        );
    }

    #[test]
    fn a_flow_is_one_row_with_its_newest_figures_and_the_sum_of_its_retransmits() {
        let mut table = Table::default();
        let first = samples::curl();
        let mut second = first.clone();
        second.id.part = 3;
        second.total.forward.octets = 99_000;
        table.record(Arc::new(first));
        table.record(Arc::new(second));
        let rows = table.newest();
        assert_eq!(rows.len(), 1);
        assert_eq!(
            (rows[0].record.total.forward.octets, rows[0].retransmits),
            (99_000, Some(2))
        );
    }

    #[test]
    fn the_newest_activity_is_first_and_the_oldest_is_forgotten() {
        let mut table = Table::default();
        for n in 0..3 * ROWS_MAX as u64 {
            let mut record = samples::curl();
            record.id.cookie = Cookie(n);
            record.end.0 += n;
            table.record(Arc::new(record));
            assert!(table.rows.len() <= 2 * ROWS_MAX);
        }
        let cookies: Vec<u64> = table.newest().iter().map(|row| row.record.id.cookie.0).collect();
        assert_eq!(cookies[0], 3 * ROWS_MAX as u64 - 1);
        assert!(cookies.len() >= ROWS_MAX && cookies.is_sorted_by(|a, b| a > b));
    }
}
