//! Hosts with flows between them, agents that come and go, a controller that is late, a collector that adds up.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session;

use crate::fleet::{Fleet, HELD_MAX, Members};
use crate::flow::record::{
    BootId, CollectorSet, CollectorSlot, Counting, Counts, EndReason, FlowRecord, Party, Protocol, RecordId,
    Traffic,
};
use crate::observe::{Cookie, Endpoint, NetNs};
use crate::owner::{Owner, Unknown};
use crate::time::{KernelTime, WallTime};

pub(super) const SLOT: CollectorSlot = CollectorSlot(3);
/// One step, in ms.
pub(super) const STEP: u64 = 250;
const ACTIVE: u64 = 10_000;

pub(super) fn ms(ms: u64) -> KernelTime {
    KernelTime(ms * 1_000_000)
}

pub(super) fn name(host: usize) -> MemberName {
    MemberName::parse(&format!("host-{host}")).unwrap()
}

pub(super) fn stream() -> CollectorName {
    CollectorName::told("main").unwrap()
}

pub(super) fn address(host: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + u8::try_from(host).unwrap()])
}

/// A flow between two hosts; a host beyond those of the world has no agent.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) hosts: [usize; 2],
    pub(super) ports: [u16; 2],
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) traffic: Traffic,
    /// Octets a step.
    pub(super) rate: [u64; 2],
}

/// How one agent sees one flow.
#[derive(Clone, Debug)]
struct Sight {
    start: u64,
    base: Traffic,
    reported: Traffic,
    part: u32,
    record_at: u64,
    over: bool,
}

/// What an agent keeps over a kill when its state is on disk: what it has reported.
#[derive(Default)]
struct Agent {
    fleet: Option<Fleet>,
    sights: BTreeMap<usize, Sight>,
    stream: u64,
    /// Whether the controller takes it for alive.
    listed: bool,
    partial: bool,
    /// As what the last list has it, and since which generation.
    told_as: (Option<(bool, u64)>, u64),
    /// When the newest list on its way arrives.
    told_at: u64,
    /// Every so many flows it tells nothing of.
    leaves_out: Option<usize>,
    spoken: u64,
    left: u64,
}

enum Happening {
    Tell {
        host: usize,
        members: session::Members,
    },
    Connect(usize),
    Lose(usize),
    Unlist(usize),
    /// The controller has been up for long enough to tell lists.
    Thaw,
}

pub(super) struct World {
    pub(super) now: u64,
    pub(super) random: fastrand::Rng,
    pub(super) flows: Vec<Flow>,
    agents: Vec<Agent>,
    happenings: Vec<(u64, Happening)>,
    on_the_wire: VecDeque<(u64, usize, FlowRecord)>,
    pub(super) collected: BTreeMap<usize, [u64; 2]>,
    /// Agents that were away at any time.
    pub(super) were_away: Vec<bool>,
    generation: u64,
    frozen_until: u64,
    /// Most ms by which a list is late.
    late: u64,
}

impl World {
    pub(super) fn new(seed: u64, hosts: usize, late: u64) -> Self {
        let mut world = Self {
            now: 1_000_000,
            random: fastrand::Rng::with_seed(seed),
            flows: Vec::new(),
            agents: (0..hosts).map(|_| Agent::default()).collect(),
            happenings: Vec::new(),
            on_the_wire: VecDeque::new(),
            collected: BTreeMap::new(),
            were_away: vec![false; hosts],
            generation: 0,
            frozen_until: 0,
            late,
        };
        for host in 0..hosts {
            world.start(host);
        }
        world
    }

    /// An agent is started: again, with what it had reported, or for the first time.
    pub(super) fn start(&mut self, host: usize) {
        let mut fleet = Fleet::new();
        fleet.expect();
        fleet.feed(stream(), SLOT, ms(self.now));
        let forgets = self.agents[host].sights.is_empty();
        let now = self.now;
        for (id, flow) in self.flows.iter().enumerate() {
            if flow.hosts.contains(&host) && flow.begin <= now && now < flow.end && forgets {
                self.agents[host].sights.insert(id, Sight::older(flow, now));
            }
        }
        self.agents[host].fleet = Some(fleet);
        let at = self.now + self.random.u64(100..1_500);
        self.happenings.push((at, Happening::Connect(host)));
    }

    /// kill -9. `forgets`: nothing of it is on disk.
    pub(super) fn kill(&mut self, host: usize, forgets: bool) {
        let agent = &mut self.agents[host];
        agent.fleet = None;
        if forgets {
            agent.sights.clear();
        }
        self.were_away[host] = true;
        self.happenings.retain(
            |(_, what)| !matches!(what, Happening::Connect(other) | Happening::Lose(other) if *other == host),
        );
        let at = self.now + self.random.u64(0..=self.late);
        self.happenings.push((at, Happening::Unlist(host)));
    }

    /// The controller has just started: it tells no list for so long.
    pub(super) fn freeze(&mut self, span: u64) {
        self.frozen_until = self.now + span;
        self.happenings.push((self.frozen_until, Happening::Thaw));
    }

    /// The stream of an agent breaks; both ends notice, and it comes back after a while. One that is away stays so.
    pub(super) fn cut(&mut self, host: usize, away: u64) {
        let is_of_host = |what: &Happening| matches!(what, Happening::Connect(other) | Happening::Lose(other) | Happening::Unlist(other) if *other == host);
        if self.happenings.iter().any(|(_, what)| is_of_host(what)) {
            return;
        }
        for happening in [Happening::Lose(host), Happening::Unlist(host)] {
            let at = self.now + self.random.u64(0..=self.late);
            self.happenings.push((at, happening));
        }
        let at = self.now + self.late + away + 1;
        self.happenings.push((at, Happening::Connect(host)));
    }

    /// The policy of an agent leaves out each `nth` flow, or none.
    pub(super) fn leave_out(&mut self, host: usize, nth: Option<usize>) {
        self.agents[host].leaves_out = nth;
        self.agents[host].partial = nth.is_some();
        self.tell_all();
    }

    pub(super) fn is_running(&self, host: usize) -> bool {
        self.agents[host].fleet.is_some()
    }

    pub(super) fn sums(&self, host: usize) -> (u64, u64) {
        (self.agents[host].spoken, self.agents[host].left)
    }

    pub(super) fn fleet(&self, host: usize) -> &Fleet {
        self.agents[host].fleet.as_ref().unwrap()
    }

    fn members(&self) -> session::Members {
        let listed = self.agents.iter().enumerate().filter(|(_, agent)| agent.listed);
        let members = listed.map(|(host, agent)| session::Member {
            agent: name(host).as_str().to_owned(),
            addresses: vec![match address(host) {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            }],
            partial: agent.partial,
            stream: agent.stream,
            since: agent.told_as.1,
            apart: Vec::new(),
        });
        session::Members {
            collector: "main".to_owned(),
            generation: self.generation,
            members: members.collect(),
            off: false,
        }
    }

    fn tell_all(&mut self) {
        if self.now < self.frozen_until {
            return;
        }
        self.generation += 1;
        for agent in &mut self.agents {
            let told_as = agent.listed.then_some((agent.partial, agent.stream));
            if told_as != agent.told_as.0 {
                agent.told_as = (told_as, self.generation);
            }
        }
        for host in 0..self.agents.len() {
            self.tell(host, self.members());
        }
    }

    /// Tells an agent a list, in its turn. Sometimes in place of the one before, which it never sees: lists are paced.
    fn tell(&mut self, host: usize, members: session::Members) {
        if self.random.bool() {
            let of_host =
                |what: &Happening| matches!(what, Happening::Tell { host: other, .. } if *other == host);
            self.happenings.retain(|(_, what)| !of_host(what));
        }
        let at = self.now + self.random.u64(0..=self.late);
        let agent = &mut self.agents[host];
        agent.told_at = agent.told_at.max(at);
        self.happenings
            .push((agent.told_at, Happening::Tell { host, members }));
    }

    fn happen(&mut self, happening: Happening) {
        let now = ms(self.now);
        match happening {
            Happening::Tell { host, members } => {
                if let Some(fleet) = &mut self.agents[host].fleet {
                    fleet.handle_members(Members::parse(&members).unwrap(), now);
                }
            }
            Happening::Connect(host) => {
                let Some(fleet) = &mut self.agents[host].fleet else {
                    return;
                };
                fleet.handle_connected(name(host));
                let late = |what: &Happening| match what {
                    Happening::Unlist(other) | Happening::Tell { host: other, .. } => *other == host,
                    Happening::Connect(_) | Happening::Lose(_) | Happening::Thaw => false,
                };
                self.happenings.retain(|(_, what)| !late(what));
                self.agents[host].told_at = self.now;
                // A list that was made before, and is still being told to all.
                if self.now >= self.frozen_until && self.random.bool() {
                    self.tell(host, self.members());
                }
                self.agents[host].stream += 1;
                self.agents[host].listed = true;
                self.tell_all();
            }
            Happening::Lose(host) => {
                if let Some(fleet) = &mut self.agents[host].fleet {
                    fleet.handle_lost(now);
                }
                self.happenings.retain(
                    |(_, what)| !matches!(what, Happening::Tell { host: other, .. } if *other == host),
                );
            }
            Happening::Unlist(host) => {
                self.agents[host].listed = false;
                self.tell_all();
            }
            Happening::Thaw => self.tell_all(),
        }
    }

    pub(super) fn run_for(&mut self, span: std::ops::Range<u64>) {
        let span = self.random.u64(span);
        self.run_until(self.now + span);
    }

    pub(super) fn run_until(&mut self, end: u64) {
        while self.now < end {
            self.now += STEP;
            let mut due = Vec::new();
            let mut n = 0;
            while n < self.happenings.len() {
                if self.happenings[n].0 <= self.now {
                    due.push(self.happenings.remove(n));
                } else {
                    n += 1;
                }
            }
            due.sort_by_key(|(at, _)| *at);
            due.into_iter().for_each(|(_, what)| self.happen(what));
            self.move_traffic();
            for host in 0..self.agents.len() {
                self.turn(host);
            }
            self.collect();
        }
    }

    fn move_traffic(&mut self) {
        for flow in &mut self.flows {
            if flow.begin <= self.now && self.now < flow.end {
                for (counts, rate) in [
                    (&mut flow.traffic.forward, flow.rate[0]),
                    (&mut flow.traffic.backward, flow.rate[1]),
                ] {
                    counts.octets += rate;
                    counts.packets += rate.div_ceil(1400);
                }
            }
        }
    }

    fn turn(&mut self, host: usize) {
        let now = self.now;
        let agent = &mut self.agents[host];
        let Some(fleet) = &mut agent.fleet else { return };
        let mut out = Vec::new();
        fleet.handle_timeout(ms(now));
        out.extend(std::iter::from_fn(|| fleet.poll_record()));
        for (id, flow) in self.flows.iter().enumerate() {
            if !flow.hosts.contains(&host) || now < flow.begin || now > flow.end + 120_000 {
                continue;
            }
            let sight = agent.sights.entry(id).or_insert_with(|| Sight {
                over: now > flow.end,
                ..Sight::new(flow)
            });
            let ended = now >= flow.end + 200;
            if sight.over || (now < sight.record_at && !ended) {
                continue;
            }
            let mut record = sight.record(id, flow, host, ended, now);
            if agent.leaves_out.is_some_and(|nth| id % nth == 0) {
                continue;
            }
            fleet.judge(&mut record, ms(sight.start), ms(now));
            out.extend(std::iter::from_fn(|| fleet.poll_record()));
            out.push(record);
        }
        assert!(fleet.held() <= HELD_MAX);
        for record in out {
            if record.held_from.contains(SLOT) {
                agent.left += 1;
                continue;
            }
            agent.spoken += 1;
            // In order for each agent.
            let before = self.on_the_wire.iter().rev().find(|(_, other, _)| *other == host);
            let earliest = before.map_or(now, |(at, ..)| *at);
            let at = (now + self.random.u64(0..2_000)).max(earliest);
            self.on_the_wire.push_back((at, host, record));
        }
    }

    fn collect(&mut self) {
        let mut waiting = VecDeque::new();
        for (at, host, record) in std::mem::take(&mut self.on_the_wire) {
            if at > self.now {
                waiting.push_back((at, host, record));
                continue;
            }
            let flow = usize::try_from(record.id.cookie.0).unwrap() / 2;
            let [forward, backward] = self.collected.entry(flow).or_default();
            for (sum, delta, total) in [
                (forward, record.delta.forward, record.total.forward),
                (backward, record.delta.backward, record.total.backward),
            ] {
                *sum = match record.counting {
                    Counting::Delta => *sum + delta.octets,
                    Counting::Total => total.octets.min(u64::from(u32::MAX)).max(*sum),
                };
            }
        }
        self.on_the_wire = waiting;
    }
}

impl Sight {
    fn new(flow: &Flow) -> Self {
        Self {
            start: flow.begin,
            base: Traffic::default(),
            reported: Traffic::default(),
            part: 0,
            record_at: flow.begin + 500,
            over: false,
        }
    }

    /// A flow older than the agent: it counts from here.
    fn older(flow: &Flow, now: u64) -> Self {
        Self {
            start: now,
            base: flow.traffic,
            reported: Traffic::default(),
            record_at: now + 500,
            ..Self::new(flow)
        }
    }

    fn record(&mut self, id: usize, flow: &Flow, host: usize, ended: bool, now: u64) -> FlowRecord {
        let total = minus(flow.traffic, self.base);
        let delta = minus(total, self.reported);
        self.reported = total;
        self.part += 1;
        self.record_at = now + ACTIVE;
        self.over = ended;
        let party = |n: usize| Party {
            endpoint: Endpoint {
                address: address(flow.hosts[n]),
                port: flow.ports[n],
            },
            owner: Owner::unknown(if flow.hosts[n] == host {
                Unknown::NotSeen
            } else {
                Unknown::Remote
            }),
        };
        FlowRecord {
            id: RecordId {
                boot: BootId([u8::try_from(host).unwrap(); 16]),
                cookie: Cookie(2 * id as u64 + u64::from(flow.hosts[1] == host)),
                stream: 0,
                part: self.part,
            },
            first: self.part == 1,
            protocol: Protocol::Tcp,
            initiator: party(0),
            responder: party(1),
            initiator_seen: true,
            backfilled: false,
            netns: NetNs(1),
            counting: Counting::Delta,
            delta,
            total,
            start: WallTime(ms(self.start).0),
            delta_start: WallTime(ms(self.start).0),
            end: WallTime(ms(now).0),
            tcp: None,
            reason: if ended {
                EndReason::EndOfFlow
            } else {
                EndReason::ActiveTimeout
            },
            held_from: CollectorSet::default(),
            baseline: None,
        }
    }
}

fn minus(one: Traffic, other: Traffic) -> Traffic {
    let counts = |one: Counts, other: Counts| Counts {
        octets: one.octets - other.octets,
        packets: one.packets - other.packets,
        payload: 0,
    };
    Traffic {
        forward: counts(one.forward, other.forward),
        backward: counts(one.backward, other.backward),
    }
}

/// The first record of a flow between two hosts that began at `begin` ms, as the first of them makes it.
pub(super) fn record_between(hosts: [usize; 2], ports: [u16; 2], begin: u64) -> FlowRecord {
    let flow = Flow {
        hosts,
        ports,
        begin,
        end: begin + 60_000,
        traffic: Traffic::default(),
        rate: [0; 2],
    };
    Sight::new(&flow).record(1, &flow, hosts[0], false, begin + 500)
}
