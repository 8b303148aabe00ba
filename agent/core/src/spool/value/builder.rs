//! Makes values: takes records until a value is full, then seals it.
//!
//! Compression is run once a value, when it is sealed: until then its outcome is foreseen from the values before. Where
//! that was wrong, the records of the value are read back and those that do not fit go into the next one.
//! Invariant: every record that was added can be sealed: alone and uncompressed it fits a value, or it was compressed when
//! it was added, and is alone.

use std::collections::VecDeque;

use bytes::Bytes;
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::dictionary::Dictionary;
use super::row::{Before, ROW_OCTETS_MAX, put_row};
use super::{
    BODY_OCTETS_MAX, CHECKSUM, Codec, HEADER_OCTETS, Header, RECORDS_MAX, VALUE_OCTETS_MAX, VERSION,
    checksum, read_body,
};
use crate::flow::record::{BootId, FlowRecord};
use crate::spool::Value;
use crate::time::WallTime;

/// Most octets of a body as it is kept.
const KEPT_OCTETS_MAX: usize = VALUE_OCTETS_MAX - HEADER_OCTETS;

/// Part of what would have fitted that is left free: a 64th. Half of it misses with every change of what is said; the
/// double leaves a 32nd of the disk empty.
const FREE: usize = 64;

/// Part of the way to what would have fitted that is gone after each value that left more free: a 16th.
const STEPS: usize = 16;

/// What became of a record that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pushed {
    /// It is in the value.
    Added,
    /// It is not: seal first, then push it again.
    Full,
    /// It is not, and never will be: alone it is longer than a value.
    TooLarge,
}

/// Takes records, gives values. Keeps its memory from value to value.
pub struct Builder {
    dictionary: Dictionary,
    rows: Vec<u8>,
    before: Before,
    records: u32,
    /// Of the first record, when there is one.
    boot: BootId,
    start: WallTime,
    end: WallTime,
    /// Nothing more is taken before the next seal.
    closed: bool,
    /// Octets of body that are taken into one value, as far as can be foreseen.
    body_octets: usize,
    /// Records that did not fit the last value, in order.
    left: VecDeque<FlowRecord>,
    body: Vec<u8>,
    packed: Vec<u8>,
    table: CompressTable,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            dictionary: Dictionary::default(),
            rows: Vec::new(),
            before: Before::default(),
            records: 0,
            boot: BootId([0; 16]),
            start: WallTime(u64::MAX),
            end: WallTime(0),
            closed: false,
            body_octets: KEPT_OCTETS_MAX,
            left: VecDeque::new(),
            body: Vec::new(),
            packed: Vec::new(),
            table: CompressTable::small(),
        }
    }
}

impl Builder {
    /// Records that wait to be sealed.
    #[must_use]
    pub fn records(&self) -> usize {
        self.records as usize + self.left.len()
    }

    /// Whether there is nothing to seal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records() == 0
    }

    /// Adds a record after those that are there.
    pub fn push(&mut self, record: &FlowRecord) -> Pushed {
        if self.closed {
            return Pushed::Full;
        }
        let (names, owners) = (self.dictionary.names_count(), self.dictionary.owners_count());
        let (rows, before) = (self.rows.len(), self.before);
        let ends = (
            self.dictionary.owner(&record.initiator.owner),
            self.dictionary.owner(&record.responder.owner),
        );
        put_row(&mut self.rows, record, ends, &mut self.before);
        let alone = ROW_OCTETS_MAX + self.dictionary.octets_of(ends.0) + self.dictionary.octets_of(ends.1);
        let fits = if self.records == 0 {
            self.closed = alone > KEPT_OCTETS_MAX;
            !self.closed || self.is_kept_in(KEPT_OCTETS_MAX)
        } else {
            record.id.boot == self.boot
                && alone <= KEPT_OCTETS_MAX
                && self.octets() <= self.body_octets
                && (self.records as usize) < RECORDS_MAX
        };
        if !fits && self.records == 0 {
            self.clear();
            return Pushed::TooLarge;
        }
        if !fits {
            self.dictionary.truncate(names, owners);
            self.rows.truncate(rows);
            self.before = before;
            self.closed = true;
            return Pushed::Full;
        }
        self.boot = record.id.boot;
        self.start = self.start.min(record.start);
        self.end = self.end.max(record.end);
        self.records += 1;
        Pushed::Added
    }

    /// Makes a value of the oldest records, the first of which gets the sequence `first`, from 1; `None` when there are
    /// none. As a rule it takes all of them; as long as some are left, seal again, with the sequence after
    /// [`Value::last`].
    pub fn seal(&mut self, first: u64) -> Option<Value> {
        if self.records == 0 {
            return None;
        }
        let mut packed = self.pack();
        let octets = self.body.len();
        let kept = packed.min(octets);
        // Small values say nothing of full ones. Kept is never nothing: a row has octets.
        let fitting = (KEPT_OCTETS_MAX * octets / kept).min(BODY_OCTETS_MAX);
        let wanted = (fitting - fitting / FREE).max(KEPT_OCTETS_MAX);
        if kept > KEPT_OCTETS_MAX {
            self.body_octets = wanted;
            self.split();
            packed = self.pack();
        } else if octets > self.body_octets / 2 {
            self.body_octets += wanted.saturating_sub(self.body_octets) / STEPS;
        }
        let value = self.value(first, packed);
        self.clear();
        self.refill();
        Some(value)
    }

    /// Leaves as many of the records as fit a value uncompressed.
    fn split(&mut self) {
        let header = self.header(0, Codec::Stored);
        let records = read_body(&header, &self.body).expect("it was written here");
        let body_octets = std::mem::replace(&mut self.body_octets, KEPT_OCTETS_MAX);
        self.clear();
        self.left.extend(records);
        self.refill();
        self.body_octets = body_octets;
    }

    /// Takes of what is left as much as a value takes.
    fn refill(&mut self) {
        while let Some(record) = self.left.pop_front() {
            if self.push(&record) != Pushed::Added {
                self.left.push_front(record);
                break;
            }
        }
        self.closed |= !self.left.is_empty();
    }

    /// Octets of the body.
    fn octets(&self) -> usize {
        self.dictionary.octets() + self.rows.len()
    }

    fn is_kept_in(&mut self, octets: usize) -> bool {
        self.octets() <= BODY_OCTETS_MAX && self.pack().min(self.octets()) <= octets
    }

    /// Fills `body` and `packed`; the octets in the latter.
    fn pack(&mut self) -> usize {
        self.body.clear();
        self.body.extend_from_slice(&self.dictionary.names);
        self.body.extend_from_slice(&self.dictionary.owners);
        self.body.extend_from_slice(&self.rows);
        let room = get_maximum_output_size(self.body.len());
        if self.packed.len() < room {
            self.packed.resize(room, 0);
        }
        let packed = compress_into_with_table(&self.body, &mut self.packed, &mut self.table);
        packed.expect("there is room for the worst case")
    }

    fn value(&self, first: u64, packed: usize) -> Value {
        let (codec, kept) = if packed < self.body.len() {
            (Codec::Lz4, &self.packed[..packed])
        } else {
            (Codec::Stored, &self.body[..])
        };
        let mut octets = Vec::with_capacity(HEADER_OCTETS + kept.len());
        octets.extend_from_slice(&self.header(first, codec).octets());
        octets.extend_from_slice(kept);
        let checksum = checksum(&octets);
        octets[CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
        Value {
            first,
            records: self.records,
            octets: Bytes::from(octets),
        }
    }

    /// Of what was packed.
    fn header(&self, first: u64, codec: Codec) -> Header {
        let count = |n| u16::try_from(n).expect("a body of 64 KiB has less than 64 Ki of everything");
        Header {
            version: VERSION,
            codec,
            first,
            records: self.records,
            boot: self.boot,
            start: self.start,
            end: self.end,
            names: count(self.dictionary.names_count()),
            owners: count(self.dictionary.owners_count()),
            body_octets: count(self.body.len()),
        }
    }

    fn clear(&mut self) {
        self.dictionary.clear();
        self.rows.clear();
        self.before = Before::default();
        self.records = 0;
        self.start = WallTime(u64::MAX);
        self.end = WallTime(0);
        self.closed = false;
    }
}
