//! Generated histories of a fleet, by seed: agents come, go and crash, operators change and take back, the controller dies
//! before or after any commit, its disk is full and has room again. After each step, and after quiet, the named invariants hold.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use flowtilla_proto::wire::session::Assignment;
use prost::Message;

use super::memory::Memory;
use super::*;
use crate::fleet::load;
use crate::fleet::row::RevisionRow;
use crate::store::Store;

const HISTORIES: u64 = 24;
const STEPS: u32 = 200;
const ZONES: [&str; 3] = ["eu", "us", "asia"];

/// An agent as its side sees it: what it has on its own disk.
struct Actor {
    id: MemberName,
    labels: Labels,
    held: Option<Mark>,
    acked: (u64, u64),
    session: Option<SessionId>,
    nonce: u64,
    inbox: VecDeque<Speech>,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    store: Memory,
    fleet: Fleet,
    actors: Vec<Actor>,
    now_ms: u64,
    sessions: u64,
    sources: BTreeMap<u32, MemberName>,
    revisions: BTreeMap<Vec<u8>, Vec<u8>>,
    nacks: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let store = Memory::default();
        let actor = |n: usize| Actor {
            id: name(&format!("agent-{n}")),
            labels: labels(&[("zone", ZONES[n % ZONES.len()])]),
            held: None,
            acked: (0, 0),
            session: None,
            nonce: 0,
            inbox: VecDeque::new(),
        };
        Self {
            seed,
            actors: (0..random.usize(1..8)).map(actor).collect(),
            random,
            fleet: Fleet::load(&store, at(0)).expect("an empty store"),
            store,
            now_ms: 0,
            sessions: 0,
            sources: BTreeMap::new(),
            revisions: BTreeMap::new(),
            nacks: true,
        }
    }

    fn now(&self) -> Now {
        at(self.now_ms)
    }

    fn step(&mut self) {
        self.now_ms += self.random.u64(0..3_000);
        let n = self.random.usize(0..self.actors.len());
        match self.random.u8(0..100) {
            0..20 => self.open(n),
            20..28 => self.close(n),
            28..65 => self.read(n),
            65..75 => self.apply(),
            75..79 => self.roll_back(),
            79..90 => self.fleet.handle_timeout(self.now()),
            90..94 => self.abort(),
            94..97 => self.fill(),
            _ => return self.restart(),
        }
        // Now and then the controller dies with a batch that is not written, or written and not yet spoken of.
        match self.random.u8(0..40) {
            0 => self.restart(),
            1 => {
                self.commit();
                self.restart();
            }
            _ => self.turn(),
        }
        self.check();
    }

    fn commit(&mut self) {
        let now = self.now();
        self.fleet.finish_turn(now);
        let batch = self.fleet.take_batch();
        if !batch.is_empty() {
            self.store.commit(batch).expect("memory with room");
        }
    }

    fn turn(&mut self) {
        self.commit();
        for (session, speech) in drain(&mut self.fleet) {
            let Some(actor) = self
                .actors
                .iter_mut()
                .find(|actor| actor.session == Some(session))
            else {
                continue;
            };
            if let Speech::Welcome { source_id } = &speech {
                let owner = self.sources.entry(*source_id).or_insert_with(|| actor.id.clone());
                assert_eq!(*owner, actor.id, "source ids are unique, seed {}", self.seed);
            }
            actor.inbox.push_back(speech);
        }
    }

    fn restart(&mut self) {
        self.fleet = Fleet::load(&self.store, self.now()).expect("what was kept");
        for actor in &mut self.actors {
            actor.session = None;
            actor.inbox.clear();
        }
    }

    fn open(&mut self, n: usize) {
        let now = self.now();
        self.sessions += 1;
        let session = SessionId(self.sessions);
        let actor = &mut self.actors[n];
        actor.session = Some(session);
        actor.nonce = 0;
        actor.inbox.clear();
        // Every second one prefers the same number.
        let hello = hello(1 + (n as u32 % 2) * n as u32, actor.held);
        let opened = self
            .fleet
            .handle_open(&actor.id, &actor.labels, hello, session, now);
        if opened == Err(Unwelcome::NoRoom) {
            assert!(self.fleet.stands_still(), "seed {}", self.seed);
            actor.session = None;
            return;
        }
        opened.expect("welcome");
    }

    /// The disk is full from here on, or is so no longer.
    fn fill(&mut self) {
        let full = !self.fleet.stands_still();
        self.store.full.store(full, Ordering::SeqCst);
        match full {
            true => assert!(self.fleet.stand_still()),
            false => assert!(self.fleet.go_on(self.now())),
        }
    }

    fn close(&mut self, n: usize) {
        let now = self.now();
        if let Some(session) = self.actors[n].session.take() {
            self.actors[n].inbox.clear();
            self.fleet.handle_closed(session, now);
        }
    }

    /// The agent reads one message: judge, persist, apply, answer; it may crash after persisting.
    fn read(&mut self, n: usize) {
        let (now, seed) = (self.now(), self.seed);
        let actor = &mut self.actors[n];
        let Some(session) = actor.session else {
            return;
        };
        let offer = match actor.inbox.pop_front() {
            Some(Speech::Offer(offer)) => offer,
            Some(Speech::Ended(..)) => {
                actor.session = None;
                return;
            }
            _ => return,
        };
        assert!(offer.nonce > actor.nonce, "nonces rise, seed {seed}");
        actor.nonce = offer.nonce;
        assert!(
            offer.mark.place() >= actor.acked,
            "an agent is never offered a version lower than one it acked, seed {seed}: {:?} after {:?}",
            offer.mark,
            actor.acked
        );
        if let Some(held) = actor.held {
            let same = offer.mark.place() == held.place();
            assert!(
                !same || offer.mark == held,
                "one version, two contents, seed {seed}"
            );
        }
        Assignment::decode(&offer.content.octets[..]).expect("a whole assignment");
        match self.random.u8(0..10) {
            0 if self.nacks => self
                .fleet
                .handle_heard(session, nack(offer.nonce, "refused"), now),
            1 => {
                // It crashes between its disk and its answer.
                actor.held = Some(offer.mark);
                self.close(n);
            }
            2 => {
                // An answer to an offer of long ago.
                let stale = OfferOut {
                    nonce: offer.nonce - 1,
                    ..offer.clone()
                };
                self.fleet.handle_heard(session, ack(&stale), now);
                actor.inbox.push_front(Speech::Offer(offer));
                actor.nonce -= 1;
            }
            _ => {
                actor.held = Some(offer.mark);
                actor.acked = actor.acked.max(offer.mark.place());
                self.fleet.handle_heard(session, ack(&offer), now);
            }
        }
    }

    fn apply(&mut self) {
        let now = self.now();
        let mut objects = vec![collector("c1"), collector("c2")];
        for (n, zone) in ZONES.iter().enumerate() {
            if self.random.bool() {
                continue;
            }
            let used: &[&str] = if self.random.bool() {
                &["c1"]
            } else {
                &["c1", "c2"]
            };
            let mut policy = policy(zone, n as u32, &[("zone", zone)], used);
            policy.capture = Some(wire::Capture {
                active_timeout_ms: Some(self.random.u64(1..30) * 1_000),
                ..wire::Capture::default()
            });
            if self.random.bool() {
                policy.rollout = Some(wire::Rollout {
                    waves: vec!["1".into(), "60%".into(), "100%".into()],
                    soak_ms: Some(0),
                    ..wire::Rollout::default()
                });
            }
            objects.push(object(policy));
        }
        let all = policy("all", 100, &[], &["c2"]);
        let mut removed = Vec::new();
        match self.random.u8(0..6) {
            0 => objects.push(object(all)),
            1 => removed.push("all"),
            _ => {}
        }
        // Removing what is not there is refused, and then nothing has changed.
        if !self.fleet.stands_still() {
            let _ = self.fleet.apply(change(objects, &removed), now);
        }
    }

    fn roll_back(&mut self) {
        let now = self.now();
        let to = self.random.u64(0..=self.fleet.revision());
        if self.fleet.stands_still() {
            return;
        }
        if let Some(row) = load::revision(&self.store, to).expect("memory") {
            self.fleet
                .roll_back(&row, Change::default(), now)
                .expect("no agent matches two");
        }
    }

    fn abort(&mut self) {
        let now = self.now();
        let ids: Vec<u64> = self.fleet.rollouts.runs().map(|run| run.head().id).collect();
        if self.fleet.stands_still() {
            return;
        }
        for id in ids {
            let _ = self
                .fleet
                .steer(id, flowtilla_proto::wire::fleet::Steering::Abort, "admin", now);
        }
    }

    fn check(&mut self) {
        let seed = self.seed;
        for (key, value) in self
            .store
            .scan(Table::Revisions, None, usize::MAX)
            .expect("memory")
        {
            let kept = self.revisions.entry(key).or_insert_with(|| value.clone());
            assert_eq!(*kept, value, "revisions are immutable, seed {seed}");
        }
        for (id, agent) in &self.fleet.agents {
            let Some(wanted) = &agent.wanted else {
                continue;
            };
            let content = &wanted.content;
            let row = self.revisions.get(content.revision.to_be_bytes().as_slice());
            let objects = match row {
                None => Objects::default(),
                Some(row) => {
                    let row = RevisionRow::decode(&row[..]).expect("a revision");
                    Objects::from_wire(&row.objects).expect("objects")
                }
            };
            let whole = objects.assignment(content.policy.as_deref(), content.revision);
            assert_eq!(
                whole.encode_to_vec(),
                content.octets,
                "{id} is between two policies, seed {seed}"
            );
        }
    }

    /// Everybody connects, reads and acks; then what everybody has is what the objects of record say.
    fn quiet(&mut self) {
        self.nacks = false;
        if self.fleet.stands_still() {
            self.fill();
        }
        for n in 0..self.actors.len() {
            self.open(n);
        }
        self.turn();
        for _ in 0..200 {
            for n in 0..self.actors.len() {
                while !self.actors[n].inbox.is_empty() {
                    self.read(n);
                    if self.actors[n].session.is_none() {
                        self.open(n);
                    }
                    self.turn();
                }
            }
            self.now_ms += 1_000;
            self.fleet.handle_timeout(self.now());
            self.turn();
        }
        self.check();
        let record = self.fleet.objects_of_record();
        let objects = Objects::from_wire(&record.objects).expect("objects");
        for actor in &self.actors {
            let policy = objects.policy_for(&actor.id, &actor.labels, None);
            let wanted = Content::new(&objects.assignment(policy, 0)).sameness;
            let agent = &self.fleet.agents[&actor.id];
            assert!(
                agent.converged(),
                "{} has not converged, seed {}",
                actor.id,
                self.seed
            );
            assert_eq!(agent.held, actor.held, "both sides agree, seed {}", self.seed);
            let has = agent.in_force.as_ref().expect("in force").sameness;
            assert_eq!(
                has, wanted,
                "{} has what its policy says, seed {}",
                actor.id, self.seed
            );
        }
        assert!(
            self.fleet.rollouts.runs().count() == 0,
            "every rollout ends, seed {}",
            self.seed
        );
    }
}

#[test]
fn whatever_happens_every_agent_ends_with_what_its_policy_says() {
    for seed in 0..HISTORIES {
        history(seed);
    }
}

fn history(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.quiet();
}
