//! Rows of one view, bounded: beyond the bound the smallest go into one row for all of them.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::sums::{Side, Sums, Window};
use super::{Order, Report, ReportRow, Subject};

/// One row: somebody, and what its flows did.
#[derive(Debug)]
struct Row {
    subject: Subject,
    window: Window,
    total: Sums,
    /// Since it has a series of its own; `None`: it has none.
    series: Option<Sums>,
}

/// What a record adds to a row.
pub(super) struct Part {
    pub(super) side: Side,
    pub(super) sums: Sums,
    /// Slot of now.
    pub(super) slot: u64,
    /// Slot of the flow's record before; `None`: none is known.
    pub(super) before: Option<u64>,
    /// Whether it is the flow's first record.
    pub(super) first: bool,
    /// Whether the flow counts in the window: its next record will be known to be its next.
    pub(super) counts: bool,
}

/// The rows of a view.
#[derive(Debug)]
pub(super) struct Table {
    rows: HashMap<Box<str>, Row>,
    /// Rows that are kept when there are twice as many.
    rows_max: usize,
    /// Those that were evicted, together.
    other: Window,
    other_total: Sums,
    evicted: u64,
    /// Rows that may have a series of their own.
    series_max: usize,
    /// Everything that was added to rows without one: only rises.
    rest: Sums,
}

impl Table {
    pub(super) fn new(rows_max: usize, series_max: usize) -> Self {
        Self {
            rows: HashMap::new(),
            rows_max: rows_max.max(1),
            other: Window::default(),
            other_total: Sums::default(),
            evicted: 0,
            series_max,
            rest: Sums::default(),
        }
    }

    /// Adds to the row of `key`; `make` says who it is, `update` what is new about it.
    pub(super) fn add(
        &mut self,
        key: &str,
        part: &Part,
        make: impl FnOnce() -> Subject,
        update: impl FnOnce(&mut Subject),
    ) {
        if !self.rows.contains_key(key) {
            if self.rows.len() >= 2 * self.rows_max {
                self.evict(part.slot);
            }
            let with_series = self.series_max > 0
                && self.rows.values().filter(|row| row.series.is_some()).count() < self.series_max;
            let row = Row {
                subject: make(),
                window: Window::default(),
                total: Sums::default(),
                series: with_series.then(Sums::default),
            };
            self.rows.insert(key.into(), row);
        }
        let row = self
            .rows
            .get_mut(key)
            .expect("it is there, or was put there just now");
        update(&mut row.subject);
        if let Some(sums) = part
            .before
            .filter(|before| *before != part.slot)
            .and_then(|before| row.window.peek_mut(before))
        {
            let flows = sums.flows_mut(part.side);
            *flows = flows.saturating_sub(1);
        }
        let now = row.window.at(part.slot);
        now.add(&part.sums);
        if part.counts && part.before != Some(part.slot) {
            *now.flows_mut(part.side) += 1;
        }
        let mut lasting = part.sums;
        *lasting.flows_mut(part.side) += u64::from(part.first);
        row.total.add(&lasting);
        row.series.as_mut().unwrap_or(&mut self.rest).add(&lasting);
    }

    /// Time for another slot: series go to whoever does most. One that does something keeps its own until another does twice
    /// as much: a series that comes and goes is of little use.
    pub(super) fn choose_series(&mut self, slot: u64) {
        if self.series_max == 0 {
            return;
        }
        let octets = |row: &Row| row.window.sum(slot).map_or(0, |sums| sums.octets());
        let mut without: Vec<(u64, &mut Row)> = Vec::new();
        let mut with: Vec<(u64, &mut Row)> = Vec::new();
        for row in self.rows.values_mut() {
            let octets = octets(row);
            match row.series {
                Some(_) => with.push((octets, row)),
                None if octets > 0 => without.push((octets, row)),
                None => {}
            }
        }
        without.sort_by_key(|(octets, _)| Reverse(*octets));
        with.sort_by_key(|(octets, _)| *octets);
        let free = self.series_max.saturating_sub(with.len());
        let mut wanting = without.into_iter();
        for (_, row) in wanting.by_ref().take(free) {
            row.series = Some(Sums::default());
        }
        for ((small, loser), (large, winner)) in with.into_iter().zip(wanting) {
            if small.saturating_mul(2) > large {
                break;
            }
            loser.series = None;
            winner.series = Some(Sums::default());
        }
    }

    /// Those with a series of their own, and the sums of all others.
    pub(super) fn series(&self) -> (impl Iterator<Item = (&Subject, &Sums)>, &Sums) {
        let with = |row| {
            let Row { subject, series, .. }: &Row = row;
            Some((subject, series.as_ref()?))
        };
        (self.rows.values().filter_map(with), &self.rest)
    }

    /// The first rows that had a record in the window, in this order, and the sums of all others.
    pub(super) fn report(&self, order: Order, rows_max: usize, slot: u64) -> Report {
        let mut active: Vec<(&str, &Row, Sums)> = self
            .rows
            .iter()
            .filter_map(|(key, row)| Some((&**key, row, row.window.sum(slot)?)))
            .collect();
        active.sort_by(|(key, _, sums), (other_key, _, other)| {
            let rank = order.rank(other).cmp(&order.rank(sums));
            rank.then(other.octets().cmp(&sums.octets()))
                .then(key.cmp(other_key))
        });
        let more = active.split_off(rows_max.min(active.len()));
        let mut other = self.other.sum(slot).unwrap_or_default();
        more.iter().for_each(|(_, _, sums)| other.add(sums));
        let mut other_total = self.other_total;
        more.iter().for_each(|(_, row, _)| other_total.add(&row.total));
        let row = |(_, row, window): (&str, &Row, Sums)| ReportRow {
            subject: row.subject.clone(),
            window,
            total: row.total,
        };
        Report {
            rows: active.into_iter().map(row).collect(),
            more: more.len() as u64,
            evicted: self.evicted,
            other,
            other_total,
            ..Report::default()
        }
    }

    /// Half of the rows go: those that did least in the window, of those that did nothing the ones that did least ever.
    fn evict(&mut self, slot: u64) {
        let rank = |row: &Row| {
            let window = row.window.sum(slot);
            (
                row.series.is_some(),
                window.is_some(),
                window.map_or(0, |sums| sums.octets()),
                row.total.octets(),
            )
        };
        let mut ranks: Vec<_> = self
            .rows
            .iter()
            .map(|(key, row)| (rank(row), key.clone()))
            .collect();
        ranks.sort_unstable_by(|a, b| b.cmp(a));
        for (_, key) in ranks.drain(self.rows_max.min(ranks.len())..) {
            if let Some(row) = self.rows.remove(&key) {
                self.other.absorb(&row.window, slot);
                self.other_total.add(&row.total);
                self.evicted += 1;
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}
