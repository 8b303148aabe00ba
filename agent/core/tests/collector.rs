//! What goes out to a collector, in which order and when, without a socket or a clock.

use std::net::IpAddr;
use std::time::Duration;

use flowtilla_agent_core::collector::window::OnRestart;
use flowtilla_agent_core::collector::{
    Collector, CollectorOptions, EVENT_INTERVAL, LINGER, LISTENING_INTERVAL, PING_INTERVAL, Progress,
    READ_AGAIN_AFTER, READ_OCTETS, ROUND_TRIP_SLOW_MAX, ReadWanted, STALLED_AFTER, Transmit, Wanted,
};
use flowtilla_agent_core::encode::header::{PayloadEncoding, Topic};
use flowtilla_agent_core::encode::tlv::{Loopback, RECORDS_MAX, TlvOptions};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, CollectorSlot, Counting, EndReason, FlowRecord, Party, Protocol, RecordId, Traffic,
};
use flowtilla_agent_core::loss::DropPoint;
use flowtilla_agent_core::observe::{Cookie, Endpoint, NetNs};
use flowtilla_agent_core::owner::{Owner, Unknown};
use flowtilla_agent_core::spool::{Cursor, LostCause};
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
        encoding: PayloadEncoding::Tlv,
        tlv: TlvOptions {
            loopback: Loopback::Omit,
            ..TlvOptions::default()
        },
        window_octets: 1 << 20,
        message_records_max: RECORDS_MAX,
        on_restart: OnRestart::Replay,
        records_per_second,
    }
}

/// A collector and a spool that answers at once, with values of 160 records.
struct Fed {
    collector: Collector,
    records: Vec<FlowRecord>,
}

impl Fed {
    fn new(records_per_second: u64) -> Self {
        Self {
            collector: Collector::new(&options(records_per_second), &Cursor::beginning_at(0)),
            records: Vec::new(),
        }
    }

    fn connected(acknowledges: bool, wanted: Wanted) -> Self {
        let mut fed = Self::new(1_000_000);
        fed.handle_connected(acknowledges, START);
        fed.handle_subscriptions(wanted);
        fed
    }

    fn append(&mut self, records: impl IntoIterator<Item = FlowRecord>) {
        self.records.extend(records);
        let newest = self.records.len() as u64;
        self.handle_readable(newest);
    }

    fn offer(&mut self, count: usize) {
        self.append(std::iter::repeat_with(record).take(count));
    }

    fn poll(&mut self, now: KernelTime) -> Option<Transmit> {
        loop {
            if let Some(transmit) = self.poll_transmit(now) {
                return Some(transmit);
            }
            let ReadWanted { after, octets } = self.poll_read(now)?;
            assert_eq!(octets, READ_OCTETS);
            let at = usize::try_from(after).expect("a small number") / 160 * 160;
            let end = self.records.len().min(at + 160);
            let value = self.records[at..end].to_vec();
            assert!(self.handle_values(at as u64 + 1, &value, now));
        }
    }
}

impl std::ops::Deref for Fed {
    type Target = Collector;
    fn deref(&self) -> &Collector {
        &self.collector
    }
}

impl std::ops::DerefMut for Fed {
    fn deref_mut(&mut self) -> &mut Collector {
        &mut self.collector
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
fn ping_with_the_last_sequence_follows_each_message_and_its_pong_means_taken() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(250);
    assert_eq!(flows_id(collector.poll(START)), 1);
    assert_eq!(collector.poll(START), ping(100));
    assert_eq!(flows_id(collector.poll(START)), 2);
    assert_eq!(collector.poll(START), ping(200));
    assert_eq!(collector.poll(START), None, "50 records wait for more");
    collector.handle_pong(&200_u64.to_be_bytes(), START);
    let law = collector.law();
    assert_eq!((law.made, law.taken, law.waiting), (250, 200, 50));
}

#[test]
fn partial_message_goes_after_the_linger() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(3);
    assert_eq!(collector.poll(START), None);
    let due = collector.poll_timeout();
    assert_eq!(due, Some(START.after(LINGER)));
    assert_eq!(flows_id(collector.poll(START.after(LINGER))), 1);
}

#[test]
fn nothing_goes_before_the_subscription() {
    let mut collector = Fed::connected(true, Wanted::default());
    collector.offer(500);
    let later = START.after(Duration::from_secs(100));
    assert_eq!(collector.poll(later), None);
    assert_eq!(collector.poll_timeout(), None);
    assert_eq!(collector.progress(later), Progress::AwaitingSubscription);
    collector.handle_subscriptions(FLOWS);
    assert_eq!(flows_id(collector.poll(later)), 1);
}

#[test]
fn announcements_come_first_and_by_time_and_share_the_ids() {
    let mut collector = Fed::connected(true, ALL);
    collector.offer(100);
    assert_eq!(collector.poll(START), Some(Transmit::Announce(Topic::Event)));
    assert_eq!(collector.announce(), 1);
    // Not known: nothing is sent, and no id is spent.
    assert_eq!(
        collector.poll(START),
        Some(Transmit::Announce(Topic::ListeningPorts))
    );
    assert_eq!(flows_id(collector.poll(START)), 2);
    assert_eq!(collector.poll(START), ping(100));
    assert_eq!(collector.poll(START), None);
    collector.handle_pong(&100_u64.to_be_bytes(), START);
    assert_eq!(collector.poll_timeout(), Some(START.after(EVENT_INTERVAL)));
    let next = START.after(EVENT_INTERVAL);
    assert_eq!(collector.poll(next), Some(Transmit::Announce(Topic::Event)));
    assert_eq!(collector.announce(), 3);
    assert_eq!(collector.poll(next), None);
    let minute = START.after(LISTENING_INTERVAL);
    assert_eq!(collector.poll(minute), Some(Transmit::Announce(Topic::Event)));
    assert_eq!(
        collector.poll(minute),
        Some(Transmit::Announce(Topic::ListeningPorts))
    );
}

#[test]
fn ping_is_repeated_each_second_while_something_is_on_the_way_and_then_it_is_stalled() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(100);
    flows_id(collector.poll(START));
    assert_eq!(collector.poll(START), ping(100));
    assert_eq!(collector.poll_timeout(), Some(START.after(PING_INTERVAL)));
    let mut now = START;
    for _ in 0..10 {
        now = now.after(PING_INTERVAL);
        assert_eq!(collector.poll(now), ping(100));
        assert_eq!(collector.poll(now), None);
    }
    assert!(now.since(START) > STALLED_AFTER);
    assert_eq!(collector.progress(now), Progress::Stalled);
    collector.handle_pong(&100_u64.to_be_bytes(), now);
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
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(100);
    flows_id(collector.poll(START));
    for context in [
        &b""[..],
        b"1",
        &[0; 16],
        &0_u64.to_be_bytes(),
        &99_u64.to_be_bytes(),
        &101_u64.to_be_bytes(),
        &[0xff; 8],
    ] {
        collector.handle_pong(context, START);
        assert_eq!(collector.law().taken, 0, "{context:?}");
    }
}

#[test]
fn peer_without_pings_takes_when_written() {
    let mut collector = Fed::connected(false, FLOWS);
    collector.offer(200);
    assert_eq!(flows_id(collector.poll(START)), 1);
    assert_eq!(flows_id(collector.poll(START)), 2, "no PING between");
    assert_eq!(collector.poll(START), None);
    collector.handle_pong(&200_u64.to_be_bytes(), START);
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
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(100);
    flows_id(collector.poll(START));
    collector.handle_written(START);
    assert_eq!(collector.law().taken, 0);
}

#[test]
fn ids_begin_anew_on_each_connection_and_what_was_on_the_way_comes_again() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(200);
    let first = collector.poll(START);
    assert_eq!(collector.poll(START), ping(100));
    collector.handle_disconnected();
    assert_eq!(collector.poll(START), None);
    assert_eq!(collector.progress(START), Progress::Disconnected);
    collector.handle_connected(true, START);
    collector.handle_subscriptions(FLOWS);
    assert_eq!(collector.poll(START), first, "same id, same payload");
}

#[test]
fn pace_is_kept() {
    let mut collector = Fed::new(1_000);
    collector.handle_connected(false, START);
    collector.handle_subscriptions(FLOWS);
    collector.offer(5_000);
    let mut now = START;
    let mut sent = 0;
    while collector.law().waiting > 0 {
        while let Some(Transmit::Flows { .. }) = collector.poll(now) {
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
    let mut collector = Fed::connected(true, FLOWS);
    let mut held = record();
    held.held_from.insert(CollectorSlot(2));
    let mut loopback = record();
    loopback.initiator.endpoint.address = [127, 0, 0, 1].into();
    loopback.responder.endpoint.address = [127, 0, 0, 1].into();
    let mut huge = record();
    huge.delta.forward.octets = u64::MAX;
    collector.append([held, loopback, huge, record()]);
    assert_eq!(collector.poll(START), None);
    flows_id(collector.poll(START.after(LINGER)));
    let law = collector.law();
    assert_eq!(
        (law.made, law.waiting),
        (4, 4),
        "counted when the mark passes them"
    );
    collector.handle_pong(&4_u64.to_be_bytes(), START);
    let law = collector.law();
    assert_eq!((law.made, law.taken, law.waiting, law.missing()), (4, 1, 0, 0));
    assert_eq!(law.dropped.at(DropPoint::ReportedByPeer), 1);
    assert_eq!(law.dropped.at(DropPoint::Withheld), 1);
    assert_eq!(law.dropped.at(DropPoint::RecordTooLarge), 1);
    collector.offer(1);
    collector.give_up(DropPoint::ShutdownGrace);
    assert_eq!(collector.law().dropped.at(DropPoint::ShutdownGrace), 1);
    assert!(collector.is_idle());
}

fn told_by_peer() -> FlowRecord {
    let mut held = record();
    held.held_from.insert(CollectorSlot(2));
    held
}

#[test]
fn records_that_nobody_is_to_get_pass_without_a_message() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.append([told_by_peer(), told_by_peer()]);
    assert_eq!(collector.poll(START), None);
    let law = collector.law();
    assert_eq!((law.waiting, law.dropped.at(DropPoint::ReportedByPeer)), (0, 2));
    // Behind a message on the way they wait for its PONG.
    collector.offer(100);
    flows_id(collector.poll(START));
    assert_eq!(collector.poll(START), ping(102));
    collector.append([told_by_peer()]);
    assert_eq!(collector.poll(START), None);
    assert_eq!(collector.law().dropped.at(DropPoint::ReportedByPeer), 2);
    collector.handle_pong(&102_u64.to_be_bytes(), START);
    let law = collector.law();
    assert_eq!((law.waiting, law.dropped.at(DropPoint::ReportedByPeer)), (0, 3));
    assert_eq!((collector.cursor().taken, collector.cursor().read), (103, 2));
}

#[test]
fn records_told_by_a_peer_and_read_twice_count_once() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.append([told_by_peer(), record(), told_by_peer()]);
    assert_eq!(collector.poll(START), None);
    let mut now = START.after(LINGER);
    flows_id(collector.poll(now));
    collector.handle_disconnected();
    assert_eq!(collector.law().dropped.at(DropPoint::ReportedByPeer), 0);
    for _ in 0..3 {
        collector.handle_connected(true, now);
        collector.handle_subscriptions(FLOWS);
        assert_eq!(collector.poll(now), None);
        now = now.after(LINGER);
        flows_id(collector.poll(now));
        collector.handle_pong(&3_u64.to_be_bytes(), now);
        let law = collector.law();
        assert_eq!((law.taken, law.dropped.at(DropPoint::ReportedByPeer)), (1, 2));
        collector.handle_restarted();
        let law = collector.law();
        assert_eq!((law.waiting, law.dropped.at(DropPoint::ReportedByPeer)), (3, 0));
    }
}

#[test]
fn values_share_messages_while_there_is_more_to_read() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(400);
    for sequence in [100, 200, 300, 400] {
        flows_id(collector.poll(START));
        assert_eq!(collector.poll(START), ping(sequence));
    }
    assert!(collector.poll(START).is_none() && collector.law().waiting == 400);
}

#[test]
fn nothing_is_read_that_could_not_be_sent() {
    // Nobody there, nobody subscribed.
    let mut collector = Fed::new(1_000);
    collector.offer(1_000);
    assert_eq!(collector.poll_read(START), None);
    collector.handle_connected(true, START);
    assert_eq!(collector.poll_read(START), None);
    collector.handle_subscriptions(FLOWS);
    // Asked once, until it is answered.
    assert_eq!(collector.poll_read(START).map(|wanted| wanted.after), Some(0));
    assert_eq!(
        (collector.poll_read(START), collector.poll_timeout()),
        (None, None)
    );
    let value = vec![record(); 100];
    assert!(collector.handle_values(1, &value, START));
    assert_eq!(collector.poll_read(START), None, "a message waits to be sent");
    flows_id(collector.poll_transmit(START));
    assert_eq!(collector.poll_transmit(START), ping(100));
    // The burst of an idle collector is spent: 100 records at 1,000 a second.
    let now = START.after(Duration::from_millis(1));
    assert!(collector.poll_read(now).is_some() && collector.handle_values(101, &value, now));
    flows_id(collector.poll_transmit(now));
    assert_eq!(collector.poll_transmit(now), ping(200));
    assert_eq!(collector.poll_read(now), None, "the pace");
    let at = collector.poll_timeout().unwrap();
    assert!(at > now && collector.poll_read(at).is_some());
    // The window: one message of 100 records is larger than it.
    let narrow = CollectorOptions {
        window_octets: 1,
        ..options(1_000_000)
    };
    let mut collector = Collector::new(&narrow, &Cursor::beginning_at(0));
    collector.handle_connected(true, START);
    collector.handle_subscriptions(FLOWS);
    collector.handle_readable(300);
    assert!(collector.poll_read(START).is_some() && collector.handle_values(1, &value, START));
    flows_id(collector.poll_transmit(START));
    assert_eq!(collector.poll_read(START), None, "a full window");
    collector.handle_pong(&100_u64.to_be_bytes(), START);
    assert_eq!(collector.poll_read(START).map(|wanted| wanted.after), Some(100));
}

#[test]
fn answers_to_what_nobody_asked_any_more_are_not_used() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(300);
    assert!(collector.poll_read(START).is_some());
    let value = vec![record(); 50];
    assert!(
        !collector.handle_values(2, &value, START),
        "a gap without a cause"
    );
    assert!(collector.poll_read(START).is_some(), "asked again");
    assert!(collector.handle_values(1, &value, START));
    assert!(!collector.handle_values(1, &value, START), "all of it has passed");
    assert!(
        collector.handle_values(41, &value, START),
        "half of it has passed"
    );
    collector.handle_disconnected();
    assert!(!collector.handle_values(1, &value, START), "nobody is there");
    collector.handle_lost(300, LostCause::Evicted);
    assert_eq!(collector.law().waiting, 300);
}

#[test]
fn lost_ranges_are_counted_by_cause_and_what_is_behind_them_goes_out() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.handle_readable(1_000);
    for (upto, cause) in [
        (10, LostCause::Evicted),
        (30, LostCause::Damaged),
        (60, LostCause::Unwritable),
    ] {
        assert!(collector.poll_read(START).is_some());
        collector.handle_lost(upto, cause);
    }
    let law = collector.law();
    assert_eq!((law.made, law.waiting, law.evicted), (1_000, 940, 10));
    assert_eq!(law.dropped.at(DropPoint::SpoolDamaged), 20);
    assert_eq!(law.dropped.at(DropPoint::SpoolUnwritable), 30);
    assert_eq!(law.missing(), 0);
    assert_eq!(collector.poll_read(START).map(|wanted| wanted.after), Some(60));
}

#[test]
fn nothing_there_is_asked_again_later_or_when_more_can_be_read() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.handle_readable(10);
    assert!(collector.poll_read(START).is_some());
    collector.handle_nothing(START);
    assert_eq!(collector.poll_read(START), None);
    let again = START.after(READ_AGAIN_AFTER);
    assert_eq!(collector.poll_timeout(), Some(again));
    assert!(collector.poll_read(again).is_some());
    collector.handle_nothing(again);
    collector.handle_readable(11);
    assert!(collector.poll_read(again).is_some());
}

#[test]
fn agent_that_restarts_goes_on_from_its_cursor_and_a_refusal_goes_back_to_read() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(300);
    let all = collector.records.clone();
    for _ in 0..6 {
        collector.poll(START);
    }
    collector.handle_pong(&200_u64.to_be_bytes(), START);
    let cursor = collector.cursor();
    assert_eq!((cursor.begin, cursor.read, cursor.taken), (0, 0, 200));
    assert_eq!((cursor.at_risk.taken, cursor.at_risk.records()), (200, 200));

    let again = |cursor: &Cursor| {
        let mut fed = Fed {
            collector: Collector::new(&options(1_000_000), cursor),
            records: Vec::new(),
        };
        fed.append(all.clone());
        fed
    };
    let mut survivor = again(&cursor);
    survivor.handle_connected(true, START);
    survivor.handle_subscriptions(FLOWS);
    assert_eq!(survivor.poll_read(START).map(|wanted| wanted.after), Some(200));
    assert_eq!((survivor.law().taken, survivor.law().waiting), (200, 100));

    let mut refused = again(&cursor);
    refused.handle_restarted();
    refused.handle_restarted();
    refused.handle_connected(true, START);
    refused.handle_subscriptions(FLOWS);
    assert_eq!(refused.poll_read(START).map(|wanted| wanted.after), Some(0));
    let law = refused.law();
    assert_eq!((law.taken, law.waiting, law.missing()), (0, 300, 0));
}

#[test]
fn slow_round_trips_slow_it_down() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(200);
    flows_id(collector.poll(START));
    assert_eq!(collector.poll(START), ping(100));
    let late = START.after(ROUND_TRIP_SLOW_MAX + Duration::from_millis(1));
    collector.handle_pong(&100_u64.to_be_bytes(), late);
    assert_eq!(collector.records_per_second(), 500_000);
}

#[test]
fn nothing_more_goes_over_a_held_connection_but_what_is_on_the_way_comes_to_its_end() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(250);
    assert_eq!(flows_id(collector.poll(START)), 1);
    collector.handle_hold(true);
    assert_eq!(collector.poll(START), ping(100));
    assert_eq!(collector.poll(START), None);
    assert_eq!(collector.poll_timeout(), Some(START.after(PING_INTERVAL)));
    assert!(collector.has_on_the_way());
    collector.handle_pong(&100_u64.to_be_bytes(), START);
    assert!(!collector.has_on_the_way());
    assert_eq!((collector.poll(START), collector.poll_timeout()), (None, None));
    collector.handle_hold(false);
    assert_eq!(flows_id(collector.poll(START)), 2);
}

#[test]
fn options_of_the_one_that_is_fed_hold_from_the_change_on() {
    let mut collector = Fed::connected(true, FLOWS);
    collector.offer(1_000);
    assert_eq!(flows_id(collector.poll(START)), 1);
    assert_eq!(collector.poll(START), ping(100));
    collector.handle_pong(&100_u64.to_be_bytes(), START);
    assert_eq!(flows_id(collector.poll(START)), 2);
    let other = CollectorOptions {
        on_restart: OnRestart::Skip,
        message_records_max: 10,
        window_octets: 1,
        ..options(50)
    };
    collector.handle_changed(&other);
    assert_eq!(collector.progress(START), Progress::Disconnected);
    assert_eq!(collector.records_per_second(), 50);
    // What the former took is its own, wherever the end of this one leads.
    collector.handle_restarted();
    let law = collector.law();
    assert_eq!(
        (law.taken, law.dropped.at(DropPoint::CollectorRestarted)),
        (100, 0)
    );
    collector.handle_connected(true, START);
    collector.handle_subscriptions(FLOWS);
    assert_eq!(flows_id(collector.poll(START)), 1, "ids begin anew");
    assert_eq!(
        collector.poll(START),
        ping(110),
        "from what was taken, ten a message"
    );
    assert_eq!(collector.poll(START), None, "one message fills this window");
    collector.handle_pong(&110_u64.to_be_bytes(), START);
    collector.handle_restarted();
    let law = collector.law();
    assert_eq!(
        (law.taken, law.dropped.at(DropPoint::CollectorRestarted)),
        (100, 10)
    );
}
