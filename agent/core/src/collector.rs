//! What one collector is to be sent, and when: the message being filled, the [`window`], pace, PINGs, announcements.
//!
//! In: how far the spool can be read, records out of it, time, and what happens on the connection. Out: what is to be
//! read next, [`Transmit`]s in the order in which they go over the wire, the moment to ask again, and the [`Cursor`] to
//! keep. Does no IO and reads no clock; message headers, ZMTP and the spool are the driver's.
//!
//! Records of a value fill the open message; one value may make several messages, several values may share one. While
//! more can be read it is filled up; at the head of the spool it goes after [`LINGER`].
//! Invariants: nothing is read that could not be sent, so at most the messages of one value are held; message ids count
//! by one from 1 on each connection, over all topics, given at the moment of sending; nothing is sent before the
//! collector subscribed to it; a PING with the last sequence sent follows each message, and one goes each second while
//! anything is on the way, so that a dead host shows; law 2 holds after each call.
//! Source: design section 5.

mod connection;
pub mod failover;
pub mod lag;
mod pace;
pub mod window;

use std::time::Duration;

use bytes::Bytes;

use crate::encode::header::{PayloadEncoding, Topic};
use crate::encode::tlv::{EncodedBatch, Push, RECORDS_MAX, TlvOptions};
use crate::encode::{nested, tlv};
use crate::flow::record::{CollectorSlot, FlowRecord};
use crate::loss::{CollectorLaw, DropPoint};
use crate::spool::{Cursor, LostCause};
use crate::time::KernelTime;

use connection::Connection;
use pace::Pace;
use window::{Fate, OnRestart, Window};

pub use connection::{EVENT_INTERVAL, LISTENING_INTERVAL, PING_INTERVAL, Wanted};
pub use pace::{
    PACE_BURST, RATE_FLOOR_DIVISOR, RECOVERY_DIVISOR, ROUND_TRIP_FACTOR, ROUND_TRIP_SLOW_MAX,
    ROUND_TRIP_SLOW_MIN,
};

/// How long a message that is not full waits for more records at the head of the spool.
///
/// Flows come in bursts of some milliseconds. Half of it makes twice the messages on a quiet host; double it, and what
/// a terminal shows at once comes to ntopng visibly later.
pub const LINGER: Duration = Duration::from_millis(100);

/// Octets of values that are read at once.
///
/// Eight full values, some 1,000 records. Half of it asks the disk twice as often for a backlog; double it, and each
/// collector holds that much more.
pub const READ_OCTETS: usize = 64 * 1_024;

/// Time before asking again for what should be readable and was not there.
///
/// A reader that lost a race with the disk has it at the next sync. Half of it only asks more.
pub const READ_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// How long something may be on the way without an acknowledgement before the collector counts as stalled.
///
/// ntopng polls once a second. Half of it cries at ordinary pauses; double it, and `status` is late.
pub const STALLED_AFTER: Duration = Duration::from_secs(3);

/// How one collector is fed.
#[derive(Clone, Copy, Debug)]
pub struct CollectorOptions {
    /// Its position in the policy.
    pub slot: CollectorSlot,
    /// In which form records are written: TLV, or nested JSON.
    pub encoding: PayloadEncoding,
    /// How records are written for it, in either form.
    pub tlv: TlvOptions,
    /// Most octets sent and not known to be taken; a single message may always be.
    pub window_octets: u64,
    /// Most records in one message, at most [`RECORDS_MAX`]; 0 counts as 1. Smaller ones are for tests.
    pub message_records_max: usize,
    /// What becomes of records at risk.
    pub on_restart: OnRestart,
    /// Most records a second.
    pub records_per_second: u64,
}

/// What the driver is to read from the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadWanted {
    /// The value with the record after this sequence, and those behind it.
    pub after: u64,
    /// Most octets of values.
    pub octets: usize,
}

/// What goes out next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// A message of topic `flow`.
    Flows {
        /// Its message id.
        id: u32,
        /// Frame 2.
        payload: Bytes,
    },
    /// An announcement is due. The driver makes its payload and calls [`Collector::announce`] for its id, or lets it be.
    Announce(Topic),
    /// A PING with this context: the last sequence sent before it, big-endian.
    Ping([u8; 8]),
}

/// How the connection stands, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No connection with its handshake done.
    Disconnected,
    /// The collector has not subscribed to flows.
    AwaitingSubscription,
    /// Records flow, or would.
    Streaming {
        /// Whether the collector answers PINGs.
        acknowledged: bool,
    },
    /// Something is on the way for [`STALLED_AFTER`] without an acknowledgement.
    Stalled,
}

/// Whether something was asked of the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Idle,
    Asked,
    /// Nothing was there: from when on to ask again.
    NothingUntil(KernelTime),
}

/// The message being filled.
enum Open {
    Tlv(tlv::Batch),
    Nested(nested::Batch),
}

impl Open {
    fn new(options: &CollectorOptions) -> Self {
        match options.encoding {
            PayloadEncoding::Tlv => Self::Tlv(tlv::Batch::new(options.tlv)),
            PayloadEncoding::Json => Self::Nested(nested::Batch::new(options.tlv)),
        }
    }

    fn push(&mut self, record: &FlowRecord) -> Push {
        match self {
            Self::Tlv(batch) => batch.push(record),
            Self::Nested(batch) => batch.push(record),
        }
    }

    fn finish(&mut self) -> Option<EncodedBatch> {
        match self {
            Self::Tlv(batch) => batch.finish(),
            Self::Nested(batch) => batch.finish(),
        }
    }
}

/// One collector. See the module.
pub struct Collector {
    slot: CollectorSlot,
    message_records_max: u64,
    open: Open,
    /// When the first record came into `open`.
    open_since: KernelTime,
    window: Window,
    reading: Reading,
    pace: Pace,
    connection: Option<Connection>,
    messages: u64,
}

impl Collector {
    /// A collector without a connection that goes on from `cursor`. What can be read is not known before
    /// [`Self::handle_readable`].
    #[must_use]
    pub fn new(options: &CollectorOptions, cursor: &Cursor) -> Self {
        Self {
            slot: options.slot,
            message_records_max: records_max(options),
            open: Open::new(options),
            open_since: KernelTime(0),
            window: Window::new(options.window_octets, options.on_restart, cursor),
            reading: Reading::Idle,
            pace: Pace::new(options.records_per_second),
            connection: None,
            messages: 0,
        }
    }

    /// The spool can be read up to this sequence. A smaller one than before is no news.
    pub fn handle_readable(&mut self, newest: u64) {
        self.window.handle_readable(newest);
        if let Reading::NothingUntil(_) = self.reading {
            self.reading = Reading::Idle;
        }
    }

    /// What to read next; answered by [`Self::handle_values`], [`Self::handle_lost`] or [`Self::handle_nothing`], and
    /// asked only once before that. `None`: nothing before [`Self::poll_timeout`] or another input.
    pub fn poll_read(&mut self, now: KernelTime) -> Option<ReadWanted> {
        if !self.may_send() || !self.window.wants_more() || self.read_at()? > now {
            return None;
        }
        self.reading = Reading::Asked;
        Some(ReadWanted {
            after: self.window.passed(),
            octets: READ_OCTETS,
        })
    }

    /// Where reading stands: the last sequence of which it is known here what becomes of it.
    #[must_use]
    pub fn reading_after(&self) -> u64 {
        self.window.passed()
    }

    /// The records of one value, the first of them under the sequence `first`; those already passed are left out.
    /// `false`: the value does not hold the record that was asked for, or nobody wants it any more; it is not used.
    pub fn handle_values(&mut self, first: u64, records: &[FlowRecord], now: KernelTime) -> bool {
        self.reading = Reading::Idle;
        let known = usize::try_from((self.window.passed() + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        if !self.wants_flows() || first > self.window.passed() + 1 || known >= records.len() {
            return false;
        }
        for record in &records[known..] {
            self.pass(record, now);
        }
        self.window.settle();
        true
    }

    /// The records after what was passed up to `upto` are not there any more.
    pub fn handle_lost(&mut self, upto: u64, cause: LostCause) {
        self.reading = Reading::Idle;
        if self.wants_flows() {
            self.window.lose(upto, cause);
            self.window.settle();
        }
    }

    /// Nothing was there: asks again after [`READ_AGAIN_AFTER`], or when more can be read.
    pub fn handle_nothing(&mut self, now: KernelTime) {
        self.reading = Reading::NothingUntil(now.after(READ_AGAIN_AFTER));
    }

    /// A connection has its handshake done. `acknowledges`: the peer answers PINGs.
    pub fn handle_connected(&mut self, acknowledges: bool, now: KernelTime) {
        self.handle_disconnected();
        self.pace.handle_connected();
        self.connection = Some(Connection::new(acknowledges, now));
    }

    /// The topics subscribed to are these.
    pub fn handle_subscriptions(&mut self, wanted: Wanted) {
        if let Some(connection) = &mut self.connection {
            connection.wanted = wanted;
        }
    }

    /// A PONG came. A context that is none of ours is ignored.
    pub fn handle_pong(&mut self, context: &[u8], now: KernelTime) {
        let (Some(connection), Ok(context)) = (&mut self.connection, <[u8; 8]>::try_from(context)) else {
            return;
        };
        let sequence = u64::from_be_bytes(context);
        if !connection.acknowledges || !self.window.handle_taken(sequence) {
            return;
        }
        if let Some(took) = connection.handle_pong(sequence, now) {
            self.pace.handle_round_trip(took, now);
        }
    }

    /// All that was transmitted is in the kernel. Means *taken* for a peer that answers no PING, nothing for others.
    pub fn handle_written(&mut self, now: KernelTime) {
        if let Some(connection) = &mut self.connection
            && !connection.acknowledges
            && self.window.handle_written()
        {
            connection.progress_at = now;
        }
    }

    /// The connection is over, and the collector's process may live on. Answers to what was asked before are not used.
    pub fn handle_disconnected(&mut self) {
        self.forget_connection();
        self.window.handle_disconnected();
    }

    /// The collector's process ended: it closed or reset the connection, or its host refuses a new one.
    pub fn handle_restarted(&mut self) {
        self.forget_connection();
        self.window.handle_restarted();
    }

    /// Another collector gets what follows, in the slot of the one before, by these options. What the former took counts
    /// as handled: its process lives on, for all one can see. When it is known to have ended, say so first.
    pub fn handle_changed(&mut self, options: &CollectorOptions) {
        self.forget_connection();
        self.window
            .handle_changed(options.window_octets, options.on_restart);
        self.message_records_max = records_max(options);
        self.open = Open::new(options);
        self.pace = Pace::new(options.records_per_second);
    }

    /// Whether to send no more records over this connection, so that what is on the way comes to its end.
    pub fn handle_hold(&mut self, held: bool) {
        if let Some(connection) = &mut self.connection {
            connection.held = held;
        }
    }

    /// Whether anything was sent and is not known to be taken.
    #[must_use]
    pub fn has_on_the_way(&self) -> bool {
        self.window.newest_on_the_way().is_some()
    }

    /// Gives up all that waits, counted at `point`. For a spool that ends with the process.
    pub fn give_up(&mut self, point: DropPoint) {
        self.forget_connection();
        self.window.give_up(point);
    }

    /// What goes out next; `None`: nothing before [`Self::poll_timeout`] or another input.
    pub fn poll_transmit(&mut self, now: KernelTime) -> Option<Transmit> {
        let newest = self.window.newest_on_the_way();
        let before = self.connection.as_mut()?.poll_transmit(newest, now);
        if before.is_some() {
            return before;
        }
        self.poll_flows(now)
    }

    /// When to call [`Self::poll_transmit`] and [`Self::poll_read`] again if nothing else happens; `None`: never.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<KernelTime> {
        let flows = self.may_send();
        let ready = (flows && self.window.is_ready()).then(|| self.pace.ready_at());
        let read = (flows && self.window.wants_more())
            .then(|| self.read_at())
            .flatten();
        let linger = (flows && self.may_linger()).then(|| self.linger_until());
        let newest = self.window.newest_on_the_way();
        let beside = self.connection.as_ref()?.poll_timeout(newest);
        [ready, read, linger, beside].into_iter().flatten().min()
    }

    /// What the host listens on is not known yet: asks again after [`EVENT_INTERVAL`], not after a minute.
    pub fn postpone_listening(&mut self, now: KernelTime) {
        if let Some(connection) = &mut self.connection {
            connection.postpone_listening(now);
        }
    }

    /// The id of a message that is not of topic `flow` and goes out now.
    pub fn announce(&mut self) -> u32 {
        self.messages += 1;
        message_id(self.window.count_message())
    }

    /// How the connection stands.
    #[must_use]
    pub fn progress(&self, now: KernelTime) -> Progress {
        match &self.connection {
            None => Progress::Disconnected,
            Some(connection) if !connection.wanted.flows => Progress::AwaitingSubscription,
            Some(connection)
                if self.window.newest_on_the_way().is_some()
                    && now.since(connection.progress_at) >= STALLED_AFTER =>
            {
                Progress::Stalled
            }
            Some(connection) => Progress::Streaming {
                acknowledged: connection.acknowledges,
            },
        }
    }

    /// Whether no record that can be read waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.law().waiting == 0
    }

    /// Law 2: what was made is what can be read.
    #[must_use]
    pub fn law(&self) -> CollectorLaw {
        self.window.law()
    }

    /// How far it has come, to be kept on disk.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        self.window.cursor()
    }

    /// Messages sent since the beginning, over all connections.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Records a second that it is given now, at most.
    #[must_use]
    pub fn records_per_second(&self) -> u64 {
        self.pace.rate()
    }

    /// Octets held: messages made and not sent, and the numbers of those that were sent; the message being filled, at
    /// most one payload, excluded.
    #[must_use]
    pub fn held_octets(&self) -> u64 {
        self.window.held_octets()
    }

    fn pass(&mut self, record: &FlowRecord, now: KernelTime) {
        if record.held_from.contains(self.slot) {
            return self.window.pass(Fate::ReportedByPeer);
        }
        let mut push = self.open.push(record);
        if push == Push::Full {
            self.seal();
            push = self.open.push(record);
        }
        match push {
            Push::Added => {
                if self.window.open_records() == 0 {
                    self.open_since = now;
                }
                self.window.pass(Fate::InMessage);
                if self.window.open_records() >= self.message_records_max {
                    self.seal();
                }
            }
            Push::Withheld => self.window.pass(Fate::Withheld),
            // An empty batch never says Full: it says TooLarge.
            Push::TooLarge | Push::Full => self.window.pass(Fate::TooLarge),
        }
    }

    /// Closes the message being filled.
    fn seal(&mut self) {
        if let Some(batch) = self.open.finish() {
            self.window.seal(batch.payload);
        }
    }

    fn forget_connection(&mut self) {
        self.connection = None;
        self.reading = Reading::Idle;
        // Its records are read again.
        drop(self.open.finish());
    }

    fn wants_flows(&self) -> bool {
        self.connection
            .as_ref()
            .is_some_and(|connection| connection.wanted.flows)
    }

    fn may_send(&self) -> bool {
        self.wants_flows()
            && self
                .connection
                .as_ref()
                .is_some_and(|connection| !connection.held)
    }

    /// From when on to read; `None`: it was asked already.
    fn read_at(&self) -> Option<KernelTime> {
        match self.reading {
            Reading::Idle => Some(self.pace.ready_at()),
            Reading::Asked => None,
            Reading::NothingUntil(at) => Some(self.pace.ready_at().max(at)),
        }
    }

    /// Whether a message that is not full goes by time: nothing is there to fill it with.
    fn may_linger(&self) -> bool {
        let at_head = !self.window.has_unread() || matches!(self.reading, Reading::NothingUntil(_));
        at_head && self.window.is_drained() && self.window.open_records() > 0
    }

    fn linger_until(&self) -> KernelTime {
        self.pace.ready_at().max(self.open_since.after(LINGER))
    }

    fn poll_flows(&mut self, now: KernelTime) -> Option<Transmit> {
        if !self.may_send() || self.pace.ready_at() > now {
            return None;
        }
        if self.may_linger() && self.linger_until() <= now {
            self.seal();
        }
        let was_idle = self.window.newest_on_the_way().is_none();
        let (message, outgoing) = self.window.poll_message()?;
        let connection = self.connection.as_mut()?;
        if was_idle {
            connection.progress_at = now;
        }
        connection.handle_sent(outgoing.last);
        self.messages += 1;
        self.pace.handle_sent(outgoing.records, now);
        Some(Transmit::Flows {
            id: message_id(message),
            payload: outgoing.payload,
        })
    }
}

fn records_max(options: &CollectorOptions) -> u64 {
    options.message_records_max.clamp(1, RECORDS_MAX) as u64
}

/// ntopng's id of the `number`-th message of a connection: 32 bits, never 0, which means "none" to ntopng 5.2.
fn message_id(number: u64) -> u32 {
    u32::try_from((number - 1) % u64::from(u32::MAX)).expect("a remainder by u32::MAX") + 1
}
