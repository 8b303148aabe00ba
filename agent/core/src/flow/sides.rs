//! What one socket sent and received, before it is known which end began.

use crate::flow::record::{Counts, Traffic};

/// Counters of one socket, cumulative or a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sides {
    pub(super) sent: Counts,
    pub(super) received: Counts,
}

impl Sides {
    /// The greater of each counter.
    pub(super) fn max(self, other: Self) -> Self {
        self.each(other, u64::max)
    }

    /// Each counter less `other`'s, at least 0.
    pub(super) fn minus(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }

    /// Both added.
    pub(super) fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// IP octets of both directions.
    pub(super) fn octets(self) -> u64 {
        self.sent.octets.saturating_add(self.received.octets)
    }

    /// Packets of both directions.
    pub(super) fn packets(self) -> u64 {
        self.sent.packets.saturating_add(self.received.packets)
    }

    /// Whether nothing is counted.
    pub(super) fn is_zero(self) -> bool {
        self == Self::default()
    }

    /// From initiator to responder and back.
    pub(super) fn oriented(self, local_initiates: bool) -> Traffic {
        let (forward, backward) = if local_initiates {
            (self.sent, self.received)
        } else {
            (self.received, self.sent)
        };
        Traffic { forward, backward }
    }

    /// The reverse of [`Sides::oriented`].
    pub(super) fn of(traffic: Traffic, local_initiates: bool) -> Self {
        let Traffic { forward, backward } = traffic;
        let (sent, received) = if local_initiates {
            (forward, backward)
        } else {
            (backward, forward)
        };
        Self { sent, received }
    }

    fn each(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        let counts = |a: Counts, b: Counts| Counts {
            octets: f(a.octets, b.octets),
            packets: f(a.packets, b.packets),
            payload: f(a.payload, b.payload),
        };
        Self {
            sent: counts(self.sent, other.sent),
            received: counts(self.received, other.received),
        }
    }
}
