//! Each gate: what it stops stands beside what it lets through.

use super::*;

fn terms() -> Terms {
    Terms {
        soak_ms: 60_000,
        ..Terms::from(&policy::Rollout::default())
    }
}

fn well() -> Figures {
    Figures {
        up_ms: 60_000,
        span_ms: 60_000,
        drops_ppm: 0,
        coverage_ppm: Some(980_000),
        lag_ms: 500,
        lag_first_ms: 500,
        cpu_ppm: 50_000,
        memory_octets: 60 << 20,
        starts: 0,
        capturing: true,
    }
}

/// The gates that `since` is beyond.
fn beyond(since: Figures, before: Option<Figures>, peers: Option<&Peers>) -> Vec<Gate> {
    judge(&terms(), &since, before.as_ref(), peers)
        .into_iter()
        .map(|breach| breach.gate)
        .collect()
}

/// `n` agents that were well, and then are as `since`.
fn peers(n: usize, since: Figures) -> Option<Peers> {
    Peers::of(&vec![(well(), since); n])
}

#[test]
fn each_gate_stops_just_beyond_its_bound() {
    let at_bound = Figures {
        drops_ppm: 10_000,
        coverage_ppm: Some(930_000),
        lag_ms: 60_500,
        cpu_ppm: 150_000,
        memory_octets: 188 << 20,
        starts: STARTS_MAX,
        ..well()
    };
    assert_eq!(beyond(at_bound, Some(well()), None), []);
    for (since, gate) in [
        (
            Figures {
                drops_ppm: 10_001,
                ..at_bound
            },
            Gate::Drops,
        ),
        (
            Figures {
                coverage_ppm: Some(929_999),
                ..at_bound
            },
            Gate::Coverage,
        ),
        (
            Figures {
                lag_ms: 60_501,
                ..at_bound
            },
            Gate::Lag,
        ),
        (
            Figures {
                cpu_ppm: 150_001,
                ..at_bound
            },
            Gate::Cpu,
        ),
        (
            Figures {
                memory_octets: (188 << 20) + 1,
                ..at_bound
            },
            Gate::Memory,
        ),
        (
            Figures {
                starts: STARTS_MAX + 1,
                ..at_bound
            },
            Gate::Starts,
        ),
    ] {
        assert_eq!(beyond(since, Some(well()), None), [gate]);
    }
}

#[test]
fn what_was_bad_before_the_change_is_not_its_doing() {
    let bad = Figures {
        drops_ppm: 300_000,
        coverage_ppm: Some(400_000),
        lag_ms: 3_600_000,
        cpu_ppm: 900_000,
        memory_octets: 900 << 20,
        starts: 9,
        ..well()
    };
    assert_eq!(beyond(bad, Some(bad), None), []);
    let waits_on = Figures {
        lag_ms: bad.lag_ms + 120_000,
        ..bad
    };
    assert_eq!(
        beyond(waits_on, Some(bad), None),
        [],
        "what waited before goes on waiting"
    );
    assert_eq!(beyond(bad, Some(well()), None).len(), 6);
}

#[test]
fn what_worsens_for_all_is_excused_when_five_or_more_have_not_changed() {
    let busy = Figures {
        drops_ppm: 50_000,
        coverage_ppm: Some(800_000),
        lag_ms: 90_000,
        cpu_ppm: 400_000,
        memory_octets: 300 << 20,
        ..well()
    };
    assert_eq!(beyond(busy, Some(well()), None).len(), 5);
    assert_eq!(peers(PEERS_MIN - 1, busy), None, "four are too few");
    let five = peers(PEERS_MIN, busy);
    assert_eq!(beyond(busy, Some(well()), five.as_ref()), []);
    let one_is_busy = Peers::of(
        &std::iter::once((well(), busy))
            .chain(vec![(well(), well()); PEERS_MIN])
            .collect::<Vec<_>>(),
    );
    assert_eq!(
        beyond(busy, Some(well()), one_is_busy.as_ref()).len(),
        5,
        "one of them is no excuse"
    );
}

#[test]
fn agents_that_got_better_do_not_accuse_one_that_did_not() {
    let night = Figures {
        cpu_ppm: 0,
        memory_octets: 1,
        lag_ms: 0,
        coverage_ppm: Some(1_000_000),
        ..well()
    };
    let rested = Peers::of(&vec![
        (
            Figures {
                cpu_ppm: 900_000,
                ..well()
            },
            night
        );
        PEERS_MIN
    ]);
    assert_eq!(beyond(well(), Some(well()), rested.as_ref()), []);
}

#[test]
fn an_agent_without_a_past_is_compared_with_the_others_or_with_nothing() {
    let hungry = Figures {
        cpu_ppm: 600_000,
        memory_octets: 700 << 20,
        coverage_ppm: Some(500_000),
        ..well()
    };
    let idle = Figures {
        capturing: false,
        coverage_ppm: None,
        cpu_ppm: 0,
        memory_octets: 1 << 20,
        ..well()
    };
    assert_eq!(beyond(hungry, None, None), [], "nobody knows what is usual");
    assert_eq!(beyond(hungry, Some(idle), None), [], "it captured nothing");
    let others = peers(PEERS_MIN, well());
    let all = [Gate::Memory, Gate::Cpu, Gate::Coverage];
    assert_eq!(beyond(hungry, None, others.as_ref()), all);
    assert_eq!(beyond(hungry, Some(idle), others.as_ref()), all);
    let idle_others = Peers::of(&vec![(idle, idle); PEERS_MIN]);
    assert_eq!(
        beyond(hungry, Some(idle), idle_others.as_ref()),
        [],
        "nor do they capture"
    );
    // Losses and waits need no past: none was to be expected, and as at first.
    let lossy = Figures {
        drops_ppm: 10_001,
        lag_ms: 60_501,
        ..well()
    };
    assert_eq!(beyond(lossy, None, None), [Gate::Lag, Gate::Drops]);
}

#[test]
fn shares_are_judged_after_a_while_and_gauges_at_once() {
    let bad = Figures {
        span_ms: 5_000,
        drops_ppm: 900_000,
        coverage_ppm: Some(0),
        cpu_ppm: 2_000_000,
        memory_octets: 1 << 40,
        ..well()
    };
    assert_eq!(beyond(bad, Some(well()), None), [Gate::Memory]);
    let later = Figures {
        span_ms: JUDGED_AFTER_MS,
        ..bad
    };
    assert_eq!(beyond(later, Some(well()), None).len(), 4);
}

#[test]
fn a_failure_names_the_worst_agent_with_units_and_counts_the_others() {
    let breach = |gate, value, baseline, bound| Breach {
        gate,
        value,
        baseline,
        bound,
        reason: "why".to_owned(),
    };
    let message = |breach: Breach| failures(vec![("web-1".to_owned(), breach)])[0].message.clone();
    for (failed, said) in [
        (
            breach(Gate::Drops, 123_400, 1_000, 10_000),
            "web-1 lost 12.34 % of what it observed; 0.10 % was to be expected, and 1.00 % more is allowed",
        ),
        (
            breach(Gate::Coverage, 812_000, 950_000, 50_000),
            "web-1 knows the owners of 81.20 % of its flow ends; 95.00 % was to be expected, and 5.00 % less is allowed",
        ),
        (
            breach(Gate::Lag, 75_000, 500, 60_000),
            "a record of web-1 waited 75.0 s; 0.5 s was to be expected, and 60.0 s more is allowed",
        ),
        (
            breach(Gate::Cpu, 312_000, 50_000, 100_000),
            "web-1 took 31.20 % of a core; 5.00 % was to be expected, and 10.00 % more is allowed",
        ),
        (
            breach(Gate::Memory, 512 << 20, 60 << 20, 128 << 20),
            "web-1 had 512.0 MiB of memory; 60.0 MiB was to be expected, and 128.0 MiB more is allowed",
        ),
        (
            breach(Gate::Starts, 4, 0, 2),
            "web-1 has started 4 times; 0 was to be expected, and 2 more is allowed",
        ),
        (
            breach(Gate::Silence, 75_000, 0, 60_000),
            "nothing was heard of web-1 for 75.0 s; 60.0 s is allowed",
        ),
        (
            breach(Gate::Ack, 61_000, 0, 60_000),
            "web-1 did not answer for 61.0 s; 60.0 s is allowed",
        ),
        (breach(Gate::Nack, 0, 0, 0), "web-1 refused it: why"),
        (
            breach(Gate::Limits, 0, 0, 0),
            "web-1 is beyond the policy's limits: why",
        ),
    ] {
        assert_eq!(message(failed), said);
    }

    let many = (0..AGENTS_NAMED_MAX + 20)
        .map(|n| (format!("a{n}"), breach(Gate::Lag, 70_000 + n as u64, 0, 60_000)))
        .collect();
    let failed = failures(many);
    let [failure] = &failed[..] else {
        panic!("one gate: {failed:?}");
    };
    assert_eq!(failure.agents.len(), AGENTS_NAMED_MAX);
    assert_eq!(
        (failure.more, failure.agents[0].as_str(), failure.value),
        (20, "a119", 70_119)
    );
    assert!(
        failure.message.ends_with("(and 119 more agents)"),
        "{}",
        failure.message
    );
}

#[test]
fn a_reason_is_cut_where_a_character_ends() {
    let breach = Breach::said(Gate::Nack, &"ä".repeat(REASON_OCTETS_MAX));
    assert_eq!(breach.reason.len(), REASON_OCTETS_MAX);
    assert_eq!(Breach::said(Gate::Nack, "x").reason, "x");
}
