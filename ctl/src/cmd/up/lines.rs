//! One line a record, for pipes: words separated by blanks, the same columns in the same order for ever.
//!
//! A word never contains a blank or anything that a terminal would obey; what is not known is `-`. Words are padded so
//! that usual values stand below one another. UP and DOWN are octets since the flow's last record, so that sums are
//! right; RTT_US is µs. LOCAL is the initiator when both ends are on this host; REMOTE_PROCESS tells the other then. New columns are added at the end only.

use std::fmt::{Display, Write as _};
use std::iter::repeat_n;

use flowtilla_agent_core::flow::record::{FlowRecord, Party};

use super::row::{self, confidence, socket};
use crate::output::{rfc3339, width, word};

/// Columns and their least widths.
const COLUMNS: [(&str, usize); 18] = [
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
    ("REMOTE_PID", 7),
    ("UNIT", 0),
];

/// The line of names, with its end.
pub(crate) fn heading() -> String {
    let mut text = String::new();
    let mut line = Line::new(&mut text);
    COLUMNS.iter().for_each(|(name, _)| line.cell(name));
    line.end();
    text
}

/// Appends the line of a record, with its end.
pub(crate) fn render(record: &FlowRecord, text: &mut String) {
    let ends = row::ends(record);
    let (up, down) = ends.octets(&record.delta);
    let (near, far) = (ends.near, ends.far);
    let mut line = Line::new(text);
    line.cell(rfc3339(record.end));
    line.cell(row::process(&near.owner));
    line.number(pid(near));
    line.cell(row::user(&near.owner));
    line.cell(row::container(&near.owner));
    line.cell(row::protocol(record));
    line.cell(socket(near.endpoint));
    line.cell(if ends.outward { "->" } else { "<-" });
    line.cell(socket(far.endpoint));
    line.number(Some(up));
    line.number(Some(down));
    line.number(record.tcp.and_then(|tcp| tcp.rtt_us).map(u64::from));
    line.number(row::retransmits(record));
    line.cell(row::state(record));
    line.cell(confidence(near.owner.confidence));
    line.cell(row::process(&far.owner));
    line.number(pid(far));
    line.cell(row::unit(&near.owner));
    line.end();
}

fn pid(party: &Party) -> Option<u64> {
    party.owner.process.map(|process| u64::from(process.key.pid))
}

/// A line being written at the end of a text, a cell a column.
struct Line<'a> {
    text: &'a mut String,
    column: usize,
}

impl<'a> Line<'a> {
    fn new(text: &'a mut String) -> Self {
        Self { text, column: 0 }
    }

    fn number(&mut self, n: Option<u64>) {
        match n {
            Some(n) => self.cell(n),
            None => self.cell(""),
        }
    }

    fn cell(&mut self, cell: impl Display) {
        let from = self.text.len();
        let _ = write!(self.text, "{cell}"); // Writing to a String cannot fail.
        let written = &self.text[from..];
        let plain = |octet: u8| octet.is_ascii_graphic() && octet != b'\\';
        let wide = if !written.is_empty() && written.bytes().all(plain) {
            written.len()
        } else {
            let word = word(written);
            self.text.truncate(from);
            self.text.push_str(&word);
            width(&word)
        };
        let least = COLUMNS[self.column].1;
        self.column += 1;
        if self.column < COLUMNS.len() {
            self.text.extend(repeat_n(' ', least.saturating_sub(wide) + 1));
        }
    }

    fn end(self) {
        debug_assert_eq!(self.column, COLUMNS.len());
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::up::samples;

    #[test]
    fn lines_are_pinned() {
        let mut text = heading();
        for record in samples::all() {
            render(&record, &mut text);
        }
        samples::assert_pinned("lines.txt", &text);
    }

    #[test]
    fn every_line_has_one_word_a_column() {
        for record in samples::all() {
            let mut line = String::new();
            render(&record, &mut line);
            assert_eq!(line.split_whitespace().count(), COLUMNS.len(), "{record:?}");
        }
    }

    #[test]
    fn a_harmful_name_stays_one_harmless_word() {
        let mut line = String::new();
        render(&samples::harmful(), &mut line);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.trim_end().chars().all(|c| !c.is_control()), "{line:?}");
        assert!(line.contains("a\\x20b\\u{1b}[31m\\n"), "{line:?}");
    }
}
