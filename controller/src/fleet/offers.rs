//! Offers on their way: when each was made, for those who watch the controller, and the span that its agent's work belongs to.
//!
//! Owned by the fleet's thread. One entry a stream at most, its newest offer; it goes with the answer or with the stream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_grpc::telemetry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tracing::Span;

use super::heard::Heard;
use super::{OfferOut, SessionId};

/// What became of offers and streams, since the start.
#[derive(Debug)]
pub struct Counts {
    /// Streams that were accepted.
    pub sessions: Counter,
    /// Offers made.
    pub offers: Counter,
    /// Offers that are in force.
    pub acks: Counter,
    /// Offers that were refused.
    pub nacks: Counter,
    /// From an offer to its ack, in seconds.
    pub answered: Histogram,
}

/// Bounds of the buckets for the time to an ack, in seconds: a lone agent on this host, the target for 10,000, and far beyond.
const ANSWERED_S: [f64; 12] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];

impl Default for Counts {
    fn default() -> Self {
        Self {
            sessions: Counter::default(),
            offers: Counter::default(),
            acks: Counter::default(),
            nacks: Counter::default(),
            answered: Histogram::new(ANSWERED_S),
        }
    }
}

/// Offers without an answer.
#[derive(Debug, Default)]
pub(super) struct Offers {
    pub(super) counts: Arc<Counts>,
    open: BTreeMap<SessionId, Open>,
}

#[derive(Debug)]
struct Open {
    nonce: u64,
    at_ms: u64,
    /// Ends with the answer, or when the offer is none any more.
    span: Span,
}

impl Offers {
    /// An offer is about to be made. Its trace context becomes that of its own span, when the deploy has one.
    pub(super) fn handle_offer(
        &mut self,
        session: SessionId,
        agent: &str,
        offer: &mut OfferOut,
        now_ms: u64,
    ) {
        self.counts.offers.inc();
        let span = telemetry::part_of(
            &offer.traceparent,
            || tracing::debug_span!(parent: None, "offer", agent, version = offer.mark.version, answer = tracing::field::Empty),
        );
        if let Some(own) = telemetry::traceparent_of(&span) {
            offer.traceparent = Arc::from(own);
        }
        let open = Open {
            nonce: offer.nonce,
            at_ms: now_ms,
            span,
        };
        self.open.insert(session, open);
    }

    /// An agent has said something, maybe an answer.
    pub(super) fn handle_heard(&mut self, session: SessionId, heard: &Heard, now_ms: u64) {
        let (nonce, answer) = match heard {
            Heard::Ack { nonce, .. } => (*nonce, "ack"),
            Heard::Nack(nack) => (nack.nonce, "nack"),
            _ => return,
        };
        if self.open.get(&session).is_none_or(|open| open.nonce != nonce) {
            return;
        }
        let Some(open) = self.open.remove(&session) else {
            return;
        };
        open.span.record("answer", answer);
        if answer == "nack" {
            self.counts.nacks.inc();
            return;
        }
        self.counts.acks.inc();
        let waited = Duration::from_millis(now_ms.saturating_sub(open.at_ms));
        self.counts.answered.observe(waited.as_secs_f64());
    }

    /// A stream has ended: nobody answers.
    pub(super) fn handle_closed(&mut self, session: SessionId) {
        self.open.remove(&session);
    }

    /// All streams have ended.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }
}
