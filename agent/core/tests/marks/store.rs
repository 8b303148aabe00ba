//! A spool by its contract: values under sequences, a durable mark, a memory for what the disk refuses, ranges lost.

use flowtilla_agent_core::spool::LostCause;

/// Records that memory holds while the disk refuses.
const TAIL_RECORDS_MAX: usize = 300;

/// What a record is to the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Wanted,
    ByPeer,
    TooLarge,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Never given twice, unlike a sequence that was lost with an agent.
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    /// Sequence of the first record of its value.
    first: u64,
    lost: Option<LostCause>,
}

/// What a read gives.
pub(crate) enum Read {
    Value { first: u64, records: Vec<(u32, Kind)> },
    Lost { upto: u64, cause: LostCause },
    Nothing,
}

#[derive(Default)]
pub(crate) struct Store {
    /// By sequence, from 1.
    slots: Vec<Slot>,
    pub(crate) durable: u64,
    pub(crate) memory_only: bool,
    next_number: u32,
}

impl Store {
    pub(crate) fn newest(&self) -> u64 {
        self.slots.len() as u64
    }

    pub(crate) fn readable(&self) -> u64 {
        if self.memory_only {
            self.newest()
        } else {
            self.durable
        }
    }

    pub(crate) fn append(&mut self, kinds: impl Iterator<Item = Kind>) {
        let first = self.newest() + 1;
        for kind in kinds {
            self.next_number += 1;
            let number = self.next_number;
            self.slots.push(Slot {
                number,
                kind,
                first,
                lost: None,
            });
        }
        let begin = place(self.durable + 1);
        if self.memory_only && self.slots.len() > begin + TAIL_RECORDS_MAX {
            let upto = self.slots[self.slots.len() - TAIL_RECORDS_MAX].first - 1;
            self.lose(self.durable + 1, upto, LostCause::Unwritable);
        }
    }

    pub(crate) fn sync(&mut self) {
        if !self.memory_only {
            self.durable = self.newest();
        }
    }

    /// The oldest values go, up to the one with this sequence.
    pub(crate) fn evict(&mut self, upto: u64) {
        if let Some(value) = self.value(upto.min(self.durable)) {
            self.lose(1, *value.end(), LostCause::Evicted);
        }
    }

    pub(crate) fn damage(&mut self, at: u64) {
        if let Some(value) = self.value(at.min(self.durable)) {
            self.lose(*value.start(), *value.end(), LostCause::Damaged);
        }
    }

    /// A new agent finds what is on disk; `taken` is in its cursor, so that sequences up to it are not given again.
    pub(crate) fn crash(&mut self, taken: u64) {
        let newest = self.durable.max(taken);
        self.slots.truncate(place(newest + 1));
        self.lose(self.durable + 1, newest, LostCause::Unwritable);
        self.durable = newest;
        self.memory_only = false;
    }

    pub(crate) fn read(&self, after: u64) -> Read {
        let Some(value) = self.value(after + 1).filter(|_| after < self.readable()) else {
            return Read::Nothing;
        };
        let slots = &self.slots[place(*value.start())..place(value.end() + 1)];
        let Some(cause) = self.slots[place(after + 1)].lost else {
            let records = slots.iter().map(|slot| (slot.number, slot.kind)).collect();
            return Read::Value {
                first: *value.start(),
                records,
            };
        };
        let behind = &self.slots[place(after + 1)..place(self.readable() + 1)];
        let upto = after + behind.iter().take_while(|slot| slot.lost == Some(cause)).count() as u64;
        Read::Lost { upto, cause }
    }

    pub(crate) fn slot(&self, sequence: u64) -> &Slot {
        &self.slots[place(sequence)]
    }

    fn value(&self, sequence: u64) -> Option<std::ops::RangeInclusive<u64>> {
        let first = self.slots.get(place(sequence.max(1)))?.first;
        let behind = self.slots[place(first)..].iter();
        Some(first..=first + behind.take_while(|slot| slot.first == first).count() as u64 - 1)
    }

    /// What is lost already keeps its cause.
    fn lose(&mut self, first: u64, upto: u64, cause: LostCause) {
        for slot in &mut self.slots[place(first)..place(upto + 1)] {
            slot.lost.get_or_insert(cause);
        }
    }
}

fn place(sequence: u64) -> usize {
    usize::try_from(sequence - 1).expect("a small number")
}
