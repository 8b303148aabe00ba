//! Each flag: what it refuses stands beside what it makes.

use std::io::Write;
use std::path::Path;

use clap::Parser;
use flowtilla_proto::collector::{self, HeaderVersion};
use flowtilla_proto::policy::{CommandLine, Loopback, Mode, SocketPath};

use super::*;

const KEY: &str = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
const OTHER_KEY: &str = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    args: UpArgs,
}

fn wanted(args: &[&str]) -> Result<Wanted, String> {
    let all = ["up"].iter().chain(args);
    Only::try_parse_from(all)
        .expect("clap takes it")
        .args
        .wanted()
        .map_err(|error| error.to_string())
}

fn policy(args: &[&str]) -> Policy {
    wanted(args)
        .expect("the flags are sound")
        .policy()
        .expect("there is a policy")
        .clone()
}

#[test]
fn no_flags_make_the_default_policy() {
    let default = Policy::try_from(wire::Policy::default()).expect("it is sound");
    assert_eq!(policy(&[]), default);
    assert!(wanted(&[]).expect("it is sound").collectors().is_empty());
}

#[test]
fn each_flag_sets_its_field() {
    let policy = policy(&[
        "--scope",
        "cgroup=/a.slice",
        "--scope=netns=/run/netns/blue",
        "--no-udp",
        "--command-line=full",
        "--container-socket=/run/a.sock",
        "--active-timeout=1500ms",
        "--idle-timeout=2m",
        "--max-flows=1000",
        "--loopback=asIs",
        "--buffer=64MiB",
    ]);
    let scopes: Vec<String> = policy.capture.scopes.iter().map(ToString::to_string).collect();
    assert_eq!(scopes, ["cgroup=/a.slice", "netns=/run/netns/blue"]);
    assert!(policy.capture.tcp && !policy.capture.udp);
    assert_eq!(policy.enrich.command_line, CommandLine::Full);
    let sockets = policy.enrich.containers.sockets();
    assert_eq!(
        sockets.iter().map(SocketPath::as_path).collect::<Vec<_>>(),
        [Path::new("/run/a.sock")]
    );
    assert_eq!(policy.capture.active_timeout, Duration::from_millis(1500));
    assert_eq!(policy.capture.idle_timeout, Duration::from_secs(120));
    assert_eq!(
        (policy.capture.max_flows, policy.buffer.octets_max),
        (1000, 64 << 20)
    );
    assert_eq!(policy.export.loopback, Loopback::AsIs);
}

#[test]
fn scopes_are_the_agents_own_and_the_rest_goes_through_the_controller() {
    let args = [
        "up",
        "--scope=netns=/run/netns/blue",
        "--max-flows=1000",
        "--ntopng=tcp://a:1",
        "--curve-key",
        KEY,
        "--rate=500",
    ];
    let asked = Only::try_parse_from(args)
        .expect("clap takes it")
        .args
        .asked()
        .expect("the flags are sound");
    assert_eq!(asked.scopes[0].to_string(), "netns=/run/netns/blue");
    let capture = asked.policy.capture.as_ref().expect("a capture");
    assert!(capture.scopes.is_empty());
    assert_eq!(
        (asked.policy.name.as_str(), capture.max_flows),
        ("up", Some(1000))
    );
    assert_eq!(asked.collectors[0].curve_server_key.as_deref(), Some(KEY));
    assert_eq!(asked.collectors[0].records_per_second, Some(500));
}

#[test]
fn rules_and_the_share_go_into_the_policy() {
    let policy = policy(&[
        "--include",
        "cidr=10.0.0.0/8,cidr=fd00::/8,port=443",
        "--include=process=/usr/lib/jvm/*,user=anna",
        "--exclude",
        "port=8000-8100,cgroup=/system.slice/x.service",
        "--exclude=container=web-*,image=*/web:*,namespace=shop,pod-label=app=web,pod-label=tier",
        "--sample=1/16",
    ]);
    let told = |rules: &[flowtilla_proto::policy::FlowRule]| -> Vec<String> {
        rules.iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        told(&policy.capture.include),
        [
            "cidr=10.0.0.0/8,cidr=fd00::/8,port=443",
            "process=/usr/lib/jvm/*,user=anna"
        ]
    );
    assert_eq!(
        told(&policy.capture.exclude),
        [
            "port=8000-8100,cgroup=/system.slice/x.service",
            "container=web-*,image=*/web:*,namespace=shop,pod-label=app=web,pod-label=tier"
        ]
    );
    assert_eq!(policy.capture.sampling.one_in.get(), 16);
}

#[test]
fn rules_that_are_refused_name_their_flag() {
    let refused = wanted(&["--include", "cidr=10.0.0.1/8", "--exclude=port=0", "--sample=1/0"]);
    assert_eq!(
        refused.expect_err("three mistakes"),
        "--include: \"10.0.0.1/8\" has bits beyond its length of 8; write 10.0.0.0/8 for the network, 10.0.0.1 for the host\n\
         --exclude: \"0\" is no port; write a number of 1 to 65535, or two of them, such as 8000-8100\n\
         --sample: \"0\" is too small; write 1 to 1000000"
    );
}

#[test]
fn each_ntopng_is_a_collector_and_one_key_serves_all_or_each_has_its_own() {
    let two = ["--ntopng=tcp://192.0.2.1:5556", "--ntopng=tcp://[::1]:5557"];
    let told = |more: &[&str]| -> Vec<String> {
        wanted(&[&two[..], more].concat())
            .expect("the flags are sound")
            .collectors()
            .iter()
            .map(|c| {
                format!(
                    "{} {} {:?}",
                    c.name,
                    c.endpoint,
                    c.curve_server_key.map(|key| key.to_string())
                )
            })
            .collect()
    };
    assert_eq!(
        told(&[]),
        [
            "ntopng-192.0.2.1-5556 tcp://192.0.2.1:5556 None",
            "ntopng-1-5557 tcp://[::1]:5557 None"
        ]
    );
    let one = told(&["--curve-key", KEY]);
    assert!(
        one.iter().all(|line| line.ends_with(&format!("Some({KEY:?})"))),
        "{one:?}"
    );
    let each = told(&["--curve-key", KEY, "--curve-key", OTHER_KEY]);
    assert!(each[0].contains(KEY) && each[1].contains(OTHER_KEY), "{each:?}");
}

#[test]
fn failover_and_identities_are_asked_for_by_flags() {
    let two = ["--ntopng=tcp://192.0.2.1:5556", "--ntopng=tcp://[::1]:5557"];
    let told = |more: &[&str]| wanted(&[&two[..], more].concat()).expect("the flags are sound");
    let failover = told(&["--failover", "--record-ids"]);
    let mode = failover.policy().expect("there is a policy").export.mode;
    assert!(matches!(mode, Mode::Failover(_)), "{mode:?}");
    assert!(failover.collectors().iter().all(|collector| collector.record_ids));
    let mirror = told(&[]);
    assert_eq!(
        mirror.policy().expect("there is a policy").export.mode,
        Mode::Mirror
    );
    assert!(!mirror.collectors().iter().any(|collector| collector.record_ids));
}

#[test]
fn nested_json_is_asked_for_by_a_flag_and_brings_header_version_1() {
    let one = |more: &[&str]| {
        let told = wanted(&[&["--ntopng=tcp://192.0.2.1:5556"], more].concat()).expect("the flags are sound");
        let collector = &told.collectors()[0];
        (collector.encoding, collector.header, collector.records_per_second)
    };
    assert_eq!(one(&[]), (collector::Encoding::Tlv, HeaderVersion::V2, 20_000));
    assert_eq!(one(&["--encoding=tlv"]), one(&[]));
    let nested = |rate| (collector::Encoding::NestedJson, HeaderVersion::V1, rate);
    assert_eq!(one(&["--encoding=nestedJson"]), nested(8_000));
    assert_eq!(one(&["--encoding=nestedJson", "--rate=9"]), nested(9));
}

#[test]
fn a_collector_is_named_by_its_endpoint_whatever_its_place() {
    let long = format!("tcp://{}.example.com:5556", "a".repeat(80));
    for (endpoint, name) in [
        ("tcp://192.0.2.1:5556", "ntopng-192.0.2.1-5556"),
        ("tcp://NTOP.example.com:5556", "ntopng-ntop.example.com-5556"),
        ("tcp://[2001:db8::1]:5556", "ntopng-2001-db8--1-5556"),
        ("tcp://a_b:1", "ntopng-a-b-1"),
        ("nonsense", "ntopng-nonsense"),
        ("", "ntopng"),
        (&long, &format!("ntopng-{}-5556", "a".repeat(51))),
    ] {
        assert_eq!(collector_name(endpoint), name);
        assert!(name.len() <= NAME_OCTETS_MAX);
    }
    let (one, other) = ("--ntopng=tcp://192.0.2.1:5556", "--ntopng=tcp://192.0.2.2:5556");
    let names = |args: &[&str]| -> Vec<String> {
        let wanted = wanted(args).expect("the flags are sound");
        wanted
            .collectors()
            .iter()
            .map(|collector| collector.name.to_string())
            .collect()
    };
    let (mut forth, back) = (names(&[one, other]), names(&[other, one]));
    forth.reverse();
    assert_eq!(forth, back);
    let twice = wanted(&[one, one]).expect_err("one collector twice");
    assert!(twice.contains("--ntopng") && twice.contains("twice"), "{twice}");
}

#[test]
fn sizes_have_units() {
    for (text, octets) in [
        ("7", 7),
        ("3KiB", 3 << 10),
        ("512 MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1TiB", 1 << 40),
    ] {
        assert_eq!(parse_size(text), Ok(octets));
    }
    for text in [
        "",
        "GiB",
        "5GB",
        "-1",
        "1.5GiB",
        "99999999999999999999",
        "99999999TiB",
    ] {
        assert!(parse_size(text).is_err(), "{text}");
    }
}

#[test]
fn a_key_is_read_from_a_file_and_an_unreadable_one_is_refused() {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    writeln!(file, "{KEY}").expect("it is written");
    let at = format!("@{}", file.path().display());
    let key = |text: &str| wanted(&["--ntopng=tcp://192.0.2.1:5556", "--curve-key", text]);
    let collectors = key(&at).expect("the file is sound");
    assert_eq!(
        collectors.collectors()[0]
            .curve_server_key
            .map(|key| key.to_string())
            .as_deref(),
        Some(KEY)
    );
    assert_eq!(
        key("@/nowhere/key").expect_err("no such file"),
        "--curve-key: \"@/nowhere/key\" cannot be read (No such file or directory (os error 2)); write the key itself, \
         or @ and the path of a file that holds nothing else"
    );
    assert!(
        key("@/")
            .expect_err("a folder")
            .starts_with("--curve-key: \"@/\" cannot be read")
    );
    assert!(
        key("@/proc/self/exe")
            .expect_err("a program")
            .contains("is a file with something else than a key")
    );
}

#[test]
fn what_the_parser_refuses_is_told_with_the_flag() {
    let to = "--ntopng=tcp://192.0.2.1:5556";
    for (args, refused) in [
        (
            &["--ntopng", "192.0.2.1:5556"][..],
            "--ntopng: \"192.0.2.1:5556\" does not begin with tcp://; write tcp://",
        ),
        (
            &[to, "--ntopng", "tcp://h"],
            "--ntopng: \"tcp://h\" has no port; write tcp://HOST:PORT",
        ),
        (
            &[to, "--curve-key", "x"],
            "--curve-key: \"x\" has 1 characters; write the 40 characters or 80 hex digits",
        ),
        (
            &["--curve-key", KEY],
            "--curve-key: there is no collector it is for; write --ntopng too",
        ),
        (
            &[to, "--curve-key", KEY, "--curve-key", KEY],
            "--curve-key: there are 2 keys for 1 collectors; write one",
        ),
        (
            &["--scope=netns=blue"],
            "--scope: \"blue\" does not begin with a slash; write the path of a file, such as",
        ),
        (
            &["--max-flows=1"],
            "--max-flows: \"1 flows\" is too small; write 16 to ",
        ),
        (
            &["--active-timeout=0"],
            "--active-timeout: \"0 ms\" is too small; write 1000 to ",
        ),
        (
            &[to, "--active-timeout=31"],
            "--active-timeout: \"31000 ms\" is longer than ntopng keeps a silent flow",
        ),
        (
            &["--idle-timeout=0"],
            "--idle-timeout: \"0 ms\" is too small; write 1000 to ",
        ),
        (
            &["--buffer=1"],
            "--buffer: \"1 octets\" is too small; write 16777216 to ",
        ),
        (
            &[to, "--failover"],
            "--failover: \"failover\" has nothing to change over to; name at least two collectors, or write mirror",
        ),
        (
            &["--duration=0"],
            "--duration: \"0 ms\" is out of range; write a time from 1 s to a year",
        ),
    ] {
        let told = wanted(args).expect_err("it should be refused");
        assert!(
            told.starts_with(refused) && told.lines().count() == 1,
            "{args:?}: {told}"
        );
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let told = wanted(&[
        "--ntopng=a",
        "--ntopng=b",
        "--curve-key=@/nowhere",
        "--max-flows=0",
        "--duration=0",
    ])
    .expect_err("five mistakes");
    let flags: Vec<&str> = told
        .lines()
        .map(|line| line.split(':').next().unwrap_or_default())
        .collect();
    assert_eq!(
        flags,
        ["--curve-key", "--ntopng", "--ntopng", "--duration", "--max-flows"]
    );
}

#[test]
fn times_have_units() {
    for (text, ms) in [
        ("10", 10_000),
        ("10s", 10_000),
        ("500ms", 500),
        ("500 ms", 500),
        ("2m", 120_000),
        ("1h", 3_600_000),
    ] {
        assert_eq!(parse_time(text), Ok(ms), "{text}");
    }
    for text in [
        "",
        "s",
        "-1",
        "1.5",
        "1d",
        "1ss",
        "99999999999999999999",
        "18446744073709551615h",
    ] {
        assert!(parse_time(text).is_err(), "{text}");
    }
}

#[test]
fn numbers_are_digits() {
    assert_eq!(parse_number("65536"), Ok(65_536));
    for text in ["", "+1", "-1", "1k", "99999999999999999999"] {
        assert!(parse_number(text).is_err(), "{text}");
    }
}
