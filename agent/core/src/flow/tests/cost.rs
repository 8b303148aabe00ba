//! What a flow costs: octets that are pinned, and times that are printed (`--release -- --ignored --nocapture cost`).

use std::hint::black_box;
use std::mem::size_of;
use std::time::{Duration, Instant};

use super::world::*;
use crate::flow::entry::Flow;
use crate::flow::key::{FlowKey, PairKey, PeerKey};
use crate::flow::record::FlowRecord;
use crate::flow::{FlowTable, TableOptions};
use crate::observe::{Cookie, Observation, TcpObservation, TcpState};
use crate::time::WallOffset;

const FLOWS: u64 = 60_000;

#[test]
fn flow_stays_small() {
    for (name, octets) in [
        ("Flow", size_of::<Flow>()),
        ("FlowKey", size_of::<FlowKey>()),
        ("PairKey", size_of::<PairKey>()),
        ("PeerKey", size_of::<PeerKey>()),
        ("FlowRecord", size_of::<FlowRecord>()),
    ] {
        println!("{name} {octets}");
    }
    assert!(
        size_of::<Flow>() <= 416,
        "a flow takes {} octets",
        size_of::<Flow>()
    );
}

#[test]
#[ignore = "prints memory: run alone"]
fn cost_in_memory() {
    let before = resident_octets();
    let mut table = large_table();
    for n in 1..=FLOWS {
        table.observe(&Observation::Tcp(at(n, 1)));
    }
    let octets = (resident_octets() - before) / FLOWS;
    println!("{octets} octets of memory a TCP flow");
    assert!(octets <= 1024);
}

#[test]
#[ignore = "prints times: run alone, in release"]
fn cost_of_an_observation() {
    let mut table = large_table();
    let tcp = |seen| Observation::Tcp(seen);
    feed(&mut table, "opens (TCP)", (1..=FLOWS).map(|n| tcp(at(n, 1))));
    drive(&mut table, 1000);
    feed(
        &mut table,
        "grows",
        (1..=FLOWS).map(|n| tcp(at(n, 2000).moved(100, 100))),
    );
    feed(
        &mut table,
        "copies",
        (1..=FLOWS).map(|n| tcp(at(n, 2000).moved(100, 100))),
    );
    drive(&mut table, 10_600);
    feed(
        &mut table,
        "answers snaps",
        (1..=FLOWS).map(|n| tcp(at(n, 10_700).moved(200, 200))),
    );
    drive(&mut table, 11_100);
    let mut octets = Vec::new();
    let took = watch(|| octets = table.checkpoint().to_octets());
    println!(
        "checkpoint: {} ns and {} octets a flow",
        took.as_nanos() / u128::from(FLOWS),
        octets.len() as u64 / FLOWS
    );
    let ended = |n| {
        tcp(at(n, 11_500)
            .moved(300, 300)
            .ended(ms(11_500), TcpState::LastAck, 0))
    };
    feed(&mut table, "ends", (1..=FLOWS).map(ended));
    drive(&mut table, 12_000);
    assert_eq!(table.flows(), 0);

    let udp_of = |n: u64, packets, last| {
        let mut seen = udp(
            n % 5000 + 1_000_000,
            tuple("10.0.0.1:53", "192.0.2.9:443"),
            packets,
            0,
            ms(last),
        );
        seen.tuple.remote.port = u16::try_from(n % 60_000 + 1).expect("a port");
        seen.counters.first = ms(12_000);
        Observation::Udp(seen)
    };
    feed(
        &mut table,
        "opens (UDP)",
        (0..FLOWS).map(|n| udp_of(n, 1, 12_001)),
    );
    drive(&mut table, 13_000);
    feed(
        &mut table,
        "grows (UDP)",
        (0..FLOWS).map(|n| udp_of(n, 2, 13_500)),
    );
    drive(&mut table, 40_000);
    assert!(table.law().holds());
}

fn large_table() -> FlowTable {
    FlowTable::new(TableOptions {
        max_flows: 65_536,
        ..options()
    })
}

/// One of [`FLOWS`] connections of 200 processes.
fn at(seen: u64, when: u64) -> TcpObservation {
    let mut next = active(seen);
    next.owner = owner(
        u32::try_from(seen % 200).expect("small") + 1,
        crate::owner::Confidence::Exact,
    );
    next.tuple.local.port = u16::try_from(1024 + seen % 60_000).expect("a port");
    next.at = ms(when);
    next.start = ms(0);
    next
}

/// Observations are made before the watch starts.
fn feed(table: &mut FlowTable, what: &str, seen: impl Iterator<Item = Observation>) {
    let seen: Vec<_> = seen.collect();
    let took = watch(|| {
        for seen in &seen {
            table.observe(black_box(seen));
        }
    });
    println!("{what}: {} ns each", took.as_nanos() / seen.len() as u128);
}

fn drive(table: &mut FlowTable, until_ms: u64) {
    let (mut records, mut snaps) = (0_u32, Vec::<Cookie>::new());
    let took = watch(|| {
        loop {
            table.handle_timeout(ms(until_ms));
            while let Some(record) = table.poll_record(WallOffset(0)) {
                records += 1;
                black_box(record);
            }
            table.poll_due(&mut snaps, usize::MAX);
            while table.poll_forget().is_some() {}
            if table.poll_timeout().is_none_or(|due| due > ms(until_ms)) {
                break;
            }
        }
    });
    let done = u128::from(records) + snaps.len() as u128;
    println!(
        "until {until_ms} ms: {records} records, {} snaps, {} ns each",
        snaps.len(),
        took.as_nanos() / done.max(1)
    );
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(super) fn watch(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

fn resident_octets() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line
        .and_then(|line| line.split_whitespace().nth(1))
        .expect("a figure");
    kib.parse::<u64>().expect("a number") * 1024
}
