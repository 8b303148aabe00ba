use super::*;
use crate::hosts::plan::{Found, Plan, Replace};
use crate::hosts::trouble::Step;
use crate::hosts::who::{Unproven, Who};

fn agent(at: usize) -> String {
    format!("a{at}")
}

fn upgrade(at: usize, who: Who) -> Upgrade {
    let mut found = Found::read("flowtilla-probe\n").expect("an answer");
    found.who = who;
    Upgrade {
        at,
        found,
        plan: Plan {
            program: Some(Replace::Upgrade("0.1.0".to_owned())),
            ..Plan::default()
        },
    }
}

fn proven(at: usize) -> Upgrade {
    upgrade(at, Who::Proven(agent(at)))
}

fn unproven(at: usize) -> Upgrade {
    upgrade(at, Who::Claims(agent(at), Unproven::Older))
}

fn on_trial(at: usize) -> Upgrade {
    let mut upgrade = proven(at);
    (upgrade.plan.program, upgrade.plan.trial) = (None, true);
    upgrade
}

fn failed(blame: Blame) -> Result<(), Failed> {
    let trouble = Trouble::new(Step::Install, "why", "remedy");
    Err(Failed { trouble, blame })
}

fn places(upgrades: &[Upgrade]) -> Vec<usize> {
    upgrades.iter().map(|upgrade| upgrade.at).collect()
}

/// Whom the controller is asked about, with what each is.
fn asked(queue: &Queue, wave: usize) -> Vec<(String, Standing)> {
    let judged = queue.judged(wave, &BTreeMap::new());
    (judged.into_iter())
        .map(|one| (one.agent.clone(), one.standing()))
        .collect()
}

fn those(standings: &[(usize, Standing)]) -> Vec<(String, Standing)> {
    let one = |(at, standing): &(usize, Standing)| (agent(*at), *standing);
    standings.iter().map(one).collect()
}

/// Brings one host its program.
fn bring(queue: &mut Queue, wave: usize, size: usize, at: usize, done: Result<(), Failed>) {
    let mut batch = queue.next(size);
    assert_eq!(places(&batch), [at]);
    let upgrade = batch.pop().expect("one");
    queue
        .took(wave, upgrade, done)
        .expect("nothing speaks against the program");
}

#[test]
fn who_is_broken_off_or_goes_back_leaves_its_place_to_the_next_and_only_who_has_it_is_judged() {
    use Standing::{Changed, ChangedBefore, Unspecified};

    // Waves of 1, 3 and all 8.
    let all = [
        proven(0),
        unproven(1),
        proven(2),
        proven(3),
        proven(4),
        proven(5),
        proven(6),
        unproven(7),
    ];
    let mut queue = Queue::new(all.into());
    // ssh broke off, and its agent is there as before; the second has not proven who it is, and is back.
    bring(&mut queue, 1, 1, 0, failed(Blame::Unsure { counts: false }));
    assert_eq!(queue.counted(), 0);
    bring(&mut queue, 1, 1, 1, failed(Blame::Host));
    bring(&mut queue, 1, 1, 2, Ok(()));
    assert!(queue.next(1).is_empty(), "the wave is full");
    assert_eq!(queue.counted_in(1), 1);
    assert_eq!(
        asked(&queue, 1),
        those(&[
            (2, Changed),
            (3, Unspecified),
            (4, Unspecified),
            (5, Unspecified),
            (6, Unspecified)
        ]),
        "neither who is there as before, nor who has gone back, nor who has proven nothing"
    );

    // ssh broke off, and what is heard of its agent speaks for or against the program: it is one of the wave.
    let batch = queue.next(3);
    assert_eq!(places(&batch), [3, 4]);
    let results = [failed(Blame::Unsure { counts: true }), failed(Blame::Host)];
    for (upgrade, done) in batch.into_iter().zip(results) {
        queue
            .took(2, upgrade, done)
            .expect("nothing speaks against the program");
    }
    bring(&mut queue, 2, 3, 5, Ok(()));
    assert!(queue.next(3).is_empty());
    assert_eq!((queue.counted(), queue.counted_in(2)), (3, 2));
    assert_eq!(
        asked(&queue, 2),
        those(&[(2, ChangedBefore), (3, Changed), (5, Changed), (6, Unspecified)])
    );

    // The last wave is everybody who is left; the unproven one has proven who it is by its new program.
    let batch = queue.next(8);
    assert_eq!(places(&batch), [6, 7]);
    for mut upgrade in batch {
        upgrade.found.who = Who::Proven(agent(upgrade.at));
        queue
            .took(3, upgrade, Ok(()))
            .expect("nothing speaks against the program");
    }
    assert!(queue.next(8).is_empty());
    assert_eq!(
        asked(&queue, 3),
        those(&[
            (2, ChangedBefore),
            (3, ChangedBefore),
            (5, ChangedBefore),
            (6, Changed),
            (7, Changed)
        ])
    );

    let (upgraded, never, failed) = queue.end();
    let ends: Vec<_> = (upgraded.iter())
        .map(|one| (one.upgrade.at, one.unsure.is_some(), one.counts))
        .collect();
    assert_eq!(
        ends,
        [
            (0, true, false),
            (2, false, true),
            (3, true, true),
            (5, false, true),
            (6, false, true),
            (7, false, true)
        ],
        "each is seen to at the end, also who may have it"
    );
    assert!(never.is_empty());
    let failed: Vec<usize> = failed.into_iter().map(|(at, _)| at).collect();
    assert_eq!(failed, [1, 4]);
}

#[test]
fn what_speaks_against_the_program_ends_it_and_who_never_got_it_is_known() {
    let mut queue = Queue::new((0..4).map(proven).collect());
    let mut batch = queue.next(2);
    assert_eq!(places(&batch), [0, 1]);
    let second = batch.pop().expect("two");
    let first = batch.pop().expect("two");
    queue.took(1, first, Ok(())).expect("it is well");
    let why = queue.took(1, second, failed(Blame::Program));
    assert_eq!(why.expect_err("its doing").step, Step::Install);
    let (upgraded, never, failed) = queue.end();
    assert_eq!(upgraded.iter().map(|one| one.upgrade.at).collect::<Vec<_>>(), [0]);
    assert_eq!(never, [2, 3]);
    assert_eq!(failed.len(), 1);
}

#[test]
fn what_was_left_on_trial_is_a_wave_of_its_own_before_the_first() {
    let mut queue = Queue::new(vec![proven(0), on_trial(1), proven(2), on_trial(3)]);
    let trial = queue.take_trial();
    assert_eq!(places(&trial), [1, 3]);
    for upgrade in trial {
        queue.took(0, upgrade, Ok(())).expect("it is well");
    }
    assert_eq!(
        asked(&queue, 0),
        those(&[
            (1, Standing::Changed),
            (3, Standing::Changed),
            (0, Standing::Unspecified),
            (2, Standing::Unspecified)
        ])
    );
    assert!(queue.next(1).is_empty(), "they count as having it");
    assert_eq!(places(&queue.next(3)), [0]);
}

#[test]
fn a_wave_of_which_everybody_is_lost_takes_all_that_are_left_and_ends() {
    let mut queue = Queue::new((0..3).map(proven).collect());
    for at in 0..3 {
        bring(&mut queue, 1, 1, at, failed(Blame::Host));
    }
    assert!(queue.next(1).is_empty());
    assert_eq!(queue.counted(), 0);
    assert_eq!(queue.waiting().count(), 0);
    assert!(asked(&queue, 1).is_empty());
}
