//! The life of a rollout, rule by rule. Time is told; nobody waits.

use flowtilla_proto::wire;

use super::host::{Host, Load};
use super::*;

mod away;

const BEAT_MS: u64 = 5_000;
const SOAK_MS: u64 = 60_000;

/// Agents that answer at once, unless told otherwise.
struct Fleet {
    rollout: Rollout,
    windows: HealthWindows,
    hosts: BTreeMap<String, (Host, Load)>,
    /// Under what load an agent is once it has the change.
    changed_load: BTreeMap<String, Load>,
    mute: HashSet<String>,
    now: Moment,
}

fn policy(waves: &[&str], soak_ms: u64) -> policy::Policy {
    policy::Policy::try_from(wire::Policy {
        name: "web".into(),
        rollout: Some(wire::Rollout {
            waves: waves.iter().map(|&wave| wave.to_owned()).collect(),
            soak_ms: Some(soak_ms),
            ..wire::Rollout::default()
        }),
        ..wire::Policy::default()
    })
    .expect("it is sound")
}

fn id(n: usize) -> String {
    format!("a{n:02}")
}

impl Fleet {
    /// `n` agents that have been connected for a while.
    fn new(n: usize, waves: &[&str], soak_ms: u64) -> Self {
        Self::with_offline(n, &[], waves, soak_ms)
    }

    fn with_offline(n: usize, offline: &[usize], waves: &[&str], soak_ms: u64) -> Self {
        let now = Moment(1_000_000_000);
        let agents = (0..n).map(|n| (id(n), !offline.contains(&n)));
        let mut fleet = Self {
            rollout: Rollout::new(1, 2, &policy(waves, soak_ms), agents.clone(), now),
            windows: HealthWindows::new(soak_ms),
            hosts: agents
                .clone()
                .map(|(id, _)| (id, (Host::default(), Load::default())))
                .collect(),
            changed_load: BTreeMap::new(),
            mute: HashSet::new(),
            now,
        };
        for _ in 0..20 {
            fleet.now.0 += BEAT_MS;
            for (agent, _) in agents.clone().filter(|(_, connected)| *connected) {
                fleet.beat(&agent);
            }
        }
        fleet
    }

    fn beat(&mut self, agent: &str) {
        let changed = matches!(self.part(agent), Part::Acked { .. } | Part::TakingBack);
        let (host, load) = self.hosts.get_mut(agent).expect("it is there");
        let load = self.changed_load.get(agent).filter(|_| changed).unwrap_or(load);
        host.run(BEAT_MS, load);
        self.windows.note(agent, host.health(), self.now);
    }

    fn part(&self, agent: &str) -> Part {
        self.rollout.members()[agent].part
    }

    fn drive(&mut self) {
        let mut rounds = 0;
        while self.rollout.poll_timeout().is_some_and(|at| at <= self.now) {
            self.rollout.handle_timeout(&self.windows, self.now);
            rounds += 1;
            assert!(rounds < 10, "it never comes to rest: {:?}", self.rollout.head());
        }
    }

    /// Each connected agent that is asked something says yes.
    fn answer(&mut self) {
        for _ in 0..20 {
            self.drive();
            let asked: Vec<(String, Content)> = (self.rollout.members().iter())
                .filter(|(agent, _)| self.rollout.connected.contains(*agent) && !self.mute.contains(*agent))
                .filter_map(|(agent, member)| match member.part {
                    Part::Offered { .. } => Some((agent.clone(), Content::Change)),
                    Part::TakingBack => Some((agent.clone(), Content::Before)),
                    _ => None,
                })
                .collect();
            if asked.is_empty() {
                return;
            }
            for (agent, content) in asked {
                self.rollout.acked(&agent, content, self.now);
            }
        }
    }

    /// Time passes: beats, answers, looks.
    fn run(&mut self, ms: u64) {
        self.answer();
        for _ in 0..ms / 1_000 {
            self.now.0 += 1_000;
            if self.now.0.is_multiple_of(BEAT_MS) {
                let up: Vec<String> = (self.rollout.connected.iter())
                    .filter(|agent| !self.mute.contains(*agent))
                    .cloned()
                    .collect();
                for agent in up {
                    self.beat(&agent);
                }
            }
            self.answer();
        }
    }

    fn connect(&mut self, n: usize) {
        self.rollout.connected(&id(n), &self.windows, self.now);
        self.answer();
    }

    fn state(&self) -> State {
        self.rollout.head().state
    }

    fn wave(&self) -> u32 {
        self.rollout.head().wave
    }

    fn changed(&self) -> usize {
        self.hosts
            .keys()
            .filter(|agent| self.rollout.admitted(agent))
            .count()
    }

    /// An agent of a wave.
    fn of_wave(&self, wave: u32) -> String {
        let found = self
            .rollout
            .members()
            .iter()
            .find(|(_, member)| member.wave == wave);
        found
            .map(|(agent, _)| agent.clone())
            .expect("the wave has agents")
    }

    /// What the failed gates are.
    fn failed(&self) -> Vec<Gate> {
        self.rollout
            .head()
            .failures
            .iter()
            .map(|failure| failure.gate)
            .collect()
    }

    /// Dies, and comes back with what was written down.
    fn restart_controller(&mut self) {
        let head = serde_json::to_string(self.rollout.head()).expect("it is plain");
        let members = serde_json::to_string(self.rollout.members()).expect("it is plain");
        let head = serde_json::from_str(&head).expect("as it was written");
        let members = serde_json::from_str(&members).expect("as it was written");
        self.rollout = Rollout::restore(head, members, self.now);
        self.windows = HealthWindows::new(SOAK_MS);
    }
}

#[test]
fn each_wave_begins_when_the_one_before_was_well_for_a_soak() {
    let mut fleet = Fleet::new(20, &["1", "10%", "100%"], SOAK_MS);
    fleet.answer();
    assert_eq!((fleet.wave(), fleet.changed()), (1, 1));
    assert!(matches!(fleet.state(), State::Soaking { .. }));
    fleet.run(SOAK_MS - 1_000);
    assert_eq!((fleet.wave(), fleet.changed()), (1, 1), "the soak is not over");
    fleet.run(2_000);
    assert_eq!((fleet.wave(), fleet.changed()), (2, 2));
    fleet.run(SOAK_MS + 1_000);
    assert_eq!((fleet.wave(), fleet.changed()), (3, 20));
    fleet.run(SOAK_MS + 1_000);
    assert_eq!(fleet.state(), State::Done);
    assert!(fleet.rollout.head().ended.is_some());
    assert_eq!(fleet.rollout.poll_timeout(), None);
}

#[test]
fn all_at_once_is_done_when_all_have_answered() {
    let mut fleet = Fleet::new(5, &[], 0);
    fleet.drive();
    assert_eq!(fleet.changed(), 5);
    assert_eq!(fleet.state(), State::Running);
    fleet.answer();
    assert_eq!(fleet.state(), State::Done);
}

#[test]
fn a_rollout_to_nobody_is_done() {
    let mut fleet = Fleet::new(0, &["1", "100%"], SOAK_MS);
    fleet.drive();
    assert_eq!(fleet.state(), State::Done);
}

#[test]
fn a_nack_takes_all_back() {
    let mut fleet = Fleet::new(10, &["3", "100%"], SOAK_MS);
    fleet.drive();
    let refuser = fleet.of_wave(1);
    fleet.mute.insert(refuser.clone());
    fleet.answer();
    fleet.rollout.nacked(
        &refuser,
        Content::Change,
        "capture.scopes[0].netns: no such file",
        fleet.now,
    );
    assert!(matches!(fleet.state(), State::RollingBack { .. }));
    assert_eq!(fleet.changed(), 0, "at once");
    fleet.mute.clear();
    fleet.answer();
    assert_eq!(fleet.state(), State::RolledBack);
    assert_eq!(fleet.failed(), [Gate::Nack]);
    let failure = &fleet.rollout.head().failures[0];
    assert_eq!(failure.agents, std::slice::from_ref(&refuser));
    assert_eq!(
        failure.message,
        format!("{refuser} refused it: capture.scopes[0].netns: no such file")
    );
    assert_eq!(
        fleet.part(&fleet.of_wave(2)),
        Part::Waiting,
        "the others never had it"
    );
}

#[test]
fn what_went_back_counts_who_refused_and_has_nothing_open() {
    let mut fleet = Fleet::new(10, &["3", "100%"], SOAK_MS);
    fleet.drive();
    let refuser = fleet.of_wave(1);
    fleet.rollout.nacked(&refuser, Content::Change, "no", fleet.now);
    let open = |fleet: &Fleet| {
        let view = fleet.rollout.view();
        (view.acked, view.nacked, view.pending, view.offline)
    };
    assert_eq!(open(&fleet), (0, 1, 2, 0), "two of the wave are to go back");
    let other = (fleet.rollout.members().iter())
        .find(|(agent, member)| member.wave == 1 && **agent != refuser)
        .map(|(agent, _)| agent.clone())
        .expect("a wave of three");
    fleet.rollout.disconnected(&other, false);
    fleet.answer();
    fleet.run(1_000);
    assert_eq!(fleet.state(), State::RolledBack);
    assert_eq!(
        open(&fleet),
        (0, 1, 0, 1),
        "the second wave never had it, one gets back what it had when it comes"
    );
}

#[test]
fn a_second_nack_is_named_too() {
    let mut fleet = Fleet::new(4, &[], 0);
    fleet.drive();
    for n in [0, 1, 1] {
        fleet.rollout.nacked(&id(n), Content::Change, "no", fleet.now);
    }
    assert_eq!(fleet.rollout.head().failures[0].agents, [id(0), id(1)]);
}

#[test]
fn an_agent_that_does_not_answer_stops_it() {
    let mut fleet = Fleet::new(10, &["2", "100%"], SOAK_MS);
    fleet.drive();
    let hung = fleet.of_wave(1);
    fleet.mute.insert(hung.clone());
    fleet.run(60_000);
    assert_eq!(fleet.state(), State::Running, "it may take 60 s");
    fleet.run(6_000);
    assert_eq!(fleet.failed(), [Gate::Ack]);
    assert_eq!(fleet.rollout.head().failures[0].agents, [hung]);
}

#[test]
fn an_agent_that_dies_of_the_change_stops_it() {
    let mut fleet = Fleet::new(10, &["2", "100%"], SOAK_MS);
    fleet.drive();
    let dead = fleet.of_wave(1);
    fleet.rollout.disconnected(&dead, false);
    fleet.run(66_000);
    assert_eq!(
        fleet.failed(),
        [Gate::Ack],
        "it was offered, and did not say goodbye"
    );
}

#[test]
fn silence_stops_it_and_a_goodbye_does_not() {
    let mut fleet = Fleet::new(10, &["2", "100%"], 5 * SOAK_MS);
    fleet.answer();
    let canary = fleet.of_wave(1);
    fleet.rollout.disconnected(&canary, true);
    fleet.run(5 * SOAK_MS + 2_000);
    assert_eq!(fleet.wave(), 2, "one left on purpose, the other is well");

    let mut fleet = Fleet::new(10, &["2", "100%"], 5 * SOAK_MS);
    fleet.answer();
    let canary = fleet.of_wave(1);
    fleet.rollout.disconnected(&canary, false);
    fleet.run(58_000);
    assert!(matches!(fleet.state(), State::Soaking { .. }));
    fleet.run(12_000);
    assert_eq!(fleet.failed(), [Gate::Silence]);
    assert_eq!(fleet.rollout.head().failures[0].agents, [canary]);
    assert_eq!(fleet.state(), State::RolledBack, "it gets it back when it comes");
}

#[test]
fn a_wave_whose_agents_have_all_left_waits() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    fleet.answer();
    let canary = fleet.of_wave(1);
    fleet.rollout.disconnected(&canary, true);
    fleet.run(3 * SOAK_MS);
    assert_eq!(fleet.wave(), 1);
    assert_eq!(
        fleet.rollout.waits_for(),
        "no agent of wave 1 is there to be watched"
    );
    fleet.rollout.connected(&canary, &fleet.windows, fleet.now);
    fleet.run(SOAK_MS + 10_000);
    assert_eq!(fleet.wave(), 2);
}

#[test]
fn silence_of_the_whole_fleet_is_not_the_change() {
    let mut fleet = Fleet::new(10, &["1", "100%"], 5 * SOAK_MS);
    fleet.answer();
    fleet.mute = fleet.hosts.keys().cloned().collect();
    fleet.run(6 * SOAK_MS);
    assert!(
        matches!(fleet.state(), State::Soaking { .. }),
        "it neither goes on nor back"
    );
    fleet.mute.clear();
    fleet.run(SOAK_MS);
    assert_eq!(fleet.wave(), 2);
}

#[test]
fn a_gate_stops_it_with_values_and_agents() {
    let mut fleet = Fleet::new(10, &["1", "50%", "100%"], SOAK_MS);
    fleet.answer();
    let sick = fleet.of_wave(2);
    let load = Load {
        lost: 50,
        ..Load::default()
    };
    fleet.changed_load.insert(sick.clone(), load);
    fleet.run(SOAK_MS + 2_000);
    assert_eq!((fleet.wave(), fleet.changed()), (2, 5));
    fleet.run(SOAK_MS);
    assert_eq!(fleet.state(), State::RolledBack, "without a hand");
    assert_eq!(fleet.changed(), 0);
    let failure = fleet.rollout.head().failures[0].view();
    assert_eq!(
        (failure.gate.as_str(), &failure.agents[..]),
        ("drops", &[sick.clone()][..])
    );
    assert_eq!(
        (failure.value, failure.baseline, failure.bound),
        (50.0, 0.0, 10.0)
    );
    assert_eq!(
        failure.message,
        format!(
            "{sick} lost 5.00 % of what it observed; 0.00 % was to be expected, and 1.00 % more is allowed"
        )
    );
}

#[test]
fn being_beyond_the_limits_stops_it_whatever_the_others_do() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    let over = Load {
        over_limits: true,
        ..Load::default()
    };
    for (_, load) in fleet.hosts.values_mut() {
        *load = over;
    }
    fleet.answer();
    fleet.run(10_000);
    assert_eq!(fleet.failed(), [Gate::Limits]);
    let message = &fleet.rollout.head().failures[0].message;
    assert!(
        message.ends_with("memory is 600.0 MiB, the limit is 512.0 MiB"),
        "{message}"
    );
}

#[test]
fn a_busy_hour_of_all_does_not_stop_it() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    fleet.answer();
    let busy = Load {
        cpu_ms: 600,
        memory: 400 << 20,
        ..Load::default()
    };
    for (_, load) in fleet.hosts.values_mut() {
        *load = busy;
    }
    fleet.run(SOAK_MS + 2_000);
    assert_eq!((fleet.wave(), fleet.failed()), (2, vec![]));
}

#[test]
fn a_first_policy_is_not_compared_with_an_agent_that_captured_nothing() {
    let mut fleet = Fleet::new(3, &["100%"], SOAK_MS);
    let mut idle = HealthWindows::new(SOAK_MS);
    for beat in 0..12 {
        for (agent, (host, _)) in &mut fleet.hosts {
            host.capture(false);
            host.run(
                BEAT_MS,
                &Load {
                    cpu_ms: 1,
                    memory: 1 << 20,
                    ..Load::default()
                },
            );
            idle.note(
                agent,
                host.health(),
                Moment(fleet.now.0 - 60_000 + beat * BEAT_MS),
            );
            host.capture(true);
        }
    }
    fleet.windows = idle;
    for agent in fleet.hosts.keys() {
        let load = Load {
            cpu_ms: 500,
            memory: 300 << 20,
            ..Load::default()
        };
        fleet.changed_load.insert(agent.clone(), load);
    }
    fleet.run(SOAK_MS + 20_000);
    assert_eq!((fleet.state(), fleet.failed()), (State::Done, vec![]));
}

#[test]
fn a_pause_holds_it_and_the_soak_begins_anew_afterwards() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    fleet.answer();
    fleet.run(SOAK_MS - 10_000);
    assert_eq!(fleet.rollout.resume(fleet.now), Err(SteerError::NotPaused));
    fleet.rollout.pause().expect("it goes on");
    assert_eq!(fleet.rollout.pause(), Err(SteerError::Paused));
    fleet.rollout.joined("new", &fleet.windows, fleet.now);
    fleet.run(10 * SOAK_MS);
    assert_eq!((fleet.wave(), fleet.changed()), (1, 1));
    assert!(!fleet.rollout.admitted("new"));
    fleet.rollout.resume(fleet.now).expect("it is paused");
    fleet.run(SOAK_MS - 1_000);
    assert_eq!((fleet.wave(), fleet.rollout.admitted("new")), (1, false));
    fleet.run(2_000);
    assert_eq!((fleet.wave(), fleet.rollout.admitted("new")), (2, true));
}

#[test]
fn a_refusal_takes_it_back_while_it_is_paused() {
    let mut fleet = Fleet::new(4, &["2", "100%"], SOAK_MS);
    fleet.drive();
    let canary = fleet.of_wave(1);
    fleet.rollout.pause().expect("it goes on");
    fleet.rollout.nacked(&canary, Content::Change, "no", fleet.now);
    fleet.answer();
    assert_eq!(fleet.state(), State::RolledBack);
}

#[test]
fn an_operator_takes_it_back() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    fleet.run(SOAK_MS + 2_000);
    assert_eq!(fleet.changed(), 10);
    fleet.rollout.abort("admin", fleet.now).expect("it goes on");
    fleet.answer();
    assert_eq!((fleet.state(), fleet.changed()), (State::RolledBack, 0));
    let failure = &fleet.rollout.head().failures[0];
    assert_eq!(
        (failure.message.as_str(), failure.agents.len()),
        ("admin stopped it", 0)
    );
    assert_eq!(fleet.rollout.abort("admin", fleet.now), Err(SteerError::Over));
    assert_eq!(fleet.rollout.pause(), Err(SteerError::Over));
    assert_eq!(fleet.rollout.resume(fleet.now), Err(SteerError::Over));
}

#[test]
fn a_newer_one_takes_its_place() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    fleet.answer();
    fleet.rollout.supersede(fleet.now);
    assert_eq!((fleet.state(), fleet.changed()), (State::Superseded, 1));
    assert_eq!(fleet.rollout.poll_timeout(), None);
}

#[test]
fn going_back_does_not_wait_for_those_that_are_not_there() {
    let mut fleet = Fleet::new(4, &[], SOAK_MS);
    fleet.answer();
    fleet.rollout.disconnected(&id(0), false);
    fleet.rollout.abort("admin", fleet.now).expect("it goes on");
    fleet.run(1_000);
    assert_eq!(fleet.state(), State::RolledBack);
    assert_eq!(fleet.part(&id(0)), Part::TakingBack);
    fleet.rollout.connected(&id(0), &fleet.windows, fleet.now);
    assert!(!fleet.rollout.admitted(&id(0)));
    fleet.rollout.acked(&id(0), Content::Before, fleet.now);
    assert_eq!(fleet.part(&id(0)), Part::TakenBack);
}

#[test]
fn going_back_ends_when_an_agent_refuses_or_does_not_answer() {
    for refuses in [true, false] {
        let mut fleet = Fleet::new(4, &[], SOAK_MS);
        fleet.answer();
        fleet.mute.insert(id(0));
        fleet.rollout.abort("admin", fleet.now).expect("it goes on");
        fleet.run(10_000);
        assert!(matches!(fleet.state(), State::RollingBack { .. }));
        if refuses {
            fleet
                .rollout
                .nacked(&id(0), Content::Before, "disk full", fleet.now);
            assert_eq!(fleet.rollout.members()[&id(0)].reason, "disk full");
            fleet.run(1_000);
        } else {
            fleet.run(60_000);
        }
        assert_eq!((fleet.state(), fleet.changed()), (State::RolledBack, 0));
    }
}

#[test]
fn an_answer_to_something_else_is_ignored() {
    let mut fleet = Fleet::new(3, &["1", "100%"], SOAK_MS);
    fleet.drive();
    let waiting = fleet.of_wave(2);
    fleet.rollout.acked(&waiting, Content::Change, fleet.now);
    fleet.rollout.nacked(&waiting, Content::Change, "no", fleet.now);
    fleet.rollout.acked(&waiting, Content::Before, fleet.now);
    assert_eq!(fleet.part(&waiting), Part::Waiting);
    fleet.rollout.acked("nobody", Content::Change, fleet.now);
    assert_eq!(fleet.state(), State::Running);
}

#[test]
fn time_while_the_controller_is_down_is_no_soak() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    fleet.answer();
    fleet.run(SOAK_MS - 10_000);
    fleet.now.0 += 86_400_000;
    fleet.restart_controller();
    fleet.drive();
    assert_eq!((fleet.wave(), fleet.failed()), (1, vec![]));
    for n in 0..10 {
        fleet.connect(n);
    }
    fleet.run(SOAK_MS - 2_000);
    assert_eq!(fleet.wave(), 1);
    fleet.run(10_000);
    assert_eq!(fleet.wave(), 2);
}

#[test]
fn after_a_restart_a_wave_is_not_over_before_its_agents_were_heard_of() {
    let mut fleet = Fleet::new(10, &["1", "100%"], SOAK_MS);
    fleet.answer();
    let canary = fleet.of_wave(1);
    fleet.restart_controller();
    for n in 0..10 {
        if id(n) != canary {
            fleet.connect(n);
        }
    }
    fleet.run(RESTART_GRACE_MS);
    assert_eq!((fleet.wave(), fleet.failed()), (1, vec![]));
    fleet.run(66_000);
    assert_eq!(fleet.failed(), [Gate::Silence], "it had the time to come back");
}

#[test]
fn a_restart_while_offers_are_out_waits_for_their_answers() {
    let mut fleet = Fleet::new(10, &["3", "100%"], SOAK_MS);
    fleet.drive();
    fleet.restart_controller();
    fleet.run(RESTART_GRACE_MS);
    assert!(matches!(fleet.state(), State::Running));
    for n in 0..10 {
        fleet.connect(n);
    }
    fleet.run(SOAK_MS + 5_000);
    assert_eq!(fleet.wave(), 2);
}

#[test]
fn a_restart_while_it_goes_back_waits_for_those_that_come_back() {
    let mut fleet = Fleet::new(10, &["3", "100%"], SOAK_MS);
    fleet.answer();
    fleet.mute = fleet.hosts.keys().cloned().collect();
    fleet.rollout.abort("admin", fleet.now).expect("it goes on");
    fleet.drive();
    fleet.restart_controller();
    fleet.drive();
    assert!(matches!(fleet.state(), State::RollingBack { .. }));
    assert_eq!(fleet.changed(), 0);
    fleet.mute.clear();
    for n in 0..10 {
        fleet.connect(n);
    }
    assert_eq!(fleet.state(), State::RolledBack);
}

#[test]
fn an_ack_of_ten_thousand_costs_no_look_at_all_of_them() {
    let mut fleet = Fleet::new(0, &[], 0);
    let agents = (0..10_000).map(|n| (format!("a{n}"), true));
    fleet.rollout = Rollout::new(1, 2, &policy(&[], 0), agents, fleet.now);
    fleet.drive();
    for n in 0..9_999 {
        fleet.rollout.acked(&format!("a{n}"), Content::Change, fleet.now);
        assert!(
            fleet.rollout.poll_timeout().is_some_and(|at| at > fleet.now),
            "after {n}"
        );
    }
    fleet.rollout.acked("a9999", Content::Change, fleet.now);
    fleet.drive();
    assert_eq!(fleet.state(), State::Done);
}
