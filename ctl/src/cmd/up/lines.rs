//! One line a record, for pipes: words separated by blanks, the same columns in the same order for ever.
//!
//! A word never contains a blank or anything that a terminal would obey; what is not known is `-`. Words are padded so
//! that usual values stand below one another. UP and DOWN are octets since the flow's last record, so that sums are
//! right; RTT_US is µs. LOCAL is the initiator when both ends are on this host; REMOTE_PROCESS tells the other then. New columns are added at the end only.

use flowtilla_agent_core::flow::record::FlowRecord;

use super::row::{self, confidence, socket};
use crate::output::{rfc3339, width, word};

/// Columns and their least widths.
const COLUMNS: [(&str, usize); 17] = [
    ("TIME", 30),
    ("PROCESS", 15),
    ("PID", 7),
    ("USER", 8),
    ("CONTAINER", 12),
    ("PROTO", 5),
    ("LOCAL", 21),
    ("DIR", 3),
    ("REMOTE", 21),
    ("UP", 10),
    ("DOWN", 10),
    ("RTT_US", 7),
    ("RETRANS", 7),
    ("STATE", 11),
    ("OWNER", 10),
    ("REMOTE_PROCESS", 15),
    ("REMOTE_PID", 0),
];

/// The line of names, with its end.
pub(crate) fn heading() -> String {
    line(COLUMNS.map(|(name, _)| name.to_owned()))
}

/// The line of a record, with its end.
pub(crate) fn render(record: &FlowRecord) -> String {
    let ends = row::ends(record);
    let (up, down) = ends.octets(&record.delta);
    let number = |n: Option<u64>| n.map_or_else(String::new, |n| n.to_string());
    line([
        rfc3339(record.end),
        row::process(&ends.near.owner),
        row::pid(&ends.near.owner),
        row::user(&ends.near.owner),
        row::container(&ends.near.owner),
        row::protocol(record).to_owned(),
        socket(ends.near.endpoint),
        if ends.outward { "->" } else { "<-" }.to_owned(),
        socket(ends.far.endpoint),
        up.to_string(),
        down.to_string(),
        number(record.tcp.and_then(|tcp| tcp.rtt_us).map(u64::from)),
        number(row::retransmits(record)),
        row::state(record).to_owned(),
        confidence(ends.near.owner.confidence).to_owned(),
        row::process(&ends.far.owner),
        row::pid(&ends.far.owner),
    ])
}

fn line(cells: [String; COLUMNS.len()]) -> String {
    let mut line = String::new();
    for (cell, (_, least)) in cells.iter().zip(COLUMNS) {
        let cell = word(cell);
        let padding = " ".repeat(least.saturating_sub(width(&cell)));
        line.push_str(&cell);
        line.push_str(&padding);
        line.push(' ');
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::up::samples;

    #[test]
    fn lines_are_pinned() {
        let mut text = heading();
        for record in samples::all() {
            text.push_str(&render(&record));
        }
        samples::assert_pinned("lines.txt", &text);
    }

    #[test]
    fn every_line_has_one_word_a_column() {
        for record in samples::all() {
            assert_eq!(
                render(&record).split_whitespace().count(),
                COLUMNS.len(),
                "{record:?}"
            );
        }
    }

    #[test]
    fn a_harmful_name_stays_one_harmless_word() {
        let line = render(&samples::harmful());
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.trim_end().chars().all(|c| !c.is_control()), "{line:?}");
        assert!(line.contains("a\\x20b\\u{1b}[31m\\n"), "{line:?}");
    }
}
