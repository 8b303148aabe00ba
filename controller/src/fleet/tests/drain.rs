//! Agents that are drained: what they are to have, what is said of them, and who relies on them.

use flowtilla_proto::wire::fleet::{AgentsRequest, DrainState};
use flowtilla_proto::wire::session::Assignment;
use prost::Message;

use super::memory::Memory;
use super::*;
use crate::fleet::members::{COALESCE_MS, FROZEN_MS};
use crate::store::Store;

struct Scene {
    fleet: Fleet,
    store: Memory,
    now_ms: u64,
}

impl Scene {
    /// Agents `a0` and `a1` with a policy each acked.
    fn new() -> Self {
        let mut scene = Self {
            fleet: empty(),
            store: Memory::default(),
            now_ms: 1,
        };
        let objects = vec![collector("one"), object(policy("all", 1, &[], &["one"]))];
        scene.fleet.apply(change(objects, &[]), at(0)).expect("applied");
        for n in 0..2 {
            scene.open(n, None);
            scene.answer(n);
        }
        scene
    }

    fn open(&mut self, n: u64, held: Option<Mark>) {
        let sent = say::Hello {
            addresses: vec![vec![192, 0, 2, u8::try_from(n).expect("few")]],
            held: held.map(Mark::to_wire),
            ..hello_wire(u32::try_from(n).expect("few") + 1)
        };
        let hello = Hello::parse(from_agent(say::from_agent::Body::Hello(sent))).expect("a hello");
        let id = name(&format!("a{n}"));
        self.fleet
            .handle_open(&id, &Labels::default(), hello, SessionId(n), at(self.now_ms))
            .expect("welcome");
    }

    /// The one offer that is out, acked.
    fn answer(&mut self, n: u64) -> OfferOut {
        let offer = offer_in(&drain(&mut self.fleet));
        self.fleet
            .handle_heard(SessionId(n), ack(&offer), at(self.now_ms));
        offer
    }

    fn beat(&mut self, n: u64, capturing: bool, waiting: u64) {
        let health = say::Health {
            capturing,
            collectors: vec![say::CollectorHealth {
                waiting,
                ..say::CollectorHealth::default()
            }],
            ..say::Health::default()
        };
        let heartbeat = Heard::Heartbeat {
            held: None,
            health: Some(Box::new(health)),
            addresses: None,
        };
        self.fleet.handle_heard(SessionId(n), heartbeat, at(self.now_ms));
    }

    fn state(&self, n: u64) -> DrainState {
        let ids = vec![format!("a{n}")];
        let request = AgentsRequest {
            ids,
            ..AgentsRequest::default()
        };
        self.fleet.agents(&request)[0].drain()
    }

    fn drain(&mut self, n: u64, drain: bool) {
        let ids = [name(&format!("a{n}"))];
        self.fleet
            .drain(&ids, drain, at(self.now_ms))
            .expect("it is known");
    }

    /// The controller ends and begins again.
    fn restart(&mut self) {
        self.fleet.handle_stop();
        let batch = self.fleet.take_batch();
        self.store.commit(batch).expect("kept");
        self.fleet = Fleet::load(&self.store, at(self.now_ms)).expect("read");
    }
}

fn assignment(offer: &OfferOut) -> Assignment {
    Assignment::decode(&offer.content.octets[..]).expect("an assignment")
}

#[test]
fn a_drained_agent_keeps_its_policy_and_collectors_and_says_when_nothing_waits() {
    let mut scene = Scene::new();
    scene.drain(0, true);
    let offer = scene.answer(0);
    let offered = assignment(&offer);
    assert!(offered.drain && offered.policy.is_some());
    assert_eq!(offered.collectors.len(), 1);
    assert_eq!(
        (scene.state(0), scene.state(1)),
        (DrainState::Draining, DrainState::Unspecified)
    );
    for (capturing, waiting) in [(true, 0), (false, 3), (false, 0)] {
        scene.beat(0, capturing, waiting);
        assert_eq!(scene.state(0), DrainState::Draining, "{capturing} {waiting}");
    }
    scene.beat(0, false, 0);
    assert_eq!(scene.state(0), DrainState::Drained);
    scene.beat(0, false, 1);
    assert_eq!(scene.state(0), DrainState::Draining, "something waits after all");

    scene.drain(0, true);
    assert_eq!(drain(&mut scene.fleet).len(), 0, "twice is once");
    scene.drain(0, false);
    let back = assignment(&scene.answer(0));
    assert!(!back.drain);
    assert_eq!(scene.state(0), DrainState::Unspecified);
}

#[test]
fn it_stays_drained_over_restarts_of_both_and_changes_of_its_policy() {
    let mut scene = Scene::new();
    scene.drain(0, true);
    let held = scene.answer(0).mark;
    scene.restart();
    scene.open(0, Some(held));
    assert!(
        !drain(&mut scene.fleet)
            .iter()
            .any(|(_, speech)| matches!(speech, Speech::Offer(_))),
        "it has what it is to have"
    );
    let changed = policy("all", 1, &[], &["one"]);
    let changed = wire::Policy {
        buffer: Some(wire::Buffer {
            sync_interval_ms: Some(700),
            ..wire::Buffer::default()
        }),
        ..changed
    };
    let applied = scene
        .fleet
        .apply(change(vec![object(changed)], &[]), at(scene.now_ms));
    let mut touched: Vec<String> = applied
        .expect("applied")
        .agents
        .into_iter()
        .map(|one| one.agent)
        .collect();
    touched.sort();
    assert_eq!(touched, ["a0", "a1"]);
    let offer = scene.answer(0);
    let offered = assignment(&offer);
    assert!(offered.drain && offered.policy.and_then(|policy| policy.buffer).is_some());
    // The same set again changes nothing for one that is drained.
    let same = scene.fleet.objects_of_record().objects;
    let applied = scene
        .fleet
        .apply(change(same, &[]), at(scene.now_ms))
        .expect("applied");
    assert_eq!(applied.agents, []);
}

#[test]
fn a_rollout_that_holds_an_agent_back_does_not_hold_up_its_draining() {
    let mut scene = Scene::new();
    let wire_policy = wire::Policy {
        rollout: Some(wire::Rollout {
            waves: vec!["1".to_owned(), "100%".to_owned()],
            soak_ms: Some(60_000),
            ..wire::Rollout::default()
        }),
        buffer: Some(wire::Buffer {
            sync_interval_ms: Some(700),
            ..wire::Buffer::default()
        }),
        ..policy("all", 1, &[], &["one"])
    };
    scene
        .fleet
        .apply(change(vec![object(wire_policy)], &[]), at(scene.now_ms))
        .expect("applied");
    scene.fleet.finish_turn(at(scene.now_ms));
    let offers = drain(&mut scene.fleet);
    let first = offers
        .first()
        .map(|(session, _)| session.0)
        .expect("one of them goes first");
    let other = 1 - first;
    scene.drain(other, true);
    let offered = assignment(&scene.answer(other));
    assert!(offered.drain, "drained at once");
    assert!(
        offered.policy.and_then(|policy| policy.buffer).is_none(),
        "and not changed before its wave"
    );
    scene.drain(other, false);
    let offered = assignment(&scene.answer(other));
    assert!(!offered.drain && offered.policy.and_then(|policy| policy.buffer).is_none());
}

#[test]
fn peers_do_not_rely_on_a_drained_agent() {
    let mut scene = Scene::new();
    let listed = |scene: &mut Scene, ms: u64| {
        scene.now_ms += ms;
        scene.fleet.handle_timeout(at(scene.now_ms));
        let lists: Vec<_> = (drain(&mut scene.fleet).into_iter())
            .filter_map(|(session, speech)| match speech {
                Speech::Members(list) => Some((
                    session.0,
                    list.members
                        .iter()
                        .map(|one| one.agent.clone())
                        .collect::<Vec<_>>(),
                )),
                _ => None,
            })
            .collect();
        lists
    };
    let both = vec!["a0".to_owned(), "a1".to_owned()];
    assert_eq!(
        listed(&mut scene, FROZEN_MS),
        [(0, both.clone()), (1, both.clone())]
    );
    scene.drain(0, true);
    scene.answer(0);
    let alone = vec!["a1".to_owned()];
    // It is told so itself: when it captures again it is not to believe an older list.
    assert_eq!(listed(&mut scene, COALESCE_MS), [(0, alone.clone()), (1, alone)]);
    scene.drain(0, false);
    scene.answer(0);
    assert_eq!(listed(&mut scene, COALESCE_MS), [(0, both.clone()), (1, both)]);
}

#[test]
fn who_is_not_known_or_void_is_named_and_nobody_is_drained() {
    let mut scene = Scene::new();
    scene.fleet.handle_revoked(&name("a1"));
    let ids = ["a0", "a1", "nobody"].map(name);
    let refused = scene.fleet.drain(&ids, true, at(1)).expect_err("two are strange");
    assert_eq!(refused, ChangeRefused::NoAgents("a1, nobody".to_owned()));
    assert_eq!(scene.state(0), DrainState::Unspecified);
}
