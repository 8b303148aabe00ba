//! Generated histories against a model: a small kernel with TCP and UDP sockets, pairs among them, whose sights arrive
//! late, twice, out of order or never, and a driver that acts on time.
//!
//! After every call the law and the orders hold ([`FlowTable::check`]). At the end: every flow's parts are 1 to n, its
//! last record ends it and no other does; deltas add up to totals; what was reported of a socket is what the table was
//! shown of it; a connection with both ends here is told by one of them.

use std::collections::{BTreeMap, BTreeSet};

use super::world::*;
use crate::flow::record::{EndReason, FlowRecord, Protocol, RecordId};
use crate::flow::sides::Sides;
use crate::flow::{FlowTable, TableOptions, counters};
use crate::observe::{
    Cookie, Endpoint, Observation, TcpObservation, TcpRole, TcpSight, TcpState, UdpCounters, UdpObservation,
};
use crate::owner::Confidence;
use crate::time::KernelTime;

/// Less than half of what the table waits for, so that nothing the model sends comes too late.
const DELAY_MAX_MS: u64 = 90;
const STEPS: u64 = 250;

struct TcpSocket {
    truth: TcpObservation,
    open: bool,
    /// Index of the other end.
    twin: Option<usize>,
    /// The greatest the table was shown, and what it does not count.
    shown: Sides,
    base: Option<Sides>,
    first_shown: Option<KernelTime>,
}

struct UdpSocket {
    cookie: Cookie,
    /// It has an entry from its first datagram on, until it is silent; its end is never told.
    of_nobody: bool,
    local: Endpoint,
    open: bool,
    created: KernelTime,
    /// Counted in the socket's own entry, for its life.
    first: Option<(Endpoint, UdpCounters)>,
    /// Counted in the peer map.
    others: BTreeMap<Endpoint, UdpCounters>,
    /// All datagrams ever.
    packets: u64,
}

struct World {
    rng: fastrand::Rng,
    now: KernelTime,
    table: FlowTable,
    tcp: Vec<TcpSocket>,
    udp: Vec<UdpSocket>,
    /// On their way: when they arrive, and a number that keeps equal times apart.
    flying: BTreeMap<(KernelTime, u64), Flying>,
    flown: u64,
    records: Vec<(KernelTime, FlowRecord)>,
}

enum Flying {
    Tcp(usize, TcpObservation),
    UdpEnded(usize),
    Other(Observation),
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let max_flows = if seed.is_multiple_of(3) {
        rng.usize(3..9)
    } else {
        10_000
    };
    let options = TableOptions {
        max_flows,
        ..options()
    };
    let mut world = World {
        rng,
        now: ms(0),
        table: FlowTable::new(options),
        tcp: Vec::new(),
        udp: Vec::new(),
        flying: BTreeMap::new(),
        flown: 0,
        records: Vec::new(),
    };
    for _ in 0..STEPS {
        world.act();
        let quiet = if world.rng.u8(..) == 0 { 40_000 } else { 400 };
        let pause = world.rng.u64(1..quiet);
        world.advance(pause);
    }
    if world.rng.bool() {
        world.close_all();
        world.advance(60_000);
        let left: Vec<_> = world.table.flows.iter().collect();
        assert!(left.is_empty(), "all sockets are closed: {left:#?}");
    }
    world.advance(2 * DELAY_MAX_MS);
    let now = world.now;
    world.table.end_all(now);
    world.take_records();
    world.check_records();
    world.check_sums(max_flows >= 10_000);
}

impl World {
    fn act(&mut self) {
        match self.rng.u8(0..12) {
            0 => self.open_tcp(),
            1 => self.open_pair(),
            2 | 3 => self.open_udp(),
            4 => self.walk_udp(),
            5 => self.close(),
            _ => {
                for _ in 0..self.rng.usize(1..6) {
                    self.move_octets();
                    self.send_datagram();
                }
            }
        }
    }

    fn cookie(&self) -> u64 {
        1 + (self.tcp.len() + self.udp.len()) as u64
    }

    fn open_tcp(&mut self) {
        let port = 10_000 + self.cookie();
        let role = [TcpRole::Active, TcpRole::Passive, TcpRole::Unknown][self.rng.usize(0..3)];
        self.add_tcp(role, &format!("10.0.0.1:{port}"), "192.0.2.9:443", None);
    }

    fn open_pair(&mut self) {
        let port = 10_000 + self.cookie();
        let host = ["127.0.0.1", "10.0.0.1", "[2001:db8::1]"][self.rng.usize(0..3)];
        let (one, other) = (format!("{host}:{port}"), format!("{host}:80"));
        let index = self.tcp.len();
        self.add_tcp(TcpRole::Active, &one, &other, Some(index + 1));
        self.add_tcp(TcpRole::Passive, &other, &one, Some(index));
    }

    fn add_tcp(&mut self, role: TcpRole, local: &str, remote: &str, twin: Option<usize>) {
        let mut truth = tcp(self.cookie(), role, tuple(local, remote));
        truth.start = self.now;
        truth.established = Some(self.now.after(std::time::Duration::from_micros(300)));
        truth.backfilled = role == TcpRole::Unknown;
        if self.rng.bool() {
            truth.owner = owner(9, Confidence::Inherited);
        }
        self.tcp.push(TcpSocket {
            truth,
            open: true,
            twin,
            shown: Sides::default(),
            base: None,
            first_shown: None,
        });
        let at = self.now;
        let cookie = self.tcp[self.tcp.len() - 1].truth.cookie;
        if self.rng.u8(0..4) > 0 {
            self.send(Flying::Other(Observation::Opened { cookie, at }));
        }
    }

    fn move_octets(&mut self) {
        if self.tcp.is_empty() {
            return;
        }
        let index = self.rng.usize(0..self.tcp.len());
        let (out, back) = (self.rng.u64(0..3000), self.rng.u64(0..3000));
        let twin = self.tcp[index].twin;
        if !self.tcp[index].open || twin.is_some_and(|twin| !self.tcp[twin].open) {
            return;
        }
        let socket = &mut self.tcp[index];
        socket.truth = socket.truth.clone().moved(out, back);
        if let Some(twin) = twin {
            let socket = &mut self.tcp[twin];
            socket.truth = socket.truth.clone().moved(back, out);
        }
        if self.rng.u8(0..5) == 0 {
            self.send_sight(index, TcpSight::Snap);
        }
    }

    fn close(&mut self) {
        if self.rng.bool() && !self.tcp.is_empty() {
            let index = self.rng.usize(0..self.tcp.len());
            let twin = self.tcp[index].twin;
            self.close_tcp(index);
            if let Some(twin) = twin
                && self.rng.u8(0..3) > 0
            {
                self.close_tcp(twin);
            }
        } else if !self.udp.is_empty() {
            let index = self.rng.usize(0..self.udp.len());
            self.close_udp(index);
        }
    }

    fn close_all(&mut self) {
        for index in 0..self.tcp.len() {
            self.close_tcp(index);
        }
        for index in 0..self.udp.len() {
            self.close_udp(index);
        }
    }

    fn close_tcp(&mut self, index: usize) {
        let socket = &mut self.tcp[index];
        if !std::mem::replace(&mut socket.open, false) {
            return;
        }
        let left = [TcpState::LastAck, TcpState::FinWait2, TcpState::Established][self.rng.usize(0..3)];
        let error = [0, 0, 104][self.rng.usize(0..3)];
        socket.truth = socket.truth.clone().ended(self.now, left, error);
        if self.rng.u8(0..8) == 0 {
            let (cookie, at) = (socket.truth.cookie, self.now);
            self.send(Flying::Other(Observation::Gone { cookie, at }));
            return;
        }
        self.send_sight(index, TcpSight::Ended);
        if self.rng.u8(0..3) == 0 {
            self.tcp[index].truth.counters.segs_out += 1;
            self.send_sight(index, TcpSight::Late);
        }
    }

    fn send_sight(&mut self, index: usize, sight: TcpSight) {
        let mut seen = self.tcp[index].truth.clone().at(self.now);
        seen.sight = sight;
        while self.rng.u8(0..4) == 0 {
            self.send(Flying::Tcp(index, seen.clone()));
        }
        self.send(Flying::Tcp(index, seen));
    }

    fn send(&mut self, flying: Flying) {
        let delay = std::time::Duration::from_millis(self.rng.u64(0..DELAY_MAX_MS));
        self.flown += 1;
        self.flying.insert((self.now.after(delay), self.flown), flying);
    }

    fn open_udp(&mut self) {
        let cookie = self.cookie();
        self.udp.push(UdpSocket {
            cookie: Cookie(cookie),
            of_nobody: self.rng.u8(0..4) == 0,
            local: end(&format!("10.0.0.1:{}", 20_000 + cookie)),
            open: true,
            created: self.now,
            first: None,
            others: BTreeMap::new(),
            packets: 0,
        });
    }

    /// To a far host, or to another socket of this one.
    fn send_datagram(&mut self) {
        if self.udp.is_empty() {
            return;
        }
        let from = self.rng.usize(0..self.udp.len());
        if !self.udp[from].open {
            return;
        }
        let near = from ^ 1;
        let to_near = self.rng.bool() && self.udp.get(near).is_some_and(|socket| socket.open);
        if to_near {
            let (local, remote) = (self.udp[from].local, self.udp[near].local);
            self.udp[from].count(remote, true, self.now);
            self.udp[near].count(local, false, self.now);
        } else {
            let remote = end(&format!("192.0.2.{}:53", self.rng.u8(1..4)));
            let out = self.rng.bool();
            self.udp[from].count(remote, out, self.now);
        }
    }

    fn close_udp(&mut self, index: usize) {
        if std::mem::replace(&mut self.udp[index].open, false) && !self.udp[index].of_nobody {
            self.send(Flying::UdpEnded(index));
        }
    }

    /// The agent's walk: all first peers and all others, in any order, some twice.
    fn walk_udp(&mut self) {
        let mut seen = Vec::new();
        for socket in &self.udp {
            let has_entry = if socket.of_nobody {
                socket.first.is_some()
            } else {
                socket.open
            };
            if has_entry {
                seen.push(socket.entry(self.now, false));
            }
            for (&peer, &counters) in &socket.others {
                seen.push(socket.sight(peer, counters, self.now));
            }
        }
        self.rng.shuffle(&mut seen);
        for seen in seen {
            see_udp(&mut self.table, &seen);
            if self.rng.u8(0..4) == 0 {
                see_udp(&mut self.table, &seen);
            }
        }
    }

    fn advance(&mut self, by_ms: u64) {
        let until = self.now.after(std::time::Duration::from_millis(by_ms));
        let mut walk = self.now.after(seconds(1));
        loop {
            let arrival = self.flying.keys().next().map(|&(at, _)| at);
            let timeout = self.table.poll_timeout();
            let next = [arrival, timeout, Some(walk)].into_iter().flatten().min();
            let Some(next) = next.filter(|&next| next <= until) else {
                break;
            };
            self.now = self.now.max(next);
            if arrival == Some(next)
                && let Some((_, flying)) = self.flying.pop_first()
            {
                self.arrive(flying);
            }
            if walk <= self.now {
                self.walk_udp();
                walk = self.now.after(seconds(1));
            }
            self.drive();
        }
        self.now = until;
        self.walk_udp();
        self.drive();
    }

    fn arrive(&mut self, flying: Flying) {
        match flying {
            Flying::Tcp(index, seen) => {
                let socket = &mut self.tcp[index];
                let counted = counters::tcp(&seen, 0, Sides::default());
                socket.first_shown.get_or_insert(self.now);
                socket.base.get_or_insert(if seen.backfilled {
                    counted
                } else {
                    Sides::default()
                });
                socket.shown = socket.shown.max(counted);
                see_tcp(&mut self.table, &seen);
            }
            Flying::UdpEnded(index) => {
                let seen = self.udp[index].entry(self.now, true);
                see_udp(&mut self.table, &seen);
            }
            Flying::Other(seen) => {
                self.table.observe(&seen);
                self.table.check();
            }
        }
    }

    /// What the agent's flow task does.
    fn drive(&mut self) {
        self.table.handle_timeout(self.now);
        self.table.check();
        self.take_records();
        for cookie in due(&mut self.table) {
            let index = self.tcp.iter().position(|socket| socket.truth.cookie.0 == cookie);
            match index.filter(|&index| self.tcp[index].open) {
                Some(index) => self.send_sight(index, TcpSight::Snap),
                None => self.send(Flying::Other(Observation::Gone {
                    cookie: Cookie(cookie),
                    at: self.now,
                })),
            }
        }
        while let Some(forget) = self.table.poll_forget() {
            let socket = self.udp.iter_mut().find(|socket| socket.cookie == forget.cookie);
            let Some(socket) = socket else { continue };
            let counters = if forget.with_socket {
                assert!(socket.of_nobody);
                let taken = socket.first.take();
                taken.map(|(_, counters)| counters)
            } else {
                socket.others.remove(&forget.peer)
            };
            if let Some(counters) = counters {
                let seen = socket.sight(forget.peer, counters, self.now);
                see_udp(&mut self.table, &seen);
            }
        }
    }

    fn take_records(&mut self) {
        let now = self.now;
        let records = polled(&mut self.table);
        self.records
            .extend(records.into_iter().map(|record| (now, record)));
    }

    fn check_records(&self) {
        let mut ids = BTreeSet::new();
        let mut flows: BTreeMap<(Cookie, u64), Vec<&FlowRecord>> = BTreeMap::new();
        for (made, record) in &self.records {
            let RecordId { cookie, stream, .. } = record.id;
            assert!(ids.insert(record.id), "{:?} was used twice", record.id);
            assert!(record.start <= record.delta_start && record.delta_start <= record.end);
            assert!(record.end.0 <= made.0);
            flows.entry((cookie, stream)).or_default().push(record);
        }
        for (flow, records) in flows {
            let parts: Vec<u32> = records.iter().map(|record| record.id.part).collect();
            let count = u32::try_from(parts.len()).expect("few records");
            assert_eq!(parts, (1..=count).collect::<Vec<_>>(), "parts of {flow:?}");
            let mut sum = Sides::default();
            for (index, record) in records.iter().enumerate() {
                let last = index + 1 == records.len();
                assert_eq!(record.reason != EndReason::ActiveTimeout, last, "end of {flow:?}");
                assert_eq!(record.first, index == 0);
                assert_eq!(record.initiator.endpoint, records[0].initiator.endpoint);
                sum = sum.plus(sides(record.delta));
                assert_eq!(sum, sides(record.total), "deltas and total of {flow:?}");
            }
        }
    }

    /// `exact`: the table never was full, so nothing had to be left out.
    fn check_sums(&self, exact: bool) {
        let law = self.table.law();
        assert_eq!((law.held_octets, law.held_packets), (0, 0));
        let reported = |cookie: Cookie| {
            let own = self
                .records
                .iter()
                .filter(|(_, record)| record.id.cookie == cookie);
            own.fold(Sides::default(), |sum, (_, record)| sum.plus(sides(record.delta)))
        };
        // What a full memory let go counts from its next sight: for a peer that is read in parts just then, a datagram
        // may count twice.
        let remembers = self.table.past.baseline_before == KernelTime(0);
        assert!(remembers || !exact);
        let mut shown = 0;
        for socket in &self.tcp {
            let due = socket.shown.minus(socket.base.unwrap_or_default());
            shown += due.packets();
            let told = reported(socket.truth.cookie);
            let silent = socket.twin.is_some() && told.is_zero();
            assert!(
                told.packets() <= due.packets(),
                "counted twice: {:?}",
                socket.truth
            );
            if exact && !silent {
                assert_eq!(told.octets(), due.octets(), "{:?}", socket.truth);
                assert_eq!(told.packets(), due.packets());
            }
        }
        for socket in &self.udp {
            shown += socket.packets;
            assert!(!remembers || reported(socket.cookie).packets() <= socket.packets);
        }
        if exact {
            assert_eq!(law.observed_packets, shown);
            self.check_first_records();
            self.check_pairs(&reported);
        } else {
            assert!(!remembers || law.observed_packets <= shown);
        }
        let sum = self
            .records
            .iter()
            .map(|(_, record)| sides(record.delta).octets());
        assert_eq!(sum.sum::<u64>(), law.reported_octets);
    }

    /// The first record of a socket that was shown soon leaves within a second.
    fn check_first_records(&self) {
        for (made, record) in self.records.iter().filter(|(_, record)| record.first) {
            let socket = self
                .tcp
                .iter()
                .find(|socket| socket.truth.cookie == record.id.cookie);
            let Some(socket) = socket else { continue };
            let shown_soon = socket
                .first_shown
                .is_some_and(|at| at < socket.truth.start.after(seconds(1) / 2));
            assert!(
                !shown_soon || *made <= socket.truth.start.after(seconds(1)),
                "late: {record:?}"
            );
        }
    }

    /// Each connection within the host is told by exactly one of its ends.
    fn check_pairs(&self, reported: &dyn Fn(Cookie) -> Sides) {
        let speaks = |cookie: Cookie| self.records.iter().any(|(_, record)| record.id.cookie == cookie);
        for socket in &self.tcp {
            if let Some(twin) = socket.twin.map(|twin| &self.tcp[twin])
                && (socket.base.is_some() || twin.base.is_some())
            {
                let (one, other) = (socket.truth.cookie, twin.truth.cookie);
                assert!(speaks(one) != speaks(other), "{one:?} and {other:?}");
                assert!(reported(one).is_zero() || reported(other).is_zero());
            }
        }
        let mut between: BTreeMap<BTreeSet<Endpoint>, u64> = BTreeMap::new();
        for (_, record) in &self.records {
            if record.protocol == Protocol::Udp {
                let ends = [record.initiator.endpoint, record.responder.endpoint];
                *between.entry(ends.into()).or_default() += sides(record.delta).packets();
            }
        }
        let mut near: u64 = 0;
        let mut all: u64 = 0;
        for socket in &self.udp {
            all += socket.packets;
            for other in &self.udp {
                near += between
                    .get(&[socket.local, other.local].into())
                    .copied()
                    .unwrap_or(0);
            }
        }
        // Each pair was met from both sides: `near` is what both ends counted.
        let far: u64 = between.values().sum::<u64>() - near / 2;
        assert_eq!(
            far + near,
            all,
            "datagrams between two sockets of this host are told once"
        );
    }
}

impl UdpSocket {
    fn count(&mut self, peer: Endpoint, out: bool, now: KernelTime) {
        self.packets += 1;
        let mut fresh = udp(self.cookie.0, tuple("0.0.0.0:1", "0.0.0.0:1"), 0, 0, now).counters;
        fresh.first = now;
        fresh.peer_first = !out;
        let first = self.first.get_or_insert((peer, fresh));
        let counters = if first.0 == peer {
            &mut first.1
        } else {
            self.others.entry(peer).or_insert(fresh)
        };
        counters.last = now;
        if out {
            counters.packets_out += 1;
            counters.octets_out += 128;
            counters.payload_out += 100;
        } else {
            counters.packets_in += 1;
            counters.octets_in += 128;
            counters.payload_in += 100;
        }
    }

    fn entry(&self, now: KernelTime, ended: bool) -> UdpObservation {
        let none = (
            end("0.0.0.0:0"),
            udp(1, tuple("0.0.0.0:1", "0.0.0.0:1"), 0, 0, KernelTime(0)).counters,
        );
        let (peer, counters) = self.first.unwrap_or(none);
        let mut seen = self.sight(peer, counters, now);
        seen.owner = Some(if self.of_nobody {
            nobody()
        } else {
            owner(5, Confidence::Exact)
        });
        seen.ended = ended;
        seen
    }

    fn sight(&self, peer: Endpoint, counters: UdpCounters, now: KernelTime) -> UdpObservation {
        let mut seen = udp(self.cookie.0, tuple("0.0.0.0:1", "0.0.0.0:1"), 0, 0, now);
        seen.owner = None;
        seen.tuple.local = self.local;
        seen.tuple.remote = peer;
        seen.counters = counters;
        assert!(self.created <= now);
        seen
    }
}

/// Both directions, whichever is forward.
fn sides(traffic: crate::flow::record::Traffic) -> Sides {
    Sides {
        sent: traffic.forward,
        received: traffic.backward,
    }
}

#[test]
fn generated_histories_keep_every_promise() {
    let begin = fastrand::u64(..u64::MAX / 2);
    for seed in begin..begin + 30 {
        run(seed);
    }
}

#[test]
#[ignore = "minutes: for changes to this module, in release"]
fn very_many_histories_keep_every_promise() {
    for seed in 1_000..6_000 {
        run(seed);
    }
}

#[test]
fn pinned_histories_keep_every_promise() {
    for seed in 0..20 {
        run(seed);
    }
}
