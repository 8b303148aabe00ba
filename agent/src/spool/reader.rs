//! A collector's side of the spool: from memory, else from the disk thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flowtilla_agent_core::spool::{Cursor, Value};
use tokio::sync::{oneshot, watch};

use super::READ_OCTETS_MAX;
use super::lost::LostCause;
use super::shared::{Command, Shared, held};
use super::store::Reply;

/// Pause before a segment that cannot be read is asked again.
const READ_PAUSE: Duration = Duration::from_millis(500);

/// How long a cursor is waited for that must be on the disk. A sync that takes longer is a disk about to be given up.
const SAVE_PATIENCE: Duration = Duration::from_secs(2);

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

/// Reads for one collector.
#[derive(Debug)]
pub struct Reader {
    pub(super) shared: Arc<Shared>,
    pub(super) collector: String,
    pub(super) cursor: Cursor,
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
    /// Waits only for the disk. A segment that cannot be read counts as lost for this reader after `patience`. When the
    /// disk does not answer at all, everything on it does, as soon as memory is about to overflow: what is in memory then
    /// gets on its way.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn read(&self, after: u64, octets_max: usize) -> Read {
        let octets_max = octets_max.min(READ_OCTETS_MAX);
        let patience = self.shared.options.patience;
        loop {
            let mut unavailable = None;
            let read = self.read_patiently(after, octets_max, &mut unavailable);
            if let Ok(read) = tokio::time::timeout(patience, read).await {
                return read;
            }
            if unavailable.is_some() || held(&self.shared.tail).is_overflowing() {
                return self.shared.give_up(after, unavailable);
            }
        }
    }

    async fn read_patiently(&self, after: u64, octets_max: usize, unavailable: &mut Option<u64>) -> Read {
        loop {
            let generation = self.shared.generation.load(Ordering::Acquire);
            if let Some(read) = self.shared.read_tail(after, octets_max) {
                return read;
            }
            let (sender, mut receiver) = oneshot::channel();
            let reply = Box::new(move |reply| drop(sender.send(reply)));
            if self.shared.ask(Command::Read(after, octets_max, reply)) {
                let reply = loop {
                    match tokio::time::timeout(READ_PAUSE, &mut receiver).await {
                        Ok(reply) => break reply.ok(),
                        // The thread that was asked may hang for ever.
                        Err(_) if !self.shared.is_current(generation) => break None,
                        Err(_) => {}
                    }
                };
                match reply {
                    Some(Reply::Values(values)) => return Read::Values(values),
                    Some(Reply::Lost { upto, cause }) => return Read::Lost { upto, cause },
                    Some(Reply::Unavailable { upto }) => *unavailable = upto,
                    Some(Reply::InTail) | None => {}
                }
            }
            tokio::time::sleep(READ_PAUSE).await;
        }
    }

    /// Keeps the cursor. Never waits; the newest wins, and is on the disk within about a second.
    pub fn save(&self, cursor: Cursor) {
        let mut cursors = held(&self.shared.cursors);
        // A collector that was forgotten meanwhile stays forgotten.
        if let Some(kept) = cursors.by_collector.get(&self.collector)
            && *kept != cursor
        {
            cursors.put(self.collector.clone(), cursor);
        }
    }

    /// Keeps the cursor, and tells whether it is on the disk: as soon as it is, or after 2 s, or at once when the spool
    /// keeps to memory.
    pub fn save_now(&self, cursor: Cursor) -> impl Future<Output = bool> + use<> {
        self.save(cursor);
        let (puts, mut stored) = {
            let cursors = held(&self.shared.cursors);
            (cursors.puts, cursors.stored.subscribe())
        };
        let shared = Arc::clone(&self.shared);
        async move {
            if *stored.borrow() < puts && !shared.is_memory_only() {
                // Should it not be asked, it looks within a second anyway.
                let _ = shared.ask(Command::KeepHouse);
                let _ = tokio::time::timeout(SAVE_PATIENCE, stored.wait_for(|stored| *stored >= puts)).await;
            }
            *stored.borrow() >= puts
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Receiver;

    use super::*;
    use crate::spool::{Spool, SpoolOptions, disk};

    const DEADLINE: Duration = Duration::from_secs(30);

    fn asked(commands: &Receiver<Command>) -> Box<dyn FnOnce(Reply) + Send> {
        match commands.recv_timeout(DEADLINE) {
            Ok(Command::Read(0, _, reply)) => reply,
            Ok(_) => panic!("something else was asked"),
            Err(error) => panic!("nothing was asked: {error}"),
        }
    }

    #[test]
    fn a_thread_that_follows_one_that_hangs_is_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let options = SpoolOptions::in_directory(directory.path().join("spool"));
        let (spool, _) = Spool::open(options).unwrap();
        assert!(spool.close(DEADLINE));
        let shared = Arc::clone(&spool.shared);
        let reader = Reader {
            shared: Arc::clone(&shared),
            collector: "one".into(),
            cursor: Cursor::beginning_at(0),
        };
        shared.raise_readable(10);
        let (sender, hangs) = disk::channel();
        *held(&shared.commands) = sender;
        let reading = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_time().build().unwrap();
            runtime.block_on(reader.read(0, 1))
        });
        let unanswered = asked(&hangs);
        let (sender, follows) = disk::channel();
        *held(&shared.commands) = sender;
        shared.generation.fetch_add(1, Ordering::AcqRel);
        let value = Value {
            first: 1,
            records: 10,
            octets: vec![7; 10].into(),
        };
        asked(&follows)(Reply::Values(vec![value.clone()]));
        assert_eq!(reading.join().unwrap(), Read::Values(vec![value]));
        drop((unanswered, hangs));
    }
}
