//! A backup: all that a controller must not forget, keys included, in one file; and how it is put back.
//!
//! Octets, numbers big-endian: `FLOWTBK1`, then parts: kind (u8), length (u32), content.
//!
//! | kind | content |
//! |---|---|
//! | 1 head | when it was made, milliseconds since the epoch (i64) |
//! | 2 entry | table (u8), length of the key (u16), key, value |
//! | 3 key | number of the root (u64), its file |
//! | 0 end | SHA-256 of everything before this part |
//!
//! The entries are those of one moment. Whoever has the file is the authority: it is written with mode 0600 and to be kept so.
//!
//! What was given after the backup is not known when it is put back. So the epoch rises (to the time of the restore at
//! least, so that two restores of one backup have two epochs), and every counter jumps by 2^20 and one for each second since
//! the backup. Of source ids of 8 bits there are too few to jump: the restore is noted, and they are given from the other end from then
//! on. Revocations after the backup are forgotten: the operator must repeat them. Join tokens that nobody had used by then
//! may have been used since: all of them are void. SVIDs that were given after the backup are in no row: the span from the backup
//! to the restore is noted, and [`crate::enrolment`] says what it makes of them.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sha2::{Digest, Sha256};

use crate::clock::WallMs;
use crate::identity::ca::key_file;
use crate::identity::rows::{self, TokenRow};
use crate::state::{self, StateDir, StateError};
use crate::store::counter::{self, Counter, Lost, Restored};
use crate::store::sled::{KEY_OCTETS_MAX, SledStore, VALUE_OCTETS_MAX};
use crate::store::{Batch, Store, StoreError, Table};

/// How far counters jump at a restore, and one more for each second since the backup.
///
/// More than a controller gives between two backups. Half of it still is; double it, and numbers that people read grow long.
pub const JUMP: u64 = 1 << 20;

/// How long before the backup an SVID may have been begun that is not in it.
///
/// It is dated when it is asked for: five seconds at most before its turn, and a minute before its row is on the disk, or the
/// controller ends ([`crate::run::STORE_WAIT_MAX`]). Half of it forgets some that were given on a slow disk; double it, and more
/// of those count that the backup knows to have been replaced.
const UNDER_WAY_MAX: Duration = Duration::from_secs(65);

const MAGIC: &[u8; 8] = b"FLOWTBK1";
const END: u8 = 0;
const HEAD: u8 = 1;
const ENTRY: u8 = 2;
const KEY: u8 = 3;
const PART_OCTETS_MAX: usize = VALUE_OCTETS_MAX + KEY_OCTETS_MAX + 16;
/// Octets of entries that are put back at once.
const BATCH_OCTETS: usize = 4 << 20;

/// Why there is no backup, or why it is not put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system refused.
    #[error("{doing} the backup")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{path} is no whole backup: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
    /// A root changed in the middle.
    #[error("a root of the trust domain changed during the backup: try again")]
    Changed,
    /// See there.
    #[error(transparent)]
    State(#[from] StateError),
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Writes a backup. Commits wait while the entries are read. Blocking.
///
/// # Errors
///
/// [`BackupError`]; what was written then is no whole backup, and says so when it is read.
pub fn write(store: &SledStore, ca: &Path, out: &mut impl Write, now: WallMs) -> Result<(), BackupError> {
    let mut out = Sealed {
        out,
        sum: Sha256::new(),
    };
    out.raw(MAGIC)?;
    out.part(HEAD, &[&now.0.to_be_bytes()])?;
    let mut roots = Vec::new();
    store.snapshot(|table, key, value| {
        if table == Table::Roots {
            let number: [u8; 8] = key[..].try_into().map_err(|_| BackupError::Changed)?;
            roots.push(u64::from_be_bytes(number));
        }
        let length = u16::try_from(key.len()).expect("bounded by KEY_OCTETS_MAX");
        out.part(ENTRY, &[&[table.number()], &length.to_be_bytes(), &key, &value])
    })?;
    for number in roots {
        let file = key_file(ca, number);
        if !file.exists() {
            return Err(BackupError::Changed);
        }
        let key = state::read_private(&file)?;
        out.part(KEY, &[&number.to_be_bytes(), &key])?;
    }
    let sum: [u8; 32] = out.sum.clone().finalize().into();
    out.part(END, &[&sum])?;
    out.out.flush().map_err(writing)
}

/// Reads a backup and looks whether it is whole.
///
/// # Errors
///
/// [`BackupError`].
pub fn verify(backup: &Path) -> Result<(), BackupError> {
    let file = File::open(backup).map_err(reading)?;
    whole(&file, backup)
}

fn whole(file: &File, path: &Path) -> Result<(), BackupError> {
    let mut reader = Reader::new(file, path)?;
    while reader.next()?.is_some() {}
    Ok(())
}

/// Makes a state directory of a backup. Tells how many join tokens are void from here on: somebody may have used them after the
/// backup.
///
/// # Errors
///
/// [`BackupError`]: nothing is made of a backup that is not whole. A state directory must not be there yet.
pub fn restore(backup: &Path, directory: &Path, now: WallMs) -> Result<usize, BackupError> {
    let file = File::open(backup).map_err(reading)?;
    whole(&file, backup)?;
    let state = StateDir::create(directory)?;
    let store = Arc::new(SledStore::open(&state.store())?);
    let mut reader = Reader::new(&file, backup)?;
    // The facts that make a state whole come last: a restore that was cut off is no state.
    let mut last = Batch::default();
    let mut batch = Batch::default();
    let mut octets = 0;
    let mut made = now;
    let mut voided = 0;
    while let Some((kind, content)) = reader.next()? {
        match kind {
            HEAD => made = WallMs(reader.number(&content)?.cast_signed()),
            KEY => {
                let (number, key) = content
                    .split_at_checked(8)
                    .ok_or_else(|| reader.damaged("a key is cut"))?;
                let file = key_file(&state.ca(), reader.number(number)?);
                state::write_private(&file, key)?;
            }
            _ => {
                let (table, key, mut value) =
                    entry(&content).ok_or_else(|| reader.damaged("an entry is cut"))?;
                if table == Table::Meta {
                    last.put(table, key, value);
                    continue;
                }
                if table == Table::Tokens {
                    let mut row: TokenRow = rows::read("token", &value)?;
                    if row.used_by.is_empty() && !row.revoked {
                        row.revoked = true;
                        voided += 1;
                        value = row.encode_to_vec();
                    }
                }
                octets += content.len();
                batch.put(table, key, value);
                if octets > BATCH_OCTETS {
                    store.commit(std::mem::take(&mut batch))?;
                    octets = 0;
                }
            }
        }
    }
    store.commit(batch)?;
    raise(&mut last, made, now);
    store.commit(last)?;
    Ok(voided)
}

/// Raises the epoch and every counter, and notes the restore, in a batch that holds all of `Meta`. `made`: when the backup was.
pub(crate) fn raise(meta: &mut Batch, made: WallMs, now: WallMs) {
    let before = Before(meta.clone());
    let counted = "the store of a batch does not fail";
    let jump = JUMP + now.since(made).as_secs();
    for counter in Counter::ALL {
        let last = counter.last(&before).unwrap_or_default();
        counter.note(meta, last.saturating_add(jump));
    }
    let epoch = counter::epoch(&before).expect(counted);
    let time = u64::try_from(now.seconds()).unwrap_or(0);
    counter::note_epoch(meta, epoch.saturating_add(1).max(time));
    let restored = counter::restored(&before).ok().flatten();
    let times = restored.map_or(0, |restored| restored.times).saturating_add(1);
    counter::note_restored(meta, Restored { times, at_ms: now.0 });
    let span = Lost {
        from_ms: made.minus(UNDER_WAY_MAX).0,
        to_ms: now.0,
    };
    // A list that cannot be read says of nobody that it may come back.
    let lost = counter::lost(&before).unwrap_or_default();
    counter::note_lost(meta, &lost, span);
}

/// A batch, read as if it were committed.
struct Before(Batch);

impl Store for Before {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self
            .0
            .0
            .iter()
            .rev()
            .find(|(of, name, _)| *of == table && name == key);
        Ok(found.and_then(|(_, _, value)| value.clone()))
    }

    fn scan(&self, _: Table, _: Option<&[u8]>, _: usize) -> Result<Vec<crate::store::Entry>, StoreError> {
        Err(StoreError::Failed("a batch cannot be walked through".into()))
    }

    fn commit(&self, _: Batch) -> Result<(), StoreError> {
        Err(StoreError::Failed("a batch cannot be written to".into()))
    }

    fn room(&self) -> Result<(), StoreError> {
        Err(StoreError::Failed("a batch cannot be written to".into()))
    }
}

struct Sealed<W> {
    out: W,
    sum: Sha256,
}

impl<W: Write> Sealed<W> {
    fn raw(&mut self, octets: &[u8]) -> Result<(), BackupError> {
        self.sum.update(octets);
        self.out.write_all(octets).map_err(writing)
    }

    fn part(&mut self, kind: u8, pieces: &[&[u8]]) -> Result<(), BackupError> {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let length = u32::try_from(length).expect("bounded by the store");
        self.raw(&[kind])?;
        self.raw(&length.to_be_bytes())?;
        pieces.iter().try_for_each(|piece| self.raw(piece))
    }
}

/// Reads parts, and checks that they are whole and all there.
struct Reader<'a> {
    from: BufReader<&'a File>,
    path: &'a Path,
    sum: Sha256,
    ended: bool,
}

impl<'a> Reader<'a> {
    fn new(mut file: &'a File, path: &'a Path) -> Result<Self, BackupError> {
        file.seek(SeekFrom::Start(0)).map_err(reading)?;
        let mut reader = Self {
            from: BufReader::new(file),
            path,
            sum: Sha256::new(),
            ended: false,
        };
        let mut magic = [0; 8];
        reader.fill(&mut magic)?;
        if &magic != MAGIC {
            return Err(reader.damaged("it does not begin as one, or a later version made it"));
        }
        reader.sum.update(magic);
        Ok(reader)
    }

    fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, BackupError> {
        if self.ended {
            return Ok(None);
        }
        let mut head = [0; 5];
        self.fill(&mut head)?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > PART_OCTETS_MAX || kind > KEY {
            return Err(self.damaged("a part is not what was written"));
        }
        let mut content = Vec::new();
        let read = (&mut self.from).take(length as u64).read_to_end(&mut content);
        if read.map_err(reading)? < length {
            return Err(self.damaged("it is cut off"));
        }
        if kind == END {
            let sum: [u8; 32] = self.sum.clone().finalize().into();
            let mut more = [0; 1];
            if content != sum || self.from.read(&mut more).map_err(reading)? != 0 {
                return Err(self.damaged("its checksum is wrong"));
            }
            self.ended = true;
            return Ok(None);
        }
        self.sum.update(head);
        self.sum.update(&content);
        Ok(Some((kind, content)))
    }

    fn number(&self, octets: &[u8]) -> Result<u64, BackupError> {
        let octets: [u8; 8] = octets.try_into().map_err(|_| self.damaged("a number is cut"))?;
        Ok(u64::from_be_bytes(octets))
    }

    fn fill(&mut self, octets: &mut [u8]) -> Result<(), BackupError> {
        match self.from.read_exact(octets) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.damaged("it is cut off")),
            outcome => outcome.map_err(reading),
        }
    }

    fn damaged(&self, why: &'static str) -> BackupError {
        BackupError::Damaged {
            path: self.path.to_owned(),
            why,
        }
    }
}

fn entry(content: &[u8]) -> Option<(Table, Vec<u8>, Vec<u8>)> {
    let (table, rest) = content.split_first()?;
    let (length, rest) = rest.split_first_chunk::<2>()?;
    let (key, value) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
    Some((Table::of_number(*table)?, key.to_vec(), value.to_vec()))
}

fn writing(source: io::Error) -> BackupError {
    let doing = "writing";
    BackupError::Io { doing, source }
}

fn reading(source: io::Error) -> BackupError {
    let doing = "reading";
    BackupError::Io { doing, source }
}
