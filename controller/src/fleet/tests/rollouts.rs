//! A change goes through the fleet in waves, and back as a whole.

use flowtilla_proto::wire::fleet::{RolloutState, Steering};

use super::*;

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
fn a_policy_that_is_taken_away_is_gone_at_once() {
    let mut scene = Scene::new();
    let applied = scene.fleet.apply(change(vec![], &["p"]), at(9)).expect("applied");
    assert_eq!((applied.rollouts.len(), applied.agents.len()), (0, 3));
    assert_eq!(scene.turn(), [1, 2, 3]);
    for offer in scene.offers.values() {
        assert_eq!(offer.content.policy, None);
    }
}
