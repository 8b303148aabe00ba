//! TCP sockets in the table: opened, read, ended.
//!
//! Invariant: a socket has at most one flow in the table; streams above 0 are flows that went on after a full table
//! had ended the one before.

use super::entry::{Flow, Kind, TcpFacts};
use super::key::FlowKey;
use super::{FlowTable, counters};
use crate::flow::record::EndReason;
use crate::observe::{Cookie, TcpObservation, TcpRole, TcpSight, TcpState, Tuple};
use crate::time::KernelTime;

impl FlowTable {
    /// A socket entered the kernel's map: its counters are wanted at once.
    pub(super) fn opened(&mut self, cookie: Cookie) {
        if !self.past.is_dead(cookie) {
            self.want(cookie);
        }
    }

    /// A socket is gone without an end that was told: what is known is all there is.
    pub(super) fn gone(&mut self, cookie: Cookie, at: KernelTime) {
        if self.listeners.remove(cookie) {
            self.past.bury(cookie, at);
        } else if let Some(key) = self.tcp_key(cookie) {
            if let Some(flow) = self.entries.get_mut(&key) {
                let end = flow.newest;
                flow.end(end, at, EndReason::EndOfFlow);
            }
            self.arm(key);
        } else {
            self.end_udp_socket(cookie, at);
        }
    }

    pub(super) fn observe_tcp(&mut self, seen: &TcpObservation) {
        if self.past.is_dead(seen.cookie) {
            self.late += 1;
            return;
        }
        if seen.role == TcpRole::Listener || seen.state == TcpState::Listen {
            self.observe_listener(seen);
            return;
        }
        let known = self.tcp_key(seen.cookie);
        let key = match known {
            Some(key) => key,
            None => self.open_tcp(seen),
        };
        let moved = self.merge_tcp(key, seen);
        if known.is_none() || moved {
            self.seek_twin(key);
        }
        self.tell_leader(key);
        self.arm(key);
    }

    /// The flow of a TCP socket.
    pub(super) fn tcp_key(&self, cookie: Cookie) -> Option<FlowKey> {
        let first = FlowKey { cookie, stream: 0 };
        if self.entries.contains_key(&first) {
            return Some(first);
        }
        let &stream = self.resumed.get(&cookie)?;
        Some(FlowKey { cookie, stream })
    }

    fn observe_listener(&mut self, seen: &TcpObservation) {
        if seen.sight == TcpSight::Snap {
            let owner = self.owners.share(&seen.owner);
            self.listeners
                .add(seen.cookie, seen.tuple.local, seen.tuple.netns, owner);
        } else {
            self.listeners.remove(seen.cookie);
            self.past.bury(seen.cookie, seen.at);
        }
    }

    fn open_tcp(&mut self, seen: &TcpObservation) -> FlowKey {
        self.make_room(seen.at);
        let first_sight = counters::tcp(seen, 0);
        let past = self.past.resume_tcp(seen.cookie);
        let forgotten = seen.start <= self.past.baseline_before;
        let (stream, base) = match past {
            Some(past) => (past.stream + 1, past.seen),
            None if forgotten => (self.past.unused_stream(), first_sight),
            None if seen.backfilled => (0, first_sight),
            None => (0, Default::default()),
        };
        let mut facts = TcpFacts::new(seen);
        facts.retransmits_reported = match past {
            Some(past) => past.retransmits,
            None if forgotten || seen.backfilled => seen.counters.retransmits,
            None => 0,
        };
        let start = if past.is_some() { seen.at } else { seen.start };
        let owner = self.owners.share(&seen.owner);
        let mut flow = Flow::new(
            seen.tuple,
            Kind::Tcp(facts),
            owner,
            (start, seen.at),
            base,
            &self.options,
        );
        flow.backfilled = seen.backfilled;
        if let Some(past) = past
            && past.silent
        {
            flow.twin = super::entry::Twin::Orphan(past.opened);
        }
        let key = FlowKey {
            cookie: seen.cookie,
            stream,
        };
        if stream > 0 {
            self.resumed.insert(seen.cookie, stream);
        }
        self.insert(key, flow);
        key
    }

    /// Takes one sight in; tells whether the tuple changed.
    fn merge_tcp(&mut self, key: FlowKey, seen: &TcpObservation) -> bool {
        let Some(flow) = self.entries.get_mut(&key) else {
            return false;
        };
        let newer = seen.at >= flow.read_at;
        let Kind::Tcp(facts) = &mut flow.kind else {
            return false;
        };
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
        newer && self.retie(key, seen.tuple)
    }

    /// Takes a tuple that got complete after the first sight (the port of a SYN's sender is bound late).
    fn retie(&mut self, key: FlowKey, tuple: Tuple) -> bool {
        let Some(flow) = self.entries.get_mut(&key) else {
            return false;
        };
        let complete = tuple.local.port != 0 && tuple.remote.port != 0;
        let fixed = flow.part > 0 && flow.tuple.local.port != 0;
        if flow.tuple == tuple || !complete || fixed {
            return false;
        }
        let before = flow.pair_key();
        flow.tuple = tuple;
        let after = flow.pair_key();
        if let Some(pair) = before {
            self.pairs.remove(pair, key);
        }
        if let Some(pair) = after {
            self.pairs.insert(pair, key);
        }
        true
    }
}
