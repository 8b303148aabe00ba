//! Where the controller keeps what it must not forget.
//!
//! Tables of keys and values, both octets. A [`Batch`] is on the disk whole, or not at all, when [`Store::commit`] returns:
//! whoever is told something is told it afterwards. Blocking: called from threads that may block, never from an async worker.
//! Keys are ordered as octets are; numbers in keys are big-endian.

pub mod counter;
pub mod sled;

/// Tables. A name is never used for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// What there is one of: format version, trust domain, epoch, counters.
    Meta,
    /// Roots and intermediates, their keys excepted.
    Roots,
    /// Join tokens by id.
    Tokens,
    /// Agents and operators that have an identity, by SPIFFE ID.
    Identities,
    /// Revisions of the objects by number, whole.
    Revisions,
    /// What agents are offered, by SHA-256.
    Contents,
    /// Rollouts by number.
    Rollouts,
    /// What each agent is, by agent id.
    Agents,
    /// What agents are to have and have, many in a row.
    Holdings,
    /// Source ids that were given, by number: each stays with its agent for ever.
    SourceIds,
    /// Source ids of 8 bits that are given or in quarantine, by collector and number.
    ShortSourceIds,
}

/// Changes that go together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch(pub(crate) Vec<(Table, Vec<u8>, Option<Vec<u8>>)>);

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be opened, read or written; the message says which and where.
    #[error("{0}")]
    Failed(String),
    /// There is too little room on its disk for a change; what is known is still told, and changes are taken when there is room.
    #[error("the store {path}: {free} octets are free on its disk, {needed} are needed; make room there")]
    Full {
        /// Where.
        path: String,
        /// Octets.
        free: u64,
        /// Octets.
        needed: u64,
    },
    /// It was written by a later version.
    #[error("the store has format {found}, this version knows {known}")]
    Newer {
        /// What it has.
        found: u32,
        /// What is known.
        known: u32,
    },
}

/// A key with its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Where the controller keeps what it must not forget.
pub trait Store: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// At most `limit` entries after `after`, in the order of their keys.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn scan(&self, table: Table, after: Option<&[u8]>, limit: usize) -> Result<Vec<Entry>, StoreError>;

    /// Writes a batch; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: whoever was to be told is told nothing. When the disk failed in the middle, the store answers
    /// nothing any more, and after a restart the batch is there whole or not at all.
    fn commit(&self, batch: Batch) -> Result<(), StoreError>;

    /// Whether there is room for a batch on its disk. Cheap: the file system is asked, nothing is read.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`]; another: it cannot be told.
    fn room(&self) -> Result<(), StoreError>;
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.push((table, key.into(), Some(value.into())));
    }

    /// Takes a key away.
    pub fn remove(&mut self, table: Table, key: impl Into<Vec<u8>>) {
        self.0.push((table, key.into(), None));
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
