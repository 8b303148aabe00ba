//! The disk thread: the only one that touches the disk, and may hang there; and the supervisor that gives it up then.
//!
//! In: commands (bounded), the tail, cursors and a checkpoint in [`Shared`]. Out: answers, the durable mark, status.
//! A turn: answer, then sync what is not durable (every `sync_interval`), then once a second cursors, checkpoint,
//! losses and what may go. After an error the head is never used again: memory only, and another try after a pause.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flowtilla_agent_core::backoff::Backoff;
use flowtilla_grpc::causes::chain;

use super::shared::{Command, Shared, held};
use super::store::{Reply, Store, StoreError, refused};
use crate::clock;

/// Commands that wait: one from each reader, at most 64 of them, and a few more.
const COMMANDS_MAX: usize = 128;
/// Octets of values that are written between two looks at the free disk.
const BATCH_OCTETS_MAX: usize = 1 << 20;
/// Batches in one turn; readers are answered between turns.
const BATCHES_MAX: usize = 4;
/// How often cursors are stored and old segments go.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Longest time in one call before the thread is given up. A disk that spins up takes a few seconds; double it, and the
/// tail must hold twice as much.
const HANG: Duration = Duration::from_secs(10);
/// How often the supervisor looks.
const WATCH: Duration = Duration::from_secs(1);
const NANOSECONDS: u64 = 1_000_000_000;

struct Disk {
    shared: Arc<Shared>,
    generation: u64,
    store: Option<Store>,
    backoff: Backoff,
    next_sync: u64,
    next_housekeeping: u64,
}

/// Starts the disk thread of the present generation.
pub(crate) fn start(shared: &Arc<Shared>, store: Option<Store>) -> io::Result<JoinHandle<()>> {
    let generation = shared.generation.load(Ordering::Acquire);
    let (sender, receiver) = channel();
    *held(&shared.commands) = sender;
    shared.woken.store(false, Ordering::Release);
    let mut disk = Disk {
        shared: Arc::clone(shared),
        generation,
        store,
        backoff: Backoff::new(fastrand::u64(..)),
        next_sync: 0,
        next_housekeeping: 0,
    };
    thread::Builder::new().name("spool-disk".into()).spawn(move || {
        let done = disk.run(&receiver);
        disk.store = None;
        if disk.shared.stopping.load(Ordering::Acquire) && disk.shared.is_current(disk.generation) {
            held(&disk.shared.lock).take();
        }
        if let Some((done, clean)) = done {
            let _ = done.try_send(clean);
        }
    })
}

/// A pair of ends for commands.
pub(crate) fn channel() -> (SyncSender<Command>, Receiver<Command>) {
    sync_channel(COMMANDS_MAX)
}

impl Disk {
    /// Runs until it is told to end, or given up. Hands back whom to tell that it has closed, and how.
    fn run(&mut self, commands: &Receiver<Command>) -> Option<(SyncSender<bool>, bool)> {
        loop {
            let now = clock::kernel_now().0;
            let wait = self.next_sync.min(self.next_housekeeping).saturating_sub(now);
            if self.shared.is_current(self.generation) {
                self.shared.busy_since.store(0, Ordering::Release);
            }
            let command = commands.recv_timeout(Duration::from_nanos(wait));
            if self.shared.step(self.generation).is_err()
                || matches!(command, Err(RecvTimeoutError::Disconnected))
            {
                return None;
            }
            match command {
                Ok(Command::Read(after, octets_max, reply)) => reply(self.read(after, octets_max)),
                Ok(Command::KeepHouse) => {
                    if !self.shared.is_memory_only() {
                        self.next_housekeeping = 0;
                    }
                }
                Ok(Command::Wake) => {
                    self.shared.woken.store(false, Ordering::Release);
                    if !self.shared.is_memory_only() {
                        self.next_sync = 0;
                    }
                }
                Err(_) => {}
            }
            let closing = held(&self.shared.closing).clone();
            if let Some(done) = closing {
                let clean = self.close();
                self.shared.stopping.store(true, Ordering::Release);
                return Some((done, clean));
            }
            if self.shared.stopping.load(Ordering::Acquire) {
                return None;
            }
            match self.turn() {
                Err(StoreError::Stale) => return None,
                Err(error) => self.fail(&error),
                Ok(()) => {}
            }
        }
    }

    fn turn(&mut self) -> Result<(), StoreError> {
        let now = clock::kernel_now().0;
        if now >= self.next_sync {
            let all = self.sync()?;
            let interval = nanoseconds(held(&self.shared.bounds).sync_interval);
            self.next_sync = clock::kernel_now().0 + if all { interval } else { 0 };
            if self.shared.is_memory_only() {
                self.shared.leave_memory_only();
            }
            self.backoff.handle_success();
        }
        if now >= self.next_housekeeping && !self.shared.is_memory_only() {
            self.next_housekeeping = now + nanoseconds(HOUSEKEEPING);
            self.keep_house()?;
        }
        Ok(())
    }

    /// The segments, listed if they were not yet.
    fn store(&mut self) -> Result<&mut Store, StoreError> {
        match &mut self.store {
            Some(store) => Ok(store),
            none => {
                self.shared.step(self.generation)?;
                let loaded = Store::load(&self.shared, self.generation);
                Ok(none.insert(loaded.map_err(refused("list the segments"))?))
            }
        }
    }

    /// Writes what is not durable; tells whether it was all.
    fn sync(&mut self) -> Result<bool, StoreError> {
        let shared = Arc::clone(&self.shared);
        let store = self.store()?;
        if shared.is_memory_only() {
            // Whether it is there again must be asked even when there is nothing to write.
            store.make_room()?;
            store.store_mark(shared.newest(), false)?;
        }
        for _ in 0..BATCHES_MAX {
            let batch = held(&shared.tail).unsynced(BATCH_OCTETS_MAX);
            if batch.is_empty() {
                return Ok(true);
            }
            store.write(&batch)?;
        }
        Ok(false)
    }

    fn read(&mut self, after: u64, octets_max: usize) -> Reply {
        let read = self.store().and_then(|store| store.read(after, octets_max));
        read.unwrap_or_else(|error| {
            tracing::debug!(%error, "a reader is not answered");
            Reply::Unavailable { upto: None }
        })
    }

    fn keep_house(&mut self) -> Result<(), StoreError> {
        // A segment goes by what is on the disk: what the cursors say in the meantime is not.
        let passed = self.shared.passed();
        self.store_cursors()?;
        self.store_checkpoint()?;
        held(&self.shared.losses).forget_upto(passed);
        if let Some(store) = &mut self.store {
            store.expire(passed)?;
            let (octets, segments) = (store.octets(), store.segments() as u64);
            let tail_octets = held(&self.shared.tail).octets();
            self.shared.count(|status| {
                status.octets = octets;
                status.segments = segments;
                status.tail_octets = tail_octets;
            });
        }
        self.store_ledger()?;
        self.store_losses()
    }

    fn store_cursors(&self) -> Result<(), StoreError> {
        let (dirty, forgotten, puts) = {
            let mut cursors = held(&self.shared.cursors);
            let names = std::mem::take(&mut cursors.dirty);
            let dirty: Vec<_> = names
                .into_iter()
                .filter_map(|name| {
                    cursors
                        .by_collector
                        .get(&name)
                        .cloned()
                        .map(|cursor| (name, cursor))
                })
                .collect();
            (dirty, std::mem::take(&mut cursors.forgotten), cursors.puts)
        };
        let layout = &self.shared.layout;
        let outcome = (|| {
            for (name, cursor) in &dirty {
                self.shared.step(self.generation)?;
                layout
                    .store_cursor(name, cursor)
                    .map_err(refused("write a cursor"))?;
            }
            for name in &forgotten {
                self.shared.step(self.generation)?;
                match fs::remove_file(layout.cursor(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(refused("remove a cursor")(error));
                    }
                    _ => {}
                }
            }
            Ok(())
        })();
        if outcome.is_ok() {
            held(&self.shared.cursors).stored.send_replace(puts);
        } else {
            // Once more when the disk is back; a collector that came back meanwhile is not forgotten.
            let mut cursors = held(&self.shared.cursors);
            for (name, _) in dirty {
                if cursors.by_collector.contains_key(&name) {
                    cursors.dirty.insert(name);
                }
            }
            for name in forgotten {
                if !cursors.by_collector.contains_key(&name) {
                    cursors.forgotten.insert(name);
                }
            }
        }
        outcome
    }

    /// Stores the checkpoint when all that it covers is durable: else a crash would lose what it says was reported.
    fn store_checkpoint(&self) -> Result<(), StoreError> {
        let durable = held(&self.shared.tail).durable();
        let pending = {
            let mut checkpoints = held(&self.shared.checkpoints);
            checkpoints.pending.take_if(|pending| pending.sequence <= durable)
        };
        let Some(checkpoint) = pending else {
            return Ok(());
        };
        self.shared.step(self.generation)?;
        let outcome = self.shared.layout.store_checkpoint(&checkpoint);
        let mut checkpoints = held(&self.shared.checkpoints);
        match outcome {
            Ok(()) => {
                checkpoints.stored = checkpoint.sequence;
                Ok(())
            }
            Err(error) => {
                checkpoints.pending.get_or_insert(checkpoint);
                Err(refused("write the checkpoint")(error))
            }
        }
    }

    fn store_ledger(&self) -> Result<(), StoreError> {
        let octets = {
            let mut ledger = held(&self.shared.ledger);
            if !std::mem::take(&mut ledger.changed) {
                return Ok(());
            }
            ledger.octets.clone()
        };
        let stored = self.shared.step(self.generation).and_then(|()| {
            self.shared
                .layout
                .store_ledger(&octets)
                .map_err(refused("write the ledger"))
        });
        held(&self.shared.ledger).changed |= stored.is_err();
        stored
    }

    fn store_losses(&self) -> Result<(), StoreError> {
        let octets = {
            let mut losses = held(&self.shared.losses);
            if !losses.take_changed() {
                return Ok(());
            }
            losses.encode()
        };
        self.shared.step(self.generation)?;
        let stored = octets
            .map_err(io::Error::from)
            .and_then(|octets| self.shared.layout.store_losses(&octets));
        stored.map_err(|error| {
            held(&self.shared.losses).set_changed();
            refused("write what was lost")(error)
        })
    }

    fn fail(&mut self, error: &StoreError) {
        if let Some(store) = &mut self.store {
            store.abandon_head();
        }
        let pause = self.backoff.handle_failure();
        tracing::warn!(why = %chain(error), pause_ms = pause.as_millis(), "the disk failed");
        self.shared.enter_memory_only(&chain(error));
        self.next_sync = clock::kernel_now().0 + nanoseconds(pause);
        self.next_housekeeping = self.next_sync;
    }

    fn close(&mut self) -> bool {
        let outcome = (|| {
            // Should the rest fail or not come to its end, the next start counts what is missing.
            if let Some(store) = &mut self.store {
                store.store_mark(self.shared.newest(), false)?;
            }
            while !self.sync()? {}
            self.keep_house()?;
            if let Some(store) = &mut self.store {
                store.seal()?;
                store.store_mark(self.shared.newest(), true)?;
            }
            let tail = held(&self.shared.tail);
            Ok::<bool, StoreError>(tail.durable() == tail.newest())
        })();
        if let Err(error) = &outcome {
            tracing::error!(why = %chain(error), "the spool did not close cleanly");
        }
        self.store = None;
        outcome.unwrap_or(false)
    }
}

/// Watches the disk thread until the other end of `stop` is gone.
pub(crate) fn watch(
    shared: &Arc<Shared>,
    mut disk: Option<JoinHandle<()>>,
    stop: Receiver<()>,
) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    let mut hung: Option<JoinHandle<()>> = None;
    thread::Builder::new().name("spool-watch".into()).spawn(move || {
        while matches!(stop.recv_timeout(WATCH), Err(RecvTimeoutError::Timeout)) {
            hung.take_if(|thread| thread.is_finished());
            let busy_since = shared.busy_since.load(Ordering::Acquire);
            let busy_for = clock::kernel_now().0.saturating_sub(busy_since);
            let hangs = busy_since > 0 && busy_for > nanoseconds(HANG);
            let ended = disk.as_ref().is_none_or(JoinHandle::is_finished);
            if shared.stopping.load(Ordering::Acquire) || !(hangs || ended) {
                continue;
            }
            let why = if hangs {
                format!("the disk has not answered for {} s", busy_for / NANOSECONDS)
            } else {
                "the disk thread ended".to_owned()
            };
            shared.enter_memory_only(&why);
            // One thread that hangs is given up, not one after another.
            if hung.is_some() && !ended {
                continue;
            }
            if !ended {
                hung = disk.take();
            }
            shared.generation.fetch_add(1, Ordering::AcqRel);
            shared.busy_since.store(0, Ordering::Release);
            match start(&shared, None) {
                Ok(thread) => disk = Some(thread),
                Err(error) => tracing::error!(%error, "no disk thread can be started"),
            }
        }
        drop(disk);
    })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use flowtilla_agent_core::spool::{Cursor, Value};

    use super::*;
    use crate::spool::{Spool, SpoolOptions};

    #[test]
    fn a_segment_goes_only_when_the_cursor_that_passed_it_is_stored() {
        let directory = tempfile::tempdir().unwrap();
        let options = SpoolOptions {
            free_octets_min: 0,
            ..SpoolOptions::in_directory(directory.path().join("spool"))
        };
        let (spool, _) = Spool::open(options).unwrap();
        assert!(spool.close(Duration::from_secs(30)));
        let shared = Arc::clone(&spool.shared);
        let mut store = Store::load(&shared, 0).unwrap();
        for first in [1, 11] {
            let octets = vec![7; 100].into();
            let records = 10;
            store
                .write(&[Value {
                    first,
                    records,
                    octets,
                }])
                .unwrap();
            store.seal().unwrap();
        }
        let mut disk = Disk {
            shared: Arc::clone(&shared),
            generation: 0,
            store: Some(store),
            backoff: Backoff::new(0),
            next_sync: 0,
            next_housekeeping: 0,
        };
        held(&shared.checkpoints).stored = 20;
        let save = |read| {
            let mut cursors = held(&shared.cursors);
            let cursor = Cursor {
                read,
                ..Cursor::beginning_at(0)
            };
            cursors.by_collector.insert("one".into(), cursor);
            cursors.dirty.insert("one".into());
        };
        save(5);
        std::thread::scope(|scope| {
            // The next one comes while that one is being written.
            scope.spawn(|| {
                while !held(&shared.cursors).dirty.is_empty() {
                    std::hint::spin_loop();
                }
                save(10);
            });
            disk.keep_house().unwrap();
        });
        let segments = |disk: &Disk| disk.store.as_ref().map(Store::segments);
        assert_eq!(segments(&disk), Some(2), "the cursor on the disk says 5");
        disk.keep_house().unwrap();
        assert_eq!(segments(&disk), Some(1));
    }
}
