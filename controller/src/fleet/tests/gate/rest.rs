//! Agents that know how to be drained, and not what else their policy needs.

use super::*;

/// Policy `q`, for agents of zone b, with a rule that older agents would widen.
fn of_zone() -> Object {
    let Some(object::Kind::Policy(pods)) = of_pods().kind else {
        panic!("a policy");
    };
    object(wire::Policy {
        capture: pods.capture,
        ..policy("q", 2, &[("zone", "b")], &["one"])
    })
}

impl Scene {
    /// `a0` has what it is to have; `a1` has `p`, and is to have `q`, which it does not know.
    fn refused() -> Self {
        let mut scene = Self::new(&[(0, Build::New), (1, Build::Middle)]);
        scene.apply(vec![of_zone()], false);
        scene.move_to("b");
        assert_eq!(scene.turn(), [0_u64; 0]);
        scene.expect_refusal();
        scene
    }

    fn move_to(&mut self, zone: &str) {
        self.ms += 1;
        let to = labels(&[("zone", zone)]);
        self.fleet.handle_enrolled(&name("a1"), &to, at(self.ms));
        self.labels.insert(1, to);
    }

    /// It is told why `a1` has not its policy, and it has not got it.
    fn expect_refusal(&self) {
        let told = self.told(1);
        let nack = told.nack.expect("said");
        assert_eq!(
            (nack.section(), nack.path.as_str(), told.policy.as_str()),
            (Section::NotOffered, "capture.exclude[0].podLabels", "q")
        );
        let standing = self.fleet.standing();
        assert_eq!(
            (standing.nacked, standing.not_offered, standing.behind),
            (1, 1, 1)
        );
        assert!(!self.saw_labels(1));
    }

    fn comes(&mut self, build: Build, held: Mark) -> Vec<u64> {
        self.close(1);
        self.open(1, build, Some(held));
        self.turn()
    }

    fn last(&self, n: u64) -> &Assignment {
        self.offered[&n].last().expect("it was offered something")
    }
}

#[test]
fn it_is_drained_by_what_it_has_and_has_that_back_and_restarts_change_nothing() {
    let mut scene = Scene::refused();
    let before = scene.offers[&1].clone();
    scene.drain(1, true);
    assert_eq!(scene.turn(), [1]);
    let rest = scene.last(1);
    let policy = rest.policy.as_ref().map(|policy| policy.name.as_str());
    assert_eq!((rest.drain, policy, rest.collectors.len()), (true, Some("p"), 1));
    scene.expect_refusal();
    assert_eq!(scene.told(1).drain(), DrainState::Draining);
    let mut held = scene.ack(1);
    assert!(held.place() > before.mark.place());
    scene.rest(1);
    for _ in 0..2 {
        assert_eq!(scene.told(1).drain(), DrainState::Drained);
        scene.expect_refusal();
        scene.restart();
        assert_eq!(scene.comes(Build::Middle, held), [0_u64; 0]);
        scene.rest(1);
    }

    scene.drain(1, false);
    assert_eq!(scene.turn(), [1]);
    assert_eq!(
        scene.offers[&1].content.digest, before.content.digest,
        "what it had"
    );
    let rested = std::mem::replace(&mut held, scene.ack(1));
    assert!(held.place() > rested.place());
    for _ in 0..2 {
        assert_eq!(scene.turn(), [0_u64; 0]);
        scene.expect_refusal();
        assert_eq!(scene.told(1).drain(), DrainState::Unspecified);
        scene.restart();
        assert_eq!(scene.comes(Build::Middle, held), [0_u64; 0]);
    }
}

#[test]
fn it_gets_its_policy_drained_when_it_comes_as_a_program_that_knows_it() {
    let mut scene = Scene::refused();
    scene.drain(1, true);
    scene.turn();
    let held = scene.ack(1);
    assert_eq!(scene.comes(Build::New, held), [1]);
    let policy = scene.last(1).policy.as_ref().map(|policy| policy.name.as_str());
    assert_eq!((scene.last(1).drain, policy), (true, Some("q")));
    scene.ack(1);
    scene.rest(1);
    assert_eq!(
        (scene.told(1).drain(), scene.told(1).nack),
        (DrainState::Drained, None)
    );
    assert_eq!(scene.fleet.standing().converged, 2);
}

#[test]
fn one_that_is_to_go_on_before_it_has_answered_goes_on_whichever_it_took() {
    for (took, away) in [(false, false), (true, false), (true, true)] {
        let mut scene = Scene::refused();
        let before = scene.offers[&1].clone();
        scene.drain(1, true);
        scene.turn();
        let rest = scene.offers[&1].clone();
        if took && !away {
            scene.fleet.handle_heard(SessionId(1), ack(&rest), at(scene.ms));
        }
        if away {
            scene.close(1);
        }
        scene.drain(1, false);
        scene.turn();
        if away {
            scene.comes(Build::Middle, rest.mark);
        }
        let back = scene.offers[&1].clone();
        assert_eq!(back.content.digest, before.content.digest, "{took} {away}");
        assert!(back.mark.place() > rest.mark.place(), "{took} {away}");
        scene.ack(1);
        assert_eq!(scene.turn(), [0_u64; 0]);
        scene.expect_refusal();
    }
}

#[test]
fn one_that_has_nothing_in_force_is_drained_by_nothing() {
    let mut scene = Scene::new(&[(0, Build::New)]);
    scene.apply(vec![of_zone()], false);
    scene.move_to("b");
    scene.open(1, Build::Middle, None);
    assert_eq!(scene.turn(), [0_u64; 0]);
    scene.drain(1, true);
    assert_eq!(scene.turn(), [1]);
    assert_eq!(
        (&scene.last(1).policy, &scene.last(1).collectors[..]),
        (&None, &[][..])
    );
    scene.expect_refusal();
    scene.ack(1);
    scene.rest(1);
    assert_eq!(scene.told(1).drain(), DrainState::Drained);
    scene.drain(1, false);
    assert_eq!(scene.turn(), [0_u64; 0], "it captured nothing before");
    scene.expect_refusal();
}

#[test]
fn what_it_has_and_nobody_knows_here_is_not_taken_away_and_it_is_said_that_it_captures_on() {
    let mut scene = Scene::refused();
    let unknown = Mark {
        version: scene.offers[&1].mark.version,
        epoch: scene.offers[&1].mark.epoch,
        digest: [7; 32],
    };
    scene.comes(Build::Middle, unknown);
    scene.drain(1, true);
    assert_eq!(scene.turn(), [0_u64; 0]);
    scene.rest(1);
    let told = scene.told(1);
    assert_eq!(told.drain(), DrainState::Draining);
    let nack = told.nack.expect("said");
    assert_eq!(
        (nack.section(), nack.path.as_str()),
        (Section::NotOffered, "drain")
    );
    assert_eq!(
        nack.reason,
        "not drained: what it has is from after the backup that was restored, and not known here; not offered: \
         version 0.1.0 does not know capture.exclude[0].podLabels of policy q; upgrade the agent, or take it out of policy q"
    );
}

#[test]
fn its_refusal_fails_a_rollout_of_its_policy_and_no_other_and_leaves_it_drained() {
    let mut scene = Scene::new(&[(0, Build::New), (1, Build::Middle)]);
    scene.drain(1, true);
    scene.turn();
    let held = scene.ack(1);
    scene.rest(1);
    scene.apply(vec![of_pods()], false);
    scene.turn();
    assert!(scene.saw_labels(0) && !scene.saw_labels(1));
    scene.ack(0);
    scene.turn();
    let rollout = scene.fleet.rollouts(1).remove(0);
    assert_eq!(
        (rollout.state(), rollout.nacked),
        (RolloutState::RolledBack, 1),
        "{rollout:?}"
    );
    let told = scene.told(1);
    assert_eq!((told.drain(), told.nack), (DrainState::Drained, None));
    assert_eq!(told.held, Some(held.to_wire()), "nothing was offered to it");

    let mut scene = Scene::refused();
    scene.drain(1, true);
    scene.turn();
    scene.ack(1);
    let changed = scene.apply(vec![plain(20)], false);
    let agents: Vec<&str> = changed.agents.iter().map(|one| one.agent.as_str()).collect();
    assert_eq!(
        (agents, changed.rollouts.len()),
        (vec!["a0"], 1),
        "its policy is q"
    );
    assert_eq!(scene.turn(), [0]);
    scene.ack(0);
    scene.turn();
    assert_eq!(scene.fleet.rollouts(1)[0].state(), RolloutState::Done);
    scene.expect_refusal();
}

#[test]
fn nobody_relies_on_one_that_is_drained_so_and_one_that_misreads_what_it_has_rests_too() {
    let mut scene = Scene::refused();
    scene.listed(FROZEN_MS);
    scene.drain(1, true);
    scene.turn();
    scene.ack(1);
    let alone = BTreeMap::from([("a0".to_owned(), false)]);
    assert_eq!(scene.listed(COALESCE_MS), alone);

    // It has a policy of another program, and reads it as best it can: drained it captures nothing all the same.
    let mut scene = Scene::new(&[(0, Build::New), (1, Build::New)]);
    scene.listed(FROZEN_MS);
    scene.apply(vec![of_zone()], false);
    scene.move_to("b");
    scene.turn();
    let held = scene.ack(1);
    scene.comes(Build::Middle, held);
    let nack = scene.told(1).nack.expect("said");
    assert!(nack.reason.starts_with("misread: "), "{}", nack.reason);
    scene.drain(1, true);
    assert_eq!(scene.turn(), [1]);
    assert!(scene.last(1).drain);
    scene.ack(1);
    scene.rest(1);
    assert_eq!(scene.told(1).drain(), DrainState::Drained);
    assert_eq!(scene.listed(COALESCE_MS), alone);
    scene.drain(1, false);
    assert_eq!(scene.turn(), [1]);
    assert!(!scene.last(1).drain);
    scene.ack(1);
    assert_eq!(scene.turn(), [0_u64; 0]);
    let nack = scene.told(1).nack.expect("said again");
    assert!(nack.reason.starts_with("misread: "), "{}", nack.reason);
    assert_eq!(scene.fleet.standing().converged, 1);
}
