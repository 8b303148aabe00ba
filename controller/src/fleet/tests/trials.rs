//! Agents of several policies that have changed by other means than a rollout.

use flowtilla_proto::wire::fleet::{Figures, JudgeResponse, Standing};

use super::*;
use crate::rollout::Moment;
use crate::rollout::host::{Host, Load};

const SOAK_MS: u64 = 60_000;
const BEAT_MS: u64 = 10_000;

struct Sim {
    session: SessionId,
    host: Host,
    load: Load,
}

/// Agents that beat each ten seconds: `a1` and `a2` of policy `p`, `b1` of policy `q`.
struct Scene {
    fleet: Fleet,
    sims: BTreeMap<MemberName, Sim>,
    ms: u64,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self {
            fleet: empty(),
            sims: BTreeMap::new(),
            ms: 1,
        };
        let policies = vec![
            object(policy("p", 0, &[], &[])),
            object(policy("q", 1, &[("zone", "b")], &[])),
        ];
        let applied = scene.fleet.apply(change(policies, &[]), at(scene.ms));
        applied.expect("applied");
        for (n, id, zone) in [(1_u32, "a1", "a"), (2, "a2", "a"), (3, "b1", "b")] {
            let id = name(id);
            let session = SessionId(u64::from(n));
            scene
                .fleet
                .handle_open(
                    &id,
                    &labels(&[("zone", zone)]),
                    hello(n, None),
                    session,
                    at(scene.ms),
                )
                .expect("welcome");
            let sim = Sim {
                session,
                host: Host::default(),
                load: Load::default(),
            };
            scene.sims.insert(id, sim);
        }
        scene.turn();
        scene.run(300);
        let policy = |id: &str| scene.fleet.agents[&name(id)].policy();
        assert_eq!(["a1", "a2", "b1"].map(policy), [Some("p"), Some("p"), Some("q")]);
        scene
    }

    /// What is offered is in force at once.
    fn turn(&mut self) {
        let now = at(self.ms);
        self.fleet.handle_timeout(now);
        self.fleet.finish_turn(now);
        for (session, speech) in drain(&mut self.fleet) {
            if let Speech::Offer(offer) = speech {
                self.fleet.handle_heard(session, ack(&offer), now);
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1_000 / BEAT_MS {
            self.ms += BEAT_MS;
            for sim in self.sims.values_mut() {
                sim.host.run(BEAT_MS, &sim.load);
                let heard = Heard::Heartbeat {
                    held: None,
                    health: Some(Box::new(sim.host.health().clone())),
                    addresses: None,
                };
                self.fleet.handle_heard(sim.session, heard, at(self.ms));
            }
            self.turn();
        }
    }

    fn sim(&mut self, id: &str) -> &mut Sim {
        self.sims.get_mut(&name(id)).expect("it is there")
    }

    /// Those that change last start again, and the watch begins.
    fn change(&mut self, standings: &[(&str, Standing)]) -> Wave {
        self.ms += 1_000;
        let ids: Vec<MemberName> = standings.iter().map(|(id, _)| name(id)).collect();
        let measured = self.fleet.measure(&ids, SOAK_MS).agents;
        let agents = (ids.into_iter().zip(standings).zip(measured))
            .map(|((id, (_, standing)), measured)| (id, *standing, measured.figures))
            .collect();
        for (id, standing) in standings {
            if *standing == Standing::Changed {
                self.sim(id).host.restart();
            }
        }
        let wave = Wave { agents, since: None };
        let since = self.judge(&wave).since_ms;
        Wave {
            since: Some(Moment(since)),
            ..wave
        }
    }

    fn judge(&mut self, wave: &Wave) -> JudgeResponse {
        let trial = Trial {
            agents: wave.agents.clone(),
            soak_ms: SOAK_MS,
            since: wave.since,
        };
        self.fleet.try_changed(&trial, at(self.ms))
    }
}

struct Wave {
    agents: Vec<(MemberName, Standing, Option<Figures>)>,
    since: Option<Moment>,
}

/// The first wave has the only agent of `q`, the second one of `p`.
const FIRST: [(&str, Standing); 3] = [
    ("a1", Standing::Unspecified),
    ("a2", Standing::Unspecified),
    ("b1", Standing::Changed),
];
const SECOND: [(&str, Standing); 3] = [
    ("a1", Standing::Changed),
    ("a2", Standing::Unspecified),
    ("b1", Standing::ChangedBefore),
];

#[test]
fn a_wave_soaks_when_all_that_changed_before_have_another_policy() {
    let mut scene = Scene::new();
    for standings in [FIRST, SECOND] {
        let wave = scene.change(&standings);
        scene.run(50);
        let judged = scene.judge(&wave);
        assert!(!judged.soaked && judged.failures.is_empty(), "{judged:?}");
        scene.run(20);
        let judged = scene.judge(&wave);
        assert!(
            judged.soaked && judged.failures.is_empty() && judged.waits_for.is_empty(),
            "{judged:?}"
        );
    }
}

#[test]
fn who_changed_before_is_at_fault_still_when_it_has_another_policy() {
    let mut scene = Scene::new();
    scene.change(&FIRST);
    scene.run(70);
    let wave = scene.change(&SECOND);
    scene.sim("b1").load.lag_ms = 90_000;
    scene.run(50);
    let judged = scene.judge(&wave);
    let failures: Vec<(&str, &[String])> = (judged.failures.iter())
        .map(|failure| (failure.gate.as_str(), &failure.agents[..]))
        .collect();
    assert_eq!(failures, [("lag", &["b1".to_owned()][..])]);
}
