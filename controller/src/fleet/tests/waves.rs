//! Waves from end to end inside one process: the fleet with its store on a disk, and agents that judge, keep, apply and
//! answer. The controller is killed at any step: what it had not committed is gone, and so is what it had not said.
//!
//! A step is one of: before a commit, after it, after each thing that is said. A failure prints the seed of its cycle;
//! `FLOWTILLA_SOAK=1` runs all cycles, else a tenth of them.

use std::path::Path;

use flowtilla_proto::wire::fleet::{GateFailure, RolloutState};
use flowtilla_proto::wire::session::Assignment;
use prost::Message;

use super::super::content::Hash;
use super::*;
use crate::rollout::host::{Host, Load};
use crate::store::sled::SledStore;
use crate::store::{Batch, Store};

const CYCLES: u64 = 100;
const AGENTS: usize = 8;
const TICK_MS: u64 = 1_000;
const BEAT_MS: u64 = 4_000;
const SOAK_MS: u64 = 20_000;
/// Longest time of one change, restarts of the controller and their grace included.
const TICKS_MAX: u64 = 1_500;
/// What marks a policy that does not suit the agents.
const HARMFUL_FLOWS: u64 = 16;

/// Whether anything is told to an agent that does not suit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suits {
    Everybody,
    /// All but the agent that has it first, which is well with it.
    TheFirstOnly,
    /// One of the agents refuses it.
    NotOne,
}

/// An agent: what it keeps on its disk, and its stream.
#[derive(Default)]
struct Sim {
    held: Option<Mark>,
    /// The assignment in force, encoded.
    octets: Vec<u8>,
    host: Host,
    session: Option<SessionId>,
    offer: Option<OfferOut>,
}

impl Sim {
    fn flows(&self) -> u64 {
        let policy = Assignment::decode(&self.octets[..])
            .ok()
            .and_then(|has| has.policy);
        let capture = policy.and_then(|policy| policy.capture);
        capture.and_then(|capture| capture.max_flows).unwrap_or(0)
    }
}

/// The controller was killed.
struct Killed;

struct World {
    seed: u64,
    rng: fastrand::Rng,
    store: Option<SledStore>,
    fleet: Option<Fleet>,
    agents: BTreeMap<MemberName, Sim>,
    known: BTreeSet<Hash>,
    suits: Suits,
    first: Option<MemberName>,
    now_ms: u64,
    sessions: u64,
    /// Steps until the next kill.
    fuse: Option<u64>,
    steps: u64,
    kills: u64,
}

impl World {
    fn new(path: &Path, seed: u64) -> Self {
        let store = SledStore::open(path).expect("a store");
        let fleet = Fleet::load(&store, at(0)).expect("an empty store");
        let agents = (0..AGENTS).map(|n| (name(&format!("a{n}")), Sim::default()));
        Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            store: Some(store),
            fleet: Some(fleet),
            agents: agents.collect(),
            known: BTreeSet::new(),
            suits: Suits::Everybody,
            first: None,
            now_ms: 0,
            sessions: 0,
            fuse: None,
            steps: 0,
            kills: 0,
        }
    }

    fn fleet(&mut self) -> &mut Fleet {
        self.fleet.as_mut().expect("it runs")
    }

    /// One step is over: the controller may be killed here.
    fn step(&mut self) -> Result<(), Killed> {
        self.steps += 1;
        match &mut self.fuse {
            Some(0) => {
                self.fuse = None;
                Err(Killed)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Ends a turn: what has changed is written, then what is to be said is said.
    fn turn(&mut self) -> Result<(), Killed> {
        let now = at(self.now_ms);
        self.fleet().finish_turn(now);
        let batch = self.fleet().take_batch();
        if batch != Batch::default() {
            self.step()?;
            self.store
                .as_ref()
                .expect("it is open")
                .commit(batch)
                .expect("a disk");
            self.step()?;
        }
        while let Some((session, speech)) = self.fleet().poll_speech() {
            self.hear(session, speech);
            self.step()?;
        }
        Ok(())
    }

    fn hear(&mut self, session: SessionId, speech: Speech) {
        let Some(sim) = self.agents.values_mut().find(|sim| sim.session == Some(session)) else {
            return;
        };
        match speech {
            Speech::Offer(offer) => sim.offer = Some(offer),
            Speech::Ended(..) => sim.session = None,
            _ => {}
        }
    }

    /// Connects those that are not, each after a while.
    fn connect(&mut self) -> Result<(), Killed> {
        let now = at(self.now_ms);
        let away: Vec<(MemberName, Option<Mark>)> = (self.agents.iter())
            .filter(|(_, sim)| sim.session.is_none())
            .map(|(id, sim)| (id.clone(), sim.held))
            .collect();
        for (n, (id, held)) in away.into_iter().enumerate() {
            if self.rng.u8(..4) == 0 {
                continue;
            }
            self.sessions += 1;
            let session = SessionId(self.sessions);
            self.agents.get_mut(&id).expect("it is there").session = Some(session);
            let hello = hello(u32::try_from(n).expect("small") + 1, held);
            let opened = self
                .fleet()
                .handle_open(&id, &Labels::default(), hello, session, now);
            opened.expect("welcome");
            self.turn()?;
        }
        Ok(())
    }

    /// Agents judge, keep, apply, answer; and tell how they do.
    fn answer(&mut self) -> Result<(), Killed> {
        let now = at(self.now_ms);
        let ids: Vec<MemberName> = self.agents.keys().cloned().collect();
        for id in ids {
            let harmed = self.is_harmed(&id);
            let refuses = self.suits == Suits::NotOne && id.as_str() == "a3";
            let slow = self.rng.u8(..3) == 0;
            let beats = self.now_ms.is_multiple_of(BEAT_MS);
            let sim = self.agents.get_mut(&id).expect("it is there");
            let load = Load {
                lost: if harmed { 300 } else { 0 },
                ..Load::default()
            };
            sim.host.run(TICK_MS, &load);
            let Some(session) = sim.session else {
                continue;
            };
            if let Some(offer) = sim.offer.take_if(|_| !slow) {
                let floor = sim.held.map(Mark::place);
                let stale = floor.is_some_and(|floor| offer.mark.place() < floor);
                assert!(
                    !stale,
                    "seed {}: {id} was offered {:?} after {floor:?}",
                    self.seed, offer.mark
                );
                let assignment = Assignment::decode(&offer.content.octets[..]).expect("an assignment");
                let flows = assignment.policy.and_then(|policy| policy.capture?.max_flows);
                let heard = if refuses && flows == Some(HARMFUL_FLOWS) {
                    nack(offer.nonce, "it does not suit")
                } else {
                    if flows == Some(HARMFUL_FLOWS) && self.first.is_none() {
                        self.first = Some(id.clone());
                    }
                    sim.held = Some(offer.mark);
                    sim.octets.clone_from(&offer.content.octets);
                    self.known.insert(offer.mark.digest);
                    ack(&offer)
                };
                self.fleet().handle_heard(session, heard, now);
                self.turn()?;
            }
            if beats {
                let sim = &self.agents[&id];
                let heard = Heard::Heartbeat {
                    held: sim.held,
                    health: Some(Box::new(sim.host.health().clone())),
                    addresses: None,
                };
                self.fleet().handle_heard(session, heard, now);
                self.turn()?;
            }
        }
        Ok(())
    }

    fn is_harmed(&self, id: &MemberName) -> bool {
        let harmful = self.agents[id].flows() == HARMFUL_FLOWS;
        self.suits == Suits::TheFirstOnly && harmful && self.first.as_ref() != Some(id)
    }

    fn tick(&mut self) -> Result<(), Killed> {
        self.now_ms += TICK_MS;
        self.connect()?;
        self.answer()?;
        let now = at(self.now_ms);
        self.fleet().handle_timeout(now);
        self.turn()
    }

    /// It is gone, and comes back with what is on the disk.
    fn kill(&mut self, path: &Path) {
        self.kills += 1;
        self.fleet = None;
        // The lock goes with the store.
        self.store = None;
        let store = SledStore::open(path).expect("the same store");
        self.now_ms += TICK_MS;
        self.fleet = Some(Fleet::load(&store, at(self.now_ms)).expect("what was written"));
        self.store = Some(store);
        for sim in self.agents.values_mut() {
            sim.session = None;
            sim.offer = None;
        }
    }

    /// Everybody has in force what it is to have, and no rollout goes on.
    fn settled(&mut self) -> bool {
        let standing = self.fleet().standing();
        let over = |state| {
            matches!(
                state,
                RolloutState::Done | RolloutState::RolledBack | RolloutState::Superseded
            )
        };
        standing.converged as usize == AGENTS
            && standing
                .rollout
                .as_ref()
                .is_none_or(|rollout| over(rollout.state()))
    }

    fn run(&mut self, path: &Path) {
        for _ in 0..TICKS_MAX {
            if self.tick().is_err() {
                self.kill(path);
                if self.rng.bool() {
                    self.fuse = Some(self.rng.u64(..30));
                }
            } else if self.settled() {
                return;
            }
        }
        let standing = self.fleet().standing();
        panic!("seed {}: it does not converge: {standing:?}", self.seed);
    }

    /// Deploys a policy of so many flows in waves. `false`: the controller was killed before it said yes.
    fn deploy(&mut self, flows: u64, waves: &[&str], path: &Path) -> bool {
        self.first = None;
        let mut policy = policy("p", 0, &[], &["c"]);
        policy.capture = Some(wire::Capture {
            max_flows: Some(flows),
            ..wire::Capture::default()
        });
        policy.rollout = Some(wire::Rollout {
            waves: waves.iter().map(|&wave| wave.to_owned()).collect(),
            soak_ms: Some(SOAK_MS),
            ..wire::Rollout::default()
        });
        let now = at(self.now_ms);
        let wanted = change(vec![collector("c"), object(policy)], &[]);
        self.fleet().apply(wanted, now).expect("it is sound");
        let done = self.turn().is_ok();
        if !done {
            self.kill(path);
        }
        done
    }

    fn check(&mut self, flows: u64) {
        let seed = self.seed;
        for (id, sim) in &self.agents {
            assert_eq!(
                sim.flows(),
                flows,
                "seed {seed}: {id} has another policy than the fleet"
            );
            let digest = sim.held.expect("it has one").digest;
            assert!(
                self.known.contains(&digest),
                "seed {seed}: {id} has what was never offered"
            );
        }
    }
}

fn soak() -> bool {
    std::env::var("FLOWTILLA_SOAK").is_ok_and(|value| value == "1")
}

#[test]
fn a_second_wave_that_breaks_health_is_taken_back_without_a_hand() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut world = World::new(dir.path(), 1);
    world.deploy(1_000, &[], dir.path());
    world.run(dir.path());
    world.check(1_000);
    for _ in 0..2 * SOAK_MS / TICK_MS {
        assert!(world.tick().is_ok(), "nobody kills it");
    }
    world.suits = Suits::TheFirstOnly;
    world.deploy(HARMFUL_FLOWS, &["1", "50%", "100%"], dir.path());
    world.run(dir.path());
    world.check(1_000);
    let rollout = world.fleet().rollouts(1).remove(0);
    assert_eq!(
        (rollout.state(), rollout.wave, rollout.waves),
        (RolloutState::RolledBack, 2, 3)
    );
    let [failure] = &rollout.failures[..] else {
        panic!("one gate: {:?}", rollout.failures);
    };
    let GateFailure {
        gate,
        agents,
        message,
        ..
    } = failure;
    assert_eq!(gate, "drops");
    // Those of the second wave that were seen when the first of them was.
    assert!((1..=3).contains(&agents.len()), "{failure:?}");
    assert_eq!(
        (failure.value, failure.baseline, failure.bound),
        (300.0, 0.0, 10.0)
    );
    let first = world.first.clone().expect("the canary").to_string();
    assert!(!agents.contains(&first), "the canary was well: {message}");
    assert!(
        message.contains(" of what it observed; 0.00 % was to be expected"),
        "{message}"
    );
}

#[test]
fn a_controller_that_is_killed_at_any_step_converges() {
    let cycles = if soak() { CYCLES } else { CYCLES / 10 };
    let dir = tempfile::tempdir().expect("a directory");
    let mut world = World::new(dir.path(), 0);
    world.deploy(1_000, &[], dir.path());
    world.run(dir.path());
    // How many steps a change has that nobody disturbs.
    let before = world.steps;
    world.deploy(1_001, &["1", "50%", "100%"], dir.path());
    world.run(dir.path());
    let (length, mut flows, mut killed) = (world.steps - before, 1_001, 0);
    assert_eq!(world.kills, 0);
    for seed in 0..cycles {
        (world.seed, world.rng) = (seed, fastrand::Rng::with_seed(seed));
        world.suits = match seed % 3 {
            0 => Suits::Everybody,
            1 => Suits::TheFirstOnly,
            _ => Suits::NotOne,
        };
        // The first kill walks through the whole of a change, from the deploy to its end.
        world.fuse = Some(seed * length / cycles);
        let (kills, next) = (world.kills, 2_000 + seed);
        let harmful = world.suits != Suits::Everybody;
        let wanted = if harmful { HARMFUL_FLOWS } else { next };
        let said_yes = world.deploy(wanted, &["1", "50%", "100%"], dir.path());
        world.run(dir.path());
        killed += u64::from(world.kills > kills);
        let has = world.agents.values().next().expect("an agent").flows();
        // A deploy that was not confirmed may or may not be there, whole.
        if !harmful && (said_yes || has == next) {
            flows = next;
        }
        world.check(flows);
    }
    // One that refuses ends a change before its last step.
    assert!(killed * 3 > cycles * 2, "{killed} of {cycles} cycles with a kill");
    println!(
        "{killed} of {cycles} cycles with kills, {} in all; a change has {length} steps",
        world.kills
    );
}
