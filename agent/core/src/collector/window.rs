//! What one collector has, may have, and is still to get: batches under sequence numbers, and two marks.
//!
//! In: sealed batches, and what happens on the connection. Out: the batch to send next. Reads no clock, keeps no
//! message header. Sequences are u64 and never come again; a disk can take the place of the memory behind them.
//!
//! ```text
//!        read              taken            sent
//!   ──────┤ at risk ─────────┤ on the way ────┤ unsent ───────►  sequence
//!   gone   kept for a restart  kept for a break  to be sent
//! ```
//! *taken*: the newest PONG: the collector's process has everything up to it. *read*: what lies [`READ_SLACK_MESSAGES`]
//! of any kind before it on this connection: that process has handled it, because its queue is no longer than that.
//! What earlier connections carried counts as read when this one is twice that far: such queues are read by turns;
//! until then it holds back what came after it.
//! A link that breaks puts what is on the way back before the unsent; a collector that restarted also what is at risk.
//!
//! Invariants: `made = taken + waiting + Σ dropped` after each call; payloads held ≤ `queue_octets_max`, records waiting
//! ≤ `queue_records_max`; at these bounds copies kept for a restart go first, then the oldest unsent batch, counted.
//! Source: design section 5; libzmq's receive queue of 1,000 messages (ZMQ_RCVHWM).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::loss::{CollectorLaw, DropPoint};

/// Messages of any kind that a collector's process may have taken and not handled.
///
/// ZMQ_RCVHWM's default of 1,000, which ntopng does not change, and 100 for what is between the socket and ntopng's
/// loop. Half of it loses up to 500 messages when a busy collector is killed; double it doubles what comes twice.
pub const READ_SLACK_MESSAGES: u64 = 1_100;

/// Octets that a held batch costs beside its payload, for the bounds.
pub const BATCH_OVERHEAD_OCTETS: u64 = 64;

/// What may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimits {
    /// Most octets sent and not known to be taken; a single batch may always be.
    pub window_octets: u64,
    /// Most records waiting: unsent, or sent and not known to be taken.
    pub queue_records_max: u64,
    /// Most octets of payload held for any purpose, [`BATCH_OVERHEAD_OCTETS`] a batch included.
    pub queue_octets_max: u64,
    /// Of these, most octets for a collector's restart.
    pub replay_octets_max: u64,
}

/// What becomes of batches at risk when the collector restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRestart {
    /// They are sent again.
    Replay,
    /// They are counted as [`DropPoint::CollectorRestarted`].
    Skip,
}

/// A batch that goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its sequence, from 1.
    pub sequence: u64,
    /// Records in it.
    pub records: u32,
    /// The payload.
    pub payload: Bytes,
}

struct Sent {
    sequence: u64,
    records: u32,
    /// Number of its message on this connection, from 1; `None`: it went over an earlier one.
    message: Option<u64>,
    /// `None`: at risk, and no longer held.
    payload: Option<Bytes>,
}

/// The window of one collector. See the module.
pub struct Window {
    limits: WindowLimits,
    on_restart: OnRestart,
    unsent: VecDeque<Outgoing>,
    /// At risk, then on the way; ascending by sequence.
    sent: VecDeque<Sent>,
    newest: u64,
    taken: u64,
    /// Messages of any kind sent on this connection.
    messages: u64,
    /// Records at risk of earlier connections that are not even remembered by batch.
    forgotten: u64,
    on_the_way_octets: u64,
    at_risk_octets: u64,
    unsent_octets: u64,
    law: CollectorLaw,
}

impl Window {
    /// An empty window without a connection.
    #[must_use]
    pub fn new(limits: WindowLimits, on_restart: OnRestart) -> Self {
        Self {
            limits,
            on_restart,
            unsent: VecDeque::new(),
            sent: VecDeque::new(),
            newest: 0,
            taken: 0,
            messages: 0,
            forgotten: 0,
            on_the_way_octets: 0,
            at_risk_octets: 0,
            unsent_octets: 0,
            law: CollectorLaw::default(),
        }
    }

    /// Queues a batch; at the bounds the oldest unsent one goes.
    pub fn queue(&mut self, payload: Bytes, records: u32) {
        self.newest += 1;
        let batch = Outgoing {
            sequence: self.newest,
            records,
            payload,
        };
        self.law.made += u64::from(records);
        self.law.waiting += u64::from(records);
        self.unsent_octets += cost(&batch.payload);
        self.unsent.push_back(batch);
        self.enforce_queue_bounds();
    }

    /// Counts records that were made for this collector and are lost before they are in a batch.
    pub fn count_dropped(&mut self, point: DropPoint, records: u64) {
        self.law.made += records;
        self.law.dropped.add(point, records);
    }

    /// Counts one message on this connection that is not a batch, and gives its number.
    pub fn count_message(&mut self) -> u64 {
        self.messages += 1;
        self.messages
    }

    /// Takes the next batch to send, with the number of its message on this connection; `None`: nothing is unsent, or
    /// the window is full.
    pub fn poll_batch(&mut self) -> Option<(u64, Outgoing)> {
        let octets = cost(&self.unsent.front()?.payload);
        if !self.has_room(octets) {
            return None;
        }
        let batch = self.unsent.pop_front().expect("looked at above");
        let message = self.count_message();
        self.unsent_octets -= octets;
        self.on_the_way_octets += octets;
        self.sent.push_back(Sent {
            sequence: batch.sequence,
            records: batch.records,
            message: Some(message),
            payload: Some(batch.payload.clone()),
        });
        Some((message, batch))
    }

    /// Whether [`Self::poll_batch`] would give a batch.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.unsent
            .front()
            .is_some_and(|batch| self.has_room(cost(&batch.payload)))
    }

    /// Whether nothing is unsent.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Sequence of the newest batch on the way.
    #[must_use]
    pub fn newest_on_the_way(&self) -> Option<u64> {
        self.sent
            .back()
            .map(|sent| sent.sequence)
            .filter(|&sequence| sequence > self.taken)
    }

    /// The collector has everything up to this sequence; whether that was news. A sequence that is not on the way over
    /// this connection is ignored.
    pub fn handle_taken(&mut self, sequence: u64) -> bool {
        let Ok(index) = self.sent.binary_search_by_key(&sequence, |sent| sent.sequence) else {
            return false;
        };
        let Some(message) = self.sent[index].message else {
            return false;
        };
        if sequence <= self.taken {
            return false;
        }
        for sent in self.sent.range(..=index).rev() {
            if sent.sequence <= self.taken {
                break;
            }
            let octets = sent.payload.as_ref().map_or(0, cost);
            self.on_the_way_octets -= octets;
            self.at_risk_octets += octets;
            self.law.waiting -= u64::from(sent.records);
            self.law.taken += u64::from(sent.records);
        }
        self.taken = sequence;
        self.advance_read(message);
        self.enforce_replay_bound();
        true
    }

    /// The kernel has everything that was sent; all that can be known of a peer without PING. Whether that was news.
    pub fn handle_written(&mut self) -> bool {
        self.newest_on_the_way()
            .is_some_and(|sequence| self.handle_taken(sequence))
    }

    /// The connection is over: what was on the way is to be sent again. Message numbers begin anew.
    pub fn handle_disconnected(&mut self) {
        while let Some(sent) = self.sent.pop_back_if(|sent| sent.sequence > self.taken) {
            let payload = sent.payload.expect("what is on the way is held");
            self.on_the_way_octets -= cost(&payload);
            self.put_back(sent.sequence, sent.records, payload);
        }
        self.sent.iter_mut().for_each(|sent| sent.message = None);
        self.messages = 0;
        self.merge_forgotten();
    }

    /// The collector's process has ended, as far as one can see. Implies [`Self::handle_disconnected`]; a second call
    /// finds nothing at risk.
    pub fn handle_restarted(&mut self) {
        self.handle_disconnected();
        let mut lost = std::mem::take(&mut self.forgotten);
        while let Some(sent) = self.sent.pop_back() {
            let records = u64::from(sent.records);
            self.taken = self.taken.min(sent.sequence - 1);
            match sent.payload {
                Some(payload) => {
                    self.at_risk_octets -= cost(&payload);
                    if self.on_restart == OnRestart::Replay {
                        self.law.taken -= records;
                        self.law.waiting += records;
                        self.put_back(sent.sequence, sent.records, payload);
                    } else {
                        lost += records;
                    }
                }
                None => lost += records,
            }
        }
        self.law.taken -= lost;
        self.law.dropped.add(DropPoint::CollectorRestarted, lost);
        self.enforce_queue_bounds();
    }

    /// Gives up everything that waits, counted at `point`.
    pub fn give_up(&mut self, point: DropPoint) {
        self.handle_disconnected();
        self.unsent.clear();
        self.unsent_octets = 0;
        let waiting = std::mem::take(&mut self.law.waiting);
        self.law.dropped.add(point, waiting);
    }

    /// Law 2, as far as batches go.
    #[must_use]
    pub fn law(&self) -> CollectorLaw {
        self.law
    }

    /// Octets held for any purpose, [`BATCH_OVERHEAD_OCTETS`] a batch included.
    #[must_use]
    pub fn held_octets(&self) -> u64 {
        self.unsent_octets + self.on_the_way_octets + self.at_risk_octets
    }

    /// Records that a restart of the collector would put at risk.
    #[must_use]
    pub fn at_risk_records(&self) -> u64 {
        let known: u64 = self
            .sent
            .iter()
            .take_while(|sent| sent.sequence <= self.taken)
            .map(|sent| u64::from(sent.records))
            .sum();
        known + self.forgotten
    }

    fn has_room(&self, octets: u64) -> bool {
        self.on_the_way_octets == 0 || self.on_the_way_octets + octets <= self.limits.window_octets
    }

    fn put_back(&mut self, sequence: u64, records: u32, payload: Bytes) {
        self.unsent_octets += cost(&payload);
        self.unsent.push_front(Outgoing {
            sequence,
            records,
            payload,
        });
    }

    /// Lets go of what the collector has handled, `message` being the newest it has taken on this connection.
    fn advance_read(&mut self, message: u64) {
        let own = message.saturating_sub(READ_SLACK_MESSAGES);
        // Queues of earlier connections are read by turns with this one's: they are empty once as much of this one is
        // handled as a queue holds.
        let earlier = message >= 2 * READ_SLACK_MESSAGES;
        if earlier {
            self.forgotten = 0;
        }
        let is_read = |sent: &mut Sent| sent.message.map_or(earlier, |message| message <= own);
        while let Some(sent) = self.sent.pop_front_if(is_read) {
            self.at_risk_octets -= sent.payload.as_ref().map_or(0, cost);
        }
    }

    fn enforce_replay_bound(&mut self) {
        while self.at_risk_octets > self.limits.replay_octets_max && self.forget_oldest() {}
    }

    fn enforce_queue_bounds(&mut self) {
        while self.law.waiting > self.limits.queue_records_max
            || self.held_octets() > self.limits.queue_octets_max
        {
            if self.held_octets() > self.limits.queue_octets_max && self.forget_oldest() {
                continue;
            }
            let Some(batch) = self.unsent.pop_front() else {
                break;
            };
            self.unsent_octets -= cost(&batch.payload);
            self.law.waiting -= u64::from(batch.records);
            self.law
                .dropped
                .add(DropPoint::QueueOverflow, u64::from(batch.records));
        }
    }

    /// Lets go of the oldest payload kept for a restart; `false`: there is none.
    fn forget_oldest(&mut self) -> bool {
        if self.at_risk_octets == 0 {
            return false;
        }
        let Some(oldest) = self.sent.iter_mut().find(|sent| sent.payload.is_some()) else {
            return false;
        };
        self.at_risk_octets -= oldest.payload.take().as_ref().map_or(0, cost);
        self.merge_forgotten();
        true
    }

    /// Batches of earlier connections whose payload is gone need no entry each.
    fn merge_forgotten(&mut self) {
        let is_hollow = |sent: &mut Sent| sent.message.is_none() && sent.payload.is_none();
        while let Some(sent) = self.sent.pop_front_if(is_hollow) {
            self.forgotten += u64::from(sent.records);
        }
    }
}

fn cost(payload: &Bytes) -> u64 {
    payload.len() as u64 + BATCH_OVERHEAD_OCTETS
}
