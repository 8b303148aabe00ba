//! Agents of an earlier version: what they are not offered, and what is said of it.

use flowtilla_proto::wire::fleet::{Agent as Told, AgentsRequest, DrainState, RolloutState};
use flowtilla_proto::wire::session::{Assignment, Section};
use prost::Message;

use super::memory::Memory;
use super::row::AgentRow;
use super::*;
use crate::fleet::members::{COALESCE_MS, FROZEN_MS};
use crate::store::{Batch, Store as _};

mod rest;

/// What an agent is.
#[derive(Clone, Copy, PartialEq)]
enum Build {
    /// Of before there were features.
    Old,
    /// Of before rules had labels of pods; it can be drained.
    Middle,
    /// Of this version.
    New,
}

struct Scene {
    fleet: Fleet,
    store: Memory,
    /// The newest offer of each agent, and all assignments that it was ever offered.
    offers: BTreeMap<u64, OfferOut>,
    offered: BTreeMap<u64, Vec<Assignment>>,
    /// Labels of the enrolments of those that have some.
    labels: BTreeMap<u64, Labels>,
    ms: u64,
}

impl Scene {
    /// Agents with policy `p`, which every agent understands.
    fn new(agents: &[(u64, Build)]) -> Self {
        let mut scene = Self {
            fleet: empty(),
            store: Memory::default(),
            offers: BTreeMap::new(),
            offered: BTreeMap::new(),
            labels: BTreeMap::new(),
            ms: 1,
        };
        scene.apply(vec![collector("one"), plain(10)], false);
        for (n, build) in agents {
            scene.open(*n, *build, None);
        }
        scene.turn();
        for (n, _) in agents {
            scene.ack(*n);
        }
        assert_eq!(scene.turn(), [0_u64; 0]);
        scene
    }

    fn apply(&mut self, objects: Vec<Object>, dry_run: bool) -> wire::fleet::ApplyResponse {
        self.ms += 1;
        let change = Change {
            dry_run,
            ..change(objects, &[])
        };
        self.fleet.apply(change, at(self.ms)).expect("applied")
    }

    /// An agent comes, and says what it holds.
    fn open(&mut self, n: u64, build: Build, held: Option<Mark>) {
        self.ms += 1;
        let sent = say::Hello {
            addresses: vec![vec![192, 0, 2, u8::try_from(n).expect("few")]],
            held: held.map(Mark::to_wire),
            features: match build {
                Build::Old => Vec::new(),
                Build::Middle => {
                    let labels = i32::from(say::Feature::RulePodLabels);
                    features()
                        .into_iter()
                        .filter(|feature| *feature != labels)
                        .collect()
                }
                Build::New => features(),
            },
            ..hello_wire(u32::try_from(n).expect("few") + 1)
        };
        let hello = Hello::parse(from_agent(say::from_agent::Body::Hello(sent))).expect("a hello");
        self.fleet
            .handle_open(
                &name(&format!("a{n}")),
                &self.labels.get(&n).cloned().unwrap_or_default(),
                hello,
                SessionId(n),
                at(self.ms),
            )
            .expect("welcome");
    }

    fn close(&mut self, n: u64) {
        self.fleet.handle_closed(SessionId(n), at(self.ms));
    }

    /// Agents that are offered something in this turn.
    fn turn(&mut self) -> Vec<u64> {
        self.ms += 1;
        self.fleet.handle_timeout(at(self.ms));
        self.fleet.finish_turn(at(self.ms));
        let mut agents = Vec::new();
        for (session, speech) in drain(&mut self.fleet) {
            if let Speech::Offer(offer) = speech {
                let assignment = Assignment::decode(&offer.content.octets[..]).expect("an assignment");
                self.offered.entry(session.0).or_default().push(assignment);
                self.offers.insert(session.0, offer);
                agents.push(session.0);
            }
        }
        agents.sort_unstable();
        agents.dedup();
        agents
    }

    /// The newest offer, acked; its mark.
    fn ack(&mut self, n: u64) -> Mark {
        let offer = self.offers[&n].clone();
        self.fleet.handle_heard(SessionId(n), ack(&offer), at(self.ms));
        offer.mark
    }

    fn told(&self, n: u64) -> Told {
        let request = AgentsRequest {
            ids: vec![format!("a{n}")],
            ..AgentsRequest::default()
        };
        self.fleet.agents(&request).remove(0)
    }

    fn drain(&mut self, n: u64, drain: bool) {
        let ids = [name(&format!("a{n}"))];
        self.fleet.drain(&ids, drain, at(self.ms)).expect("it is known");
    }

    /// Two heartbeats of an agent that captures nothing, and of which nothing waits.
    fn rest(&mut self, n: u64) {
        for _ in 0..2 {
            let heartbeat = Heard::Heartbeat {
                held: None,
                health: Some(Box::default()),
                addresses: None,
            };
            self.fleet.handle_heard(SessionId(n), heartbeat, at(self.ms));
        }
    }

    /// Who is in the list that an agent was told last, and whether others tell its flows too.
    fn listed(&mut self, after_ms: u64) -> BTreeMap<String, bool> {
        self.ms += after_ms;
        self.fleet.handle_timeout(at(self.ms));
        let lists = drain(&mut self.fleet)
            .into_iter()
            .filter_map(|(_, speech)| match speech {
                Speech::Members(list) => Some(list),
                _ => None,
            });
        let list = lists.last().expect("a list is told");
        let member = |one: &say::Member| (one.agent.clone(), one.partial);
        list.members.iter().map(member).collect()
    }

    /// The controller ends and begins again.
    fn restart(&mut self) {
        self.fleet.handle_stop();
        let batch = self.fleet.take_batch();
        self.store.commit(batch).expect("kept");
        self.fleet = Fleet::load(&self.store, at(self.ms)).expect("read");
    }

    /// The controller is upgraded: what there is was kept by one of before there were features.
    fn upgrade(&mut self) {
        self.restart();
        let mut older = Batch::default();
        for (id, agent) in &self.fleet.agents {
            let mut row = AgentRow::decode(&agent.to_row()[..]).expect("a row");
            row.gated = false;
            row.hello.iter_mut().for_each(|hello| hello.features.clear());
            older.put(Table::Agents, id.as_str(), row.encode_to_vec());
        }
        self.store.commit(older).expect("kept");
        self.fleet = Fleet::load(&self.store, at(self.ms)).expect("read");
    }

    /// Whether an agent was ever offered a rule that an older one widens.
    fn saw_labels(&self, n: u64) -> bool {
        let rules = |assignment: &Assignment| {
            let capture = assignment
                .policy
                .as_ref()
                .and_then(|policy| policy.capture.clone());
            capture.is_some_and(|capture| !capture.exclude.is_empty())
        };
        self.offered.get(&n).is_some_and(|all| all.iter().any(rules))
    }
}

fn plain(seconds: u64) -> Object {
    object(wire::Policy {
        capture: Some(wire::Capture {
            active_timeout_ms: Some(seconds * 1_000),
            ..wire::Capture::default()
        }),
        ..policy("p", 1, &[], &["one"])
    })
}

/// Policy `p` that leaves out what goes to port 443 of some pods; read without its labels it leaves out all of that port.
fn of_pods() -> Object {
    let rule = wire::FlowRule {
        ports: vec!["443".into()],
        pod_labels: vec!["app=web".into()],
        ..wire::FlowRule::default()
    };
    object(wire::Policy {
        capture: Some(wire::Capture {
            exclude: vec![rule],
            ..wire::Capture::default()
        }),
        ..policy("p", 1, &[], &["one"])
    })
}

#[test]
fn an_older_agent_is_not_offered_a_rule_that_it_would_widen_and_the_rollout_goes_back() {
    let mut scene = Scene::new(&[(0, Build::New), (1, Build::Old)]);
    let before = scene.offers[&1].clone();
    scene.apply(vec![of_pods()], false);
    scene.turn();
    assert!(scene.saw_labels(0) && !scene.saw_labels(1));
    let offer = scene.offers[&1].clone();
    assert_eq!(
        offer.content, before.content,
        "what it had, under a later version"
    );
    assert!(offer.mark.place() > before.mark.place());
    scene.ack(0);
    scene.ack(1);
    scene.turn();
    let rollout = scene.fleet.rollouts(1).remove(0);
    assert_eq!(
        (rollout.state(), rollout.nacked),
        (RolloutState::RolledBack, 1),
        "{rollout:?}"
    );
    let failure = &rollout.failures[0];
    assert_eq!(
        (failure.gate.as_str(), &failure.agents[..]),
        ("nack", &["a1".to_owned()][..])
    );
    let told = "a1 refused it: not offered: version 0.1.0 does not know capture.exclude[0].podLabels of policy p; \
                upgrade the agent, or take it out of policy p";
    assert_eq!(failure.message, told);
    assert_eq!(scene.fleet.standing().converged, 2);
}

#[test]
fn an_older_agent_that_comes_later_is_told_apart_until_it_comes_as_another_version() {
    let mut scene = Scene::new(&[(0, Build::New)]);
    scene.apply(vec![of_pods()], false);
    scene.turn();
    scene.ack(0);
    scene.turn();
    assert_eq!(scene.fleet.rollouts(1)[0].state(), RolloutState::Done);
    scene.open(1, Build::Old, None);
    assert_eq!(scene.turn(), [0_u64; 0]);
    for restarted in [false, true] {
        let told = scene.told(1);
        let nack = told.nack.expect("it is refused for it");
        assert_eq!(
            (nack.section(), nack.path.as_str()),
            (Section::NotOffered, "capture.exclude[0].podLabels")
        );
        assert_eq!(told.held, None);
        let standing = scene.fleet.standing();
        assert_eq!(
            (standing.nacked, standing.not_offered, standing.behind),
            (1, 1, 1)
        );
        if !restarted {
            scene.restart();
        }
    }
    scene.open(1, Build::New, None);
    assert_eq!(scene.told(1).nack, None, "nobody has refused it yet");
    assert_eq!(scene.turn(), [1]);
    scene.ack(1);
    assert_eq!(scene.fleet.standing().nacked, 0);
    assert!(scene.saw_labels(1));
}

#[test]
fn a_dry_run_names_those_that_are_there_and_would_not_be_offered_it() {
    let mut scene = Scene::new(&[(0, Build::New), (1, Build::Old), (2, Build::Old)]);
    scene.close(2);
    let refusals = |response: wire::fleet::ApplyResponse| -> Vec<(String, Option<String>)> {
        let path = |one: wire::fleet::AgentChange| (one.agent, one.refusal.map(|nack| nack.path));
        response.agents.into_iter().map(path).collect()
    };
    let path = Some("capture.exclude[0].podLabels".to_owned());
    let told = refusals(scene.apply(vec![of_pods()], true));
    assert_eq!(
        told,
        [
            ("a0".to_owned(), None),
            ("a1".to_owned(), path),
            ("a2".to_owned(), None)
        ]
    );
    assert_eq!(scene.turn(), [0_u64; 0], "nothing has changed");
    let told = refusals(scene.apply(vec![plain(20)], true));
    assert!(told.iter().all(|(_, refusal)| refusal.is_none()), "{told:?}");
}

#[test]
fn a_collector_of_another_encoding_is_not_offered_to_one_that_would_send_it_tlv() {
    let mut scene = Scene::new(&[(0, Build::Old)]);
    let nested = wire::Collector {
        name: "one".into(),
        endpoint: "tcp://192.0.2.1:5556".into(),
        encoding: wire::Encoding::NestedJson.into(),
        ..wire::Collector::default()
    };
    let nested = Object {
        kind: Some(object::Kind::Collector(nested)),
    };
    let told = scene.apply(vec![nested], false);
    let refusal = told.agents[0].refusal.clone().expect("foreseen");
    assert_eq!(refusal.path, "collectors[0].encoding");
    scene.turn();
    let offered = scene.offered[&0].iter().flat_map(|one| &one.collectors);
    for collector in offered {
        assert_eq!(collector.encoding(), wire::Encoding::Unspecified);
    }
}

#[test]
fn one_that_holds_what_its_program_does_not_know_any_more_is_said_to_misread_it() {
    let mut scene = Scene::new(&[(0, Build::New)]);
    scene.apply(vec![of_pods()], false);
    scene.turn();
    let held = scene.ack(0);
    scene.turn();
    assert_eq!(scene.fleet.standing().converged, 1);
    scene.close(0);
    scene.open(0, Build::Old, Some(held));
    assert_eq!(scene.turn(), [0_u64; 0], "it would read it no better");
    let nack = scene.told(0).nack.expect("said");
    assert!(nack.reason.starts_with("misread: "), "{}", nack.reason);
    assert_eq!(
        (scene.fleet.standing().converged, scene.fleet.standing().nacked),
        (0, 1)
    );
    scene.close(0);
    scene.open(0, Build::New, Some(held));
    assert_eq!(scene.turn(), [0_u64; 0], "it has it");
    assert_eq!(scene.told(0).nack, None);
    assert_eq!(scene.fleet.standing().converged, 1);
}

#[test]
fn an_answer_to_what_was_offered_before_a_refusal_is_not_taken_for_one_to_it() {
    let mut scene = Scene::new(&[(0, Build::New)]);
    let Some(object::Kind::Policy(pods)) = of_pods().kind else {
        panic!("a policy");
    };
    let of_zone = wire::Policy {
        capture: pods.capture,
        ..policy("q", 2, &[("zone", "b")], &["one"])
    };
    scene.apply(vec![object(of_zone)], false);
    scene.open(1, Build::Old, None);
    assert_eq!(scene.turn(), [1]);
    let open = scene.offers[&1].clone();
    scene
        .fleet
        .handle_enrolled(&name("a1"), &labels(&[("zone", "b")]), at(scene.ms));
    assert_eq!(scene.turn(), [0_u64; 0]);
    assert_eq!(scene.told(1).policy, "q");
    scene.fleet.handle_heard(SessionId(1), ack(&open), at(scene.ms));
    assert_eq!(scene.told(1).held, None, "nobody has answered for q");
    let heartbeat = Heard::Heartbeat {
        held: Some(open.mark),
        health: None,
        addresses: None,
    };
    scene.fleet.handle_heard(SessionId(1), heartbeat, at(scene.ms));
    let told = scene.told(1);
    assert_eq!(told.held, Some(open.mark.to_wire()), "as it says itself");
    assert_eq!(told.nack.map(|nack| nack.section()), Some(Section::NotOffered));
    assert_eq!(scene.turn(), [0_u64; 0]);
}

#[test]
fn an_older_agent_that_is_to_be_drained_keeps_its_policy_and_its_peers_and_says_that_it_is_not() {
    let mut scene = Scene::new(&[(0, Build::New), (1, Build::Old)]);
    scene.listed(FROZEN_MS);
    scene.drain(1, true);
    assert_eq!(scene.turn(), [0_u64; 0], "it has nothing else to do");
    scene.rest(1);
    let told = scene.told(1);
    assert_eq!(told.drain(), DrainState::Draining, "never drained");
    let nack = told.nack.expect("said");
    assert_eq!(
        (nack.section(), nack.path.as_str()),
        (Section::NotOffered, "drain")
    );
    assert_eq!(
        nack.reason,
        "not drained: version 0.1.0 does not know how, and captures on; upgrade the agent, or let it: \
         agentctl agents drain --undo a1"
    );
    assert_eq!(scene.fleet.standing().nacked, 1);
    // That is no matter of its policy.
    scene.apply(vec![plain(20)], false);
    assert_eq!(scene.turn(), [0, 1]);
    scene.ack(0);
    let held = scene.ack(1);
    scene.turn();
    assert_eq!(scene.fleet.rollouts(1)[0].state(), RolloutState::Done);
    let both = BTreeMap::from([("a0".to_owned(), false), ("a1".to_owned(), false)]);
    scene.close(1);
    scene.open(1, Build::Old, Some(held));
    assert_eq!(scene.turn(), [0_u64; 0]);
    assert_eq!(scene.listed(COALESCE_MS), both);
    // It comes as one that knows how.
    scene.close(1);
    scene.open(1, Build::New, Some(held));
    assert_eq!(scene.turn(), [1]);
    assert!(scene.offered[&1].last().is_some_and(|offered| offered.drain));
    scene.ack(1);
    scene.rest(1);
    assert_eq!(
        (scene.told(1).drain(), scene.told(1).nack),
        (DrainState::Drained, None)
    );
}

#[test]
fn a_drained_agent_that_comes_as_an_older_one_captures_and_is_relied_upon_by_nobody_until_it_has_its_policy()
{
    let mut scene = Scene::new(&[(0, Build::New), (1, Build::New)]);
    scene.listed(FROZEN_MS);
    scene.drain(1, true);
    scene.turn();
    let held = scene.ack(1);
    let list = scene.listed(COALESCE_MS);
    assert_eq!(list, BTreeMap::from([("a0".to_owned(), false)]));
    scene.close(1);
    scene.open(1, Build::Old, Some(held));
    assert_eq!(scene.turn(), [1]);
    assert!(scene.offered[&1].last().is_some_and(|offered| !offered.drain));
    let list = scene.listed(COALESCE_MS);
    assert_eq!(
        list,
        BTreeMap::from([("a0".to_owned(), false), ("a1".to_owned(), true)]),
        "it captures, and both ends tell"
    );
    scene.ack(1);
    let list = scene.listed(COALESCE_MS);
    assert_eq!(
        list,
        BTreeMap::from([("a0".to_owned(), false), ("a1".to_owned(), false)])
    );
    assert_eq!(scene.told(1).drain(), DrainState::Draining);
}

#[test]
fn what_an_older_agent_has_of_an_older_controller_it_keeps_over_the_upgrade_until_it_is_another_program() {
    let mut scene = Scene::new(&[(0, Build::New)]);
    scene.apply(vec![of_pods()], false);
    scene.turn();
    scene.ack(0);
    scene.turn();
    scene.drain(0, true);
    scene.turn();
    let held = scene.ack(0);
    scene.turn();
    scene.upgrade();
    for _ in 0..2 {
        scene.open(0, Build::Old, Some(held));
        assert_eq!(scene.turn(), [0_u64; 0], "it has what it is to have");
        scene.rest(0);
        assert_eq!(
            (scene.told(0).drain(), scene.told(0).nack),
            (DrainState::Drained, None)
        );
        assert_eq!(scene.fleet.standing().converged, 1);
        scene.restart();
    }
    for build in [Build::New, Build::Old] {
        scene.open(0, build, Some(held));
        assert_eq!(scene.turn(), [0_u64; 0]);
        scene.close(0);
    }
    let nack = scene.told(0).nack.expect("said");
    assert_eq!(nack.path, "capture.exclude[0].podLabels", "{}", nack.reason);
}
