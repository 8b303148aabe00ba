//! Generated histories of agents that are killed or stopped and started again, against a model of the kernel.
//!
//! What is kept at a kill: some of the records, the oldest first, and the newest checkpoint that they cover, maybe of an
//! agent long gone. At the end: no identity twice; parts, totals and times of a flow go on over restarts; what was
//! reported of a socket that every agent knew is what the kernel counted; of no connection more than the kernel counted.

use std::collections::{BTreeMap, BTreeSet};

use super::world::*;
use crate::flow::checkpoint::{Checkpoint, State};
use crate::flow::record::{EndReason, FlowRecord, Protocol, RecordId};
use crate::flow::restore::Restore;
use crate::flow::sides::Sides;
use crate::flow::{FlowTable, TableOptions, counters};
use crate::observe::{Cookie, TcpObservation, TcpRole, TcpState};
use crate::time::{KernelTime, WallOffset};

struct Socket {
    truth: TcpObservation,
    open: bool,
    twin: Option<usize>,
    /// When it was made.
    born: KernelTime,
    /// SYNs sent again that an agent could tell.
    syns_again: u32,
    /// What no agent counts: an agent met it that knew nothing of it.
    missed: Sides,
    /// Whether an agent was there when it was made, or has met it.
    met: bool,
    /// Whether some of its connection was missed.
    lossy: bool,
}

struct World {
    rng: fastrand::Rng,
    now: KernelTime,
    began: KernelTime,
    table: FlowTable,
    sockets: Vec<Socket>,
    /// Records that were kept.
    kept: Vec<FlowRecord>,
    /// Records of this agent that may be lost.
    fresh: Vec<FlowRecord>,
    /// Records kept before this agent made any.
    kept_before: usize,
    /// Checkpoints, and how many records must be kept for each.
    checkpoints: Vec<(usize, Vec<u8>)>,
    datagrams: u64,
}

fn run(seed: u64) {
    println!("seed {seed}");
    let mut world = World {
        rng: fastrand::Rng::with_seed(seed),
        now: ms(0),
        began: ms(0),
        table: FlowTable::new(options_at(ms(0))),
        sockets: Vec::new(),
        kept: Vec::new(),
        fresh: Vec::new(),
        kept_before: 0,
        checkpoints: Vec::new(),
        datagrams: 0,
    };
    world.open(2);
    world.start(0);
    for _ in 0..120 {
        world.act();
    }
    world.show_all();
    world.advance(400);
    world.table.end_all(world.now);
    world.take();
    let fresh = std::mem::take(&mut world.fresh);
    world.kept.extend(fresh);
    world.check();
}

fn options_at(started: KernelTime) -> TableOptions {
    TableOptions { started, ..options() }
}

impl World {
    fn act(&mut self) {
        match self.rng.u8(0..24) {
            0..3 => self.open(1),
            3..12 => self.shift(),
            12 => self.close(true),
            13 => self.send_datagram(),
            14 => self.checkpoint(),
            15 if self.rng.bool() => self.restart(),
            _ => {
                let quiet = [300, 2_000, 15_000][self.rng.usize(0..3)];
                let by = self.rng.u64(1..quiet);
                self.advance(by);
            }
        }
    }

    fn open(&mut self, count: usize) {
        for _ in 0..count {
            let cookie = 1 + self.sockets.len() as u64;
            let port = 10_000 + cookie;
            let index = self.sockets.len();
            match self.rng.u8(0..4) {
                0 | 1 => {
                    let host = ["127.0.0.1", "10.0.0.1"][self.rng.usize(0..2)];
                    let (one, other) = (format!("{host}:{port}"), format!("{host}:80"));
                    self.add(TcpRole::Active, &one, &other, Some(index + 1));
                    self.add(TcpRole::Passive, &other, &one, Some(index));
                }
                2 => self.add(
                    TcpRole::Active,
                    &format!("10.0.0.1:{port}"),
                    "192.0.2.9:443",
                    None,
                ),
                _ => self.add(
                    TcpRole::Passive,
                    "10.0.0.1:80",
                    &format!("192.0.2.9:{port}"),
                    None,
                ),
            }
            for index in index..self.sockets.len() {
                if self.rng.u8(0..4) > 0 {
                    self.show(index);
                }
            }
        }
    }

    fn add(&mut self, role: TcpRole, local: &str, remote: &str, twin: Option<usize>) {
        let mut truth = tcp(1 + self.sockets.len() as u64, role, tuple(local, remote));
        truth.start = self.now;
        truth.established = Some(self.now);
        // The child has acknowledged: before that, a socket whose role is not known has no SYN to count.
        match role {
            TcpRole::Passive => truth.counters.segs_out += 1,
            _ => truth.counters.segs_in += 1,
        }
        if role == TcpRole::Active && twin.is_none() {
            let again = self.rng.u32(0..3);
            truth.counters.retransmits = again;
            truth.counters.segs_out += again;
        }
        self.sockets.push(Socket {
            truth,
            open: true,
            twin,
            born: self.now,
            syns_again: 0,
            missed: Sides::default(),
            met: false,
            lossy: false,
        });
    }

    /// Something goes over one connection.
    fn shift(&mut self) {
        let index = self.rng.usize(0..self.sockets.len());
        let twin = self.sockets[index].twin;
        if !self.sockets[index].open || twin.is_some_and(|twin| !self.sockets[twin].open) {
            return;
        }
        let (out, back) = (self.rng.u64(1..3000), self.rng.u64(0..3000));
        let truth = &mut self.sockets[index].truth;
        *truth = truth.clone().moved(out, back);
        match twin {
            Some(twin) => {
                let truth = &mut self.sockets[twin].truth;
                *truth = truth.clone().moved(back, out);
            }
            None if self.rng.u8(0..4) == 0 => {
                truth.counters.retransmits += 1;
                truth.counters.bytes_retrans += out;
                truth.counters.bytes_sent += out;
                truth.counters.segs_out += 1;
            }
            None => {}
        }
    }

    fn close(&mut self, told: bool) {
        let index = self.rng.usize(0..self.sockets.len());
        let both = self.rng.u8(0..3) > 0;
        for index in [Some(index), self.sockets[index].twin.filter(|_| both)]
            .into_iter()
            .flatten()
        {
            if std::mem::replace(&mut self.sockets[index].open, false) && told {
                let truth = &mut self.sockets[index].truth;
                *truth = truth.clone().ended(self.now, TcpState::LastAck, 0);
                self.show(index);
            }
        }
    }

    /// A socket as this agent's kernel side shows it.
    fn show(&mut self, index: usize) {
        let mut seen = self.sockets[index].truth.clone();
        seen.at = self.now;
        if self.sockets[index].born < self.began {
            seen.backfilled = true;
            seen.role = TcpRole::Unknown;
            seen.established = None;
            seen.start = self.began;
        } else if seen.role == TcpRole::Active && seen.counters.bytes_retrans == 0 {
            self.sockets[index].syns_again = seen.counters.retransmits;
        }
        self.sockets[index].met = true;
        see_tcp(&mut self.table, &seen);
    }

    fn show_all(&mut self) {
        let mut order: Vec<_> = (0..self.sockets.len())
            .filter(|&index| self.sockets[index].open)
            .collect();
        self.rng.shuffle(&mut order);
        order.into_iter().for_each(|index| self.show(index));
    }

    fn send_datagram(&mut self) {
        self.datagrams += 1;
        let peer = ["192.0.2.1:53", "192.0.2.2:53"][self.rng.usize(0..2)];
        let mut seen = udp(900_000, tuple("10.0.0.1:5000", peer), self.datagrams, 0, self.now);
        seen.counters.first = self.began;
        seen.backfilled = self.began > ms(0);
        see_udp(&mut self.table, &seen);
    }

    fn advance(&mut self, by_ms: u64) {
        let until = self.now.after(std::time::Duration::from_millis(by_ms));
        while let Some(at) = self.table.poll_timeout().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.drive();
        }
        self.now = until;
        self.drive();
    }

    fn drive(&mut self) {
        self.table.handle_timeout(self.now);
        self.table.check();
        for cookie in due(&mut self.table) {
            let index = usize::try_from(cookie).expect("small") - 1;
            if self.sockets[index].open {
                self.show(index);
            }
        }
        while self.table.poll_forget().is_some() {}
        if self.rng.u8(0..4) > 0 {
            self.take();
        }
    }

    fn take(&mut self) {
        self.fresh.extend(polled(&mut self.table));
    }

    fn checkpoint(&mut self) {
        let checkpoint = self.table.checkpoint();
        let covered = self.kept_before + usize::try_from(checkpoint.records()).expect("few");
        self.checkpoints.push((covered, checkpoint.to_octets()));
    }

    fn restart(&mut self) {
        if self.rng.u8(0..3) == 0 {
            self.table.end_all(self.now);
            self.take();
            if self.rng.bool() {
                self.checkpoint();
            }
        } else {
            // Not all that was made was kept.
            let kept = self.rng.usize(0..=self.fresh.len());
            self.fresh.truncate(kept);
        }
        self.kept.append(&mut self.fresh);
        self.kept_before = self.kept.len();
        self.checkpoints
            .retain(|&(covered, _)| covered <= self.kept_before);
        for _ in 0..self.rng.usize(0..6) {
            self.now = self.now.after(seconds(1));
            match self.rng.u8(0..6) {
                0 => self.close(false),
                1 => {
                    let cookie = 1 + self.sockets.len();
                    let port = 10_000 + cookie;
                    self.add(
                        TcpRole::Active,
                        &format!("10.0.0.1:{port}"),
                        "192.0.2.9:443",
                        None,
                    );
                }
                _ => self.shift(),
            }
        }
        let which = self.checkpoints.len().checked_sub(1 + self.rng.usize(0..2));
        // One that could not be read is not there any more.
        let which = which.map_or(0, |which| which + 1);
        self.checkpoints.truncate(which);
        self.start(which);
    }

    /// Starts an agent with the `which`th checkpoint, from 1; 0: with none, but all records.
    fn start(&mut self, which: usize) {
        self.now = self.now.after(seconds(1));
        self.began = self.now;
        let boot = options().boot;
        let (covered, mut restore) = match which.checked_sub(1).map(|index| &self.checkpoints[index]) {
            Some((covered, octets)) => {
                let checkpoint = Checkpoint::from_octets(octets).expect("as it was written");
                (
                    *covered,
                    Restore::from_checkpoint(boot, WallOffset(0), checkpoint),
                )
            }
            None => (0, Restore::new(boot, WallOffset(0))),
        };
        self.kept[covered..]
            .iter()
            .for_each(|record| restore.replay(record));
        let known: BTreeMap<u64, State> = restore
            .unseen()
            .map(|socket| (socket.cookie, socket.state))
            .collect();
        let speaks = |state: &State| matches!(state, State::Open | State::Left);
        for index in 0..self.sockets.len() {
            let twin = self.sockets[index].twin;
            let socket = &self.sockets[index];
            if !socket.open || known.get(&socket.truth.cookie.0).is_some_and(speaks) {
                continue;
            }
            // For all this agent knows, the socket begins here.
            let told = self.told(socket.truth.cookie);
            let counted = truth_of(socket);
            self.sockets[index].missed = counted.minus(told);
            if twin.is_none_or(|twin| !known.get(&self.sockets[twin].truth.cookie.0).is_some_and(speaks)) {
                self.sockets[index].lossy = true;
                if let Some(twin) = twin {
                    self.sockets[twin].lossy = true;
                }
            }
        }
        self.table = FlowTable::with_restore(options_at(self.began), restore);
        self.show_all();
        self.table.end_restore();
        self.advance(1);
    }

    /// What records that were kept say of a socket.
    fn told(&self, cookie: Cookie) -> Sides {
        let own = self.kept.iter().filter(|record| record.id.cookie == cookie);
        own.fold(Sides::default(), |sum, record| {
            let local = record.initiator.endpoint == self.socket(cookie).truth.tuple.local;
            sum.plus(Sides::of(record.delta, local))
        })
    }

    fn socket(&self, cookie: Cookie) -> &Socket {
        &self.sockets[usize::try_from(cookie.0).expect("small") - 1]
    }

    fn check(&self) {
        let mut ids = BTreeSet::new();
        let mut flows: BTreeMap<(Cookie, u64), Vec<&FlowRecord>> = BTreeMap::new();
        for record in &self.kept {
            let RecordId { cookie, stream, .. } = record.id;
            assert!(ids.insert(record.id), "{:?} twice", record.id);
            flows.entry((cookie, stream)).or_default().push(record);
        }
        for (flow, records) in &flows {
            let mut sum = Sides::default();
            for (index, record) in records.iter().enumerate() {
                assert_eq!(record.id.part as usize, index + 1, "parts of {flow:?}");
                assert_eq!(record.first, index == 0);
                assert_eq!(record.start, records[0].start, "start of {flow:?}");
                assert_eq!(record.initiator.endpoint, records[0].initiator.endpoint);
                assert_eq!(record.backfilled, records[0].backfilled);
                if let Some(before) = index.checked_sub(1).map(|before| records[before]) {
                    assert_eq!(record.delta_start, before.end, "{flow:?}");
                    assert_eq!(before.reason, EndReason::ActiveTimeout, "end of {flow:?}");
                }
                if record.protocol == Protocol::Tcp {
                    sum = sum.plus(Sides::of(record.delta, true));
                    assert_eq!(sum, Sides::of(record.total, true), "totals of {flow:?}");
                }
            }
        }
        for socket in &self.sockets {
            let own = self.told(socket.truth.cookie);
            let counted = truth_of(socket);
            assert!(own.minus(counted).is_zero(), "counted twice: {socket:?}");
            match socket.twin.map(|twin| &self.sockets[twin]) {
                None if socket.open && socket.met => {
                    assert_eq!(own.plus(socket.missed), counted, "{:?}", socket.truth);
                }
                None => {}
                Some(twin) => {
                    let far = self.told(twin.truth.cookie);
                    let far = Sides {
                        sent: far.received,
                        received: far.sent,
                    };
                    let told = own.plus(far);
                    let most = counted.max(Sides {
                        sent: truth_of(twin).received,
                        received: truth_of(twin).sent,
                    });
                    assert!(
                        told.minus(most).is_zero(),
                        "counted at both ends: {:?}",
                        socket.truth
                    );
                    let whole = socket.open && twin.open && !socket.lossy && socket.met && twin.met;
                    assert!(!whole || told == counted, "{told:?} of {:?}", socket.truth);
                }
            }
        }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} open {} missed {:?}", self.truth, self.open, self.missed)
    }
}

/// What the kernel counted of a socket.
fn truth_of(socket: &Socket) -> Sides {
    counters::tcp(&socket.truth, socket.syns_again, Sides::default())
}

#[test]
fn generated_restarts_lose_nothing_and_count_nothing_twice() {
    let begin = fastrand::u64(..u64::MAX / 2);
    for seed in begin..begin + 40 {
        run(seed);
    }
}

#[test]
#[ignore = "minutes: for changes to this module, in release"]
fn very_many_restarts_lose_nothing_and_count_nothing_twice() {
    for seed in 1_000..21_000 {
        run(seed);
    }
}

#[test]
fn pinned_restarts_lose_nothing_and_count_nothing_twice() {
    for seed in 0..40 {
        run(seed);
    }
}
