//! The newest values, in memory: what the disk does not have yet, and what it has had for a moment.
//!
//! Shared by the meter (pushes), the disk thread (takes what is not synced) and the readers, under one short lock.
//! Invariant: values ascend; those up to `durable` come first and are the first to go.

use std::collections::VecDeque;

use flowtilla_agent_core::spool::Value;

/// What a value costs beside its octets: the entry and the allocation behind it.
const OVERHEAD: u64 = 96;

/// The queue.
#[derive(Debug)]
pub(crate) struct Tail {
    values: VecDeque<Value>,
    octets: u64,
    octets_max: u64,
    newest: u64,
    durable: u64,
}

/// What a reader finds here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Values without a gap, from the one that holds the next record.
    Values(Vec<Value>),
    /// The next record is missing; the next that is here has this sequence.
    Gap(u64),
    /// It is older than what is here: ask the disk. Here begins, if anything is here, at this sequence.
    Older(Option<u64>),
}

impl Tail {
    pub(crate) fn new(newest: u64, octets_max: u64) -> Self {
        Self {
            values: VecDeque::new(),
            octets: 0,
            octets_max,
            newest,
            durable: newest,
        }
    }

    /// Adds a value at the end. Tells which records fell out, though the disk does not have them.
    pub(crate) fn push(&mut self, value: Value) -> Option<(u64, u64)> {
        self.newest = value.last();
        self.octets += cost(&value);
        self.values.push_back(value);
        // What is durable is a convenience of readers: a quarter of the room.
        while self.octets > self.octets_max / 4 && self.pop_durable() {}
        let mut fallen = None;
        while self.octets > self.octets_max && self.values.len() > 1 {
            let Some(value) = self.pop() else { break };
            let first = fallen.map_or(value.first, |(first, _)| first);
            fallen = Some((first, value.last()));
        }
        fallen
    }

    /// The oldest values that are not durable, of `octets_max` octets at most, but at least one.
    pub(crate) fn unsynced(&self, octets_max: usize) -> Vec<Value> {
        let at = self.values.partition_point(|value| value.last() <= self.durable);
        let mut octets = 0;
        self.values
            .range(at..)
            .take_while(|value| {
                let fits = octets == 0 || octets + value.octets.len() <= octets_max;
                octets += value.octets.len();
                fits
            })
            .cloned()
            .collect()
    }

    /// Everything up to `sequence` is durable.
    pub(crate) fn advance(&mut self, sequence: u64) {
        self.durable = self.durable.max(sequence);
        while self.octets > self.octets_max / 4 && self.pop_durable() {}
    }

    /// What a reader that has everything up to `after` gets, no newer than `upto`.
    pub(crate) fn read(&self, after: u64, upto: u64, octets_max: usize) -> Found {
        let next = after.saturating_add(1);
        let at = self.values.partition_point(|value| value.last() < next);
        let Some(first) = self.values.get(at) else {
            return Found::Older(None);
        };
        if first.first > next {
            return if at == 0 {
                Found::Older(Some(first.first))
            } else {
                Found::Gap(first.first)
            };
        }
        let (mut octets, mut expected) = (0, first.first);
        let values = self
            .values
            .range(at..)
            .take_while(|value| {
                let fits = octets == 0 || octets + value.octets.len() <= octets_max;
                let follows = value.first == expected && value.last() <= upto;
                octets += value.octets.len();
                expected = value.last() + 1;
                fits && follows
            })
            .cloned()
            .collect();
        Found::Values(values)
    }

    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    pub(crate) fn octets(&self) -> u64 {
        self.octets
    }

    /// First sequence that is here.
    pub(crate) fn first(&self) -> Option<u64> {
        self.values.front().map(|value| value.first)
    }

    /// Whether what waits for the disk fills half of the room.
    pub(crate) fn is_pressing(&self) -> bool {
        self.octets > self.octets_max / 2
    }

    /// Whether records are about to fall out that the disk does not have.
    pub(crate) fn is_overflowing(&self) -> bool {
        self.octets > self.octets_max / 4 * 3
    }

    fn pop_durable(&mut self) -> bool {
        let durable = self
            .values
            .front()
            .is_some_and(|value| value.last() <= self.durable);
        durable && self.pop().is_some()
    }

    fn pop(&mut self) -> Option<Value> {
        let value = self.values.pop_front()?;
        self.octets -= cost(&value);
        Some(value)
    }
}

fn cost(value: &Value) -> u64 {
    value.octets.len() as u64 + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(first: u64, records: u32) -> Value {
        Value {
            first,
            records,
            octets: vec![7; 1_000].into(),
        }
    }

    #[test]
    fn readers_get_values_gaps_and_the_way_to_the_disk() {
        let mut tail = Tail::new(10, 1 << 20);
        for first in [11, 21, 41] {
            assert_eq!(tail.push(value(first, 10)), None);
        }
        let all = u64::MAX;
        assert_eq!(
            tail.read(10, all, 1 << 20),
            Found::Values(vec![value(11, 10), value(21, 10)])
        );
        assert_eq!(tail.read(15, all, 1), Found::Values(vec![value(11, 10)]));
        assert_eq!(tail.read(30, all, 1 << 20), Found::Gap(41));
        assert_eq!(tail.read(5, all, 1 << 20), Found::Older(Some(11)));
        assert_eq!(tail.read(50, all, 1 << 20), Found::Older(None));
        assert_eq!(tail.read(10, 20, 1 << 20), Found::Values(vec![value(11, 10)]));
    }

    #[test]
    fn what_is_durable_goes_first_and_what_is_not_is_told() {
        let mut tail = Tail::new(0, 4 * (1_000 + OVERHEAD));
        for n in 0..4 {
            assert_eq!(tail.push(value(n * 10 + 1, 10)), None);
        }
        tail.advance(20);
        assert_eq!(tail.first(), Some(21));
        assert_eq!(tail.unsynced(1_500), [value(21, 10)]);
        for n in 4..6 {
            assert_eq!(tail.push(value(n * 10 + 1, 10)), None);
        }
        assert_eq!(tail.push(value(61, 10)), Some((21, 30)));
        assert_eq!(tail.newest(), 70);
    }
}
