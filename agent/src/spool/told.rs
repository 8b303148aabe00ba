//! What the spool is told at its start, and what it tells.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use super::LostRange;

/// Where the spool is and how much it may take.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// Its directory; made when it is not there.
    pub directory: PathBuf,
    /// Octets that segments may take on the disk. Below 8 MiB it is taken for 8 MiB.
    pub octets_max: u64,
    /// Age at which a segment goes.
    pub age_max: Duration,
    /// Octets that stay free on the file system, or 5 % of it, if that is more.
    pub free_octets_min: u64,
    /// Pause between two syncs: what a crash may take.
    pub sync_interval: Duration,
    /// Octets of values in memory. A quarter of it may hold what is on the disk too.
    pub tail_octets_max: u64,
    /// How long a reader waits for a segment that cannot be read before it goes on without it.
    pub patience: Duration,
}

impl SpoolOptions {
    /// What suits most hosts.
    #[must_use]
    pub fn in_directory(directory: PathBuf) -> Self {
        Self {
            directory,
            octets_max: 1 << 30,
            age_max: Duration::from_secs(7 * 86_400),
            free_octets_min: 256 << 20,
            sync_interval: Duration::from_millis(500),
            tail_octets_max: 8 << 20,
            patience: Duration::from_secs(60),
        }
    }

    /// Takes these over.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.octets_max = bounds.octets_max;
        self.age_max = bounds.age_max;
        self.free_octets_min = bounds.free_octets_min;
        self.sync_interval = bounds.sync_interval;
    }
}

/// The part of [`SpoolOptions`] that may change while the spool is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// See [`SpoolOptions::octets_max`].
    pub octets_max: u64,
    /// See [`SpoolOptions::age_max`].
    pub age_max: Duration,
    /// See [`SpoolOptions::free_octets_min`].
    pub free_octets_min: u64,
    /// See [`SpoolOptions::sync_interval`].
    pub sync_interval: Duration,
}

impl Bounds {
    /// What is held to: less than two segments is no bound.
    pub(crate) fn at_least(self) -> Self {
        Self {
            octets_max: self.octets_max.max(8 << 20),
            ..self
        }
    }
}

impl From<&SpoolOptions> for Bounds {
    fn from(options: &SpoolOptions) -> Self {
        Self {
            octets_max: options.octets_max,
            age_max: options.age_max,
            free_octets_min: options.free_octets_min,
            sync_interval: options.sync_interval,
        }
    }
}

/// State that goes with the records: everything in those up to `sequence` is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Last sequence that it covers.
    pub sequence: u64,
    /// What it says.
    pub octets: Bytes,
}

/// A segment or a whole spool that could not be read and was kept under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Its new name.
    pub path: PathBuf,
    /// First sequence in it; 0: not known.
    pub first: u64,
    /// Last sequence in it; 0: not known.
    pub last: u64,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The next sequence to give.
    pub next: u64,
    /// The newest checkpoint, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// What [`Spool::keep_ledger`](super::Spool::keep_ledger) was given last, if that is there and whole.
    pub ledger: Option<Bytes>,
    /// What could not be read.
    pub set_aside: Vec<SetAside>,
    /// Records that were given a number and are not on the disk.
    pub lost: u64,
    /// Whether the last stop was clean.
    pub clean: bool,
}

/// Where values go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SpoolState {
    /// To the disk.
    #[default]
    Working,
    /// To memory only, for a reason; the disk is tried again and again.
    MemoryOnly {
        /// What the disk said.
        why: String,
    },
}

/// How the spool is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Where values go.
    pub state: SpoolState,
    /// Last sequence on the disk.
    pub durable: u64,
    /// Octets that segments take on the disk.
    pub octets: u64,
    /// Segments.
    pub segments: u64,
    /// Octets in memory.
    pub tail_octets: u64,
    /// Records that the bounds pushed out before every collector had read them, since the start.
    pub evicted: u64,
    /// Records found damaged, since the start.
    pub damaged: u64,
    /// Records that memory could not hold until the disk took them, since the start.
    pub unwritable: u64,
    /// Values that sled put outside its log: always 0, or a power cut loses them.
    pub blobs: u64,
}

/// Why there is no spool.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process has it.
    #[error("another process uses the spool {}", .0.display())]
    Locked(PathBuf),
    /// Somebody else could change what is there, and what this process reads and writes with it.
    #[error("the spool {} is not safe to use: {why}", path.display())]
    Unsafe {
        /// The spool, or what is in it.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// What is there cannot be read, so that no sequence can be given.
    #[error("the spool {} cannot be read", path.display())]
    Unreadable {
        /// The spool.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No thread.
    #[error("no thread for the spool")]
    Thread(#[source] io::Error),
}

/// What was read back at a start.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Values handed on.
    pub values: u64,
    /// Records that are gone.
    pub lost: Vec<LostRange>,
}
