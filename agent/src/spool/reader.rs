//! A collector's side of the spool: from memory, else from the disk thread.

use std::sync::Arc;
use std::time::Duration;

use flowtilla_agent_core::spool::{Cursor, Value};
use tokio::sync::{oneshot, watch};

use super::READ_OCTETS_MAX;
use super::lost::LostCause;
use super::shared::{Command, Shared, held};
use super::store::Reply;

/// Pause before a segment that cannot be read is asked again.
const READ_PAUSE: Duration = Duration::from_millis(500);

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
