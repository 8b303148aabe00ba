//! Sums of flows, as they travel: added up by whoever merges answers, never above what a number holds.

use crate::wire::session::TopSums;

impl TopSums {
    /// Adds what others did.
    pub fn add(&mut self, more: &Self) {
        for (sum, n) in [
            (&mut self.flows_client, more.flows_client),
            (&mut self.flows_server, more.flows_server),
            (&mut self.octets_sent, more.octets_sent),
            (&mut self.octets_received, more.octets_received),
            (&mut self.packets_sent, more.packets_sent),
            (&mut self.packets_received, more.packets_received),
            (&mut self.rtt_us, more.rtt_us),
            (&mut self.rtt_samples, more.rtt_samples),
            (&mut self.rtt_variance_us, more.rtt_variance_us),
            (&mut self.rtt_variance_samples, more.rtt_variance_samples),
            (&mut self.retransmits, more.retransmits),
            (&mut self.failed, more.failed),
        ] {
            *sum = sum.saturating_add(n);
        }
    }

    /// Octets sent and received.
    #[must_use]
    pub fn octets(&self) -> u64 {
        self.octets_sent.saturating_add(self.octets_received)
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
}
