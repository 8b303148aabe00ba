//! What one collector has, may have, and is still to get: sequences and two marks, no payloads.
//!
//! In: what becomes of the sequences one by one, sealed messages, and what happens on the connection. Out: the message to
//! send next, and the [`Cursor`]. Reads no clock, keeps no message header. Whatever was sent is only numbers here: what is
//! to be sent once more is read once more.
//!
//! ```text
//!        read              taken             sent     passed         newest
//!   ──────┤ at risk ─────────┤ on the way ─────┤ sealed, open ┤ unread ──┤ ───►  sequence
//!   gone   again at a restart  again at a break            in memory   on disk
//! ```
//! *taken*: the newest PONG: the collector's process has everything up to it. *read*: what lies [`READ_SLACK_MESSAGES`]
//! of any kind before it on this connection: that process has handled it, because its queue is no longer than that.
//! What earlier connections carried counts as read when this one is twice that far: such queues are read by turns;
//! until then it holds back what came after it.
//! A link that breaks goes back to *taken*, a collector that restarted to *read*. After a start nothing of this is known:
//! a new process begins at the cursor's *taken*, and goes back to its *read* when the collector turns out to be gone.
//! When another collector gets what follows, both marks meet at *taken*: what the former one took is its own.
//!
//! What became of a record (sent, withheld, lost, too large) is noted with the message that passes it, enters the law
//! when that message is taken, and leaves it when *taken* goes back: read twice, it still counts once.
//! Invariants, after each call: `begin ≤ read ≤ taken ≤ passed ≤ newest`; `made = newest - begin`,
//! `waiting = newest - taken`, `taken records + evicted + Σ dropped = taken - begin`; [`Cursor::at_risk`] is what became
//! of the records after *read* up to *taken*.
//! Source: design section 5; libzmq's receive queue of 1,000 messages (ZMQ_RCVHWM).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::loss::{CollectorLaw, DropPoint};
use crate::spool::{Cursor, LostCause, Passed};

/// Messages of any kind that a collector's process may have taken and not handled.
///
/// ZMQ_RCVHWM's default of 1,000, which ntopng does not change, and 100 for what is between the socket and ntopng's
/// loop. Half of it loses up to 500 messages when a busy collector is killed; double it doubles what comes twice.
pub const READ_SLACK_MESSAGES: u64 = 1_100;

/// Octets that a message costs beside its payload, for the bounds: its numbers, kept until it is read.
pub const MESSAGE_OVERHEAD_OCTETS: u64 = 96;

/// What becomes of records at risk when the collector restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnRestart {
    /// They are sent again.
    Replay,
    /// They are counted as [`DropPoint::CollectorRestarted`].
    Skip,
}

/// What becomes of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is in the message being filled.
    InMessage,
    /// The policy keeps it from this collector.
    Withheld,
    /// No message can carry it.
    TooLarge,
    /// The agent at the other end of its flow tells it.
    ReportedByPeer,
}

/// A message that goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The last sequence that it completes.
    pub last: u64,
    /// Records in it.
    pub records: u32,
    /// The payload.
    pub payload: Bytes,
}

struct Sealed {
    last: u64,
    passed: Passed,
    payload: Bytes,
}

struct Sent {
    last: u64,
    /// Its number on this connection, from 1.
    message: u64,
    octets: u64,
    /// What became of the records after the message before it up to `last`.
    passed: Passed,
}

/// The window of one collector. See the module.
pub struct Window {
    octets_max: u64,
    on_restart: OnRestart,
    begin: u64,
    read: u64,
    taken: u64,
    passed: u64,
    newest: u64,
    /// What became of the records up to `taken`; `made` and `waiting` stay 0 here.
    law: CollectorLaw,
    /// Of these, what became of the records after `read`.
    at_risk: Passed,
    /// Of these again, what earlier connections carried.
    earlier: Passed,
    /// Where `earlier` ends; `read` when it is empty.
    earlier_last: u64,
    /// At risk, then on the way; all over this connection, ascending.
    sent: VecDeque<Sent>,
    sealed: VecDeque<Sealed>,
    /// What becomes of the records after the last sealed message up to `passed`.
    open: Passed,
    /// Messages of any kind sent on this connection.
    messages: u64,
    on_the_way_octets: u64,
}

impl Window {
    /// A window without a connection that goes on from `cursor`. At most `octets_max` are on the way; a single message
    /// always may.
    #[must_use]
    pub fn new(octets_max: u64, on_restart: OnRestart, cursor: &Cursor) -> Self {
        let taken = cursor.taken.max(cursor.begin);
        let read = cursor.read.clamp(cursor.begin, taken);
        let at_risk = if read < taken {
            cursor.at_risk
        } else {
            Passed::default()
        };
        Self {
            octets_max,
            on_restart,
            begin: cursor.begin,
            read,
            taken,
            passed: taken,
            newest: taken,
            law: CollectorLaw {
                made: 0,
                waiting: 0,
                ..cursor.law
            },
            at_risk,
            earlier: at_risk,
            earlier_last: taken,
            sent: VecDeque::new(),
            sealed: VecDeque::new(),
            open: Passed::default(),
            messages: 0,
            on_the_way_octets: 0,
        }
    }

    /// Sequences up to this one can be read. A smaller one than before is no news.
    pub fn handle_readable(&mut self, newest: u64) {
        self.newest = self.newest.max(newest);
    }

    /// The last sequence of which it is known here what becomes of it: reading goes on behind it.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// Whether something is unread.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        self.passed < self.newest
    }

    /// Whether reading more makes sense: something is unread, nothing sealed waits, and the window is not full.
    #[must_use]
    pub fn wants_more(&self) -> bool {
        self.has_unread() && self.sealed.is_empty() && self.has_room(0)
    }

    /// The record after [`Self::passed`] becomes this.
    pub fn pass(&mut self, fate: Fate) {
        self.passed += 1;
        self.newest = self.newest.max(self.passed);
        match fate {
            Fate::InMessage => self.open.taken += 1,
            Fate::Withheld => self.open.withheld += 1,
            Fate::TooLarge => self.open.too_large += 1,
            Fate::ReportedByPeer => self.open.by_peer += 1,
        }
    }

    /// The records after [`Self::passed`] up to `upto` are lost.
    pub fn lose(&mut self, upto: u64, cause: LostCause) {
        let records = upto.saturating_sub(self.passed);
        self.passed += records;
        self.newest = self.newest.max(self.passed);
        match cause {
            LostCause::Evicted => self.open.evicted += records,
            LostCause::Damaged => self.open.damaged += records,
            LostCause::Unwritable => self.open.unwritable += records,
        }
    }

    /// Records in the message being filled.
    #[must_use]
    pub fn open_records(&self) -> u64 {
        self.open.taken
    }

    /// The message being filled is this one; it completes everything up to [`Self::passed`].
    pub fn seal(&mut self, payload: Bytes) {
        self.sealed.push_back(Sealed {
            last: self.passed,
            passed: std::mem::take(&mut self.open),
            payload,
        });
    }

    /// Takes what has passed without a message when nothing before it is still to be taken.
    pub fn settle(&mut self) {
        let waits = self.open.taken > 0 || !self.sealed.is_empty() || self.newest_on_the_way().is_some();
        if waits || self.passed == self.taken {
            return;
        }
        let open = std::mem::take(&mut self.open);
        enter(&mut self.law, &open);
        self.taken = self.passed;
        if self.sent.is_empty() && self.earlier_last == self.read {
            self.read = self.passed;
            self.earlier_last = self.passed;
            return;
        }
        // It is read when what came before it is.
        self.at_risk.add(&open);
        match self.sent.back_mut() {
            Some(sent) => {
                sent.passed.add(&open);
                sent.last = self.passed;
            }
            None => {
                self.earlier.add(&open);
                self.earlier_last = self.passed;
            }
        }
    }

    /// Counts one message on this connection that carries no records, and gives its number.
    pub fn count_message(&mut self) -> u64 {
        self.messages += 1;
        self.messages
    }

    /// Takes the next message to send, with its number on this connection; `None`: none is sealed, or the window is full.
    pub fn poll_message(&mut self) -> Option<(u64, Outgoing)> {
        if !self.is_ready() {
            return None;
        }
        let Sealed {
            last,
            passed,
            payload,
        } = self.sealed.pop_front()?;
        let message = self.count_message();
        let octets = cost(&payload);
        self.on_the_way_octets += octets;
        self.sent.push_back(Sent {
            last,
            message,
            octets,
            passed,
        });
        let records = u32::try_from(passed.taken).expect("a message holds at most 100 records");
        Some((
            message,
            Outgoing {
                last,
                records,
                payload,
            },
        ))
    }

    /// Whether [`Self::poll_message`] would give a message.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.sealed
            .front()
            .is_some_and(|sealed| self.has_room(cost(&sealed.payload)))
    }

    /// Whether no message is sealed and unsent.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.sealed.is_empty()
    }

    /// The last sequence on the way.
    #[must_use]
    pub fn newest_on_the_way(&self) -> Option<u64> {
        self.sent
            .back()
            .map(|sent| sent.last)
            .filter(|&last| last > self.taken)
    }

    /// The collector has everything up to this sequence; whether that was news. A sequence that does not end a message
    /// on the way over this connection is ignored.
    pub fn handle_taken(&mut self, sequence: u64) -> bool {
        if sequence <= self.taken {
            return false;
        }
        let Ok(index) = self.sent.binary_search_by_key(&sequence, |sent| sent.last) else {
            return false;
        };
        for sent in self.sent.range(..=index).rev() {
            if sent.last <= self.taken {
                break;
            }
            self.on_the_way_octets -= sent.octets;
            self.at_risk.add(&sent.passed);
            enter(&mut self.law, &sent.passed);
        }
        self.taken = sequence;
        let message = self.sent[index].message;
        self.settle();
        self.advance_read(message);
        true
    }

    /// The kernel has everything that was sent; all that can be known of a peer without PING. Whether that was news.
    pub fn handle_written(&mut self) -> bool {
        self.newest_on_the_way()
            .is_some_and(|last| self.handle_taken(last))
    }

    /// The connection is over: what comes after *taken* is to be read and sent again. Message numbers begin anew.
    pub fn handle_disconnected(&mut self) {
        self.earlier = self.at_risk;
        self.sent.clear();
        self.sealed.clear();
        self.open = Passed::default();
        self.earlier_last = self.taken;
        self.passed = self.taken;
        self.messages = 0;
        self.on_the_way_octets = 0;
    }

    /// The collector's process has ended, as far as one can see. Implies [`Self::handle_disconnected`]; a second call
    /// finds nothing at risk.
    pub fn handle_restarted(&mut self) {
        self.handle_disconnected();
        self.earlier = Passed::default();
        let at_risk = std::mem::take(&mut self.at_risk);
        match self.on_restart {
            OnRestart::Replay => {
                leave(&mut self.law, &at_risk);
                self.taken = self.read;
            }
            OnRestart::Skip => {
                self.law.taken = self.law.taken.saturating_sub(at_risk.taken);
                self.law.dropped.add(DropPoint::CollectorRestarted, at_risk.taken);
                self.read = self.taken;
            }
        }
        self.earlier_last = self.taken;
        self.passed = self.taken;
    }

    /// Another collector gets what follows. What the former one took counts as read: nothing goes back to it any more.
    pub fn handle_changed(&mut self, octets_max: u64, on_restart: OnRestart) {
        self.handle_disconnected();
        (self.octets_max, self.on_restart) = (octets_max, on_restart);
        self.read = self.taken;
        self.at_risk = Passed::default();
        self.earlier = Passed::default();
    }

    /// Gives up everything that waits, counted at `point`. For a spool that ends with the process: nobody reads it again.
    pub fn give_up(&mut self, point: DropPoint) {
        self.handle_disconnected();
        self.law.dropped.add(point, self.newest - self.taken);
        self.taken = self.newest;
        self.passed = self.newest;
        self.read = self.newest;
        self.at_risk = Passed::default();
        self.earlier = Passed::default();
        self.earlier_last = self.newest;
    }

    /// Law 2.
    #[must_use]
    pub fn law(&self) -> CollectorLaw {
        CollectorLaw {
            made: self.newest - self.begin,
            waiting: self.newest - self.taken,
            ..self.law
        }
    }

    /// All of it that is kept; whose it is among several is the driver's to say.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            begin: self.begin,
            read: self.read,
            taken: self.taken,
            law: self.law(),
            at_risk: self.at_risk,
            member: None,
        }
    }

    /// Octets held: sealed payloads, and [`MESSAGE_OVERHEAD_OCTETS`] for each message sealed or sent and not read.
    #[must_use]
    pub fn held_octets(&self) -> u64 {
        let sealed: u64 = self.sealed.iter().map(|sealed| cost(&sealed.payload)).sum();
        sealed + self.sent.len() as u64 * MESSAGE_OVERHEAD_OCTETS
    }

    fn has_room(&self, octets: u64) -> bool {
        self.on_the_way_octets == 0 || self.on_the_way_octets + octets <= self.octets_max
    }

    /// Lets go of what the collector has handled, `message` being the newest it has taken on this connection.
    fn advance_read(&mut self, message: u64) {
        if self.earlier_last > self.read {
            // Queues of earlier connections are read by turns with this one's: they are empty once as much of this one
            // is handled as a queue holds.
            if message < 2 * READ_SLACK_MESSAGES {
                return;
            }
            self.read = self.earlier_last;
            self.at_risk.remove(&std::mem::take(&mut self.earlier));
        }
        let is_read = |sent: &mut Sent| sent.message + READ_SLACK_MESSAGES <= message;
        while let Some(sent) = self.sent.pop_front_if(is_read) {
            self.read = sent.last;
            self.at_risk.remove(&sent.passed);
        }
        self.earlier_last = self.read;
    }
}

fn cost(payload: &Bytes) -> u64 {
    payload.len() as u64 + MESSAGE_OVERHEAD_OCTETS
}

fn places(passed: &Passed) -> [(DropPoint, u64); 5] {
    [
        (DropPoint::SpoolDamaged, passed.damaged),
        (DropPoint::SpoolUnwritable, passed.unwritable),
        (DropPoint::Withheld, passed.withheld),
        (DropPoint::RecordTooLarge, passed.too_large),
        (DropPoint::ReportedByPeer, passed.by_peer),
    ]
}

fn enter(law: &mut CollectorLaw, passed: &Passed) {
    law.taken += passed.taken;
    law.evicted += passed.evicted;
    for (point, records) in places(passed) {
        law.dropped.add(point, records);
    }
}

/// A cursor from a disk may hold anything: counters stop at 0, and law 2 then says that it does not hold.
fn leave(law: &mut CollectorLaw, passed: &Passed) {
    law.taken = law.taken.saturating_sub(passed.taken);
    law.evicted = law.evicted.saturating_sub(passed.evicted);
    for (point, records) in places(passed) {
        let counted = law.dropped.at(point);
        law.dropped.set(point, counted.saturating_sub(records));
    }
}
