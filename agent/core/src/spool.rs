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

/// How far one collector has come, as it is kept beside the values.
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
}
