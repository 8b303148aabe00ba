//! Random lives of a fleet: agents that come, go, move, lag behind, refuse and are revoked, collectors that move, controllers that
//! restart, crash and are restored. Whatever happens, no two agents are the same number to one endpoint.
//!
//! An agent here is what one is to a collector: what it holds, and the numbers that it was told. It reads its stream as the
//! agent's session does: numbers before an offer, one job after the other, whatever became of the stream meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use flowtilla_proto::spiffe::MemberName;

use super::super::super::content::Content;
use super::super::super::heard::Mark;
use super::*;
use crate::store::{Batch, Table};

/// Where collectors may be.
const PORTS: [u16; 3] = [5_556, 5_557, 5_558];
const PLACES: [&str; 4] = ["", "twin", "aside", "new"];

enum Job {
    Know(BTreeMap<String, u32>),
    Adopt(OfferOut, SessionId),
}

#[derive(Default)]
struct Host {
    place: usize,
    session: Option<SessionId>,
    /// What waits on its stream.
    told: Option<BTreeMap<String, u32>>,
    offer: Option<OfferOut>,
    jobs: VecDeque<Job>,
    ids: BTreeMap<String, u32>,
    held: Option<(Mark, Arc<Content>)>,
    /// Its identity is void, or the controller that gave it is forgotten.
    void: bool,
}

impl Host {
    /// Collectors, and what it is to them.
    fn feeds(&self) -> impl Iterator<Item = (&str, u32)> {
        let short = self.held.iter().flat_map(|(_, content)| &content.short);
        short.filter_map(|one| {
            let number = self.ids.get(&one.name).copied().filter(|number| *number > 0)?;
            Some((one.endpoint.as_str(), number))
        })
    }

    fn close(&mut self) {
        (self.session, self.told, self.offer) = (None, None, None);
    }
}

struct World {
    random: fastrand::Rng,
    fleet: Fleet,
    store: Memory,
    backup: Option<(Memory, usize)>,
    hosts: Vec<Host>,
    sessions: u64,
    ms: u64,
    most: u8,
    refusals: bool,
}

impl World {
    fn new(seed: u64, most: u8) -> Self {
        let store = Memory::default();
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            fleet: fleet(&store),
            store,
            backup: None,
            hosts: Vec::new(),
            sessions: 0,
            ms: 10,
            most,
            refusals: true,
        };
        super::most(&mut world.fleet, most);
        world.turn();
        world
    }

    fn id(n: usize) -> MemberName {
        name(&format!("agent-{n}"))
    }

    /// What the fleet's thread does: rows first, then speech.
    fn turn(&mut self) {
        self.fleet.finish_turn(at(self.ms));
        keep(&mut self.fleet, &self.store);
        for (to, speech) in drain(&mut self.fleet) {
            let Some(host) = self.hosts.iter_mut().find(|host| host.session == Some(to)) else {
                continue;
            };
            match speech {
                Speech::ShortIds(ids) => host.told = Some(ids),
                Speech::Offer(offer) => host.offer = Some(offer),
                Speech::Ended(..) => host.close(),
                _ => {}
            }
        }
    }

    fn connect(&mut self, n: usize) {
        self.close(n);
        let host = &mut self.hosts[n];
        if host.void {
            return;
        }
        self.sessions += 1;
        let session = SessionId(self.sessions);
        host.session = Some(session);
        let said = hello(n as u32 + 1, host.held.as_ref().map(|(mark, _)| *mark));
        let of = match PLACES[host.place] {
            "" => Labels::default(),
            place => labels(&[("at", place)]),
        };
        self.fleet
            .handle_open(&Self::id(n), &of, said, session, at(self.ms))
            .expect("welcome");
        self.turn();
    }

    fn close(&mut self, n: usize) {
        if let Some(session) = self.hosts[n].session {
            self.hosts[n].close();
            self.fleet.handle_closed(session, at(self.ms));
            self.turn();
        }
    }

    /// The agent reads what waits on its stream, as far as its adopter is free.
    fn read(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        host.jobs.extend(host.told.take().map(Job::Know));
        let adopts = host.jobs.iter().any(|job| matches!(job, Job::Adopt(..)));
        if let (false, Some(session)) = (adopts, host.session) {
            host.jobs
                .extend(host.offer.take().map(|offer| Job::Adopt(offer, session)));
        }
    }

    /// The agent does its next job.
    fn work(&mut self, n: usize) {
        let host = &mut self.hosts[n];
        let (offer, session) = match host.jobs.pop_front() {
            None => return,
            Some(Job::Know(ids)) => {
                host.ids = ids;
                return;
            }
            Some(Job::Adopt(offer, session)) => (offer, session),
        };
        let held = host.held.as_ref().map(|(mark, _)| mark.place());
        if held.is_some_and(|held| held > offer.mark.place()) {
            return;
        }
        let refuses = self.refusals && self.random.u8(..6) == 0;
        let answer = match refuses {
            true => Heard::Nack(Box::new(wire::session::Nack {
                nonce: offer.nonce,
                ..wire::session::Nack::default()
            })),
            false => ack(&offer),
        };
        if !refuses {
            host.held = Some((offer.mark, offer.content));
        }
        if host.session != Some(session) {
            return; // The stream that it came by has ended.
        }
        if self.random.u8(..8) == 0 {
            return self.close(n); // And with it the answer.
        }
        self.fleet.handle_heard(session, answer, at(self.ms));
        self.turn();
    }

    fn beat(&mut self, n: usize) {
        let host = &self.hosts[n];
        if let Some(session) = host.session {
            let heard = Heard::Heartbeat {
                held: host.held.as_ref().map(|(mark, _)| *mark),
                health: None,
                addresses: None,
            };
            self.fleet.handle_heard(session, heard, at(self.ms));
            self.turn();
        }
    }

    fn revoke(&mut self, n: usize) {
        self.fleet.handle_revoked(&Self::id(n));
        self.turn();
        self.hosts[n].void = true;
    }

    /// Collectors are elsewhere from now on, and policies may name others.
    fn deploy(&mut self) {
        let mut objects = Vec::new();
        for name in ["old", "twin", "aside", "new"] {
            let port = PORTS[self.random.usize(..PORTS.len())];
            objects.push(collector(name, port, self.random.u8(..4) > 0));
        }
        let wanted = ["old", "twin", "aside"];
        let wanted = wanted[self.random.usize(..wanted.len())];
        objects.push(object(policy("twins", 1, &[("at", "twin")], &[wanted])));
        self.fleet
            .apply(change(objects, &[]), at(self.ms))
            .expect("applied");
        self.turn();
    }

    fn pass(&mut self, ms: u64) {
        self.ms += ms;
        for n in 0..self.hosts.len() {
            self.beat(n);
        }
        self.fleet.handle_timeout(at(self.ms));
        self.turn();
    }

    /// Another process of the controller, over what the disk has.
    fn start_over(&mut self) {
        self.hosts.iter_mut().for_each(Host::close);
        self.fleet = Fleet::load(&self.store, at(self.ms)).expect("what was kept");
        super::most(&mut self.fleet, self.most);
        self.turn();
    }

    fn back_up(&mut self) {
        self.backup = Some((self.store.copy(), self.hosts.len()));
    }

    /// Once from each backup: two restores of one are not told apart.
    fn restore(&mut self) {
        let Some((store, known)) = self.backup.take() else {
            return;
        };
        let mut meta = Batch::default();
        for (key, value) in store.scan(Table::Meta, None, 1_000).expect("rows") {
            meta.put(Table::Meta, key, value);
        }
        let now = WallMs(at(self.ms).wall_ms);
        backup::raise(&mut meta, now, now);
        store.commit(meta).expect("kept");
        self.store = store;
        self.start_over();
        // Operators revoke once more; who enrolled since is a stranger, and goes on all the same.
        for n in 0..self.hosts.len() {
            match n < known {
                true if self.hosts[n].void => self.revoke(n),
                true => {}
                false => self.hosts[n].void = true,
            }
        }
    }

    /// Whom the world may not tell apart; `void`: those count too whose identity is void.
    fn shared(&self, void: bool) -> Option<(usize, usize, String, u32)> {
        let mut seen = BTreeMap::new();
        for (n, host) in self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| void || !host.void)
        {
            for (endpoint, number) in host.feeds() {
                let other = *seen.entry((endpoint, number)).or_insert(n);
                if other != n {
                    return Some((other, n, endpoint.to_owned(), number));
                }
            }
        }
        None
    }

    /// Something that an agent does, or that is done to it.
    fn act(&mut self) {
        if self.hosts.is_empty() {
            return;
        }
        let n = self.random.usize(..self.hosts.len());
        match self.random.u8(..20) {
            0..3 => self.connect(n),
            3..8 => self.read(n),
            8..14 => self.work(n),
            14..16 => self.beat(n),
            16 => self.close(n),
            17 => {
                self.hosts[n].place = self.random.usize(..PLACES.len());
                self.connect(n);
            }
            18 => {
                // The agent is started anew: what it had begun is gone.
                self.hosts[n].jobs.clear();
                self.close(n);
            }
            _ => self.pass(10_000),
        }
    }
}

#[test]
fn nobody_ever_shares_a_number_in_a_random_life_with_numbers_enough() {
    for seed in 0..60 {
        let mut world = World::new(seed, u8::MAX);
        let mut restores = 0;
        for step in 0..1_500 {
            match world.random.u16(..300) {
                0..6 if world.hosts.len() < 24 => {
                    let place = world.random.usize(..PLACES.len());
                    world.hosts.push(Host {
                        place,
                        ..Host::default()
                    });
                    world.connect(world.hosts.len() - 1);
                }
                6..10 => world.deploy(),
                10 if !world.hosts.is_empty() => {
                    let n = world.random.usize(..world.hosts.len());
                    world.revoke(n);
                }
                11..13 => world.start_over(),
                13 => world.back_up(),
                14 if restores < 4 => {
                    restores += u32::from(world.backup.is_some());
                    world.restore();
                }
                15 => {
                    let hours = world.random.u64(1..60);
                    world.pass(hours * 3_600_000);
                }
                _ => world.act(),
            }
            let shared = world.shared(true);
            assert!(shared.is_none(), "seed {seed}, step {step}: {shared:?}");
        }
    }
}

#[test]
fn no_two_live_agents_share_a_number_where_there_are_too_few_and_none_stays_unused() {
    let mut waited = 0;
    for seed in 100..160 {
        let mut world = World::new(seed, 4);
        for place in 0..10 {
            world.hosts.push(Host {
                place: place % PLACES.len(),
                ..Host::default()
            });
        }
        for step in 0..1_500 {
            match world.random.u16(..300) {
                0..4 => world.deploy(),
                4 if world.hosts.iter().filter(|host| !host.void).count() > 6 => {
                    let n = world.random.usize(..world.hosts.len());
                    world.revoke(n);
                    world.hosts.push(Host::default());
                }
                5 => {
                    let hours = world.random.u64(1..60);
                    world.pass(hours * 3_600_000);
                }
                _ => world.act(),
            }
            let shared = world.shared(false);
            assert!(shared.is_none(), "seed {seed}, step {step}: {shared:?}");
        }
        waited += rest(&mut world, seed);
    }
    assert!(waited > 0, "there were numbers enough: nothing was shown");
}

/// Everybody comes, and does what it is told; how many have no number then.
fn rest(world: &mut World, seed: u64) -> usize {
    world.refusals = false;
    for round in 0..4 {
        for n in 0..world.hosts.len() {
            // What it has refused it is offered again on another stream.
            if round == 0 || world.hosts[n].session.is_none() {
                world.connect(n);
            }
            for _ in 0..8 {
                world.read(n);
                world.work(n);
            }
        }
        world.pass(FORGET_EVERY_MS);
    }
    let shared = world.shared(false);
    assert!(shared.is_none(), "seed {seed}: {shared:?}");
    let mut waiting = 0;
    for host in world.hosts.iter().filter(|host| !host.void) {
        let (_, content) = host.held.as_ref().expect("it holds something");
        for one in &content.short {
            if host.feeds().any(|(endpoint, _)| endpoint == one.endpoint) {
                continue;
            }
            waiting += 1;
            let uses = |id: &MemberName, endpoint: &str| use_of(&world.fleet.agents, id, endpoint);
            let unused = world.fleet.short.numbers.unused(&one.endpoint, uses);
            assert!(
                unused.is_empty(),
                "seed {seed}: {unused:?} at {}, and somebody waits",
                one.endpoint
            );
        }
    }
    waiting
}
