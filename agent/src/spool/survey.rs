//! Looks at a spool without being its owner: for the operator, who has a copy of the directory, or one that an agent uses.
//!
//! In: the directory. Out: what the small files say ([`Survey`]), what became of each collector's records ([`Account`]),
//! what is in the segments and what is damaged ([`Survey::walk`]). Nothing of the original is opened for writing, created
//! or locked: sled cannot be opened twice and writes when it opens, so each segment is copied to a temporary directory,
//! one at a time, and the copy is opened ([`copy`]). Memory: a megabyte of values and one value's records. Temporary disk:
//! one segment, at most [`SEGMENT_DISK_OCTETS_MAX`].
//!
//! A survey is of one moment: segments are listed first and the small files read after it, so that what an agent deletes
//! meanwhile has a cursor that says why (the agent stores cursors before it deletes). What an agent has stored is at most
//! about a second old; what it holds in memory is not seen. Whether an agent uses a directory is told by the locks it
//! holds, as `/proc/locks` has them: within this PID namespace, and on file systems whose devices stat(2) tells.

mod account;
pub(super) mod copy;
mod live;
mod walk;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flowtilla_agent_core::ledger::Ledger;
use flowtilla_agent_core::spool::Cursor;

use super::LostRange;
use super::files::{self, Format, Layout, Mark};
use super::segment::Segment;
use super::start::settle_allocator;
use super::store::parse;
use live::Locks;

pub use account::Account;
pub use copy::SEGMENT_DISK_OCTETS_MAX;
pub use walk::{Damage, DamageCause, Event, SegmentSummary, Wanted};

/// Times that a small file is read which may be half written.
const READS_MAX: usize = 3;
/// Name of a spool below the state's directory.
const BELOW_STATE: &str = crate::run::SPOOL;

/// Why a directory cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// There is nothing of this name.
    #[error("{} is not there", .0.display())]
    Absent(PathBuf),
    /// It is there, and no spool.
    #[error("{} holds no spool", .0.display())]
    NoSpool(PathBuf),
    /// It is a spool of another version.
    #[error("the spool {} has the format {found:?}, known is {known:?}", path.display())]
    Version {
        /// The spool.
        path: PathBuf,
        /// What its `format` says.
        found: String,
        /// What is read here.
        known: &'static str,
    },
    /// The disk or the permissions do not let us.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No place for a copy of a segment.
    #[error("no temporary copy of a segment in {}", path.display())]
    Temporary {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A file that is read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SmallFile<T> {
    /// There is none.
    Absent,
    /// What it says.
    Whole(T),
    /// It is not what was written.
    Damaged,
}

impl<T> SmallFile<T> {
    /// What it says, if it is whole.
    #[must_use]
    pub fn whole(&self) -> Option<&T> {
        match self {
            Self::Whole(told) => Some(told),
            Self::Absent | Self::Damaged => None,
        }
    }
}

/// The mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkInfo {
    /// Last sequence that may be in any segment.
    pub last: u64,
    /// Whether the last stop was clean. Never while an agent uses it.
    pub clean: bool,
}

/// The checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointInfo {
    /// Last sequence that it covers.
    pub sequence: u64,
    /// Its octets.
    pub octets: u64,
}

/// How a segment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// An agent writes to it.
    Head,
    /// An agent reads from it.
    InUse,
    /// Nobody has it open.
    Sealed,
    /// It did not open once, and was given another name.
    SetAside,
}

/// A segment, from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Name of its directory.
    pub name: String,
    /// First sequence in it, as its name says.
    pub first: u64,
    /// Last sequence that may be in it: what comes next begins behind it. `None`: it is the newest.
    pub last: Option<u64>,
    /// Octets on the disk.
    pub octets: u64,
    /// How it stands.
    pub state: SegmentState,
    /// Files in `blobs`: there must be none.
    pub blobs: usize,
    path: PathBuf,
}

/// A spool at one moment. See the module.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The spool's directory.
    pub directory: PathBuf,
    /// Process that has the lock of the spool.
    pub writer: Option<u32>,
    /// Segments, oldest first; those set aside after all others.
    pub segments: Vec<SegmentInfo>,
    /// Whole spools beside it that were set aside, of another version.
    pub set_aside: Vec<PathBuf>,
    /// Cursors by collector.
    pub cursors: BTreeMap<String, Cursor>,
    /// Collectors whose cursor is damaged.
    pub cursors_damaged: Vec<String>,
    /// What is missing, ascending, and why.
    pub lost: SmallFile<Vec<LostRange>>,
    /// The checkpoint.
    pub checkpoint: SmallFile<CheckpointInfo>,
    /// The mark.
    pub mark: SmallFile<MarkInfo>,
    /// Law 1 over all runs.
    pub ledger: SmallFile<Ledger>,
}

impl Survey {
    /// Looks at a spool's directory, or at a state's directory with a spool in it.
    ///
    /// # Errors
    /// [`SurveyError::Absent`], [`SurveyError::NoSpool`], [`SurveyError::Version`], [`SurveyError::Unreadable`].
    pub fn take(directory: &Path) -> Result<Self, SurveyError> {
        settle_allocator();
        let layout = find(directory)?;
        let directory = layout.directory.clone();
        let unreadable = |path: PathBuf| move |source| SurveyError::Unreadable { path, source };
        let locks = Locks::read();
        let segments = list(&layout.segments(), &locks).map_err(unreadable(layout.segments()))?;
        let (cursors, cursors_damaged) = layout.load_cursors().map_err(unreadable(layout.cursors()))?;
        let lost = match layout.load_losses() {
            Ok(None) => SmallFile::Absent,
            Ok(Some(losses)) => SmallFile::Whole(losses.ranges().to_vec()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => SmallFile::Damaged,
            Err(error) => return Err(unreadable(layout.lost())(error)),
        };
        let checkpoint = match layout.load_checkpoint() {
            Ok(None) => SmallFile::Absent,
            Ok(Some(checkpoint)) => SmallFile::Whole(CheckpointInfo {
                sequence: checkpoint.sequence,
                octets: checkpoint.octets.len() as u64,
            }),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => SmallFile::Damaged,
            Err(error) => return Err(unreadable(layout.checkpoint())(error)),
        };
        let ledger = match layout.load_ledger() {
            Ok(None) => SmallFile::Absent,
            Ok(Some(octets)) => serde_json::from_slice(&octets).map_or(SmallFile::Damaged, SmallFile::Whole),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => SmallFile::Damaged,
            Err(error) => return Err(unreadable(directory.join("ledger"))(error)),
        };
        Ok(Self {
            ledger,
            writer: locks.holder(&layout.directory.join("lock")),
            segments,
            set_aside: set_aside_beside(&directory),
            cursors,
            cursors_damaged,
            lost,
            checkpoint,
            mark: read_mark(&layout).map_err(unreadable(layout.mark()))?,
            directory,
        })
    }

    /// The version of the format.
    #[must_use]
    pub fn format(&self) -> &'static str {
        files::format()
    }

    /// The last sequence that anything but a segment speaks of.
    #[must_use]
    pub fn known(&self) -> u64 {
        let cursors = self.cursors.values();
        cursors
            .flat_map(|cursor| [cursor.begin, cursor.read, cursor.taken])
            .chain(self.checkpoint.whole().map(|checkpoint| checkpoint.sequence))
            .chain(self.lost_ranges().last().map(|range| range.last))
            .chain(self.mark.whole().map(|mark| mark.last))
            .max()
            .unwrap_or(0)
    }

    /// What is missing, ascending, as far as it is known.
    #[must_use]
    pub fn lost_ranges(&self) -> &[LostRange] {
        self.lost.whole().map_or(&[], Vec::as_slice)
    }

    /// Whether the last agent ended without closing the spool. `false` while one runs.
    #[must_use]
    pub fn stopped_uncleanly(&self) -> bool {
        let unclean = match &self.mark {
            SmallFile::Absent => !self.segments.is_empty(),
            SmallFile::Whole(mark) => !mark.clean,
            SmallFile::Damaged => true,
        };
        self.writer.is_none() && unclean
    }

    /// First sequence of the oldest segment that is not set aside.
    #[must_use]
    pub fn oldest(&self) -> Option<u64> {
        self.chain().next().map(|segment| segment.first)
    }

    /// Segments that are not set aside.
    fn chain(&self) -> impl DoubleEndedIterator<Item = &SegmentInfo> {
        self.segments
            .iter()
            .filter(|segment| segment.state != SegmentState::SetAside)
    }

    /// Records up to here are nobody's concern any more: every collector has read them, and the checkpoint covers them.
    fn passed(&self) -> u64 {
        let checkpoint = self
            .checkpoint
            .whole()
            .map_or(0, |checkpoint| checkpoint.sequence);
        let read = self.cursors.values().map(|cursor| cursor.read);
        read.fold(checkpoint, u64::min)
    }
}

/// The directory itself, or `spool` in it.
fn find(given: &Path) -> Result<Layout, SurveyError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source| SurveyError::Unreadable { path, source }
    };
    match fs::metadata(given) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SurveyError::Absent(given.to_owned()));
        }
        Err(error) => return Err(unreadable(given)(error)),
        Ok(metadata) if !metadata.is_dir() => return Err(SurveyError::NoSpool(given.to_owned())),
        Ok(_) => {}
    }
    for directory in [given.join(BELOW_STATE), given.to_owned()] {
        let layout = Layout { directory };
        match layout.read_format().map_err(unreadable(&layout.directory))? {
            Format::Known => return Ok(layout),
            // Segments without a format are some directory with `segments` in it, or a spool that lost its format.
            Format::Unknown(found) => {
                return Err(SurveyError::Version {
                    path: layout.directory,
                    found,
                    known: files::format(),
                });
            }
            Format::Absent => {}
        }
    }
    Err(SurveyError::NoSpool(given.to_owned()))
}

fn list(directory: &Path, locks: &Locks) -> io::Result<Vec<SegmentInfo>> {
    let (mut chain, mut aside) = (Vec::new(), Vec::new());
    for path in files::entries(directory)? {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let (plain, is_aside) = match name.split_once('.') {
            None => (name, false),
            Some((plain, rest)) if rest.starts_with("corrupt-") => (plain, true),
            Some(_) => continue,
        };
        let Some(first) = parse(plain) else { continue };
        let state = match locks.holder(&path.join("db")) {
            _ if is_aside => SegmentState::SetAside,
            Some(_) => SegmentState::InUse,
            None => SegmentState::Sealed,
        };
        let info = SegmentInfo {
            name: name.to_owned(),
            first,
            last: None,
            octets: files::allocated(&path),
            state,
            blobs: files::entries(&path.join("blobs"))?.len(),
            path,
        };
        if is_aside { &mut aside } else { &mut chain }.push(info);
    }
    chain.sort_unstable_by_key(|segment: &SegmentInfo| segment.first);
    aside.sort_unstable_by(|a: &SegmentInfo, b: &SegmentInfo| a.name.cmp(&b.name));
    let firsts: Vec<u64> = chain.iter().map(|segment| segment.first).collect();
    for segment in chain.iter_mut().chain(&mut aside) {
        let next = firsts.iter().find(|&&first| first > segment.first);
        segment.last = next.map(|first| first - 1);
    }
    if let Some(newest) = chain.last_mut()
        && newest.state == SegmentState::InUse
    {
        newest.state = SegmentState::Head;
    }
    chain.append(&mut aside);
    Ok(chain)
}

/// An agent writes the mark in place: what is torn once is whole the next time.
fn read_mark(layout: &Layout) -> io::Result<SmallFile<MarkInfo>> {
    if files::read(&layout.mark())?.is_none() {
        return Ok(SmallFile::Absent);
    }
    for _ in 0..READS_MAX {
        if let Some((last, clean)) = Mark::load(layout)? {
            return Ok(SmallFile::Whole(MarkInfo { last, clean }));
        }
    }
    Ok(SmallFile::Damaged)
}

fn set_aside_beside(directory: &Path) -> Vec<PathBuf> {
    let mut prefix = directory.file_name().unwrap_or_default().to_owned();
    prefix.push(".set-aside-");
    let prefix = prefix.to_string_lossy().into_owned();
    let beside = directory.parent().map(files::entries);
    let mut found: Vec<PathBuf> = beside.and_then(Result::ok).unwrap_or_default();
    found.retain(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    });
    found.sort_unstable();
    found
}
