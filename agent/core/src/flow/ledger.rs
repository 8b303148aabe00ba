//! Law 1 from kernel to records, kept as the counters move: `observed = reported + held + joined`.
//!
//! Whoever changes what a flow has seen, reported or is silent about moves the same amount here.

use super::sides::Sides;
use crate::loss::KernelLaw;

#[derive(Debug, Default)]
pub(super) struct Ledger(KernelLaw);

impl Ledger {
    pub(super) fn law(&self) -> KernelLaw {
        self.0
    }

    /// The kernel's counters grew: held until told otherwise.
    pub(super) fn observe(&mut self, grown: Sides) {
        let law = &mut self.0;
        law.observed_octets = law.observed_octets.saturating_add(grown.octets());
        law.observed_packets = law.observed_packets.saturating_add(grown.packets());
        law.held_octets = law.held_octets.saturating_add(grown.octets());
        law.held_packets = law.held_packets.saturating_add(grown.packets());
    }

    /// A record took it.
    pub(super) fn report(&mut self, delta: Sides) {
        self.release(delta);
        self.0.reported_octets = self.0.reported_octets.saturating_add(delta.octets());
        self.0.reported_packets = self.0.reported_packets.saturating_add(delta.packets());
    }

    /// The twin's records have the same octets.
    pub(super) fn join(&mut self, copy: Sides) {
        self.release(copy);
        self.0.joined_octets = self.0.joined_octets.saturating_add(copy.octets());
        self.0.joined_packets = self.0.joined_packets.saturating_add(copy.packets());
    }

    /// It was no twin's copy: held again.
    pub(super) fn part(&mut self, copy: Sides) {
        self.0.joined_octets = self.0.joined_octets.saturating_sub(copy.octets());
        self.0.joined_packets = self.0.joined_packets.saturating_sub(copy.packets());
        self.0.held_octets = self.0.held_octets.saturating_add(copy.octets());
        self.0.held_packets = self.0.held_packets.saturating_add(copy.packets());
    }

    fn release(&mut self, amount: Sides) {
        self.0.held_octets = self.0.held_octets.saturating_sub(amount.octets());
        self.0.held_packets = self.0.held_packets.saturating_sub(amount.packets());
    }
}
