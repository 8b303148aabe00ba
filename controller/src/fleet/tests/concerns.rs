//! What operators are told to look at, and what was left out on purpose.

use flowtilla_proto::wire::fleet::{Concern, ConcernKind};

use super::*;

fn come(fleet: &mut Fleet, n: u64, ms: u64) {
    let labels = Labels::default();
    let hello = hello(u32::try_from(n).expect("few"), None);
    fleet
        .handle_open(&name(&format!("a{n:03}")), &labels, hello, SessionId(n), at(ms))
        .expect("welcome");
}

/// All that is offered is acked but by these, which do not answer.
fn answer(fleet: &mut Fleet, but: &[u64], ms: u64) {
    while let Some((to, speech)) = fleet.poll_speech() {
        if let Speech::Offer(offer) = speech
            && !but.contains(&to.0)
        {
            fleet.handle_heard(to, ack(&offer), at(ms));
        }
    }
}

fn beat(fleet: &mut Fleet, n: u64, health: say::Health, ms: u64) {
    let heartbeat = Heard::Heartbeat {
        held: None,
        health: Some(Box::new(health)),
        addresses: None,
    };
    fleet.handle_heard(SessionId(n), heartbeat, at(ms));
}

fn feeding(name: &str, state: say::CollectorState, waiting: u64) -> say::CollectorHealth {
    say::CollectorHealth {
        name: name.to_owned(),
        state: state.into(),
        waiting,
        ..say::CollectorHealth::default()
    }
}

/// Kind, number and names.
fn told(fleet: &Fleet) -> Vec<(ConcernKind, u32, Vec<String>)> {
    let concerns = fleet.standing().concerns.into_iter();
    let one = |concern: Concern| {
        let names = concern.first.iter().map(|agent| agent.agent.clone());
        (concern.kind(), concern.agents, names.collect())
    };
    concerns.map(one).collect()
}

fn names(numbers: impl IntoIterator<Item = u64>) -> Vec<String> {
    numbers.into_iter().map(|n| format!("a{n:03}")).collect()
}

fn fleet(collectors: &[&str], mode: wire::Mode) -> Fleet {
    let mut fleet = empty();
    let mut policy = policy("all", 1, &[], collectors);
    policy.export.as_mut().expect("there").mode = mode.into();
    let mut objects: Vec<Object> = collectors.iter().map(|name| collector(name)).collect();
    objects.push(object(policy));
    fleet.apply(change(objects, &[]), at(0)).expect("applied");
    fleet
}

#[test]
fn each_agent_of_which_something_is_the_matter_is_counted_once_and_named_with_the_longest_silent_first() {
    let mut fleet = fleet(&["one"], wire::Mode::Mirror);
    // One has never come.
    fleet.handle_enrolled(&name("a000"), &Labels::default(), at(1));
    for n in 1..=20 {
        come(&mut fleet, n, 1);
    }
    answer(&mut fleet, &[2, 3], 2);
    assert_eq!(
        told(&fleet),
        [
            (ConcernKind::Behind, 2, names([2, 3])),
            (ConcernKind::AwayBehind, 1, names([0])),
        ]
    );
    let concerns = fleet.standing().concerns;
    assert_eq!(concerns[1].first[0].why, "it has never come");
    assert_eq!(
        (
            concerns[1].first[0].last_seen_ms,
            concerns[0].first[0].why.as_str()
        ),
        (0, "")
    );

    // Twelve go, the last of them first, and one of those that have not answered.
    for (n, ms) in (5..=16).rev().chain([3]).zip(100..) {
        fleet.handle_closed(SessionId(n), at(ms));
    }
    fleet.handle_heard(SessionId(2), nack(1, "no such namespace"), at(200));
    fleet.handle_revoked(&name("a020"));
    assert_eq!(
        told(&fleet),
        [
            (ConcernKind::Refuses, 1, names([2])),
            (ConcernKind::AwayBehind, 2, names([0, 3])),
            (ConcernKind::Away, 12, names((7..=16).rev())),
        ]
    );
    let concerns = fleet.standing().concerns;
    assert_eq!(concerns[0].first[0].why, "no such namespace");
    assert_eq!(concerns[2].first[0].last_seen_ms, at(100).wall_ms);
}

#[test]
fn a_collector_that_takes_nothing_is_told_when_records_wait_and_none_takes_its_turn() {
    use say::CollectorState::{Connecting, Stalled, Streaming, Unacknowledged};
    let cases = [
        // Each of them gets every record.
        (wire::Mode::Mirror, Streaming, Stalled, 3, true),
        (wire::Mode::Mirror, Streaming, Connecting, 0, false),
        (wire::Mode::Mirror, Streaming, Streaming, 3, false),
        (wire::Mode::Mirror, Streaming, Unacknowledged, 3, false),
        // They take turns.
        (wire::Mode::Failover, Streaming, Connecting, 3, false),
        (wire::Mode::Failover, Stalled, Connecting, 3, true),
    ];
    for (mode, first, second, waiting, expected) in cases {
        let mut fleet = fleet(&["one", "two"], mode);
        come(&mut fleet, 1, 1);
        answer(&mut fleet, &[], 2);
        let health = say::Health {
            collectors: vec![feeding("one", first, 0), feeding("two", second, waiting)],
            ..say::Health::default()
        };
        beat(&mut fleet, 1, health, 3);
        let concerns = fleet.standing().concerns;
        let told: Vec<ConcernKind> = concerns.iter().map(Concern::kind).collect();
        assert_eq!(
            told == [ConcernKind::Export],
            expected,
            "{mode:?} {first:?} {second:?} {waiting}: {told:?}"
        );
        if let [concern] = &concerns[..] {
            assert!(
                concern.first[0].why.ends_with(": it is not reached"),
                "{concern:?}"
            );
        }
    }
}

#[test]
fn what_was_left_out_is_summed_over_all_that_have_told_and_are_not_void() {
    let mut fleet = fleet(&["one"], wire::Mode::Mirror);
    for n in 1..=4 {
        come(&mut fleet, n, 1);
    }
    answer(&mut fleet, &[], 2);
    assert_eq!(fleet.standing().left_out, None, "nobody has told");
    let aside = |n: u64| say::Aside {
        records: n,
        octets: 10 * n,
        packets: 2 * n,
    };
    for n in 1..=3 {
        let health = say::Health {
            filtered: Some(aside(n)),
            sampled_out: (n == 1).then(|| aside(u64::MAX / 20)),
            kernel_left_out: Some(say::KernelLeftOut {
                connections: n,
                packets: n,
                octets: n,
                cgroups: 1,
                beyond: 0,
            }),
            ..say::Health::default()
        };
        beat(&mut fleet, n, health, 3);
    }
    fleet.handle_closed(SessionId(2), at(4));
    fleet.handle_revoked(&name("a003"));
    let sums = fleet.standing().left_out.expect("two have told");
    assert_eq!((sums.agents, sums.filtered), (2, Some(aside(3))));
    assert_eq!(sums.sampled_out.map(|sum| sum.records), Some(u64::MAX / 20));
    let kernel = sums.kernel.expect("told");
    assert_eq!((kernel.connections, kernel.cgroups), (3, 2));
}
