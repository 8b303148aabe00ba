//! Rules against a naive model that reads them as they were written, and what one flow sees of a change.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};

use flowtilla_proto::policy::Policy;
use flowtilla_proto::wire;
use proptest::prelude::*;

use super::*;
use crate::enrich::container::{ContainerFacts, ContainerId, PodFacts};
use crate::flow::record::{BootId, CollectorSet, Counting, Party, Traffic};
use crate::observe::{Endpoint, NetNs};
use crate::owner::{Confidence, Names, Owner, Process, ProcessKey, Unknown};
use crate::time::{KernelTime, WallTime};

const FLOWS_MAX: usize = 100;

fn filtering(include: Vec<wire::FlowRule>, exclude: Vec<wire::FlowRule>, one_in: u64) -> Filtering {
    let policy = Policy::try_from(wire::Policy {
        capture: Some(wire::Capture {
            include,
            exclude,
            sampling: Some(wire::Sampling { one_in: Some(one_in) }),
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    })
    .unwrap_or_else(|mistakes| panic!("{mistakes}"));
    Filtering {
        include: policy.capture.include,
        exclude: policy.capture.exclude,
        sampling: policy.capture.sampling,
    }
}

fn filter(include: Vec<wire::FlowRule>, exclude: Vec<wire::FlowRule>, one_in: u64) -> Filter {
    Filter::new(&filtering(include, exclude, one_in), FLOWS_MAX).expect("something is left out")
}

fn ports(texts: &[&str]) -> wire::FlowRule {
    wire::FlowRule {
        ports: texts.iter().map(ToString::to_string).collect(),
        ..wire::FlowRule::default()
    }
}

fn owner(comm: &str, executable: Option<&str>, uid: u32, user: Option<&str>, cgroup: u64) -> Owner {
    Owner {
        confidence: Confidence::Exact,
        process: Some(Process {
            key: ProcessKey {
                pid: 7,
                start: KernelTime(1),
            },
            parent_pid: 1,
            uid,
            gid: 0,
            cgroup_id: cgroup,
            comm: comm.into(),
        }),
        names: Some(Arc::new(Names {
            executable: executable.map(str::to_owned),
            user: user.map(str::to_owned),
            ..Names::default()
        })),
    }
}

fn record(cookie: u64, part: u32, initiator: Party, responder: Party) -> FlowRecord {
    let at = WallTime(1);
    FlowRecord {
        id: RecordId {
            boot: BootId([7; 16]),
            cookie: Cookie(cookie),
            stream: 0,
            part,
        },
        first: part == 1,
        protocol: Protocol::Tcp,
        initiator,
        responder,
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta: Traffic::default(),
        total: Traffic::default(),
        start: at,
        delta_start: at,
        end: at,
        tcp: None,
        reason: EndReason::ActiveTimeout,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

fn party(address: IpAddr, port: u16, owner: Owner) -> Party {
    Party {
        endpoint: Endpoint { address, port },
        owner,
    }
}

fn simple(cookie: u64, part: u32, port: u16, comm: &str) -> FlowRecord {
    record(
        cookie,
        part,
        party(
            Ipv4Addr::new(10, 0, 0, 1).into(),
            40_000,
            owner(comm, None, 0, None, 0),
        ),
        party(
            Ipv4Addr::new(192, 0, 2, 1).into(),
            port,
            Owner::unknown(Unknown::Remote),
        ),
    )
}

fn judge(filter: &mut Filter, record: &FlowRecord) -> Verdict {
    filter.judge(record, |_| Whereabouts::default())
}

#[test]
fn without_rules_and_sampling_there_is_no_filter() {
    assert!(Filter::new(&Filtering::default(), FLOWS_MAX).is_none());
    assert!(Filter::new(&filtering(vec![], vec![], 1), FLOWS_MAX).is_none());
}

#[test]
fn an_exclude_rule_wins_over_an_include_rule() {
    let mut filter = filter(vec![ports(&["1-1000"])], vec![ports(&["443"])], 1);
    assert_eq!(judge(&mut filter, &simple(1, 1, 80, "x")), Verdict::Kept);
    assert_eq!(judge(&mut filter, &simple(2, 1, 443, "x")), Verdict::Filtered);
    assert_eq!(judge(&mut filter, &simple(3, 1, 2000, "x")), Verdict::Filtered);
}

#[test]
fn what_another_host_tells_of_its_end_decides_nothing() {
    let curl = wire::FlowRule {
        processes: vec!["curl".into()],
        ..wire::FlowRule::default()
    };
    let mut filter = filter(vec![], vec![curl], 1);
    let mut record = simple(1, 1, 80, "sh");
    record.responder.owner = owner("curl", None, 0, None, 0);
    record.responder.owner.confidence = Confidence::Told;
    assert_eq!(judge(&mut filter, &record), Verdict::Kept);
    record.id.cookie.0 = 2;
    record.responder.owner.confidence = Confidence::Exact;
    assert_eq!(judge(&mut filter, &record), Verdict::Filtered);
}

#[test]
fn a_flow_keeps_its_decision_whatever_becomes_of_its_process() {
    let curl = wire::FlowRule {
        processes: vec!["curl".into()],
        ..wire::FlowRule::default()
    };
    let mut filter = filter(vec![], vec![curl], 1);
    assert_eq!(judge(&mut filter, &simple(1, 1, 80, "sh")), Verdict::Kept);
    assert_eq!(judge(&mut filter, &simple(1, 2, 80, "curl")), Verdict::Kept);
    assert_eq!(judge(&mut filter, &simple(2, 1, 80, "curl")), Verdict::Filtered);
    let mut last = simple(2, 2, 80, "sh");
    last.reason = EndReason::EndOfFlow;
    assert_eq!(judge(&mut filter, &last), Verdict::Filtered);
    assert_eq!(filter.decided.len(), 1, "the flow that ended is forgotten");
    // Another flow of the same socket is another flow.
    let mut other = simple(2, 1, 80, "sh");
    other.id.stream = 1;
    assert_eq!(judge(&mut filter, &other), Verdict::Kept);
}

/// A place of [`TOLD`] for both ends of a flow, or for one that has an owner.
fn within(cookie: u64, places: [Option<usize>; 2]) -> FlowRecord {
    let [one, other] = places.map(|told| made(&(0, 1, told.map(|told| (0, true, 0, told)))));
    record(cookie, 1, one, other)
}

#[test]
fn a_whole_container_is_left_out_and_what_others_do_with_it_is_told() {
    let web = wire::FlowRule {
        containers: vec!["web".into()],
        ..wire::FlowRule::default()
    };
    let db = wire::FlowRule {
        images: vec!["db".into(), "shop/db:1".into()],
        ..wire::FlowRule::default()
    };
    let mut filter = filter(vec![], vec![web, db], 1);
    for (cookie, places, verdict) in [
        (1, [Some(2), None], Verdict::Filtered),
        (2, [None, Some(2)], Verdict::Filtered),
        (3, [Some(2), Some(2)], Verdict::Filtered),
        (4, [Some(2), Some(4)], Verdict::Filtered),
        // Something else on this host.
        (5, [Some(2), Some(0)], Verdict::Kept),
        (6, [Some(1), Some(2)], Verdict::Kept),
        (7, [Some(0), None], Verdict::Kept),
        (8, [None, None], Verdict::Kept),
    ] {
        assert_eq!(
            filter.judge(&within(cookie, places), whereabouts),
            verdict,
            "{places:?}"
        );
    }
    assert_eq!((filter.take_unnamed(), filter.take_unnamed()), (1, 0));
}

#[test]
fn a_container_that_nobody_named_is_neither_included_nor_excluded_and_is_counted() {
    let any = || wire::FlowRule {
        containers: vec!["*".into()],
        ..wire::FlowRule::default()
    };
    let mut included = filter(vec![any()], vec![], 1);
    let mut excluded = filter(vec![], vec![any()], 1);
    for (n, told) in [1, 2].into_iter().enumerate() {
        let record = within(told as u64, [Some(told), None]);
        assert_eq!(included.judge(&record, whereabouts) == Verdict::Kept, n == 1);
        assert_eq!(excluded.judge(&record, whereabouts) == Verdict::Kept, n == 0);
    }
    assert_eq!((included.take_unnamed(), excluded.take_unnamed()), (1, 1));
    // Nobody counts what no rule asks for.
    let mut ports = filter(vec![], vec![ports(&["443"])], 1);
    assert_eq!(
        ports.judge(&within(1, [Some(1), None]), whereabouts),
        Verdict::Kept
    );
    assert_eq!(ports.take_unnamed(), 0);
}

#[test]
fn decisions_are_bounded_by_the_most_flows() {
    let mut filter = filter(vec![], vec![ports(&["443"])], 1);
    for cookie in 0..10 * FLOWS_MAX as u64 {
        assert_eq!(judge(&mut filter, &simple(cookie, 1, 80, "x")), Verdict::Kept);
    }
    assert_eq!(filter.decided.len(), FLOWS_MAX);
    filter.set_flows_max(10);
    assert_eq!(filter.decided.len(), 10);
}

#[test]
fn a_flow_of_one_record_is_not_remembered() {
    let mut filter = filter(vec![], vec![ports(&["443"])], 1);
    let mut only = simple(1, 1, 443, "x");
    only.reason = EndReason::EndOfFlow;
    assert_eq!(judge(&mut filter, &only), Verdict::Filtered);
    assert_eq!(filter.decided.len(), 0);
}

#[test]
fn sampling_keeps_about_its_share_and_every_record_of_a_flow() {
    for one_in in [2_u64, 4, 10, 100] {
        let mut filter = filter(vec![], vec![], one_in);
        let flows = 100_000_u64;
        let mut kept = 0;
        for cookie in 0..flows {
            // Sockets of clients have every second cookie.
            let first = judge(&mut filter, &simple(2 * cookie, 1, 80, "x"));
            let mut last = simple(2 * cookie, 9, 443, "y");
            last.reason = EndReason::Reset;
            assert_eq!(judge(&mut filter, &last), first);
            kept += u64::from(first == Verdict::Kept);
        }
        // Six standard deviations of a fair draw.
        let share = 1.0 / one_in as f64;
        let spread = 6.0 * (flows as f64 * share * (1.0 - share)).sqrt();
        let off = (kept as f64 - flows as f64 * share).abs();
        assert!(off < spread, "1/{one_in}: {kept} of {flows}");
    }
}

#[test]
fn a_flow_kept_one_in_eight_is_kept_one_in_four() {
    let (mut eight, mut four) = (filter(vec![], vec![], 8), filter(vec![], vec![], 4));
    for cookie in 0..10_000 {
        let record = simple(cookie, 1, 80, "x");
        if judge(&mut eight, &record) == Verdict::Kept {
            assert_eq!(judge(&mut four, &record), Verdict::Kept);
        }
    }
}

#[test]
fn which_flows_are_kept_does_not_change_with_the_version() {
    let mut filter = filter(vec![], vec![], 4);
    let kept: Vec<u64> = (1..=40)
        .filter(|&cookie| judge(&mut filter, &simple(cookie, 1, 80, "x")) == Verdict::Kept)
        .collect();
    assert_eq!(kept, PINNED);
}

/// A change of these keeps other flows after an upgrade than before.
const PINNED: [u64; 6] = [2, 13, 21, 30, 31, 39];

#[test]
fn peers_of_one_udp_socket_are_sampled_each_for_itself() {
    let mut filter = filter(vec![], vec![], 4);
    let kept = (0..1_000)
        .filter(|&stream| {
            let mut record = simple(5, 1, 53, "x");
            record.protocol = Protocol::Udp;
            record.id.stream = stream;
            judge(&mut filter, &record) == Verdict::Kept
        })
        .count();
    assert!((150..350).contains(&kept), "{kept} of 1000");
    // A connection that goes on after a restart is the same one.
    let tcp = |filter: &mut Filter, stream| {
        let mut record = simple(5, 1, 53, "x");
        record.id.stream = stream;
        judge(filter, &record)
    };
    let first = tcp(&mut filter, 0);
    assert!((1..100).all(|stream| tcp(&mut filter, stream) == first));
}

#[test]
fn what_the_rules_leave_out_is_not_counted_as_sampled_out() {
    let mut filter = filter(vec![], vec![ports(&["443"])], 1_000_000);
    assert_eq!(judge(&mut filter, &simple(1, 1, 443, "x")), Verdict::Filtered);
    assert_eq!(judge(&mut filter, &simple(2, 1, 80, "x")), Verdict::SampledOut);
}

#[test]
#[ignore = "prints times: run alone, in release"]
#[expect(clippy::disallowed_methods, reason = "it measures real time")]
fn cost_of_a_verdict() {
    let member = |set: fn(&mut wire::FlowRule) -> &mut Vec<String>, text: &str| {
        let mut rule = wire::FlowRule::default();
        set(&mut rule).push(text.into());
        rule
    };
    let exclude = vec![
        member(|rule| &mut rule.cidrs, "198.51.100.0/24"),
        member(|rule| &mut rule.cidrs, "2001:db8::/32"),
        member(|rule| &mut rule.ports, "53"),
        member(|rule| &mut rule.ports, "100-1000"),
        member(|rule| &mut rule.processes, "agentctl"),
        member(|rule| &mut rule.processes, "*-exporter"),
        member(|rule| &mut rule.processes, "/opt/*/bin/*"),
        member(|rule| &mut rule.users, "backup"),
        member(|rule| &mut rule.users, "65534"),
        member(|rule| &mut rule.cgroups, "/system.slice/backup.service"),
    ];
    let path = Some("/usr/lib/service-7/bin/worker");
    let records: Vec<FlowRecord> = (0..1_000)
        .map(|cookie| {
            let mut record = simple(cookie, 1, 8_080, "worker");
            record.initiator.owner = owner("worker", path, 1_000, Some("service"), 7);
            record.responder.owner = owner("worker", path, 1_001, Some("service"), 8);
            record
        })
        .collect();
    for (name, last, mut filter) in [
        (
            "ten rules, flows of one record",
            true,
            filter(vec![], exclude.clone(), 1),
        ),
        (
            "ten rules, later records of a flow",
            false,
            filter(vec![], exclude, 1),
        ),
        ("sampling", true, filter(vec![], vec![], 1_000_000)),
    ] {
        filter.set_flows_max(65_536);
        let mut records = records.clone();
        for record in &mut records {
            record.reason = if last {
                EndReason::EndOfFlow
            } else {
                EndReason::ActiveTimeout
            };
        }
        let began = std::time::Instant::now();
        for _ in 0..1_000 {
            for record in &records {
                let verdict = filter.judge(std::hint::black_box(record), |_| Whereabouts {
                    cgroup: Some("/user.slice/user-1000.slice"),
                    ..Whereabouts::default()
                });
                let _ = std::hint::black_box(verdict);
            }
        }
        println!("{name}: {} ns a record", began.elapsed().as_nanos() / 1_000_000);
    }
}

const CIDRS: [&str; 7] = [
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "2001:db8::/32",
    "::1",
];
const ADDRESSES: [&str; 7] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.2.0.1",
    "192.0.2.9",
    "127.0.0.1",
    "2001:db8::1",
    "::1",
];
const PORTS: [&str; 5] = ["53", "80", "80-443", "1-65535", "8000-9000"];
const PORTS_USED: [u16; 7] = [0, 53, 80, 81, 443, 8_500, 40_000];
const PROCESSES: [&str; 8] = [
    "curl",
    "cu*",
    "*",
    "/usr/bin/*",
    "/usr/bin/curl",
    "*l",
    "nginx",
    "/opt/*/x",
];
const PROGRAMS: [Option<&str>; 6] = [
    None,
    Some("/usr/bin/curl"),
    Some("/usr/sbin/nginx"),
    Some("/opt/a/b/x"),
    Some("/opt/curl"),
    Some("/"),
];
const USERS: [&str; 4] = ["root", "0", "anna", "1000"];
const CGROUPS: [&str; 3] = ["/a", "/a/b", "/system.slice"];
const PATHS: [Option<&str>; 6] = [
    None,
    Some("/"),
    Some("/a"),
    Some("/ab"),
    Some("/a/b/c"),
    Some("/system.slice/x"),
];

const CONTAINERS: [&str; 4] = ["web", "web-*", "*", "db"];
const IMAGES: [&str; 3] = ["shop/web:1", "*:1", "db"];
const NAMESPACES: [&str; 3] = ["shop", "kube-*", "*"];
const POD_LABELS: [&str; 4] = ["app=web", "app", "tier=", "app=db"];

/// Name, image, and of a pod the namespace and its labels.
type Told = (&'static str, &'static str, Option<PodTold>);
type PodTold = (&'static str, &'static [(&'static str, &'static str)]);

/// Containers: none, one that nobody told of, and others.
const TOLD: [Option<Option<Told>>; 6] = [
    None,
    Some(None),
    Some(Some(("web", "shop/web:1", None))),
    Some(Some((
        "web-2",
        "db",
        Some(("shop", &[("app", "web"), ("tier", "")])),
    ))),
    Some(Some(("db", "shop/db:1", Some(("kube-system", &[("app", "db")]))))),
    Some(Some(("web", "shop/web:1", Some(("shop", &[]))))),
];

/// One end as numbers into the lists above: address, port, and of an owner program, whether it is root, cgroup, container.
type End = (usize, usize, Option<(usize, bool, usize, usize)>);
/// A rule likewise.
type Lists = [Vec<usize>; 9];

fn ends() -> impl Strategy<Value = End> {
    let owner = (0..PROGRAMS.len(), any::<bool>(), 0..PATHS.len(), 0..TOLD.len());
    (0..ADDRESSES.len(), 0..PORTS_USED.len(), prop::option::of(owner))
}

fn lists() -> impl Strategy<Value = Lists> {
    let some = |n: usize| {
        prop_oneof![
            2 => Just(Vec::new()),
            1 => prop::collection::btree_set(0..n, 0..3).prop_map(|set| set.into_iter().collect::<Vec<_>>()),
        ]
    };
    (
        some(CIDRS.len()),
        some(PORTS.len()),
        some(PROCESSES.len()),
        some(USERS.len()),
        some(CGROUPS.len()),
        some(CONTAINERS.len()),
        some(IMAGES.len()),
        some(NAMESPACES.len()),
        some(POD_LABELS.len()),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i)| [a, b, c, d, e, f, g, h, i])
        .prop_filter("a rule has members", |lists| {
            lists.iter().any(|list| !list.is_empty())
        })
}

fn written(lists: &Lists) -> wire::FlowRule {
    let texts = |list: &[usize], all: &[&str]| list.iter().map(|&n| all[n].to_owned()).collect();
    wire::FlowRule {
        cidrs: texts(&lists[0], &CIDRS),
        ports: texts(&lists[1], &PORTS),
        processes: texts(&lists[2], &PROCESSES),
        users: texts(&lists[3], &USERS),
        cgroups: texts(&lists[4], &CGROUPS),
        containers: texts(&lists[5], &CONTAINERS),
        images: texts(&lists[6], &IMAGES),
        namespaces: texts(&lists[7], &NAMESPACES),
        pod_labels: texts(&lists[8], &POD_LABELS),
    }
}

/// User 0 is root, the other is anna. The command name is that of the file, or `kernel`.
fn made(end: &End) -> Party {
    let &(address, port, owned) = end;
    let owner = match owned {
        None => Owner::unknown(Unknown::Remote),
        Some((program, root, path, told)) => {
            let executable = PROGRAMS[program];
            let comm = executable.map_or("kernel", |path| path.rsplit('/').next().unwrap_or_default());
            let (uid, user) = if root { (0, "root") } else { (1000, "anna") };
            owner(
                comm,
                executable,
                uid,
                Some(user),
                (1 + path + PATHS.len() * told) as u64,
            )
        }
    };
    party(
        ADDRESSES[address].parse().expect("an address"),
        PORTS_USED[port],
        owner,
    )
}

/// What runtimes told of each container of [`TOLD`].
static FACTS: LazyLock<Vec<Option<ContainerFacts>>> = LazyLock::new(|| {
    let id = ContainerId::parse(&"7".repeat(64)).expect("an id");
    let facts = |(name, image, pod): Told| {
        let facts = ContainerFacts::new(id, name, image, [])?;
        let Some((namespace, labels)) = pod else {
            return Some(facts);
        };
        let pod = PodFacts::new(namespace, "pod-0", None, labels.iter().copied())?;
        Some(facts.of_pod(Arc::new(pod)))
    };
    TOLD.iter().map(|told| told.flatten().and_then(facts)).collect()
});

/// Where an owner of [`made`] is.
fn whereabouts<'a>(owner: &Owner) -> Whereabouts<'a> {
    let Some(process) = &owner.process else {
        return Whereabouts::default();
    };
    let number = usize::try_from(process.cgroup_id - 1).expect("a small number");
    let (path, told) = (number % PATHS.len(), number / PATHS.len());
    Whereabouts {
        cgroup: PATHS[path],
        container: FACTS[told].as_ref(),
        unnamed: TOLD[told] == Some(None),
    }
}

/// Whether an exclude rule means cgroups as wholes.
fn is_whole(rule: &wire::FlowRule) -> bool {
    [&rule.cidrs, &rule.ports, &rule.processes, &rule.users]
        .into_iter()
        .all(Vec::is_empty)
}

/// Whether everything that these ends have of a place is left out by one of the whole rules.
fn whole_model(rules: &[wire::FlowRule], ends: &[End; 2]) -> bool {
    let mut own = ends.iter().filter(|end| end.2.is_some()).peekable();
    own.peek().is_some()
        && own.all(|end| {
            rules
                .iter()
                .any(|rule| is_whole(rule) && model(rule, &[*end, *end]))
        })
}

/// What the contract says, read from the words of the rule: bit by bit, character by character.
fn model(rule: &wire::FlowRule, ends: &[End; 2]) -> bool {
    let either = |list: &[String], member: &dyn Fn(&str, &End) -> bool| {
        list.is_empty() || list.iter().any(|text| ends.iter().any(|end| member(text, end)))
    };
    let owned = |end: &End, see: &dyn Fn(usize, bool, usize) -> bool| {
        end.2
            .is_some_and(|(program, root, path, _)| see(program, root, path))
    };
    let told = |end: &End, see: &dyn Fn(Told) -> bool| {
        end.2
            .is_some_and(|(_, _, _, told)| TOLD[told].flatten().is_some_and(see))
    };
    either(&rule.cidrs, &|text, end| in_network(text, ADDRESSES[end.0]))
        && either(&rule.ports, &|text, end| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let number = |text: &str| text.parse::<u16>().expect("a port");
            (number(first)..=number(last)).contains(&PORTS_USED[end.1])
        })
        && either(&rule.processes, &|text, end| {
            owned(
                end,
                &|program, _, _| match (PROGRAMS[program], text.starts_with('/')) {
                    (Some(path), true) => glob(text, path),
                    (Some(path), false) => glob(text, path.rsplit('/').next().unwrap_or_default()),
                    (None, true) => false,
                    (None, false) => glob(text, "kernel"),
                },
            )
        })
        && either(&rule.users, &|text, end| {
            owned(end, &|_, root, _| {
                [["anna", "1000"], ["root", "0"]][usize::from(root)].contains(&text)
            })
        })
        && either(&rule.cgroups, &|text, end| {
            owned(end, &|_, _, path| {
                PATHS[path].is_some_and(|path| format!("{path}/").starts_with(&format!("{text}/")))
            })
        })
        && either(&rule.containers, &|text, end| {
            told(end, &|told| glob(text, told.0))
        })
        && either(&rule.images, &|text, end| told(end, &|told| glob(text, told.1)))
        && either(&rule.namespaces, &|text, end| {
            told(end, &|told| {
                told.2.is_some_and(|(namespace, _)| glob(text, namespace))
            })
        })
        && either(&rule.pod_labels, &|text, end| {
            told(end, &|told| {
                let labels = told.2.map_or(&[][..], |(_, labels)| labels);
                labels
                    .iter()
                    .any(|(key, value)| text == *key || text == format!("{key}={value}"))
            })
        })
}

fn in_network(cidr: &str, address: &str) -> bool {
    let bits = |text: &str| -> String {
        match text.parse::<IpAddr>().expect("an address") {
            IpAddr::V4(address) => format!("{:032b}", address.to_bits()),
            IpAddr::V6(address) => format!("{:0128b}", address.to_bits()),
        }
    };
    let (network, length) = cidr.split_once('/').unwrap_or((cidr, "999"));
    let (network, address) = (bits(network), bits(address));
    let length = network.len().min(length.parse().expect("a length"));
    network.len() == address.len() && network[..length] == address[..length]
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_at_checked(1) {
        None => text.is_empty(),
        Some(("*", rest)) => (0..=text.len()).any(|at| glob(rest, &text[at..])),
        Some((letter, rest)) => text.strip_prefix(letter).is_some_and(|text| glob(rest, text)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rules_mean_what_is_written(
        include in prop::collection::vec(lists(), 0..3),
        exclude in prop::collection::vec(lists(), 0..3),
        ends in [ends(), ends()],
    ) {
        prop_assume!(!include.is_empty() || !exclude.is_empty());
        let (include, exclude): (Vec<_>, Vec<_>) = (include.iter().map(written).collect(), exclude.iter().map(written).collect());
        let included = include.is_empty() || include.iter().any(|rule| model(rule, &ends));
        let excluded = exclude.iter().any(|rule| !is_whole(rule) && model(rule, &ends));
        let kept = included && !excluded && !whole_model(&exclude, &ends);
        let mut filter = filter(include, exclude, 1);
        let record = record(1, 1, made(&ends[0]), made(&ends[1]));
        let verdict = filter.judge(&record, whereabouts);
        prop_assert_eq!(verdict == Verdict::Kept, kept);
        // The ends have no order.
        let turned = super::tests::record(2, 1, made(&ends[1]), made(&ends[0]));
        prop_assert_eq!(filter.judge(&turned, whereabouts), verdict);
    }

    /// Over any history, each flow has one verdict: that of its first record.
    #[test]
    fn a_flow_has_one_verdict(history in prop::collection::vec((0_u64..20, 0..PORTS_USED.len(), prop::bool::weighted(0.2)), 1..200)) {
        let mut filter = filter(vec![], vec![ports(&["80-443"])], 3);
        let mut streams: HashMap<u64, (u64, u32, Option<Verdict>)> = HashMap::new();
        for (cookie, port, last) in history {
            let (stream, part, verdict) = streams.entry(cookie).or_insert((0, 0, None));
            *part += 1;
            let mut record = simple(cookie, *part, PORTS_USED[port], "x");
            record.id.stream = *stream;
            if last {
                record.reason = EndReason::EndOfFlow;
            }
            let now = judge(&mut filter, &record);
            prop_assert_eq!(*verdict.get_or_insert(now), now);
            if last {
                (*stream, *part, *verdict) = (*stream + 1, 0, None);
            }
        }
        prop_assert!(filter.decided.len() <= 20);
    }
}
