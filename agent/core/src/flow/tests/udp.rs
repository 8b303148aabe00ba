//! UDP: one flow a peer, silence, the kernel's memory of peers.

use super::world::*;
use crate::flow::record::EndReason;
use crate::flow::{FlowTable, Forget};
use crate::observe::{Cookie, Tuple, UdpObservation};
use crate::owner::{Confidence, Unknown};

const LOCAL: &str = "10.0.0.1:5000";
const A: &str = "192.0.2.1:53";
const B: &str = "192.0.2.2:53";

fn with(remote: &str) -> Tuple {
    tuple(LOCAL, remote)
}

/// The same peer as the kernel's peer map shows it.
fn spilled(mut seen: UdpObservation) -> UdpObservation {
    seen.owner = None;
    seen
}

fn forgets(table: &mut FlowTable) -> Vec<Forget> {
    std::iter::from_fn(|| table.poll_forget()).collect()
}

#[test]
fn each_peer_of_a_socket_is_a_flow_with_its_own_number() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 1, 1, ms(5)));
    see_udp(&mut table, &udp(1, with(B), 2, 2, ms(6)));
    see_udp(&mut table, &spilled(udp(1, with(A), 3, 1, ms(7))));
    let records = records_until(&mut table, ms(900));
    let seen: Vec<_> = records
        .iter()
        .map(|record| {
            (
                record.id.stream,
                record.responder.endpoint,
                record.total.forward.packets,
            )
        })
        .collect();
    assert_eq!(seen, [(1, end(A), 3), (2, end(B), 2)]);
    assert!(records.iter().all(|record| record.tcp.is_none()));
}

#[test]
fn who_sent_first_is_the_initiator() {
    let mut table = table();
    let mut seen = udp(1, tuple("10.0.0.1:53", "192.0.2.1:5000"), 1, 1, ms(5));
    seen.counters.peer_first = true;
    see_udp(&mut table, &seen);
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.initiator.endpoint, end("192.0.2.1:5000"));
    assert_eq!(record.responder.owner.program(), Some("process-1"));
    assert_eq!(
        record.initiator.owner.confidence,
        Confidence::Unknown(Unknown::Remote)
    );
    let served: Vec<_> = table.listeners().map(|port| port.endpoint.port).collect();
    assert_eq!(served, [53]);
}

#[test]
fn peer_map_takes_the_owner_of_its_socket() {
    let mut table = table();
    see_udp(&mut table, &spilled(udp(1, with(A), 1, 1, ms(5))));
    let mut life = udp(1, with("0.0.0.0:0"), 0, 0, ms(6));
    life.counters.last = crate::time::KernelTime(0);
    see_udp(&mut table, &life);
    assert_eq!(table.flows(), 1);
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.initiator.owner.program(), Some("process-1"));
}

#[test]
fn silence_ends_a_udp_flow() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 1, 1, ms(100)));
    let records = records_until(&mut table, ms(15_099));
    assert_eq!(records.len(), 1);
    let last = one_until(&mut table, ms(15_100));
    assert_eq!((last.reason, last.id.part), (EndReason::IdleTimeout, 2));
    assert_eq!(last.end.0, ms(100).0);
}

#[test]
fn traffic_keeps_a_udp_flow_going() {
    let mut table = table();
    let mut made = Vec::new();
    for second in 0..40 {
        see_udp(&mut table, &udp(1, with(A), second + 1, 0, ms(second * 1000 + 1)));
        made.extend(records_until(&mut table, ms(second * 1000 + 1)));
    }
    assert!(
        made.iter()
            .all(|record| record.reason == EndReason::ActiveTimeout)
    );
    assert_eq!(made.len(), 4);
}

#[test]
fn peer_that_returns_is_another_flow_and_counts_nothing_twice() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 3, 3, ms(100)));
    records_until(&mut table, ms(16_000));
    see_udp(&mut table, &udp(1, with(A), 3, 3, ms(100)).at(ms(17_000)));
    assert_eq!(table.flows(), 0, "a copy begins nothing");
    see_udp(&mut table, &udp(1, with(A), 4, 3, ms(20_000)));
    let record = one_until(&mut table, ms(21_000));
    assert_eq!((record.id.stream, record.id.part), (2, 1));
    assert_eq!(record.total.forward.packets, 1);
    assert_eq!(record.start.0, ms(20_000).0);
}

#[test]
fn silent_peer_is_forgotten_and_counted_anew() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 3, 3, ms(100)));
    see_udp(&mut table, &udp(1, with(B), 1, 1, ms(200)));
    records_until(&mut table, ms(15_100));
    let forget = Forget {
        cookie: Cookie(1),
        peer: end(A),
        with_socket: false,
    };
    assert_eq!(forgets(&mut table), [forget]);
    // What the deletion returned has nothing new.
    see_udp(&mut table, &spilled(udp(1, with(A), 3, 3, ms(100))));
    let mut anew = udp(1, with(A), 1, 0, ms(20_000));
    anew.counters.first = ms(20_000);
    see_udp(&mut table, &anew);
    let records = records_until(&mut table, ms(21_000));
    let back = records.last().expect("a record");
    assert_eq!(back.total.forward.packets, 1);
    assert_eq!(back.id.stream, 3);
}

#[test]
fn peer_that_came_back_before_it_was_forgotten_loses_nothing() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 3, 3, ms(100)));
    see_udp(&mut table, &udp(1, with(B), 1, 1, ms(200)));
    records_until(&mut table, ms(15_100));
    assert_eq!(forgets(&mut table).len(), 1);
    see_udp(&mut table, &spilled(udp(1, with(A), 5, 3, ms(15_090))));
    let law = table.law();
    assert_eq!(law.observed_packets, 8 + 2);
}

#[test]
fn current_peer_is_forgotten_only_when_another_takes_its_place() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 3, 3, ms(100)));
    records_until(&mut table, ms(16_000));
    assert_eq!(forgets(&mut table), []);
    see_udp(&mut table, &udp(1, with(B), 1, 1, ms(17_000)));
    assert_eq!(forgets(&mut table).len(), 1);
}

#[test]
fn counters_that_begin_again_are_added() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 5, 0, ms(100)));
    let mut again = udp(1, with(A), 2, 0, ms(600));
    again.counters.first = ms(500);
    see_udp(&mut table, &again);
    see_udp(&mut table, &again);
    see_udp(&mut table, &udp(1, with(A), 5, 0, ms(100)));
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.total.forward.packets, 7);
}

#[test]
fn part_read_apart_from_the_sum_counts_nothing_twice() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 5, 0, ms(100)));
    let mut part = udp(1, with(A), 2, 0, ms(600));
    part.counters.first = ms(500);
    see_udp(&mut table, &part);
    see_udp(&mut table, &udp(1, with(A), 8, 0, ms(700)));
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.total.forward.packets, 8);
}

#[test]
fn end_of_the_socket_ends_all_its_peers() {
    let mut table = table();
    see_udp(&mut table, &udp(1, with(A), 1, 1, ms(5)));
    let mut last = udp(1, with(B), 2, 2, ms(30));
    last.ended = true;
    see_udp(&mut table, &last);
    see_udp(&mut table, &spilled(udp(1, with(A), 2, 1, ms(20)).at(ms(40))));
    let records = records_until(&mut table, ms(2000));
    assert_eq!(records.len(), 2);
    assert!(records.iter().all(|record| record.reason == EndReason::EndOfFlow));
    assert_eq!(table.law().reported_packets, 3 + 4);
    assert_eq!(forgets(&mut table).len(), 2);
    see_udp(&mut table, &last);
    see_udp(&mut table, &spilled(udp(1, with(A), 2, 1, ms(20))));
    assert_eq!((table.flows(), table.listeners().count()), (0, 0));
}

#[test]
fn peer_found_after_the_socket_ended_is_told_and_ends() {
    let mut table = table();
    let mut last = udp(1, with(B), 2, 2, ms(30));
    last.ended = true;
    see_udp(&mut table, &last);
    records_until(&mut table, ms(2000));
    see_udp(&mut table, &spilled(udp(1, with(A), 2, 1, ms(20)).at(ms(2500))));
    let record = one_until(&mut table, ms(4000));
    assert_eq!(record.reason, EndReason::EndOfFlow);
    assert_eq!(record.initiator.owner.program(), Some("process-1"));
}

#[test]
fn memory_of_an_ended_socket_goes_after_a_while() {
    let mut table = table();
    let mut last = udp(1, with(A), 2, 2, ms(30));
    last.ended = true;
    see_udp(&mut table, &last);
    records_until(&mut table, ms(2000));
    assert_eq!(forgets(&mut table).len(), 1);
    records_until(&mut table, ms(40_000));
    assert!(table.udp.by_cookie.is_empty() && table.udp.live.is_empty());
    assert!(table.past.is_empty() && table.tcp.is_empty());
}

#[test]
fn udp_peer_that_left_a_full_table_goes_on_without_counting_twice() {
    let mut table = small_table(2);
    see_udp(&mut table, &udp(1, with(A), 3, 0, ms(5)));
    see_udp(&mut table, &udp(2, with(A), 1, 0, ms(6)));
    see_udp(&mut table, &udp(3, with(A), 1, 0, ms(7)));
    let gone = polled(&mut table);
    assert_eq!((gone.len(), gone[0].reason), (1, EndReason::LackOfResources));
    see_udp(&mut table, &udp(1, with(A), 4, 0, ms(8)));
    assert_eq!(table.law().observed_packets, 4 + 1 + 1);
}

/// The first peer of a socket that nobody has, as its own entry shows it.
fn of_nobody(packets: u64, first: u64, last: u64) -> UdpObservation {
    let mut seen = udp(1, with(A), packets, 0, ms(last));
    seen.owner = Some(nobody());
    seen.counters.first = ms(first);
    seen
}

#[test]
fn socket_of_nobody_leaves_the_kernel_once_it_is_silent_and_is_counted_anew() {
    let mut table = table();
    see_udp(&mut table, &of_nobody(3, 100, 100));
    let before = records_until(&mut table, ms(15_100));
    let forget = Forget {
        cookie: Cookie(1),
        peer: end(A),
        with_socket: true,
    };
    assert_eq!(forgets(&mut table), [forget]);
    assert!(table.udp.by_cookie.is_empty(), "no end of it will ever be told");
    // What the deletion returned: two datagrams came meanwhile.
    see_udp(&mut table, &spilled(of_nobody(5, 100, 15_110)));
    let between = records_until(&mut table, ms(16_200));
    see_udp(&mut table, &of_nobody(2, 17_000, 17_000));
    let after = records_until(&mut table, ms(40_000));
    let told: Vec<_> = [before, between, after].concat();
    let packets: u64 = told.iter().map(|record| record.delta.forward.packets).sum();
    assert_eq!(packets, 3 + 2 + 2);
    let ids: std::collections::BTreeSet<_> = told.iter().map(|record| format!("{:?}", record.id)).collect();
    assert_eq!(ids.len(), told.len(), "{ids:?}");
}

#[test]
fn what_the_deletion_of_nobody_s_socket_returned_leaves_nothing_behind() {
    let mut table = table();
    see_udp(&mut table, &of_nobody(3, 100, 100));
    records_until(&mut table, ms(15_100));
    assert_eq!(forgets(&mut table).len(), 1);
    // Nothing came meanwhile.
    see_udp(&mut table, &spilled(of_nobody(3, 100, 100)));
    assert!(table.udp.by_cookie.is_empty(), "{:?}", table.udp.by_cookie);
    // The next time something did.
    see_udp(&mut table, &of_nobody(2, 17_000, 17_000));
    records_until(&mut table, ms(32_100));
    assert_eq!(forgets(&mut table).len(), 1);
    see_udp(&mut table, &spilled(of_nobody(4, 17_000, 32_110)));
    assert_eq!(table.udp.by_cookie.len(), 1, "its flow lives");
    records_until(&mut table, ms(60_000));
    assert!(table.udp.by_cookie.is_empty(), "{:?}", table.udp.by_cookie);
    assert!(table.udp.live.is_empty());
}

#[test]
fn socket_of_nobody_stays_while_a_peer_of_it_speaks_or_somebody_is_found_to_have_it() {
    let mut table = table();
    let other = |last| spilled(udp(1, with(B), last, 0, ms(last)));
    see_udp(&mut table, &of_nobody(3, 100, 100));
    see_udp(&mut table, &other(200));
    records_until(&mut table, ms(15_150));
    assert_eq!(forgets(&mut table), []);
    see_udp(&mut table, &other(15_160));
    records_until(&mut table, ms(30_160));
    let gone: Vec<_> = forgets(&mut table)
        .iter()
        .map(|forget| (forget.peer, forget.with_socket))
        .collect();
    assert_eq!(gone, [(end(B), false), (end(A), true)]);

    see_udp(&mut table, &of_nobody(1, 31_000, 31_000));
    records_until(&mut table, ms(46_000));
    see_udp(&mut table, &udp(1, with(A), 1, 0, ms(31_000)).at(ms(46_100)));
    assert_eq!(forgets(&mut table), []);
}
