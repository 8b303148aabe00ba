//! Finds the two sockets of one connection on this host and lets one speak for both.
//!
//! Twins' tuples mirror each other and their lives overlap; loopback addresses pair within one network namespace only
//! ([`mirrors`]). When more than one could be meant, none is joined, and a join that no record has told yet is undone.
//! The initiator leads, unless the other one has spoken already or alone knows all its octets: a connection is never
//! counted twice. What the silent
//! one counts is the same octets again and goes to `joined` in the law.
//!
//! Flows with the same ends hang in a list each, the newest first: a process can make any number of them. So putting in and
//! taking out are a step each, and of a list the newest [`LOOKED_AT_MAX`] are looked at.
//!
//! The last [`SPOKEN_MAX`] flows that ended alone are remembered, so that a twin that shows up after them stays silent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::FlowTable;
use super::entry::{Flow, Kind, Peer, Twin};
use super::flows::{Flows, Handle};
use super::key::{PairKey, mirrors};
use super::record::Protocol;
use crate::observe::{Endpoint, NetNs, Tuple};
use crate::time::KernelTime;

/// Most flows that ended alone and are remembered for a late twin.
///
/// A twin comes late when its events were lost and a walk finds it: seconds, so 1,000 connections a second are covered.
/// Double it, and it costs another 1 MB.
const SPOKEN_MAX: usize = 8192;

/// Most flows with the same ends that are looked at for a twin.
///
/// Twins are made at about the same time, so they are among the newest. Half of it may miss them where a port is used again
/// and again within a second; double it, and a process that makes nothing but such sockets costs twice as much.
const LOOKED_AT_MAX: usize = 16;

/// Flows by their ends: the newest one, from which the others hang.
#[derive(Debug)]
pub(super) struct PairIndex {
    newest: HashMap<PairKey, Handle, FixedState>,
    hasher: FixedState,
    /// Links that were followed.
    #[cfg(test)]
    pub(super) followed: std::cell::Cell<u64>,
}

/// Where a flow hangs among the pairs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hanging {
    /// Its ends; `None`: it cannot have a twin, and hangs nowhere.
    pub(super) pair: Option<PairKey>,
    /// The flow that was put in after it.
    newer: Option<Handle>,
    /// The flow that was put in before it.
    older: Option<Handle>,
}

impl PairIndex {
    pub(super) fn new(hasher: &FixedState) -> Self {
        Self {
            newest: HashMap::with_hasher(hasher.clone()),
            hasher: hasher.clone(),
            #[cfg(test)]
            followed: std::cell::Cell::default(),
        }
    }

    /// Puts a flow in under its tuple.
    pub(super) fn insert(&mut self, handle: Handle, flows: &mut Flows) {
        let Some(flow) = flows.get_mut(handle) else { return };
        let pair = PairKey::of(flow.protocol(), &flow.tuple, &self.hasher);
        let older = pair.and_then(|pair| self.newest.insert(pair, handle));
        flow.hanging = Hanging {
            pair,
            newer: None,
            older,
        };
        if let Some(older) = older.and_then(|older| flows.get_mut(older)) {
            older.hanging.newer = Some(handle);
        }
    }

    /// Takes out a flow that hung there; it is no longer among `flows`, or will be put in again.
    pub(super) fn remove(&mut self, hanging: Hanging, flows: &mut Flows) {
        let Hanging { pair, newer, older } = hanging;
        let Some(pair) = pair else { return };
        if let Some(older) = older.and_then(|older| flows.get_mut(older)) {
            older.hanging.newer = newer;
        }
        match (newer.and_then(|newer| flows.get_mut(newer)), older) {
            (Some(newer), _) => newer.hanging.older = older,
            (None, Some(older)) => {
                self.newest.insert(pair, older);
            }
            (None, None) => {
                self.newest.remove(&pair);
            }
        }
    }

    /// Flows at the other end of `one`'s connection whose lives overlap with its own, as far as they are looked at.
    fn twins<'a>(&'a self, one: &'a Flow, flows: &'a Flows) -> impl Iterator<Item = Handle> + 'a {
        let pair = one.hanging.pair.map(PairKey::mirror);
        self.hanging(pair, flows)
            .take(LOOKED_AT_MAX)
            .filter(|(_, other)| other.protocol() == one.protocol())
            .filter(|(_, other)| mirrors(&one.tuple, &other.tuple) && other.meets(one))
            .map(|(handle, _)| handle)
    }

    /// Flows with these ends, wherever they live on this host, as far as they are looked at.
    pub(super) fn at<'a>(
        &'a self,
        protocol: Protocol,
        local: Endpoint,
        remote: Endpoint,
        flows: &'a Flows,
    ) -> impl Iterator<Item = &'a Flow> + 'a {
        let tuple = Tuple {
            local,
            remote,
            netns: NetNs(0),
        };
        let pair = PairKey::of(protocol, &tuple, &self.hasher);
        self.hanging(pair, flows)
            .take(LOOKED_AT_MAX)
            .map(|(_, flow)| flow)
            .filter(move |flow| {
                flow.protocol() == protocol && (flow.tuple.local, flow.tuple.remote) == (local, remote)
            })
    }

    /// All flows with these ends, the newest first.
    fn hanging<'a>(
        &'a self,
        pair: Option<PairKey>,
        flows: &'a Flows,
    ) -> impl Iterator<Item = (Handle, &'a Flow)> + 'a {
        let mut next = pair.and_then(|pair| self.newest.get(&pair)).copied();
        std::iter::from_fn(move || {
            let handle = next?;
            #[cfg(test)]
            self.followed.set(self.followed.get() + 1);
            let flow = flows.get(handle)?;
            next = flow.hanging.older;
            Some((handle, flow))
        })
    }
}

/// Flows that ended alone, with their lives.
#[derive(Debug)]
pub(super) struct Spoken {
    lives: HashMap<PairKey, Life, FixedState>,
    order: VecDeque<PairKey>,
}

#[derive(Debug)]
struct Life {
    tuple: Tuple,
    start: KernelTime,
    end: KernelTime,
}

impl Spoken {
    pub(super) fn new(hasher: &FixedState) -> Self {
        Self {
            lives: HashMap::with_hasher(hasher.clone()),
            order: VecDeque::new(),
        }
    }

    /// Remembers that `flow` spoke alone until `end`.
    pub(super) fn remember(&mut self, flow: &Flow, end: KernelTime) {
        let Some(pair) = flow.hanging.pair else { return };
        let life = Life {
            tuple: flow.tuple,
            start: flow.start,
            end,
        };
        if self.lives.insert(pair, life).is_none() {
            self.order.push_back(pair);
        }
        if self.order.len() > SPOKEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.lives.remove(&oldest);
        }
    }

    /// When the one ended that spoke for `flow`'s connection.
    fn end_of_twin(&self, flow: &Flow) -> Option<KernelTime> {
        let life = self.lives.get(&flow.hanging.pair?.mirror())?;
        let overlap = flow.start <= life.end && flow.ended.is_none_or(|ended| ended.at >= life.start);
        (overlap && mirrors(&life.tuple, &flow.tuple)).then_some(life.end)
    }
}

impl FlowTable {
    /// Joins the flow with its twin, if exactly one could be meant.
    pub(super) fn seek_twin(&mut self, handle: Handle) {
        let Some(flow) = self.flows.get(handle) else {
            return;
        };
        if flow.hanging.pair.is_none() {
            return;
        }
        let mut twins = self.pairs.twins(flow, &self.flows);
        let Some(twin) = twins.next() else {
            drop(twins);
            return self.hush(handle);
        };
        if let Some(second) = twins.next() {
            let twins: Vec<_> = [twin, second].into_iter().chain(twins).collect();
            return self.part_untold(&twins);
        }
        drop(twins);
        let mut rivals = self.pairs.twins(&self.flows[twin], &self.flows);
        let first = rivals.next();
        if let Some(second) = rivals.next() {
            let rivals: Vec<_> = first.into_iter().chain([second]).chain(rivals).collect();
            return self.part_untold(&rivals);
        }
        drop(rivals);
        if first.is_some() {
            self.join(handle, twin);
        }
    }

    /// Keeps a flow silent whose twin has spoken for it and left.
    fn hush(&mut self, handle: Handle) {
        let Some(flow) = self.flows.get_mut(handle) else {
            return;
        };
        if flow.twin == Twin::Open
            && flow.part == 0
            && let Some(end) = self.past.spoken.end_of_twin(flow)
        {
            self.ledger.join(flow.unreported());
            flow.reported = flow.seen;
            flow.twin = Twin::Orphan(end);
        }
    }

    fn join(&mut self, a: Handle, b: Handle) {
        let (first, second) = (&self.flows[a], &self.flows[b]);
        let (leader, follower) = match (first.twin, second.twin) {
            (Twin::Open, Twin::Open) => {
                if self.leads(first, second) {
                    (a, b)
                } else {
                    (b, a)
                }
            }
            (Twin::Alone, Twin::Open) | (Twin::Open | Twin::Alone, Twin::Orphan(_)) => (a, b),
            (Twin::Open, Twin::Alone) | (Twin::Orphan(_), Twin::Open | Twin::Alone) => (b, a),
            _ => return,
        };
        if let Some(flow) = self.flows.get_mut(follower) {
            self.ledger.join(flow.unreported());
            if flow.is_silent() {
                // What an earlier leader spoke for must not come back when this join is undone.
                let carry = flow.carry();
                flow.origin = Some(Box::new(super::entry::Origin {
                    base: flow.seen,
                    carry,
                }));
            }
            flow.reported = flow.seen;
            flow.twin = Twin::Follows(leader);
        }
        if let Some(flow) = self.flows.get_mut(leader) {
            flow.twin = Twin::Leads(follower);
        }
        self.tell_leader(follower);
    }

    /// Whether the first of two undecided twins speaks: the one that knows all its octets, else the initiator.
    fn leads(&self, first: &Flow, second: &Flow) -> bool {
        if first.blind != second.blind {
            return second.blind;
        }
        match (first.initiates(), second.initiates()) {
            (Some(one), Some(other)) if one == other => first.start <= second.start,
            (Some(initiates), _) => initiates,
            (None, Some(other_initiates)) => !other_initiates,
            (None, None) => self.infer_initiates(first),
        }
    }

    /// Gives the leader what its follower knows.
    pub(super) fn tell_leader(&mut self, follower: Handle) {
        let Some(flow) = self.flows.get(follower) else {
            return;
        };
        let Twin::Follows(leader) = flow.twin else { return };
        let owner = Arc::clone(&flow.owner);
        let flags_sent = flow.flags().0;
        let retransmits = match flow.kind {
            Kind::Tcp(tcp) => tcp.retransmits,
            Kind::Udp(_) => 0,
        };
        let Some(flow) = self.flows.get_mut(leader) else {
            return;
        };
        let retransmits_reported = match &flow.peer {
            Some(peer) => peer.retransmits_reported,
            None if flow.part == 0 => 0,
            None => retransmits,
        };
        let known = Peer {
            owner,
            retransmits,
            retransmits_reported,
            flags_sent,
        };
        flow.peer = Some(known);
        flow.hurry();
        self.arm(leader);
    }

    /// Undoes the joins of these flows that no record has told.
    fn part_untold(&mut self, flows: &[Handle]) {
        for &key in flows {
            let Some(flow) = self.flows.get(key) else {
                continue;
            };
            let (leader, follower) = match flow.twin {
                Twin::Leads(follower) => (key, follower),
                Twin::Follows(leader) => (leader, key),
                Twin::Open | Twin::Alone | Twin::Orphan(_) => continue,
            };
            if self.flows.get(leader).is_none_or(|flow| flow.part > 0) {
                continue;
            }
            if let Some(flow) = self.flows.get_mut(leader) {
                flow.twin = Twin::Open;
                flow.peer = None;
            }
            if let Some(flow) = self.flows.get_mut(follower) {
                let base = flow.base();
                self.ledger.part(flow.seen.minus(base));
                flow.reported = base;
                flow.twin = Twin::Open;
            }
            self.arm(follower);
        }
    }
}

#[cfg(test)]
impl FlowTable {
    /// Twins name each other, and nobody else.
    pub(super) fn check_twins(&self) {
        let mut hanging = 0;
        for (handle, flow) in self.flows.iter() {
            match flow.twin {
                Twin::Leads(twin) => assert_eq!(self.flows[twin].twin, Twin::Follows(handle)),
                Twin::Follows(twin) => assert_eq!(self.flows[twin].twin, Twin::Leads(handle)),
                Twin::Open | Twin::Alone | Twin::Orphan(_) => {}
            }
            if flow.hanging.pair.is_some() {
                let found = self
                    .pairs
                    .hanging(flow.hanging.pair, &self.flows)
                    .any(|(other, _)| other == handle);
                assert!(found, "{:?} cannot be found", flow.key);
                hanging += 1;
            }
        }
        assert!(self.pairs.newest.len() <= hanging, "pairs of no flow");
    }
}
