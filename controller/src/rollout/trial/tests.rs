//! Agents whose program is another one, judged as a rollout would.

use super::super::host::{Host, Load};
use super::*;
use flowtilla_proto::policy;

const SOAK_MS: u64 = 60_000;
const BEAT_MS: u64 = 10_000;
/// Long before: nobody waits for agents to come back after a restart of the controller.
const BEGAN: Moment = Moment(1_000);

/// Agents that beat each ten seconds.
struct Scene {
    windows: HealthWindows,
    hosts: BTreeMap<String, (Host, Load)>,
    now: u64,
}

impl Scene {
    /// Windows as long as `window_ms`: the longest soak of some policy.
    fn new(agents: &[&str], window_ms: u64) -> Self {
        let mut scene = Self {
            windows: HealthWindows::new(window_ms),
            hosts: (agents.iter())
                .map(|agent| ((*agent).to_owned(), (Host::default(), Load::default())))
                .collect(),
            now: 10_000_000,
        };
        scene.run(300, &[]);
        scene
    }

    fn run(&mut self, seconds: u64, mute: &[&str]) {
        for _ in 0..seconds * 1_000 / BEAT_MS {
            self.now += BEAT_MS;
            for (agent, (host, load)) in &mut self.hosts {
                if !mute.contains(&agent.as_str()) {
                    host.run(BEAT_MS, load);
                    self.windows.note(agent, host.health(), Moment(self.now));
                }
            }
        }
    }

    fn host(&mut self, agent: &str) -> &mut (Host, Load) {
        self.hosts.get_mut(agent).expect("it is there")
    }

    /// Everybody as they were, those named as changed.
    fn subjects(&self, changed: &[&str]) -> Vec<Subject> {
        let subject = |agent: &String| Subject {
            agent: agent.clone(),
            part: match changed.contains(&agent.as_str()) {
                true => SubjectPart::Changed,
                false => SubjectPart::Waiting,
            },
            before: self.windows.before(agent, SOAK_MS.max(self.windows.soak_ms())),
            connected: true,
            refusal: String::new(),
        };
        self.hosts.keys().map(subject).collect()
    }

    /// They restart as another program.
    fn change(&mut self, changed: &[&str]) -> (Vec<Subject>, Moment) {
        let subjects = self.subjects(changed);
        for agent in changed {
            self.host(agent).0.restart();
        }
        for subject in &subjects {
            self.windows.cut(&subject.agent);
        }
        (subjects, Moment(self.now + 1))
    }

    fn judge(&self, subjects: &[Subject], since: Moment) -> Verdict {
        let terms = Terms {
            soak_ms: SOAK_MS,
            ..Terms::from(&policy::Rollout::default())
        };
        judge(&terms, subjects, (since, BEGAN), &self.windows, Moment(self.now))
    }
}

fn gates(verdict: &Verdict) -> Vec<Gate> {
    verdict.failures.iter().map(|failure| failure.gate).collect()
}

#[test]
fn agents_that_are_well_with_another_program_have_soaked_after_a_soak_and_no_earlier() {
    // However wide the slots of the windows are.
    for window_ms in [0, SOAK_MS, 3_600_000] {
        let mut scene = Scene::new(&["a", "b"], window_ms);
        let (subjects, since) = scene.change(&["a"]);
        for _ in 0..5 {
            scene.run(10, &[]);
            assert_eq!(scene.judge(&subjects, since), Verdict::default(), "{window_ms}");
        }
        scene.run(20, &[]);
        let verdict = scene.judge(&subjects, since);
        assert!(
            verdict.soaked && verdict.failures.is_empty(),
            "{window_ms}: {verdict:?}"
        );
    }
}

#[test]
fn what_worsens_with_another_program_is_named_with_its_figures() {
    type Worsen = fn(&mut Load);
    let cases: [(Worsen, Gate); 4] = [
        (|load| load.memory = 400 << 20, Gate::Memory),
        (|load| load.lag_ms = 90_000, Gate::Lag),
        (|load| load.cpu_ms = 900, Gate::Cpu),
        (|load| load.owned = 10, Gate::Coverage),
    ];
    for (worsen, gate) in cases {
        let mut scene = Scene::new(&["a", "b"], SOAK_MS);
        let (subjects, since) = scene.change(&["a"]);
        worsen(&mut scene.host("a").1);
        scene.run(50, &[]);
        let verdict = scene.judge(&subjects, since);
        assert_eq!(gates(&verdict), [gate]);
        let failure = &verdict.failures[0];
        assert_eq!(failure.agents, ["a"]);
        assert!(
            failure.value.abs_diff(failure.baseline) > failure.bound && !verdict.soaked,
            "{failure:?}"
        );
    }
}

#[test]
fn one_that_falls_silent_dies_again_and_again_refuses_or_captures_nothing_is_at_fault() {
    let mut scene = Scene::new(&["a", "b"], SOAK_MS);
    let (subjects, since) = scene.change(&["a"]);
    scene.run(70, &["a"]);
    assert_eq!(gates(&scene.judge(&subjects, since)), [Gate::Silence]);

    let mut scene = Scene::new(&["a", "b"], SOAK_MS);
    let (subjects, since) = scene.change(&["a"]);
    for _ in 0..4 {
        scene.run(20, &[]);
        scene.host("a").0.restart();
    }
    scene.run(10, &[]);
    assert_eq!(gates(&scene.judge(&subjects, since)), [Gate::Starts]);

    let mut scene = Scene::new(&["a", "b"], SOAK_MS);
    let (mut subjects, since) = scene.change(&["a"]);
    scene.host("a").0.capture(false);
    scene.run(20, &[]);
    assert!(
        scene.judge(&subjects, since).failures.is_empty(),
        "it may attach yet"
    );
    scene.run(30, &[]);
    let verdict = scene.judge(&subjects, since);
    assert_eq!(gates(&verdict), [Gate::Capture]);
    assert_eq!(verdict.failures[0].message, "a captures nothing; it did before");
    subjects[0].refusal = "capture: no such namespace".to_owned();
    assert_eq!(gates(&scene.judge(&subjects, since)), [Gate::Nack, Gate::Capture]);
}

#[test]
fn what_worsens_for_those_that_have_not_changed_too_is_excused() {
    let agents = ["a", "b", "c", "d", "e", "f"];
    let mut scene = Scene::new(&agents, SOAK_MS);
    let (subjects, since) = scene.change(&["a"]);
    for agent in agents {
        scene.host(agent).1.cpu_ms = 900;
    }
    scene.run(70, &[]);
    let verdict = scene.judge(&subjects, since);
    assert!(verdict.soaked && verdict.failures.is_empty(), "{verdict:?}");
}

#[test]
fn a_controller_that_began_meanwhile_neither_accuses_nor_passes_too_soon() {
    let mut scene = Scene::new(&["a", "b"], SOAK_MS);
    let (subjects, since) = scene.change(&["a"]);
    scene.run(30, &[]);
    scene.windows = HealthWindows::new(SOAK_MS);
    let began = Moment(scene.now);
    let terms = Terms {
        soak_ms: SOAK_MS,
        ..Terms::from(&policy::Rollout::default())
    };
    let ask = |scene: &Scene| {
        judge(
            &terms,
            &subjects,
            (since, began),
            &scene.windows,
            Moment(scene.now),
        )
    };
    scene.run(40, &["a", "b"]);
    assert_eq!(ask(&scene), Verdict::default(), "they may come back yet");
    scene.run(20, &["a", "b"]);
    assert!(
        !ask(&scene).waits_for.is_empty(),
        "the soak is over, and nobody was heard of"
    );
    scene.run(60, &[]);
    assert!(ask(&scene).soaked);
}
