//! Numbers that are given once: revisions, versions and the like.
//!
//! A counter holds the last number given. A restore from a backup makes every counter jump and raises the epoch
//! ([`crate::backup`]), so that what was given after the backup is not given again: whoever gives numbers takes them from here.

use super::{Batch, Store, StoreError, Table};

/// What is counted. A name is never used for something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Revisions of the objects.
    Revision,
    /// Versions of assignments, over all agents.
    Version,
    /// Rollouts.
    Rollout,
    /// Source ids that the controller chose itself.
    SourceId,
    /// Roots of the trust domain.
    Root,
}

/// Where the epoch is: an offer's first half, raised by a restore.
const EPOCH: &[u8] = b"epoch";
/// Where the restores are: how many, and when the last one was.
const RESTORED: &[u8] = b"restored";

impl Counter {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Revision,
        Self::Version,
        Self::Rollout,
        Self::SourceId,
        Self::Root,
    ];

    fn key(self) -> &'static [u8] {
        match self {
            Self::Revision => b"counter/revision",
            Self::Version => b"counter/version",
            Self::Rollout => b"counter/rollout",
            Self::SourceId => b"counter/source-id",
            Self::Root => b"counter/root",
        }
    }

    /// The last number given; 0: none.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn last(self, store: &dyn Store) -> Result<u64, StoreError> {
        number(store, self.key())
    }

    /// Notes the last number given.
    pub fn note(self, batch: &mut Batch, last: u64) {
        batch.put(Table::Meta, self.key(), last.to_be_bytes());
    }
}

/// The epoch; at least 1.
///
/// # Errors
///
/// [`StoreError`].
pub fn epoch(store: &dyn Store) -> Result<u64, StoreError> {
    Ok(number(store, EPOCH)?.max(1))
}

/// Notes the epoch.
pub(crate) fn note_epoch(batch: &mut Batch, epoch: u64) {
    batch.put(Table::Meta, EPOCH, epoch.to_be_bytes());
}

/// Restores from backups, over the store's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// How many; at least 1.
    pub times: u64,
    /// When the last one was, milliseconds since the epoch.
    pub at_ms: i64,
}

/// The restores; `None`: there was none.
///
/// # Errors
///
/// [`StoreError`].
pub fn restored(store: &dyn Store) -> Result<Option<Restored>, StoreError> {
    let Some(value) = store.value(Table::Meta, RESTORED)? else {
        return Ok(None);
    };
    let parts = value.split_first_chunk::<8>().and_then(|(times, at)| {
        Some(Restored {
            times: u64::from_be_bytes(*times),
            at_ms: i64::from_be_bytes(at.try_into().ok()?),
        })
    });
    let damaged = || StoreError::Failed("the store's \"restored\" is not a number and a time".into());
    parts.map(Some).ok_or_else(damaged)
}

/// Notes a restore.
pub(crate) fn note_restored(batch: &mut Batch, restored: Restored) {
    let value = [restored.times.to_be_bytes(), restored.at_ms.to_be_bytes()].concat();
    batch.put(Table::Meta, RESTORED, value);
}

fn number(store: &dyn Store, key: &[u8]) -> Result<u64, StoreError> {
    let Some(value) = store.value(Table::Meta, key)? else {
        return Ok(0);
    };
    value.try_into().map(u64::from_be_bytes).map_err(|_| {
        StoreError::Failed(format!(
            "the store's {:?} is no number of 8 octets",
            String::from_utf8_lossy(key)
        ))
    })
}
