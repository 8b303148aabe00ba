//! A change goes through the fleet in waves, and back as a whole.

use flowtilla_proto::wire::fleet::{RolloutState, Steering};

use super::*;
use crate::store::Store;

const AGENTS: u64 = 3;

struct Scene {
    fleet: Fleet,
    offers: BTreeMap<SessionId, OfferOut>,
    ms: u64,
}

impl Scene {
    /// Agents `a1` to `a3`, all of which have policy `p`; `a3`, in zone `b`, gets `q` when there is one.
    fn new() -> Self {
        let mut scene = Self {
            fleet: empty(),
            offers: BTreeMap::new(),
            ms: 1,
        };
        scene.apply(vec![in_waves("p", 10)]);
        for n in 1..=AGENTS {
            let zone = if n == AGENTS { "b" } else { "a" };
            let id = name(&format!("a{n}"));
            scene
                .fleet
                .handle_open(
                    &id,
                    &labels(&[("zone", zone)]),
                    hello(n as u32, None),
                    SessionId(n),
                    at(scene.ms),
                )
                .expect("welcome");
        }
        assert_eq!(scene.turn(), [1, 2, 3]);
        scene.ack(&[1, 2, 3]);
        assert!(scene.turn().is_empty());
        scene
    }

    fn apply(&mut self, objects: Vec<Object>) -> Vec<u64> {
        self.ms += 1;
        let applied = self.fleet.apply(change(objects, &[]), at(self.ms));
        applied.expect("applied").rollouts
    }

    /// Streams that are offered something in this turn.
    fn turn(&mut self) -> Vec<u64> {
        self.ms += 1;
        self.fleet.handle_timeout(at(self.ms));
        self.fleet.finish_turn(at(self.ms));
        let mut offered = Vec::new();
        for (session, speech) in drain(&mut self.fleet) {
            if let Speech::Offer(offer) = speech {
                offered.push(session.0);
                self.offers.insert(session, offer);
            }
        }
        offered.sort_unstable();
        offered
    }

    fn ack(&mut self, sessions: &[u64]) {
        for session in sessions {
            let session = SessionId(*session);
            let heard = ack(&self.offers[&session]);
            self.fleet.handle_heard(session, heard, at(self.ms));
        }
    }

    fn nack(&mut self, session: u64) {
        let nonce = self.offers[&SessionId(session)].nonce;
        self.fleet
            .handle_heard(SessionId(session), nack(nonce, "no such namespace"), at(self.ms));
    }

    fn states(&self) -> Vec<(u64, RolloutState)> {
        let rollouts = self.fleet.rollouts(9).into_iter();
        rollouts.map(|rollout| (rollout.id, rollout.state())).collect()
    }
}

/// One agent first, then all; nobody is watched.
fn in_waves(name: &str, seconds: u64) -> Object {
    let zone: &[(&str, &str)] = if name == "q" { &[("zone", "b")] } else { &[] };
    let mut policy = policy(name, u32::from(name == "q"), zone, &[]);
    policy.capture = Some(wire::Capture {
        active_timeout_ms: Some(seconds * 1_000),
        ..wire::Capture::default()
    });
    policy.rollout = Some(wire::Rollout {
        waves: vec!["1".into(), "100%".into()],
        soak_ms: Some(0),
        ..wire::Rollout::default()
    });
    object(policy)
}

#[test]
fn the_second_wave_keeps_what_it_has_until_the_first_has_acked() {
    let mut scene = Scene::new();
    let before = scene.offers[&SessionId(1)].content.clone();
    let ids = scene.apply(vec![in_waves("p", 5)]);
    let first = scene.turn();
    assert_eq!((ids.len(), first.len()), (1, 1));
    assert!(scene.turn().is_empty());
    for agent in scene.fleet.agents.values().filter(|agent| agent.converged()) {
        assert_eq!(agent.wanted.as_ref().map(|wanted| &wanted.content), Some(&before));
    }
    scene.ack(&first);
    let rest = scene.turn();
    assert_eq!(rest.len(), 2);
    scene.ack(&rest);
    scene.turn();
    assert_eq!(scene.states(), [(ids[0], RolloutState::Done)]);
    assert_eq!(scene.fleet.standing().converged, 3);
}

#[test]
fn a_refusal_in_the_second_wave_takes_back_those_that_had_acked() {
    let mut scene = Scene::new();
    let before = scene.offers[&SessionId(1)].clone();
    scene.apply(vec![in_waves("p", 5)]);
    let first = scene.turn();
    scene.ack(&first);
    let rest = scene.turn();
    scene.nack(rest[0]);
    assert_eq!(
        scene.turn(),
        [1, 2, 3],
        "everybody was told the change, so everybody goes back"
    );
    for offer in scene.offers.values() {
        assert_eq!(offer.content, before.content);
        assert!(offer.mark.place() > before.mark.place());
    }
    scene.ack(&[1, 2, 3]);
    scene.turn();
    assert_eq!(scene.states()[0].1, RolloutState::RolledBack);
    assert_eq!(scene.fleet.standing().converged, 3);
    assert_eq!(scene.fleet.revision(), 3, "going back is a revision of its own");
    let record = scene.fleet.objects_of_record().objects;
    assert_eq!(record, [in_waves("p", 10)]);
    let rollout = &scene.fleet.rollouts(1)[0];
    assert_eq!(rollout.failures[0].gate, "nack");
    assert_eq!(rollout.failures[0].agents, [format!("a{}", rest[0])]);
}

#[test]
fn when_one_policys_rollout_goes_back_so_do_the_others_of_the_revision() {
    let mut scene = Scene::new();
    let ids = scene.apply(vec![in_waves("p", 5), in_waves("q", 7)]);
    assert_eq!(ids.len(), 2, "one for each policy whose agents change");
    let first = scene.turn();
    assert_eq!(first.len(), 2, "the first of each");
    assert!(first.contains(&3));
    scene.nack(3);
    let back = scene.turn();
    assert_eq!(back, first, "and who was not told the change hears nothing");
    scene.ack(&back);
    scene.turn();
    let ended: Vec<RolloutState> = scene.states().iter().map(|(_, state)| *state).collect();
    assert_eq!(ended, [RolloutState::RolledBack, RolloutState::RolledBack]);
    assert_eq!(scene.fleet.objects_of_record().objects, [in_waves("p", 10)]);
    assert_eq!(scene.fleet.standing().converged, 3);
}

#[test]
fn a_paused_rollout_goes_on_when_it_is_told_to() {
    let mut scene = Scene::new();
    let id = scene.apply(vec![in_waves("p", 5)])[0];
    let first = scene.turn();
    let steer = |scene: &mut Scene, steering| scene.fleet.steer(id, steering, "admin", at(scene.ms));
    steer(&mut scene, Steering::Pause).expect("paused");
    scene.ack(&first);
    assert!(scene.turn().is_empty());
    assert!(steer(&mut scene, Steering::Pause).is_err());
    assert!(steer(&mut scene, Steering::Unspecified).is_err());
    steer(&mut scene, Steering::Resume).expect("goes on");
    assert_eq!(scene.turn().len(), 2);
    steer(&mut scene, Steering::Abort).expect("aborted");
    assert_eq!(scene.turn(), [1, 2, 3]);
    assert!(
        scene
            .fleet
            .steer(99, Steering::Abort, "admin", at(scene.ms))
            .is_err()
    );
}

#[test]
fn a_newer_change_goes_back_to_the_last_one_that_everybody_had() {
    let mut scene = Scene::new();
    scene.apply(vec![in_waves("p", 5)]);
    let first = scene.turn();
    scene.ack(&first);
    scene.turn();
    // The first change is still on its way when the next one comes, and that one is refused.
    scene.apply(vec![in_waves("p", 7)]);
    let next = scene.turn();
    assert_eq!(scene.states()[1].1, RolloutState::Superseded);
    scene.nack(next[0]);
    let back = scene.turn();
    scene.ack(&back);
    scene.turn();
    assert_eq!(scene.fleet.objects_of_record().objects, [in_waves("p", 10)]);
    assert_eq!(scene.fleet.standing().converged, 3);
}

#[test]
fn a_policy_that_is_taken_away_leaves_its_agents_wave_by_wave() {
    let mut scene = Scene::new();
    scene.ms += 1;
    let applied = scene.fleet.apply(change(vec![], &["p"]), at(scene.ms));
    let applied = applied.expect("applied");
    assert_eq!((applied.rollouts.len(), applied.agents.len()), (1, 3));
    let first = scene.turn();
    assert_eq!(first.len(), 1, "the terms of what is lost count");
    assert_eq!(scene.offers[&SessionId(first[0])].content.policy, None);
    assert!(scene.turn().is_empty());
    scene.ack(&first);
    let rest = scene.turn();
    assert_eq!(rest.len(), 2);
    scene.ack(&rest);
    scene.turn();
    assert_eq!(scene.states(), [(applied.rollout, RolloutState::Done)]);
    assert!(scene.offers.values().all(|offer| offer.content.policy.is_none()));
    assert_eq!(scene.fleet.standing().converged, 3);
}

#[test]
fn a_selector_that_chooses_nobody_is_taken_back_when_the_first_agent_refuses() {
    let mut scene = Scene::new();
    let Some(object::Kind::Policy(mut typo)) = in_waves("p", 10).kind else {
        panic!("a policy");
    };
    typo.selector = policy("p", 0, &[("zone", "no-such")], &[]).selector;
    let ids = scene.apply(vec![object(typo)]);
    let first = scene.turn();
    assert_eq!((ids.len(), first.len()), (1, 1));
    scene.nack(first[0]);
    let back = scene.turn();
    assert_eq!(back, first, "nobody else has lost it");
    scene.ack(&back);
    scene.turn();
    assert_eq!(scene.states()[0].1, RolloutState::RolledBack);
    assert_eq!(scene.fleet.objects_of_record().objects, [in_waves("p", 10)]);
    assert_eq!(scene.fleet.standing().converged, 3);
}

#[test]
fn what_is_lost_in_waves_is_so_over_a_restart() {
    let store = memory::Memory::default();
    let mut scene = Scene::new();
    let applied = scene.fleet.apply(change(vec![], &["p"]), at(scene.ms));
    applied.expect("applied");
    let first = scene.turn()[0];
    store.commit(scene.fleet.take_batch()).expect("memory");
    scene.fleet = Fleet::load(&store, at(scene.ms)).expect("what was kept");
    for (id, agent) in &scene.fleet.agents {
        let lost = id.as_str() == format!("a{first}");
        assert_eq!(agent.policy().is_none(), lost, "{id}");
    }
}

#[test]
fn who_comes_while_a_change_is_on_its_way_has_what_is_proven_until_the_last_wave() {
    let mut scene = Scene::new();
    let before = scene.offers[&SessionId(1)].content.clone();
    scene.apply(vec![in_waves("p", 5)]);
    let first = scene.turn();
    let opened = scene.fleet.handle_open(
        &name("a4"),
        &labels(&[]),
        hello(4, None),
        SessionId(4),
        at(scene.ms),
    );
    opened.expect("welcome");
    assert_eq!(scene.turn(), [4]);
    assert_eq!(scene.offers[&SessionId(4)].content, before);
    scene.ack(&[4]);
    assert!(scene.turn().is_empty());
    scene.ack(&first);
    let rest = scene.turn();
    assert!(rest.len() == 3 && rest.contains(&4), "{rest:?}");
    assert_ne!(scene.offers[&SessionId(4)].content, before);
}

#[test]
fn without_a_number_the_newest_rollout_that_goes_on_is_steered() {
    let mut scene = Scene::new();
    let steer = |scene: &mut Scene, steering| {
        let steered = scene.fleet.steer(0, steering, "admin", at(scene.ms));
        steered.map(|rollout| (rollout.id, rollout.state()))
    };
    assert_eq!(
        steer(&mut scene, Steering::Abort),
        Err(ChangeRefused::NoRolloutYet)
    );
    let id = scene.apply(vec![in_waves("p", 5)])[0];
    scene.turn();
    assert_eq!(steer(&mut scene, Steering::Pause), Ok((id, RolloutState::Paused)));
    assert_eq!(
        steer(&mut scene, Steering::Resume),
        Ok((id, RolloutState::Running))
    );
    assert_eq!(
        steer(&mut scene, Steering::Abort),
        Ok((id, RolloutState::RollingBack))
    );
    assert_eq!(steer(&mut scene, Steering::Abort), Err(ChangeRefused::NoneGoesOn));
}

#[test]
fn what_was_taken_back_is_not_what_a_roll_back_goes_to() {
    let store = memory::Memory::default();
    let mut scene = Scene::new();
    scene.apply(vec![in_waves("p", 5)]);
    let first = scene.turn();
    scene.nack(first[0]);
    let back = scene.turn();
    scene.ack(&back);
    scene.turn();
    let before = |scene: &mut Scene| {
        store.commit(scene.fleet.take_batch()).expect("memory");
        scene.fleet.revision_before(&store).expect("memory")
    };
    assert_eq!((before(&mut scene), scene.fleet.revision()), (1, 3), "2 was bad");
    let row = crate::fleet::load::revision(&store, 1)
        .expect("memory")
        .expect("it is kept");
    let rolled = scene.fleet.roll_back(&row, change(vec![], &[]), at(scene.ms));
    let rolled = rolled.expect("no harm");
    assert_eq!((rolled.revision, rolled.rollback_to), (3, 1), "nothing changes");
    scene.apply(vec![in_waves("p", 7)]);
    assert_eq!(before(&mut scene), 3);
    // The first one that there ever was, refused: before it there was nothing.
    let mut scene = Scene {
        fleet: empty(),
        offers: BTreeMap::new(),
        ms: 1,
    };
    let opened = scene.fleet.handle_open(
        &name("a1"),
        &labels(&[]),
        hello(1, None),
        SessionId(1),
        at(scene.ms),
    );
    opened.expect("welcome");
    scene.turn();
    scene.ack(&[1]);
    scene.apply(vec![in_waves("p", 5)]);
    scene.turn();
    scene.nack(1);
    scene.turn();
    assert_eq!((before(&mut scene), scene.fleet.revision()), (0, 2));
}

#[test]
fn what_a_host_says_of_itself_takes_no_policy_from_it_and_blocks_nobody() {
    let mut scene = Scene::new();
    let web = || object(policy("web", 5, &[("role", "web")], &[]));
    let prod = || object(policy("prod", 5, &[("env", "prod")], &[]));
    let open = |scene: &mut Scene, session: u64, env: &[(&str, &str)]| {
        let sent = say::Hello {
            labels: labels(env).as_map().clone(),
            ..hello_wire(9)
        };
        let hello = Hello::parse(from_agent(say::from_agent::Body::Hello(sent))).expect("a hello");
        let opened = scene.fleet.handle_open(
            &name("a9"),
            &labels(&[("role", "web")]),
            hello,
            SessionId(session),
            at(scene.ms),
        );
        opened.expect("welcome");
    };
    open(&mut scene, 9, &[]);
    scene.apply(vec![web(), prod()]);
    scene.turn();
    assert_eq!(scene.fleet.agents[&name("a9")].policy(), Some("web"));
    open(&mut scene, 10, &[("env", "prod")]);
    scene.turn();
    assert_eq!(
        scene.fleet.agents[&name("a9")].policy(),
        Some("web"),
        "it keeps what it has"
    );
    let told = scene.fleet.agents(&wire::fleet::AgentsRequest::default());
    let tied: Vec<_> = told.iter().filter(|agent| !agent.tied.is_empty()).collect();
    assert_eq!(tied.len(), 1);
    assert_eq!(
        (tied[0].id.as_str(), &tied[0].tied[..]),
        ("a9", &["prod".to_owned(), "web".to_owned()][..])
    );
    assert_eq!(scene.fleet.standing().tied, 1);
    // Others go on with their work; what makes it worse is refused.
    scene.apply(vec![collector("other")]);
    scene.apply(vec![in_waves("p", 7)]);
    let worse = object(policy("worse", 5, &[("role", "web"), ("env", "prod")], &[]));
    let refused = scene.fleet.apply(change(vec![worse], &[]), at(scene.ms));
    assert!(matches!(refused, Err(ChangeRefused::Mistakes(_))), "{refused:?}");
}

#[test]
fn who_is_away_with_something_else_than_it_is_to_have_is_counted() {
    let mut scene = Scene::new();
    assert_eq!(scene.fleet.standing().behind, 0);
    scene.fleet.handle_closed(SessionId(1), at(scene.ms));
    assert_eq!(scene.fleet.standing().behind, 0, "it has what it is to have");
    scene.apply(vec![in_waves("p", 5)]);
    let first = scene.turn();
    scene.ack(&first);
    let rest = scene.turn();
    scene.ack(&rest);
    scene.turn();
    let standing = scene.fleet.standing();
    assert_eq!(
        (standing.connected, standing.converged, standing.behind),
        (2, 2, 1)
    );
}
