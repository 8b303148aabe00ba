use super::*;
use crate::fleet::tests::{collector, labels, name, object, policy};

fn mistakes(refused: Result<Objects, ChangeMistakes>) -> Vec<(Option<usize>, String)> {
    let mistakes = refused.expect_err("refused").0;
    let told = mistakes
        .iter()
        .map(|found| (found.object, found.mistake.to_string()));
    told.collect()
}

fn set(objects: &[Object]) -> Objects {
    Objects::default().changed(objects, &[]).expect("a set")
}

fn gone(kind: &str, name: &str) -> ObjectName {
    ObjectName {
        kind: kind.into(),
        name: name.into(),
    }
}

#[test]
fn a_collector_that_is_not_there_is_told_with_its_place() {
    let told = mistakes(Objects::default().changed(
        &[collector("c"), object(policy("p", 0, &[], &["c", "nowhere"]))],
        &[],
    ));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, Some(1));
    assert!(
        told[0].1.starts_with("export.collectors[1]: \"nowhere\""),
        "{told:?}"
    );
}

#[test]
fn a_collector_that_a_policy_names_is_not_removed() {
    let all = set(&[collector("c"), object(policy("p", 0, &[], &["c"]))]);
    let told = mistakes(all.changed(&[], &[gone(KIND_COLLECTOR, "c")]));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, None);
    assert!(told[0].1.contains("removed[0].name: \"c\""), "{told:?}");
    let both = [gone(KIND_COLLECTOR, "c"), gone(KIND_POLICY, "p")];
    assert_eq!(all.changed(&[], &both), Ok(Objects::default()));
}

#[test]
fn every_mistake_is_told_at_once_with_its_object() {
    let mut bad = policy("Bad_Name", 0, &[], &["c"]);
    bad.capture = Some(wire::Capture {
        max_flows: Some(1),
        ..wire::Capture::default()
    });
    bad.selector = Some(wire::Selector {
        labels: [("zone".to_owned(), "a b".to_owned())].into(),
        agents: vec!["x".into(), "x".into(), "Y".into()],
    });
    let told = mistakes(Objects::default().changed(
        &[object(bad), collector("c"), collector("c"), Object { kind: None }],
        &[gone("Host", "h"), gone(KIND_POLICY, "p")],
    ));
    let at = |object, text: &str| {
        assert!(
            told.iter().any(|(n, line)| *n == object && line.contains(text)),
            "{text}: {told:#?}"
        );
    };
    at(Some(0), "name:");
    at(Some(0), "capture.maxFlows");
    at(Some(0), "selector.labels[zone]: \"a b\"");
    at(Some(0), "selector.agents[1]: \"x\" is there twice");
    at(Some(0), "selector.agents[2]: \"Y\"");
    at(Some(2), "name: \"c\" is the name of another collector");
    at(Some(3), "of no kind that this version knows");
    at(None, "removed[0].kind: \"Host\"");
    at(None, "removed[1].name: \"p\"");
}

#[test]
fn equal_priorities_are_refused_where_both_choose_an_agent() {
    let same = [
        object(policy("p", 5, &[("zone", "eu")], &[])),
        object(policy("q", 5, &[("zone", "eu")], &[])),
    ];
    let told = mistakes(Objects::default().changed(&same, &[]));
    assert_eq!(told.len(), 1);
    assert!(told[0].1.contains("priority: \"5\""), "{told:?}");

    let cross = [
        object(policy("p", 5, &[("zone", "eu")], &[])),
        object(policy("q", 5, &[("role", "db")], &[])),
    ];
    let all = set(&cross);
    assert_eq!(all.oddities().len(), 1, "{:?}", all.oddities());
    let before = Objects::default();
    let agent = name("a");
    let both = labels(&[("zone", "eu"), ("role", "db")]);
    let one = labels(&[("zone", "eu"), ("role", "web")]);
    assert_eq!(
        all.check_agents(&before, &cross, [(&agent, &one)].into_iter()),
        Ok(())
    );
    let refused = all
        .check_agents(&before, &cross, [(&agent, &both)].into_iter())
        .expect_err("refused");
    assert_eq!(refused.0[0].object, Some(1));
    assert!(refused.0[0].mistake.why.contains("policy p"), "{refused:?}");
    // One that matches both already is no fault of what is asked.
    assert_eq!(all.check_agents(&all, &[], [(&agent, &both)].into_iter()), Ok(()));
    assert_eq!(all.tied(&agent, &both), ["p", "q"]);
    assert_eq!((all.tied(&agent, &one), all.has_rivals()), (Vec::new(), true));
    assert_eq!(all.policy_for(&agent, &both, None), Some("p"));
    assert_eq!(
        all.policy_for(&agent, &both, Some("q")),
        Some("q"),
        "it keeps what it has"
    );
    assert_eq!(all.policy_for(&agent, &both, Some("x")), Some("p"));
    let apart = set(&[
        object(policy("p", 5, &[("zone", "eu")], &[])),
        object(policy("q", 5, &[("zone", "us")], &[])),
    ]);
    assert_eq!(apart.oddities(), Vec::<String>::new());
}

#[test]
fn the_highest_priority_that_matches_applies() {
    let mut named = policy("named", 9, &[("zone", "eu")], &[]);
    named.selector.as_mut().expect("a selector").agents = vec!["a".into()];
    let all = set(&[
        object(policy("all", 0, &[], &[])),
        object(policy("eu", 5, &[("zone", "eu")], &[])),
        object(named),
    ]);
    let eu = labels(&[("zone", "eu")]);
    assert_eq!(all.policy_for(&name("a"), &eu, Some("eu")), Some("named"));
    assert_eq!(all.policy_for(&name("b"), &eu, None), Some("eu"));
    assert_eq!(all.policy_for(&name("a"), &labels(&[]), None), Some("all"));
    assert_eq!(Objects::default().policy_for(&name("a"), &eu, None), None);
}

#[test]
fn an_assignment_holds_what_the_agent_needs_and_no_more() {
    let mut sent = policy("p", 7, &[("zone", "eu")], &["c"]);
    sent.rollout = Some(wire::Rollout::default());
    let all = set(&[collector("c"), collector("d"), object(sent)]);
    let made = all.assignment(Some("p"), 3);
    let policy = made.policy.expect("a policy");
    assert_eq!(
        (
            policy.name.as_str(),
            policy.priority,
            policy.selector,
            policy.rollout
        ),
        ("p", 0, None, None)
    );
    assert_eq!((made.collectors.len(), made.revision), (1, 3));
    assert_eq!(all.assignment(None, 3).policy, None);
}

#[test]
fn changes_are_told_by_object() {
    let before = set(&[collector("c"), object(policy("p", 0, &[], &["c"]))]);
    let after = before
        .changed(
            &[
                collector("d"),
                object(policy("q", 1, &[], &["d"])),
                object(policy("p", 2, &[], &[])),
            ],
            &[gone(KIND_COLLECTOR, "c")],
        )
        .expect("a set");
    let told: Vec<(String, Change)> = before
        .changes(&after)
        .into_iter()
        .map(|change| (change.object.clone().expect("a name").name, change.change()))
        .collect();
    assert_eq!(
        told,
        [
            ("c".into(), Change::Removed),
            ("p".into(), Change::Changed),
            ("d".into(), Change::Added),
            ("q".into(), Change::Added)
        ]
    );
    assert_eq!(before.changes(&before), []);
    assert_eq!(Objects::from_wire(&after.to_wire()), Ok(after));
}

fn group(name: &str, hosts: &[&str]) -> Object {
    Object {
        kind: Some(object::Kind::HostGroup(wire::HostGroup {
            name: name.to_owned(),
            hosts: hosts.iter().map(ToString::to_string).collect(),
            ..wire::HostGroup::default()
        })),
    }
}

#[test]
fn groups_of_hosts_are_kept_and_change_no_assignment() {
    let before = set(&[object(policy("p", 0, &[], &[]))]);
    let after = before.changed(&[group("web", &["a", "b"])], &[]).expect("sound");
    assert_eq!(before.assignment(Some("p"), 1), after.assignment(Some("p"), 1));
    assert_eq!(Objects::from_wire(&after.to_wire()), Ok(after.clone()));
    assert_eq!(before.changes(&after).len(), 1);
    assert_eq!(after.changed(&[], &[gone(KIND_HOST_GROUP, "web")]), Ok(before));
    assert_eq!(after.oddities(), Vec::<String>::new());
}

#[test]
fn a_host_in_two_groups_is_refused_where_it_was_sent() {
    let held = set(&[group("web", &["a", "u@b"])]);
    let told = mistakes(held.changed(&[group("db", &["c", "B"])], &[]));
    assert_eq!(
        told,
        [(
            Some(0),
            "hosts[1]: \"B\" is in group web, too; write each host in one group".to_owned()
        )]
    );
    let told = mistakes(held.changed(&[group("xen", &["-a"])], &[]));
    assert!(told.len() == 1 && told[0].1.starts_with("hosts[0]: "), "{told:?}");
    // Another port is another host.
    assert!(held.changed(&[group("db", &["a:2222"])], &[]).is_ok());
}

#[test]
fn more_than_the_store_takes_at_once_is_refused_with_the_figures() {
    // Near to the most that one policy may have.
    let large = |n: usize| {
        let mut policy = policy(&format!("p{n}"), n as u32, &[], &[]);
        let names = |rule: usize| (0..60).map(move |at| format!("/usr/lib/{:0200}", rule * 100 + at));
        let rule = |rule: usize| wire::FlowRule {
            processes: names(rule).collect(),
            ..wire::FlowRule::default()
        };
        policy.capture = Some(wire::Capture {
            exclude: (0..16).map(rule).collect(),
            ..wire::Capture::default()
        });
        object(policy)
    };
    let octets = prost::Message::encoded_len(&large(0));
    assert!(octets < ASSIGNMENT_OCTETS_MAX, "{octets}");
    // Each counts twice: as it is kept, and as it is offered.
    let fits = REVISION_OCTETS_MAX / octets / 2 - 1;
    let all: Vec<Object> = (0..=fits + 2).map(large).collect();
    let whole = set(&all[..fits]);
    let told = mistakes(whole.changed(&all[fits..], &[]));
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, None, "no object alone is too much");
    assert!(told[0].1.contains(&REVISION_OCTETS_MAX.to_string()), "{told:?}");
}
