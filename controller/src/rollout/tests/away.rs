//! Agents that are not there, come late, join, or are taken away.

use super::*;

#[test]
fn agents_that_are_away_are_no_failures_and_get_it_when_they_come() {
    let mut fleet = Fleet::with_offline(6, &[1, 2, 3], &["5", "100%"], SOAK_MS);
    fleet.answer();
    assert_eq!(fleet.rollout.view().offline, 2);
    fleet.run(SOAK_MS + 1_000);
    assert_eq!(
        fleet.state(),
        State::Done,
        "a last wave that is switched off does not hold it open for ever"
    );
    assert_eq!(
        (fleet.rollout.view().offline, fleet.rollout.view().pending),
        (3, 0)
    );
    for n in 1..4 {
        fleet.connect(n);
        assert!(
            matches!(fleet.part(&id(n)), Part::Acked { .. }),
            "after the end, too"
        );
    }
}

#[test]
fn nobody_gets_what_no_agent_has_acked() {
    let mut fleet = Fleet::with_offline(4, &[0, 1, 2, 3], &["1", "100%"], SOAK_MS);
    fleet.run(10 * SOAK_MS);
    assert_eq!((fleet.state(), fleet.wave()), (State::Running, 1));
    assert_eq!(
        fleet.rollout.waits_for(),
        "no agent of wave 1 is there; the wave goes on when one has come"
    );
    let canary = fleet.of_wave(1);
    fleet.connect(canary[1..].parse().expect("a number"));
    fleet.run(SOAK_MS + 10_000);
    assert_eq!(
        (fleet.state(), fleet.rollout.waits_for()),
        (State::Done, ""),
        "of the others nobody is there"
    );
}

#[test]
fn a_wave_of_which_nobody_comes_for_a_soak_is_passed_over() {
    let offline: Vec<usize> = (1..12).collect();
    let mut fleet = Fleet::with_offline(12, &offline, &["1", "50%", "100%"], SOAK_MS);
    fleet.answer();
    let late = fleet.of_wave(3);
    fleet.connect(late[1..].parse().expect("a number"));
    fleet.run(SOAK_MS + 1_000);
    assert_eq!((fleet.wave(), fleet.rollout.admitted(&late)), (2, false));
    assert_eq!(
        fleet.rollout.waits_for(),
        "no agent of wave 2 is there; the next wave begins when one has come, or when none has for a soak"
    );
    fleet.run(SOAK_MS - 5_000);
    assert_eq!(fleet.wave(), 2);
    fleet.run(10_000);
    assert_eq!(
        (fleet.wave(), fleet.part(&late)),
        (
            3,
            Part::Acked {
                at: fleet.rollout.head().wave_began
            }
        )
    );
    fleet.run(SOAK_MS + 10_000);
    assert_eq!(fleet.state(), State::Done);
}

#[test]
fn nobody_is_taken_for_switched_off_because_the_controller_has_just_begun() {
    let mut fleet = Fleet::with_offline(3, &[1, 2], &["1", "2", "100%"], SOAK_MS);
    fleet.answer();
    let last = fleet.of_wave(3);
    fleet.connect(last[1..].parse().expect("a number"));
    fleet.run(SOAK_MS + 1_000);
    assert_eq!(fleet.wave(), 2, "of which nobody is there");
    fleet.restart_controller();
    fleet.run(RESTART_GRACE_MS - 5_000);
    assert_eq!((fleet.state(), fleet.wave()), (State::Running, 2));
    fleet.connect(0);
    fleet.connect(last[1..].parse().expect("a number"));
    fleet.run(SOAK_MS);
    assert_eq!(fleet.wave(), 2, "those of wave 2 have a soak's time to come back");
    fleet.run(15_000);
    assert_eq!(fleet.wave(), 3);
}

#[test]
fn agents_that_are_away_do_not_hold_up_those_that_are_there() {
    let mut fleet = Fleet::with_offline(10, &[0, 1, 2, 3, 4, 5, 6, 7, 8], &["1", "100%"], SOAK_MS);
    fleet.answer();
    assert_eq!(
        fleet.part(&id(9)),
        Part::Acked { at: fleet.now },
        "the one that is there goes first"
    );
}

#[test]
fn agents_that_join_belong_to_the_last_wave() {
    let mut fleet = Fleet::new(10, &["1", "50%", "100%"], SOAK_MS);
    fleet.answer();
    fleet
        .hosts
        .insert("new".into(), (Host::default(), Load::default()));
    fleet.rollout.joined("new", &fleet.windows, fleet.now);
    fleet.rollout.connected("new", &fleet.windows, fleet.now);
    fleet.answer();
    assert_eq!((fleet.part("new"), fleet.changed()), (Part::Waiting, 1));
    fleet.run(SOAK_MS + 2_000);
    assert_eq!((fleet.wave(), fleet.part("new")), (2, Part::Waiting));
    fleet.run(SOAK_MS + 2_000);
    assert_eq!((fleet.wave(), fleet.changed()), (3, 11));
    fleet.run(SOAK_MS + 5_000);
    assert_eq!(fleet.state(), State::Done);
    fleet.rollout.joined("newer", &fleet.windows, fleet.now);
    assert!(fleet.rollout.admitted("newer"), "after the end at once");
    fleet.rollout.nacked("newer", Content::Change, "no", fleet.now);
    assert_eq!(
        (fleet.part("newer"), fleet.state()),
        (Part::Nacked, State::Done),
        "it is too late to go back"
    );
}

#[test]
fn agents_that_are_removed_hold_up_nothing() {
    let mut fleet = Fleet::new(3, &["1", "100%"], SOAK_MS);
    fleet.drive();
    let canary = fleet.of_wave(1);
    fleet.hosts.remove(&canary);
    fleet.rollout.removed(&canary);
    fleet.run(1_000);
    assert_eq!(fleet.wave(), 2, "an empty wave is left out");
    for n in 0..3 {
        fleet.hosts.remove(&id(n));
        fleet.rollout.removed(&id(n));
    }
    fleet.run(1_000);
    assert_eq!(fleet.state(), State::Done);
}
