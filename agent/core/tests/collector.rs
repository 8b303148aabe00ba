//! What goes out to a collector, in which order and when, without a socket or a clock.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent_core::collector::window::{OnRestart, WindowLimits};
use flowtilla_agent_core::collector::{
    Collector, CollectorOptions, EVENT_INTERVAL, LINGER, LISTENING_INTERVAL, PING_INTERVAL, Progress,
    STALLED_AFTER, Transmit, Wanted,
};
use flowtilla_agent_core::encode::header::Topic;
use flowtilla_agent_core::encode::tlv::{Loopback, TlvOptions};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, CollectorSlot, Counting, EndReason, FlowRecord, Party, Protocol, RecordId, Traffic,
};
use flowtilla_agent_core::loss::DropPoint;
use flowtilla_agent_core::observe::{Cookie, Endpoint, NetNs};
use flowtilla_agent_core::owner::{Owner, Unknown};
use flowtilla_agent_core::time::{KernelTime, WallTime};

const START: KernelTime = KernelTime(1_000_000_000_000);
const FLOWS: Wanted = Wanted {
    flows: true,
    events: false,
    listening: false,
};
const ALL: Wanted = Wanted {
    flows: true,
    events: true,
    listening: true,
};

fn record() -> FlowRecord {
    let party = |last| Party {
        endpoint: Endpoint {
            address: IpAddr::from([192, 0, 2, last]),
            port: 1,
        },
        owner: Owner::unknown(Unknown::Remote),
    };
    FlowRecord {
        id: RecordId {
            boot: BootId([0; 16]),
            cookie: Cookie(1),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Udp,
        initiator: party(1),
        responder: party(2),
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta: Traffic::default(),
        total: Traffic::default(),
        start: WallTime(0),
        delta_start: WallTime(0),
        end: WallTime(0),
        tcp: None,
        reason: EndReason::IdleTimeout,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

fn options(records_per_second: u64) -> CollectorOptions {
    CollectorOptions {
        slot: CollectorSlot(2),
        tlv: TlvOptions {
            loopback: Loopback::Omit,
            ..TlvOptions::default()
        },
        limits: WindowLimits {
            window_octets: 1 << 20,
            queue_records_max: 10_000,
            queue_octets_max: 8 << 20,
            replay_octets_max: 4 << 20,
        },
        on_restart: OnRestart::Replay,
        records_per_second,
    }
}

fn connected(acknowledges: bool, wanted: Wanted) -> Collector {
    let mut collector = Collector::new(&options(1_000_000));
    collector.handle_connected(acknowledges, START);
    collector.handle_subscriptions(wanted);
    collector
}

fn offer(collector: &mut Collector, count: u32, now: KernelTime) {
    for _ in 0..count {
        collector.offer(&record(), now);
    }
}

fn flows_id(transmit: Option<Transmit>) -> u32 {
    match transmit {
        Some(Transmit::Flows { id, .. }) => id,
        other => panic!("{other:?}"),
    }
}

fn ping(sequence: u64) -> Option<Transmit> {
    Some(Transmit::Ping(sequence.to_be_bytes()))
}

#[test]
fn ping_with_the_sequence_follows_each_batch_and_its_pong_means_taken() {
    let mut collector = connected(true, FLOWS);
    offer(&mut collector, 250, START);
    assert_eq!(flows_id(collector.poll_transmit(START)), 1);
    assert_eq!(collector.poll_transmit(START), ping(1));
    assert_eq!(flows_id(collector.poll_transmit(START)), 2);
    assert_eq!(collector.poll_transmit(START), ping(2));
    assert_eq!(collector.poll_transmit(START), None, "50 records wait for more");
    collector.handle_pong(&2_u64.to_be_bytes(), START);
    let law = collector.law();
    assert_eq!((law.made, law.taken, law.waiting), (250, 200, 50));
}

#[test]
fn partial_batch_goes_after_the_linger() {
    let mut collector = connected(true, FLOWS);
    offer(&mut collector, 3, START);
    assert_eq!(collector.poll_transmit(START), None);
    let due = collector.poll_timeout();
    assert_eq!(due, Some(START.after(LINGER)));
    assert_eq!(flows_id(collector.poll_transmit(START.after(LINGER))), 1);
}

#[test]
fn nothing_goes_before_the_subscription() {
    let mut collector = connected(true, Wanted::default());
    offer(&mut collector, 500, START);
    let later = START.after(Duration::from_secs(100));
    assert_eq!(collector.poll_transmit(later), None);
    assert_eq!(collector.poll_timeout(), None);
    assert_eq!(collector.progress(later), Progress::AwaitingSubscription);
    collector.handle_subscriptions(FLOWS);
    assert_eq!(flows_id(collector.poll_transmit(later)), 1);
}

#[test]
fn announcements_come_first_and_by_time_and_share_the_ids() {
    let mut collector = connected(true, ALL);
    offer(&mut collector, 100, START);
    assert_eq!(
        collector.poll_transmit(START),
        Some(Transmit::Announce(Topic::Event))
    );
    assert_eq!(collector.announce(), 1);
    // Not known: nothing is sent, and no id is spent.
    assert_eq!(
        collector.poll_transmit(START),
        Some(Transmit::Announce(Topic::ListeningPorts))
    );
    assert_eq!(flows_id(collector.poll_transmit(START)), 2);
    assert_eq!(collector.poll_transmit(START), ping(1));
    assert_eq!(collector.poll_transmit(START), None);
    collector.handle_pong(&1_u64.to_be_bytes(), START);
    assert_eq!(collector.poll_timeout(), Some(START.after(EVENT_INTERVAL)));
    let next = START.after(EVENT_INTERVAL);
    assert_eq!(
        collector.poll_transmit(next),
        Some(Transmit::Announce(Topic::Event))
    );
    assert_eq!(collector.announce(), 3);
    assert_eq!(collector.poll_transmit(next), None);
    let minute = START.after(LISTENING_INTERVAL);
    assert_eq!(
        collector.poll_transmit(minute),
        Some(Transmit::Announce(Topic::Event))
    );
    assert_eq!(
        collector.poll_transmit(minute),
        Some(Transmit::Announce(Topic::ListeningPorts))
    );
}

#[test]
fn ping_is_repeated_each_second_while_something_is_on_the_way_and_then_it_is_stalled() {
    let mut collector = connected(true, FLOWS);
    offer(&mut collector, 100, START);
    flows_id(collector.poll_transmit(START));
    assert_eq!(collector.poll_transmit(START), ping(1));
    assert_eq!(collector.poll_timeout(), Some(START.after(PING_INTERVAL)));
    let mut now = START;
    for _ in 0..10 {
        now = now.after(PING_INTERVAL);
        assert_eq!(collector.poll_transmit(now), ping(1));
        assert_eq!(collector.poll_transmit(now), None);
    }
    assert!(now.since(START) > STALLED_AFTER);
    assert_eq!(collector.progress(now), Progress::Stalled);
    collector.handle_pong(&1_u64.to_be_bytes(), now);
    assert_eq!(
        collector.progress(now),
        Progress::Streaming { acknowledged: true }
    );
    assert_eq!(
        collector.poll_timeout(),
        None,
        "nothing on the way, nothing to ask"
    );
}

#[test]
fn foreign_pongs_are_ignored() {
    let mut collector = connected(true, FLOWS);
    offer(&mut collector, 100, START);
    flows_id(collector.poll_transmit(START));
    for context in [
        &b""[..],
        b"1",
        &[0; 16],
        &0_u64.to_be_bytes(),
        &2_u64.to_be_bytes(),
        &[0xff; 8],
    ] {
        collector.handle_pong(context, START);
        assert_eq!(collector.law().taken, 0, "{context:?}");
    }
}

#[test]
fn peer_without_pings_takes_when_written() {
    let mut collector = connected(false, FLOWS);
    offer(&mut collector, 200, START);
    assert_eq!(flows_id(collector.poll_transmit(START)), 1);
    assert_eq!(flows_id(collector.poll_transmit(START)), 2, "no PING between");
    collector.handle_pong(&2_u64.to_be_bytes(), START);
    assert_eq!(collector.law().taken, 0, "a PONG that nobody asked for");
    collector.handle_written(START);
    assert_eq!((collector.law().taken, collector.law().waiting), (200, 0));
    assert_eq!(
        collector.progress(START),
        Progress::Streaming { acknowledged: false }
    );
}

#[test]
fn written_means_nothing_where_pings_are_answered() {
    let mut collector = connected(true, FLOWS);
    offer(&mut collector, 100, START);
    flows_id(collector.poll_transmit(START));
    collector.handle_written(START);
    assert_eq!(collector.law().taken, 0);
}

#[test]
fn ids_begin_anew_on_each_connection_and_what_was_on_the_way_comes_again() {
    let mut collector = connected(true, FLOWS);
    offer(&mut collector, 200, START);
    let first = collector.poll_transmit(START);
    assert_eq!(collector.poll_transmit(START), ping(1));
    collector.handle_disconnected();
    assert_eq!(collector.poll_transmit(START), None);
    assert_eq!(collector.progress(START), Progress::Disconnected);
    collector.handle_connected(true, START);
    collector.handle_subscriptions(FLOWS);
    assert_eq!(collector.poll_transmit(START), first, "same id, same payload");
}

#[test]
fn pace_is_kept() {
    let mut collector = Collector::new(&options(1_000));
    collector.handle_connected(false, START);
    collector.handle_subscriptions(FLOWS);
    offer(&mut collector, 5_000, START);
    let mut now = START;
    let mut sent = 0;
    while collector.law().waiting > 0 {
        while let Some(Transmit::Flows { .. }) = collector.poll_transmit(now) {
            sent += 100;
        }
        collector.handle_written(now);
        if let Some(at) = collector.poll_timeout() {
            assert!(at > now, "never asked again at once");
            now = at;
        }
    }
    assert_eq!(sent, 5_000);
    let took = now.since(START);
    assert!(took >= Duration::from_millis(4_700), "{took:?}");
    assert!(took <= Duration::from_millis(5_000), "{took:?}");
}

#[test]
fn withheld_and_unfit_records_are_counted_each_at_its_place() {
    let mut collector = connected(true, FLOWS);
    let mut held = record();
    held.held_from.insert(CollectorSlot(2));
    let mut loopback = record();
    loopback.initiator.endpoint.address = [127, 0, 0, 1].into();
    loopback.responder.endpoint.address = [127, 0, 0, 1].into();
    let mut huge = record();
    huge.delta.forward.octets = u64::MAX;
    for record in [held, loopback, huge, record()] {
        collector.offer(&record, START);
    }
    let law = collector.law();
    assert_eq!((law.made, law.waiting, law.missing()), (4, 1, 0));
    assert_eq!(law.dropped.at(DropPoint::Withheld), 2);
    assert_eq!(law.dropped.at(DropPoint::RecordTooLarge), 1);
    collector.give_up(DropPoint::ShutdownGrace);
    assert_eq!(collector.law().dropped.at(DropPoint::ShutdownGrace), 1);
    assert!(collector.is_idle());
}

/// Histories by seed: whatever comes in which order, ids count by one, time is never asked for twice at one moment,
/// and the law holds.
#[test]
fn generated_histories_keep_every_promise() {
    for seed in 0..16 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut collector = Collector::new(&options(random.u64(1_000..1_000_000)));
        let (mut now, mut last_id, mut made) = (START, 0, 0);
        let mut contexts: Vec<[u8; 8]> = Vec::new();
        for _ in 0..2_000 {
            match random.u32(0..100) {
                0..40 => {
                    let count = random.u32(1..400);
                    offer(&mut collector, count, now);
                    made += u64::from(count);
                }
                40..60 => now = now.after(Duration::from_millis(random.u64(0..2_000))),
                60..75 => {
                    for context in contexts.drain(..random.usize(0..=contexts.len())) {
                        collector.handle_pong(&context, now);
                    }
                }
                75..80 => {
                    collector.handle_connected(random.bool(), now);
                    (last_id, contexts) = (0, Vec::new());
                }
                80..85 => collector.handle_subscriptions(Wanted {
                    flows: random.bool(),
                    events: random.bool(),
                    listening: random.bool(),
                }),
                85..87 => collector.handle_disconnected(),
                87 => collector.handle_restarted(),
                _ => {
                    while let Some(transmit) = collector.poll_transmit(now) {
                        let id = match transmit {
                            Transmit::Flows { id, payload } => {
                                assert_ne!(payload, Bytes::new());
                                id
                            }
                            Transmit::Announce(_) => collector.announce(),
                            Transmit::Ping(context) => {
                                contexts.push(context);
                                continue;
                            }
                        };
                        assert_eq!(id, last_id + 1, "seed {seed}");
                        last_id = id;
                    }
                    collector.handle_written(now);
                    let due = collector.poll_timeout();
                    assert!(due.is_none_or(|at| at > now), "seed {seed}: {due:?} at {now:?}");
                }
            }
            let law = collector.law();
            assert_eq!((law.missing(), law.made), (0, made), "seed {seed}: {law:?}");
            assert!(collector.held_octets() <= 8 << 20, "seed {seed}");
        }
    }
}
