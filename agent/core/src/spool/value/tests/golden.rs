//! The formats, octet by octet: `value_v1.hex` and those after it, where `#` begins a comment.
//!
//! Values on disk outlive the program that wrote them. When this test fails, the format has changed: raise
//! [`VERSION`](crate::spool::value::VERSION), keep reading the version before, and add a file.

use std::sync::Arc;

use super::sample::BOOT;
use crate::flow::record::{
    CollectorSet, CollectorSlot, Counting, Counts, EndReason, FlowRecord, Party, Protocol, RecordId,
    TcpFigures, Traffic,
};
use crate::observe::{Cookie, Endpoint, NetNs, TcpState};
use crate::owner::{Confidence, Container, Names, Owner, Parent, Pod, Process, ProcessKey, Runtime, Unknown};
use crate::spool::value::{Builder, CHECKSUM, Codec, HEADER_OCTETS, Pushed, decode, header, unpack};
use crate::time::{KernelTime, WallTime};

const FIRST: u64 = 70_001;

fn golden_v1() -> Vec<u8> {
    octets(include_str!("value_v1.hex"))
}

fn golden_v2() -> Vec<u8> {
    octets(include_str!("value_v2.hex"))
}

fn golden_v3() -> Vec<u8> {
    octets(include_str!("value_v3.hex"))
}

fn octets(text: &str) -> Vec<u8> {
    text.lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace())
        .map(|pair| u8::from_str_radix(pair, 16).expect("hex"))
        .collect()
}

#[test]
fn golden_values_of_all_versions_are_read() {
    for (golden, records) in [
        (golden_v1(), records()),
        (golden_v2(), records_v2()),
        (golden_v3(), records_v3()),
    ] {
        let (header, read) = decode(&golden, Some(FIRST)).expect("a value");
        assert_eq!(header.codec, Codec::Stored);
        assert_eq!(read, records);
    }
}

/// Compressed octets are LZ4's own business; what is in them, and the header, is ours.
#[test]
fn golden_value_is_written() {
    let mut builder = Builder::default();
    for record in &records_v3() {
        assert_eq!(builder.push(record), Pushed::Added);
    }
    let value = builder.seal(FIRST).expect("a value");
    let (head, kept) = value.octets.split_at(HEADER_OCTETS);
    let mut head = head.to_vec();
    assert_eq!(head[3], 1, "LZ4");
    let body_octets = header(&value.octets).expect("a header").body_octets;
    let body = unpack(kept, body_octets.into()).expect("a body");
    let golden = golden_v3();
    head[3] = 0;
    head[CHECKSUM].copy_from_slice(&golden[CHECKSUM]);
    assert_eq!(head, golden[..HEADER_OCTETS]);
    assert_eq!(body, golden[HEADER_OCTETS..]);
}

/// Those of version 2, with the pod of their container, and a unit.
fn records_v3() -> [FlowRecord; 3] {
    let mut records = records_v2();
    for record in &mut records {
        let Some(names) = &mut record.initiator.owner.names else {
            continue;
        };
        let names = Arc::make_mut(names);
        names.unit = Some("lab.service".to_owned());
        if let Some(container) = &mut names.container {
            container.pod = Some(Pod {
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
            });
        }
    }
    records
}

/// Those of version 1, and the far end of one as its own agent told it.
fn records_v2() -> [FlowRecord; 3] {
    let mut records = records();
    let process = records[0].initiator.owner.process;
    let told = process.map(|process| Process {
        key: ProcessKey {
            pid: 77,
            start: KernelTime(0),
        },
        cgroup_id: 0,
        comm: "nginx".into(),
        ..process
    });
    records[0].responder.owner = Owner {
        confidence: Confidence::Told,
        process: told,
        names: None,
    };
    records
}

fn records() -> [FlowRecord; 3] {
    let names = Names {
        executable: Some("/usr/bin/curl".to_owned()),
        command_line: Some("curl https://example.org/ --silent".to_owned()),
        user: Some("ada".to_owned()),
        group: None,
        parent: Some(Parent {
            pid: 700,
            executable: "/usr/bin/bash".to_owned(),
            uid: Some(1000),
            user: None,
        }),
        container: Some(Container {
            id: "0123456789abcdef".repeat(4),
            runtime: Runtime::Podman,
            name: Some("lab".to_owned()),
            pod: None,
        }),
        unit: None,
    };
    let process = Process {
        key: ProcessKey {
            pid: 701,
            start: KernelTime(90_000_000_000),
        },
        parent_pid: 700,
        uid: 1000,
        gid: 1001,
        cgroup_id: 4242,
        comm: "curl".into(),
    };
    let curl = Owner {
        confidence: Confidence::Exact,
        process: Some(process),
        names: Some(Arc::new(names)),
    };
    let party = |endpoint: &str, owner: Owner| {
        let endpoint: std::net::SocketAddr = endpoint.parse().expect("an endpoint");
        Party {
            endpoint: Endpoint {
                address: endpoint.ip(),
                port: endpoint.port(),
            },
            owner,
        }
    };
    let counts = |octets, packets, payload| Counts {
        octets,
        packets,
        payload,
    };
    let first = FlowRecord {
        id: RecordId {
            boot: BOOT,
            cookie: Cookie(5000),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Tcp,
        initiator: party("10.0.0.11:40001", curl.clone()),
        responder: party("192.0.2.9:443", Owner::unknown(Unknown::Remote)),
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(4_026_531_840),
        counting: Counting::Delta,
        delta: Traffic {
            forward: counts(968, 10, 440),
            backward: counts(7428, 9, 6960),
        },
        total: Traffic {
            forward: counts(968, 10, 440),
            backward: counts(7428, 9, 6960),
        },
        start: WallTime(1_760_000_000_000_000_000),
        delta_start: WallTime(1_760_000_000_000_000_000),
        end: WallTime(1_760_000_000_250_000_000),
        tcp: Some(TcpFigures {
            handshake_us: Some(1500),
            rtt_us: Some(1600),
            rtt_variance_us: Some(300),
            rtt_min_us: Some(1400),
            retransmits_forward: 0,
            retransmits_backward: 0,
            flags_forward: 0x1b,
            flags_backward: 0x1a,
            state: Some(TcpState::LastAck),
        }),
        reason: EndReason::EndOfFlow,
        held_from: CollectorSet::default(),
        baseline: None,
    };
    let mut held_from = CollectorSet::default();
    held_from.insert(CollectorSlot(0));
    held_from.insert(CollectorSlot(5));
    let later = FlowRecord {
        id: RecordId {
            boot: BOOT,
            cookie: Cookie(4990),
            stream: 3,
            part: 2,
        },
        first: false,
        protocol: Protocol::Udp,
        initiator: party("[2001:db8::1]:5353", curl),
        responder: party("[2001:db8::2]:53", Owner::unknown(Unknown::NotSeen)),
        initiator_seen: false,
        backfilled: true,
        netns: NetNs(4_026_532_000),
        counting: Counting::Total,
        delta: Traffic {
            forward: counts(148, 2, 52),
            backward: counts(0, 0, 0),
        },
        total: Traffic {
            forward: counts(444, 6, 156),
            backward: counts(300, 1, 252),
        },
        start: WallTime(1_759_999_999_000_000_000),
        delta_start: WallTime(1_760_000_000_000_000_001),
        end: WallTime(1_760_000_000_000_000_129),
        tcp: None,
        reason: EndReason::ActiveTimeout,
        held_from,
        baseline: None,
    };
    let refused = FlowRecord {
        id: RecordId {
            boot: BOOT,
            cookie: Cookie(5001),
            stream: 0,
            part: 1,
        },
        responder: party("192.0.2.9:444", Owner::unknown(Unknown::Kernel)),
        delta: Traffic {
            forward: counts(120, 2, 0),
            backward: counts(40, 1, 0),
        },
        total: Traffic {
            forward: counts(120, 2, 0),
            backward: counts(40, 1, 0),
        },
        tcp: Some(TcpFigures {
            retransmits_forward: 1,
            flags_forward: 2,
            flags_backward: 20,
            ..TcpFigures::default()
        }),
        reason: EndReason::Refused,
        ..first.clone()
    };
    [first, later, refused]
}
