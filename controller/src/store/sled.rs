//! The store on one small sled database.
//!
//! One tree. Key: a number for the table, then the key. Value: `0` and the octets; or, when they are more than
//! [`PART_OCTETS`], `1`, how many parts (u32), how many octets in all (u32), and the parts under keys of their own: pages must
//! stay so small that sled never uses its blob files, which it does not sync. Numbers are big-endian.
//!
//! A commit is one sled batch, which sled recovers whole or not at all, then sled's flush, then an fdatasync of our own,
//! because sled's flush does not sync. sled 0.34.7 panics on damage and hangs after an error of the disk: so its panics are
//! caught, a database that has failed is never called again, and no commit begins on a disk that is nearly full. Whoever runs
//! on this store asks [`SledStore::failed`] whether it is of any use still, and [`SledStore::at_work`] whether it hangs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use super::{Batch, Entry, Store, StoreError, Table};
use crate::clock;

/// Format of what is on the disk: raised when an earlier version could not read it.
pub const FORMAT: u32 = 1;
/// Most octets of a key.
pub const KEY_OCTETS_MAX: usize = 512;
/// Most octets of a value: a revision of some thousand objects.
pub const VALUE_OCTETS_MAX: usize = 16 << 20;
/// Most octets of a batch, keys included. sled holds all of it in memory until it is on the disk.
pub const BATCH_OCTETS_MAX: usize = 64 << 20;
/// Least that must be free on the disk for a commit to begin: sled hangs for ever on a full one.
pub const FREE_OCTETS_MIN: u64 = 64 << 20;
/// What is to be free for [`Store::room`]: more, so that who looks is told before a batch is refused.
const ROOM_OCTETS_MIN: u64 = 2 * FREE_OCTETS_MIN;

/// Most octets in one value of sled. Eight times as much still stays off its blob files. Source: deps.md 3.4.
const PART_OCTETS: usize = 7 << 10;
/// sled's own segments; its memory is some hundred times as much.
const SLED_SEGMENT: usize = 512 << 10;
/// sled's page cache.
const SLED_CACHE: u64 = 8 << 20;
/// Octets that are read at once before a store is opened.
const READ_OCTETS: usize = 1 << 20;
const FORMAT_KEY: &[u8] = b"format";
const WHOLE: u8 = 0;
const IN_PARTS: u8 = 1;
const PARTS_TABLE: u8 = 255;

/// A store in a directory of its own.
#[derive(Debug)]
pub struct SledStore {
    path: PathBuf,
    inner: Mutex<Inner>,
    counts: Counts,
    health: Arc<Health>,
}

/// How a database does, for those who must not wait for it.
#[derive(Debug, Default)]
struct Health {
    /// Why it is never called again.
    failed: Mutex<Option<String>>,
    /// When the call began that is under way.
    began: Mutex<Option<Instant>>,
}

/// What became of commits, since the start.
#[derive(Debug)]
pub struct Counts {
    /// How long each took until it was on the disk, in seconds.
    pub committed: Histogram,
    /// How many failed.
    pub failed: Counter,
}

/// Bounds of the buckets for the time of a commit, in seconds: a fast disk, a slow one, one that is in trouble.
const COMMITTED_S: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];

impl Default for Counts {
    fn default() -> Self {
        Self {
            committed: Histogram::new(COMMITTED_S),
            failed: Counter::default(),
        }
    }
}

#[derive(Debug)]
struct Inner {
    /// `None` after a failure.
    db: Option<sled::Db>,
    /// The same file that sled writes, for the fdatasync.
    file: File,
    health: Arc<Health>,
}

impl Health {
    /// A call begins, and ends when this goes.
    fn at_work(&self) -> AtWork<'_> {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::instant());
        AtWork(self)
    }
}

struct AtWork<'a>(&'a Health);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        *self.0.began.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl SledStore {
    /// Opens a store, or makes one where there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: also when another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fresh = !path.join("db").exists();
        read_through(path)?;
        let mut opened = open_db(path);
        for _ in 0..LOCK_PAUSES_MAX {
            if !opened.as_ref().is_err_and(is_locked) {
                break;
            }
            // The one before lets go when its last thread has ended.
            std::thread::sleep(LOCK_PAUSE);
            opened = open_db(path);
        }
        let db = match opened {
            Err(error) if !fresh && !is_locked(&error) => {
                tracing::warn!(%error, "the store did not open; its parts that can be made anew are");
                // Both can be half-written after a power failure, and sled makes them anew from its log.
                remove_what_sled_can_make_anew(path).map_err(|error| failed(path, &error))?;
                open_db(path)?
            }
            outcome => outcome?,
        };
        let file = File::open(path.join("db")).map_err(|error| failed(path, &error))?;
        let health = Arc::<Health>::default();
        let store = Self {
            path: path.to_owned(),
            inner: Mutex::new(Inner {
                db: Some(db),
                file,
                health: Arc::clone(&health),
            }),
            counts: Counts::default(),
            health,
        };
        match store.value(Table::Meta, FORMAT_KEY)? {
            None => {
                let mut batch = Batch::default();
                batch.put(Table::Meta, FORMAT_KEY, FORMAT.to_be_bytes());
                store.commit(batch)?;
                store.sync_files().map_err(|error| failed(path, &error))?;
            }
            Some(found) => {
                let found: [u8; 4] = found
                    .try_into()
                    .map_err(|_| failed(path, &"its format is no number"))?;
                let found = u32::from_be_bytes(found);
                if found > FORMAT {
                    return Err(StoreError::Newer { found, known: FORMAT });
                }
            }
        }
        Ok(store)
    }

    /// What became of commits.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Why it is of no use any more; `None`: it works. Does not wait for the disk.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        let failed = self.health.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone()
    }

    /// How long the call takes that is under way; `None`: none is. Does not wait for the disk.
    #[must_use]
    pub fn at_work(&self) -> Option<Duration> {
        let began = self.health.began.lock().unwrap_or_else(PoisonError::into_inner);
        began.map(|began| began.elapsed())
    }

    /// Gives every entry to `take`, as they stand at one moment: no commit comes between.
    ///
    /// # Errors
    ///
    /// [`StoreError`], and those of `take`.
    pub fn snapshot<E: From<StoreError>>(
        &self,
        mut take: impl FnMut(Table, Vec<u8>, Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut inner = self.lock();
        for table in Table::ALL {
            let mut after: Option<Vec<u8>> = None;
            loop {
                let page = inner.scan(&self.path, table, after.as_deref(), SNAPSHOT_PAGE)?;
                let Some((last, _)) = page.last() else { break };
                after = Some(last.clone());
                for (key, value) in page {
                    take(table, key, value)?;
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whatever a panic left behind: `db` is `None` then.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync_files(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(&self.path)?.sync_all()?;
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
            _ => File::open(".")?.sync_all(),
        }
    }
}

/// How long to wait for the lock of a store that is being closed: five seconds, then somebody else has it.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// See [`LOCK_PAUSE`].
const LOCK_PAUSES_MAX: u32 = 100;

/// Whether somebody has the database open. What they have open must not be touched. Source: sled 0.34.7 `config.rs`.
fn is_locked(error: &StoreError) -> bool {
    matches!(error, StoreError::Failed(why) if why.contains("could not acquire lock"))
}

/// Entries that a snapshot holds at once.
const SNAPSHOT_PAGE: usize = 256;

impl Store for SledStore {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.lock().call(&self.path, |db, path| {
            let stored = db
                .get(stored_key(table, key))
                .map_err(|error| failed(path, &error))?;
            stored
                .map(|stored| whole(db, path, table, key, &stored))
                .transpose()
        })
    }

    fn scan(&self, table: Table, after: Option<&[u8]>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        self.lock().scan(&self.path, table, after, limit)
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let began = clock::instant();
        let outcome = self.write(batch);
        match &outcome {
            Ok(()) => self.counts.committed.observe(began.elapsed().as_secs_f64()),
            Err(_) => {
                self.counts.failed.inc();
            }
        }
        outcome
    }

    fn room(&self) -> Result<(), StoreError> {
        room(&self.path, ROOM_OCTETS_MIN)
    }
}

impl SledStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let changes = checked(&self.path, batch)?;
        let mut inner = self.lock();
        let _at_work = self.health.at_work();
        room(&self.path, FREE_OCTETS_MIN)?;
        let synced = inner.call_within(&self.path, |db, path| {
            let batch = sled_batch(db, path, &changes)?;
            db.apply_batch(batch).map_err(|error| failed(path, &error))?;
            db.flush().map(drop).map_err(|error| failed(path, &error))
        });
        synced?;
        inner.file.sync_data().map_err(|error| {
            let error = failed(&self.path, &error);
            inner.abandon(&error);
            error
        })
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        let db = self.lock().db.take();
        // sled writes what it has in memory when its last handle goes, and may panic.
        if catch_unwind(AssertUnwindSafe(|| drop(db))).is_err() {
            tracing::warn!(path = %self.path.display(), "the store did not close");
        }
    }
}

impl Inner {
    fn call<T>(
        &mut self,
        path: &Path,
        work: impl FnOnce(&sled::Db, &Path) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let health = Arc::clone(&self.health);
        let _at_work = health.at_work();
        self.call_within(path, work)
    }

    /// The same, as a part of a call that is under way.
    fn call_within<T>(
        &mut self,
        path: &Path,
        work: impl FnOnce(&sled::Db, &Path) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Some(db) = &self.db else {
            let why = "it has failed before; see what the disk says, then start the controller again";
            return Err(failed(path, &why));
        };
        let outcome = guarded(path, || work(db, path));
        if let Err(error) = &outcome {
            self.abandon(error);
        }
        outcome
    }

    fn scan(
        &mut self,
        path: &Path,
        table: Table,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let from = match after {
            None => Bound::Included(vec![table.number()]),
            Some(key) => Bound::Excluded(stored_key(table, key)),
        };
        let to = Bound::Excluded(vec![table.number() + 1]);
        self.call(path, |db, path| {
            db.range((from, to))
                .take(limit)
                .map(|entry| {
                    let (stored_key, stored) = entry.map_err(|error| failed(path, &error))?;
                    let key = stored_key[1..].to_vec();
                    let value = whole(db, path, table, &key, &stored)?;
                    Ok((key, value))
                })
                .collect()
        })
    }

    /// Never calls this database again. It is leaked: closing it may hang.
    fn abandon(&mut self, why: &StoreError) {
        if let Some(db) = self.db.take() {
            tracing::error!(%why, "the store has failed: the controller must be started again");
            let mut failed = self.health.failed.lock().unwrap_or_else(PoisonError::into_inner);
            *failed = Some(why.to_string());
            std::mem::forget(db);
        }
    }
}

impl Table {
    /// All of them, in the order of their numbers.
    pub(crate) const ALL: [Self; 11] = [
        Self::Meta,
        Self::Roots,
        Self::Tokens,
        Self::Identities,
        Self::Revisions,
        Self::Rollouts,
        Self::Agents,
        Self::SourceIds,
        Self::Contents,
        Self::Holdings,
        Self::ShortSourceIds,
    ];

    /// Its number on the disk: never given to another table.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Meta => 1,
            Self::Roots => 2,
            Self::Tokens => 3,
            Self::Identities => 4,
            Self::Revisions => 5,
            Self::Rollouts => 6,
            Self::Agents => 7,
            Self::SourceIds => 8,
            Self::Contents => 9,
            Self::Holdings => 10,
            Self::ShortSourceIds => 11,
        }
    }

    /// The table of this number.
    pub(crate) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.number() == number)
    }
}

fn open_db(path: &Path) -> Result<sled::Db, StoreError> {
    guarded(path, || {
        sled::Config::new()
            .path(path)
            .segment_size(SLED_SEGMENT)
            .cache_capacity(SLED_CACHE)
            .mode(sled::Mode::LowSpace)
            .use_compression(false)
            .flush_every_ms(None)
            .open()
            .map_err(|error| failed(path, &error))
    })
}

/// Reads every file of a store, if there is one. sled takes what it cannot read for the torn end of its log and begins anew
/// there: a disk that fails to read at one start would cost everything behind it.
fn read_through(path: &Path) -> Result<(), StoreError> {
    let unread = |file: &Path, error: io::Error| {
        let why = format!("{} cannot be read: {error}; nothing was touched", file.display());
        failed(path, &why)
    };
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| unread(path, error))?,
    };
    let mut buffer = vec![0; READ_OCTETS];
    for entry in entries {
        let file = entry.map_err(|error| unread(path, error))?.path();
        if file.is_dir() {
            continue; // sled's blobs, of which there are none.
        }
        let mut open = File::open(&file).map_err(|error| unread(&file, error))?;
        while open.read(&mut buffer).map_err(|error| unread(&file, error))? > 0 {}
    }
    Ok(())
}

fn remove_what_sled_can_make_anew(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        if name
            .to_str()
            .is_some_and(|name| name == "conf" || name.starts_with("snap."))
        {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A batch within its bounds, each key once: the last change of a key counts.
type Changes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

fn checked(path: &Path, batch: Batch) -> Result<Changes, StoreError> {
    let mut octets = 0usize;
    let mut changes = BTreeMap::new();
    for (table, key, value) in batch.0 {
        let length = value.as_ref().map_or(0, Vec::len);
        octets = octets.saturating_add(key.len()).saturating_add(length);
        if key.len() > KEY_OCTETS_MAX || length > VALUE_OCTETS_MAX || octets > BATCH_OCTETS_MAX {
            let why = format!(
                "a key may have {KEY_OCTETS_MAX} octets, a value {VALUE_OCTETS_MAX}, a batch \
                 {BATCH_OCTETS_MAX}; in {table:?} there are {}, {length} and {octets}",
                key.len()
            );
            return Err(failed(path, &why));
        }
        changes.insert((table, key), value);
    }
    Ok(changes)
}

fn room(path: &Path, needed: u64) -> Result<(), StoreError> {
    let disk = rustix::fs::statvfs(path).map_err(|error| failed(path, &error))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed {
        return Err(StoreError::Full {
            path: path.display().to_string(),
            free,
            needed,
        });
    }
    Ok(())
}

fn sled_batch(db: &sled::Db, path: &Path, changes: &Changes) -> Result<sled::Batch, StoreError> {
    let mut batch = sled::Batch::default();
    for ((table, key), value) in changes {
        let before = db
            .get(stored_key(*table, key))
            .map_err(|error| failed(path, &error))?;
        let parts_before = before
            .as_deref()
            .map_or(0, |stored| parts_of(stored).map_or(0, |it| it.0));
        let mut parts = 0u32;
        match value {
            None => batch.remove(stored_key(*table, key)),
            Some(value) if value.len() <= PART_OCTETS => {
                let mut stored = Vec::with_capacity(value.len() + 1);
                stored.push(WHOLE);
                stored.extend_from_slice(value);
                batch.insert(stored_key(*table, key), stored);
            }
            Some(value) => {
                for part in value.chunks(PART_OCTETS) {
                    batch.insert(part_key(*table, key, parts), part);
                    parts += 1;
                }
                let length = u32::try_from(value.len()).expect("bounded by VALUE_OCTETS_MAX");
                let mut stored = vec![IN_PARTS];
                stored.extend_from_slice(&parts.to_be_bytes());
                stored.extend_from_slice(&length.to_be_bytes());
                batch.insert(stored_key(*table, key), stored);
            }
        }
        for stale in parts..parts_before {
            batch.remove(part_key(*table, key, stale));
        }
    }
    Ok(batch)
}

/// How many parts a value has, and how many octets in all; `None`: it is whole.
fn parts_of(stored: &[u8]) -> Option<(u32, usize)> {
    let rest = stored.strip_prefix(&[IN_PARTS])?;
    let (parts, rest) = rest.split_first_chunk::<4>()?;
    let (length, _) = rest.split_first_chunk::<4>()?;
    Some((
        u32::from_be_bytes(*parts),
        usize::try_from(u32::from_be_bytes(*length)).ok()?,
    ))
}

fn whole(db: &sled::Db, path: &Path, table: Table, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, StoreError> {
    if let Some(value) = stored.strip_prefix(&[WHOLE]) {
        return Ok(value.to_vec());
    }
    let damaged = || failed(path, &format!("a value in {table:?} is not what was written"));
    let (parts, length) = parts_of(stored).ok_or_else(damaged)?;
    if length > VALUE_OCTETS_MAX
        || length.div_ceil(PART_OCTETS) != usize::try_from(parts).unwrap_or(usize::MAX)
    {
        return Err(damaged());
    }
    let mut value = Vec::with_capacity(length);
    for part in 0..parts {
        let octets = db
            .get(part_key(table, key, part))
            .map_err(|error| failed(path, &error))?;
        value.extend_from_slice(&octets.ok_or_else(damaged)?);
    }
    match value.len() == length {
        true => Ok(value),
        false => Err(damaged()),
    }
}

fn stored_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(table.number());
    stored.extend_from_slice(key);
    stored
}

fn part_key(table: Table, key: &[u8], part: u32) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 8);
    stored.extend_from_slice(&[PARTS_TABLE, table.number()]);
    let length = u16::try_from(key.len()).expect("bounded by KEY_OCTETS_MAX");
    stored.extend_from_slice(&length.to_be_bytes());
    stored.extend_from_slice(key);
    stored.extend_from_slice(&part.to_be_bytes());
    stored
}

fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(failed(path, &"sled panicked: what is on the disk is damaged")))
}

fn failed(path: &Path, why: &dyn std::fmt::Display) -> StoreError {
    StoreError::Failed(format!("the store {}: {why}", path.display()))
}

#[cfg(test)]
mod tests;
