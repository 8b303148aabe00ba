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
//! - a flow in `flows` has a deadline that is in `deadlines`, and is in `pairs` when it has both ports;
//! - the kernel's counters are cumulative: the table takes the greatest ever seen and makes deltas, so copies and
//!   observations out of order change nothing;
//! - `observed = reported + held + joined` after every call ([`FlowTable::law`]);
//! - a [`RecordId`] is used once; parts of a flow are 1, 2, …; exactly one record, the last, ends it.
//!
//! An agent that starts again in the same run of the kernel goes on from what was reported: [`checkpoint`], [`restore`].
//!
//! The life of a flow: seen; its twin found or ruled out and its first record made within
//! [`TableOptions::first_record_after`]; a record each active timeout when anything changed, and at least each
//! [`SILENT_RECORD_AFTER`]; ended by the kernel (TCP, UDP), by silence (UDP) or by a full table; held for [`SETTLE`],
//! in which a reset that left after CLOSE and the twin's end arrive; last record.
//!
//! Source: RFC 7011 §2 (flow), RFC 5102 §5.11 (timeouts), IPFIX element 136 (end reasons).

pub mod checkpoint;
mod counters;
mod deadlines;
mod entry;
mod flows;
mod key;
mod ledger;
mod listen;
mod owners;
mod pair;
mod past;
pub mod record;
mod report;
pub mod restore;
mod sides;
mod sockets;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::collections::VecDeque;
use std::time::Duration;

use foldhash::fast::FixedState;

use crate::loss::KernelLaw;
use crate::observe::{Cookie, Endpoint, Observation};
use crate::owner::Owner;
use crate::time::{KernelTime, WallOffset};
use deadlines::Deadlines;
use entry::{Flow, Kind, Step, Twin};
use flows::{Flows, Handle};
use ledger::Ledger;
pub use listen::Listening;
use owners::Owners;
use pair::PairIndex;
pub use past::Forget;
use past::{Past, PastTcp};
use record::{BootId, EndReason, FlowRecord, Protocol};
use restore::Restore;
use sockets::TcpSockets;
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
    /// When this run of the agent began: streams count on from it ([`RecordId::stream`](record::RecordId::stream)).
    pub started: KernelTime,
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
    /// The defaults: 65,536 flows, active timeout 10 s, idle timeout 15 s, first record after 0.8 s, begun at boot.
    #[must_use]
    pub fn new(boot: BootId) -> Self {
        Self {
            boot,
            started: KernelTime(0),
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

/// All flows of this host that are going on.
#[derive(Debug)]
pub struct FlowTable {
    options: TableOptions,
    flows: Flows,
    deadlines: Deadlines,
    /// In order of arrival; flows that left are skipped.
    by_age: VecDeque<Handle>,
    pairs: PairIndex,
    tcp: TcpSockets,
    udp: UdpSockets,
    listeners: listen::Listeners,
    past: Past,
    owners: Owners,
    ledger: Ledger,
    /// Sockets to read, and when the connection began that is meant.
    due: VecDeque<(Cookie, KernelTime)>,
    /// Their times are the kernel's until they are polled.
    records: VecDeque<FlowRecord>,
    /// How many were made.
    made: u64,
    /// Of the agent before: sockets that were not seen yet.
    restore: Restore,
    ended_unseen: u64,
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
            flows: Flows::default(),
            deadlines: Deadlines::default(),
            by_age: VecDeque::new(),
            pairs: PairIndex::new(&hasher),
            tcp: TcpSockets::new(&hasher),
            udp: UdpSockets::new(options.started),
            listeners: listen::Listeners::new(&hasher),
            past: Past::new(&hasher, options.started),
            owners: Owners::new(&hasher),
            ledger: Ledger::default(),
            due: VecDeque::new(),
            records: VecDeque::new(),
            made: 0,
            restore: Restore::new(options.boot, WallOffset(0)),
            ended_unseen: 0,
            now: KernelTime(0),
            ending: false,
            late: 0,
        }
    }

    /// Puts other options in force; those of time from each flow's next record on. The boot id and the start stay.
    pub fn set_options(&mut self, options: TableOptions) {
        let TableOptions { boot, started, .. } = self.options;
        self.options = TableOptions {
            boot,
            started,
            ..options
        }
        .within_bounds();
        while self.flows.len() > self.options.max_flows {
            self.evict_oldest(self.now);
        }
        let all: Vec<_> = self.flows.iter().map(|(handle, _)| handle).collect();
        for handle in all {
            self.arm(handle);
        }
    }

    /// Takes in what the kernel side showed. Order and copies do not matter.
    pub fn observe(&mut self, seen: &Observation) {
        match seen {
            Observation::Opened { cookie, at } => self.opened(*cookie, *at),
            Observation::Gone { cookie, at } => self.gone(*cookie, *at),
            Observation::Tcp(seen) => self.observe_tcp(seen),
            Observation::Udp(seen) => self.observe_udp(seen),
        }
    }

    /// Does what is due at `now`, as far as there is room for its records ([`RECORDS_WAITING_MAX`]).
    pub fn handle_timeout(&mut self, now: KernelTime) {
        self.now = self.now.max(now);
        while self.records.len() < RECORDS_WAITING_MAX
            && let Some((deadline, handle)) = self.deadlines.pop(now)
        {
            let flow = self.flows.get_mut(handle);
            if let Some(flow) = flow.filter(|flow| flow.deadline == Some(deadline)) {
                flow.deadline = None;
                self.handle_deadline(handle, now);
            }
        }
        self.tcp.expire(now);
        while let Some(cookie) = self.past.expire(now) {
            self.udp.bury(cookie, self.past.baseline_before > KernelTime(0));
        }
    }

    /// When to call [`FlowTable::handle_timeout`] again; may lie in the past when records wait to be polled, and before
    /// there is anything to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<KernelTime> {
        self.deadlines.first()
    }

    /// Appends at most `max` TCP sockets whose counters are wanted: each once, the longest waiting first.
    pub fn poll_due(&mut self, out: &mut Vec<Cookie>, max: usize) {
        let mut room = max;
        while room > 0
            && let Some((cookie, start)) = self.due.pop_front()
        {
            if self.can_tell_more(cookie, start) {
                out.push(cookie);
                room -= 1;
            }
        }
    }

    /// Whether the counters of a TCP socket may say what is not known: not once its end was told, nor when its flow left
    /// a full table.
    fn can_tell_more(&self, cookie: Cookie, start: KernelTime) -> bool {
        match self.tcp_flow(cookie) {
            Some((flow, facts)) => flow.ended.is_none() || facts.opened < start,
            None => !self.tcp.was_over(cookie, start) && !self.past.has_left(cookie, start),
        }
    }

    /// The next peer that the kernel is to forget.
    pub fn poll_forget(&mut self) -> Option<Forget> {
        loop {
            let peer = self.past.next_to_forget()?;
            let with_socket = self.is_idle_of_nobody(&peer);
            if !with_socket && !self.may_forget(&peer) {
                continue;
            }
            self.past.forgotten(&peer, self.now);
            if with_socket {
                self.udp.let_go(peer.cookie);
            }
            return Some(Forget {
                cookie: peer.cookie,
                peer: peer.peer,
                with_socket,
            });
        }
    }

    /// The next record. `offset` turns the kernel's times into those of the wall.
    pub fn poll_record(&mut self, offset: WallOffset) -> Option<FlowRecord> {
        while self.records.is_empty() && self.ending {
            match self.by_age.pop_front() {
                Some(handle) if self.flows.contains(handle) => {
                    self.finish(handle, self.now, EndReason::ForcedEnd)
                }
                Some(_) => {}
                None => self.ending = false,
            }
        }
        let mut record = self.records.pop_front()?;
        for time in [&mut record.start, &mut record.delta_start, &mut record.end] {
            *time = offset.wall(KernelTime(time.0));
        }
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

    /// Records made so far, polled or not.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Records that were made and wait to be polled.
    #[must_use]
    pub fn unpolled(&self) -> usize {
        self.records.len()
    }

    /// Most flows that it holds.
    #[must_use]
    pub fn flows_max(&self) -> usize {
        self.options.max_flows
    }

    /// Flows in the table, silent twins included.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
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

    /// Who is at `local`, as far as the flows and listeners of this host tell: the process that has a flow with `remote`, else
    /// the one that answers there.
    #[must_use]
    pub fn owner_at(&self, protocol: Protocol, local: Endpoint, remote: Endpoint) -> Option<Owner> {
        let flows = self.pairs.at(protocol, local, remote, &self.flows);
        let of_flow = flows
            .map(|flow| match flow.kind {
                Kind::Tcp(_) => &*flow.owner,
                Kind::Udp(_) => {
                    let socket = self.udp.by_cookie.get(&flow.key.cookie);
                    socket.map_or(&*flow.owner, |socket| &socket.owner)
                }
            })
            .find(|owner| owner.process.is_some());
        let answers = |listening: &Listening<'_>| {
            let (ours, theirs) = (listening.endpoint.address, local.address);
            listening.protocol == protocol
                && listening.endpoint.port == local.port
                && (ours == theirs || ours.is_unspecified() && (ours.is_ipv6() || theirs.is_ipv4()))
                && listening.owner.process.is_some()
        };
        of_flow
            .or_else(|| self.listeners().find(answers).map(|listening| listening.owner))
            .cloned()
    }

    /// Has a TCP socket read. At the bound, the one that has waited longest is left to its next deadline, if it has a flow.
    fn want(&mut self, cookie: Cookie, start: KernelTime) {
        if self.due.len() >= self.options.max_flows {
            self.due.pop_front();
        }
        self.due.push_back((cookie, start));
    }

    /// Asks for the counters of every TCP socket in the table, for last records that are whole.
    pub fn want_all(&mut self) {
        let tcp = self.flows.iter().filter_map(|(_, flow)| match flow.kind {
            Kind::Tcp(facts) => Some((flow.key.cookie, facts.opened)),
            Kind::Udp(_) => None,
        });
        self.due = tcp.collect();
    }

    /// Puts a flow into all orders but that of deadlines: [`FlowTable::arm`] does, once all that was seen is in.
    fn insert(&mut self, flow: Flow) -> Handle {
        let handle = self.flows.insert(flow);
        self.pairs.insert(handle, &mut self.flows);
        let flows = &self.flows;
        while self.by_age.front().is_some_and(|&oldest| !flows.contains(oldest)) {
            self.by_age.pop_front();
        }
        if self.by_age.len() > 2 * self.options.max_flows {
            self.by_age.retain(|&held| flows.contains(held));
        }
        self.by_age.push_back(handle);
        handle
    }

    /// Gives a flow its place in `deadlines`, or an earlier one if its state asks for it; a later deadline is found when
    /// the earlier one has passed, which saves moving each flow at each sight.
    fn arm(&mut self, handle: Handle) {
        let Some(flow) = self.flows.get_mut(handle) else {
            return;
        };
        let deadline = flow.next_deadline(&self.options);
        if flow.deadline.is_none_or(|held| held > deadline) {
            flow.deadline = Some(deadline);
            self.deadlines.insert(deadline, handle);
        }
    }

    /// Does what one flow wants at its deadline, which it no longer has, and gives it the next one.
    fn handle_deadline(&mut self, handle: Handle, now: KernelTime) {
        let Some(flow) = self.flows.get_mut(handle) else {
            return;
        };
        match flow.step(now, &self.options) {
            Step::Wait => {}
            Step::Snap => {
                flow.mark_asked(now);
                let cookie = flow.key.cookie;
                if let Kind::Tcp(facts) = flow.kind {
                    self.want(cookie, facts.opened);
                }
            }
            Step::Fresh => flow.asked = true,
            Step::Record => self.handle_record_due(handle, now),
            Step::End => return self.finish(handle, now, EndReason::IdleTimeout),
        }
        self.arm(handle);
    }

    fn handle_record_due(&mut self, handle: Handle, now: KernelTime) {
        if self.flows.get(handle).is_some_and(|flow| flow.twin == Twin::Open) {
            self.seek_twin(handle);
        }
        let Some(flow) = self.flows.get_mut(handle) else {
            return;
        };
        let speaks = flow.is_worth_a_record(now, &self.options);
        flow.schedule(now, &self.options);
        if speaks {
            self.report(handle, now, EndReason::ActiveTimeout);
        }
    }

    /// Makes the last record, if the flow speaks, and takes it out; `reason` counts when it has not ended by itself.
    fn finish(&mut self, handle: Handle, now: KernelTime, reason: EndReason) {
        let Some(flow) = self.flows.get(handle) else {
            return;
        };
        if flow.twin == Twin::Open {
            self.seek_twin(handle);
        }
        let Some(flow) = self.flows.get(handle) else {
            return;
        };
        let reason = flow.ended.map_or(reason, |ended| ended.reason);
        if !flow.is_silent() {
            self.report(handle, now, reason);
        }
        self.remove(handle, now);
    }

    /// Ends the oldest flows until one more has room.
    fn make_room(&mut self, now: KernelTime) {
        while self.flows.len() >= self.options.max_flows {
            self.evict_oldest(now);
        }
    }

    /// Ends the oldest flow and its silent twin.
    fn evict_oldest(&mut self, now: KernelTime) {
        let Some(oldest) = self.by_age.pop_front() else {
            return;
        };
        let Some(flow) = self.flows.get(oldest) else {
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
    fn detach(&mut self, follower: Handle, now: KernelTime) {
        let leader = match self.flows.get(follower).map(|flow| flow.twin) {
            Some(Twin::Follows(leader)) => leader,
            _ => return,
        };
        self.remove(follower, now);
        if let Some(flow) = self.flows.get_mut(leader) {
            flow.twin = Twin::Alone;
        }
    }

    /// Takes a flow out of all orders, tells its twin, and keeps what must not be counted again.
    fn remove(&mut self, handle: Handle, now: KernelTime) {
        let Some(flow) = self.flows.get(handle) else {
            return;
        };
        let cookie = flow.key.cookie;
        let end = flow.ended.map_or(flow.newest, |ended| ended.at);
        let twin = flow.twin;
        if matches!(twin, Twin::Open | Twin::Alone) && flow.peer.is_none() {
            self.past.spoken.remember(flow, end);
        }
        let hanging = flow.hanging;
        match flow.kind {
            Kind::Udp(_) => self.keep_peer(handle),
            Kind::Tcp(tcp) => {
                self.tcp.remove(cookie);
                if let Some(ended) = flow.ended {
                    self.bury_tcp(cookie, ended.at.max(tcp.opened), now);
                } else {
                    let past = PastTcp {
                        stream: flow.key.stream,
                        opened: tcp.opened,
                        seen: flow.seen,
                        retransmits: tcp.retransmits,
                        silent: matches!(twin, Twin::Follows(_) | Twin::Orphan(_)),
                        role: tcp.role,
                        syns_again: tcp.syns_again,
                    };
                    self.past.keep_tcp(cookie, past, self.options.max_flows);
                }
            }
        }
        self.flows.remove(handle);
        self.pairs.remove(hanging, &mut self.flows);
        if self.flows.len() == 0 {
            self.deadlines.clear();
        }
        match twin {
            Twin::Leads(follower) => {
                if let Some(twin) = self.flows.get_mut(follower) {
                    twin.twin = Twin::Orphan(end);
                }
            }
            Twin::Follows(leader) => {
                if let Some(twin) = self.flows.get_mut(leader) {
                    twin.twin = Twin::Alone;
                }
            }
            Twin::Open | Twin::Alone | Twin::Orphan(_) => {}
        }
    }

    /// The connection of a TCP socket without a flow ended.
    fn bury_tcp(&mut self, cookie: Cookie, ended: KernelTime, now: KernelTime) {
        self.past.bury_tcp(cookie);
        self.tcp.bury(cookie, ended, now);
    }
}
