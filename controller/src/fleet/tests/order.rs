//! One claim a test: offers, answers, and what a controller remembers.

use flowtilla_proto::wire::fleet::{AgentsRequest, RolloutState};

use super::memory::Memory;
use super::*;
use crate::store::Store;

const SESSION: SessionId = SessionId(1);

/// A fleet with one policy and one agent that was offered it.
fn offered() -> (Fleet, OfferOut) {
    let mut fleet = empty();
    let all = vec![collector("c"), object(policy("p", 0, &[], &["c"]))];
    fleet.apply(change(all, &[]), at(0)).expect("applied");
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(7, None), SESSION, at(1))
        .expect("welcome");
    let said = drain(&mut fleet);
    assert_eq!(said[0], (SESSION, Speech::Welcome { source_id: 7 }));
    let offer = offer_in(&said);
    (fleet, offer)
}

fn state(fleet: &Fleet) -> flowtilla_proto::wire::fleet::Agent {
    fleet.agents(&AgentsRequest::default()).remove(0)
}

fn faster(name: &str) -> Object {
    let mut faster = policy(name, 0, &[], &["c"]);
    faster.capture = Some(wire::Capture {
        active_timeout_ms: Some(5_000),
        ..wire::Capture::default()
    });
    object(faster)
}

#[test]
fn an_ack_of_the_newest_offer_is_in_force() {
    let (mut fleet, offer) = offered();
    assert_eq!(state(&fleet).held, None);
    fleet.handle_heard(SESSION, ack(&offer), at(2));
    assert_eq!(state(&fleet).held, Some(offer.mark.to_wire()));
    assert_eq!(state(&fleet).revision_held, 1);
    assert_eq!(fleet.standing().converged, 1);
    assert_eq!(drain(&mut fleet), []);
}

#[test]
fn an_answer_with_another_nonce_is_ignored() {
    let (mut fleet, old) = offered();
    fleet
        .apply(change(vec![faster("p")], &[]), at(2))
        .expect("applied");
    let new = offer_in(&drain(&mut fleet));
    assert!(new.nonce > old.nonce && new.mark.place() > old.mark.place());
    fleet.handle_heard(SESSION, ack(&old), at(3));
    fleet.handle_heard(SESSION, nack(old.nonce, "too late"), at(3));
    fleet.handle_heard(SESSION, nack(new.nonce + 1, "never offered"), at(3));
    assert_eq!((state(&fleet).held, state(&fleet).nack), (None, None));
    fleet.handle_heard(SESSION, ack(&new), at(4));
    assert_eq!(state(&fleet).held, Some(new.mark.to_wire()));
    // And the offer was answered: a second answer says nothing.
    fleet.handle_heard(SESSION, nack(new.nonce, "changed my mind"), at(5));
    assert_eq!(state(&fleet).nack, None);
}

#[test]
fn what_an_ack_leaves_out_is_as_the_last_one_told_that_had_it_and_was_heard_too_late() {
    let with = |program: &str| {
        let effective = flowtilla_proto::wire::session::Effective {
            programs: vec![program.into()],
            ..Default::default()
        };
        Some(Box::new(effective))
    };
    let said = |offer: &OfferOut, told| Heard::Ack {
        nonce: offer.nonce,
        held: offer.mark,
        effective: told,
    };
    let (mut fleet, mut offer) = offered();
    fleet.handle_heard(SESSION, said(&offer, with("one")), at(2));
    for (timeout_ms, told, meant) in [
        (5_000, None, "one"),
        (6_000, with("two"), "two"),
        (7_000, None, "two"),
    ] {
        let old = offer;
        let mut next = policy("p", 0, &[], &["c"]);
        next.capture = Some(wire::Capture {
            active_timeout_ms: Some(timeout_ms),
            ..wire::Capture::default()
        });
        fleet
            .apply(change(vec![object(next)], &[]), at(3))
            .expect("applied");
        fleet.finish_turn(at(3));
        offer = offer_in(&drain(&mut fleet));
        let (late, in_time) = match told.is_some() {
            // The agent says it with an ack that crosses the next offer, and not again.
            true => (said(&old, told), said(&offer, None)),
            false => (said(&old, None), said(&offer, None)),
        };
        fleet.handle_heard(SESSION, late, at(4));
        fleet.handle_heard(SESSION, in_time, at(4));
        let told = state(&fleet).effective.expect("how it turned out");
        assert_eq!(
            (told.programs, state(&fleet).held),
            (vec![meant.to_owned()], Some(offer.mark.to_wire()))
        );
    }
}

#[test]
fn an_ack_of_something_else_ends_the_stream() {
    let (mut fleet, offer) = offered();
    let mut other = offer.clone();
    other.mark.digest = [0; 32];
    fleet.handle_heard(SESSION, ack(&other), at(2));
    let said = drain(&mut fleet);
    assert!(
        matches!(said[..], [(SESSION, Speech::Ended(EndReason::Protocol, _))]),
        "{said:?}"
    );
    assert_eq!(fleet.standing().connected, 0);
}

#[test]
fn a_refused_change_goes_back_and_is_offered_again_on_the_next_stream_only() {
    let (mut fleet, first) = offered();
    fleet.handle_heard(SESSION, ack(&first), at(2));
    fleet.finish_turn(at(2));
    let applied = fleet
        .apply(change(vec![faster("p")], &[]), at(3))
        .expect("applied");
    let offer = offer_in(&drain(&mut fleet));
    fleet.handle_heard(SESSION, nack(offer.nonce, "no such namespace"), at(4));
    assert_eq!(state(&fleet).nack.expect("a nack").reason, "no such namespace");
    fleet.finish_turn(at(4));
    // The revision went back by itself, as another revision.
    assert_eq!(fleet.rollouts(1)[0].state(), RolloutState::RollingBack);
    assert_eq!((applied.revision, fleet.revision()), (2, 3));
    let back = offer_in(&drain(&mut fleet));
    assert_eq!(back.content, first.content);
    assert!(back.mark.place() > offer.mark.place());
    fleet.handle_heard(SESSION, nack(back.nonce, "not this either"), at(5));
    fleet.finish_turn(at(5));
    fleet.handle_timeout(at(5_000));
    fleet.finish_turn(at(5_000));
    assert_eq!(drain(&mut fleet), []);
    assert_eq!(fleet.rollouts(1)[0].state(), RolloutState::RolledBack);
    fleet.handle_closed(SESSION, at(6_000));
    let again = SessionId(2);
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(7, None), again, at(7_000))
        .expect("welcome");
    assert_eq!(offer_in(&drain(&mut fleet)).mark, back.mark);
}

#[test]
fn the_same_agent_once_more_replaces_its_stream() {
    let (mut fleet, offer) = offered();
    let second = SessionId(2);
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(9, None), second, at(2))
        .expect("welcome");
    let said = drain(&mut fleet);
    assert!(
        matches!(said[0], (SESSION, Speech::Ended(EndReason::Replaced, _))),
        "{said:?}"
    );
    // Its source id is kept, whatever it asks for now.
    assert_eq!(said[1], (second, Speech::Welcome { source_id: 7 }));
    let newest = offer_in(&said);
    fleet.handle_heard(SESSION, ack(&offer), at(3));
    assert_eq!(
        state(&fleet).held,
        None,
        "what comes on the stream that was replaced"
    );
    fleet.handle_closed(SESSION, at(3));
    fleet.handle_heard(second, ack(&newest), at(4));
    assert_eq!(fleet.standing().converged, 1);
}

#[test]
fn two_agents_never_have_one_source_id() {
    let mut fleet = empty();
    let mut seen = BTreeMap::new();
    for n in 0..300_u64 {
        let id = name(&format!("a{n}"));
        fleet
            .handle_open(&id, &Labels::default(), hello(42, None), SessionId(n), at(n))
            .expect("welcome");
        for (_, speech) in drain(&mut fleet) {
            if let Speech::Welcome { source_id } = speech {
                assert_eq!(seen.insert(source_id, id.clone()), None, "{source_id}");
            }
        }
    }
    assert_eq!(seen.len(), 300);
    assert_eq!(seen[&42], name("a0"));
}

#[test]
fn an_agent_that_holds_a_later_version_gets_a_still_later_one() {
    for (epoch, version) in [(0, 900), (3, 5), (0, 1)] {
        let mut fleet = empty();
        let all = vec![collector("c"), object(policy("p", 0, &[], &["c"]))];
        fleet.apply(change(all, &[]), at(0)).expect("applied");
        let held = Mark {
            epoch,
            version,
            digest: [9; 32],
        };
        fleet
            .handle_open(
                &name("a"),
                &Labels::default(),
                hello(7, Some(held)),
                SESSION,
                at(1),
            )
            .expect("welcome");
        let offer = offer_in(&drain(&mut fleet));
        assert!(
            offer.mark.place() > held.place(),
            "{:?} after {held:?}",
            offer.mark
        );
    }
}

#[test]
fn the_last_version_there_is_stops_nothing_but_that_agent() {
    let mut fleet = empty();
    let all = vec![collector("c"), object(policy("p", 0, &[], &["c"]))];
    fleet.apply(change(all, &[]), at(0)).expect("applied");
    let held = Mark {
        epoch: u64::MAX,
        version: u64::MAX,
        digest: [9; 32],
    };
    fleet
        .handle_open(
            &name("a"),
            &Labels::default(),
            hello(7, Some(held)),
            SESSION,
            at(1),
        )
        .expect("welcome");
    fleet
        .handle_open(
            &name("b"),
            &Labels::default(),
            hello(8, None),
            SessionId(2),
            at(1),
        )
        .expect("welcome");
    let said = drain(&mut fleet);
    let offers: Vec<_> = said
        .iter()
        .filter(|(_, speech)| matches!(speech, Speech::Offer(_)))
        .map(|(session, _)| session.0)
        .collect();
    assert!(offers.contains(&2), "{said:?}");
}

#[test]
fn what_an_agent_lost_is_offered_again_after_its_heartbeat() {
    let (mut fleet, offer) = offered();
    fleet.handle_heard(SESSION, ack(&offer), at(2));
    let other = Mark {
        version: 0,
        ..offer.mark
    };
    let heartbeat = Heard::Heartbeat {
        held: Some(other),
        health: None,
        addresses: None,
    };
    fleet.handle_heard(SESSION, heartbeat, at(3));
    assert_eq!(offer_in(&drain(&mut fleet)).mark, offer.mark);
}

#[test]
fn a_silent_stream_is_ended() {
    let (mut fleet, _) = offered();
    fleet.handle_timeout(at(SILENCE_MS));
    assert_eq!(drain(&mut fleet), []);
    fleet.handle_timeout(at(SILENCE_MS + SWEEP_MS));
    let said = drain(&mut fleet);
    assert!(
        matches!(said[..], [(SESSION, Speech::Ended(EndReason::Slow, _))]),
        "{said:?}"
    );
}

#[test]
fn a_revoked_agent_is_cut_and_not_let_in_again() {
    let (mut fleet, _) = offered();
    assert!(fleet.handle_revoked(&name("a")));
    let said = drain(&mut fleet);
    assert!(
        matches!(said[..], [(SESSION, Speech::Ended(EndReason::Revoked, _))]),
        "{said:?}"
    );
    let again = fleet.handle_open(
        &name("a"),
        &Labels::default(),
        hello(7, None),
        SessionId(2),
        at(9),
    );
    assert_eq!(again, Err(Unwelcome::Revoked));
}

#[test]
fn a_change_that_asks_nothing_new_of_an_agent_offers_nothing() {
    let (mut fleet, offer) = offered();
    fleet.handle_heard(SESSION, ack(&offer), at(2));
    fleet.finish_turn(at(2));
    let mut same = policy("p", 9, &[], &["c"]);
    same.rollout = Some(wire::Rollout {
        waves: vec!["1".into(), "100%".into()],
        ..wire::Rollout::default()
    });
    let applied = fleet
        .apply(change(vec![object(same), collector("spare")], &[]), at(3))
        .expect("applied");
    assert_eq!(
        (applied.revision, applied.rollout, applied.agents.len()),
        (2, 0, 0)
    );
    assert_eq!(drain(&mut fleet), []);
}

#[test]
fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let (mut fleet, offer) = offered();
    fleet.handle_heard(SESSION, ack(&offer), at(2));
    let dry = Change {
        dry_run: true,
        ..change(vec![], &["p"])
    };
    let told = fleet.apply(dry, at(3)).expect("told");
    assert_eq!(told.agents.len(), 1);
    assert_eq!(
        (&*told.agents[0].policy_before, &*told.agents[0].policy_after),
        ("p", "")
    );
    assert_eq!((fleet.revision(), drain(&mut fleet).len()), (1, 0));
}

#[test]
fn who_has_not_seen_the_newest_revision_is_refused() {
    let (mut fleet, _) = offered();
    let late = Change {
        expected_revision: 9,
        ..change(vec![], &["p"])
    };
    let refused = fleet.apply(late, at(3)).expect_err("refused");
    assert_eq!(
        refused,
        ChangeRefused::Newer {
            revision: 1,
            expected: 9
        }
    );
}

#[test]
fn a_restarted_controller_offers_what_it_had_promised_and_no_more() {
    let store = Memory::default();
    let mut fleet = Fleet::load(&store, at(0)).expect("an empty store");
    let all = vec![collector("c"), object(policy("p", 0, &[], &["c"]))];
    fleet.apply(change(all, &[]), at(0)).expect("applied");
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(7, None), SESSION, at(1))
        .expect("welcome");
    store.commit(fleet.take_batch()).expect("kept");
    let offer = offer_in(&drain(&mut fleet));

    let mut fleet = Fleet::load(&store, at(2)).expect("what was kept");
    let held = Some(offer.mark);
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(8, held), SESSION, at(3))
        .expect("welcome");
    assert_eq!(
        drain(&mut fleet),
        [(SESSION, Speech::Welcome { source_id: 7 })],
        "it has adopted the offer, and only the ack was lost"
    );
    assert_eq!(fleet.standing().converged, 1);

    let mut fleet = Fleet::load(&store, at(4)).expect("what was kept");
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(8, None), SESSION, at(5))
        .expect("welcome");
    let again = offer_in(&drain(&mut fleet));
    assert_eq!((again.mark, &again.content), (offer.mark, &offer.content));
}

#[test]
fn an_offer_after_a_restart_belongs_to_the_trace_of_its_deploy() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let store = Memory::default();
    let mut fleet = Fleet::load(&store, at(0)).expect("an empty store");
    let mut deploy = change(vec![object(policy("p", 0, &[], &[]))], &[]);
    deploy.traceparent = TRACE.to_owned();
    fleet.apply(deploy, at(0)).expect("applied");
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(7, None), SESSION, at(1))
        .expect("welcome");
    let offer = offer_in(&drain(&mut fleet));
    assert_eq!(&*offer.traceparent, TRACE);
    store.commit(fleet.take_batch()).expect("kept");

    let mut fleet = Fleet::load(&store, at(2)).expect("what was kept");
    fleet
        .handle_open(&name("a"), &Labels::default(), hello(7, None), SESSION, at(3))
        .expect("welcome");
    let again = offer_in(&drain(&mut fleet));
    assert_eq!((&*again.traceparent, again.mark), (TRACE, offer.mark));
}
