//! What waits to be said on one stream, and nothing that is out of date.
//!
//! The fleet's thread puts [`Speech`] in and never waits; the stream takes messages out as the agent reads them. State is kept
//! in its newest form only (one offer, one list a collector), questions and answers in a queue of [`QUEUE_MAX`]; so a stream
//! that is not read holds a bounded amount, and catches up in one step. The last word takes the place of all others.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use flowtilla_proto::wire::session::{self as wire, EndReason, to_agent::Body};
use futures_util::Stream;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;
use tonic::Status;

use super::{HEARTBEAT_MS, OfferOut, Speech};

/// Most questions and answers that wait for one agent; further ones are left out, and the asker goes without.
///
/// A stream takes thousands a second. Half of it loses some in a burst; double it, and 10,000 stalled streams hold more memory.
pub const QUEUE_MAX: usize = 128;

/// How long something may wait without one message being taken, in milliseconds, before the stream counts as slow.
///
/// A host that swaps takes seconds. Half of it ends such streams; double it, and a stalled one is noticed after a minute.
pub const SLOW_MS: u64 = 30_000;

/// What waits for one stream.
pub struct Mailbox {
    /// SPIFFE ID of the agent.
    id: String,
    inner: Mutex<Inner>,
    waker: AtomicWaker,
    gone: Notify,
}

#[derive(Default)]
struct Inner {
    welcome: Option<u32>,
    short_ids: Option<BTreeMap<String, u32>>,
    offer: Option<OfferOut>,
    members: BTreeMap<String, Arc<wire::Members>>,
    queue: VecDeque<Body>,
    bundle: Option<wire::Bundle>,
    ended: Option<(EndReason, String)>,
    closed: bool,
    /// Something was taken since this was asked.
    taken: bool,
    /// Since when nothing was taken although something waits.
    stalled_since_ms: Option<u64>,
}

impl Mailbox {
    /// An empty one for the agent of this SPIFFE ID.
    #[must_use]
    pub fn new(id: String) -> Arc<Self> {
        Arc::new(Self {
            id,
            inner: Mutex::default(),
            waker: AtomicWaker::new(),
            gone: Notify::new(),
        })
    }

    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Puts something in.
    pub fn put(&self, speech: Speech) {
        let mut inner = self.lock();
        if inner.closed {
            return;
        }
        match speech {
            Speech::Welcome { source_id } => inner.welcome = Some(source_id),
            Speech::ShortIds(ids) => inner.short_ids = Some(ids),
            Speech::Offer(offer) => inner.offer = Some(offer),
            Speech::Members(list) => {
                inner.members.insert(list.collector.clone(), list);
            }
            Speech::Question(question) if inner.queue.len() < QUEUE_MAX => {
                inner.queue.push_back(Body::Question(question));
            }
            Speech::Answer(answer) if inner.queue.len() < QUEUE_MAX => {
                inner.queue.push_back(Body::Answer(*answer));
            }
            Speech::Top(question) if inner.queue.len() < QUEUE_MAX => {
                inner.queue.push_back(Body::Top(question));
            }
            Speech::Question(_) | Speech::Answer(_) | Speech::Top(_) => {}
            Speech::Ended(reason, text) => {
                // The first reason is the true one: what comes after it follows from it.
                inner.ended.get_or_insert((reason, text));
                self.gone.notify_one();
            }
        }
        drop(inner);
        self.waker.wake();
    }

    /// Tells the agent that the roots of the trust domain have changed.
    pub fn put_bundle(&self, roots: Vec<Vec<u8>>) {
        self.lock().bundle = Some(wire::Bundle { roots });
        self.waker.wake();
    }

    /// Ends the stream without a word: the agent has gone.
    pub fn close(&self) {
        self.lock().closed = true;
        self.gone.notify_one();
        self.waker.wake();
    }

    /// Waits until the stream has ended, or ends with what is taken next. One task at a time may wait.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn ended(&self) {
        loop {
            {
                let inner = self.lock();
                if inner.closed || inner.ended.is_some() {
                    return;
                }
            }
            self.gone.notified().await;
        }
    }

    /// Whether something has waited for [`SLOW_MS`] without one message being taken. To be asked about once a sweep ([`super::SWEEP_MS`]).
    pub fn is_slow(&self, now_ms: u64) -> bool {
        let mut inner = self.lock();
        if inner.is_empty() || std::mem::take(&mut inner.taken) {
            inner.stalled_since_ms = None;
            return false;
        }
        let since = *inner.stalled_since_ms.get_or_insert(now_ms);
        now_ms.saturating_sub(since) >= SLOW_MS
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What is in there is whole at every step: a thread that panicked left nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next message; `None`: nothing waits. `Err`: the stream has ended.
    fn take(&self) -> Result<Option<wire::ToAgent>, ()> {
        let mut inner = self.lock();
        // A reason that waits is told even when the other half of the stream has been let go.
        if inner.closed && inner.ended.is_none() {
            return Err(());
        }
        let body = inner.take(&self.id);
        inner.taken |= body.is_some();
        Ok(body.map(|body| wire::ToAgent { body: Some(body) }))
    }
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.closed
            || (self.ended.is_none()
                && self.welcome.is_none()
                && self.short_ids.is_none()
                && self.offer.is_none()
                && self.bundle.is_none()
                && self.members.is_empty()
                && self.queue.is_empty())
    }

    fn take(&mut self, id: &str) -> Option<Body> {
        if let Some((reason, message)) = self.ended.take() {
            *self = Self {
                closed: true,
                ..Self::default()
            };
            return Some(Body::Ended(wire::Ended {
                reason: reason.into(),
                message,
            }));
        }
        if let Some(source_id) = self.welcome.take() {
            return Some(Body::Welcome(wire::Welcome {
                id: id.to_owned(),
                source_id,
                heartbeat_ms: HEARTBEAT_MS,
                keeps_effective: true,
            }));
        }
        // Before an offer: a collector that it brings is to know the agent.
        if let Some(by_collector) = self.short_ids.take() {
            return Some(Body::ShortSourceIds(wire::ShortSourceIds { by_collector }));
        }
        if let Some(offer) = self.offer.take() {
            return Some(Body::Offer(wire::Offer {
                nonce: offer.nonce,
                epoch: offer.mark.epoch,
                version: offer.mark.version,
                digest: offer.mark.digest.to_vec(),
                content: offer.content.octets.clone(),
                signature: Vec::new(),
                signature_key: String::new(),
                traceparent: offer.traceparent.to_string(),
            }));
        }
        if let Some(bundle) = self.bundle.take() {
            return Some(Body::Bundle(bundle));
        }
        if let Some((_, list)) = self.members.pop_first() {
            return Some(Body::Members(Arc::unwrap_or_clone(list)));
        }
        self.queue.pop_front()
    }
}

/// The stream that an agent reads. Dropped by the server when the agent has gone.
pub struct Reading(Arc<Mailbox>);

impl Reading {
    /// Reads a mailbox; only one stream may.
    #[must_use]
    pub fn new(mailbox: Arc<Mailbox>) -> Self {
        Self(mailbox)
    }
}

impl Stream for Reading {
    type Item = Result<wire::ToAgent, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Before looking: what is put in between wakes.
        self.0.waker.register(context.waker());
        match self.0.take() {
            Ok(Some(message)) => Poll::Ready(Some(Ok(message))),
            Ok(None) => Poll::Pending,
            Err(()) => Poll::Ready(None),
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_although_the_stream_was_let_go() {
        let mailbox = Mailbox::new("spiffe://fleet.test/agent/a".into());
        mailbox.put(Speech::Ended(wire::EndReason::Protocol, "twice hello".into()));
        mailbox.close();
        let told = mailbox
            .take()
            .expect("the reason")
            .and_then(|message| message.body);
        assert!(
            matches!(&told, Some(Body::Ended(ended)) if ended.message == "twice hello"),
            "{told:?}"
        );
        assert_eq!(mailbox.take().map(drop), Err(()));
    }
}
