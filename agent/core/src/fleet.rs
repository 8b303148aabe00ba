//! A connection between two hosts of the fleet is told to a collector once, with both owners.
//!
//! In: lists of the agents that export to the same collectors ([`Members`]), records about to be kept, time, what the other
//! end's agent says. Out: for each record the collectors that must not get it and how its counters are to be read
//! ([`Fleet::judge`]), records that are to be kept once more for those that were held back ([`Fleet::poll_record`]), questions
//! ([`Fleet::poll_question`]), sums per peer. Reads no clock, does no IO.
//!
//! Who speaks is in [`rule`]; what is held back in `held`. A record that is held back goes into the spool like any other, kept
//! from the collectors concerned (law 2: [`ReportedByPeer`](crate::loss::DropPoint::ReportedByPeer)); so whoever goes on
//! from the spool knows all that was made. What is to be told after all is added again, kept from everybody else, under the
//! same identity: a collector gets each once.
//! Of flows that have ended, and of those of which it is open who speaks, the newest record is held here, in memory:
//! [`PEER_GRACE`] long, or until that is decided. Flows that live on tell everything with their next record's totals.
//!
//! The driver:
//! ```text
//! fleet.handle_timeout(now);                              each turn; and after each list
//! fleet.name_far_end(&mut record, start, now)             Waiting: at most as long as for names
//! fleet.judge(&mut record, start, now);                   then add poll_record()s, then the record
//! while let Some(question) = fleet.poll_question() { … }  to the controller
//! ```
//! To the session: [`Fleet::expect`] once at the start if there is a controller; [`Fleet::handle_connected`] after each
//! Welcome, [`Fleet::handle_lost`] when the stream ends; members, questions and answers as they come.
//!
//! What it cannot do: a kill forgets what is held (records of the last 30 s of flows that ended, should the speaker die
//! too); an agent that comes back without a controller does not know its peers, and speaks for itself; one that comes back
//! while a peer is dead knows nothing of it, and what neither had told of their flows is missing; the totals of two
//! flows on the same ports within a minute are one flow to ntopng, which then misses the lesser; of totals beyond 4 GiB
//! one end goes on with deltas. A tuple that NAT changes matches nobody: two records.
//! Invariants: bounded by [`held::HELD_MAX`](self), `ask` and `lists`; an agent without lists changes no record.
//! Source: design section 6; ntopng keeps the greatest total, adds deltas, and keeps a flow's first process data.

mod ask;
pub mod end;
mod ended;
mod held;
mod lists;
pub mod rule;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session;

use crate::flow::record::{
    CollectorSet, CollectorSlot, Counting, Counts, EndReason, FlowRecord, Party, RecordId, Traffic,
};
use crate::owner::Owner;
use crate::time::{KernelTime, WallOffset, WallTime};

use ask::{Asks, Key};
use held::{Entry, FlowId, Held};
use lists::{Known, Lists, is_shared};
use rule::{LISTS_APART, Partial, Verdict, are_beyond, speaks, verdict};

use ended::Ended;
pub use held::HELD_MAX;
pub use lists::{ADDRESSES_MAX, LEFT_REMEMBERED, LISTS_MAX, Members, MembersError};

/// How long the last record of a flow that the other end tells is kept.
///
/// A dead agent is noticed within 10 s and told within 10, in most fleets within 5; the take-over waits 10 more. Half of it loses the ends of flows
/// when a host dies; double it, and twice as many records are held.
pub const PEER_GRACE: Duration = Duration::from_secs(30);

/// How long an agent that expects a list waits for it before it speaks for all flows: as totals while a stream is open, since
/// others may do the same until the list comes.
///
/// A session is open within a second, as a rule. Half of it is too short for a controller that admits a storm; double it,
/// and an agent without its controller begins so late that ntopng calls it idle.
pub const FIRST_LIST_WAIT: Duration = Duration::from_secs(10);

/// Most peers of which sums are kept.
const PEERS_MAX: usize = ADDRESSES_MAX;

/// Sums of so many peers are kept although they may be gone; beyond it those are forgotten that no list has.
///
/// As many as a heartbeat tells of. Half of it forgets what is still compared; double it, and those that are gone crowd out others.
const SUMS_KEPT: usize = 1_024;

/// What this agent told, and left to the other end, of its flows with one other agent, while the rule decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerSums {
    /// Records told.
    pub spoken_records: u64,
    /// IP octets in them, both directions.
    pub spoken_octets: u64,
    /// Records left to the other end.
    pub held_records: u64,
    /// IP octets in them.
    pub held_octets: u64,
}

/// Whether a record has all that it will get of its far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum FarEnd {
    /// Nothing more to come.
    Complete,
    /// The other end was asked.
    Waiting,
}

/// A collector that is fed.
#[derive(Debug)]
struct Fed {
    slot: CollectorSlot,
    since: KernelTime,
}

/// What one agent knows of the others, and decides with it. See the module.
#[derive(Debug, Default)]
pub struct Fleet {
    /// Name of this agent, once it was told.
    own: Option<MemberName>,
    /// Whether a controller will tell lists.
    expects: bool,
    connected: bool,
    fed: BTreeMap<CollectorName, Fed>,
    lists: Lists,
    held: Held,
    released: VecDeque<FlowRecord>,
    asks: Asks,
    ended: Ended,
    sums: BTreeMap<MemberName, PeerSums>,
    crowded_out: u64,
}

impl Fleet {
    /// An agent without a controller: everything goes out as it is.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A controller will tell lists: for [`FIRST_LIST_WAIT`] after a collector's start its records wait for the first.
    pub fn expect(&mut self) {
        self.expects = true;
    }

    /// A stream to the controller is open, and this is the agent's name.
    pub fn handle_connected(&mut self, own: MemberName) {
        self.own = Some(own);
        self.connected = true;
        self.lists.handle_connected();
    }

    /// The stream is over.
    pub fn handle_lost(&mut self, now: KernelTime) {
        self.connected = false;
        self.lists.handle_lost(now);
        self.asks.handle_lost();
        self.held.wake_all(now);
    }

    /// A list was told. An older one than the one held changes nothing; nor does one without this agent.
    pub fn handle_members(&mut self, members: Members, now: KernelTime) {
        if !self.connected || !self.own.as_ref().is_some_and(|own| members.is_for(own)) {
            return;
        }
        if self.lists.is_full() {
            self.lists.retain(|name| self.fed.contains_key(name));
        }
        if self.lists.handle_members(members, now) {
            self.held.wake_all(now);
            self.forget_sums();
        }
    }

    /// A collector, or one of several together, is fed from now on.
    pub fn feed(&mut self, name: CollectorName, slot: CollectorSlot, now: KernelTime) {
        self.fed.insert(name, Fed { slot, since: now });
    }

    /// A collector is not fed any more. Its list is kept: it may be fed again on other terms in a moment, and the controller
    /// tells a list only when it changes.
    pub fn starve(&mut self, name: &CollectorName) {
        self.fed.remove(name);
    }

    /// Decides who gets a record of a flow that began at `start`. What is held back is kept from its collectors.
    ///
    /// Before the record is kept, [`Self::poll_record`] gives what must be kept before it.
    pub fn judge(&mut self, record: &mut FlowRecord, start: KernelTime, now: KernelTime) {
        if !self.expects && self.own.is_none() {
            return;
        }
        let judged = self.sort(record, record.held_from, start, now);
        let flow = flow_of(record.id);
        if judged.is_plain() && self.held.len() == 0 {
            return;
        }
        self.count(&judged, record);
        let last = record.reason != EndReason::ActiveTimeout;
        let keep = if last {
            judged.held.and(judged.waiting)
        } else {
            judged.waiting
        };
        let mut held = self.held.take(flow);
        if let Some(entry) = &held {
            self.release(&entry.record, entry.slots.only(judged.delta), Counting::Delta);
        }
        if !keep.is_empty() {
            let mut copy = record.clone();
            copy.counting = Counting::Delta;
            let entry = match held.take().filter(|entry| !entry.slots.only(keep).is_empty()) {
                Some(mut entry) => {
                    entry.slots = entry.slots.only(keep);
                    entry.merge(copy, keep, now);
                    entry
                }
                None => Entry::new(copy, start, keep, now),
            };
            let grace = now.after(PEER_GRACE);
            let wake = judged.until.map_or(grace, |until| until.min(grace));
            self.hold(flow, entry, wake);
        }
        let total_only = judged.delta.is_empty() && !judged.total.is_empty();
        if !total_only {
            self.release(record, judged.total, Counting::Total);
        }
        record.counting = if total_only {
            Counting::Total
        } else {
            Counting::Delta
        };
        let mut kept_from = judged.held.and(judged.waiting);
        if !total_only {
            kept_from = kept_from.and(judged.total);
        }
        record.held_from = record.held_from.and(kept_from);
    }

    /// Asks who is at the far end, or tells it in the record, when this agent may speak for the flow. Whose this end is can be
    /// asked for from here on.
    pub fn name_far_end(&mut self, record: &mut FlowRecord, start: KernelTime, now: KernelTime) -> FarEnd {
        if self.own.is_none() || record.reason.is_failed_attempt() {
            return FarEnd::Complete;
        }
        let judged = self.sort(record, record.held_from, start, now);
        if judged.peer.is_some() && record.reason != EndReason::ActiveTimeout {
            // Before it waits for anything: the other end's agent may wait for this one's answer, and this one for the other's.
            self.ended.remember(record, now);
        }
        let silent = judged.delta.is_empty() && judged.total.is_empty() && judged.waiting.is_empty();
        if judged.peer.is_none() || silent {
            return FarEnd::Complete;
        }
        let Some(key) = Key::of(record) else {
            return FarEnd::Complete;
        };
        let Some(far) = far_end(record) else {
            return FarEnd::Complete;
        };
        match self.asks.find(key, self.connected, now) {
            ask::Found::Known(owner) => {
                far.owner = Owner::clone(&owner);
                FarEnd::Complete
            }
            ask::Found::Absent => FarEnd::Complete,
            ask::Found::Waiting => FarEnd::Waiting,
        }
    }

    /// The next question to the controller.
    pub fn poll_question(&mut self) -> Option<session::Question> {
        self.asks.poll()
    }

    /// What the other end's agent answered. An answer to nothing is ignored.
    pub fn handle_answer(&mut self, answer: &session::Answer, now: KernelTime) {
        let owner = answer.end.as_ref().and_then(end::owner_of);
        self.asks.handle_answer(answer.id, owner.map(Arc::new), now);
    }

    /// Whether this agent may tell whoever is at `peer` about its own end.
    #[must_use]
    pub fn may_answer(&self, asked: &end::Asked) -> bool {
        self.lists.is_listed(asked.peer.address) && self.lists.is_listed(asked.near.address)
    }

    /// Whose an end of this host was, of a flow with another agent that is over.
    #[must_use]
    pub fn owner_of_ended(&self, asked: &end::Asked, now: KernelTime) -> Option<Owner> {
        self.ended.owner(asked, now)
    }

    /// Looks again at what is held.
    pub fn handle_timeout(&mut self, now: KernelTime) {
        self.asks.handle_timeout(now);
        while let Some((flow, entry)) = self.held.poll(now) {
            self.settle(flow, entry, now);
        }
    }

    /// When something held is to be looked at again; the driver may be late.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<KernelTime> {
        self.held.first_wake()
    }

    /// The next record that is to be kept once more, for those that did not get it.
    pub fn poll_record(&mut self) -> Option<FlowRecord> {
        self.released.pop_front()
    }

    /// The agent stops: what would still have been decided goes out with its totals, what the other end tells does not.
    pub fn handle_stop(&mut self, now: KernelTime) {
        for entry in self.held.drain() {
            self.force(&entry, now);
        }
    }

    /// What was told and left, by peer.
    pub fn sums(&self) -> impl Iterator<Item = (&MemberName, &PeerSums)> {
        self.sums.iter()
    }

    /// Flows of which a record is held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Flows whose held record had to make room for others.
    #[must_use]
    pub fn crowded_out(&self) -> u64 {
        self.crowded_out
    }

    /// Sorts the collectors, but those in `out`, by what they get of a record.
    fn sort(&self, record: &FlowRecord, out: CollectorSet, start: KernelTime, now: KernelTime) -> Judged {
        let mut judged = Judged::default();
        let ends = ends(record);
        for (name, fed) in self.fed.iter().filter(|(_, fed)| !out.contains(fed.slot)) {
            let decided = match ends {
                Some((near, far)) => self.decide(name, fed, (near, far), record, start, now),
                None => Decided {
                    verdict: Verdict::Delta,
                    known: None,
                },
            };
            match decided.verdict {
                Verdict::Delta => judged.delta.insert(fed.slot),
                Verdict::Total => judged.total.insert(fed.slot),
                Verdict::Held => judged.held.insert(fed.slot),
                Verdict::Until(at) => {
                    judged.waiting.insert(fed.slot);
                    judged.until = Some(judged.until.map_or(at, |until| until.min(at)));
                }
            }
            if judged.peer.is_none()
                && let Some(known) = decided.known
            {
                let settled = known.between.changed.after(LISTS_APART);
                let ruled = known.between.partial == Partial::Neither && start >= settled;
                judged.ruled = ruled.then_some(decided.verdict);
                judged.peer = Some(known.peer);
            }
        }
        judged
    }

    fn decide(
        &self,
        name: &CollectorName,
        fed: &Fed,
        (near, far): (&Party, &Party),
        record: &FlowRecord,
        start: KernelTime,
        now: KernelTime,
    ) -> Decided {
        let own = self.own.as_ref().filter(|_| self.lists.is_told(name));
        let Some(own) = own else {
            let until = fed.since.after(FIRST_LIST_WAIT);
            let verdict = match () {
                () if self.expects && now < until => Verdict::Until(until),
                () if self.expects && self.connected && !are_beyond(&before(record)) => Verdict::Total,
                () => Verdict::Delta,
            };
            return Decided { verdict, known: None };
        };
        let (near, far) = (near.endpoint, far.endpoint);
        let known = self.lists.between(name, own, near.address, far.address, now);
        let verdict = known.as_ref().map_or(Verdict::Delta, |known| {
            let told = before(record);
            verdict(known.between, speaks(near, far), start, &told, now)
        });
        Decided { verdict, known }
    }

    fn hold(&mut self, flow: FlowId, entry: Entry, wake: KernelTime) {
        let now = entry.newest;
        if let Some(pushed_out) = self.held.put(flow, entry, wake) {
            self.crowded_out += 1;
            self.force(&pushed_out, now);
        }
    }

    /// Decides about what was held.
    fn settle(&mut self, flow: FlowId, mut entry: Entry, now: KernelTime) {
        let judged = self.sort(&entry.record, entry.slots.others(), entry.start, now);
        self.release(&entry.record, judged.delta, Counting::Delta);
        self.release(&entry.record, judged.total, Counting::Total);
        let grace = entry.newest.after(PEER_GRACE);
        entry.slots = judged.waiting;
        let graced = entry.is_last() && now < grace && !judged.held.is_empty();
        if graced {
            entry.slots = entry.slots.and(judged.held);
        }
        // Always later than now: what waits is decided later, and grace counts only while it lasts.
        match judged.until {
            Some(until) if graced => self.hold(flow, entry, until.min(grace)),
            Some(until) => self.hold(flow, entry, until),
            None if graced => self.hold(flow, entry, grace),
            None => {}
        }
    }

    /// Decides at once about what was held.
    fn force(&mut self, entry: &Entry, now: KernelTime) {
        let judged = self.sort(&entry.record, entry.slots.others(), entry.start, now);
        self.release(&entry.record, judged.delta, Counting::Delta);
        self.release(&entry.record, judged.total.and(judged.waiting), Counting::Total);
    }

    /// Has a copy of a record kept for `slots` alone.
    fn release(&mut self, record: &FlowRecord, slots: CollectorSet, counting: Counting) {
        if !slots.is_empty() {
            self.released.push_back(FlowRecord {
                counting,
                held_from: slots.others(),
                ..record.clone()
            });
        }
    }

    /// Makes room: sums with agents that no list has any more.
    fn forget_sums(&mut self) {
        if self.sums.len() > SUMS_KEPT {
            let names = self.lists.names();
            self.sums.retain(|name, _| names.contains(name));
        }
    }

    fn count(&mut self, judged: &Judged, record: &FlowRecord) {
        let (Some(peer), Some(verdict)) = (&judged.peer, judged.ruled) else {
            return;
        };
        if self.sums.len() >= PEERS_MAX && !self.sums.contains_key(&**peer) {
            return;
        }
        let sums = self.sums.entry(MemberName::clone(peer)).or_default();
        let octets = record
            .delta
            .forward
            .octets
            .saturating_add(record.delta.backward.octets);
        let (records, sum) = match verdict {
            Verdict::Delta | Verdict::Total => (&mut sums.spoken_records, &mut sums.spoken_octets),
            Verdict::Held => (&mut sums.held_records, &mut sums.held_octets),
            Verdict::Until(_) => return,
        };
        *records += 1;
        *sum = sum.saturating_add(octets);
    }
}

struct Decided {
    verdict: Verdict,
    known: Option<Known>,
}

/// Collectors by what they get of a record.
#[derive(Debug, Default)]
struct Judged {
    delta: CollectorSet,
    total: CollectorSet,
    held: CollectorSet,
    waiting: CollectorSet,
    /// When the first of those that wait is decided.
    until: Option<KernelTime>,
    /// The agent at the far end, if any list has both.
    peer: Option<Arc<MemberName>>,
    /// What the rule says, while nothing changes.
    ruled: Option<Verdict>,
}

impl Judged {
    /// Whether everybody gets the record as it is.
    fn is_plain(&self) -> bool {
        self.total.is_empty() && self.held.is_empty() && self.waiting.is_empty() && self.peer.is_none()
    }
}

/// When a flow began, on the kernel's clock, of a record that `offset` turned into wall time.
#[must_use]
pub fn start_of(record: &FlowRecord, offset: WallOffset) -> KernelTime {
    let WallTime(start) = record.start;
    KernelTime(
        start
            .cast_signed()
            .saturating_sub(offset.0)
            .max(0)
            .cast_unsigned(),
    )
}

fn flow_of(id: RecordId) -> FlowId {
    (id.cookie, id.stream)
}

/// This host's end and the other, when the other is on another host and both mean the same hosts everywhere.
fn ends(record: &FlowRecord) -> Option<(&Party, &Party)> {
    let (one, other) = (&record.initiator, &record.responder);
    let (near, far) = match (one.owner.is_remote(), other.owner.is_remote()) {
        (false, true) => (one, other),
        (true, false) => (other, one),
        (false, false) | (true, true) => return None,
    };
    let shared = |party: &Party| party.endpoint.port != 0 && is_shared(party.endpoint.address.to_canonical());
    (shared(near) && shared(far)).then_some((near, far))
}

fn far_end(record: &mut FlowRecord) -> Option<&mut Party> {
    ends(record)?;
    Some(if record.initiator.owner.is_remote() {
        &mut record.initiator
    } else {
        &mut record.responder
    })
}

/// A flow's totals before this record.
fn before(record: &FlowRecord) -> Traffic {
    let minus = |total: Counts, delta: Counts| Counts {
        octets: total.octets.saturating_sub(delta.octets),
        packets: total.packets.saturating_sub(delta.packets),
        payload: total.payload.saturating_sub(delta.payload),
    };
    Traffic {
        forward: minus(record.total.forward, record.delta.forward),
        backward: minus(record.total.backward, record.delta.backward),
    }
}
