//! UDP sockets in the table: one flow for each peer, from its first datagram to its silence or the socket's end.
//!
//! The kernel's counters of a peer are cumulative as long as its entry lives; the first datagram they know tells one
//! counting from the next. A peer that returns after its flow ended begins a new flow, which goes on from the totals in
//! [`Past`](super::past::Past). Owners belong to sockets: what the peer map shows has none of its own.
//!
//! Invariant: a peer is in `live` exactly when its flow is in the table; never in `live` and in the past at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entry::{Flow, Kind, Twin, UdpFacts, rank};
use super::flows::Handle;
use super::key::{FlowKey, PeerKey};
use super::past::PastPeer;
use super::sides::Sides;
use super::{FlowTable, ORPHAN_GRACE, counters};
use crate::flow::record::EndReason;
use crate::observe::{Cookie, Endpoint, NetNs, UdpObservation};
use crate::owner::{Confidence, Owner, Unknown};
use crate::time::KernelTime;

#[derive(Debug)]
pub(super) struct UdpSocket {
    pub(super) owner: Arc<Owner>,
    pub(super) local: Endpoint,
    pub(super) netns: NetNs,
    /// Whether a peer spoke first.
    pub(super) serves: bool,
    pub(super) ended: Option<KernelTime>,
    /// The peer whose counters the socket's own entry holds: the kernel cannot forget it.
    current: Option<Endpoint>,
    read_at: KernelTime,
    stream: u64,
}

#[derive(Debug)]
pub(super) struct UdpSockets {
    pub(super) by_cookie: BTreeMap<Cookie, UdpSocket>,
    pub(super) live: BTreeMap<PeerKey, Handle>,
    /// Streams at or below this may have been used by a socket that had to be forgotten, or in earlier runs of the agent.
    stream_floor: u64,
}

impl UdpSockets {
    pub(super) fn new(started: KernelTime) -> Self {
        Self {
            by_cookie: BTreeMap::new(),
            live: BTreeMap::new(),
            stream_floor: started.0,
        }
    }

    /// Forgets a socket that ended; `unsure`: the kernel may still show peers of it that had flows.
    pub(super) fn bury(&mut self, cookie: Cookie, unsure: bool) {
        if let Some(socket) = self.by_cookie.remove(&cookie)
            && unsure
        {
            self.stream_floor = self.stream_floor.max(socket.stream);
        }
    }

    /// Forgets a socket whose entry the kernel is to delete: when it comes again, it counts anew, and its flows have other
    /// numbers.
    pub(super) fn let_go(&mut self, cookie: Cookie) {
        self.bury(cookie, true);
    }

    /// The peer in the own entry of a socket that nobody has, when none of its peers has a flow.
    fn idle_of_nobody(&self, cookie: Cookie) -> Option<PeerKey> {
        let socket = self.by_cookie.get(&cookie)?;
        let nobody = socket.owner.confidence == Confidence::Unknown(Unknown::NotSeen);
        let is_idle = || self.live.range(PeerKey::all_of(cookie)).next().is_none();
        let peer = socket.current?;
        (nobody && socket.ended.is_none() && is_idle()).then_some(PeerKey { cookie, peer })
    }

    /// Forgets a socket that nobody has and of which only the peers are known, when none of them has a flow: what is left of an
    /// entry that the kernel has deleted, and no end of it will ever be told.
    fn let_go_of_remnant(&mut self, cookie: Cookie) {
        let Some(socket) = self.by_cookie.get(&cookie) else {
            return;
        };
        let nobody = socket.owner.confidence == Confidence::Unknown(Unknown::NotSeen);
        let is_idle = || self.live.range(PeerKey::all_of(cookie)).next().is_none();
        if nobody && socket.ended.is_none() && socket.current.is_none() && is_idle() {
            self.let_go(cookie);
        }
    }

    /// The socket of an observation. At the bound, the oldest socket is forgotten; its flows stay.
    fn of(&mut self, seen: &UdpObservation, nobody: &Arc<Owner>, max: usize) -> &mut UdpSocket {
        if !self.by_cookie.contains_key(&seen.cookie)
            && self.by_cookie.len() >= max
            && let Some((_, oldest)) = self.by_cookie.pop_first()
        {
            self.stream_floor = self.stream_floor.max(oldest.stream);
        }
        self.by_cookie.entry(seen.cookie).or_insert_with(|| UdpSocket {
            owner: Arc::clone(nobody),
            local: seen.tuple.local,
            netns: seen.tuple.netns,
            serves: false,
            ended: None,
            current: None,
            read_at: KernelTime(0),
            stream: self.stream_floor,
        })
    }
}

impl FlowTable {
    pub(super) fn observe_udp(&mut self, seen: &UdpObservation) {
        let peer = PeerKey {
            cookie: seen.cookie,
            peer: seen.tuple.remote,
        };
        self.merge_socket(seen);
        if seen.tuple.remote.port != 0 && seen.counters.last > KernelTime(0) {
            self.observe_peer(peer, seen);
        }
        if seen.ended {
            self.end_udp_socket(seen.cookie, seen.at);
        }
        if seen.owner.is_none() {
            self.udp.let_go_of_remnant(seen.cookie);
        }
    }

    /// All that was known of the socket ends, its peers may be forgotten.
    pub(super) fn end_udp_socket(&mut self, cookie: Cookie, at: KernelTime) {
        let Some(socket) = self.udp.by_cookie.get_mut(&cookie) else {
            return;
        };
        if socket.ended.is_none() {
            socket.ended = Some(at);
            self.past.bury_udp(cookie, at);
        }
        let live = self.udp.live.range(PeerKey::all_of(cookie));
        let live: Vec<_> = live.map(|(_, &handle)| handle).collect();
        for handle in live {
            if let Some(flow) = self.flows.get_mut(handle) {
                flow.end(at, at, EndReason::EndOfFlow);
            }
            self.arm(handle);
        }
        self.past.ask_to_forget_all(cookie);
    }

    /// Whether the kernel may delete a peer's entry: the current one is part of the socket's own.
    pub(super) fn may_forget(&self, peer: &PeerKey) -> bool {
        self.udp
            .by_cookie
            .get(&peer.cookie)
            .is_none_or(|socket| socket.ended.is_some() || socket.current != Some(peer.peer))
    }

    /// Whether a peer's entry may go with the socket's own.
    pub(super) fn is_idle_of_nobody(&self, peer: &PeerKey) -> bool {
        self.udp.idle_of_nobody(peer.cookie).as_ref() == Some(peer)
    }

    fn merge_socket(&mut self, seen: &UdpObservation) {
        let nobody = self.owners.nobody();
        let socket = self.udp.of(seen, &nobody, self.options.max_flows);
        let newer = seen.at >= socket.read_at;
        if seen.tuple.remote.port != 0 {
            socket.serves |= seen.counters.peer_first;
        }
        let Some(owner) = &seen.owner else { return };
        let (offered, held) = (rank(owner.confidence), rank(socket.owner.confidence));
        if (offered > held || (offered == held && newer)) && *socket.owner != *owner {
            socket.owner = self.owners.share(owner);
        }
        if !newer {
            return;
        }
        socket.read_at = seen.at;
        if seen.tuple.local.port != 0 {
            socket.local = seen.tuple.local;
        }
        let current = (seen.tuple.remote.port != 0).then_some(seen.tuple.remote);
        let before = std::mem::replace(&mut socket.current, current);
        if let Some(peer) = before
            && before != current
        {
            self.past.ask_to_forget(PeerKey {
                cookie: seen.cookie,
                peer,
            });
        }
    }

    fn observe_peer(&mut self, peer: PeerKey, seen: &UdpObservation) {
        let last = seen.counters.last;
        if let Some(&handle) = self.udp.live.get(&peer) {
            let speaks_again = self
                .flows
                .get(handle)
                .is_some_and(|flow| matches!(flow.twin, Twin::Orphan(end) if last > end.after(ORPHAN_GRACE)));
            if !speaks_again {
                self.merge_peer(handle, seen);
                return;
            }
            self.remove(handle, seen.at);
        }
        self.open_peer(peer, seen);
    }

    fn open_peer(&mut self, peer: PeerKey, seen: &UdpObservation) {
        let (first, last) = (seen.counters.first, seen.counters.last);
        let past = self.past.peer(&peer);
        let (base, start, generation) = match past {
            Some(past) if last <= past.newest => return,
            Some(past) if first <= past.newest => (past.counted, last, past.generation),
            Some(_) => (Sides::default(), first, first),
            None if first <= self.past.baseline_before => (counters::udp(&seen.counters), last, first),
            None => (Sides::default(), first, first),
        };
        self.past.resume_peer(&peer);
        self.make_room(seen.at);
        let Some(socket) = self.udp.by_cookie.get_mut(&peer.cookie) else {
            return;
        };
        socket.stream = socket.stream.saturating_add(1);
        let (stream, ended) = (socket.stream, socket.ended);
        let grown = counters::udp(&seen.counters).minus(base);
        let first_in = match (grown.sent.packets, grown.received.packets) {
            (0, received) if received > 0 => true,
            (sent, 0) if sent > 0 => false,
            _ => seen.counters.peer_first,
        };
        let facts = UdpFacts { generation, first_in };
        let owner = Arc::clone(&socket.owner);
        let times = (start, seen.at);
        let key = FlowKey {
            cookie: peer.cookie,
            stream,
        };
        let mut flow = Flow::new(
            key,
            seen.tuple,
            Kind::Udp(facts),
            owner,
            times,
            base,
            &self.options,
        );
        flow.backfilled = seen.backfilled;
        if let Some(at) = ended {
            flow.end(at.max(last), seen.at, EndReason::EndOfFlow);
        }
        let handle = self.insert(flow);
        self.udp.live.insert(peer, handle);
        self.merge_peer(handle, seen);
        self.seek_twin(handle);
        self.arm(handle);
    }

    fn merge_peer(&mut self, handle: Handle, seen: &UdpObservation) {
        let socket = self.udp.by_cookie.get(&seen.cookie);
        let Some(flow) = self.flows.get_mut(handle) else {
            return;
        };
        let carried = flow.carry();
        let Kind::Udp(facts) = &mut flow.kind else { return };
        let (first, last) = (seen.counters.first, seen.counters.last);
        let (carry, generation) = if first > flow.newest.max(facts.generation) {
            (flow.seen, first)
        } else if first < facts.generation && last > flow.newest {
            // The older counting goes on: it had been read apart from the part that is current.
            (Sides::default(), first)
        } else if first < facts.generation {
            return;
        } else {
            (carried, facts.generation)
        };
        facts.generation = generation;
        flow.set_carry(carry);
        flow.grow(counters::udp(&seen.counters).plus(carry), &mut self.ledger);
        flow.newest = flow.newest.max(last);
        if let Some(socket) = socket
            && !Arc::ptr_eq(&socket.owner, &flow.owner)
        {
            flow.owner = Arc::clone(&socket.owner);
        }
        flow.read_at = flow.read_at.max(seen.at);
        flow.hurry();
        self.tell_leader(handle);
        self.arm(handle);
    }

    /// Takes a UDP flow's totals over into the past.
    pub(super) fn keep_peer(&mut self, handle: Handle) {
        let Some(flow) = self.flows.get(handle) else {
            return;
        };
        let Kind::Udp(facts) = flow.kind else { return };
        let peer = PeerKey {
            cookie: flow.key.cookie,
            peer: flow.tuple.remote,
        };
        let past = PastPeer {
            stream: flow.key.stream,
            counted: flow.seen.minus(flow.carry()),
            newest: flow.newest,
            generation: facts.generation,
            asked: false,
        };
        self.udp.live.remove(&peer);
        self.past.keep_peer(peer, past, self.options.max_flows);
        if self.may_forget(&peer) {
            self.past.ask_to_forget(peer);
        }
        // Its own peer may have fallen silent before others did.
        if let Some(own) = self.udp.idle_of_nobody(peer.cookie) {
            self.past.ask_to_forget(own);
        }
        self.udp.let_go_of_remnant(peer.cookie);
    }
}
