//! Keeps records until every collector has them: on the disk, and in memory while the disk does not take them.
//!
//! In: values from the meter ([`Spool::append`], never waits), cursors from the exporters, checkpoints. Out: values to a
//! [`Reader`] each collector, or what was lost instead, and why; status. One thread touches the disk and may hang there;
//! a supervisor gives it up then. Nothing else here blocks. What the values say is not known here; [`survey`], which looks at
//! a directory from outside, reads them.
//!
//! What is on a disk that must not be written, or in a segment that a thread holds which was given up, is read through a
//! copy in the directory for temporary files. Only one that cannot be read so either counts as lost, alone; all that is on
//! the disk does when nothing answers and memory is about to overflow.
//!
//! Invariants: a sequence is given once; what a reader is told to be readable is on the disk, unless the state says that
//! it is in memory only; between two values that a reader gets, every missing record was told with its cause.
//!
//! # On the disk
//!
//! Version 1. Directories are 0700, files in them 0600 (sled's snapshots apart). Numbers are little-endian where it is
//! not said otherwise. Directories that belong to another user or that others may write to are refused, links to files are not
//! followed. `sum` is CRC-32 (IEEE).
//!
//! | path | what |
//! | --- | --- |
//! | `format` | `flowtilla-spool 1\n`. Any other text: the whole directory is renamed to `….set-aside-N`, and a new one made |
//! | `lock` | flock(2): one process |
//! | `mark` | `FTMK`, u64 last sequence that was given, u8 1 after a clean stop, 3 zeros, u32 sum of these 16 |
//! | `segments/%016x/` | a `sled::Db`; its name is the sequence of its first record |
//! | `segments/*.corrupt-N` | set aside: it did not open. At most 4, and the first to go at the bound |
//! | `segments/*.gone` | half removed |
//! | `cursors/NAME.json` | [`Cursor`](flowtilla_agent_core::spool::Cursor) of the collector NAME, sealed |
//! | `checkpoint` | `FTCK`, u32 sum of sequence and octets, u64 sequence, u64 length, octets |
//! | `ledger` | `FTLG`, u32 sum of the octets, octets: what the owner wants kept, not known here |
//! | `lost` | JSON array of [`LostRange`], ascending, sealed: what is missing and is not told by its place |
//!
//! Sealed: `{"sum":"%08x","value":JSON}`, and the sum is that of the octets of JSON. A file that speaks of sequences more
//! than 2^20 beyond the mark, or beyond 2^63, counts as damaged, as one with a wrong sum does.
//!
//! A segment holds the records from its name up to the next one's name. Key: u64 big-endian, first sequence. Value: u32
//! length of the octets, u32 sum of (key, records, octets), u32 records, octets. A missing record without a range in `lost`
//! was evicted when it is older than the oldest segment, else it is damaged.
//!
//! Order of writes: mark and fdatasync; values into the head, flush, fdatasync of `db`; only then they are durable. A
//! segment is made, `conf`, `db`, the directory and its parent are synced, and then it is written. It is sealed at 4 MiB
//! or 2,048 values: flush, close, sync of every file and directory. It is removed by rename, then unlink. Other files are
//! written under another name, synced, renamed, and the directory synced. A checkpoint waits until the records that it
//! covers are durable. At a start only the newest segment is opened; the next sequence is one more than anything on the
//! disk speaks of. The mark is the newest sequence in memory at the time: what a crash took is told but for what was
//! appended since the last sync, and what a stop could not write is told whole.
//!
//! # Measured
//!
//! sled 0.34.7, release, glibc, 2 cores, ext4; values of 8 KiB that do not compress, 70 records each; resident memory of a
//! process with nothing else (2 to 3 MiB of it are its own).
//!
//! - **The allocator matters more than sled.** 35 values a sync, 128 values a Db: 35 MiB as glibc is; 26 with one arena;
//!   16 with malloc_trim after each Db; 7 with a fixed `M_MMAP_THRESHOLD` of 64 KiB, with or without arenas, at the same
//!   time of the processor (40 µs a value, 33 without). [`start`] sets it, for the whole process.
//! - **sled's segment_size**, 256 values a Db, threshold set: 128 KiB 7.1 MiB, 256 KiB 7.2, 512 KiB 8.2, 1 MiB 9.1, 2 MiB
//!   10.2; disk per octet of value 2.0, 2.3, 2.9, 3.3, 3.0. Below 512 KiB sled puts pages into `blobs/` (341 to 1,941
//!   files), which it never syncs; at 512 KiB none, as eight values of 8 KiB stay below a quarter of it.
//! - **Values a Db**, 512 KiB, 35 values a sync: 128 7.2 MiB and 3.1 disk octets an octet; 256 8.2 and 2.9; 512 10.8 and
//!   2.2; 1,024 14.4 and 1.9. With one value a sync 512 take 1.75. So 4 MiB. Small values (150 octets): 4,096 a Db 6.2 MiB,
//!   so 2,048. Cache capacity and mode make no difference at this size.
//! - **The spool as it is**, with a reader that keeps up, most resident: 1 record/s 4.7 MiB after start, 7.4 after an hour;
//!   100/s 13.3; 5,000/s 16.9, and 16.3 with the collector away (the tail's 2 MiB included), flat over 17 segments.
//!   Processor: 70 µs a value, 1.05 µs a record at 5,000/s; 2 ms a sync at 1/s. Disk: 2.3 octets an octet, 270 a record.
//! - **300,000 records/s** of values are taken without loss, at 1.07 µs a record and 22 MiB. That backlog, 2.05 GiB of
//!   values, 5.8 GiB on the disk in 522 segments, opens in 17 to 21 ms and 4.6 MiB; 300 MiB are read in 1.1 s and 9.4 MiB.
//! - **Power cut** (ext4, commit=300, on a loop device, writer stopped at a random moment, image copied without a sync,
//!   copy mounted): 30 of 30 had every durable record, 10 of them cut in the middle of a sync; a reader opened sealed
//!   segments meanwhile. Without the fdatasync of `db` the first cut lost a segment. **kill -9**: 100 of 100.
//! - **Damage** (one or two files of a segment cut, zeroed or flipped, 2,000 seeds): never a panic that left the thread;
//!   records read and records told as lost always made the whole. sled panics on a flipped bit in its log, and refuses a
//!   damaged `conf` or snapshot, though it can do without them: they are removed for one more try.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent_core::spool::Value;
use flowtilla_proto::ids::CollectorName;
use tokio::sync::watch;

mod disk;
mod files;
mod lost;
mod reader;
mod segment;
mod shared;
mod start;
mod store;
pub mod survey;
mod tail;
mod told;

pub use lost::{LostCause, LostRange};
pub use reader::{Read, Reader};
pub use told::{
    Bounds, Checkpoint, Opened, Replayed, SetAside, SpoolError, SpoolOptions, SpoolState, SpoolStatus,
};

use crate::clock;
use files::Layout;
use shared::{Checkpoints, Command, Ledger, Shared, held};
use start::{Files, begin_at, claim, settle, settle_allocator};
use store::{Reply, Store};
use tail::Tail;

/// Largest value, in octets. sled's pages grow to eight of them, and must stay below a quarter of its segment: larger
/// ones go to files that it never syncs.
pub const VALUE_OCTETS_MAX: usize = 8 << 10;
/// Octets that readers ask the disk for at once, at most.
const READ_OCTETS_MAX: usize = 1 << 20;
/// A checkpoint is wanted after so many octets of values: what is replayed at a start, at most, is twice of it.
const CHECKPOINT_OCTETS: u64 = 8 << 20;
/// A checkpoint is wanted after this long, if anything was appended or left out.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(60);

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
    /// cannot be told; [`SpoolError::Unsafe`] when another user can change it; [`SpoolError::Thread`] when no thread can be started.
    pub fn open(options: SpoolOptions) -> Result<(Self, Opened), SpoolError> {
        settle_allocator();
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
            ledger: Mutex::new(Ledger {
                octets: files.ledger.clone().unwrap_or_default(),
                changed: false,
            }),
            set_aside: Mutex::new(claim.set_aside),
            status: watch::Sender::new(SpoolStatus::default()),
            readable: watch::Sender::new(0),
            commands: Mutex::new(disk::channel().0),
            generation: AtomicU64::new(0),
            busy_since: AtomicU64::new(0),
            memory_only: AtomicBool::new(false),
            woken: AtomicBool::new(false),
            closing: Mutex::new(None),
            stopping: AtomicBool::new(false),
            lock: Mutex::new(claim.lock),
            layout,
            bounds: Mutex::new(Bounds::from(&options).at_least()),
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
            ledger: files.ledger,
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
        } else if pressing && !shared.woken.swap(true, Ordering::AcqRel) {
            // It looks within half a second anyway.
            let _ = shared.ask(Command::Wake);
        }
    }

    /// Changes what it may take, from the next sync on.
    pub fn set_bounds(&self, bounds: Bounds) {
        *held(&self.shared.bounds) = bounds.at_least();
    }

    /// Last sequence appended.
    #[must_use]
    pub fn newest(&self) -> u64 {
        held(&self.shared.tail).newest()
    }

    /// Something was reported that is in no value: a checkpoint is to say so in time, appended values or not.
    pub fn want_checkpoint(&self) {
        let mut checkpoints = held(&self.shared.checkpoints);
        checkpoints.octets = checkpoints.octets.max(1);
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

    /// Keeps a few octets for the next start. Never waits; the newest win, and are on the disk within about a second.
    pub fn keep_ledger(&self, octets: Bytes) {
        let mut ledger = held(&self.shared.ledger);
        ledger.changed |= ledger.octets != octets;
        ledger.octets = octets;
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
        let asked = self.shared.ask(Command::Read(after, READ_OCTETS_MAX, reply));
        let patience = self.shared.options.patience;
        match asked.then(|| receiver.recv_timeout(patience)) {
            Some(Ok(Reply::Values(values))) => Read::Values(values),
            Some(Ok(Reply::Lost { upto, cause })) => Read::Lost { upto, cause },
            Some(Ok(Reply::Unavailable { upto })) => self.shared.give_up(after, upto),
            _ => self.shared.give_up(after, None),
        }
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
                cursors.put(name.clone(), cursor.clone());
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
        self.forget_name(collector.as_str());
    }

    fn forget_name(&self, collector: &str) {
        let newest = self.newest();
        let mut cursors = held(&self.shared.cursors);
        if let Some(cursor) = cursors.by_collector.remove(collector) {
            let waiting = newest.saturating_sub(cursor.taken);
            tracing::warn!(
                collector,
                waiting,
                "the collector's place in the spool is dropped"
            );
        }
        cursors.dirty.remove(collector);
        cursors.forgotten.insert(collector.to_owned());
    }

    /// Drops the cursors of all other collectors, as [`Spool::forget`] does.
    pub fn retain(&self, keep: &[CollectorName]) {
        let names: Vec<_> = held(&self.shared.cursors)
            .by_collector
            .keys()
            .filter(|name| !keep.iter().any(|kept| kept.as_str() == *name))
            .cloned()
            .collect();
        for name in names {
            self.forget_name(&name);
        }
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
        *held(&self.shared.closing) = Some(sender);
        // It is looked at after each command: a full queue needs no more of them.
        let _ = self.shared.ask(Command::Wake);
        let clean = receiver.recv_timeout(grace).unwrap_or(false);
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
