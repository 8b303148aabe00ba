//! Records as a busy host makes them.

use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::record::{
    BootId, CollectorSet, Counting, Counts, EndReason, FlowRecord, Party, Protocol, RecordId, TcpFigures,
    Traffic,
};
use crate::observe::{Cookie, Endpoint, NetNs, TcpState};
use crate::owner::{Confidence, Container, Names, Owner, Parent, Process, ProcessKey, Runtime, Unknown};
use crate::spool::Value;
use crate::spool::value::{Builder, Pushed, decode};
use crate::time::{KernelTime, WallTime};

pub(super) const BOOT: BootId = BootId(*b"a boot, one only");

/// `n`th process of a host where each has a command line of 120 octets, and half of them run in a container.
pub(super) fn process(n: u32) -> Owner {
    let words = [
        "serve", "worker", "proxy", "ingest", "render", "queue", "index", "watch", "relay", "audit",
    ];
    let word = words[n as usize % words.len()];
    let mut line = format!(
        "/usr/bin/{word}d --config /etc/{word}/{n}.conf --listen 0.0.0.0:{}",
        8000 + n
    );
    while line.len() < 120 {
        line.push_str(&format!(
            " --{}={}",
            words[(n as usize + line.len()) % words.len()],
            line.len() * 37 + n as usize
        ));
    }
    line.truncate(120);
    Owner {
        confidence: Confidence::Exact,
        process: Some(Process {
            key: ProcessKey {
                pid: 1000 + 7 * n,
                start: KernelTime(5_000_000_000 + u64::from(n) * 1_234_567_891),
            },
            parent_pid: 1 + n % 3,
            uid: 100 + n % 5,
            gid: 100 + n % 5,
            cgroup_id: 5_000 + u64::from(n) * 41,
            comm: format!("{word}d").into(),
        }),
        names: Some(Arc::new(Names {
            executable: Some(format!("/usr/bin/{word}d")),
            command_line: Some(line),
            user: Some(word.to_owned()),
            group: Some(word.to_owned()),
            parent: Some(Parent {
                pid: 1 + n % 3,
                executable: "/usr/lib/systemd/systemd".to_owned(),
                uid: Some(0),
                user: Some("root".to_owned()),
            }),
            container: (n % 2 == 1).then(|| Container {
                id: (0..8)
                    .map(|k| format!("{:08x}", (n + k).wrapping_mul(2_654_435_761)))
                    .collect(),
                runtime: Runtime::Containerd,
                name: Some(format!("{word}-{n}")),
                pod: None,
            }),
            unit: n.is_multiple_of(4).then(|| format!("{word}.service")),
        })),
    }
}

/// `count` records of a busy host: 20 processes, random ports and sizes, both ends named unless `remote`; one of three
/// is a later record of its flow, one of ten is UDP.
pub(super) fn busy(count: u64, remote: bool, seed: u64) -> Vec<FlowRecord> {
    of_processes(20, count, remote, seed)
}

/// The same of any number of processes.
pub(super) fn of_processes(processes: u32, count: u64, remote: bool, seed: u64) -> Vec<FlowRecord> {
    let mut random = fastrand::Rng::with_seed(seed);
    let owners: Vec<_> = (0..processes).map(process).collect();
    (0..count)
        .map(|n| busy_record(n, &owners, remote, &mut random))
        .collect()
}

fn busy_record(n: u64, owners: &[Owner], remote: bool, random: &mut fastrand::Rng) -> FlowRecord {
    let (later, udp) = (random.u8(..3) == 0, random.u8(..10) == 0);
    let (ip, header) = (20, if udp { 8 } else { 32 });
    let mut counts = || {
        let size = random.u32(6..22);
        let payload = random.u64(..1 << size);
        let packets = 2 + payload / 1400 + random.u64(..4);
        Counts {
            octets: payload + packets * (ip + header) + if udp { 0 } else { 8 },
            packets,
            payload,
        }
    };
    let delta = Traffic {
        forward: counts(),
        backward: counts(),
    };
    let more = counts();
    let total = if later {
        Traffic {
            forward: Counts {
                octets: delta.forward.octets + more.octets,
                packets: delta.forward.packets + more.packets,
                payload: delta.forward.payload + more.payload,
            },
            backward: delta.backward,
        }
    } else {
        delta
    };
    let start = 1_760_000_000_000_000_000 + n * 10_000 + random.u64(..2_000_000_000);
    let delta_start = start + if later { 10_000_000_000 } else { 0 };
    let owner = |random: &mut fastrand::Rng| owners[random.usize(..owners.len())].clone();
    FlowRecord {
        id: RecordId {
            boot: BOOT,
            cookie: Cookie(100_000 + n + random.u64(..64)),
            stream: if udp { random.u8(1..5).into() } else { 0 },
            part: if later { 2 } else { 1 },
        },
        first: !later,
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
        initiator: Party {
            endpoint: Endpoint {
                address: IpAddr::from([10, 1, 0, random.u8(1..9)]),
                port: random.u16(32_768..),
            },
            owner: owner(random),
        },
        responder: Party {
            endpoint: Endpoint {
                address: IpAddr::from([10, random.u8(1..4), random.u8(..), random.u8(..)]),
                port: [443, 80, 5432, 6379, 53][random.usize(..5)],
            },
            owner: if remote {
                Owner::unknown(Unknown::Remote)
            } else {
                owner(random)
            },
        },
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(4_026_531_840),
        counting: Counting::Delta,
        delta,
        total,
        start: WallTime(start),
        delta_start: WallTime(delta_start),
        end: WallTime(delta_start + random.u64(..9_000_000_000)),
        tcp: (!udp).then(|| TcpFigures {
            handshake_us: Some(random.u32(100..50_000)),
            rtt_us: Some(random.u32(100..50_000)),
            rtt_variance_us: Some(random.u32(50..20_000)),
            rtt_min_us: Some(random.u32(50..20_000)),
            retransmits_forward: u32::from(random.u8(..20) == 0),
            retransmits_backward: 0,
            flags_forward: 0x1b,
            flags_backward: 0x1b,
            state: Some(if later {
                TcpState::Established
            } else {
                TcpState::LastAck
            }),
        }),
        reason: if later {
            EndReason::ActiveTimeout
        } else {
            EndReason::EndOfFlow
        },
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

/// All values of these records, from sequence 1.
pub(super) fn values(builder: &mut Builder, records: &[FlowRecord]) -> Vec<Value> {
    let (mut values, mut next) = (Vec::new(), 1);
    let mut seal = |builder: &mut Builder| {
        let value = builder.seal(next)?;
        next = value.last() + 1;
        values.push(value);
        Some(())
    };
    for record in records {
        loop {
            match builder.push(record) {
                Pushed::Added => break,
                Pushed::Full => seal(builder).expect("a full builder has something to seal"),
                Pushed::TooLarge => panic!("no such record"),
            }
        }
    }
    while seal(builder).is_some() {}
    values
}

/// What is read back of values.
pub(super) fn read(values: &[Value]) -> Vec<FlowRecord> {
    let records = values.iter().flat_map(|value| {
        let (header, records) = decode(&value.octets, Some(value.first)).expect("a value");
        assert_eq!((header.first, header.records), (value.first, value.records));
        records
    });
    records.collect()
}
