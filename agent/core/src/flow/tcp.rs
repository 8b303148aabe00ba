//! TCP sockets in the table: opened, read, ended.
//!
//! Invariant: a socket has at most one flow in the table; streams above 0 are flows that went on after a full table
//! had ended the one before, and further connections of the same socket: a connect that failed is tried again on it. One
//! connection is told from another by its start, which the kernel side never changes.

use super::entry::{Flow, Kind, TcpFacts};
use super::flows::Handle;
use super::key::FlowKey;
use super::restore::Restored;
use super::sides::Sides;
use super::{FlowTable, counters};
use crate::flow::record::EndReason;
use crate::observe::{Cookie, TcpObservation, TcpRole, TcpSight, TcpState, Tuple};
use crate::time::KernelTime;

impl FlowTable {
    /// A connection, or a listener, is in the kernel's map: if nothing is known of it, it is wanted at once.
    pub(super) fn opened(&mut self, cookie: Cookie, start: KernelTime) {
        let known = match self.tcp_flow(cookie) {
            Some((_, facts)) => start <= facts.opened,
            None => {
                self.tcp.was_over(cookie, start)
                    || self.past.has_left(cookie, start)
                    || self.listeners.contains(cookie)
            }
        };
        if !known {
            self.want(cookie, start);
        }
    }

    /// The socket's flow, and what only TCP has of it.
    pub(super) fn tcp_flow(&self, cookie: Cookie) -> Option<(&Flow, &TcpFacts)> {
        let flow = self.flows.get(self.tcp.flow(cookie)?)?;
        match &flow.kind {
            Kind::Tcp(facts) => Some((flow, facts)),
            Kind::Udp(_) => None,
        }
    }

    /// A socket is gone without an end that was told: what is known is all there is.
    pub(super) fn gone(&mut self, cookie: Cookie, at: KernelTime) {
        if self.listeners.remove(cookie) {
            self.bury_tcp(cookie, at, at);
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
        let opened = self.tcp_flow(seen.cookie).map(|(_, facts)| facts.opened);
        let is_copy = match opened {
            Some(opened) => seen.start < opened,
            None => self.tcp.was_over(seen.cookie, seen.start),
        };
        if is_copy {
            self.late += 1;
            return;
        }
        if opened.is_some_and(|opened| opened < seen.start) {
            self.end_before(seen);
        }
        let known = self.tcp.flow(seen.cookie);
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

    /// Ends the flow of the socket's connection before the one that is seen: nothing more is told of it.
    fn end_before(&mut self, seen: &TcpObservation) {
        let Some(handle) = self.tcp.flow(seen.cookie) else {
            return;
        };
        if let Some(flow) = self.flows.get_mut(handle) {
            let end = flow.newest;
            flow.end(end, seen.at, EndReason::EndOfFlow);
        }
        self.finish(handle, seen.at, EndReason::EndOfFlow);
    }

    fn observe_listener(&mut self, seen: &TcpObservation) {
        if seen.sight == TcpSight::Snap {
            let owner = self.owners.share(&seen.owner);
            self.listeners
                .add(seen.cookie, seen.tuple.local, seen.tuple.netns, owner);
        } else {
            self.listeners.remove(seen.cookie);
            self.bury_tcp(seen.cookie, seen.end.unwrap_or(seen.at), seen.at);
        }
    }

    fn open_tcp(&mut self, seen: &TcpObservation) -> Handle {
        self.make_room(seen.at);
        let past = match self.restored(seen) {
            Some(Restored::Flow(flow)) => return self.insert_tcp(*flow),
            Some(Restored::Past(past)) => Some(past),
            None => self.past.resume_tcp(seen.cookie),
        };
        let again = seen.again || self.tcp.end(seen.cookie).is_some();
        let past = past.filter(|past| !again || seen.start <= past.opened);
        let first_sight = counters::tcp(seen, 0, Sides::default());
        let forgotten = seen.start <= self.past.baseline_before;
        let (stream, base) = match past {
            Some(past) => (past.stream.saturating_add(1), past.seen),
            None if forgotten => (self.past.unused_stream(), first_sight),
            None if seen.backfilled => (self.options.started.0, first_sight),
            // No number that a connection of this socket before had, and no memory of them.
            None if again => (seen.start.0, Sides::default()),
            None => (0, Sides::default()),
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
        let counters = counters::tcp(seen, facts.syns_again, flow.seen);
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
        let hanging = std::mem::take(&mut flow.hanging);
        self.pairs.remove(hanging, &mut self.flows);
        self.pairs.insert(handle, &mut self.flows);
        true
    }
}
