//! What is summed of records, and the window that slides over it.

use std::collections::VecDeque;

use super::SLOTS;
use crate::flow::record::{Counts, FlowRecord};

/// Octets and packets one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// IP octets, headers included.
    pub octets: u64,
    /// IP packets.
    pub packets: u64,
}

/// What somebody's flows did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Flows that it began. Of a window: those that had a record in it; else: those whose first record was seen.
    pub flows_client: u64,
    /// Flows that it accepted, likewise.
    pub flows_server: u64,
    /// What left it.
    pub sent: Amount,
    /// What came to it.
    pub received: Amount,
    /// Sum of smoothed round-trip times, µs, one of each record that has one.
    pub rtt_us: u64,
    /// How many.
    pub rtt_samples: u64,
    /// Sum of the mean deviations of round-trip times, µs.
    pub rtt_variance_us: u64,
    /// How many.
    pub rtt_variance_samples: u64,
    /// Segments that it sent again.
    pub retransmits: u64,
    /// Attempts that nobody answered, or that were refused.
    pub failed: u64,
}

/// Which end of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that began it.
    Client,
    /// The other.
    Server,
    /// Both, as the one that began it sees it: the flow itself.
    Flow,
}

impl Sums {
    /// Sent and received octets.
    #[must_use]
    pub fn octets(&self) -> u64 {
        self.sent.octets.saturating_add(self.received.octets)
    }

    /// Flows as client and as server.
    #[must_use]
    pub fn flows(&self) -> u64 {
        self.flows_client.saturating_add(self.flows_server)
    }

    /// Mean of smoothed round-trip times, µs; `None`: no record had one.
    #[must_use]
    pub fn rtt_mean_us(&self) -> Option<u64> {
        self.rtt_us.checked_div(self.rtt_samples)
    }

    /// Mean of their deviations, µs; `None`: no record had one.
    #[must_use]
    pub fn rtt_variance_mean_us(&self) -> Option<u64> {
        self.rtt_variance_us.checked_div(self.rtt_variance_samples)
    }

    /// What one record says of one side, flows left out.
    pub(super) fn of(record: &FlowRecord, side: Side) -> Self {
        let amount = |counts: &Counts| Amount {
            octets: counts.octets,
            packets: counts.packets,
        };
        let (forward, backward) = (amount(&record.delta.forward), amount(&record.delta.backward));
        let (sent, received) = match side {
            Side::Client | Side::Flow => (forward, backward),
            Side::Server => (backward, forward),
        };
        let mut sums = Self {
            sent,
            received,
            failed: u64::from(side != Side::Server && record.reason.is_failed_attempt()),
            ..Self::default()
        };
        if let Some(tcp) = &record.tcp {
            let (own, other) = match side {
                Side::Client | Side::Flow => (tcp.retransmits_forward, tcp.retransmits_backward),
                Side::Server => (tcp.retransmits_backward, tcp.retransmits_forward),
            };
            let both = if side == Side::Flow { other } else { 0 };
            sums.retransmits = u64::from(own) + u64::from(both);
            (sums.rtt_us, sums.rtt_samples) = sample(tcp.rtt_us);
            // Before there is a round-trip time, the kernel's deviation is a guess.
            let variance = tcp.rtt_us.and(tcp.rtt_variance_us);
            (sums.rtt_variance_us, sums.rtt_variance_samples) = sample(variance);
        }
        sums
    }

    /// The flows of one side.
    pub(super) fn flows_mut(&mut self, side: Side) -> &mut u64 {
        match side {
            Side::Client | Side::Flow => &mut self.flows_client,
            Side::Server => &mut self.flows_server,
        }
    }

    /// Adds what others did.
    pub(super) fn add(&mut self, more: &Self) {
        let Self {
            flows_client,
            flows_server,
            sent,
            received,
            rtt_us,
            rtt_samples,
            rtt_variance_us,
            rtt_variance_samples,
            retransmits,
            failed,
        } = self;
        for (sum, n) in [
            (flows_client, more.flows_client),
            (flows_server, more.flows_server),
            (&mut sent.octets, more.sent.octets),
            (&mut sent.packets, more.sent.packets),
            (&mut received.octets, more.received.octets),
            (&mut received.packets, more.received.packets),
            (rtt_us, more.rtt_us),
            (rtt_samples, more.rtt_samples),
            (rtt_variance_us, more.rtt_variance_us),
            (rtt_variance_samples, more.rtt_variance_samples),
            (retransmits, more.retransmits),
            (failed, more.failed),
        ] {
            *sum = sum.saturating_add(n);
        }
    }
}

fn sample(us: Option<u32>) -> (u64, u64) {
    us.map_or((0, 0), |us| (us.into(), 1))
}

/// Sums by slots of time, of the last [`SLOTS`] only. Slots in which nothing happened take no room.
#[derive(Clone, Debug, Default)]
pub(super) struct Window(VecDeque<(u64, Sums)>);

impl Window {
    /// The sums of a slot, which is the newest there was or newer.
    pub(super) fn at(&mut self, slot: u64) -> &mut Sums {
        self.forget(slot);
        if self.0.back().is_none_or(|(newest, _)| *newest < slot) {
            self.0.push_back((slot, Sums::default()));
        }
        &mut self
            .0
            .back_mut()
            .expect("it is there, or was put there just now")
            .1
    }

    /// The sums of a slot that is there still.
    pub(super) fn peek_mut(&mut self, slot: u64) -> Option<&mut Sums> {
        let found = self.0.iter_mut().find(|(at, _)| *at == slot);
        found.map(|(_, sums)| sums)
    }

    /// All of the window that ends with `slot`; `None`: nothing happened in it.
    pub(super) fn sum(&self, slot: u64) -> Option<Sums> {
        let mut within = self.0.iter().filter(|(at, _)| is_within(*at, slot)).peekable();
        within.peek()?;
        let mut sum = Sums::default();
        within.for_each(|(_, sums)| sum.add(sums));
        Some(sum)
    }

    /// Adds another's slots.
    pub(super) fn absorb(&mut self, other: &Self, slot: u64) {
        for (at, sums) in other.0.iter().filter(|(at, _)| is_within(*at, slot)) {
            match self.peek_mut(*at) {
                Some(own) => own.add(sums),
                None => {
                    let place = self.0.partition_point(|(own, _)| own < at);
                    self.0.insert(place, (*at, *sums));
                }
            }
        }
        self.forget(slot);
    }

    fn forget(&mut self, slot: u64) {
        while self.0.front().is_some_and(|(at, _)| !is_within(*at, slot)) {
            self.0.pop_front();
        }
    }
}

/// Whether a slot belongs to the window that ends with `newest`.
pub(super) fn is_within(slot: u64, newest: u64) -> bool {
    newest.saturating_sub(slot) < SLOTS
}
