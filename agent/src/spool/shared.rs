//! What the meter, the readers, the disk thread and its supervisor share.
//!
//! Every lock here is held for a few operations on memory, never over a call that may block. Order, where two are held:
//! `tail`, then `losses`. The generation says which disk thread is the true one: what another says is not heard.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flowtilla_agent_core::spool::Cursor;
use tokio::sync::watch;

use super::files::Layout;
use super::lost::{Losses, LostCause};
use super::store::{Reply, StoreError};
use super::tail::{Found, Tail};
use super::{Bounds, Checkpoint, Read, SetAside, SpoolOptions, SpoolState, SpoolStatus};
use crate::clock;

/// What the disk thread is asked.
pub(crate) enum Command {
    /// Values after a sequence, of about so many octets.
    Read(u64, usize, Box<dyn FnOnce(Reply) + Send>),
    /// Look what there is to do.
    Wake,
    /// Store cursors now.
    KeepHouse,
}

/// Cursors as the exporters last gave them.
#[derive(Debug, Default)]
pub(crate) struct Cursors {
    pub(crate) by_collector: BTreeMap<String, Cursor>,
    /// Not stored as they are.
    pub(crate) dirty: BTreeSet<String>,
    /// Files to remove.
    pub(crate) forgotten: BTreeSet<String>,
    /// How often one was put here, and how often when they were last stored.
    pub(crate) puts: u64,
    pub(crate) stored: watch::Sender<u64>,
}

impl Cursors {
    /// Keeps a cursor, to be stored.
    pub(crate) fn put(&mut self, collector: String, cursor: Cursor) {
        self.dirty.insert(collector.clone());
        self.by_collector.insert(collector, cursor);
        self.puts += 1;
    }
}

#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// Handed over, not stored.
    pub(crate) pending: Option<Checkpoint>,
    /// Sequence of the stored one; 0: none.
    pub(crate) stored: u64,
    /// Kernel time of the last one handed over.
    pub(crate) at: u64,
    /// Octets appended since.
    pub(crate) octets: u64,
}

/// What the owner wants kept beside the records.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) octets: Bytes,
    /// Not stored as it is.
    pub(crate) changed: bool,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: SpoolOptions,
    pub(crate) bounds: Mutex<Bounds>,
    pub(crate) layout: Layout,
    pub(crate) tail: Mutex<Tail>,
    pub(crate) losses: Mutex<Losses>,
    pub(crate) cursors: Mutex<Cursors>,
    pub(crate) checkpoints: Mutex<Checkpoints>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) set_aside: Mutex<Vec<SetAside>>,
    pub(crate) status: watch::Sender<SpoolStatus>,
    pub(crate) readable: watch::Sender<u64>,
    pub(crate) commands: Mutex<SyncSender<Command>>,
    /// Of the disk thread that is heard.
    pub(crate) generation: AtomicU64,
    /// Kernel time at which that thread last said that it does something; 0 while it waits.
    pub(crate) busy_since: AtomicU64,
    pub(crate) memory_only: AtomicBool,
    /// A [`Command::Wake`] waits: more of them would only keep others out.
    pub(crate) woken: AtomicBool,
    /// Sync everything and end; tell here whether that was possible. A new thread finds it too.
    pub(crate) closing: Mutex<Option<SyncSender<bool>>>,
    pub(crate) stopping: AtomicBool,
    /// Held as long as any thread may write.
    pub(crate) lock: Mutex<Option<File>>,
}

/// Locks. A thread that panicked left nothing half done under these short locks.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) == generation
    }

    /// Says that the disk thread is alive and about to do something that may hang.
    pub(crate) fn step(&self, generation: u64) -> Result<(), StoreError> {
        if !self.is_current(generation) {
            return Err(StoreError::Stale);
        }
        self.busy_since
            .store(clock::kernel_now().0.max(1), Ordering::Release);
        Ok(())
    }

    /// The values from `first` to `sequence` are on the disk, and so is all before them that is not lost.
    pub(crate) fn advance(&self, generation: u64, first: u64, sequence: u64) {
        let mut tail = held(&self.tail);
        if !self.is_current(generation) {
            return;
        }
        tail.advance(sequence);
        // They fell out of memory while they were being written.
        let back = held(&self.losses).retract(first, sequence, LostCause::SpoolUnwritable);
        drop(tail);
        self.raise_readable(sequence);
        self.count(|status| {
            status.durable = sequence;
            status.unwritable = status.unwritable.saturating_sub(back);
        });
    }

    pub(crate) fn raise_readable(&self, sequence: u64) {
        self.readable.send_if_modified(|readable| {
            let raised = *readable < sequence;
            *readable = sequence.max(*readable);
            raised
        });
    }

    pub(crate) fn is_memory_only(&self) -> bool {
        self.memory_only.load(Ordering::Acquire)
    }

    /// The disk cannot be used: from here on everything in memory may be read.
    pub(crate) fn enter_memory_only(&self, why: &str) {
        let entered = !self.memory_only.swap(true, Ordering::AcqRel);
        if entered {
            tracing::error!(why, "the spool keeps records in memory only");
        }
        let newest = held(&self.tail).newest();
        self.set_state(SpoolState::MemoryOnly { why: why.to_owned() });
        self.raise_readable(newest);
    }

    pub(crate) fn leave_memory_only(&self) {
        if self.memory_only.swap(false, Ordering::AcqRel) {
            tracing::warn!("the disk takes records again");
        }
        self.set_state(SpoolState::Working);
    }

    fn set_state(&self, state: SpoolState) {
        self.status.send_if_modified(|status| {
            let changed = status.state != state;
            status.state = state;
            changed
        });
    }

    /// Changes the status and tells it, unless it is as before.
    pub(crate) fn count(&self, change: impl FnOnce(&mut SpoolStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    pub(crate) fn count_lost(&self, records: u64, cause: LostCause) {
        self.count(|status| match cause {
            LostCause::Evicted => status.evicted += records,
            LostCause::SpoolDamaged => status.damaged += records,
            LostCause::SpoolUnwritable => status.unwritable += records,
        });
    }

    /// Last sequence that was given.
    pub(crate) fn newest(&self) -> u64 {
        held(&self.tail).newest()
    }

    /// Asks the disk thread. False: it does not take it.
    pub(crate) fn ask(&self, command: Command) -> bool {
        held(&self.commands).try_send(command).is_ok()
    }

    /// What memory answers a reader; `None`: ask the disk.
    pub(crate) fn read_tail(&self, after: u64, octets_max: usize) -> Option<Read> {
        let readable = *self.readable.borrow();
        if after >= readable {
            return Some(Read::Nothing);
        }
        let found = held(&self.tail).read(after, readable, octets_max);
        match found {
            Found::Values(values) if values.is_empty() => Some(Read::Nothing),
            Found::Values(values) => Some(Read::Values(values)),
            Found::Gap(next) => {
                let range = held(&self.losses).at(after + 1);
                Some(match range {
                    Some(range) => Read::Lost {
                        upto: range.last,
                        cause: range.cause,
                    },
                    None => Read::Lost {
                        upto: next - 1,
                        cause: LostCause::SpoolDamaged,
                    },
                })
            }
            Found::Older(_) => {
                // What fell out of memory before the disk had it is not asked of the disk.
                let range = held(&self.losses).at(after + 1);
                let fallen = range.filter(|range| range.cause == LostCause::SpoolUnwritable);
                fallen.map(|range| Read::Lost {
                    upto: range.last,
                    cause: range.cause,
                })
            }
        }
    }

    /// Goes on without the disk: what is on it, or only up to `upto`, counts as lost for whoever has waited long enough.
    pub(crate) fn give_up(&self, after: u64, upto: Option<u64>) -> Read {
        let first = held(&self.tail).first();
        let end = first.map_or(*self.readable.borrow(), |first| first - 1);
        let upto = upto.map_or(end, |upto| upto.min(end));
        if upto <= after {
            return Read::Nothing;
        }
        tracing::error!(
            after,
            upto,
            "the disk does not answer; a reader goes on without it"
        );
        Read::Lost {
            upto,
            cause: LostCause::SpoolUnwritable,
        }
    }

    /// The last sequence that every collector's application has handled and that the checkpoint covers.
    pub(crate) fn passed(&self) -> u64 {
        let checkpoint = held(&self.checkpoints).stored;
        checkpoint.min(self.passed_by_all())
    }

    /// The last sequence that every collector's application has handled.
    pub(crate) fn passed_by_all(&self) -> u64 {
        let cursors = held(&self.cursors);
        let read = cursors.by_collector.values().map(|cursor| cursor.read);
        read.min().unwrap_or(u64::MAX)
    }
}
