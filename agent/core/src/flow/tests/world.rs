//! Sockets as the kernel would show them, and a driver that polls the table as the agent does.

use std::net::IpAddr;
use std::time::Duration;

use flowtilla_abi as abi;

use crate::flow::record::{BootId, FlowRecord};
use crate::flow::{FlowTable, TableOptions};
use crate::observe::{
    Cookie, Endpoint, NetNs, Observation, TcpObservation, TcpRole, TcpSight, TcpState, Tuple, UdpCounters,
    UdpObservation,
};
use crate::owner::{Confidence, Owner, Process, ProcessKey, Unknown};
use crate::time::{KernelTime, WallOffset};

pub(in crate::flow) const BEGIN: u64 = 1_000_000_000_000;

/// Milliseconds after the begin of the test.
pub(in crate::flow) fn ms(ms: u64) -> KernelTime {
    KernelTime(BEGIN + ms * 1_000_000)
}

pub(in crate::flow) fn options() -> TableOptions {
    TableOptions::new(BootId([7; 16]))
}

pub(in crate::flow) fn table() -> FlowTable {
    FlowTable::new(options())
}

pub(in crate::flow) fn small_table(max_flows: usize) -> FlowTable {
    FlowTable::new(TableOptions {
        max_flows,
        ..options()
    })
}

pub(in crate::flow) fn end(text: &str) -> Endpoint {
    let (address, port) = text.rsplit_once(':').expect("address:port");
    Endpoint {
        address: address
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .expect("an address"),
        port: port.parse().expect("a port"),
    }
}

pub(in crate::flow) fn tuple(local: &str, remote: &str) -> Tuple {
    Tuple {
        local: end(local),
        remote: end(remote),
        netns: NetNs(1),
    }
}

pub(in crate::flow) fn owner(pid: u32, confidence: Confidence) -> Owner {
    Owner {
        confidence,
        process: Some(Process {
            key: ProcessKey {
                pid,
                start: KernelTime(u64::from(pid)),
            },
            parent_pid: 1,
            uid: 1000,
            gid: 1000,
            cgroup_id: 3,
            comm: format!("process-{pid}").into(),
        }),
        names: None,
    }
}

pub(in crate::flow) fn nobody() -> Owner {
    Owner::unknown(Unknown::NotSeen)
}

/// An established connection without payload yet, with timestamps: SYN and ACK sent, SYN-ACK received (or the reverse).
pub(in crate::flow) fn tcp(cookie: u64, role: TcpRole, tuple: Tuple) -> TcpObservation {
    let passive = role == TcpRole::Passive;
    TcpObservation {
        cookie: Cookie(cookie),
        at: ms(0),
        sight: TcpSight::Snap,
        tuple,
        role,
        backfilled: false,
        again: false,
        start: ms(0),
        established: Some(ms(1)),
        end: None,
        owner: owner(u32::try_from(cookie).expect("a small cookie"), Confidence::Exact),
        counters: abi::TcpCounters {
            bytes_sent: 0,
            bytes_retrans: 0,
            bytes_received: 0,
            segs_out: if passive { 0 } else { 2 },
            segs_in: if passive { 2 } else { 1 },
            retransmits: 0,
            srtt_us: 900,
            rttvar_us: 100,
            rtt_min_us: 700,
            send_queue: 0,
            error: 0,
            header_octets: 32,
            state: 1,
            flags: 0,
            pad: 0,
        },
        state: TcpState::Established,
    }
}

pub(in crate::flow) fn active(cookie: u64) -> TcpObservation {
    tcp(cookie, TcpRole::Active, tuple("10.0.0.1:40000", "192.0.2.9:443"))
}

/// A UDP peer that has exchanged datagrams of 100 octets.
pub(in crate::flow) fn udp(
    cookie: u64,
    tuple: Tuple,
    sent: u64,
    received: u64,
    last: KernelTime,
) -> UdpObservation {
    UdpObservation {
        cookie: Cookie(cookie),
        at: last,
        tuple,
        owner: Some(owner(
            u32::try_from(cookie).expect("a small cookie"),
            Confidence::Exact,
        )),
        backfilled: false,
        counters: UdpCounters {
            first: ms(0),
            last,
            packets_out: sent,
            packets_in: received,
            octets_out: 128 * sent,
            octets_in: 128 * received,
            payload_out: 100 * sent,
            payload_in: 100 * received,
            peer_first: false,
        },
        ended: false,
    }
}

/// Builders for what comes next of the same socket.
pub(in crate::flow) trait Next: Sized {
    fn at(self, at: KernelTime) -> Self;
}

impl Next for TcpObservation {
    fn at(mut self, at: KernelTime) -> Self {
        self.at = at;
        self
    }
}

impl Next for UdpObservation {
    fn at(mut self, at: KernelTime) -> Self {
        self.at = at;
        self
    }
}

impl TcpObservation {
    pub(in crate::flow) fn moved(mut self, octets_out: u64, octets_in: u64) -> Self {
        self.counters.bytes_sent += octets_out;
        self.counters.segs_out += 1;
        self.counters.bytes_received += octets_in;
        self.counters.segs_in += 1;
        self
    }

    pub(in crate::flow) fn ended(mut self, at: KernelTime, left: TcpState, error: u32) -> Self {
        self.at = at;
        self.end = Some(at);
        self.sight = TcpSight::Ended;
        self.state = left;
        self.counters.error = error;
        self
    }
}

pub(in crate::flow) fn see_tcp(table: &mut FlowTable, seen: &TcpObservation) {
    table.observe(&Observation::Tcp(seen.clone()));
    table.check();
}

pub(in crate::flow) fn see_udp(table: &mut FlowTable, seen: &UdpObservation) {
    table.observe(&Observation::Udp(seen.clone()));
    table.check();
}

/// Everything that is reported until `now`, deadlines in their order.
pub(in crate::flow) fn records_until(table: &mut FlowTable, now: KernelTime) -> Vec<FlowRecord> {
    let mut records = Vec::new();
    loop {
        let due = table.poll_timeout().filter(|&due| due <= now);
        table.handle_timeout(due.unwrap_or(now));
        table.check();
        records.extend(polled(table));
        if due.is_none() {
            return records;
        }
    }
}

/// Everything that waits to be polled. Wall time is kernel time here.
pub(in crate::flow) fn polled(table: &mut FlowTable) -> Vec<FlowRecord> {
    std::iter::from_fn(|| {
        let record = table.poll_record(WallOffset(0));
        table.check();
        record
    })
    .collect()
}

/// The only record until `now`.
pub(in crate::flow) fn one_until(table: &mut FlowTable, now: KernelTime) -> FlowRecord {
    let records = records_until(table, now);
    assert_eq!(records.len(), 1, "{records:#?}");
    records.into_iter().next().expect("counted")
}

pub(in crate::flow) fn due(table: &mut FlowTable) -> Vec<u64> {
    let mut cookies = Vec::new();
    table.poll_due(&mut cookies, 1024);
    cookies.into_iter().map(|cookie| cookie.0).collect()
}

pub(in crate::flow) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl FlowTable {
    /// Checks everything that must hold after every call.
    pub(in crate::flow) fn check(&self) {
        let law = self.law();
        assert!(law.holds(), "{law:?}");
        let (mut octets, mut packets) = (0, 0);
        let deadlines = self.deadlines.all();
        for (handle, flow) in self.flows.iter() {
            let deadline = flow.deadline.expect("a flow in the table has a deadline");
            assert!(
                deadlines.contains(&(deadline, handle)),
                "{:?} is not in its place",
                flow.key
            );
            octets += flow.unreported().octets();
            packets += flow.unreported().packets();
        }
        assert_eq!((law.held_octets, law.held_packets), (octets, packets), "held");
        assert!(self.flows.len() <= self.options.max_flows);
        self.check_twins();
    }
}
