//! What one collector is to be sent, and when: the batch being filled, the [`window`], pace, PINGs, announcements.
//!
//! In: records, time, and what happens on the connection. Out: [`Transmit`]s, in the order in which they go over the
//! wire, and the moment to ask again. Does no IO and reads no clock; message headers and ZMTP are the driver's.
//!
//! Invariants: message ids count by one from 1 on each connection, over all topics, given at the moment of sending;
//! nothing is sent before the collector subscribed to it; a PING with the batch's sequence follows each batch, and one
//! goes each second while anything is on the way, so that a dead host shows; law 2 holds after each call.
//! Source: design section 5.

mod pace;
pub mod window;

use std::time::Duration;

use bytes::Bytes;

use crate::encode::header::Topic;
use crate::encode::tlv::{Batch, EncodedBatch, Push, RECORDS_MAX, TlvOptions};
use crate::flow::record::{CollectorSlot, FlowRecord};
use crate::loss::{CollectorLaw, DropPoint};
use crate::time::KernelTime;

use pace::Pace;
use window::{OnRestart, Window, WindowLimits};

pub use pace::PACE_BURST;

/// How long a batch that is not full waits for more records.
///
/// Flows come in bursts of some milliseconds. Half of it makes twice the messages on a quiet host; double it, and what
/// a terminal shows at once comes to ntopng visibly later.
pub const LINGER: Duration = Duration::from_millis(100);

/// Time between two PINGs while something is on the way and nothing new goes out.
///
/// Together with the 5 s that a dead peer is given. Half of it adds packets to a stalled line for nothing; double it,
/// and a dead host is found a second later.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);

/// How long something may be on the way without an acknowledgement before the collector counts as stalled.
///
/// ntopng polls once a second. Half of it cries at ordinary pauses; double it, and `status` is late.
pub const STALLED_AFTER: Duration = Duration::from_secs(3);

/// Time between two announcements of the probe. ntopng forgets a probe after 10 s; half of that survives a late one.
pub const EVENT_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two lists of listening ports. They change seldom, and each is a message of up to 96 KiB.
pub const LISTENING_INTERVAL: Duration = Duration::from_secs(60);

/// How one collector is fed.
#[derive(Clone, Copy, Debug)]
pub struct CollectorOptions {
    /// Its position in the policy.
    pub slot: CollectorSlot,
    /// How records are written for it.
    pub tlv: TlvOptions,
    /// What may be held.
    pub limits: WindowLimits,
    /// What becomes of batches at risk.
    pub on_restart: OnRestart,
    /// Most records a second.
    pub records_per_second: u64,
}

/// Topics that a collector has subscribed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// [`Topic::Flow`].
    pub flows: bool,
    /// [`Topic::Event`].
    pub events: bool,
    /// [`Topic::ListeningPorts`].
    pub listening: bool,
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
    /// A PING with this context: a sequence, big-endian.
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

struct Connection {
    acknowledges: bool,
    wanted: Wanted,
    /// Sequence that the next PING carries at once; `None`: a PING is sent by time only.
    ping: Option<u64>,
    pinged_at: KernelTime,
    progress_at: KernelTime,
    event_at: KernelTime,
    listening_at: KernelTime,
}

/// One collector. See the module.
pub struct Collector {
    slot: CollectorSlot,
    open: Batch,
    /// Records in `open`.
    open_records: u64,
    /// When the first record came into `open`.
    open_since: KernelTime,
    window: Window,
    pace: Pace,
    connection: Option<Connection>,
    messages: u64,
}

impl Collector {
    /// A collector without a connection.
    #[must_use]
    pub fn new(options: &CollectorOptions) -> Self {
        Self {
            slot: options.slot,
            open: Batch::new(options.tlv),
            open_records: 0,
            open_since: KernelTime(0),
            window: Window::new(options.limits, options.on_restart),
            pace: Pace::new(options.records_per_second),
            connection: None,
            messages: 0,
        }
    }

    /// Takes one record: into the batch being filled, or counted.
    pub fn offer(&mut self, record: &FlowRecord, now: KernelTime) {
        if record.held_from.contains(self.slot) {
            return self.window.count_dropped(DropPoint::Withheld, 1);
        }
        let mut push = self.open.push(record);
        if push == Push::Full {
            self.seal();
            push = self.open.push(record);
        }
        match push {
            Push::Added => {
                if self.open_records == 0 {
                    self.open_since = now;
                }
                self.open_records += 1;
                if self.open_records >= RECORDS_MAX as u64 {
                    self.seal();
                }
            }
            Push::Withheld => self.window.count_dropped(DropPoint::Withheld, 1),
            // An empty batch never says Full: it says TooLarge.
            Push::TooLarge | Push::Full => self.window.count_dropped(DropPoint::RecordTooLarge, 1),
        }
    }

    /// Counts records made for this collector that were lost on the way to here.
    pub fn count_dropped(&mut self, point: DropPoint, records: u64) {
        self.window.count_dropped(point, records);
    }

    /// A connection has its handshake done. `acknowledges`: the peer answers PINGs.
    pub fn handle_connected(&mut self, acknowledges: bool, now: KernelTime) {
        self.window.handle_disconnected();
        self.connection = Some(Connection {
            acknowledges,
            wanted: Wanted::default(),
            ping: None,
            pinged_at: now,
            progress_at: now,
            event_at: now,
            listening_at: now,
        });
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
        if connection.acknowledges && self.window.handle_taken(u64::from_be_bytes(context)) {
            connection.progress_at = now;
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

    /// The connection is over, and the collector's process may live on.
    pub fn handle_disconnected(&mut self) {
        self.connection = None;
        self.window.handle_disconnected();
    }

    /// The collector's process ended: it closed or reset the connection, or its host refuses a new one.
    pub fn handle_restarted(&mut self) {
        self.connection = None;
        self.window.handle_restarted();
    }

    /// Gives up all that waits, counted at `point`.
    pub fn give_up(&mut self, point: DropPoint) {
        self.connection = None;
        self.seal();
        self.window.give_up(point);
    }

    /// Closes the batch being filled, so that it need not wait for more.
    pub fn seal(&mut self) {
        self.open_records = 0;
        if let Some(EncodedBatch { payload, records, .. }) = self.open.finish() {
            self.window.queue(payload, records);
        }
    }

    /// What goes out next; `None`: nothing before [`Self::poll_timeout`] or another input.
    pub fn poll_transmit(&mut self, now: KernelTime) -> Option<Transmit> {
        let connection = self.connection.as_mut()?;
        if let Some(sequence) = connection.ping.take() {
            connection.pinged_at = now;
            return Some(Transmit::Ping(sequence.to_be_bytes()));
        }
        if connection.wanted.events && connection.event_at <= now {
            connection.event_at = now.after(EVENT_INTERVAL);
            return Some(Transmit::Announce(Topic::Event));
        }
        if connection.wanted.listening && connection.listening_at <= now {
            connection.listening_at = now.after(LISTENING_INTERVAL);
            return Some(Transmit::Announce(Topic::ListeningPorts));
        }
        if connection.acknowledges
            && connection.pinged_at.after(PING_INTERVAL) <= now
            && let Some(sequence) = self.window.newest_on_the_way()
        {
            connection.pinged_at = now;
            return Some(Transmit::Ping(sequence.to_be_bytes()));
        }
        self.poll_flows(now)
    }

    /// When to call [`Self::poll_transmit`] again if nothing else happens; `None`: never.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<KernelTime> {
        let connection = self.connection.as_ref()?;
        if connection.ping.is_some() {
            return Some(KernelTime(0));
        }
        let flows = if !connection.wanted.flows {
            None
        } else if self.window.is_ready() {
            Some(self.pace.ready_at())
        } else if self.window.is_drained() && self.open_records > 0 {
            Some(self.pace.ready_at().max(self.open_since.after(LINGER)))
        } else {
            None
        };
        let ping = connection.acknowledges && self.window.newest_on_the_way().is_some();
        [
            flows,
            ping.then(|| connection.pinged_at.after(PING_INTERVAL)),
            connection.wanted.events.then_some(connection.event_at),
            connection.wanted.listening.then_some(connection.listening_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What the host listens on is not known yet: asks again after [`EVENT_INTERVAL`], not after a minute.
    pub fn postpone_listening(&mut self, now: KernelTime) {
        if let Some(connection) = &mut self.connection {
            connection.listening_at = now.after(EVENT_INTERVAL);
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

    /// Whether no record waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.law().waiting == 0
    }

    /// Law 2.
    #[must_use]
    pub fn law(&self) -> CollectorLaw {
        let mut law = self.window.law();
        law.made += self.open_records;
        law.waiting += self.open_records;
        law
    }

    /// Messages sent since the beginning, over all connections.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Octets of payload held; the batch being filled excluded.
    #[must_use]
    pub fn held_octets(&self) -> u64 {
        self.window.held_octets()
    }

    fn poll_flows(&mut self, now: KernelTime) -> Option<Transmit> {
        let wanted = self
            .connection
            .as_ref()
            .is_some_and(|connection| connection.wanted.flows);
        if !wanted || self.pace.ready_at() > now {
            return None;
        }
        if self.window.is_drained() && self.open_records > 0 && self.open_since.after(LINGER) <= now {
            self.seal();
        }
        let (message, batch) = {
            let was_idle = self.window.newest_on_the_way().is_none();
            let polled = self.window.poll_batch()?;
            let connection = self.connection.as_mut().expect("asked above");
            if was_idle {
                connection.progress_at = now;
            }
            if connection.acknowledges {
                connection.ping = Some(polled.1.sequence);
            }
            polled
        };
        self.messages += 1;
        self.pace.handle_sent(batch.records, now);
        Some(Transmit::Flows {
            id: message_id(message),
            payload: batch.payload,
        })
    }
}

/// ntopng's id of the `number`-th message of a connection: 32 bits, never 0, which means "none" to ntopng 5.2.
fn message_id(number: u64) -> u32 {
    u32::try_from((number - 1) % u64::from(u32::MAX)).expect("a remainder by u32::MAX") + 1
}
