//! A copy of one segment in a temporary directory, which goes with it.
//!
//! An agent may write to the original: a copy during which the log changed is thrown away and made again, a few times.
//! After that it is read as far as it is whole, as after a crash. Links are not followed: a directory that came from
//! elsewhere must not have other files read.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use flowtilla_grpc::causes::chain;

use super::files;
use super::{Segment, SurveyError};
use crate::spool::segment::{SegmentError, Verdict};

/// Most octets of a segment that are copied. What is written stays below a twentieth of it.
pub const SEGMENT_DISK_OCTETS_MAX: u64 = 256 << 20;
/// Times that a log is copied which is written meanwhile.
const COPIES_MAX: usize = 5;
/// Pause between two copies: a sync takes a few milliseconds, and comes twice a second.
const PAUSE: Duration = Duration::from_millis(20);
const CHUNK_OCTETS: usize = 64 << 10;

/// An open copy.
#[derive(Debug)]
pub(in crate::spool) struct SegmentCopy {
    pub(in crate::spool) segment: Segment,
    /// Why only its log could be used, if that is so.
    pub(super) log_alone: Option<String>,
}

/// Why there is none.
#[derive(Debug)]
pub(in crate::spool) enum CopyError {
    /// The segment is gone.
    Gone,
    /// It is larger than any that is written.
    TooLarge,
    /// The disk does not give it.
    Read(io::Error),
    /// There is no place for it.
    Survey(SurveyError),
    /// It was copied, and does not open.
    Segment(SegmentError),
}

impl SegmentCopy {
    pub(in crate::spool) fn open(original: &Path) -> Result<Self, CopyError> {
        let directory = tempfile::Builder::new()
            .prefix("flowtilla-")
            .tempdir()
            .map_err(no_place)?;
        let path = directory.path().join("segment");
        let log = original.join("db");
        for attempt in 1.. {
            let before = stamp(&log)?;
            let mut budget = SEGMENT_DISK_OCTETS_MAX;
            copy(original, &path, &mut budget)?;
            if stamp(&log)? == before || attempt == COPIES_MAX {
                break;
            }
            fs::remove_dir_all(&path).map_err(no_place)?;
            std::thread::sleep(PAUSE);
        }
        let (segment, log_alone) = match Segment::open_as_it_is(&path) {
            Ok(segment) => (segment, None),
            Err(error) if error.verdict() == Verdict::Damaged => {
                let why = chain(&error);
                (Segment::open(&path).map_err(CopyError::Segment)?, Some(why))
            }
            Err(error) => return Err(CopyError::Segment(error)),
        };
        Ok(Self {
            segment: segment.within(directory),
            log_alone,
        })
    }
}

/// What tells whether a log was written meanwhile.
fn stamp(log: &Path) -> Result<(u64, i64, i64), CopyError> {
    let told = |metadata: Metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    match fs::symlink_metadata(log) {
        Ok(metadata) if metadata.is_file() => Ok(told(metadata)),
        Ok(_) => Err(CopyError::Segment(SegmentError::Damaged(
            "its log (db) is no file".into(),
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match fs::symlink_metadata(log.parent().unwrap_or(log)) {
                Ok(_) => Err(CopyError::Segment(SegmentError::Damaged(
                    "its log (db) is not there".into(),
                ))),
                Err(_) => Err(CopyError::Gone),
            }
        }
        Err(error) => Err(CopyError::Read(error)),
    }
}

fn copy(from: &Path, to: &Path, budget: &mut u64) -> Result<(), CopyError> {
    fs::create_dir(to).map_err(no_place)?;
    for path in files::entries(from).map_err(CopyError::Read)? {
        let metadata = match fs::symlink_metadata(&path) {
            // sled replaces its snapshots.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(CopyError::Read)?,
        };
        let target = to.join(path.file_name().unwrap_or_default());
        if metadata.is_dir() && path.file_name().is_some_and(|name| name == "blobs") {
            copy(&path, &target, budget)?;
        } else if metadata.len() > *budget {
            return Err(CopyError::TooLarge);
        } else if metadata.is_file() {
            copy_file(&path, &target, budget)?;
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path, budget: &mut u64) -> Result<(), CopyError> {
    let mut source = match File::open(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        source => source.map_err(CopyError::Read)?,
    };
    let mut target = File::create(to).map_err(no_place)?;
    let mut chunk = vec![0; CHUNK_OCTETS];
    loop {
        let octets = match source.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            octets => octets.map_err(CopyError::Read)?,
        };
        if octets == 0 {
            return Ok(());
        }
        *budget = budget.checked_sub(octets as u64).ok_or(CopyError::TooLarge)?;
        target.write_all(&chunk[..octets]).map_err(no_place)?;
    }
}

fn no_place(source: io::Error) -> CopyError {
    CopyError::Survey(SurveyError::Temporary {
        path: std::env::temp_dir(),
        source,
    })
}
