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
/// Where the spans of time are that restores have lost. Apart from [`RESTORED`], which an earlier version reads to its last octet.
const LOST: &[u8] = b"restored/lost";

/// Spans that are kept; of more the oldest is forgotten.
///
/// Each is of use for as long as an SVID of it may come back, some days. Half of it suits whoever restores once a day; double it
/// for nothing.
pub const LOST_KEPT: usize = 8;

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

/// From a backup to its restore: what was given meanwhile is known to nobody here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Begin, milliseconds since the epoch, by the clock of the controller that made the backup.
    pub from_ms: i64,
    /// End, milliseconds since the epoch, by the clock of the host of the restore.
    pub to_ms: i64,
}

/// The spans that restores have lost, the oldest first.
///
/// # Errors
///
/// [`StoreError`].
pub fn lost(store: &dyn Store) -> Result<Vec<Lost>, StoreError> {
    let Some(value) = store.value(Table::Meta, LOST)? else {
        return Ok(Vec::new());
    };
    let (numbers, rest) = value.as_chunks::<8>();
    if !rest.is_empty() || !numbers.len().is_multiple_of(2) {
        let why = "the store's \"restored/lost\" is no list of pairs of times";
        return Err(StoreError::Failed(why.into()));
    }
    let spans = numbers.chunks_exact(2).map(|pair| Lost {
        from_ms: i64::from_be_bytes(pair[0]),
        to_ms: i64::from_be_bytes(pair[1]),
    });
    Ok(spans.collect())
}

/// Notes one more span after those that there are, of which the newest stay.
pub(crate) fn note_lost(batch: &mut Batch, before: &[Lost], span: Lost) {
    let kept = before.len().saturating_sub(LOST_KEPT - 1);
    let spans = before[kept..].iter().chain([&span]);
    let value: Vec<u8> = spans
        .flat_map(|span| [span.from_ms.to_be_bytes(), span.to_ms.to_be_bytes()].concat())
        .collect();
    batch.put(Table::Meta, LOST, value);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    #[test]
    fn the_newest_spans_that_restores_have_lost_are_kept_in_their_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = SledStore::open(directory.path()).expect("a store");
        assert_eq!(lost(&store).expect("none yet"), []);
        let span = |n: usize| {
            let to_ms = 10 * i64::try_from(n).expect("small");
            Lost {
                from_ms: to_ms - 5,
                to_ms,
            }
        };
        for n in 0..LOST_KEPT + 2 {
            let mut batch = Batch::default();
            note_lost(&mut batch, &lost(&store).expect("readable"), span(n));
            store.commit(batch).expect("kept");
            let kept = lost(&store).expect("readable");
            let first = (n + 1).saturating_sub(LOST_KEPT);
            assert_eq!(kept, (first..=n).map(span).collect::<Vec<_>>());
        }
        for octets in [1, 8, 15, 17, 24] {
            let mut batch = Batch::default();
            batch.put(Table::Meta, LOST, vec![0; octets]);
            store.commit(batch).expect("kept");
            lost(&store).expect_err("it is cut");
        }
    }
}
