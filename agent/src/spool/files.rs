//! The small files beside the segments, and what is asked of the file system. The formats stand in [`super`].
//!
//! A file is replaced as a whole: written under another name, synced, renamed, and its directory synced. Only the mark
//! is overwritten in place: it is one sector, and its checksum tells a torn one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flowtilla_agent_core::spool::Cursor;
use rustix::fs::{FlockOperation, flock};

use super::lost::Losses;
use super::store::{SEGMENT_RECORDS_MAX, SEQUENCE_MAX};
use super::{Checkpoint, SpoolError};
use crate::files::{self, read_at_most};

pub(crate) use crate::files::{
    entries, make_directory, open_for_reading, open_for_writing, replace, sync_directory,
};

#[cfg(test)]
mod tests;

/// What this version writes, and all that it reads.
const FORMAT: &[u8] = b"flowtilla-spool 1\n";
const MARK_MAGIC: &[u8; 4] = b"FTMK";
const MARK_LEN: usize = 20;
const CHECKPOINT_MAGIC: &[u8; 4] = b"FTCK";
const LEDGER_MAGIC: &[u8; 4] = b"FTLG";
const CHECKPOINT_HEAD_LEN: usize = 24;
/// Largest file that is read as a whole. A checkpoint of 65,536 flows takes a tenth of it.
const FILE_OCTETS_MAX: u64 = 64 << 20;

/// The format that this version writes and reads, without its line end.
pub(crate) fn format() -> &'static str {
    std::str::from_utf8(FORMAT).map_or("", str::trim_end)
}

/// Names in the spool's directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) directory: PathBuf,
}

/// What `format` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Ours.
    Known,
    /// There is no spool yet.
    Absent,
    /// Another version, or nonsense.
    Unknown(String),
}

impl Layout {
    pub(crate) fn segments(&self) -> PathBuf {
        self.directory.join("segments")
    }

    pub(crate) fn cursors(&self) -> PathBuf {
        self.directory.join("cursors")
    }

    pub(crate) fn mark(&self) -> PathBuf {
        self.directory.join("mark")
    }

    pub(crate) fn lost(&self) -> PathBuf {
        self.directory.join("lost")
    }

    pub(crate) fn checkpoint(&self) -> PathBuf {
        self.directory.join("checkpoint")
    }

    fn ledger(&self) -> PathBuf {
        self.directory.join("ledger")
    }

    fn format(&self) -> PathBuf {
        self.directory.join("format")
    }

    pub(crate) fn cursor(&self, collector: &str) -> PathBuf {
        self.cursors().join(format!("{collector}.json"))
    }

    /// Makes what is missing, `format` last: a directory with it is whole.
    pub(crate) fn make(&self) -> io::Result<()> {
        for directory in [&self.directory, &self.segments(), &self.cursors()] {
            make_directory(directory)?;
        }
        if self.read_format()? != Format::Known {
            replace(&self.format(), FORMAT)?;
        }
        self.directory.parent().map_or(Ok(()), sync_directory)
    }

    /// Refuses what another user can change: this process may be root, and follow where that user leads.
    pub(crate) fn check_owner(&self) -> Result<(), SpoolError> {
        for path in [&self.directory, &self.segments(), &self.cursors()] {
            files::check_owner(path).map_err(|why| SpoolError::Unsafe {
                path: path.clone(),
                why,
            })?;
        }
        Ok(())
    }

    pub(crate) fn read_format(&self) -> io::Result<Format> {
        let octets = read(&self.format())?;
        match octets.as_deref() {
            Some(FORMAT) => Ok(Format::Known),
            // A power cut while the very first file was written leaves an empty one, and no segment.
            None | Some([]) if !self.segments().exists() || is_empty(&self.segments())? => Ok(Format::Absent),
            None => Ok(Format::Unknown("none".into())),
            Some(octets) => {
                let head = octets.get(..64).unwrap_or(octets);
                Ok(Format::Unknown(
                    String::from_utf8_lossy(head).trim_end().to_owned(),
                ))
            }
        }
    }

    /// Takes the lock that keeps a second process out; it goes with the file. `None`: another holds it.
    ///
    /// A directory that cannot be written is locked too, if the file is there.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let path = self.directory.join("lock");
        let file = open_for_writing(&path, false).or_else(|error| match open_for_reading(&path) {
            Ok(file) => Ok(file),
            Err(_) => Err(error),
        })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Cursors by collector, and the names of those that cannot be read.
    pub(crate) fn load_cursors(&self) -> io::Result<(BTreeMap<String, Cursor>, Vec<String>)> {
        let (mut cursors, mut unreadable) = (BTreeMap::new(), Vec::new());
        let limit = self.limit()?;
        for path in entries(&self.cursors())? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .and_then(|name| name.strip_suffix(".json"));
            let Some(name) = name.filter(|name| !name.is_empty()) else {
                continue;
            };
            let octets = read(&path)?.unwrap_or_default();
            let cursor = unseal(&octets).and_then(|octets| serde_json::from_slice(octets).ok());
            match cursor.filter(|cursor| is_possible(cursor, limit)) {
                Some(cursor) => {
                    cursors.insert(name.to_owned(), cursor);
                }
                None => unreadable.push(name.to_owned()),
            }
        }
        Ok((cursors, unreadable))
    }

    pub(crate) fn store_cursor(&self, collector: &str, cursor: &Cursor) -> io::Result<()> {
        replace(&self.cursor(collector), &seal(&serde_json::to_vec(cursor)?))
    }

    /// What is noted as lost; `None` when nothing ever was; `InvalidData` when it is damaged.
    pub(crate) fn load_losses(&self) -> io::Result<Option<Losses>> {
        let Some(octets) = read(&self.lost())? else {
            return Ok(None);
        };
        let limit = self.limit()?;
        unseal(&octets)
            .and_then(|octets| Losses::decode(octets).ok())
            .filter(|losses| losses.ranges().last().is_none_or(|range| range.last <= limit))
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))
    }

    pub(crate) fn store_losses(&self, octets: &[u8]) -> io::Result<()> {
        replace(&self.lost(), &seal(octets))
    }

    /// The last sequence that any file can speak of: beyond it no number follows from a file, whatever it says.
    fn limit(&self) -> io::Result<u64> {
        let mark = Mark::load(self)?;
        Ok(mark.map_or(SEQUENCE_MAX, |(last, _)| {
            last.saturating_add(SEGMENT_RECORDS_MAX).min(SEQUENCE_MAX)
        }))
    }

    pub(crate) fn store_checkpoint(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        let mut octets = Vec::with_capacity(CHECKPOINT_HEAD_LEN + checkpoint.octets.len());
        octets.extend_from_slice(CHECKPOINT_MAGIC);
        octets.extend_from_slice(&checkpoint_sum(checkpoint.sequence, &checkpoint.octets).to_le_bytes());
        octets.extend_from_slice(&checkpoint.sequence.to_le_bytes());
        octets.extend_from_slice(&(checkpoint.octets.len() as u64).to_le_bytes());
        octets.extend_from_slice(&checkpoint.octets);
        replace(&self.checkpoint(), &octets)
    }

    /// The checkpoint; `None` when there is none; `InvalidData` when it is damaged.
    pub(crate) fn load_checkpoint(&self) -> io::Result<Option<Checkpoint>> {
        let Some(octets) = read(&self.checkpoint())? else {
            return Ok(None);
        };
        let limit = self.limit()?;
        decode_checkpoint(&octets)
            .filter(|checkpoint| checkpoint.sequence <= limit)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the checkpoint is damaged"))
    }

    pub(crate) fn store_ledger(&self, octets: &[u8]) -> io::Result<()> {
        let sum = crc32fast::hash(octets).to_le_bytes();
        replace(&self.ledger(), &[LEDGER_MAGIC, &sum, octets].concat())
    }

    /// The ledger; `None` when there is none; `InvalidData` when it is damaged.
    pub(crate) fn load_ledger(&self) -> io::Result<Option<Bytes>> {
        let Some(stored) = read(&self.ledger())? else {
            return Ok(None);
        };
        let rest = stored.strip_prefix(LEDGER_MAGIC);
        rest.and_then(|rest| rest.split_first_chunk::<4>())
            .filter(|(sum, octets)| u32::from_le_bytes(**sum) == crc32fast::hash(octets))
            .map(|(_, octets)| Some(Bytes::copy_from_slice(octets)))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the ledger is damaged"))
    }
}

/// JSON with the checksum of its octets before it, as JSON.
fn seal(json: &[u8]) -> Vec<u8> {
    let sum = crc32fast::hash(json);
    [
        format!("{{\"sum\":\"{sum:08x}\",\"value\":").as_bytes(),
        json,
        b"}",
    ]
    .concat()
}

/// What [`seal`] was given; `None`: it is not what was written.
fn unseal(octets: &[u8]) -> Option<&[u8]> {
    let rest = octets.strip_prefix(b"{\"sum\":\"")?;
    let (sum, rest) = rest.split_first_chunk::<8>()?;
    let json = rest.strip_prefix(b"\",\"value\":")?.strip_suffix(b"}")?;
    (*sum == *format!("{:08x}", crc32fast::hash(json)).as_bytes()).then_some(json)
}

fn is_possible(cursor: &Cursor, limit: u64) -> bool {
    cursor.begin <= cursor.read && cursor.read <= cursor.taken && cursor.taken <= limit
}

fn decode_checkpoint(octets: &[u8]) -> Option<Checkpoint> {
    let (head, octets) = octets.split_at_checked(CHECKPOINT_HEAD_LEN)?;
    let (magic, head) = head.split_first_chunk::<4>()?;
    let (sum, head) = head.split_first_chunk::<4>()?;
    let (sequence, length) = head.split_first_chunk::<8>()?;
    let sequence = u64::from_le_bytes(*sequence);
    let length = u64::from_le_bytes(length.try_into().ok()?);
    let whole = magic == CHECKPOINT_MAGIC
        && length == octets.len() as u64
        && u32::from_le_bytes(*sum) == checkpoint_sum(sequence, octets);
    whole.then(|| Checkpoint {
        sequence,
        octets: Bytes::copy_from_slice(octets),
    })
}

fn checkpoint_sum(sequence: u64, octets: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&sequence.to_le_bytes());
    sum.update(octets);
    sum.finalize()
}

/// The last sequence that any segment may hold, written before the values are.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
}

impl Mark {
    pub(crate) fn open(layout: &Layout) -> io::Result<Self> {
        let path = layout.mark();
        let fresh = !path.exists();
        let file = open_for_writing(&path, false)?;
        if fresh {
            file.sync_all()?;
            sync_directory(&layout.directory)?;
        }
        Ok(Self { file })
    }

    /// Writes and syncs it. `clean`: nothing is to come after it until the next start.
    pub(crate) fn store(&self, last: u64, clean: bool) -> io::Result<()> {
        let mut octets = [0; MARK_LEN];
        octets[..4].copy_from_slice(MARK_MAGIC);
        octets[4..12].copy_from_slice(&last.to_le_bytes());
        octets[12] = u8::from(clean);
        let sum = crc32fast::hash(&octets[..16]);
        octets[16..].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&octets, 0)?;
        self.file.sync_data()
    }

    /// The last sequence and whether the stop was clean; `None` when there is none or it is torn.
    pub(crate) fn load(layout: &Layout) -> io::Result<Option<(u64, bool)>> {
        Ok(read(&layout.mark())?.and_then(|octets| decode_mark(&octets)))
    }
}

fn decode_mark(octets: &[u8]) -> Option<(u64, bool)> {
    let octets: &[u8; MARK_LEN] = octets.try_into().ok()?;
    let (head, sum) = octets.split_at(16);
    let last = u64::from_le_bytes(head[4..12].try_into().ok()?);
    let whole = head[..4] == *MARK_MAGIC && sum == crc32fast::hash(head).to_le_bytes();
    whole.then_some((last, head[12] == 1))
}

/// Octets that a directory and what is in it take on the disk.
pub(crate) fn allocated(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    let within = if metadata.is_dir() {
        entries(path).unwrap_or_default()
    } else {
        Vec::new()
    };
    metadata.blocks() * 512 + within.iter().map(|path| allocated(path)).sum::<u64>()
}

/// Octets of the file system that are free for us, and all that it has.
pub(crate) fn free(path: &Path) -> io::Result<(u64, u64)> {
    let state = rustix::fs::statvfs(path)?;
    Ok((
        state.f_bavail.saturating_mul(state.f_frsize),
        state.f_blocks.saturating_mul(state.f_frsize),
    ))
}

/// A whole file; `None` when there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    read_at_most(path, FILE_OCTETS_MAX)
}

fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(entries(path)?.is_empty())
}
