//! Finds the two sockets of one connection on this host and lets one speak for both.
//!
//! Twins' tuples mirror each other and their lives overlap; loopback addresses pair within one network namespace only
//! ([`PairKey`]). When more than one could be meant, none is joined, and a join that no record has told yet is undone.
//! The initiator leads, unless the other one has spoken already: a connection is never counted twice. What the silent
//! one counts is the same octets again and goes to `joined` in the law.
//!
//! The last [`SPOKEN_MAX`] flows that ended alone are remembered, so that a twin that shows up after them stays silent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use foldhash::fast::FixedState;

use super::FlowTable;
use super::entry::{Flow, Kind, Peer, Twin};
use super::key::{FlowKey, PairKey};
use crate::time::KernelTime;

/// Most flows that ended alone and are remembered for a late twin.
///
/// A twin comes late when its events were lost and a walk finds it: seconds, so 1,000 connections a second are covered.
/// Double it, and it costs another 1 MB.
const SPOKEN_MAX: usize = 8192;

/// Flows by what their twins would look for.
#[derive(Debug)]
pub(super) struct PairIndex(HashMap<PairKey, Candidates, FixedState>);

#[derive(Debug)]
enum Candidates {
    One(FlowKey),
    Many(Vec<FlowKey>),
}

impl PairIndex {
    pub(super) fn new(hasher: &FixedState) -> Self {
        Self(HashMap::with_hasher(hasher.clone()))
    }

    pub(super) fn insert(&mut self, pair: PairKey, key: FlowKey) {
        self.0
            .entry(pair)
            .and_modify(|held| match held {
                Candidates::One(first) => *held = Candidates::Many(vec![*first, key]),
                Candidates::Many(keys) => keys.push(key),
            })
            .or_insert(Candidates::One(key));
    }

    pub(super) fn remove(&mut self, pair: PairKey, key: FlowKey) {
        match self.0.get_mut(&pair) {
            Some(Candidates::Many(keys)) => {
                keys.retain(|&held| held != key);
                if let [last] = keys[..] {
                    self.0.insert(pair, Candidates::One(last));
                }
            }
            Some(Candidates::One(held)) if *held == key => {
                self.0.remove(&pair);
            }
            Some(Candidates::One(_)) | None => {}
        }
    }

    fn at(&self, pair: PairKey) -> &[FlowKey] {
        match self.0.get(&pair) {
            None => &[],
            Some(Candidates::One(key)) => std::slice::from_ref(key),
            Some(Candidates::Many(keys)) => keys,
        }
    }
}

/// Flows that ended alone, by tuple, with their lives.
#[derive(Debug)]
pub(super) struct Spoken {
    lives: HashMap<PairKey, (KernelTime, KernelTime), FixedState>,
    order: VecDeque<PairKey>,
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
        let Some(pair) = flow.pair_key() else { return };
        if self.lives.insert(pair, (flow.start, end)).is_none() {
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
        let &(start, end) = self.lives.get(&flow.pair_key()?.mirror())?;
        let overlap = flow.start <= end && flow.ended.is_none_or(|ended| ended.at >= start);
        overlap.then_some(end)
    }
}

impl FlowTable {
    /// Joins the flow with its twin, if exactly one could be meant.
    pub(super) fn seek_twin(&mut self, key: FlowKey) {
        let Some(flow) = self.entries.get(&key) else {
            return;
        };
        let Some(own) = flow.pair_key() else { return };
        let meeting = |pair: PairKey, one: &Flow| -> Vec<FlowKey> {
            let meets = |other: &FlowKey| self.entries.get(other).is_some_and(|other| other.meets(one));
            self.pairs.at(pair).iter().copied().filter(meets).collect()
        };
        let twins = meeting(own.mirror(), flow);
        let [twin] = twins[..] else {
            if twins.is_empty() {
                self.hush(key);
            } else {
                self.part_untold(&twins);
            }
            return;
        };
        let rivals = meeting(own, &self.entries[&twin]);
        if rivals.len() == 1 {
            self.join(key, twin);
        } else {
            self.part_untold(&rivals);
        }
    }

    /// Keeps a flow silent whose twin has spoken for it and left.
    fn hush(&mut self, key: FlowKey) {
        let Some(flow) = self.entries.get_mut(&key) else {
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

    fn join(&mut self, a: FlowKey, b: FlowKey) {
        let (first, second) = (&self.entries[&a], &self.entries[&b]);
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
        if let Some(flow) = self.entries.get_mut(&follower) {
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
        if let Some(flow) = self.entries.get_mut(&leader) {
            flow.twin = Twin::Leads(follower);
        }
        self.tell_leader(follower);
    }

    /// Whether the first of two undecided twins is the initiator.
    fn leads(&self, first: &Flow, second: &Flow) -> bool {
        match (first.initiates(), second.initiates()) {
            (Some(one), Some(other)) if one == other => first.start <= second.start,
            (Some(initiates), _) => initiates,
            (None, Some(other_initiates)) => !other_initiates,
            (None, None) => self.infer_initiates(first),
        }
    }

    /// Gives the leader what its follower knows.
    pub(super) fn tell_leader(&mut self, follower: FlowKey) {
        let Some(flow) = self.entries.get(&follower) else {
            return;
        };
        let Twin::Follows(leader) = flow.twin else { return };
        let owner = Arc::clone(&flow.owner);
        let flags_sent = flow.flags().0;
        let retransmits = match flow.kind {
            Kind::Tcp(tcp) => tcp.retransmits,
            Kind::Udp(_) => 0,
        };
        let Some(flow) = self.entries.get_mut(&leader) else {
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
        match &mut flow.peer {
            Some(peer) => **peer = known,
            None => flow.peer = Some(Box::new(known)),
        }
        flow.hurry();
        self.arm(leader);
    }

    /// Undoes the joins of these flows that no record has told.
    fn part_untold(&mut self, keys: &[FlowKey]) {
        for &key in keys {
            let Some(flow) = self.entries.get(&key) else {
                continue;
            };
            let (leader, follower) = match flow.twin {
                Twin::Leads(follower) => (key, follower),
                Twin::Follows(leader) => (leader, key),
                Twin::Open | Twin::Alone | Twin::Orphan(_) => continue,
            };
            if self.entries.get(&leader).is_none_or(|flow| flow.part > 0) {
                continue;
            }
            if let Some(flow) = self.entries.get_mut(&leader) {
                flow.twin = Twin::Open;
                flow.peer = None;
            }
            if let Some(flow) = self.entries.get_mut(&follower) {
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
        for (key, flow) in &self.entries {
            match flow.twin {
                Twin::Leads(twin) => assert_eq!(self.entries[&twin].twin, Twin::Follows(*key)),
                Twin::Follows(twin) => assert_eq!(self.entries[&twin].twin, Twin::Leads(*key)),
                Twin::Open | Twin::Alone | Twin::Orphan(_) => {}
            }
            if let Some(pair) = flow.pair_key() {
                assert!(self.pairs.at(pair).contains(key), "{key:?} cannot be found");
            }
        }
    }
}
