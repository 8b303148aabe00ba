//! Ends flows and turns them into records.
//!
//! In: [`Observation`]s and time. Out: [`FlowRecord`]s, each once, the sockets whose counters are to be read
//! ([`FlowTable::poll_due`]) and the peers the kernel may forget ([`FlowTable::poll_forget`]). Reads no clock, does no
//! IO, draws no random number: names and addresses are hashed with a seed from the boot id.
//!
//! The driver, after each batch of observations and at [`FlowTable::poll_timeout`]:
//! ```text
//! table.handle_timeout(now);
//! while let Some(record) = table.poll_record(offset) { … }
//! table.poll_due(&mut cookies, SNAP_KEYS_MAX);            have them read, observe what comes
//! while let Some(forget) = table.poll_forget() { … }      look up, delete, observe the value (see Forget)
//! ```
//!
//! Invariants:
//! - a flow is in `entries` exactly when its deadline is in `by_deadline`, and in `pairs` when it has both ports;
//! - the kernel's counters are cumulative: the table takes the greatest ever seen and makes deltas, so copies and
//!   observations out of order change nothing;
//! - `observed = reported + held + joined` after every call ([`FlowTable::law`]);
//! - a [`RecordId`] is used once; parts of a flow are 1, 2, …; exactly one record, the last, ends it.
//!
//! The life of a flow: seen; its twin found or ruled out and its first record made within
//! [`TableOptions::first_record_after`]; a record each active timeout when anything changed, and at least each
//! [`SILENT_RECORD_AFTER`]; ended by the kernel (TCP, UDP), by silence (UDP) or by a full table; held for [`SETTLE`],
//! in which a reset that left after CLOSE and the twin's end arrive; last record.
//!
//! Source: RFC 7011 §2 (flow), RFC 5102 §5.11 (timeouts), IPFIX element 136 (end reasons).

mod counters;
mod entry;
mod key;
mod ledger;
mod listen;
mod owners;
mod pair;
mod past;
pub mod record;
mod sides;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use foldhash::fast::FixedState;

use crate::loss::KernelLaw;
use crate::observe::{Cookie, Observation};
use crate::owner::{Owner, Unknown};
use crate::time::{KernelTime, WallOffset, WallTime};
use entry::{Flow, Kind, Step, Twin};
use key::FlowKey;
use ledger::Ledger;
pub use listen::Listening;
use owners::Owners;
use pair::PairIndex;
pub use past::Forget;
use past::{Past, PastTcp};
use record::{BootId, CollectorSet, Counting, EndReason, FlowRecord, Party, Protocol, RecordId};
use udp::UdpSockets;

/// Longest time from a flow's start to its first record, whatever the options say.
pub const FIRST_RECORD_AFTER_MAX: Duration = Duration::from_secs(1);
/// Earliest age at which a first record leaves, even when owners and twin are known at once.
///
/// Most short connections are over by then and make one record instead of two. Double it, and a screen feels late.
pub const FIRST_RECORD_SOONEST: Duration = Duration::from_millis(250);
/// How long an ended flow is held for what still comes: a reset sent after CLOSE, the twin's end.
///
/// Twice the time between two drains of the kernel's ring. Half of it may miss the reset's octets; double it, and a
/// short connection's record leaves more than a second after its start.
pub const SETTLE: Duration = Duration::from_millis(200);
/// How long before a record is due the kernel's counters are read.
///
/// Several drains of the ring. Half of it sends stale counters when the host is busy; double it, and a record's span
/// ends a second before the record.
pub const SNAP_LEAD: Duration = Duration::from_millis(500);
/// Least time between asking for counters and a record that is not the first, however late the driver is.
pub const SNAP_ANSWER: Duration = Duration::from_millis(200);
/// Longest time without a record of an open flow, silent or not.
///
/// ntopng ends flows it has not heard of for a minute: at double, one lost record would end them.
pub const SILENT_RECORD_AFTER: Duration = Duration::from_secs(30);
/// How long after its twin's end a UDP flow's datagrams still count as the twin's.
pub const ORPHAN_GRACE: Duration = Duration::from_secs(1);
/// Most records that wait to be polled before [`FlowTable::handle_timeout`] lets the rest wait as flows.
pub const RECORDS_WAITING_MAX: usize = 4096;

/// What the policy decides about the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// The run of the kernel.
    pub boot: BootId,
    /// Most flows held, at least 2. At the bound the oldest ends with [`EndReason::LackOfResources`].
    pub max_flows: usize,
    /// Time between records of a flow that does not end; at least 1 s, at most [`SILENT_RECORD_AFTER`].
    pub active_timeout: Duration,
    /// Longest silence of a UDP flow; at least 1 s.
    pub idle_timeout: Duration,
    /// Time from a flow's start to its first record, at most [`FIRST_RECORD_AFTER_MAX`].
    pub first_record_after: Duration,
}

impl TableOptions {
    /// The defaults: 65,536 flows, active timeout 10 s, idle timeout 15 s, first record after 0.8 s.
    #[must_use]
    pub fn new(boot: BootId) -> Self {
        Self {
            boot,
            max_flows: 65_536,
            active_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(15),
            first_record_after: Duration::from_millis(800),
        }
    }

    fn within_bounds(mut self) -> Self {
        let second = Duration::from_secs(1);
        self.max_flows = self.max_flows.max(2);
        self.active_timeout = self.active_timeout.clamp(second, SILENT_RECORD_AFTER);
        self.idle_timeout = self.idle_timeout.max(second);
        self.first_record_after = self.first_record_after.min(FIRST_RECORD_AFTER_MAX);
        self
    }
}

/// A record whose times are the kernel's.
#[derive(Debug)]
struct Draft {
    record: FlowRecord,
    start: KernelTime,
    delta_start: KernelTime,
    end: KernelTime,
}

/// All flows of this host that are going on.
#[derive(Debug)]
pub struct FlowTable {
    options: TableOptions,
    entries: HashMap<FlowKey, Box<Flow>, FixedState>,
    by_deadline: BTreeSet<(KernelTime, FlowKey)>,
    /// In order of arrival; flows that left are skipped.
    by_age: VecDeque<FlowKey>,
    pairs: PairIndex,
    udp: UdpSockets,
    /// TCP sockets whose flow in the table is not their first.
    resumed: BTreeMap<Cookie, u32>,
    listeners: listen::Listeners,
    past: Past,
    owners: Owners,
    ledger: Ledger,
    due: VecDeque<Cookie>,
    records: VecDeque<Box<Draft>>,
    now: KernelTime,
    /// Set while all flows are being ended.
    ending: bool,
    late: u64,
}

impl FlowTable {
    /// An empty table.
    #[must_use]
    pub fn new(options: TableOptions) -> Self {
        let (low, high) = options.boot.0.split_at(8);
        let seed = |octets: &[u8]| {
            octets
                .iter()
                .fold(0, |seed: u64, &octet| seed << 8 | u64::from(octet))
        };
        // Peers choose addresses and ports: a seed they cannot know keeps them from filling one bucket.
        let hasher = FixedState::with_seed(seed(low) ^ seed(high).rotate_left(32));
        Self {
            options: options.within_bounds(),
            entries: HashMap::with_hasher(hasher.clone()),
            by_deadline: BTreeSet::new(),
            by_age: VecDeque::new(),
            pairs: PairIndex::new(&hasher),
            udp: UdpSockets::default(),
            resumed: BTreeMap::new(),
            listeners: listen::Listeners::new(&hasher),
            past: Past::new(&hasher),
            owners: Owners::new(&hasher),
            ledger: Ledger::default(),
            due: VecDeque::new(),
            records: VecDeque::new(),
            now: KernelTime(0),
            ending: false,
            late: 0,
        }
    }

    /// Puts other options in force; those of time from each flow's next record on. The boot id stays.
    pub fn set_options(&mut self, options: TableOptions) {
        let boot = self.options.boot;
        self.options = TableOptions { boot, ..options }.within_bounds();
        while self.entries.len() > self.options.max_flows {
            self.evict_oldest(self.now);
        }
        let keys: Vec<_> = self.entries.keys().copied().collect();
        for key in keys {
            self.arm(key);
        }
    }

    /// Takes in what the kernel side showed. Order and copies do not matter.
    pub fn observe(&mut self, seen: &Observation) {
        match seen {
            Observation::Opened { cookie, .. } => self.opened(*cookie),
            Observation::Gone { cookie, at } => self.gone(*cookie, *at),
            Observation::Tcp(seen) => self.observe_tcp(seen),
            Observation::Udp(seen) => self.observe_udp(seen),
        }
    }

    /// Does what is due at `now`, as far as there is room for its records ([`RECORDS_WAITING_MAX`]).
    pub fn handle_timeout(&mut self, now: KernelTime) {
        self.now = self.now.max(now);
        while self.records.len() < RECORDS_WAITING_MAX {
            let Some(&(deadline, key)) = self.by_deadline.first() else {
                break;
            };
            if deadline > now {
                break;
            }
            self.handle_deadline(key, now);
        }
        while let Some(cookie) = self.past.expire(now) {
            self.udp.bury(cookie, self.past.baseline_before > KernelTime(0));
        }
    }

    /// When to call [`FlowTable::handle_timeout`] again; may lie in the past when records wait to be polled.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<KernelTime> {
        self.by_deadline.first().map(|&(deadline, _)| deadline)
    }

    /// Appends at most `max` TCP sockets whose counters are wanted: each once, the longest waiting first.
    pub fn poll_due(&mut self, out: &mut Vec<Cookie>, max: usize) {
        let mut room = max;
        while room > 0
            && let Some(cookie) = self.due.pop_front()
        {
            if !self.past.is_dead(cookie) && !self.past.has_left(cookie) {
                out.push(cookie);
                room -= 1;
            }
        }
    }

    /// The next peer that the kernel is to forget.
    pub fn poll_forget(&mut self) -> Option<Forget> {
        self.past.poll_forget(self.now)
    }

    /// The next record. `offset` turns the kernel's times into those of the wall.
    pub fn poll_record(&mut self, offset: WallOffset) -> Option<FlowRecord> {
        while self.records.is_empty() && self.ending {
            match self.by_age.pop_front() {
                Some(key) if self.entries.contains_key(&key) => {
                    self.finish(key, self.now, EndReason::ForcedEnd)
                }
                Some(_) => {}
                None => self.ending = false,
            }
        }
        let draft = self.records.pop_front()?;
        let mut record = draft.record;
        record.start = offset.wall(draft.start);
        record.delta_start = offset.wall(draft.delta_start);
        record.end = offset.wall(draft.end);
        Some(record)
    }

    /// Ends all flows ([`EndReason::ForcedEnd`]); their records come from [`FlowTable::poll_record`].
    pub fn end_all(&mut self, now: KernelTime) {
        self.now = self.now.max(now);
        self.ending = true;
    }

    /// Octets and packets by what became of them.
    #[must_use]
    pub fn law(&self) -> KernelLaw {
        self.ledger.law()
    }

    /// Flows in the table, silent twins included.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.entries.len()
    }

    /// Observations of TCP sockets whose last record had been made: copies, or later than [`SETTLE`] allows.
    #[must_use]
    pub fn late_observations(&self) -> u64 {
        self.late
    }

    /// Ports that answer: TCP listeners, and UDP sockets whose peers spoke first.
    pub fn listeners(&self) -> impl Iterator<Item = Listening<'_>> {
        let udp = self.udp.by_cookie.values();
        let udp = udp.filter(|socket| socket.serves && socket.ended.is_none());
        self.listeners.iter().chain(udp.map(|socket| Listening {
            protocol: Protocol::Udp,
            endpoint: socket.local,
            netns: socket.netns,
            owner: &socket.owner,
        }))
    }

    /// Has a TCP socket read. At the bound, the one that has waited longest is left to the periodic walk.
    fn want(&mut self, cookie: Cookie) {
        if self.due.len() >= self.options.max_flows {
            self.due.pop_front();
        }
        self.due.push_back(cookie);
    }

    /// Asks for the counters of every TCP socket in the table, for last records that are whole.
    pub fn want_all(&mut self) {
        let tcp = self
            .entries
            .iter()
            .filter(|(_, flow)| matches!(flow.kind, Kind::Tcp(_)));
        self.due = tcp.map(|(key, _)| key.cookie).collect();
    }

    /// Puts a flow into all orders.
    fn insert(&mut self, key: FlowKey, flow: Flow) {
        if let Some(pair) = flow.pair_key() {
            self.pairs.insert(pair, key);
        }
        self.by_age.push_back(key);
        if self.by_age.len() > 2 * self.options.max_flows {
            let entries = &self.entries;
            self.by_age
                .retain(|held| entries.contains_key(held) || *held == key);
        }
        self.entries.insert(key, Box::new(flow));
        self.arm(key);
    }

    /// Brings a flow's place in `by_deadline` forward if its state asks for it; a later deadline is found when the
    /// earlier one has passed, which saves moving each flow at each sight.
    fn arm(&mut self, key: FlowKey) {
        let Some(flow) = self.entries.get_mut(&key) else {
            return;
        };
        let deadline = flow.next_deadline(&self.options);
        if flow.deadline.is_some_and(|held| held <= deadline) {
            return;
        }
        if let Some(held) = flow.deadline.replace(deadline) {
            self.by_deadline.remove(&(held, key));
        }
        self.by_deadline.insert((deadline, key));
    }

    /// Does what one flow wants at its deadline, and gives it the next one.
    fn handle_deadline(&mut self, key: FlowKey, now: KernelTime) {
        let Some(flow) = self.entries.get_mut(&key) else {
            return;
        };
        if let Some(held) = flow.deadline.take() {
            self.by_deadline.remove(&(held, key));
        }
        match flow.step(now, &self.options) {
            Step::Wait => {}
            Step::Snap => {
                flow.mark_asked(now);
                self.want(key.cookie);
            }
            Step::Fresh => flow.asked = true,
            Step::Record => self.handle_record_due(key, now),
            Step::End => self.finish(key, now, EndReason::IdleTimeout),
        }
        self.arm(key);
    }

    fn handle_record_due(&mut self, key: FlowKey, now: KernelTime) {
        if self.entries.get(&key).is_some_and(|flow| flow.twin == Twin::Open) {
            self.seek_twin(key);
        }
        let Some(flow) = self.entries.get_mut(&key) else {
            return;
        };
        let speaks = flow.is_worth_a_record(now, &self.options);
        flow.schedule(now, &self.options);
        if speaks {
            self.report(key, now, EndReason::ActiveTimeout);
        }
    }

    /// Makes the last record, if the flow speaks, and takes it out; `reason` counts when it has not ended by itself.
    fn finish(&mut self, key: FlowKey, now: KernelTime, reason: EndReason) {
        let Some(flow) = self.entries.get(&key) else {
            return;
        };
        if flow.twin == Twin::Open {
            self.seek_twin(key);
        }
        let Some(flow) = self.entries.get(&key) else {
            return;
        };
        let reason = flow.ended.map_or(reason, |ended| ended.reason);
        if !flow.is_silent() {
            self.report(key, now, reason);
        }
        self.remove(key, now);
    }

    /// Ends the oldest flows until one more has room.
    fn make_room(&mut self, now: KernelTime) {
        while self.entries.len() >= self.options.max_flows {
            self.evict_oldest(now);
        }
    }

    /// Ends the oldest flow and its silent twin.
    fn evict_oldest(&mut self, now: KernelTime) {
        let Some(oldest) = self.by_age.pop_front() else {
            return;
        };
        let Some(flow) = self.entries.get(&oldest) else {
            return;
        };
        let (speaker, silent) = match flow.twin {
            Twin::Follows(leader) => (leader, Some(oldest)),
            Twin::Leads(follower) => (oldest, Some(follower)),
            Twin::Open | Twin::Alone | Twin::Orphan(_) => (oldest, None),
        };
        // The silent one first: alone in the table it would begin to speak.
        if let Some(silent) = silent {
            self.detach(silent, now);
        }
        self.finish(speaker, now, EndReason::LackOfResources);
    }

    /// Takes a silent flow out before its leader.
    fn detach(&mut self, follower: FlowKey, now: KernelTime) {
        let leader = match self.entries.get(&follower).map(|flow| flow.twin) {
            Some(Twin::Follows(leader)) => leader,
            _ => return,
        };
        self.remove(follower, now);
        if let Some(flow) = self.entries.get_mut(&leader) {
            flow.twin = Twin::Alone;
        }
    }

    /// Takes a flow out of all orders, tells its twin, and keeps what must not be counted again.
    fn remove(&mut self, key: FlowKey, now: KernelTime) {
        let Some(flow) = self.entries.remove(&key) else {
            return;
        };
        if let Some(deadline) = flow.deadline {
            self.by_deadline.remove(&(deadline, key));
        }
        if let Some(pair) = flow.pair_key() {
            self.pairs.remove(pair, key);
        }
        let end = flow.ended.map_or(flow.newest, |ended| ended.at);
        match flow.twin {
            Twin::Leads(follower) => {
                if let Some(twin) = self.entries.get_mut(&follower) {
                    twin.twin = Twin::Orphan(end);
                }
            }
            Twin::Follows(leader) => {
                if let Some(twin) = self.entries.get_mut(&leader) {
                    twin.twin = Twin::Alone;
                }
            }
            Twin::Open | Twin::Alone if flow.peer.is_none() => self.past.spoken.remember(&flow, end),
            Twin::Open | Twin::Alone | Twin::Orphan(_) => {}
        }
        match flow.kind {
            Kind::Udp(_) => self.keep_peer(key, &flow),
            Kind::Tcp(tcp) => {
                self.resumed.remove(&key.cookie);
                if flow.ended.is_some() || self.ending {
                    self.past.bury(key.cookie, now);
                } else {
                    let past = PastTcp {
                        stream: key.stream,
                        opened: tcp.opened,
                        seen: flow.seen,
                        retransmits: tcp.retransmits,
                        silent: matches!(flow.twin, Twin::Orphan(_)),
                    };
                    self.past.keep_tcp(key.cookie, past, self.options.max_flows);
                }
            }
        }
    }

    /// Makes a record of what a flow did since the last one.
    fn report(&mut self, key: FlowKey, now: KernelTime, reason: EndReason) {
        let Some(flow) = self.entries.get(&key) else {
            return;
        };
        let local_initiates = flow
            .local_initiates
            .or_else(|| flow.initiates())
            .unwrap_or_else(|| self.infer_initiates(flow));
        let owner = match flow.kind {
            Kind::Udp(_) => self.udp.by_cookie.get(&key.cookie).map(|socket| &socket.owner),
            Kind::Tcp(_) => None,
        };
        let local = Party {
            endpoint: flow.tuple.local,
            owner: Owner::clone(owner.unwrap_or(&flow.owner)),
        };
        let remote = Party {
            endpoint: flow.tuple.remote,
            owner: remote_owner(flow),
        };
        let (initiator, responder) = if local_initiates {
            (local, remote)
        } else {
            (remote, local)
        };
        let delta = flow.unreported();
        let end = end_of_span(flow, delta.is_zero(), reason);
        let record = FlowRecord {
            id: RecordId {
                boot: self.options.boot,
                cookie: key.cookie,
                stream: key.stream,
                part: flow.part + 1,
            },
            first: flow.part == 0,
            protocol: flow.protocol(),
            initiator,
            responder,
            initiator_seen: !flow.backfilled && flow.initiates().is_some(),
            backfilled: flow.backfilled,
            netns: flow.tuple.netns,
            counting: Counting::Delta,
            delta: delta.oriented(local_initiates),
            total: flow.seen.minus(flow.base()).oriented(local_initiates),
            start: WallTime(0),
            delta_start: WallTime(0),
            end: WallTime(0),
            tcp: flow.figures(local_initiates),
            reason,
            held_from: CollectorSet::default(),
        };
        self.records.push_back(Box::new(Draft {
            record,
            start: flow.start,
            delta_start: flow.reported_until,
            end,
        }));
        self.ledger.report(delta);
        if let Some(flow) = self.entries.get_mut(&key) {
            flow.local_initiates = Some(local_initiates);
            flow.mark_reported(now, end);
            if flow.twin == Twin::Open {
                flow.twin = Twin::Alone;
            }
        }
    }

    /// Who began a connection older than the agent: not the end that listens, else the one with the higher port.
    fn infer_initiates(&self, flow: &Flow) -> bool {
        let tuple = &flow.tuple;
        !self.listeners.listens(tuple.netns, tuple.local.port) && tuple.local.port >= tuple.remote.port
    }
}

/// End of the span that a record covers. An open TCP socket that was read and had nothing to tell is alive until then.
fn end_of_span(flow: &Flow, silent: bool, reason: EndReason) -> KernelTime {
    let end = match (flow.kind, flow.ended) {
        (Kind::Tcp(_), Some(ended)) => ended.at,
        (Kind::Tcp(_), None) if silent && reason == EndReason::ActiveTimeout => flow.read_at,
        (Kind::Tcp(_) | Kind::Udp(_), _) => flow.newest,
    };
    end.max(flow.newest).max(flow.reported_until)
}

/// Who is at the end that this flow's socket is not.
fn remote_owner(flow: &Flow) -> Owner {
    let remote = flow.tuple.remote.address;
    match &flow.peer {
        Some(peer) => Owner::clone(&peer.owner),
        None if remote.is_loopback() || remote == flow.tuple.local.address => {
            Owner::unknown(Unknown::NotSeen)
        }
        None => Owner::unknown(Unknown::Remote),
    }
}
