//! Each field of a rollout: what it refuses stands beside what it takes.

use super::*;

fn parse(sent: wire::Rollout) -> Result<Rollout, String> {
    Rollout::try_from(sent).map_err(|mistakes| mistakes.to_string())
}

fn waves(texts: &[&str]) -> Result<Vec<Wave>, String> {
    parse(wire::Rollout {
        waves: texts.iter().map(|&text| text.to_owned()).collect(),
        ..wire::Rollout::default()
    })
    .map(|rollout| rollout.waves)
}

#[test]
fn an_empty_rollout_is_all_at_once_and_has_the_documented_defaults() {
    let rollout = Rollout::default();
    assert!(rollout.waves.is_empty());
    assert_eq!(rollout.soak, Duration::ZERO);
    assert_eq!(rollout.ack_timeout, Duration::from_secs(60));
    assert_eq!(
        rollout.gates,
        Gates {
            silence: Duration::from_secs(60),
            drops_permille: 10,
            coverage_permille: 50,
            lag: Duration::from_secs(60),
            cpu_permille: 100,
            memory_octets: 128 << 20,
        }
    );
}

#[test]
fn waves_are_watched_unless_they_say_otherwise() {
    let with = |soak_ms| {
        parse(wire::Rollout {
            waves: vec!["100%".into()],
            soak_ms,
            ..wire::Rollout::default()
        })
        .map(|rollout| rollout.soak)
    };
    assert_eq!(with(None), Ok(Duration::from_secs(300)));
    assert_eq!(with(Some(0)), Ok(Duration::ZERO));
    assert_eq!(with(Some(7 * 86_400_000)), Ok(Duration::from_secs(7 * 86_400)));
    assert!(with(Some(7 * 86_400_000 + 1)).is_err());
}

#[test]
fn a_wave_is_a_number_or_a_share() {
    assert_eq!(
        waves(&["1", "10%", "100%"]),
        Ok(vec![Wave::Agents(1), Wave::Percent(10), Wave::Percent(100)])
    );
    for bad in [
        "",
        "0",
        "0%",
        "101%",
        "-1",
        "+1",
        "1.5%",
        "10 %",
        "%",
        "all",
        "1000001",
        "99999999999",
    ] {
        let refused = waves(&[bad, "100%"]).expect_err(bad);
        assert_eq!(
            refused,
            format!(
                "waves[0]: {bad:?} is no wave; write a number of agents from 1 to 1000000, or a share from 1% to 100%"
            )
        );
    }
}

#[test]
fn waves_rise_and_end_with_all() {
    for good in [
        &["100%"][..],
        &["1", "2", "100%"],
        &["5", "10%", "20", "100%"],
        &["1%", "5", "100%"],
    ] {
        assert!(waves(good).is_ok(), "{good:?}");
    }
    for bad in [
        &["2", "1", "100%"][..],
        &["2", "2", "100%"],
        &["20%", "10%", "100%"],
        &["100%", "100%"],
    ] {
        let refused = waves(bad).expect_err("does not rise");
        assert!(refused.contains("is not more than"), "{refused}");
    }
    assert!(
        waves(&["5", "10%", "4", "100%"]).is_err(),
        "less than two waves before"
    );
    assert!(waves(&["100%", "5"]).is_err(), "more than all");
    assert_eq!(
        waves(&["1", "50%"]).expect_err("half of them are left out"),
        "waves[1]: \"50%\" is the last wave and leaves agents out; write 100% as the last wave"
    );
    let many: Vec<String> = (1..=WAVES_MAX)
        .map(|n| n.to_string())
        .chain(["100%".into()])
        .collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(waves(&many[1..]).is_ok());
    assert_eq!(
        waves(&many).expect_err("too many"),
        "waves: has 17 waves; write at most 16"
    );
}

#[test]
fn a_share_is_rounded_up_and_a_number_is_no_more_than_there_are() {
    assert_eq!(Wave::Percent(10).of(0), 0);
    assert_eq!(Wave::Percent(10).of(1), 1);
    assert_eq!(Wave::Percent(10).of(10), 1);
    assert_eq!(Wave::Percent(10).of(11), 2);
    assert_eq!(Wave::Percent(100).of(11), 11);
    assert_eq!(Wave::Agents(3).of(2), 2);
    assert_eq!(Wave::Agents(3).of(9), 3);
}

#[test]
fn every_mistake_is_told_at_once() {
    let refused = parse(wire::Rollout {
        waves: vec!["x".into()],
        soak_ms: Some(u64::MAX),
        ack_timeout_ms: Some(0),
        gates: Some(wire::Gates {
            silence_ms: Some(0),
            drops_permille: Some(1_001),
            coverage_permille: Some(1_001),
            lag_ms: Some(0),
            cpu_permille: Some(0),
            memory_octets: Some(0),
        }),
    })
    .expect_err("all of it");
    let paths: Vec<&str> = refused
        .lines()
        .map(|line| line.split(':').next().unwrap_or_default())
        .collect();
    assert_eq!(
        paths,
        [
            "waves[0]",
            "soakMs",
            "ackTimeoutMs",
            "gates.silenceMs",
            "gates.dropsPermille",
            "gates.coveragePermille",
            "gates.lagMs",
            "gates.cpuPermille",
            "gates.memoryOctets"
        ]
    );
}
