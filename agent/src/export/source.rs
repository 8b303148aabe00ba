//! What is read from the spool for one collector, on its way into the machine.
//!
//! In: what the machine wants to read. Out: decoded values, lost ranges. At most one read is under way, and at most one
//! read's values are held, still as they are kept; they are decoded one by one when the machine asks. Never waits.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use flowtilla_agent_core::collector::{Collector, ReadWanted};
use flowtilla_agent_core::spool::{self, Value, value};
use flowtilla_agent_core::time::KernelTime;

use crate::spool::{LostCause, Read, Reader};

/// A read that is under way.
type Reading = Pin<Box<dyn Future<Output = Read> + Send>>;

/// The reading side of one exporter.
pub(super) struct Source {
    reader: Arc<Reader>,
    held: VecDeque<Value>,
    reading: Option<Reading>,
}

impl Source {
    pub(super) fn new(reader: Arc<Reader>) -> Self {
        Self {
            reader,
            held: VecDeque::new(),
            reading: None,
        }
    }

    /// Gives the machine one value, or one lost range, if it wants to read. `false`: it does not, or the spool was asked
    /// and [`Self::ready`] has the answer.
    pub(super) fn feed(&mut self, collector: &mut Collector, now: KernelTime) -> bool {
        let Some(ReadWanted { after, octets }) = collector.poll_read(now) else {
            return false;
        };
        if let Some(value) = self.next_held(after) {
            give(&value, collector, now);
            return true;
        }
        let reader = Arc::clone(&self.reader);
        let mut reading: Reading = Box::pin(async move { reader.read(after, octets).await });
        // What is in memory is there at once.
        match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => {
                self.handle(read, after, collector, now);
                true
            }
            Poll::Pending => {
                self.reading = Some(reading);
                false
            }
        }
    }

    /// The answer to a read that is under way; never when none is.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub(super) async fn ready(&mut self) -> Read {
        let reading = &mut self.reading;
        let read = poll_fn(|context| match reading {
            Some(reading) => reading.as_mut().poll(context),
            None => Poll::Pending,
        })
        .await;
        self.reading = None;
        read
    }

    /// Hands an answer on; `after` is where the machine's reading stands.
    pub(super) fn handle(&mut self, read: Read, after: u64, collector: &mut Collector, now: KernelTime) {
        match read {
            Read::Values(values) => {
                self.held = values.into();
                match self.next_held(after) {
                    Some(value) => give(&value, collector, now),
                    None => collector.handle_nothing(now),
                }
            }
            Read::Lost { upto, cause } => collector.handle_lost(upto, known(cause)),
            Read::Nothing => collector.handle_nothing(now),
        }
    }

    /// The connection is over: reading begins anew elsewhere.
    pub(super) fn forget(&mut self) {
        self.held.clear();
        self.reading = None;
    }

    /// The first held value that reaches beyond `after`.
    fn next_held(&mut self, after: u64) -> Option<Value> {
        while let Some(value) = self.held.pop_front() {
            if value.last() > after {
                return Some(value);
            }
        }
        None
    }
}

/// Decodes a value for the machine. One that cannot be read is lost, and so is what should have been before it.
fn give(kept: &Value, collector: &mut Collector, now: KernelTime) {
    let lost = match value::decode(&kept.octets, Some(kept.first)) {
        Ok((_, records)) if records.len() as u64 == u64::from(kept.records) => {
            let follows = kept.first <= collector.reading_after() + 1;
            if collector.handle_values(kept.first, &records, now) || follows {
                return; // Taken, or nobody wants it any more.
            }
            tracing::error!(first = kept.first, "the spool left records out without a cause");
            kept.first - 1
        }
        Ok((_, records)) => {
            tracing::error!(
                first = kept.first,
                expected = kept.records,
                found = records.len(),
                "a value of another length"
            );
            kept.last()
        }
        Err(error) => {
            tracing::error!(first = kept.first, %error, "a value cannot be read");
            kept.last()
        }
    };
    collector.handle_lost(lost, spool::LostCause::Damaged);
}

fn known(cause: LostCause) -> spool::LostCause {
    match cause {
        LostCause::Evicted => spool::LostCause::Evicted,
        LostCause::SpoolDamaged => spool::LostCause::Damaged,
        LostCause::SpoolUnwritable => spool::LostCause::Unwritable,
    }
}
