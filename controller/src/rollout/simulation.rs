//! Fleets by seed: agents that refuse, go silent, get slow, lose records, leak memory, start again, leave, come late, and
//! a controller that dies at any step. After each step the invariants of [`World::check`]; at the end, those of the kind.
//!
//! A failure prints its seed; `FLOWTILLA_SEED=N` runs that one alone.

use std::collections::BTreeMap;

use flowtilla_proto::{policy, wire};

use super::host::{Host, Load};
use super::{Content, Gate, Head, HealthWindows, Member, Moment, Rollout, State};

const SEEDS: u64 = 400;
const BEAT_MS: u64 = 5_000;
const SOAK_MS: u64 = 40_000;
const ACK_TIMEOUT_MS: u64 = 20_000;
const SILENCE_MS: u64 = 20_000;
const TICK_MS: u64 = 1_000;

/// Longest life of a rollout: three waves that soak, restarts of the controller with all that they cost, and agents that
/// are away.
const TICKS_MAX: u64 = 3_000;

/// What the change does to an agent that it does not suit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Refuses,
    NeverAnswers,
    GoesSilent,
    Loses,
    LosesRecords,
    LosesOwners,
    Lags,
    Burns,
    Leaks,
    StartsAgain,
    BreaksLimits,
}

const HARMS: [(Harm, Gate); 11] = [
    (Harm::Refuses, Gate::Nack),
    (Harm::NeverAnswers, Gate::Ack),
    (Harm::GoesSilent, Gate::Silence),
    (Harm::Loses, Gate::Drops),
    (Harm::LosesRecords, Gate::Drops),
    (Harm::LosesOwners, Gate::Coverage),
    (Harm::Lags, Gate::Lag),
    (Harm::Burns, Gate::Cpu),
    (Harm::Leaks, Gate::Memory),
    (Harm::StartsAgain, Gate::Starts),
    (Harm::BreaksLimits, Gate::Limits),
];

#[derive(Debug)]
struct Agent {
    host: Host,
    base: Load,
    connected: bool,
    /// When it comes back, or when it answers what it was offered.
    back_at: Option<u64>,
    answer_at: Option<u64>,
    /// Whether it has the change in force.
    has_change: bool,
    changed_at: u64,
    harmed: bool,
    beat_phase: u64,
    /// It never leaves: those that are harmed, so that it is known when the harm is seen.
    steady: bool,
    joined: bool,
}

struct World {
    seed: u64,
    rng: fastrand::Rng,
    policy: policy::Policy,
    rollout: Rollout,
    windows: HealthWindows,
    agents: BTreeMap<String, Agent>,
    now: u64,
    harm: Option<Harm>,
    /// As the store has it.
    stored_head: Option<Head>,
    stored_members: BTreeMap<String, Member>,
    sizes: Vec<usize>,
    /// When the wave under way began, or the controller started if that was later.
    watched_from: u64,
    wave: u32,
    restarts_left: u32,
}

impl World {
    fn new(seed: u64, harm: Option<Harm>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let waves = [
            &["1", "10%", "100%"][..],
            &["2", "100%"],
            &["20%", "50%", "100%"],
            &["100%"],
            &["1", "3", "100%"],
        ];
        let waves = waves[rng.usize(..waves.len())];
        let policy = policy(waves);
        let n = rng.usize(2..=24);
        // Who loses all the time must be known for it: not so after a restart of the controller.
        let restarts_left = if rng.bool() { rng.u32(1..=4) } else { 0 };
        let now = 1_000_000_000;
        let mut agents = BTreeMap::new();
        for n in 0..n {
            let base = Load {
                cpu_ms: rng.u64(5..500),
                memory: rng.u64(20..600) << 20,
                owned: rng.u64(60..=100),
                lost: if restarts_left == 0 && rng.u8(..10) == 0 {
                    rng.u64(0..300)
                } else {
                    0
                },
                lag_ms: rng.u64(0..20_000),
                ..Load::default()
            };
            agents.insert(format!("a{n:02}"), Agent::new(base, &mut rng));
        }
        let mut world = Self {
            seed,
            policy,
            rollout: Rollout::new(0, 0, &self::policy(&[]), [], Moment(now)),
            windows: HealthWindows::new(SOAK_MS),
            agents,
            now,
            harm,
            stored_head: None,
            stored_members: BTreeMap::new(),
            sizes: Vec::new(),
            watched_from: now,
            wave: 0,
            restarts_left,
            rng,
        };
        // What they are like before.
        for _ in 0..2 * SOAK_MS / TICK_MS {
            world.now += TICK_MS;
            world.beat_all();
        }
        for agent in world.agents.values_mut() {
            let harmed = harm.is_some() && world.rng.u8(..4) == 0;
            agent.harmed = harmed;
            agent.steady = harmed;
            agent.connected = harmed || world.rng.u8(..6) != 0;
            if !agent.connected {
                agent.back_at = Some(world.now + world.rng.u64(1_000..300_000));
            }
        }
        if harm.is_some() && world.agents.values().all(|agent| !agent.harmed) {
            let agent = world.agents.values_mut().next().expect("there are some");
            (agent.harmed, agent.steady, agent.connected, agent.back_at) = (true, true, true, None);
        }
        let members = world
            .agents
            .iter()
            .map(|(id, agent)| (id.clone(), agent.connected));
        world.rollout = Rollout::new(seed, 1, &world.policy, members, Moment(world.now));
        world.sizes = sizes(&world.policy, world.agents.len());
        world.watched_from = world.now;
        world
    }

    /// What an agent's second is like.
    fn load(&mut self, id: &str) -> Load {
        let agent = &self.agents[id];
        let (base, since_ms) = (agent.base, self.now - agent.changed_at);
        let harm = self.harm.filter(|_| agent.harmed && agent.has_change);
        let rng = &mut self.rng;
        // Noise that no gate minds: well below each bound.
        let mut load = Load {
            cpu_ms: base.cpu_ms + rng.u64(0..60),
            memory: base.memory + (rng.u64(0..60) << 20),
            owned: base.owned.saturating_sub(rng.u64(0..2)),
            lost: base.lost + rng.u64(0..4),
            lag_ms: base.lag_ms + rng.u64(0..10_000),
            ..base
        };
        match harm {
            Some(Harm::Loses) => load.lost += rng.u64(60..900),
            Some(Harm::LosesRecords) => load.lost_records += rng.u64(8..20),
            Some(Harm::LosesOwners) => load.owned = load.owned.saturating_sub(rng.u64(20..60)),
            Some(Harm::Lags) => load.lag_ms += 3 * since_ms + 20_000,
            Some(Harm::Burns) => load.cpu_ms += rng.u64(300..3_000),
            Some(Harm::Leaks) => load.memory += since_ms * ((20 << 20) / 1_000),
            Some(Harm::BreaksLimits) => load.over_limits = true,
            Some(Harm::Refuses | Harm::NeverAnswers | Harm::GoesSilent | Harm::StartsAgain) | None => {}
        }
        load
    }

    fn beat_all(&mut self) {
        let ids: Vec<String> = self.agents.keys().cloned().collect();
        for id in ids {
            let load = self.load(&id);
            let harm = self.harm;
            let agent = self.agents.get_mut(&id).expect("it is there");
            agent.host.run(TICK_MS, &load);
            let harmed = |of| harm == Some(of) && agent.harmed && agent.has_change;
            if harmed(Harm::StartsAgain) && self.now.is_multiple_of(7_000) {
                agent.host.restart();
            }
            let silent = harmed(Harm::GoesSilent);
            if agent.connected && !silent && (self.now + agent.beat_phase).is_multiple_of(BEAT_MS) {
                self.windows.note(&id, agent.host.health(), Moment(self.now));
            }
        }
    }

    /// Agents that come and go. What is healthy is away for less than the silence that is allowed, or says goodbye.
    fn come_and_go(&mut self) {
        let ids: Vec<String> = self.agents.keys().cloned().collect();
        for id in ids {
            let agent = self.agents.get_mut(&id).expect("it is there");
            if agent.connected {
                if agent.steady || agent.joined || self.rng.u16(..400) != 0 {
                    continue;
                }
                let on_purpose = self.rng.bool();
                let away = if on_purpose {
                    self.rng.u64(2_000..120_000)
                } else {
                    self.rng.u64(2_000..8_000)
                };
                agent.connected = false;
                agent.back_at = Some(self.now + away);
                agent.answer_at = None;
                if self.rng.bool() {
                    agent.host.restart();
                }
                self.rollout.disconnected(&id, on_purpose);
            } else if agent.back_at.is_some_and(|at| at <= self.now) {
                agent.connected = true;
                agent.back_at = None;
                // It tells what it holds before it is offered anything.
                self.told(&id);
                self.rollout.connected(&id, &self.windows, Moment(self.now));
            }
        }
        if self.agents.len() < 40 && self.rng.u16(..300) == 0 {
            let id = format!("j{:02}", self.agents.len());
            let mut agent = Agent::new(Load::default(), &mut self.rng);
            agent.joined = true;
            agent.connected = true;
            self.agents.insert(id.clone(), agent);
            self.rollout.joined(&id, &self.windows, Moment(self.now));
            self.rollout.connected(&id, &self.windows, Moment(self.now));
        }
    }

    /// An answer that was lost with the controller is found again in what the agent says it holds.
    fn told(&mut self, id: &str) {
        let content = if self.agents[id].has_change {
            Content::Change
        } else {
            Content::Before
        };
        self.rollout.acked(id, content, Moment(self.now));
    }

    /// Those that are offered something answer after a while.
    fn answer(&mut self) {
        let ids: Vec<String> = self.agents.keys().cloned().collect();
        for id in ids {
            let admitted = self.rollout.admitted(&id);
            let agent = self.agents.get_mut(&id).expect("it is there");
            if !agent.connected || agent.has_change == admitted {
                if agent.connected && !admitted {
                    // An offer of what it has: nothing to do, and it says so.
                    self.rollout.acked(&id, Content::Before, Moment(self.now));
                }
                agent.answer_at = None;
                continue;
            }
            let at = *agent
                .answer_at
                .get_or_insert(self.now + self.rng.u64(0..4) * TICK_MS);
            if at > self.now {
                continue;
            }
            agent.answer_at = None;
            let harm = self.harm.filter(|_| agent.harmed && admitted);
            match harm {
                Some(Harm::NeverAnswers) => continue,
                Some(Harm::Refuses) => {
                    self.rollout
                        .nacked(&id, Content::Change, "it does not suit", Moment(self.now));
                    continue;
                }
                _ => {}
            }
            agent.has_change = admitted;
            agent.changed_at = self.now;
            let content = if admitted {
                Content::Change
            } else {
                Content::Before
            };
            self.rollout.acked(&id, content, Moment(self.now));
        }
    }

    fn drive(&mut self) {
        let mut rounds = 0;
        while self.rollout.poll_timeout().is_some_and(|at| at.0 <= self.now) {
            self.rollout.handle_timeout(&self.windows, Moment(self.now));
            rounds += 1;
            assert!(rounds < 10, "seed {}: it never comes to rest", self.seed);
        }
        self.persist();
        self.check();
    }

    /// Writes down what has changed, and reads it again.
    fn persist(&mut self) {
        let changed = self.rollout.take_changed();
        if changed.head {
            let text = serde_json::to_string(self.rollout.head()).expect("it is plain");
            self.stored_head = Some(serde_json::from_str(&text).expect("as it was written"));
        }
        for id in &changed.members {
            match self.rollout.members().get(id) {
                Some(member) => {
                    let text = serde_json::to_string(member).expect("it is plain");
                    let read = serde_json::from_str(&text).expect("as it was written");
                    self.stored_members.insert(id.clone(), read);
                }
                None => {
                    self.stored_members.remove(id);
                }
            }
        }
    }

    /// The controller dies and comes back: agents come one by one, and windows are empty.
    fn restart_controller(&mut self) {
        let Some(head) = self.stored_head.clone() else {
            return;
        };
        self.now += self.rng.u64(0..3) * 100_000;
        self.rollout = Rollout::restore(head, self.stored_members.clone(), Moment(self.now));
        self.windows = HealthWindows::new(SOAK_MS);
        self.watched_from = self.now;
        for agent in self.agents.values_mut() {
            agent.answer_at = None;
            if agent.connected {
                agent.connected = false;
                agent.back_at = Some(self.now + self.rng.u64(0..15) * TICK_MS);
            }
        }
    }

    fn check(&mut self) {
        let (seed, at) = (self.seed, self.now);
        let head = self.rollout.head();
        assert_eq!(
            Some(head),
            self.stored_head.as_ref(),
            "seed {seed} at {at}: what is written down is the state"
        );
        assert_eq!(
            self.rollout.members(),
            &self.stored_members,
            "seed {seed} at {at}: what is written down is the state"
        );
        let admitted = self.agents.keys().filter(|id| self.rollout.admitted(id)).count();
        let joined = self.agents.values().filter(|agent| agent.joined).count();
        let allowed = match head.state {
            // Those that are away when nobody else is there get it when they come.
            State::Done => self.agents.len(),
            _ => (head.wave as usize)
                .checked_sub(1)
                .map_or(0, |wave| self.sizes[wave]),
        };
        // Those that join are of the last wave.
        let joined = if head.wave == head.waves { joined } else { 0 };
        assert!(
            admitted <= allowed + joined,
            "seed {seed} at {at}: never more changed than the waves so far allow: {admitted} of {allowed}"
        );
        if matches!(head.state, State::RollingBack { .. } | State::RolledBack) {
            assert_eq!(
                admitted, 0,
                "seed {seed} at {at}: nobody is admitted after it went back"
            );
        }
        if head.wave > self.wave {
            assert!(
                self.wave == 0 || at >= self.watched_from + SOAK_MS,
                "seed {seed} at {at}: wave {} was not watched for a soak",
                self.wave
            );
            assert_eq!(
                head.wave,
                self.wave + 1,
                "seed {seed} at {at}: one wave after the other"
            );
            self.wave = head.wave;
            self.watched_from = at;
        }
    }

    /// Runs until it has ended and those that are there have what they are to have.
    fn run(&mut self) {
        for _ in 0..TICKS_MAX {
            self.now += TICK_MS;
            self.come_and_go();
            self.beat_all();
            self.drive();
            self.answer();
            self.drive();
            if self.restarts_left > 0 && self.rng.u8(..100) == 0 {
                self.restarts_left -= 1;
                self.restart_controller();
            }
            let settled = |(id, agent): (&String, &Agent)| {
                !agent.connected || agent.has_change == self.rollout.admitted(id) || self.refuses(agent)
            };
            if self.rollout.head().ended.is_some() && self.agents.iter().all(settled) {
                return;
            }
        }
        panic!(
            "seed {} ({:?}): it does not end: {:?} {:?}",
            self.seed,
            self.harm,
            self.rollout.head(),
            self.rollout.waits_for()
        );
    }

    fn refuses(&self, agent: &Agent) -> bool {
        agent.harmed && matches!(self.harm, Some(Harm::Refuses | Harm::NeverAnswers)) && !agent.has_change
    }
}

impl Agent {
    fn new(base: Load, rng: &mut fastrand::Rng) -> Self {
        Self {
            host: Host::default(),
            base,
            connected: true,
            back_at: None,
            answer_at: None,
            has_change: false,
            changed_at: 0,
            harmed: false,
            beat_phase: rng.u64(0..5) * TICK_MS,
            steady: false,
            joined: false,
        }
    }
}

fn policy(waves: &[&str]) -> policy::Policy {
    policy::Policy::try_from(wire::Policy {
        rollout: Some(wire::Rollout {
            waves: waves.iter().map(|&wave| wave.to_owned()).collect(),
            soak_ms: Some(SOAK_MS),
            ack_timeout_ms: Some(ACK_TIMEOUT_MS),
            gates: Some(wire::Gates {
                silence_ms: Some(SILENCE_MS),
                lag_ms: Some(20_000),
                ..wire::Gates::default()
            }),
        }),
        ..wire::Policy::default()
    })
    .expect("it is sound")
}

/// How many may have the change after each wave, counted here once more.
fn sizes(policy: &policy::Policy, all: usize) -> Vec<usize> {
    let mut sizes = vec![];
    for wave in &policy.rollout.waves {
        let size = match *wave {
            policy::Wave::Agents(n) => all.min(n as usize),
            policy::Wave::Percent(percent) => (all * usize::from(percent)).div_ceil(100),
        };
        if size > sizes.last().copied().unwrap_or(0) {
            sizes.push(size);
        }
    }
    sizes
}

fn seeds() -> impl Iterator<Item = u64> {
    let one = std::env::var("FLOWTILLA_SEED")
        .ok()
        .and_then(|seed| seed.parse::<u64>().ok());
    one.map_or(0..SEEDS, |seed| seed..seed + 1)
}

#[test]
fn a_healthy_change_always_completes() {
    for seed in seeds() {
        let mut world = World::new(seed, None);
        world.run();
        let head = world.rollout.head();
        assert_eq!(
            head.state,
            State::Done,
            "seed {seed}: noise within the gates stopped it: {:?}",
            head.failures
        );
        for (id, agent) in world.agents.iter().filter(|(_, agent)| agent.connected) {
            assert!(agent.has_change, "seed {seed}: {id} was left out");
        }
    }
}

#[test]
fn a_harmful_change_never_reaches_the_next_wave_and_is_taken_back() {
    for seed in seeds() {
        let (harm, gate) = HARMS[usize::try_from(seed).expect("small") % HARMS.len()];
        let mut world = World::new(seed, Some(harm));
        let first = (world.agents.iter())
            .filter(|(_, agent)| agent.harmed)
            .map(|(id, _)| world.rollout.members()[id].wave)
            .min()
            .expect("some are harmed");
        world.run();
        let head = world.rollout.head();
        assert_eq!(head.state, State::RolledBack, "seed {seed}: {harm:?}");
        assert_eq!(
            head.wave, first,
            "seed {seed}: {harm:?} was to be seen in wave {first}"
        );
        let failure = (head.failures.iter())
            .find(|failure| failure.gate == gate)
            .unwrap_or_else(|| panic!("seed {seed}: {harm:?} is not among {:?}", head.failures));
        assert!(
            failure.agents.iter().all(|id| world.agents[id].harmed),
            "seed {seed}: {harm:?} is blamed on others: {failure:?}"
        );
        for (id, agent) in world.agents.iter().filter(|(_, agent)| agent.connected) {
            assert!(!agent.has_change, "seed {seed}: {id} was left with it");
        }
    }
}
