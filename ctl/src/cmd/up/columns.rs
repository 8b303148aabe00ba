//! Which columns a table of a given width has, and how wide each is.
//!
//! The most columns whose least widths fit, by [`DROPPED`]; then what is left over goes to the columns whose cells are
//! cut, in the order of [`GROWN`]. A cell has a long and a short form; a column that cannot have all its long forms uncut
//! shows the short ones.

use super::row::{self, Ends};
use super::table::Row;
use crate::output::{clock, cut, harmless, short, short_us, width};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Time,
    Process,
    Pid,
    User,
    Container,
    Unit,
    Proto,
    Peers,
    Up,
    Down,
    Rtt,
    Retransmits,
    State,
}

/// All of them, from left to right.
const ALL: [Column; 13] = [
    Column::Time,
    Column::Process,
    Column::Pid,
    Column::User,
    Column::Container,
    Column::Unit,
    Column::Proto,
    Column::Peers,
    Column::Up,
    Column::Down,
    Column::Rtt,
    Column::Retransmits,
    Column::State,
];

/// Those that go when there is no room, the first of them first.
const DROPPED: [Column; 9] = [
    Column::Unit,
    Column::Retransmits,
    Column::Container,
    Column::Pid,
    Column::Rtt,
    Column::Time,
    Column::User,
    Column::State,
    Column::Proto,
];

/// Those that grow when there is room, the first of them first.
const GROWN: [Column; 7] = [
    Column::Process,
    Column::User,
    Column::Peers,
    Column::Pid,
    Column::Container,
    Column::Unit,
    Column::State,
];

/// Columns between two columns.
const GAP: usize = 1;

/// Columns with their widths.
pub(super) struct Layout {
    columns: Vec<Placed>,
}

struct Placed {
    column: Column,
    width: usize,
    /// Whether the long form of its cells is shown.
    long: bool,
}

impl Layout {
    /// The columns for `rows` on `screen` columns.
    pub(super) fn fit(rows: &[&Row], screen: usize) -> Self {
        let mut columns = ALL.to_vec();
        let mut dropped = DROPPED.iter();
        while least(rows, &columns) > screen {
            let Some(next) = dropped.next() else { break };
            columns.retain(|column| column != next);
        }
        let mut left = screen.saturating_sub(least(rows, &columns));
        let mut placed: Vec<Placed> = columns
            .into_iter()
            .map(|column| {
                let width = column.least(rows);
                Placed {
                    column,
                    width,
                    long: width >= column.natural(rows, true),
                }
            })
            .collect();
        for column in GROWN {
            let Some(place) = placed.iter_mut().find(|place| place.column == column) else {
                continue;
            };
            let (short, long) = (column.natural(rows, false), column.natural(rows, true));
            place.long |= place.width + left >= long;
            let most = if place.long { long } else { short };
            let more = most.saturating_sub(place.width).min(left);
            place.width += more;
            left -= more;
        }
        Self { columns: placed }
    }

    /// The names of the columns.
    pub(super) fn heading(&self) -> String {
        self.join(|place| place.column.title().to_owned())
    }

    /// A row.
    pub(super) fn line(&self, row: &Row) -> String {
        self.join(|place| place.column.cell(row, place.long))
    }

    fn join(&self, cell: impl Fn(&Placed) -> String) -> String {
        let mut line = String::new();
        for place in &self.columns {
            let text = match place.column {
                Column::Peers => cut_middle(&cell(place), place.width),
                _ => cut(&cell(place), place.width),
            };
            let padding = " ".repeat(place.width - width(&text));
            let (before, after) = if place.column.is_number() {
                (padding.as_str(), "")
            } else {
                ("", padding.as_str())
            };
            line.extend([before, &text, after, " "]);
        }
        line.truncate(line.trim_end().len());
        line
    }
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Time => "TIME UTC",
            Self::Process => "PROCESS",
            Self::Pid => "PID",
            Self::User => "USER",
            Self::Container => "CONTAINER",
            Self::Unit => "UNIT",
            Self::Proto => "PRO",
            Self::Peers => "PEERS",
            Self::Up => "↑OCT",
            Self::Down => "↓OCT",
            Self::Rtt => "RTT",
            Self::Retransmits => "RETR",
            Self::State => "STATE",
        }
    }

    fn is_number(self) -> bool {
        matches!(
            self,
            Self::Pid | Self::Up | Self::Down | Self::Rtt | Self::Retransmits
        )
    }

    /// What it may shrink to, and what it never grows beyond.
    fn bounds(self) -> (usize, usize) {
        match self {
            Self::Time => (8, 8),
            Self::Process => (9, 24),
            Self::Pid => (6, 15),
            Self::User => (6, 20),
            Self::Container => (9, 32),
            Self::Unit => (12, 32),
            Self::Proto => (3, 3),
            Self::Peers => (24, 97),
            Self::Up | Self::Down | Self::Rtt => (5, 5),
            Self::Retransmits => (4, 5),
            Self::State => (7, 11),
        }
    }

    /// Its width when nothing is cut.
    fn natural(self, rows: &[&Row], long: bool) -> usize {
        let (_, most) = self.bounds();
        let cells = rows
            .iter()
            .map(|row| width(&self.cell(row, long)))
            .max()
            .unwrap_or(0);
        cells.max(width(self.title())).min(most)
    }

    /// Its width when it is cut as far as it looks well.
    fn least(self, rows: &[&Row]) -> usize {
        self.bounds().0.min(self.natural(rows, false))
    }

    fn cell(self, row: &Row, long: bool) -> String {
        let record = &row.record;
        let ends = row::ends(record);
        let (up, down) = ends.octets(&record.total);
        match self {
            Self::Time => clock(record.end),
            Self::Process => harmless(&ends.both(row::process)),
            Self::Pid => ends.both(row::pid).into_owned(),
            Self::User => harmless(&ends.both(row::user)),
            Self::Container => harmless(&ends.both(row::container)),
            Self::Unit => harmless(&ends.both(row::unit)),
            Self::Proto => row::protocol(record).to_owned(),
            Self::Peers => peers(&ends, long),
            Self::Up => short(up),
            Self::Down => short(down),
            Self::Rtt => record
                .tcp
                .and_then(|tcp| tcp.rtt_us)
                .map_or_else(String::new, short_us),
            Self::Retransmits => row.retransmits.filter(|&n| n > 0).map_or_else(String::new, short),
            Self::State if long => row::state(record).to_owned(),
            Self::State => short_state(row::state(record)).to_owned(),
        }
    }
}

fn least(rows: &[&Row], columns: &[Column]) -> usize {
    let widths: usize = columns.iter().map(|column| column.least(rows)).sum();
    widths + GAP * columns.len().saturating_sub(1)
}

/// `10.0.0.5:43210 → 93.184.216.34:443`; the short form leaves the near address out.
fn peers(ends: &Ends<'_>, long: bool) -> String {
    let far = row::socket(ends.far.endpoint);
    let arrow = ends.arrow();
    if long {
        format!("{} {arrow} {far}", row::socket(ends.near.endpoint))
    } else {
        format!(":{}{arrow}{far}", ends.near.endpoint.port)
    }
}

/// Seven columns for the longer names.
fn short_state(state: &'static str) -> &'static str {
    match state {
        "established" => "estab",
        "syn-sent" => "syn-tx",
        "syn-recv" => "syn-rx",
        "fin-wait-1" => "fin-w1",
        "fin-wait-2" => "fin-w2",
        "time-wait" => "time-w",
        "close-wait" => "clos-w",
        "last-ack" => "last-a",
        "timed-out" => "timeout",
        "unreachable" => "unreach",
        "cut-short" => "cut",
        other => other,
    }
}

/// `text`, at most `columns` wide, what is cut out of its middle is shown by `…`: both ports stay. ASCII but for arrows.
fn cut_middle(text: &str, columns: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= columns {
        return text.to_owned();
    }
    let Some(kept) = columns.checked_sub(1) else {
        return String::new();
    };
    let tail = kept / 3;
    let head = kept - tail;
    let (head, tail) = (&characters[..head], &characters[characters.len() - tail..]);
    head.iter().chain(['…'].iter()).chain(tail).collect()
}
