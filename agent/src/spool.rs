//! HEAD
//!
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent_core::spool::{Cursor, Value};
use flowtilla_proto::ids::CollectorName;
use tokio::sync::{oneshot, watch};

mod disk;
mod files;
mod lost;
mod segment;
mod shared;
mod start;
mod store;
mod tail;

pub use lost::{LostCause, LostRange};

use crate::clock;
use files::Layout;
use shared::{Checkpoints, Command, Shared, held};
use start::{Files, begin_at, claim, settle, settle_allocator};
use store::{Reply, Store};
use tail::Tail;

/// Largest value, in octets. sled's pages grow to eight of them, and must stay below a quarter of its segment: larger
/// ones go to files that it never syncs.
pub const VALUE_OCTETS_MAX: usize = 8 << 10;
/// Octets that readers ask the disk for at once, at most.
const READ_OCTETS_MAX: usize = 1 << 20;
/// Pause before a segment that cannot be read is asked again.
const READ_PAUSE: Duration = Duration::from_millis(500);
/// A checkpoint is wanted after so many octets of values: what is replayed at a start, at most, is twice of it.
const CHECKPOINT_OCTETS: u64 = 8 << 20;
/// A checkpoint is wanted after this long, if anything was appended.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(60);

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
    /// How long a reader waits for a disk that does not answer before it goes on with what is in memory.
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
    /// Records that the bounds pushed out, since the start.
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

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// Values without a gap; the first holds the next record, and may begin before it.
    Values(Vec<Value>),
    /// The records up to `upto` are gone.
    Lost {
        /// Last of them.
        upto: u64,
        /// Why.
        cause: LostCause,
    },
    /// There is nothing newer yet.
    Nothing,
}

/// What was read back at a start.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Values handed on.
    pub values: u64,
    /// Records that are gone.
    pub lost: Vec<LostRange>,
}

/// The spool. Dropped without [`Spool::close`], it ends as a crash would.
#[derive(Debug)]
pub struct Spool {
    shared: Arc<Shared>,
    watching: Mutex<Option<SyncSender<()>>>,
}

impl Spool {
    /// Opens the spool, or makes one. Takes its lock. Memory and time do not grow with what is in it.
    ///
    /// A disk that cannot be written is no error: the spool keeps to memory and tries again.
    ///
    /// # Errors
    /// [`SpoolError::Locked`] when another process has it; [`SpoolError::Unreadable`] when it is there and its sequences
    /// cannot be told; [`SpoolError::Thread`] when no thread can be started.
    pub fn open(options: SpoolOptions) -> Result<(Self, Opened), SpoolError> {
        settle_allocator();
        let options = SpoolOptions {
            octets_max: options.octets_max.max(8 << 20),
            ..options
        };
        let layout = Layout {
            directory: options.directory.clone(),
        };
        let unreadable = |source| SpoolError::Unreadable {
            path: options.directory.clone(),
            source,
        };
        let claim = claim(&layout)?;
        let mut files = Files::load(&layout).map_err(unreadable)?;
        let shared = Arc::new(Shared {
            tail: Mutex::new(Tail::new(files.known, options.tail_octets_max)),
            losses: Mutex::new(std::mem::take(&mut files.losses)),
            cursors: Mutex::new(std::mem::take(&mut files.cursors)),
            checkpoints: Mutex::new(Checkpoints {
                stored: files
                    .checkpoint
                    .as_ref()
                    .map_or(0, |checkpoint| checkpoint.sequence),
                at: clock::kernel_now().0,
                ..Checkpoints::default()
            }),
            set_aside: Mutex::new(claim.set_aside),
            status: watch::Sender::new(SpoolStatus::default()),
            readable: watch::Sender::new(0),
            commands: Mutex::new(disk::channel().0),
            generation: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            memory_only: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            lock: Mutex::new(claim.lock),
            layout,
            options: options.clone(),
        });
        let mut store = Store::load(&shared, 0).map_err(unreadable)?;
        let (on_disk, mut refusal) = match store.recover(files.known) {
            Ok(on_disk) => (on_disk, claim.refusal),
            Err(error) => (None, claim.refusal.or(Some(error.to_string()))),
        };
        let (newest, lost) = settle(&shared, &store, &files, on_disk);
        // It is not clean any more. That tells at once whether the disk can be written.
        if let Err(error) = store.store_mark(newest, false) {
            refusal.get_or_insert(error.to_string());
        }
        if let Some(why) = refusal {
            shared.enter_memory_only(&why);
        }
        let opened = Opened {
            next: newest + 1,
            checkpoint: files.checkpoint,
            set_aside: held(&shared.set_aside).clone(),
            lost,
            clean: files.clean,
        };
        let disk = disk::start(&shared, Some(store)).map_err(SpoolError::Thread)?;
        let (watching, stop) = sync_channel(1);
        disk::watch(&shared, Some(disk), stop).map_err(SpoolError::Thread)?;
        let spool = Self {
            shared,
            watching: Mutex::new(Some(watching)),
        };
        Ok((spool, opened))
    }

    /// Adds a value after all others. Never waits; the disk thread writes it.
    ///
    /// Its sequences must be greater than any before. What memory cannot hold until the disk takes it is lost, and counted.
    pub fn append(&self, value: Value) {
        let shared = &self.shared;
        let octets = value.octets.len() as u64;
        if octets > VALUE_OCTETS_MAX as u64 {
            tracing::error!(octets, "a value is larger than the disk may be given");
        }
        let last = value.last();
        let pressing = {
            let mut tail = held(&shared.tail);
            if value.first <= tail.newest() || value.records == 0 {
                tracing::error!(
                    first = value.first,
                    newest = tail.newest(),
                    "a sequence was given twice"
                );
                return;
            }
            if let Some((first, last)) = tail.push(value) {
                let records = held(&shared.losses).add(first, last, LostCause::SpoolUnwritable);
                shared.count_lost(records, LostCause::SpoolUnwritable);
            }
            tail.is_pressing()
        };
        held(&shared.checkpoints).octets += octets;
        if shared.is_memory_only() {
            shared.raise_readable(last);
        } else if pressing {
            // It looks within half a second anyway.
            let _ = shared.ask(Command::Wake);
        }
    }

    /// Last sequence appended.
    #[must_use]
    pub fn newest(&self) -> u64 {
        held(&self.shared.tail).newest()
    }

    /// Whether it is time for a checkpoint.
    #[must_use]
    pub fn checkpoint_wanted(&self) -> bool {
        let checkpoints = held(&self.shared.checkpoints);
        let age = clock::kernel_now().0.saturating_sub(checkpoints.at);
        let due = u128::from(age) >= CHECKPOINT_PAUSE.as_nanos() && checkpoints.octets > 0;
        checkpoints.pending.is_none()
            && !self.shared.is_memory_only()
            && (checkpoints.octets >= CHECKPOINT_OCTETS || due)
    }

    /// Hands over a checkpoint. It is stored as soon as all records up to `upto` are on the disk.
    pub fn checkpoint(&self, upto: u64, octets: Bytes) {
        let mut checkpoints = held(&self.shared.checkpoints);
        checkpoints.pending = Some(Checkpoint {
            sequence: upto,
            octets,
        });
        checkpoints.at = clock::kernel_now().0;
        checkpoints.octets = 0;
    }

    /// Reads back everything after `after` that there is at this moment. Waits for the disk: at a start only.
    pub fn replay(&self, after: u64, mut each: impl FnMut(Value)) -> Replayed {
        let (mut after, newest) = (after, self.newest());
        let mut replayed = Replayed::default();
        while after < newest {
            let read = match self.shared.read_tail(after, READ_OCTETS_MAX) {
                Some(read) => read,
                None => self.replay_older(after),
            };
            match read {
                Read::Values(values) => {
                    for value in values {
                        after = value.last();
                        replayed.values += 1;
                        each(value);
                    }
                }
                Read::Lost { upto, cause } => {
                    let first = after + 1;
                    after = upto.max(first);
                    replayed.lost.push(LostRange {
                        first,
                        last: after,
                        cause,
                    });
                }
                Read::Nothing => break,
            }
        }
        replayed
    }

    fn replay_older(&self, after: u64) -> Read {
        let (sender, receiver) = sync_channel(1);
        let reply = Box::new(move |reply| drop(sender.send(reply)));
        if self.shared.ask(Command::Read(after, READ_OCTETS_MAX, reply))
            && let Ok(reply) = receiver.recv_timeout(self.shared.options.patience)
        {
            match reply {
                Reply::Values(values) => return Read::Values(values),
                Reply::Lost { upto, cause } => return Read::Lost { upto, cause },
                Reply::InTail | Reply::Unavailable => {}
            }
        }
        self.shared.give_up(after)
    }

    /// A reader for a collector's exporter, with the cursor that is kept for it. A collector without one begins here.
    #[must_use]
    pub fn reader(&self, collector: &CollectorName) -> Reader {
        let newest = self.newest();
        let name = collector.as_str().to_owned();
        let mut cursors = held(&self.shared.cursors);
        let cursor = match cursors.by_collector.get(&name) {
            Some(cursor) => cursor.clone(),
            None => {
                let cursor = begin_at(newest);
                cursors.by_collector.insert(name.clone(), cursor.clone());
                cursors.dirty.insert(name.clone());
                cursors.forgotten.remove(&name);
                cursor
            }
        };
        Reader {
            shared: Arc::clone(&self.shared),
            collector: name,
            cursor,
        }
    }

    /// Drops a collector's cursor: what it has not got, it will not get.
    pub fn forget(&self, collector: &CollectorName) {
        let newest = self.newest();
        let mut cursors = held(&self.shared.cursors);
        if let Some(cursor) = cursors.by_collector.remove(collector.as_str()) {
            let waiting = newest.saturating_sub(cursor.taken);
            tracing::warn!(%collector, waiting, "the collector's place in the spool is dropped");
        }
        cursors.dirty.remove(collector.as_str());
        cursors.forgotten.insert(collector.as_str().to_owned());
    }

    /// How the spool is.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<SpoolStatus> {
        self.shared.status.subscribe()
    }

    /// Syncs all, stores cursors, checkpoint and losses, and lets the directory go. Waits for `grace` at most.
    ///
    /// Tells whether all is on the disk. The spool takes nothing after it.
    pub fn close(&self, grace: Duration) -> bool {
        let (sender, receiver) = sync_channel(1);
        let done = Box::new(move |clean| {
            let _ = sender.send(clean);
        });
        let clean = self.shared.ask(Command::Close(done)) && receiver.recv_timeout(grace).unwrap_or(false);
        self.stop();
        clean
    }

    fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        held(&self.watching).take();
        let _ = self.shared.ask(Command::Wake);
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Reads for one collector.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    collector: String,
    cursor: Cursor,
}

impl Reader {
    /// The cursor as it was when the reader was made.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }

    /// The newest sequence that may be read: on the disk, or in memory when the disk cannot be used.
    #[must_use]
    pub fn readable(&self) -> watch::Receiver<u64> {
        self.shared.readable.subscribe()
    }

    /// What comes after `after`: about `octets_max` octets of values, but at least one.
    ///
    /// Waits only for the disk, and no longer than `patience`: then what is on it counts as lost for this reader, so that
    /// what is in memory gets on its way.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn read(&self, after: u64, octets_max: usize) -> Read {
        let octets_max = octets_max.min(READ_OCTETS_MAX);
        let patience = self.shared.options.patience;
        match tokio::time::timeout(patience, self.read_patiently(after, octets_max)).await {
            Ok(read) => read,
            Err(_) => self.shared.give_up(after),
        }
    }

    async fn read_patiently(&self, after: u64, octets_max: usize) -> Read {
        loop {
            if let Some(read) = self.shared.read_tail(after, octets_max) {
                return read;
            }
            let (sender, receiver) = oneshot::channel();
            let reply = Box::new(move |reply| drop(sender.send(reply)));
            if self.shared.ask(Command::Read(after, octets_max, reply)) {
                match receiver.await {
                    Ok(Reply::Values(values)) => return Read::Values(values),
                    Ok(Reply::Lost { upto, cause }) => return Read::Lost { upto, cause },
                    Ok(Reply::InTail | Reply::Unavailable) | Err(_) => {}
                }
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
    }

    /// Keeps the cursor. Never waits; the newest wins, and is on the disk within about a second.
    pub fn save(&self, cursor: Cursor) {
        let mut cursors = held(&self.shared.cursors);
        // A collector that was forgotten meanwhile stays forgotten.
        if let Some(kept) = cursors.by_collector.get_mut(&self.collector)
            && *kept != cursor
        {
            *kept = cursor;
            cursors.dirty.insert(self.collector.clone());
        }
    }
}
