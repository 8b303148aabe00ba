//! Records and a status for the tests of the views, and what pins their output.

use std::path::PathBuf;
use std::sync::Arc;

use flowtilla_agent::spool::{SpoolState, SpoolStatus};
use flowtilla_agent::status::{
    AgentStatus, AttachReport, CollectorState, CollectorStatus, Coverage, MemberState, MemberStatus,
    ProgramStatus,
};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, Counting, Counts, EndReason, FlowRecord, Party, Protocol, RecordId, TcpFigures,
    Traffic,
};
use flowtilla_agent_core::loss::{CollectorLaw, DropPoint, Drops, KernelLaw, RecordLaw};
use flowtilla_agent_core::observe::{Cookie, Endpoint, NetNs, TcpState};
use flowtilla_agent_core::owner::{
    Confidence, Container, Names, Owner, Parent, Process, ProcessKey, Runtime, Unknown,
};
use flowtilla_agent_core::time::{KernelTime, WallTime};

/// 2026-03-01T12:00:00Z.
const NOON: u64 = 1_772_366_400;

/// Compares with the file of this name in `ctl/tests/pinned`; `PIN=1` writes it instead.
pub(crate) fn assert_pinned(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/pinned")
        .join(name);
    if std::env::var_os("PIN").is_some() {
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("the folder is made");
        std::fs::write(&path, text).expect("the file is written");
    }
    let pinned = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        pinned == text,
        "{name} differs; PIN=1 writes it anew. It is:\n{text}"
    );
}

/// One record of each kind, oldest first.
pub(crate) fn all() -> Vec<FlowRecord> {
    vec![curl(), accepted(), joined(), refused(), resolver(), kernel()]
}

/// A live connection that this host opened.
pub(crate) fn curl() -> FlowRecord {
    let owner = owner("/usr/bin/curl", 4242, "root", None);
    record(1, owner_at("10.0.0.5:43210", owner), remote("93.184.216.34:443"))
}

/// A connection that this host accepted, in a container, over IPv6, ended.
fn accepted() -> FlowRecord {
    let mut owner = owner("/usr/sbin/nginx", 977, "www-data", Some("shop-frontend"));
    owner.confidence = Confidence::Inherited;
    FlowRecord {
        reason: EndReason::EndOfFlow,
        total: traffic(1_234, 567_890_123),
        ..record(
            2,
            remote("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:1]:51515"),
            owner_at("[2001:db8::2]:443", owner),
        )
    }
}

/// Both ends on this host.
fn joined() -> FlowRecord {
    record(
        3,
        owner_at("127.0.0.1:39000", owner("/usr/bin/psql", 3100, "alice", None)),
        owner_at(
            "127.0.0.1:5432",
            owner("/usr/lib/postgresql/15/bin/postgres", 812, "postgres", None),
        ),
    )
}

/// An attempt that failed.
fn refused() -> FlowRecord {
    let mut tcp = TcpFigures {
        state: Some(TcpState::SynSent),
        ..TcpFigures::default()
    };
    tcp.retransmits_forward = 3;
    FlowRecord {
        reason: EndReason::Refused,
        tcp: Some(tcp),
        delta: traffic(60, 40),
        total: traffic(60, 40),
        ..record(
            4,
            owner_at("10.0.0.5:43999", owner("/usr/bin/python3.11", 4711, "bob", None)),
            remote("10.9.9.9:25"),
        )
    }
}

/// UDP of a process without names, older than the agent.
fn resolver() -> FlowRecord {
    let mut owner = owner("", 1, "", None);
    owner.names = None;
    owner.confidence = Confidence::Backfilled;
    owner.process.as_mut().expect("it has one").comm = "systemd-resolve".into();
    FlowRecord {
        protocol: Protocol::Udp,
        tcp: None,
        backfilled: true,
        ..record(5, owner_at("10.0.0.5:50000", owner), remote("9.9.9.9:53"))
    }
}

/// A socket of the kernel.
fn kernel() -> FlowRecord {
    record(
        6,
        owner_at("10.0.0.5:800", Owner::unknown(Unknown::Kernel)),
        remote("10.0.0.9:2049"),
    )
}

/// Names that would steer a terminal.
pub(crate) fn harmful() -> FlowRecord {
    let mut owner = owner("/tmp/a b\u{1b}[31m\n\u{202e}", 666, "m\u{9b}2J", Some("c\r\u{7}"));
    owner.process.as_mut().expect("it has one").comm = "a b\u{1b}[31m\n\u{202e}\u{9b}\\".into();
    record(7, owner_at("10.0.0.5:6666", owner), remote("10.6.6.6:6666"))
}

/// A report with a refused program.
pub(crate) fn report() -> AttachReport {
    let program = |name, hook, refused, without, mandatory| ProgramStatus {
        name,
        hook,
        refused,
        without,
        mandatory,
    };
    AttachReport {
        programs: vec![
            program("tcp_state", "tp_btf/inet_sock_set_state", None, "TCP", true),
            program("udp_send", "fentry/udp_sendmsg", None, "UDP that is sent", true),
            program(
                "exec",
                "tp_btf/sched_process_exec",
                Some("the kernel refuses tp_btf: permission denied".into()),
                "names of processes that live for a moment",
                false,
            ),
        ],
        map_octets: 13_107_200,
        backfilled: 1_045,
        kernel: "6.1.0-27-amd64".into(),
        took_ms: 312,
    }
}

/// A status with a loss and two collectors.
pub(crate) fn status() -> AgentStatus {
    let mut drops = Drops::default();
    drops.add(DropPoint::NameRingFull, 7);
    let mut dropped = Drops::default();
    dropped.add(DropPoint::SpoolUnwritable, 12);
    AgentStatus {
        flows: 1_234,
        records: 56_789,
        unnamed: 3,
        spool: Some(SpoolStatus {
            state: SpoolState::MemoryOnly {
                why: "No space left on device (os error 28)".into(),
            },
            octets: 3 << 20,
            segments: 2,
            ..SpoolStatus::default()
        }),
        drops,
        kernel_law: KernelLaw {
            observed_octets: 1_000_000,
            observed_packets: 2_000,
            reported_octets: 900_000,
            reported_packets: 1_800,
            held_octets: 100_000,
            held_packets: 200,
            ..KernelLaw::default()
        },
        record_law: RecordLaw::default(),
        peers: Vec::new(),
        over_limits: Vec::new(),
        coverage: Coverage {
            ends: 1_000,
            with_process: 998,
            with_names: 990,
        },
        collectors: vec![
            CollectorStatus {
                name: "ntopng-1".into(),
                endpoint: "tcp://192.0.2.1:5556".into(),
                state: CollectorState::Streaming { acknowledged: true },
                law: CollectorLaw {
                    made: 1_000,
                    taken: 900,
                    waiting: 88,
                    evicted: 0,
                    dropped,
                },
                messages: 345,
                connects: 1,
                members: Vec::new(),
            },
            CollectorStatus {
                name: "ntopng-2".into(),
                endpoint: "tcp://[2001:db8::1]:5556".into(),
                state: CollectorState::Connecting {
                    why: Some("connection refused".into()),
                },
                law: CollectorLaw {
                    made: 1_000,
                    taken: 0,
                    waiting: 1_000,
                    evicted: 0,
                    dropped: Drops::default(),
                },
                messages: 0,
                connects: 0,
                members: Vec::new(),
            },
        ],
        ..AgentStatus::default()
    }
}

/// Collectors of which one is fed: the first is away, the second does not read, others stand by.
pub(crate) fn failover() -> CollectorStatus {
    let member = |number: u64, state| MemberStatus {
        name: format!("ntopng-{number}"),
        endpoint: format!("tcp://192.0.2.{number}:5556"),
        state,
        messages: 1_000 / number,
        connects: 3 - number.min(3),
    };
    CollectorStatus {
        name: "failover".into(),
        endpoint: "tcp://192.0.2.2:5556".into(),
        state: CollectorState::Stalled,
        law: CollectorLaw {
            made: 10_000,
            taken: 9_000,
            waiting: 990,
            evicted: 10,
            dropped: Drops::default(),
        },
        messages: 1_500,
        connects: 3,
        members: vec![
            member(
                1,
                MemberState::OutOfReach {
                    why: "connection refused".into(),
                },
            ),
            member(2, MemberState::InUse),
            member(3, MemberState::StandingBy),
            member(4, MemberState::Unknown),
        ],
    }
}

fn record(number: u64, initiator: Party, responder: Party) -> FlowRecord {
    let at = |s: u64| WallTime((NOON + s) * 1_000_000_000 + 250_000_000);
    FlowRecord {
        id: RecordId {
            boot: BootId([0xab; 16]),
            cookie: Cookie(number),
            stream: 0,
            part: 2,
        },
        first: false,
        protocol: Protocol::Tcp,
        initiator,
        responder,
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(4_026_531_840),
        counting: Counting::Delta,
        delta: traffic(500, 1_500),
        total: traffic(1_500, 45_678),
        start: at(number),
        delta_start: at(number + 1),
        end: at(number + 2),
        tcp: Some(TcpFigures {
            handshake_us: Some(12_000),
            rtt_us: Some(12_345),
            rtt_variance_us: Some(900),
            rtt_min_us: Some(11_000),
            retransmits_forward: 1,
            retransmits_backward: 0,
            flags_forward: 0x1b,
            flags_backward: 0x1b,
            state: Some(TcpState::Established),
        }),
        reason: EndReason::ActiveTimeout,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

fn traffic(forward: u64, backward: u64) -> Traffic {
    let counts = |octets: u64| Counts {
        octets,
        packets: octets.div_ceil(1_000),
        payload: octets / 2,
    };
    Traffic {
        forward: counts(forward),
        backward: counts(backward),
    }
}

fn owner_at(socket: &str, owner: Owner) -> Party {
    let socket: std::net::SocketAddr = socket.parse().expect("the sample is sound");
    Party {
        endpoint: Endpoint {
            address: socket.ip(),
            port: socket.port(),
        },
        owner,
    }
}

fn remote(socket: &str) -> Party {
    owner_at(socket, Owner::unknown(Unknown::Remote))
}

fn owner(executable: &str, pid: u32, user: &str, container: Option<&str>) -> Owner {
    Owner {
        confidence: Confidence::Exact,
        process: Some(Process {
            key: ProcessKey {
                pid,
                start: KernelTime(77_000),
            },
            parent_pid: 100,
            uid: 1000,
            gid: 1000,
            cgroup_id: 5_005,
            comm: executable.rsplit('/').next().unwrap_or_default().into(),
        }),
        names: Some(Arc::new(Names {
            executable: Some(executable.into()),
            command_line: Some(format!("{executable} --password ***")),
            user: Some(user.into()),
            group: Some("users".into()),
            parent: Some(Parent {
                pid: 100,
                executable: "/bin/bash".into(),
                uid: Some(1000),
                user: Some(user.into()),
            }),
            container: container.map(|name| Container {
                id: "0123456789abcdef".repeat(4),
                runtime: Runtime::Docker,
                name: Some(name.into()),
                pod: None,
            }),
            unit: match container {
                Some(_) => None,
                None => Some("app.service".into()),
            },
        })),
    }
}
