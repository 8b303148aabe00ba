//! Records to encode, and what a decoder finds in them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flowtilla_agent_core::encode::tlv::{Batch, Key, Push, TlvOptions, Value, decode};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, Counting, Counts, EndReason, FlowRecord, Party, Protocol, RecordId, TcpFigures,
    Traffic,
};
use flowtilla_agent_core::observe::{Cookie, Endpoint, NetNs, TcpState};
use flowtilla_agent_core::owner::{
    Confidence, Container, Names, Owner, Parent, Process, ProcessKey, Runtime, Unknown,
};
use flowtilla_agent_core::time::{KernelTime, WallTime};

/// Begin of ntop's own elements.
pub(crate) const NTOP: u32 = 57_472;

/// One decoded record, by key.
pub(crate) type Items = BTreeMap<Key, Value>;

/// psql on 10.0.0.11 asks postgres on 10.0.0.12; both ends known.
pub(crate) fn tcp() -> FlowRecord {
    FlowRecord {
        id: RecordId {
            boot: BootId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
            cookie: Cookie(4_242),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Tcp,
        initiator: Party {
            endpoint: endpoint("10.0.0.11", 40_001),
            owner: psql(),
        },
        responder: Party {
            endpoint: endpoint("10.0.0.12", 5_432),
            owner: postgres(),
        },
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(4_026_531_840),
        counting: Counting::Delta,
        delta: traffic((1_000, 10), (70_000, 300)),
        total: traffic((1_000, 10), (70_000, 300)),
        start: WallTime(1_795_416_480_900_000_000),
        delta_start: WallTime(1_795_416_480_900_000_000),
        end: WallTime(1_795_416_490_100_000_000),
        tcp: Some(TcpFigures {
            handshake_us: Some(700),
            rtt_us: Some(500),
            rtt_variance_us: Some(100),
            rtt_min_us: Some(400),
            retransmits_forward: 2,
            retransmits_backward: 0,
            flags_forward: 0x18,
            flags_backward: 0x1a,
            state: Some(TcpState::Established),
        }),
        reason: EndReason::ActiveTimeout,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

/// A socket of the kernel asks a remote DNS server.
pub(crate) fn udp() -> FlowRecord {
    let mut kernel = Owner::unknown(Unknown::Kernel);
    kernel.process = None;
    FlowRecord {
        protocol: Protocol::Udp,
        initiator: Party {
            endpoint: endpoint("fd00::11", 50_001),
            owner: kernel,
        },
        responder: Party {
            endpoint: endpoint("fd00::12", 53),
            owner: Owner::unknown(Unknown::Remote),
        },
        counting: Counting::Total,
        delta: Traffic::default(),
        total: traffic((80, 1), (200, 1)),
        end: WallTime(1_795_416_480_950_000_000),
        tcp: None,
        reason: EndReason::IdleTimeout,
        ..tcp()
    }
}

pub(crate) fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint {
        address: address.parse::<IpAddr>().unwrap(),
        port,
    }
}

pub(crate) fn traffic(forward: (u64, u64), backward: (u64, u64)) -> Traffic {
    let counts = |(octets, packets)| Counts {
        octets,
        packets,
        payload: 0,
    };
    Traffic {
        forward: counts(forward),
        backward: counts(backward),
    }
}

pub(crate) fn process(pid: u32, uid: u32, comm: &str) -> Process {
    Process {
        key: ProcessKey {
            pid,
            start: KernelTime(1),
        },
        parent_pid: 1,
        uid,
        gid: uid,
        cgroup_id: 0,
        comm: comm.into(),
    }
}

fn psql() -> Owner {
    Owner {
        confidence: Confidence::Exact,
        process: Some(process(1_001, 1_000, "psql")),
        names: Some(Arc::new(Names {
            executable: Some("/usr/bin/psql".into()),
            command_line: Some("psql -h db".into()),
            user: Some("alice".into()),
            group: Some("alice".into()),
            parent: Some(Parent {
                pid: 1,
                executable: "/usr/lib/systemd/systemd".into(),
                uid: Some(0),
                user: Some("root".into()),
            }),
            container: Some(container(Some("web-frontend"))),
            unit: None,
        })),
    }
}

fn postgres() -> Owner {
    Owner {
        confidence: Confidence::Inherited,
        process: Some(process(70_001, 107, "postgres")),
        names: Some(Arc::new(Names {
            executable: Some("/usr/lib/postgresql/15/bin/postgres".into()),
            user: Some("postgres".into()),
            container: Some(container(None)),
            ..Names::default()
        })),
    }
}

fn container(name: Option<&str>) -> Container {
    Container {
        id: "3f2a9c1d7e55".repeat(5) + "3f2a",
        runtime: Runtime::Docker,
        name: name.map(Into::into),
        pod: None,
    }
}

/// What a collector reads when `record` is sent alone.
pub(crate) fn written(record: &FlowRecord, options: TlvOptions) -> Vec<Items> {
    let mut batch = Batch::new(options);
    assert_eq!(batch.push(record), Push::Added);
    let made = batch.finish().unwrap();
    decode(&made.payload)
        .unwrap()
        .into_iter()
        .map(|items| {
            let count = items.len();
            let items: Items = items.into_iter().collect();
            assert_eq!(items.len(), count, "an element is written twice");
            items
        })
        .collect()
}

pub(crate) fn number(items: &Items, element: u32) -> Option<u64> {
    match items.get(&Key::Element(element))? {
        Value::Unsigned(n) => Some(*n),
        other => panic!("element {element} is {other:?}"),
    }
}

pub(crate) fn text(items: &Items, element: u32) -> Option<&str> {
    match items.get(&Key::Element(element))? {
        Value::Text(text) => Some(text),
        other => panic!("element {element} is {other:?}"),
    }
}
