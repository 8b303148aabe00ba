//! TCP sockets in the table: opened, read, ended.
//!
//! Invariant: a socket has at most one flow in the table; streams above 0 are flows that went on after a full table
//! had ended the one before.

use super::entry::{Flow, Kind, TcpFacts};
use super::flows::Handle;
use super::key::FlowKey;
use super::restore::Restored;
use super::{FlowTable, counters};
use crate::flow::record::EndReason;
use crate::observe::{Cookie, TcpObservation, TcpRole, TcpSight, TcpState, Tuple};
use crate::time::KernelTime;

impl FlowTable {
    /// A socket entered the kernel's map: its counters are wanted at once.
    pub(super) fn opened(&mut self, cookie: Cookie) {
        if !self.tcp.is_dead(cookie) {
            self.want(cookie);
        }
    }

    /// A socket is gone without an end that was told: what is known is all there is.
    pub(super) fn gone(&mut self, cookie: Cookie, at: KernelTime) {
        if self.listeners.remove(cookie) {
            self.bury_tcp(cookie, at);
        } else if let Some(handle) = self.tcp.flow(cookie) {
            if let Some(flow) = self.flows.get_mut(handle) {
                let end = flow.newest;
                flow.end(end, at, EndReason::EndOfFlow);
            }
            self.arm(handle);
        } else {
            self.end_udp_socket(cookie, at);
        }
    }

    pub(super) fn observe_tcp(&mut self, seen: &TcpObservation) {
        let known = self.tcp.flow(seen.cookie);
        if known.is_none() && self.tcp.is_dead(seen.cookie) {
            self.late += 1;
            return;
        }
        if seen.role == TcpRole::Listener || seen.state == TcpState::Listen {
            self.observe_listener(seen);
            return;
        }
        let handle = known.unwrap_or_else(|| self.open_tcp(seen));
        let moved = self.merge_tcp(handle, seen);
        if known.is_none() || moved {
            self.seek_twin(handle);
        }
        self.tell_leader(handle);
        self.arm(handle);
    }

    fn observe_listener(&mut self, seen: &TcpObservation) {
        if seen.sight == TcpSight::Snap {
            let owner = self.owners.share(&seen.owner);
            self.listeners
                .add(seen.cookie, seen.tuple.local, seen.tuple.netns, owner);
        } else {
            self.listeners.remove(seen.cookie);
            self.bury_tcp(seen.cookie, seen.at);
        }
    }

    fn open_tcp(&mut self, seen: &TcpObservation) -> Handle {
        self.make_room(seen.at);
        let past = match self.restored(seen) {
            Some(Restored::Flow(flow)) => return self.insert_tcp(*flow),
            Some(Restored::Past(past)) => Some(past),
            None => self.past.resume_tcp(seen.cookie),
        };
        let first_sight = counters::tcp(seen, 0);
        let forgotten = seen.start <= self.past.baseline_before;
        let (stream, base) = match past {
            Some(past) => (past.stream.saturating_add(1), past.seen),
            None if forgotten => (self.past.unused_stream(), first_sight),
            None if seen.backfilled => (self.options.started.0, first_sight),
            None => (0, Default::default()),
        };
        let mut facts = TcpFacts::new(seen);
        if let Some(past) = past {
            facts.syns_again = past.syns_again;
            if facts.role == TcpRole::Unknown {
                facts.role = past.role;
            }
        }
        facts.retransmits_reported = match past {
            Some(past) => past.retransmits,
            None if forgotten || seen.backfilled => seen.counters.retransmits,
            None => 0,
        };
        let start = if past.is_some() { seen.at } else { seen.start };
        let owner = self.owners.share(&seen.owner);
        let key = FlowKey {
            cookie: seen.cookie,
            stream,
        };
        let mut flow = Flow::new(
            key,
            seen.tuple,
            Kind::Tcp(facts),
            owner,
            (start, seen.at),
            base,
            &self.options,
        );
        flow.backfilled = seen.backfilled;
        flow.blind = past.is_none() && (forgotten || seen.backfilled);
        if let Some(past) = past
            && past.silent
        {
            flow.twin = super::entry::Twin::Orphan(seen.at);
        }
        self.insert_tcp(flow)
    }

    fn insert_tcp(&mut self, flow: Flow) -> Handle {
        let cookie = flow.key.cookie;
        let handle = self.insert(flow);
        self.tcp.insert(cookie, handle);
        handle
    }

    /// Takes one sight in; tells whether the tuple changed.
    fn merge_tcp(&mut self, handle: Handle, seen: &TcpObservation) -> bool {
        let Some(flow) = self.flows.get_mut(handle) else {
            return false;
        };
        let newer = seen.at >= flow.read_at;
        let Kind::Tcp(facts) = &mut flow.kind else {
            return false;
        };
        // The kernel side of this agent may not know what that of the agent before saw; the counters depend on it.
        let completed;
        let mut seen = seen;
        if seen.role == TcpRole::Unknown && facts.role != TcpRole::Unknown {
            completed = TcpObservation {
                role: facts.role,
                ..seen.clone()
            };
            seen = &completed;
        }
        // The end's state is the one it left; copies of earlier sights must not replace it.
        facts.merge(
            seen,
            newer && (flow.ended.is_none() || seen.sight != TcpSight::Snap),
        );
        facts.late |= seen.sight == TcpSight::Late;
        let counters = counters::tcp(seen, facts.syns_again);
        if flow.grow(counters, &mut self.ledger) {
            flow.newest = flow.newest.max(seen.end.unwrap_or(seen.at));
        }
        if flow.prefers(&seen.owner, seen.at) && *flow.owner != seen.owner {
            flow.owner = self.owners.share(&seen.owner);
        }
        flow.read_at = flow.read_at.max(seen.at);
        if seen.sight != TcpSight::Snap {
            let reason = counters::end_reason(seen.state, seen.counters.error);
            flow.end(seen.end.unwrap_or(seen.at), seen.at, reason);
        }
        flow.hurry();
        newer && self.retie(handle, seen.tuple)
    }

    /// Takes a tuple that got complete after the first sight (the port of a SYN's sender is bound late).
    fn retie(&mut self, handle: Handle, tuple: Tuple) -> bool {
        let Some(flow) = self.flows.get_mut(handle) else {
            return false;
        };
        let complete = tuple.local.port != 0 && tuple.remote.port != 0;
        let fixed = flow.part > 0 && flow.tuple.local.port != 0;
        if flow.tuple == tuple || !complete || fixed {
            return false;
        }
        flow.tuple = tuple;
        let hanging = (flow.pair.take(), flow.next_in_pair.take());
        self.pairs.remove(handle, hanging, &mut self.flows);
        self.pairs.insert(handle, &mut self.flows);
        true
    }
}
