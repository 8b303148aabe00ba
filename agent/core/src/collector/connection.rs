//! What is due on one connection beside records: PINGs and announcements.
//!
//! In: time, what was sent and answered. Out: the next of them. Knows no marks: the window judges what a PONG means.

use std::time::Duration;

use super::Transmit;
use crate::encode::header::Topic;
use crate::time::KernelTime;

/// Time between two PINGs while something is on the way and nothing new goes out.
///
/// Together with the 5 s that a dead peer is given. Half of it adds packets to a stalled line for nothing; double it,
/// and a dead host is found a second later.
pub const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two announcements of the probe. ntopng forgets a probe after 10 s; half of that survives a late one.
pub const EVENT_INTERVAL: Duration = Duration::from_secs(5);

/// Time between two lists of listening ports. They change seldom, and each is a message of up to 96 KiB.
pub const LISTENING_INTERVAL: Duration = Duration::from_secs(60);

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

/// One connection whose handshake is done.
pub(super) struct Connection {
    pub(super) acknowledges: bool,
    pub(super) wanted: Wanted,
    /// Nothing more is sent over it: it is about to be left.
    pub(super) held: bool,
    /// Since when nothing was heard of what is on the way.
    pub(super) progress_at: KernelTime,
    /// Sequence that the next PING carries at once; `None`: a PING is sent by time only.
    ping: Option<u64>,
    pinged_at: KernelTime,
    /// The PING whose round trip is being measured.
    probe: Option<(u64, KernelTime)>,
    event_at: KernelTime,
    listening_at: KernelTime,
}

impl Connection {
    pub(super) fn new(acknowledges: bool, now: KernelTime) -> Self {
        Self {
            acknowledges,
            wanted: Wanted::default(),
            held: false,
            progress_at: now,
            ping: None,
            pinged_at: now,
            probe: None,
            event_at: now,
            listening_at: now,
        }
    }

    /// Records up to this sequence go out.
    pub(super) fn handle_sent(&mut self, last: u64) {
        if self.acknowledges {
            self.ping = Some(last);
        }
    }

    /// A PONG of this sequence was news. How long its PING was under way, if that was measured.
    pub(super) fn handle_pong(&mut self, sequence: u64, now: KernelTime) -> Option<Duration> {
        self.progress_at = now;
        let (_, at) = self.probe.take_if(|(probe, _)| *probe <= sequence)?;
        Some(now.since(at))
    }

    /// The list of listening ports is not known yet.
    pub(super) fn postpone_listening(&mut self, now: KernelTime) {
        self.listening_at = now.after(EVENT_INTERVAL);
    }

    /// What goes before records; `newest` is the last sequence on the way.
    pub(super) fn poll_transmit(&mut self, newest: Option<u64>, now: KernelTime) -> Option<Transmit> {
        if let Some(sequence) = self.ping.take() {
            self.pinged_at = now;
            self.probe.get_or_insert((sequence, now));
            return Some(Transmit::Ping(sequence.to_be_bytes()));
        }
        if self.wanted.events && self.event_at <= now {
            self.event_at = now.after(EVENT_INTERVAL);
            return Some(Transmit::Announce(Topic::Event));
        }
        if self.wanted.listening && self.listening_at <= now {
            self.listening_at = now.after(LISTENING_INTERVAL);
            return Some(Transmit::Announce(Topic::ListeningPorts));
        }
        let sequence = newest.filter(|_| self.ping_due(now))?;
        self.pinged_at = now;
        Some(Transmit::Ping(sequence.to_be_bytes()))
    }

    /// When [`Self::poll_transmit`] has something again; `None`: never, as it stands.
    pub(super) fn poll_timeout(&self, newest: Option<u64>) -> Option<KernelTime> {
        if self.ping.is_some() {
            return Some(KernelTime(0));
        }
        let ping = self.acknowledges && newest.is_some();
        [
            ping.then(|| self.pinged_at.after(PING_INTERVAL)),
            self.wanted.events.then_some(self.event_at),
            self.wanted.listening.then_some(self.listening_at),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn ping_due(&self, now: KernelTime) -> bool {
        self.acknowledges && self.pinged_at.after(PING_INTERVAL) <= now
    }
}
