//! One segment: a small `sled::Db` in its own directory.
//!
//! sled 0.34.7 panics on damage, hangs after an error of the disk, and its `flush` does not sync. So every call goes
//! through [`guarded`], a Db that has failed is never called again, and `sync` does its own fdatasync.
//! Key: first sequence, big-endian. Value: see [`super`]. Only the disk thread is here.

use std::any::Any;
use std::cell::Cell;
use std::fs::{self, File, Permissions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use flowtilla_agent_core::spool::Value;
use tempfile::TempDir;

use super::files;

/// sled's own segments: what it writes and frees at once. Measured; see [`super`].
const SLED_SEGMENT: usize = 512 << 10;
/// sled's page cache. It evicts too late to matter for a Db this small.
const SLED_CACHE: u64 = 1 << 20;
/// Octets before a value's own: length, checksum, records.
const HEAD_LEN: usize = 12;
/// Failed Dbs that may hang in their last breath; further ones are leaked at once.
const DISCARDS_MAX: usize = 2;

/// Why a segment did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SegmentError {
    /// The disk does not let us; the segment may be whole.
    #[error("the disk refused")]
    Io(#[source] io::Error),
    /// What is there is not what was written.
    #[error("damaged: {0}")]
    Damaged(String),
}

/// What an error says about the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: the disk is full, read-only, or the segment is open elsewhere.
    Passing,
    /// Perhaps something: an input/output error may pass, or stay.
    Doubtful,
    /// It is not what was written.
    Damaged,
}

impl SegmentError {
    pub(crate) fn verdict(&self) -> Verdict {
        let Self::Io(error) = self else {
            return Verdict::Damaged;
        };
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ResourceBusy
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::OutOfMemory => Verdict::Passing,
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory => Verdict::Damaged,
            // sled's own text: it gives this case no kind.
            _ if error.to_string().contains("could not acquire lock") => Verdict::Passing,
            _ => Verdict::Doubtful,
        }
    }
}

impl From<sled::Error> for SegmentError {
    fn from(error: sled::Error) -> Self {
        match error {
            sled::Error::Io(error) => Self::Io(error),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl From<io::Error> for SegmentError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An open segment.
#[derive(Debug)]
pub(crate) struct Segment {
    // `None` only while it is taken apart.
    db: Option<sled::Db>,
    file: File,
    path: PathBuf,
    /// What goes with it, when it is a copy.
    directory: Option<TempDir>,
}

/// What one reading found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Values, ascending; between them may be gaps, where a damaged one was.
    pub(crate) values: Vec<Value>,
    /// What ended the reading before its limit.
    pub(crate) error: Option<SegmentError>,
}

/// An entry, whatever it is.
#[derive(Debug)]
pub(crate) enum Stored {
    /// A value as it was written.
    Whole(Value),
    /// Something else under this key; `None`: not even the key is a sequence.
    Damaged(Option<u64>),
}

impl Segment {
    /// Makes a segment in `path`, which must not exist, and syncs that it is there.
    pub(crate) fn create(path: &Path) -> Result<Self, SegmentError> {
        files::make_directory(path)?;
        let segment = Self::open(path)?;
        for name in ["conf", "db"] {
            let file = files::open_for_reading(&path.join(name))?;
            file.set_permissions(Permissions::from_mode(0o600))?;
            file.sync_all()?;
        }
        files::sync_directory(path)?;
        if let Some(parent) = path.parent() {
            files::sync_directory(parent)?;
        }
        Ok(segment)
    }

    /// Opens what was made before.
    ///
    /// sled refuses a segment whose `conf` or snapshot is damaged, though it can do without both: one more try is without.
    pub(crate) fn open(path: &Path) -> Result<Self, SegmentError> {
        match Self::open_as_it_is(path) {
            Err(error) if error.verdict() == Verdict::Damaged => {
                tracing::warn!(path = %path.display(), %error, "a segment is opened from its log alone");
                for path in files::entries(path)? {
                    let name = path.file_name().and_then(|name| name.to_str());
                    if name.is_some_and(|name| name == "conf" || name.starts_with("snap.")) {
                        fs::remove_file(path)?;
                    }
                }
                Self::open_as_it_is(path)
            }
            outcome => outcome,
        }
    }

    /// Opens what was made before, unless anything in it is damaged.
    pub(crate) fn open_as_it_is(path: &Path) -> Result<Self, SegmentError> {
        let db = guarded(|| {
            let config = sled::Config::new()
                .path(path)
                .segment_size(SLED_SEGMENT)
                .cache_capacity(SLED_CACHE)
                .mode(sled::Mode::LowSpace)
                .use_compression(false)
                .flush_every_ms(None);
            Ok(config.open()?)
        })?;
        match files::open_for_reading(&path.join("db")) {
            Ok(file) => Ok(Self {
                db: Some(db),
                file,
                path: path.to_owned(),
                directory: None,
            }),
            Err(error) => {
                discard(db);
                Err(error.into())
            }
        }
    }

    /// The directory goes when the segment does.
    pub(crate) fn within(mut self, directory: TempDir) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Writes a value. It is durable after the next [`Segment::sync`].
    ///
    /// After an error drop the segment: its Db is taken from it.
    pub(crate) fn append(&mut self, value: &Value) -> Result<(), SegmentError> {
        let stored = wrap(value);
        self.call(|db| Ok(db.insert(value.first.to_be_bytes(), stored).map(drop)?))
    }

    /// Makes durable what was written.
    pub(crate) fn sync(&mut self) -> Result<(), SegmentError> {
        self.call(|db| Ok(db.flush().map(drop)?))?;
        self.file.sync_data().map_err(|error| {
            self.abandon();
            error.into()
        })
    }

    /// Syncs and closes it for good. Tells how many files are in `blobs`: there must be none.
    pub(crate) fn seal(mut self) -> Result<usize, SegmentError> {
        self.sync()?;
        let path = std::mem::take(&mut self.path);
        drop(self);
        for path in files::entries(&path)? {
            File::open(path)?.sync_all()?;
        }
        let blobs = files::entries(&path.join("blobs"))?.len();
        files::sync_directory(&path)?;
        Ok(blobs)
    }

    /// Last sequence of the last value that is whole.
    pub(crate) fn last(&mut self) -> Result<Option<u64>, SegmentError> {
        self.call(|db| {
            for entry in db.iter().rev() {
                let (key, stored) = entry?;
                if let Some(value) = unwrap(&key, &stored) {
                    return Ok(Some(value.last()));
                }
            }
            Ok(None)
        })
    }

    /// Values that hold `from` or come after it, up to `last`, of about `octets_max` octets, but at least one.
    pub(crate) fn read(&mut self, from: u64, last: u64, octets_max: usize) -> Found {
        let mut values = Vec::new();
        let outcome = self.call(|db| {
            // The record may stand in the middle of a value.
            let start = match db.range(..=from.to_be_bytes()).next_back() {
                Some(entry) => entry?.0,
                None => from.to_be_bytes().as_slice().into(),
            };
            let mut octets = 0;
            for entry in db.range(start..) {
                let (key, stored) = entry?;
                let Some(value) = unwrap(&key, &stored) else {
                    continue;
                };
                if value.last() < from {
                    continue;
                }
                if value.last() > last || (octets > 0 && octets + value.octets.len() > octets_max) {
                    break;
                }
                octets += value.octets.len();
                values.push(value);
            }
            Ok(())
        });
        Found {
            values,
            error: outcome.err(),
        }
    }

    /// Entries after `after`, which becomes the key of the last of them: of about `octets_max` octets, but at least one.
    /// None: there are no more, or what the error says.
    pub(crate) fn scan(
        &mut self,
        after: &mut Vec<u8>,
        octets_max: usize,
    ) -> (Vec<Stored>, Option<SegmentError>) {
        let mut found = Vec::new();
        let outcome = self.call(|db| {
            let mut octets = 0;
            let start = (Bound::Excluded(after.clone()), Bound::Unbounded);
            for entry in db.range::<Vec<u8>, _>(start) {
                let (key, stored) = entry?;
                octets += stored.len();
                key.as_ref().clone_into(after);
                found.push(match unwrap(&key, &stored) {
                    Some(value) => Stored::Whole(value),
                    None => Stored::Damaged(key.as_ref().try_into().ok().map(u64::from_be_bytes)),
                });
                if octets >= octets_max {
                    break;
                }
            }
            Ok(())
        });
        (found, outcome.err())
    }

    /// Never calls this Db again.
    pub(crate) fn abandon(&mut self) {
        if let Some(db) = self.db.take() {
            discard(db);
        }
    }

    fn call<T>(
        &mut self,
        work: impl FnOnce(&sled::Db) -> Result<T, SegmentError>,
    ) -> Result<T, SegmentError> {
        let Some(db) = &self.db else {
            return Err(SegmentError::Damaged("failed before".into()));
        };
        let outcome = guarded(|| work(db));
        if outcome.is_err() {
            self.abandon();
        }
        outcome
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if let Some(db) = self.db.take()
            && let Err(error) = guarded(|| {
                drop(db);
                Ok(())
            })
        {
            tracing::warn!(path = %self.path.display(), %error, "a segment did not close");
        }
    }
}

/// Length and checksum round a value, so that one that is not what was written is noticed.
fn wrap(value: &Value) -> Vec<u8> {
    let mut stored = Vec::with_capacity(HEAD_LEN + value.octets.len());
    let length = u32::try_from(value.octets.len()).unwrap_or(u32::MAX);
    stored.extend_from_slice(&length.to_le_bytes());
    stored.extend_from_slice(&sum(value.first, value.records, &value.octets).to_le_bytes());
    stored.extend_from_slice(&value.records.to_le_bytes());
    stored.extend_from_slice(&value.octets);
    stored
}

fn unwrap(key: &[u8], stored: &[u8]) -> Option<Value> {
    let first = u64::from_be_bytes(key.try_into().ok()?);
    let (length, rest) = stored.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let (records, octets) = rest.split_first_chunk::<4>()?;
    let records = u32::from_le_bytes(*records);
    let whole = u32::from_le_bytes(*length) as usize == octets.len()
        && u32::from_le_bytes(*checksum) == sum(first, records, octets)
        && records > 0;
    whole.then(|| Value {
        first,
        records,
        octets: Bytes::copy_from_slice(octets),
    })
}

fn sum(first: u64, records: u32, octets: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&first.to_be_bytes());
    sum.update(&records.to_le_bytes());
    sum.update(octets);
    sum.finalize()
}

thread_local! {
    /// Whether a panic on this thread is caught and told as an error.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Turns a panic of sled into an error, and its noise into a debug line.
fn guarded<T>(work: impl FnOnce() -> Result<T, SegmentError>) -> Result<T, SegmentError> {
    quieten();
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    outcome.unwrap_or_else(|payload| Err(SegmentError::Damaged(told(payload.as_ref()))))
}

fn told(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("sled panicked: {}", text.unwrap_or("without a word"))
}

/// Keeps panics of sled, on a guarded thread or one of its own, from standard error.
fn quieten() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let outer = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let of_sled = GUARDED.get()
                || thread::current()
                    .name()
                    .is_some_and(|name| name.starts_with("sled-"));
            if of_sled {
                tracing::debug!(%panic, "sled panicked");
            } else {
                outer(panic);
            }
        }));
    });
}

/// Lets go of a Db that has failed. Closing it may hang: that is left to a thread of its own.
fn discard(db: sled::Db) {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    if ALIVE.fetch_add(1, Ordering::AcqRel) >= DISCARDS_MAX {
        ALIVE.fetch_sub(1, Ordering::AcqRel);
        std::mem::forget(db);
        return;
    }
    let spawned = thread::Builder::new()
        .name("spool-discard".into())
        .spawn(move || {
            let _ = guarded(|| {
                drop(db);
                Ok(())
            });
            ALIVE.fetch_sub(1, Ordering::AcqRel);
        });
    if spawned.is_err() {
        ALIVE.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Removes a segment: under another name first, so that half a segment is never taken for one.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let gone = path.with_extension("gone");
    match fs::rename(path, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed?,
    }
    match fs::remove_dir_all(&gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(first: u64, records: u32) -> Value {
        Value {
            first,
            records,
            octets: first.to_be_bytes().repeat(100).into(),
        }
    }

    #[test]
    fn every_flipped_bit_of_a_stored_value_is_noticed() {
        let value = value(77, 10);
        let (key, stored) = (value.first.to_be_bytes(), wrap(&value));
        assert_eq!(unwrap(&key, &stored), Some(value));
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unwrap(&key, &flipped), None, "bit {bit}");
        }
        for length in 0..stored.len() {
            assert_eq!(unwrap(&key, &stored[..length]), None, "length {length}");
        }
        assert_eq!(unwrap(&78_u64.to_be_bytes(), &stored), None);
    }

    #[test]
    fn a_damaged_value_is_skipped_and_its_neighbours_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("segment");
        let mut segment = Segment::create(&path).unwrap();
        for first in [1, 11, 21] {
            segment.append(&value(first, 10)).unwrap();
        }
        let mut stored = wrap(&value(11, 10));
        stored[40] ^= 1;
        segment
            .call(|db| Ok(db.insert(11_u64.to_be_bytes(), stored).map(drop)?))
            .unwrap();
        segment.sync().unwrap();
        let found = segment.read(5, u64::MAX, 1 << 20);
        assert_eq!(found.values, [value(1, 10), value(21, 10)]);
        assert!(found.error.is_none());
        assert_eq!(segment.seal().unwrap(), 0);
        let mut segment = Segment::open(&path).unwrap();
        assert_eq!(segment.last().unwrap(), Some(30));
        assert_eq!(segment.read(1, 29, 1).values, [value(1, 10)]);
    }
}
