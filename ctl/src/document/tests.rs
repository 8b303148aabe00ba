//! Files as operators write them: what is read, what is refused and where, and that anything at all ends in one of the two.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::cmd::up::samples::assert_pinned;

/// A fleet's file that is right. Shown in the documentation as well.
pub(crate) const FLEET: &str = include_str!("../../tests/fleet/fleet.yaml");
/// A fleet's file with every kind of mistake.
const WRONG: &str = include_str!("../../tests/fleet/wrong.yaml");

fn read(content: &str) -> (Documents, Vec<Complaint>) {
    Documents::read(&[Text {
        name: "fleet.yaml".to_owned(),
        content: content.to_owned(),
    }])
}

fn lines(complaints: &[Complaint]) -> String {
    complaints
        .iter()
        .map(|complaint| format!("{complaint}\n"))
        .collect()
}

#[test]
fn a_file_that_is_right_is_read_whole() {
    let (documents, complaints) = read(FLEET);
    assert_eq!(lines(&complaints), "");
    assert_eq!(lines(&documents.dangling(&BTreeSet::new())), "");
    let names: Vec<_> = documents
        .list
        .iter()
        .map(Document::name)
        .map(|n| (n.kind, n.name))
        .collect();
    let name = |kind: &str, name: &str| (kind.to_owned(), name.to_owned());
    assert_eq!(
        names,
        [
            name("Collector", "main"),
            name("Collector", "spare"),
            name("Policy", "web")
        ]
    );
    let Some(object::Kind::Policy(policy)) = &documents.list[2].object.kind else {
        panic!("the third is a policy");
    };
    let capture = policy.capture.as_ref().expect("it is there");
    assert_eq!(capture.active_timeout_ms, Some(10_000));
    assert_eq!(capture.include[0].ports, ["443", "8000-8100"]);
    assert_eq!(
        policy.rollout.as_ref().expect("it is there").waves,
        ["1", "10%", "100%"]
    );
    assert_eq!(
        policy.buffer.as_ref().expect("it is there").octets_max,
        Some(512 << 20)
    );
    assert_eq!(
        policy.selector.as_ref().expect("it is there").labels["role"],
        "web"
    );
}

#[test]
fn groups_of_hosts_are_read_and_their_mistakes_have_places() {
    let (documents, complaints) = read(include_str!("../../tests/fleet/hosts.yaml"));
    assert_eq!(lines(&complaints), "");
    let groups = documents.host_groups();
    let hosts: Vec<String> = groups[0].hosts.iter().map(ToString::to_string).collect();
    assert_eq!(
        hosts,
        [
            "deploy@web-1:22",
            "admin@192.0.2.7:22",
            "deploy@[2001:db8::1]:2222"
        ]
    );
    assert_eq!(lines(&documents.astray("localhost")), "");

    let (documents, complaints) = read(
        "apiVersion: flowtilla/v1\nkind: HostGroup\nname: web\nuser: a b\nport: 0\nhosts:\n- web-1\n- -oProxyCommand=x\n- \
         WEB-1\nhost: x\n",
    );
    assert_eq!(
        lines(&complaints),
        "fleet.yaml:4:7: user: \"a b\" has no user's name; write 1 to 32 of letters, digits, '-', '.' and '_', no '-' first\n\
         fleet.yaml:5:7: port: \"0\" is too small; write 1 to 65535\n\
         fleet.yaml:8:3: hosts[1]: \"-oProxyCommand=x\" has a host that is neither an address nor a name; write \
         [USER@]HOST[:PORT], such as web-1, admin@192.0.2.7:2222 or [2001:db8::1]:22\n\
         fleet.yaml:9:3: hosts[2]: \"WEB-1\" is in the group twice; write each host once\n\
         fleet.yaml:10:1: host: is no field here; did you mean hosts?\n"
    );
    assert!(documents.host_groups().is_empty());
}

#[test]
fn a_group_without_the_controllers_address_is_refused_where_the_operators_own_leads_nowhere() {
    let group = "apiVersion: flowtilla/v1\nkind: HostGroup\nname: web\nhosts: [web-1]\n";
    let (documents, _) = read(group);
    for own in ["localhost", "127.0.0.1", "::1"] {
        let told = lines(&documents.astray(own));
        assert!(
            told.starts_with("fleet.yaml:1:1: controller: is absent, and ") && told.contains(own),
            "{told}"
        );
    }
    assert_eq!(lines(&documents.astray("controller.example")), "");
    let (documents, _) = read(&group.replace("web-1", "localhost"));
    assert_eq!(lines(&documents.astray("localhost")), "");
}

#[test]
fn every_mistake_is_told_at_once_with_its_place() {
    let (documents, mut complaints) = read(WRONG);
    complaints.extend(documents.dangling(&BTreeSet::new()));
    assert_pinned("refusals.txt", &lines(&sorted(complaints)));
}

#[test]
fn texts_that_are_no_documents_are_refused() {
    let mut told = String::new();
    for text in [
        "a: [1\nb: 2\n",
        "- 1\n",
        "hello\n",
        "apiVersion: flowtilla/v2\nkind: Polcy\n",
        "kind: Role\n",
        "<<: {a: 1}\n",
        "a: *nope\n",
        "a: \"\u{1b}[2J\n",
        "a:\n\t- b\n",
        "apiVersion: flowtilla/v1\nkind: Policy\nname:\n",
        "? [a]\n: 1\n",
    ] {
        let (documents, complaints) = read(text);
        assert!(!complaints.is_empty(), "{text}");
        assert!(documents.objects().len() <= 1);
        told += &format!("{text:?}\n");
        for line in lines(&complaints).lines() {
            told += &format!("  {line}\n");
        }
    }
    assert_pinned("no-documents.txt", &told);
}

#[test]
fn nothing_is_no_document_and_no_mistake() {
    for text in ["", "# only a word\n", "---\n---\n# none\n"] {
        let (documents, complaints) = read(text);
        assert_eq!((documents.list.len(), complaints.len()), (0, 0), "{text:?}");
    }
}

#[test]
fn a_text_that_unfolds_without_end_is_refused() {
    let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for letter in 'b'..='i' {
        let before = char::from(letter as u8 - 1);
        let refs = vec![format!("*{before}"); 9].join(", ");
        bomb += &format!("{letter}: &{letter} [{refs}]\n");
    }
    let deep = "[".repeat(100_000);
    let many = "- x\n".repeat(250_000);
    for text in [&bomb, &deep, &many] {
        let (documents, complaints) = read(text);
        assert_eq!(documents.list.len(), 0);
        assert_eq!(complaints.len(), 1, "{}", lines(&complaints));
    }
}

#[test]
fn one_object_twice_is_refused_across_files() {
    let text = |name: &str| Text {
        name: name.to_owned(),
        content: "apiVersion: flowtilla/v1\nkind: Collector\nname: main\nendpoint: tcp://192.0.2.1:5556\n"
            .to_owned(),
    };
    let (_, complaints) = Documents::read(&[text("a.yaml"), text("b.yaml")]);
    assert_eq!(
        lines(&complaints),
        "b.yaml:3:7: name: \"main\" is also the name of the Collector at a.yaml:3; write each object once\n"
    );
}

#[test]
fn names_of_collectors_may_be_the_controllers() {
    let text = "apiVersion: flowtilla/v1\nkind: Policy\nname: p\nexport:\n  collectors:\n    - mian\n";
    let (documents, complaints) = read(text);
    assert_eq!(lines(&complaints), "");
    assert_eq!(documents.dangling(&BTreeSet::from(["mian".to_owned()])), []);
    assert_eq!(
        lines(&documents.dangling(&BTreeSet::from(["main".to_owned()]))),
        "fleet.yaml:6:7: export.collectors[0]: \"mian\" is no collector, neither in these files nor at the controller; did you mean main?\n"
    );
}

#[test]
fn what_the_controller_refuses_is_told_at_its_place() {
    let (documents, _) = read(FLEET);
    let told = |object, path: &str| wire::fleet::Mistake {
        object,
        path: path.to_owned(),
        value: Some("x".to_owned()),
        why: "is bad".to_owned(),
        remedy: "write better".to_owned(),
    };
    let lines = documents.refused(&[
        told(-1, "objects"),
        told(2, "capture.activeTimeoutMs"),
        told(9, "name"),
    ]);
    let place = place_in(FLEET, "activeTimeout: 10s", "10s");
    assert_eq!(
        lines,
        [
            format!("fleet.yaml:{place}: capture.activeTimeout: \"10s\" is bad; write better"),
            "objects: \"x\" is bad; write better".to_owned(),
            "name: \"x\" is bad; write better".to_owned(),
        ]
    );
}

/// `LINE:COLUMN` of `part` in the line that has `line` in it.
fn place_in(text: &str, line: &str, part: &str) -> String {
    let (n, found) = text
        .lines()
        .enumerate()
        .find(|(_, l)| l.contains(line))
        .expect("it is there");
    format!("{}:{}", n + 1, found.find(part).expect("it is there") + 1)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9.-]{0,12}",
        "\\PC{0,12}",
        any::<String>().prop_map(|text| text.chars().take(12).collect()),
        prop::sample::select(vec![
            "true",
            "null",
            "~",
            "1",
            "0x10",
            "1e3",
            "on",
            "- a",
            "a: b",
            "#",
            "",
            " a ",
            "'",
            "\"",
            "*a",
            "&a",
            "---",
            "a\nb\n",
            "\u{85}",
            "\u{feff}a",
            "2026-01-01",
            ".nan",
            "<<",
            "|",
            "%a",
            "10s"
        ])
        .prop_map(str::to_owned),
    ]
}

fn number() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![
        Just(None),
        (0..100_000_u64).prop_map(Some),
        any::<u64>().prop_map(Some),
        (0..60_u32).prop_map(|n| Some(1 << n))
    ]
}

fn rule() -> impl Strategy<Value = wire::FlowRule> {
    let texts = || prop::collection::vec(text(), 0..3);
    (texts(), texts(), texts(), texts(), texts()).prop_map(
        |(cidrs, ports, processes, containers, pod_labels)| wire::FlowRule {
            cidrs,
            ports,
            processes,
            containers,
            pod_labels,
            ..wire::FlowRule::default()
        },
    )
}

fn scope() -> impl Strategy<Value = wire::Scope> {
    prop_oneof![
        text().prop_map(|path| Some(wire::scope::Part::Cgroup(path))),
        text().prop_map(|path| Some(wire::scope::Part::Netns(path))),
        Just(None),
    ]
    .prop_map(|part| wire::Scope { part })
}

fn policy() -> impl Strategy<Value = wire::Policy> {
    let capture = (
        any::<Option<bool>>(),
        number(),
        number(),
        prop::collection::vec(scope(), 0..3),
        prop::collection::vec(rule(), 0..3),
        prop::option::of(number().prop_map(|one_in| wire::Sampling { one_in })),
    )
        .prop_map(
            |(tcp, max_flows, idle_timeout_ms, scopes, include, sampling)| wire::Capture {
                tcp,
                max_flows,
                idle_timeout_ms,
                scopes,
                include,
                sampling,
                ..wire::Capture::default()
            },
        );
    let selector = (
        prop::collection::btree_map(text(), text(), 0..3),
        prop::collection::vec(text(), 0..3),
    )
        .prop_map(|(labels, agents)| wire::Selector { labels, agents });
    let export =
        (prop::collection::vec(text(), 0..3), 0..4, 0..3).prop_map(|(collectors, loopback, mode)| {
            wire::Export {
                collectors,
                loopback,
                mode,
                ..wire::Export::default()
            }
        });
    let containers = (any::<Option<bool>>(), prop::collection::vec(text(), 0..3))
        .prop_map(|(names, sockets)| wire::Containers { names, sockets });
    let buffer = (number(), number()).prop_map(|(octets_max, age_max_ms)| wire::Buffer {
        octets_max,
        age_max_ms,
        ..wire::Buffer::default()
    });
    (
        text(),
        any::<u32>(),
        prop::option::of(selector),
        prop::option::of(capture),
        prop::option::of(
            ((0..4), prop::option::of(containers)).prop_map(|(command_line, containers)| wire::Enrich {
                command_line,
                containers,
            }),
        ),
        prop::option::of(export),
        prop::option::of(buffer),
    )
        .prop_map(
            |(name, priority, selector, capture, enrich, export, buffer)| wire::Policy {
                name,
                priority,
                selector,
                capture,
                enrich,
                export,
                buffer,
                ..wire::Policy::default()
            },
        )
}

fn collector() -> impl Strategy<Value = wire::Collector> {
    (
        text(),
        text(),
        prop::option::of(text()),
        0..4,
        0..3,
        number(),
        number(),
        any::<Option<bool>>(),
    )
        .prop_map(
            |(
                name,
                endpoint,
                curve_server_key,
                header_version,
                encoding,
                window_octets,
                records_per_second,
                record_ids,
            )| {
                wire::Collector {
                    name,
                    endpoint,
                    curve_server_key,
                    header_version,
                    encoding,
                    window_octets,
                    records_per_second,
                    record_ids,
                    ..wire::Collector::default()
                }
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_the_same(policy in policy(), collector in collector()) {
        let objects = [
            Object { kind: Some(object::Kind::Policy(policy)) },
            Object { kind: Some(object::Kind::Collector(collector)) },
        ];
        let text = render::yaml(&objects);
        let (documents, complaints) = read(&text);
        prop_assert_eq!(documents.objects(), objects, "{}\n{}", text, lines(&complaints));
    }

    #[test]
    fn whatever_is_changed_gives_objects_or_places_within_the_file(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<Change>()), 1..6),
        wrong in any::<bool>(),
    ) {
        let mut text: Vec<char> = if wrong { WRONG } else { FLEET }.chars().collect();
        for (at, change) in changes {
            change.apply(&mut text, at);
        }
        let text: String = text.into_iter().collect();
        let (documents, mut complaints) = read(&text);
        complaints.extend(documents.dangling(&BTreeSet::new()));
        let line_lengths: BTreeMap<u64, u64> =
            (1..).zip(text.lines().map(|line| line.chars().count() as u64)).collect();
        for complaint in &complaints {
            let Place { line, column } = complaint.place;
            let length = line_lengths.get(&line).copied().or((line == 1).then_some(0));
            prop_assert!(length.is_some_and(|length| (1..=length + 1).contains(&column)), "{}", complaint);
            prop_assert_eq!(complaint.to_string().lines().count(), 1);
        }
        if complaints.is_empty() {
            for document in &documents.list {
                prop_assert_eq!(judge(&document.object), []);
            }
        }
    }
}

/// A change of a text.
#[derive(Clone, Debug)]
enum Change {
    Remove(usize),
    Insert(String),
    Repeat(usize),
    Swap(prop::sample::Index),
}

impl Arbitrary for Change {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        prop_oneof![
            (1..40_usize).prop_map(Self::Remove),
            text().prop_map(Self::Insert),
            prop::sample::select(vec![
                "\n",
                "  ",
                ": ",
                "- ",
                "[",
                "}",
                "\t",
                "\r",
                "\0",
                "ü",
                "!!int ",
                "99999999999999999999"
            ])
            .prop_map(|text| Self::Insert(text.to_owned())),
            (1..80_usize).prop_map(Self::Repeat),
            any::<prop::sample::Index>().prop_map(Self::Swap),
        ]
        .boxed()
    }
}

impl Change {
    fn apply(self, text: &mut Vec<char>, at: prop::sample::Index) {
        if text.is_empty() {
            return;
        }
        let at = at.index(text.len());
        match self {
            Self::Remove(n) => drop(text.drain(at..(at + n).min(text.len()))),
            Self::Insert(new) => drop(text.splice(at..at, new.chars())),
            Self::Repeat(n) => {
                let again = text[at..(at + n).min(text.len())].to_vec();
                text.splice(at..at, again);
            }
            Self::Swap(other) => {
                let other = other.index(text.len());
                text.swap(at, other);
            }
        }
    }
}
