//! What is printed, pinned.

use super::deploying::taken_back;
use super::*;
use crate::view;

fn ms(before: Duration) -> i64 {
    let ns = NOW.0 - u64::try_from(before.as_nanos()).expect("short");
    i64::try_from(ns / 1_000_000).expect("it fits")
}

fn agents() -> Vec<Agent> {
    let held = |version| told::Held {
        epoch: 1,
        version,
        digest: vec![1; 32],
    };
    let collector = |state, reason: &str, evicted, dropped: &[(&str, u64)]| {
        let mut collector = told::CollectorHealth {
            name: "main".to_owned(),
            reason: reason.to_owned(),
            made: 1_200_345,
            taken: 1_200_000 - evicted,
            waiting: 345,
            evicted,
            dropped: dropped
                .iter()
                .map(|(point, count)| told::Drop {
                    point: (*point).to_owned(),
                    count: *count,
                })
                .collect(),
            lag_ms: 1_200,
            ..told::CollectorHealth::default()
        };
        collector.taken -= dropped.iter().map(|(_, count)| count).sum::<u64>();
        collector.set_state(state);
        collector
    };
    let agent = |id: &str, state, seen, health: Option<told::Health>| {
        let mut agent = Agent {
            id: id.to_owned(),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            last_seen_ms: ms(Duration::from_secs(seen)),
            enrolled_ms: ms(Duration::from_secs(86_400)),
            svid_not_after_ms: ms(Duration::ZERO) + 12 * 3_600_000,
            hello: Some(told::Hello {
                version: "0.1.0".to_owned(),
                host_name: format!("{id}.example"),
                addresses: vec![vec![192, 0, 2, 1], vec![0x20; 16]],
                ..told::Hello::default()
            }),
            health,
            held: Some(held(4)),
            wanted: Some(held(4)),
            policy: "web".to_owned(),
            source_id: 77,
            revision_held: 4,
            revision_wanted: 4,
            ..Agent::default()
        };
        agent.set_state(state);
        agent
    };
    let health = |collector| told::Health {
        uptime_ms: 5_000,
        observed_octets: 10,
        capturing: true,
        coverage: Some(told::Coverage {
            ends: 4,
            with_process: 4,
            with_names: 3,
        }),
        cost: Some(told::Cost {
            cpu_ns: 12_000_000_000,
            resident_octets: 34 << 20,
            ..told::Cost::default()
        }),
        collectors: vec![collector],
        ..told::Health::default()
    };
    let streaming = collector(told::CollectorState::Streaming, "", 0, &[("withheld", 3)]);
    let stalled = collector(
        told::CollectorState::Stalled,
        "no PONG for 12 s",
        20,
        &[("collectorRestarted", 5)],
    );
    let mut behind = agent("web-2-1a2b3c", AgentState::Connected, 2, Some(health(stalled)));
    behind.revision_held = 3;
    behind.held = Some(held(3));
    let mut refusing = agent(
        "web-3-00ff00",
        AgentState::Connected,
        1,
        Some(health(streaming.clone())),
    );
    refusing.nack = Some(told::Nack {
        path: "capture.scopes[0].netns".to_owned(),
        reason: "no such file\u{1b}[31m".to_owned(),
        section: told::Section::Capture.into(),
        ..told::Nack::default()
    });
    let long = agent(
        &format!("{}-aabbcc", "x".repeat(56)),
        AgentState::Offline,
        7_500,
        Some(health(streaming.clone())),
    );
    let mut fresh = agent("db-1-777777", AgentState::New, 0, None);
    (fresh.last_seen_ms, fresh.policy, fresh.labels) = (0, String::new(), [].into());
    let mut leaves_out = health(streaming);
    leaves_out.kernel_left_out = Some(told::KernelLeftOut {
        connections: 1_000,
        packets: 12_000,
        octets: 3_000_000,
        cgroups: 2,
        beyond: 0,
    });
    vec![
        fresh,
        agent("web-1-abcdef", AgentState::Connected, 3, Some(leaves_out)),
        behind,
        refusing,
        long,
    ]
}

fn lists() -> Vec<(&'static str, List)> {
    let object = |kind: Kind| {
        let of_kind = objects()
            .into_iter()
            .filter(|object| crate::document::name_of(object).kind == kind.name());
        List::Objects(kind, of_kind.collect())
    };
    let token = |id: &str, operator: &str, used_by: &str, left: i64| Token {
        id: id.to_owned(),
        operator: operator.to_owned(),
        made_ms: ms(Duration::from_secs(600)),
        expires_ms: ms(Duration::ZERO) + left,
        used_by: used_by.to_owned(),
        made_by: match operator {
            "" => "spiffe://fleet.example/operator/ann".to_owned(),
            _ => String::new(),
        },
        ..Token::default()
    };
    let change = |kind: &str, name: &str, change: Change| ObjectChange {
        object: Some(ObjectName {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }),
        change: change.into(),
        ..ObjectChange::default()
    };
    let revision = |revision, message: &str, changes| Revision {
        revision,
        made_ms: ms(Duration::from_secs(1_000 * revision)),
        by: "spiffe://fleet.example/operator/ann".to_owned(),
        message: message.to_owned(),
        changes,
        state: RolloutState::Done.into(),
        ..Revision::default()
    };
    let mut back = revision(1, "too slow", vec![change("Policy", "web", Change::Changed)]);
    back.rollback_to = 3;
    let mut failed = taken_back()
        .pop()
        .and_then(|event| event.rollout)
        .expect("there is one");
    failed.began_ms = ms(Duration::from_secs(90));
    vec![
        ("agents", List::Agents(agents())),
        ("policies", object(Kind::Policy)),
        ("collectors", object(Kind::Collector)),
        (
            "operators",
            List::Operators(vec![
                Operator {
                    name: "ann".to_owned(),
                    enrolled_ms: ms(Duration::from_secs(600)),
                    svid_not_after_ms: ms(Duration::ZERO) + 3_000_000,
                    ..Operator::default()
                },
                Operator {
                    name: "bob".to_owned(),
                    enrolled_ms: ms(Duration::from_secs(600)),
                    svid_not_after_ms: ms(Duration::ZERO) + 3_000_000,
                    revoked_ms: ms(Duration::from_secs(60)),
                    admitted_by: "spiffe://fleet.example/operator/ann".to_owned(),
                },
            ]),
        ),
        (
            "tokens",
            List::Tokens(vec![
                token("0000000000000abc", "", "", 3_000_000),
                token(
                    "0000000000000abd",
                    "ann",
                    "spiffe://fleet.example/operator/ann",
                    3_000_000,
                ),
                token("0000000000000abe", "", "", -1),
            ]),
        ),
        (
            "revisions",
            List::Revisions(vec![
                back,
                revision(
                    2,
                    "two ntopngs and what the web servers do, for the new site",
                    vec![
                        change("Collector", "main", Change::Added),
                        change("Collector", "old", Change::Removed),
                        change("Policy", "web", Change::Changed),
                    ],
                ),
            ]),
        ),
        ("rollouts", List::Rollouts(vec![failed])),
    ]
}

#[test]
fn tables_fit_and_are_pinned() {
    let mut text = String::new();
    for (name, list) in lists() {
        let table = list.text(Output::Table, NOW);
        for line in table.lines() {
            assert!(width(line) <= COLUMNS, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        text += &format!(
            "$ get {name}\n{table}$ get {name} -o name\n{}",
            list.text(Output::Name, NOW)
        );
    }
    assert_pinned("get.txt", &text);
}

#[test]
fn wide_tables_cut_nothing() {
    for (name, list) in lists() {
        let wide = list.text(Output::Wide, NOW);
        for id in list.text(Output::Name, NOW).lines() {
            assert!(wide.contains(id), "{name}: {id}\n{wide}");
        }
        assert!(!wide.contains('…'), "{wide}");
    }
}

#[test]
fn values_are_json_and_yaml_of_the_same() {
    let mut shapes = String::new();
    for (name, list) in lists() {
        let json = list.text(Output::Json, NOW);
        assert!(json.trim_end().chars().all(|c| !c.is_control()), "{json}");
        let from_json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        let yaml = list.text(Output::Yaml, NOW);
        let from_yaml: Vec<serde_json::Value> = match &list {
            List::Objects(..) => serde_saphyr::from_multiple(&yaml).expect("it is YAML"),
            _ => serde_saphyr::from_str(&yaml).expect("it is YAML"),
        };
        assert_eq!(from_json, serde_json::Value::Array(from_yaml), "{name}");
        shapes += &format!(
            "$ get {name} -o json\n{}\n",
            serde_json::to_string_pretty(&from_json).expect("it is JSON")
        );
        assert!(!list.described(NOW).is_empty(), "{name}");
    }
    assert_pinned("get-json.txt", &shapes);
}

#[test]
fn an_agent_whose_disk_takes_nothing_is_not_well() {
    let mut agent = agents().remove(1);
    assert_eq!(view::condition(&agent), "well");
    let health = agent.health.as_mut().expect("it is heard of");
    "the disk is full".clone_into(&mut health.spool_fault);
    assert_eq!(
        view::condition(&agent),
        "records wait in memory only: the disk is full"
    );
    let described = List::Agents(vec![agent]).described(NOW);
    assert!(described.contains("spoolFault: the disk is full"), "{described}");
}

#[test]
fn what_was_not_offered_is_told_apart_from_what_an_agent_refused() {
    let mut agent = agents().remove(1);
    assert!(view::converged(&agent) && view::condition(&agent) == "well");
    let refusal = told::Nack {
        section: told::Section::NotOffered.into(),
        path: "collectors[0].encoding".to_owned(),
        reason: "misread: it has this from another program".to_owned(),
        ..told::Nack::default()
    };
    agent.nack = Some(refusal.clone());
    assert_eq!(view::condition(&agent), refusal.reason);
    assert!(!view::converged(&agent), "it holds the words, not their sense");
    let described = List::Agents(vec![agent.clone()]).described(NOW);
    assert!(described.contains("notOffered"), "{described}");
    agent.nack = Some(told::Nack {
        path: "drain".to_owned(),
        ..refusal
    });
    assert!(view::converged(&agent), "its policy is not touched");
    agent.drain = DrainState::Drained.into();
    let of_drain = view::condition(&agent);
    assert_eq!(of_drain, "misread: it has this from another program");
    agent.nack.as_mut().expect("there").path = "collectors[0].encoding".to_owned();
    assert_eq!(view::condition(&agent), format!("drained; {of_drain}"));
}

#[test]
fn marks_of_direction_reach_no_terminal() {
    let value = Plain::Map(vec![(
        "host".to_owned(),
        Plain::Text("\u{202e}exe.txt".to_owned()),
    )]);
    let shown = yaml_shown(&value);
    assert_eq!(shown, "{\"host\":\"\\u202eexe.txt\"}\n");
    let read: serde_json::Value = serde_saphyr::from_str(&shown).expect("it is YAML");
    assert_eq!(read["host"], "\u{202e}exe.txt");
}

/// A fleet of which much is the matter.
fn troubled() -> StatusResponse {
    let concern = |kind: ConcernKind, agents: u32, first: &[(&str, u64, &str)]| Concern {
        kind: kind.into(),
        agents,
        first: first
            .iter()
            .map(|(agent, seen, why)| ConcernedAgent {
                agent: (*agent).to_owned(),
                last_seen_ms: match seen {
                    0 => 0,
                    seen => ms(Duration::from_secs(*seen)),
                },
                why: (*why).to_owned(),
            })
            .collect(),
    };
    let aside = |records| {
        Some(told::Aside {
            records,
            octets: records * 1_500,
            packets: records * 3,
        })
    };
    StatusResponse {
        conflicts: 0,
        version: "0.1.0".to_owned(),
        trust_domain: "fleet.example".to_owned(),
        started_ms: ms(Duration::from_secs(7_500)),
        revision: 8,
        epoch: 1,
        agents: 5,
        connected: 3,
        converged: 1,
        nacked: 1,
        behind: 3,
        tied: 1,
        draining: 0,
        not_offered: 1,
        disk_full: false,
        roots: vec![Root {
            id: "0123456789abcdef".repeat(4),
            not_after_ms: ms(Duration::ZERO) + 86_400_000,
            signs: true,
        }],
        rollout: taken_back().pop().and_then(|event| event.rollout),
        caller: "spiffe://fleet.example/operator/ann".to_owned(),
        caller_not_after_ms: ms(Duration::ZERO) + 3_600_000,
        concerns: vec![
            concern(
                ConcernKind::Refuses,
                1,
                &[(
                    "web-3-00ff00",
                    1,
                    "not offered: version 0.0.9\u{1b}[31m does not know it",
                )],
            ),
            concern(ConcernKind::Behind, 1, &[("web-2-1a2b3c", 2, "")]),
            concern(
                ConcernKind::AwayBehind,
                12,
                &[
                    ("db-1-777777", 0, "it has never come"),
                    ("db-2-777777", 90_000, ""),
                    ("db-3-777777", 7_500, ""),
                    ("db-4-777777", 7_500, ""),
                    (&"x".repeat(63), 80, ""),
                ],
            ),
            concern(
                ConcernKind::Export,
                1,
                &[(
                    "web-1-abcdef",
                    3,
                    "main: the collector does not read: records wait",
                )],
            ),
        ],
        left_out: Some(LeftOut {
            agents: 3,
            filtered: aside(2_000),
            sampled_out: aside(0),
            kernel: Some(told::KernelLeftOut {
                connections: 1_000,
                packets: 12_000,
                octets: 3_000_000,
                cgroups: 2,
                beyond: 0,
            }),
        }),
    }
}

#[test]
fn status_and_loss_are_pinned() {
    let status = troubled();
    assert!(!status::well(&status));
    let well = StatusResponse {
        agents: 2,
        connected: 1,
        converged: 1,
        ..StatusResponse::default()
    };
    assert!(status::well(&well), "one is away, and has what it is to have");
    assert!(!status::well(&StatusResponse {
        behind: 1,
        ..well.clone()
    }));
    let nobody = StatusResponse {
        connected: 0,
        converged: 0,
        ..well
    };
    assert!(!status::well(&nobody), "nobody is there who could tell");
    assert!(status::well(&StatusResponse::default()), "an empty fleet is well");
    let mut agents = agents();
    agents[1].health.as_mut().expect("there").peers = vec![told::PeerSums {
        peer: "web-3-00ff00".to_owned(),
        spoken_octets: 1_000,
        ..told::PeerSums::default()
    }];
    let older = StatusResponse {
        concerns: Vec::new(),
        left_out: None,
        ..status.clone()
    };
    let text = [
        status::text(&status, NOW),
        status::text(&older, NOW),
        loss::text(&agents, NOW),
    ];
    assert_pinned("status-loss.txt", &text.join("\n"));
    // But for what agents and collectors said themselves.
    for line in text[1].lines().chain(text[2].lines().take(agents.len())) {
        assert!(width(line) <= COLUMNS, "{line}");
    }
    assert!(!text.concat().chars().any(|c| c.is_control() && c != '\n'));
    assert!(!loss::nothing_lost(&agents, NOW));
    let well: Vec<Agent> = vec![agents[0].clone(), agents[1].clone()];
    assert!(
        loss::nothing_lost(&well, NOW),
        "one is new, of the other records are withheld on purpose"
    );
    let mut broken = well.clone();
    broken[1].health.as_mut().expect("there").collectors[0].made += 1;
    assert!(!loss::nothing_lost(&broken, NOW));
    let mut silent = well;
    silent[1].health = None;
    assert!(
        !loss::nothing_lost(&silent, NOW),
        "what tells nothing may have lost something"
    );
    let mut hints = vec![agents[1].clone()];
    let dropped = |point: &str| told::Drop {
        point: point.to_owned(),
        count: 3,
    };
    let of_first = |agents: &mut Vec<Agent>, point: &str| {
        agents[0].health.as_mut().expect("there").drops = vec![dropped(point)];
    };
    of_first(&mut hints, "FlowRingFull");
    assert!(loss::nothing_lost(&hints, NOW), "only hints are");
    assert!(loss::text(&hints, NOW).contains("FlowRingFull 3, before the records, hints only"));
    of_first(&mut hints, "SocketMapFull");
    assert!(!loss::nothing_lost(&hints, NOW));
    let json: serde_json::Value = serde_json::from_str(&json(&loss::told(&agents, NOW))).expect("it is JSON");
    assert_eq!(json["nothingLost"], false);
    assert_eq!(json["agents"][1]["collectors"][0]["lost"], 25);
    assert_eq!(json["agents"][1]["collectors"][0]["missing"], 0);
    assert_eq!(json["agents"][0]["known"], true);
    assert_eq!(json["notKnown"], serde_json::json!([agents[4].id]));
    let json: serde_json::Value =
        serde_json::from_str(&json_line(&view::status(&status, status::well(&status)))).expect("it is JSON");
    assert_eq!(json["well"], false);
    assert_eq!(json["concerns"][2]["agents"], 12);
    assert_eq!(json["concerns"][2]["kind"], "awayBehind");
    assert_eq!(json["concerns"][2]["first"][0]["why"], "it has never come");
    assert_eq!(json["leftOut"]["kernel"]["cgroups"], 2);
}

#[test]
fn a_verdict_says_who_is_away_though_all_is_well() {
    let first = |status: &StatusResponse| status::text(status, NOW).lines().next().map(str::to_owned);
    let well = StatusResponse {
        agents: 2,
        connected: 2,
        converged: 2,
        ..StatusResponse::default()
    };
    let said = first(&well).expect("a line");
    assert_eq!(said, "well: all agents have what they are to have");
    let full = StatusResponse {
        disk_full: true,
        ..well.clone()
    };
    assert!(!status::well(&full), "nothing can be changed");
    let told = first(&full).expect("a line");
    assert!(
        told.starts_with("NOT WELL: the controller's disk is full: ") && told.ends_with(&said),
        "{told}"
    );
    let away = StatusResponse {
        connected: 1,
        converged: 1,
        ..well.clone()
    };
    assert!(status::well(&away));
    assert_eq!(first(&away), Some(format!("{said}; 1 is away")));
    let nobody = StatusResponse {
        connected: 0,
        converged: 0,
        ..well
    };
    let said = first(&nobody).expect("a line");
    assert_eq!(said, "NOT KNOWN: no agent is connected; 2 are away");
    let said = first(&StatusResponse::default()).expect("a line");
    assert!(said.starts_with("no agent has an identity here yet: "), "{said}");
}

#[test]
fn what_an_agent_lost_that_is_away_for_long_is_not_known_and_it_is_named() {
    let [_, here, _, _, away] = <[Agent; 5]>::try_from(agents()).expect("five");
    let ids = |count: usize| -> Vec<Agent> {
        let one = |n: usize| Agent {
            id: format!("web-{n}"),
            ..away.clone()
        };
        std::iter::once(here.clone()).chain((0..count).map(one)).collect()
    };
    let last = |agents: &[Agent]| loss::text(agents, NOW).lines().last().map(str::to_owned);
    let said = last(&ids(2)).expect("a line");
    assert_eq!(
        said,
        "nothing lost that is known; NOT KNOWN of 2 of 3 agents, which are away or have told nothing: web-0 (2h05m old), web-1 (2h05m old)"
    );
    assert!(!loss::nothing_lost(&ids(2), NOW));
    let said = last(&ids(12)).expect("a line");
    assert!(said.ends_with("web-9 (2h05m old), and 2 more"), "{said}");
    // One that boots is not gone.
    let mut boots = ids(1);
    boots[1].last_seen_ms = ms(Duration::from_secs(300));
    assert!(loss::nothing_lost(&boots, NOW));
    assert_eq!(last(&boots).as_deref(), Some("nothing lost"));
    boots[1].last_seen_ms = ms(Duration::from_secs(301));
    assert!(!loss::nothing_lost(&boots, NOW));
    // It lost something before it went.
    let mut lost = ids(1);
    lost[1].health.as_mut().expect("there").collectors[0].made += 1;
    let said = last(&lost).expect("a line");
    assert!(
        said.starts_with("something is lost at 1 of 2 agents; NOT KNOWN of 1 of 2 "),
        "{said}"
    );
}

fn json_line(value: &Plain) -> String {
    super::json(value)
}

#[test]
fn what_changes_for_whom_is_pinned() {
    let before = objects();
    let mut after = before.clone();
    let Some(object::Kind::Policy(policy)) = &mut after[2].kind else {
        panic!("the third is a policy");
    };
    policy.capture.as_mut().expect("there").active_timeout_ms = Some(20_000);
    policy.name = "web".to_owned();
    let change = |change: Change, before: Option<&Object>, after: Option<&Object>| ObjectChange {
        object: after.or(before).map(crate::document::name_of),
        change: change.into(),
        before: before.cloned(),
        after: after.cloned(),
    };
    let answer = ApplyResponse {
        revision: 9,
        changes: vec![
            change(Change::Added, None, Some(&after[0])),
            change(Change::Removed, Some(&before[1]), None),
            change(Change::Changed, Some(&before[2]), Some(&after[2])),
        ],
        agents: (0..22)
            .map(|n| AgentChange {
                agent: format!("web-{n}"),
                policy_before: if n == 0 { String::new() } else { "web".to_owned() },
                policy_after: "web".to_owned(),
                connected: n % 2 == 0,
                refusal: (n == 20).then(|| told::Nack {
                    section: told::Section::NotOffered.into(),
                    path: "capture.exclude[0].podLabels".to_owned(),
                    reason: "not offered: version 0.0.9 does not know capture.exclude[0].podLabels of policy web; \
                             upgrade the agent, or take it out of policy web"
                        .to_owned(),
                    ..told::Nack::default()
                }),
            })
            .collect(),
        rollout: 3,
        rollouts: vec![3, 4],
        ..ApplyResponse::default()
    };
    let nothing = ApplyResponse {
        revision: 9,
        ..ApplyResponse::default()
    };
    let back = ApplyResponse {
        rollback_to: 7,
        ..nothing.clone()
    };
    let text = [
        deploy::told(&answer, false),
        deploy::told(&answer, true),
        deploy::told(&nothing, false),
        deploy::told(&nothing, true),
        deploy::told(&back, false),
        diff::difference(&before, &after, true),
    ];
    assert_pinned("deploy.txt", &text.join("--\n"));
    assert_eq!(diff::difference(&before, &before, true), "");
    assert_eq!(diff::difference(&before, &before[..2], false), "");
    assert!(diff::difference(&before, &before[..2], true).contains("-name: web\n"));
}
