//! Each field: what it refuses stands beside what it takes.

use super::*;
use crate::wire::scope::Part;

fn parse(sent: wire::Policy) -> Result<Policy, String> {
    Policy::try_from(sent).map_err(|mistakes| mistakes.to_string())
}

fn with_capture(capture: wire::Capture) -> Result<Capture, String> {
    parse(wire::Policy {
        capture: Some(capture),
        ..wire::Policy::default()
    })
    .map(|policy| policy.capture)
}

fn with_export(export: wire::Export) -> Result<Export, String> {
    parse(wire::Policy {
        export: Some(export),
        ..wire::Policy::default()
    })
    .map(|policy| policy.export)
}

fn with_scopes(parts: Vec<Part>) -> Result<Vec<String>, String> {
    let scopes = parts
        .into_iter()
        .map(|part| wire::Scope { part: Some(part) })
        .collect();
    with_capture(wire::Capture {
        scopes,
        ..wire::Capture::default()
    })
    .map(|capture| capture.scopes.iter().map(ToString::to_string).collect())
}

fn cgroup(path: &str) -> Result<Vec<String>, String> {
    with_scopes(vec![Part::Cgroup(path.into())])
}

fn netns(path: &str) -> Result<Vec<String>, String> {
    with_scopes(vec![Part::Netns(path.into())])
}

#[test]
fn an_empty_policy_has_the_documented_defaults() {
    let policy = parse(wire::Policy::default()).expect("it is sound");
    assert!(policy.capture.tcp && policy.capture.udp && policy.capture.scopes.is_empty());
    assert_eq!(policy.capture.max_flows, 65_536);
    assert_eq!(policy.capture.active_timeout, Duration::from_secs(10));
    assert_eq!(policy.capture.idle_timeout, Duration::from_secs(15));
    assert!(policy.capture.include.is_empty() && policy.capture.exclude.is_empty());
    assert_eq!(policy.capture.sampling.one_in.get(), 1);
    assert_eq!(policy.limits, Limits::default());
    assert_eq!(policy.enrich.command_line, CommandLine::Redacted);
    assert!(policy.export.collectors.is_empty() && policy.export.mode == Mode::Mirror);
    assert_eq!(policy.export.loopback, Loopback::HostAddress);
    assert_eq!(
        policy.buffer,
        Buffer {
            octets_max: 1 << 30,
            age_max: Duration::from_secs(7 * 24 * 3600),
            free_octets_min: 256 << 20,
            sync_interval: Duration::from_millis(500),
        }
    );
}

#[test]
fn one_protocol_may_be_off_but_not_both() {
    let with = |tcp, udp| {
        with_capture(wire::Capture {
            tcp,
            udp,
            ..wire::Capture::default()
        })
    };
    let off = with(Some(true), Some(false)).expect("one is on");
    assert!(off.tcp && !off.udp);
    let off = with(Some(false), None).expect("one is on");
    assert!(!off.tcp && off.udp);
    assert_eq!(
        with(Some(false), Some(false)).expect_err("both are off"),
        "capture: neither tcp nor udp is captured; leave one of them on"
    );
}

#[test]
fn numbers_are_taken_at_their_bounds_and_refused_beyond() {
    type Set = fn(&mut wire::Policy, u64);
    let fields: [(&str, Set, &RangeInclusive<u64>); 10] = [
        (
            "capture.maxFlows",
            |sent, n| sent.capture.get_or_insert_default().max_flows = Some(n),
            &MAX_FLOWS,
        ),
        (
            "capture.activeTimeoutMs",
            |sent, n| sent.capture.get_or_insert_default().active_timeout_ms = Some(n),
            &ACTIVE_TIMEOUT_MS,
        ),
        (
            "capture.idleTimeoutMs",
            |sent, n| sent.capture.get_or_insert_default().idle_timeout_ms = Some(n),
            &IDLE_TIMEOUT_MS,
        ),
        (
            "capture.sampling.oneIn",
            |sent, n| {
                let capture = sent.capture.get_or_insert_default();
                capture.sampling.get_or_insert_default().one_in = Some(n);
            },
            &ONE_IN,
        ),
        (
            "limits.cpuPermille",
            |sent, n| sent.limits.get_or_insert_default().cpu_permille = Some(n),
            &CPU_PERMILLE,
        ),
        (
            "limits.memoryOctets",
            |sent, n| sent.limits.get_or_insert_default().memory_octets = Some(n),
            &MEMORY_OCTETS,
        ),
        (
            "buffer.octetsMax",
            |sent, n| sent.buffer.get_or_insert_default().octets_max = Some(n),
            &BUFFER_OCTETS,
        ),
        (
            "buffer.ageMaxMs",
            |sent, n| sent.buffer.get_or_insert_default().age_max_ms = Some(n),
            &BUFFER_AGE_MS,
        ),
        (
            "buffer.freeOctetsMin",
            |sent, n| sent.buffer.get_or_insert_default().free_octets_min = Some(n),
            &BUFFER_FREE_OCTETS,
        ),
        (
            "buffer.syncIntervalMs",
            |sent, n| sent.buffer.get_or_insert_default().sync_interval_ms = Some(n),
            &SYNC_INTERVAL_MS,
        ),
    ];
    for (path, set, range) in fields {
        let with = |n| {
            let mut sent = wire::Policy::default();
            set(&mut sent, n);
            parse(sent)
        };
        assert!(
            with(*range.start()).is_ok() && with(*range.end()).is_ok(),
            "{path}"
        );
        let small = with(range.start() - 1).expect_err("below");
        let large = with(range.end() + 1).expect_err("above");
        assert!(
            small.starts_with(path) && small.contains("is too small; write "),
            "{small}"
        );
        assert!(
            large.starts_with(path) && large.contains("is too large; write "),
            "{large}"
        );
    }
}

#[test]
fn the_active_timeout_is_bounded_more_narrowly_when_exporting() {
    let with = |ms, collectors: &[&str]| {
        parse(wire::Policy {
            capture: Some(wire::Capture {
                active_timeout_ms: Some(ms),
                ..wire::Capture::default()
            }),
            export: Some(wire::Export {
                collectors: collectors.iter().map(ToString::to_string).collect(),
                ..wire::Export::default()
            }),
            ..wire::Policy::default()
        })
    };
    assert!(with(30_000, &["a"]).is_ok());
    assert!(with(30_001, &[]).is_ok());
    assert_eq!(
        with(30_001, &["a"]).expect_err("too long for ntopng"),
        "capture.activeTimeoutMs: \"30001 ms\" is longer than ntopng keeps a silent flow for sure; write at most 30000 ms, \
         or export to no collector"
    );
}

#[test]
fn cgroup_paths_are_taken_from_either_root() {
    for (path, taken) in [
        (
            "/system.slice/nginx.service",
            "cgroup=/system.slice/nginx.service",
        ),
        ("/sys/fs/cgroup/system.slice/", "cgroup=/system.slice"),
        ("/sys/fs/cgroupish", "cgroup=/sys/fs/cgroupish"),
        ("/a b", "cgroup=/a b"),
    ] {
        assert_eq!(cgroup(path), Ok(vec![taken.to_owned()]), "{path}");
    }
    for (path, why) in [
        ("", "is no path"),
        ("system.slice", "does not begin with a slash"),
        ("/", "is the root"),
        ("/sys/fs/cgroup", "is the root"),
        ("/sys/fs/cgroup/", "is the root"),
        ("/a/../b", "'..'"),
        ("/a//b", "has an empty name"),
        ("/a\n", "has control characters"),
        (
            &format!("/{}", "x".repeat(SCOPE_OCTETS_MAX)),
            "is longer than a path",
        ),
    ] {
        let refused = cgroup(path).expect_err(path);
        assert!(
            refused.starts_with("capture.scopes[0].cgroup: ") && refused.contains(why),
            "{path}: {refused}"
        );
    }
}

#[test]
fn namespaces_are_taken_by_path_and_a_bare_name_is_told_its_path() {
    assert_eq!(
        netns("/run/netns/blue"),
        Ok(vec!["netns=/run/netns/blue".to_owned()])
    );
    assert_eq!(
        netns("/proc/1/ns/net"),
        Ok(vec!["netns=/proc/1/ns/net".to_owned()])
    );
    assert_eq!(
        netns("blue").expect_err("no path"),
        "capture.scopes[0].netns: \"blue\" does not begin with a slash; write the path of a file, such as /run/netns/blue"
    );
    assert!(netns("").is_err() && netns("/").is_err());
}

#[test]
fn scopes_are_bounded_by_kind_and_none_is_there_twice() {
    let many = |n| (0..n).map(|n| Part::Cgroup(format!("/{n}")));
    let mut both: Vec<Part> = many(SCOPES_MAX).collect();
    both.extend((0..SCOPES_MAX).map(|n| Part::Netns(format!("/run/netns/{n}"))));
    assert_eq!(with_scopes(both).map(|scopes| scopes.len()), Ok(2 * SCOPES_MAX));
    assert_eq!(
        with_scopes(many(SCOPES_MAX + 1).collect()).expect_err("one too many"),
        "capture.scopes: has 9 scopes of the kind cgroup; write at most 8 of a kind, or one that holds several of them"
    );
    assert_eq!(
        with_scopes(vec![Part::Cgroup("/a".into()), Part::Cgroup("/a/".into())]).expect_err("twice"),
        "capture.scopes[1]: \"cgroup=/a\" is there twice; write it once"
    );
    let nothing = wire::Capture {
        scopes: vec![wire::Scope { part: None }],
        ..wire::Capture::default()
    };
    let refused = with_capture(nothing).expect_err("no part");
    assert!(
        refused.starts_with("capture.scopes[0]: names no part"),
        "{refused}"
    );
}

#[test]
fn enums_take_their_members_and_refuse_other_numbers() {
    let command_line = |command_line| {
        let enrich = Some(wire::Enrich {
            command_line,
            containers: None,
        });
        parse(wire::Policy {
            enrich,
            ..wire::Policy::default()
        })
        .map(|policy| policy.enrich.command_line)
    };
    assert_eq!(command_line(0), Ok(CommandLine::Redacted));
    assert_eq!(command_line(1), Ok(CommandLine::None));
    assert_eq!(command_line(2), Ok(CommandLine::Redacted));
    assert_eq!(command_line(3), Ok(CommandLine::Full));
    assert!(
        command_line(4)
            .expect_err("unknown")
            .starts_with("enrich.commandLine: \"4\" is not known")
    );
    let loopback = |loopback| {
        with_export(wire::Export {
            loopback,
            ..wire::Export::default()
        })
        .map(|export| export.loopback)
    };
    assert_eq!(loopback(0), Ok(Loopback::HostAddress));
    assert_eq!(loopback(1), Ok(Loopback::HostAddress));
    assert_eq!(loopback(2), Ok(Loopback::Omit));
    assert_eq!(loopback(3), Ok(Loopback::AsIs));
    assert!(
        loopback(-1)
            .expect_err("unknown")
            .starts_with("export.loopback: \"-1\" is not known")
    );
}

#[test]
fn collectors_keep_their_order_and_none_is_there_twice() {
    let with = |names: &[&str]| {
        let collectors = names.iter().map(ToString::to_string).collect();
        with_export(wire::Export {
            collectors,
            ..wire::Export::default()
        })
        .map(|export| {
            export
                .collectors
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(with(&["b", "a"]), Ok(vec!["b".to_owned(), "a".to_owned()]));
    assert_eq!(
        with(&["b", "B", "b"])
            .expect_err("a bad name and a double one")
            .lines()
            .count(),
        2
    );
    let names: Vec<String> = (0..=COLLECTORS_MAX).map(|n| format!("c{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert!(with(&names[1..]).is_ok());
    assert_eq!(
        with(&names).expect_err("too many"),
        "export.collectors: has 17 names; name at most 16"
    );
}

#[test]
fn failover_needs_two_collectors_and_a_mirror_no_times() {
    let with = |mode: wire::Mode, names: &[&str], fail_after_ms| {
        parse(wire::Policy {
            export: Some(wire::Export {
                collectors: names.iter().map(|&name| name.to_owned()).collect(),
                mode: mode.into(),
                fail_after_ms,
                ..wire::Export::default()
            }),
            ..wire::Policy::default()
        })
        .map(|policy| policy.export.mode)
    };
    assert_eq!(
        with(wire::Mode::Failover, &["a", "b"], Some(5_000)),
        Ok(Mode::Failover(Failover {
            fail_after: Duration::from_secs(5),
            fail_back_after: Duration::from_secs(60),
        }))
    );
    assert_eq!(
        with(wire::Mode::Failover, &["a"], None).expect_err("one collector"),
        "export.mode: \"failover\" has nothing to change over to; name at least two collectors, or write mirror"
    );
    assert_eq!(
        with(wire::Mode::Mirror, &["a", "b"], Some(5_000)).expect_err("a time of the other mode"),
        "export.failAfterMs: \"5000 ms\" means nothing to a mirror; leave it out, or write mode: failover"
    );
}

#[test]
fn every_mistake_of_every_section_is_told_at_once() {
    let refused = parse(wire::Policy {
        capture: Some(wire::Capture {
            max_flows: Some(0),
            idle_timeout_ms: Some(0),
            ..wire::Capture::default()
        }),
        enrich: Some(wire::Enrich {
            command_line: 9,
            containers: Some(wire::Containers {
                names: None,
                sockets: vec!["docker.sock".into()],
            }),
        }),
        export: Some(wire::Export {
            collectors: vec!["A".into()],
            ..wire::Export::default()
        }),
        buffer: Some(wire::Buffer {
            octets_max: Some(0),
            age_max_ms: Some(0),
            ..wire::Buffer::default()
        }),
        ..wire::Policy::default()
    })
    .expect_err("all of it");
    let paths: Vec<&str> = refused
        .lines()
        .map(|line| line.split(':').next().unwrap_or_default())
        .collect();
    assert_eq!(
        paths,
        [
            "capture.maxFlows",
            "capture.idleTimeoutMs",
            "enrich.commandLine",
            "enrich.containers.sockets[0]",
            "export.collectors[0]",
            "buffer.octetsMax",
            "buffer.ageMaxMs"
        ]
    );
}
