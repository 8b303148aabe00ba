//! What is kept on disk until every collector has it: values of records under sequence numbers, and cursors.
//!
//! A sequence is the number of a record in one spool, from 1, never given twice. A value holds the records `first` to
//! [`Value::last`]. Between two values sequences may be missing: what was lost has a number too.
//! Does no IO: `flowtilla-agent` keeps the values.

pub mod value;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::loss::CollectorLaw;

/// Records in the form in which they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Sequence of its first record, from 1.
    pub first: u64,
    /// Records in it, > 0.
    pub records: u32,
    /// What is written.
    pub octets: Bytes,
}

impl Value {
    /// Sequence of its last record.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.first + u64::from(self.records) - 1
    }
}

/// Why records are not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LostCause {
    /// The bounds of the spool pushed them out.
    Evicted,
    /// They cannot be read back: torn, damaged, of another version, or never synced.
    Damaged,
    /// The disk did not take them, and memory could not hold them until it did.
    Unwritable,
}

/// What became of the records in a range of sequences, as one collector is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Passed {
    /// Sent in a message, and taken.
    pub taken: u64,
    /// [`LostCause::Evicted`].
    pub evicted: u64,
    /// [`LostCause::Damaged`].
    pub damaged: u64,
    /// [`LostCause::Unwritable`].
    pub unwritable: u64,
    /// Kept from this collector by the policy.
    pub withheld: u64,
    /// No message can carry them.
    pub too_large: u64,
    /// Told by the agent at the other end.
    pub by_peer: u64,
}

impl Passed {
    /// Adds what became of another range.
    pub fn add(&mut self, other: &Self) {
        self.taken += other.taken;
        self.evicted += other.evicted;
        self.damaged += other.damaged;
        self.unwritable += other.unwritable;
        self.withheld += other.withheld;
        self.too_large += other.too_large;
        self.by_peer += other.by_peer;
    }

    /// Takes what became of a part of the range out of it.
    ///
    /// What comes from a disk may hold anything: counters stop at 0.
    pub fn remove(&mut self, part: &Self) {
        self.taken = self.taken.saturating_sub(part.taken);
        self.evicted = self.evicted.saturating_sub(part.evicted);
        self.damaged = self.damaged.saturating_sub(part.damaged);
        self.unwritable = self.unwritable.saturating_sub(part.unwritable);
        self.withheld = self.withheld.saturating_sub(part.withheld);
        self.too_large = self.too_large.saturating_sub(part.too_large);
        self.by_peer = self.by_peer.saturating_sub(part.by_peer);
    }

    /// Records in the range.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.taken
            + self.evicted
            + self.damaged
            + self.unwritable
            + self.withheld
            + self.too_large
            + self.by_peer
    }
}

/// How far one collector has come, as it is kept beside the values.
///
/// `begin ≤ read ≤ taken`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cursor {
    /// Last sequence before the first record that it is to get.
    pub begin: u64,
    /// Last sequence that its application has handled, for all one can know. Values up to it may go.
    pub read: u64,
    /// Last sequence that its process has.
    pub taken: u64,
    /// Its law at that moment: what waits is made of `taken` and the newest sequence.
    pub law: CollectorLaw,
    /// What became of the records after `read` up to `taken`. It stands in `law` too, and comes out of it again when
    /// they are sent once more.
    #[serde(default)]
    pub at_risk: Passed,
    /// Of several collectors that take turns, the name of the one whose marks these are; `None`: there is one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

impl Cursor {
    /// The cursor of a collector that begins now, when `newest` is the last sequence given.
    #[must_use]
    pub fn beginning_at(newest: u64) -> Self {
        Self {
            begin: newest,
            read: newest,
            taken: newest,
            law: CollectorLaw::default(),
            at_risk: Passed::default(),
            member: None,
        }
    }
}
