//! Each field: what it refuses stands beside what it takes.

use super::*;

/// Public key of ZeroMQ RFC 32 and libzmq's documentation, and its first octets there.
const KEY: &str = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";

fn sent() -> wire::Collector {
    wire::Collector {
        name: "ntopng-1".into(),
        endpoint: "tcp://192.0.2.1:5556".into(),
        ..wire::Collector::default()
    }
}

fn mistakes(sent: wire::Collector) -> String {
    Collector::try_from(sent)
        .expect_err("it should be refused")
        .to_string()
}

fn endpoint(text: &str) -> Result<String, String> {
    Collector::try_from(wire::Collector {
        endpoint: text.into(),
        ..sent()
    })
    .map(|collector| collector.endpoint.to_string())
    .map_err(|mistakes| mistakes.to_string())
}

#[test]
fn absent_fields_have_the_documented_defaults() {
    let collector = Collector::try_from(sent()).expect("it is sound");
    assert_eq!(collector.curve_server_key, None);
    assert_eq!(collector.encoding, Encoding::Tlv);
    assert_eq!(collector.header, HeaderVersion::V2);
    assert_eq!(collector.window_octets, 4 * 1024 * 1024);
    assert_eq!(collector.records_per_second, 20_000);
    assert_eq!(collector.on_restart, OnCollectorRestart::Replay);
    assert!(!collector.record_ids);
}

#[test]
fn endpoints_are_taken_and_print_as_they_parse() {
    for (text, printed) in [
        ("tcp://192.0.2.1:5556", "tcp://192.0.2.1:5556"),
        ("tcp://[2001:DB8::1]:1", "tcp://[2001:db8::1]:1"),
        ("tcp://[::ffff:192.0.2.1]:65535", "tcp://[::ffff:192.0.2.1]:65535"),
        ("tcp://Ntopng.Example.:5556", "tcp://ntopng.example:5556"),
        ("tcp://localhost:5556", "tcp://localhost:5556"),
        ("tcp://my_ntopng-1:5556", "tcp://my_ntopng-1:5556"),
    ] {
        assert_eq!(endpoint(text).as_deref(), Ok(printed), "{text}");
        assert_eq!(endpoint(printed).as_deref(), Ok(printed), "{printed}");
    }
}

#[test]
fn malformed_endpoints_are_refused_with_the_reason() {
    let label = "x".repeat(64);
    let name = vec!["abc"; 64].join(".");
    for (text, why) in [
        ("", "is no endpoint"),
        ("192.0.2.1:5556", "does not begin with tcp://"),
        ("udp://192.0.2.1:5556", "does not begin with tcp://"),
        ("tcp://192.0.2.1", "has no port"),
        ("tcp://", "has no port"),
        ("tcp://:5556", "has no host"),
        ("tcp://192.0.2.1:0", "has a port"),
        ("tcp://192.0.2.1:65536", "has a port"),
        ("tcp://192.0.2.1:+80", "has a port"),
        ("tcp://192.0.2.1:", "has a port"),
        ("tcp://192.0.2.1:5556/", "has a port"),
        ("tcp://2001:db8::1:5556", "has more than one colon"),
        ("tcp://[2001:db8::1:5556", "has a bracket that is not closed"),
        ("tcp://[192.0.2.1]:5556", "has something in brackets"),
        ("tcp://[fe80::1%eth0]:5556", "has something in brackets"),
        ("tcp://192.0.2.256:5556", "has a host that is neither"),
        ("tcp://192.0.2:5556", "has a host that is neither"),
        ("tcp://a b:5556", "has a host that is neither"),
        ("tcp://-a:5556", "has a host that is neither"),
        ("tcp://a..b:5556", "has a host that is neither"),
        (&format!("tcp://{label}:5556"), "has a host that is neither"),
        (&format!("tcp://{name}:5556"), "has a host that is neither"),
        ("tcp://*:5556", "names no host"),
        ("tcp://0.0.0.0:5556", "names no host"),
        ("tcp://[::]:5556", "names no host"),
        ("tcp://224.0.0.1:5556", "is a multicast address"),
    ] {
        let refused = endpoint(text).expect_err(text);
        assert!(
            refused.starts_with("endpoint: ") && refused.contains(why),
            "{text}: {refused}"
        );
        assert_eq!(refused.lines().count(), 1, "{refused}");
    }
}

#[test]
fn a_key_is_read_as_z85_and_as_hex_of_its_characters() {
    let hex: String = KEY.bytes().map(|octet| format!("{octet:02X}")).collect();
    for text in [KEY.to_owned(), hex.to_lowercase(), hex] {
        let collector = wire::Collector {
            curve_server_key: Some(text),
            ..sent()
        };
        let key = Collector::try_from(collector)
            .expect("the key is sound")
            .curve_server_key
            .expect("it is there");
        assert_eq!(key.to_string(), KEY);
        assert_eq!(key.octets()[..4], [0x54, 0xfc, 0xba, 0x24]);
    }
}

#[test]
fn keys_of_other_shapes_are_refused() {
    for (key, why) in [
        (String::new(), "has 0 characters"),
        (KEY[1..].to_owned(), "has 39 characters"),
        ("ab".repeat(32), "has 64 characters"),
        (format!(" {}", &KEY[1..]), "Z85 does not use"),
        ("~".repeat(40), "Z85 does not use"),
        ("#".repeat(40), "Z85 does not use"),
        ("g".repeat(80), "not hex digits"),
        ("ff".repeat(40), "Z85 does not use"),
        ("ä".repeat(20), "Z85 does not use"),
        ("0".repeat(40), "is all zero"),
    ] {
        let refused = mistakes(wire::Collector {
            curve_server_key: Some(key.clone()),
            ..sent()
        });
        assert!(
            refused.starts_with("curveServerKey: ") && refused.contains(why),
            "{key}: {refused}"
        );
    }
}

#[test]
fn numbers_are_taken_at_their_bounds_and_refused_beyond() {
    type Set = fn(&mut wire::Collector, u64);
    let fields: [(Set, &RangeInclusive<u64>); 2] = [
        (|sent, n| sent.window_octets = Some(n), &WINDOW_OCTETS),
        (|sent, n| sent.records_per_second = Some(n), &RECORDS_PER_SECOND),
    ];
    for (set, range) in fields {
        let with = |n| {
            let mut sent = sent();
            set(&mut sent, n);
            Collector::try_from(sent)
        };
        assert!(with(*range.start()).is_ok() && with(*range.end()).is_ok());
        let small = with(range.start() - 1).expect_err("below").to_string();
        let large = with(range.end() + 1).expect_err("above").to_string();
        assert!(
            small.contains("is too small; write ") && large.contains("is too large; write "),
            "{small} {large}"
        );
    }
}

#[test]
fn enums_take_their_members_and_refuse_other_numbers() {
    let with = |header_version, on_restart| {
        Collector::try_from(wire::Collector {
            header_version,
            on_collector_restart: on_restart,
            ..sent()
        })
        .map(|collector| (collector.header, collector.on_restart))
        .map_err(|mistakes| mistakes.to_string())
    };
    assert_eq!(with(1, 1), Ok((HeaderVersion::V1, OnCollectorRestart::Replay)));
    assert_eq!(with(2, 2), Ok((HeaderVersion::V2, OnCollectorRestart::Skip)));
    assert_eq!(with(3, 0), Ok((HeaderVersion::V3, OnCollectorRestart::Replay)));
    assert_eq!(
        with(4, 9).expect_err("unknown numbers"),
        "headerVersion: \"4\" is not known to this version; write 1, 2 or 3\n\
         onCollectorRestart: \"9\" is not known to this version; write replay or skip"
    );
}

#[test]
fn nested_json_goes_with_header_version_1_and_half_the_pace() {
    let with = |header: wire::HeaderVersion, rate| {
        Collector::try_from(wire::Collector {
            encoding: wire::Encoding::NestedJson.into(),
            header_version: header.into(),
            records_per_second: rate,
            ..sent()
        })
        .map(|collector| (collector.encoding, collector.header, collector.records_per_second))
        .map_err(|mistakes| mistakes.to_string())
    };
    let made = |rate| Ok((Encoding::NestedJson, HeaderVersion::V1, rate));
    assert_eq!(with(wire::HeaderVersion::Unspecified, None), made(8_000));
    assert_eq!(with(wire::HeaderVersion::V1, Some(20_000)), made(20_000));
    for (header, word) in [(wire::HeaderVersion::V2, "v2"), (wire::HeaderVersion::V3, "v3")] {
        assert_eq!(
            with(header, None).expect_err("it is not read"),
            format!(
                "headerVersion: \"{word}\" is not read by the versions of ntopng that nested JSON is for; write v1 or leave \
                 it out, or leave encoding out"
            )
        );
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let refused = mistakes(wire::Collector {
        name: "A".into(),
        endpoint: "x".into(),
        curve_server_key: Some("short".into()),
        header_version: 9,
        window_octets: Some(1),
        records_per_second: Some(0),
        on_collector_restart: 9,
        record_ids: None,
        encoding: 9,
    });
    let paths: Vec<&str> = refused
        .lines()
        .map(|line| line.split(':').next().unwrap_or_default())
        .collect();
    assert_eq!(
        paths,
        [
            "name",
            "endpoint",
            "curveServerKey",
            "encoding",
            "headerVersion",
            "windowOctets",
            "recordsPerSecond",
            "onCollectorRestart"
        ]
    );
}
