//! Generated histories of one collector against a spool that loses and a process that dies. The seed stands in every
//! failure.
//!
//! Not here, because lost by design: what was at risk when a collector restarted while no agent was there to see it, or
//! when the agent that saw it died before its cursor was saved.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod peer;
mod record;
mod store;
mod world;

use flowtilla_agent_core::collector::window::{OnRestart, READ_SLACK_MESSAGES};
use flowtilla_agent_core::loss::DropPoint;

use world::{CALM, Climate, World};

#[test]
fn nothing_is_lost_whatever_breaks_and_restarts() {
    for seed in 0..16 {
        let mut world = World::new(seed, CALM);
        world.run(4_000);
        assert_eq!(world.unhandled(), 0, "seed {seed}");
        let law = world.collector.law();
        let counted = law.dropped.at(DropPoint::ReportedByPeer) + law.dropped.at(DropPoint::RecordTooLarge);
        assert_eq!(law.taken + counted, law.made, "seed {seed}: {law:?}");
    }
}

#[test]
fn what_comes_twice_stays_within_the_bound_of_each_kill() {
    for seed in 100..112 {
        let mut world = World::new(
            seed,
            Climate {
                breaks: false,
                ..CALM
            },
        );
        world.run(4_000);
        assert_eq!(world.unhandled(), 0, "seed {seed}");
        // At least one record and two at most a message; a message's octets, its numbers included, are 200 and more.
        let bound = 2 * (READ_SLACK_MESSAGES + CALM.window_octets / 200);
        assert!(
            world.kills > 0 && world.peer.duplicates <= world.kills * bound,
            "seed {seed}"
        );
        assert!(
            world.peer.duplicates > 0,
            "seed {seed}: kills were meant to cost something"
        );
    }
}

#[test]
fn evicted_damaged_and_unwritable_records_are_all_that_is_missing_and_are_counted() {
    for seed in 200..216 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut world = World::new(
            seed,
            Climate {
                window_octets: random.u64(300..300_000),
                storms: true,
                ..CALM
            },
        );
        world.run(4_000);
        assert_eq!(world.unhandled(), 0, "seed {seed}");
    }
}

#[test]
fn nothing_is_lost_when_collectors_take_turns() {
    let (mut turns, mut skipped) = (0, 0);
    for seed in 400..416 {
        let climate = Climate {
            on_restart: if seed % 4 == 0 {
                OnRestart::Skip
            } else {
                OnRestart::Replay
            },
            storms: seed % 2 == 0,
            turns: true,
            ..CALM
        };
        let mut world = World::new(seed, climate);
        world.run(4_000);
        assert_eq!(world.unhandled(), 0, "seed {seed}");
        turns += world.turns;
        skipped += world.collector.law().dropped.at(DropPoint::CollectorRestarted);
    }
    assert!(turns > 16 && skipped > 0, "{turns} turns, {skipped} skipped");
}

#[test]
fn skip_loses_no_more_than_it_counts() {
    let mut skipped = 0;
    for seed in 300..312 {
        let climate = Climate {
            on_restart: OnRestart::Skip,
            storms: seed % 2 == 0,
            ..CALM
        };
        let mut world = World::new(seed, climate);
        world.run(4_000);
        assert_eq!(world.unhandled(), 0, "seed {seed}");
        skipped += world.collector.law().dropped.at(DropPoint::CollectorRestarted);
    }
    assert!(skipped > 0, "kills were meant to cost something");
}
