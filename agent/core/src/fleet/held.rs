//! Records that are held back from some collectors, for a while: one a flow, what came later merged into it.
//!
//! They are in the spool already, kept from those collectors; what is here is what a collector gets of them should the
//! other end not tell it. Bounded by [`HELD_MAX`] flows; it lives in memory only.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::FixedState;

use crate::flow::record::{CollectorSet, Counts, EndReason, FlowRecord, Traffic};
use crate::observe::Cookie;
use crate::time::KernelTime;

/// Most flows of which a record is held.
///
/// About 700 octets each. Only flows that have ended, or of which it is open who speaks, are held: at the default of 30 s
/// room for 500 short flows a second between hosts of the fleet. Half of it forgets their ends when an agent dies under
/// such a load; double it, and the worst case is 23 MiB.
pub const HELD_MAX: usize = 16_384;

/// A flow of this host.
pub(super) type FlowId = (Cookie, u64);

/// One flow's record.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: FlowRecord,
    /// When the flow began.
    pub(super) start: KernelTime,
    /// Who has not got it.
    pub(super) slots: CollectorSet,
    /// When the newest of its records was held.
    pub(super) newest: KernelTime,
    wake: KernelTime,
}

/// Records held, by flow and by the time at which they are looked at again.
#[derive(Debug, Default)]
pub(super) struct Held {
    by_flow: HashMap<FlowId, Entry, FixedState>,
    by_wake: BTreeMap<(KernelTime, FlowId), ()>,
}

impl Held {
    pub(super) fn len(&self) -> usize {
        self.by_flow.len()
    }

    pub(super) fn take(&mut self, flow: FlowId) -> Option<Entry> {
        let entry = self.by_flow.remove(&flow)?;
        self.by_wake.remove(&(entry.wake, flow));
        Some(entry)
    }

    /// Puts an entry in, to be looked at again at `wake`. At the bound the one that would be looked at first comes out.
    #[must_use]
    pub(super) fn put(&mut self, flow: FlowId, mut entry: Entry, wake: KernelTime) -> Option<Entry> {
        let pushed_out = (self.by_flow.len() >= HELD_MAX)
            .then(|| self.by_wake.first_key_value().map(|(&(_, first), ())| first))
            .flatten()
            .and_then(|first| self.take(first));
        entry.wake = wake;
        self.by_wake.insert((wake, flow), ());
        if let Some(before) = self.by_flow.insert(flow, entry) {
            self.by_wake.remove(&(before.wake, flow));
            self.by_wake.insert((wake, flow), ());
        }
        pushed_out
    }

    /// The next entry to be looked at.
    pub(super) fn poll(&mut self, now: KernelTime) -> Option<(FlowId, Entry)> {
        let (&(wake, flow), ()) = self.by_wake.first_key_value()?;
        if wake > now {
            return None;
        }
        self.take(flow).map(|entry| (flow, entry))
    }

    /// Has all looked at now: something has changed.
    pub(super) fn wake_all(&mut self, now: KernelTime) {
        self.by_wake = self
            .by_flow
            .iter_mut()
            .map(|(&flow, entry)| {
                entry.wake = entry.wake.min(now);
                ((entry.wake, flow), ())
            })
            .collect();
    }

    /// Takes all of them out.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Entry> + use<> {
        self.by_wake.clear();
        std::mem::take(&mut self.by_flow).into_values()
    }

    pub(super) fn first_wake(&self) -> Option<KernelTime> {
        self.by_wake.first_key_value().map(|(&(wake, _), ())| wake)
    }
}

impl Entry {
    pub(super) fn new(record: FlowRecord, start: KernelTime, slots: CollectorSet, now: KernelTime) -> Self {
        Self {
            record,
            start,
            slots,
            newest: now,
            wake: now,
        }
    }

    /// Takes in a later record of the same flow: what both say together.
    pub(super) fn merge(&mut self, mut later: FlowRecord, slots: CollectorSet, now: KernelTime) {
        let earlier = &self.record;
        later.delta = Traffic {
            forward: plus(earlier.delta.forward, later.delta.forward),
            backward: plus(earlier.delta.backward, later.delta.backward),
        };
        later.delta_start = earlier.delta_start;
        later.first |= earlier.first;
        if let (Some(tcp), Some(before)) = (&mut later.tcp, &earlier.tcp) {
            tcp.retransmits_forward = tcp.retransmits_forward.saturating_add(before.retransmits_forward);
            tcp.retransmits_backward = tcp
                .retransmits_backward
                .saturating_add(before.retransmits_backward);
        }
        self.record = later;
        self.slots = self.slots.and(slots);
        self.newest = now;
    }

    /// Whether the flow is over.
    pub(super) fn is_last(&self) -> bool {
        self.record.reason != EndReason::ActiveTimeout
    }
}

fn plus(one: Counts, other: Counts) -> Counts {
    Counts {
        octets: one.octets.saturating_add(other.octets),
        packets: one.packets.saturating_add(other.packets),
        payload: one.payload.saturating_add(other.payload),
    }
}
