//! TCP: timing of records, counters, ends.

use super::world::*;
use crate::flow::record::EndReason;
use crate::flow::restore::Restore;
use crate::flow::{FIRST_RECORD_AFTER_MAX, FlowTable, SETTLE, SILENT_RECORD_AFTER, TableOptions};
use crate::observe::{Cookie, Observation, TcpObservation, TcpRole, TcpSight, TcpState};
use crate::owner::{Confidence, Unknown};
use crate::time::WallOffset;

#[test]
fn first_record_leaves_within_a_second_without_waiting_for_the_active_timeout() {
    let mut table = table();
    see_tcp(&mut table, &active(1).moved(500, 1500).at(ms(2)));
    let record = one_until(&mut table, ms(5000));
    assert!(record.first);
    assert_eq!(record.reason, EndReason::ActiveTimeout);
    assert_eq!(record.id.part, 1);
    assert_eq!(record.delta, record.total);
    assert_eq!(record.delta.forward.payload, 500);
    assert_eq!(record.delta.backward.payload, 1500);
    assert!(options().first_record_after <= FIRST_RECORD_AFTER_MAX);
}

#[test]
fn short_connection_makes_one_record_that_ends_it() {
    let mut table = table();
    see_tcp(&mut table, &active(1).at(ms(2)));
    see_tcp(
        &mut table,
        &active(1).moved(100, 2000).ended(ms(30), TcpState::LastAck, 0),
    );
    let record = one_until(&mut table, ms(1000));
    assert_eq!((record.first, record.reason), (true, EndReason::EndOfFlow));
    assert_eq!(record.end.0, ms(30).0);
    assert_eq!(record.total.forward.packets, 3);
    // Three segments of 20 and 32 octets, the SYN's 8 more options, the payload.
    assert_eq!(record.total.forward.octets, 3 * 52 + 8 + 100);
    assert_eq!(record.total.backward.octets, 2 * 52 + 8 + 2000);
    assert_eq!(table.flows(), 0);
    assert_eq!(table.law().held_octets, 0);
}

#[test]
fn figures_are_those_of_the_connection() {
    let mut table = table();
    let mut seen = active(1).moved(100, 100);
    seen.established = Some(ms(12));
    seen.counters.retransmits = 3;
    see_tcp(&mut table, &seen.at(ms(20)));
    let tcp = one_until(&mut table, ms(900)).tcp.expect("TCP has figures");
    assert_eq!(tcp.handshake_us, Some(12_000));
    assert_eq!(
        (tcp.rtt_us, tcp.rtt_variance_us, tcp.rtt_min_us),
        (Some(900), Some(100), Some(700))
    );
    assert_eq!((tcp.retransmits_forward, tcp.retransmits_backward), (3, 0));
    assert_eq!((tcp.flags_forward, tcp.flags_backward), (2 + 8 + 16, 2 + 8 + 16));
    assert_eq!(tcp.state, Some(TcpState::Established));
}

#[test]
fn unmeasured_round_trips_are_absent() {
    let mut table = table();
    let mut seen = active(1);
    seen.counters.srtt_us = 0;
    seen.counters.rttvar_us = 0;
    seen.counters.rtt_min_us = u32::MAX;
    see_tcp(&mut table, &seen);
    let tcp = one_until(&mut table, ms(900)).tcp.expect("TCP has figures");
    assert_eq!(
        (tcp.rtt_us, tcp.rtt_variance_us, tcp.rtt_min_us),
        (None, None, None)
    );
}

#[test]
fn later_records_have_only_what_changed() {
    let mut table = table();
    let first = active(1).moved(100, 100);
    see_tcp(&mut table, &first.clone().at(ms(10)));
    let one = one_until(&mut table, ms(900));
    let mut second = first.moved(50, 0).at(ms(10_500));
    second.counters.retransmits = 2;
    see_tcp(&mut table, &second);
    let two = one_until(&mut table, ms(12_000));
    assert_eq!(two.delta.forward.payload, 50);
    assert_eq!(two.total.forward.payload, 150);
    assert_eq!(two.delta_start, one.end);
    assert_eq!((two.first, two.id.part), (false, 2));
    assert_eq!(two.tcp.expect("TCP has figures").retransmits_forward, 2);
}

#[test]
fn silent_connection_is_kept_alive_at_a_slower_pace() {
    let mut table = table();
    let seen = active(1).moved(100, 100);
    see_tcp(&mut table, &seen.clone().at(ms(10)));
    assert!(records_until(&mut table, ms(1000))[0].first);
    let mut made = Vec::new();
    for second in 1..=61 {
        see_tcp(&mut table, &seen.clone().at(ms(second * 1000)));
        made.extend(records_until(&mut table, ms(second * 1000)));
    }
    assert_eq!(made.len(), 2, "{made:#?}");
    let gap = made[1].end.0 - made[0].end.0;
    assert!(u128::from(gap) <= SILENT_RECORD_AFTER.as_nanos());
    assert_eq!(made[0].delta, Default::default());
    assert_eq!(made[0].total.forward.payload, 100);
    assert!(made[0].end.0 > ms(25_000).0, "alive when it was read last");
}

#[test]
fn counters_are_wanted_at_once_and_half_a_second_before_a_record() {
    let mut table = table();
    let at = ms(0);
    table.observe(&Observation::Opened {
        cookie: Cookie(1),
        at,
    });
    assert_eq!(due(&mut table), [1]);
    see_tcp(&mut table, &active(1).at(ms(5)));
    records_until(&mut table, ms(299));
    assert_eq!(due(&mut table), [0_u64; 0]);
    assert_eq!(records_until(&mut table, ms(301)), []);
    assert_eq!(due(&mut table), [1]);
    see_tcp(&mut table, &active(1).moved(1, 1).at(ms(310)));
    one_until(&mut table, ms(900));
    records_until(&mut table, ms(10_299));
    assert_eq!(due(&mut table), [0_u64; 0]);
    assert_eq!(records_until(&mut table, ms(10_301)), []);
    assert_eq!(due(&mut table), [1]);
}

#[test]
fn ended_socket_is_not_read_again() {
    let mut table = table();
    see_tcp(&mut table, &active(1).ended(ms(5), TcpState::LastAck, 0));
    records_until(&mut table, ms(2000));
    table.observe(&Observation::Opened {
        cookie: Cookie(1),
        at: ms(0),
    });
    assert_eq!(due(&mut table), [0_u64; 0]);
}

#[test]
fn socket_that_ended_while_it_waited_to_be_read_is_not_read() {
    let mut table = table();
    for cookie in 1..=2 {
        table.observe(&Observation::Opened {
            cookie: Cookie(cookie),
            at: ms(0),
        });
    }
    see_tcp(&mut table, &active(1).ended(ms(1), TcpState::LastAck, 0));
    assert_eq!(due(&mut table), [2]);
    see_tcp(&mut table, &active(2).at(ms(5)));
    records_until(&mut table, ms(301));
    see_tcp(&mut table, &active(2).ended(ms(302), TcpState::LastAck, 0));
    assert_eq!(due(&mut table), [0_u64; 0]);
}

#[test]
fn copies_and_older_sights_change_nothing() {
    let mut table = table();
    let newest = active(1).moved(100, 100).moved(100, 100).at(ms(20));
    let older = active(1).moved(100, 100).at(ms(10));
    see_tcp(&mut table, &newest);
    let law = table.law();
    see_tcp(&mut table, &older);
    see_tcp(&mut table, &newest);
    assert_eq!(table.law(), law);
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.total.forward.payload, 200);
    see_tcp(&mut table, &older);
    let ended = newest.ended(ms(1000), TcpState::LastAck, 0);
    see_tcp(&mut table, &ended);
    see_tcp(&mut table, &older);
    let last = one_until(&mut table, ms(1500));
    assert_eq!(last.tcp.expect("TCP has figures").state, Some(TcpState::LastAck));
    see_tcp(&mut table, &ended);
    see_tcp(&mut table, &older);
    assert_eq!(table.flows(), 0);
    assert_eq!(table.late_observations(), 2);
    assert_eq!(records_until(&mut table, ms(9000)), []);
}

#[test]
fn reset_after_close_is_in_the_last_record() {
    let mut table = table();
    let ended = active(1).moved(100, 100).ended(ms(20), TcpState::Established, 0);
    see_tcp(&mut table, &ended);
    let mut late = ended.clone().at(ms(21));
    late.sight = TcpSight::Late;
    late.counters.segs_out += 1;
    see_tcp(&mut table, &late);
    let record = one_until(&mut table, ms(2000));
    assert_eq!(record.total.forward.packets, 4);
    assert_eq!(record.tcp.expect("TCP has figures").flags_forward & 4, 4);
}

#[test]
fn cleared_counters_after_close_take_nothing_back() {
    let mut table = table();
    let ended = active(1).moved(100, 100).ended(ms(20), TcpState::Established, 0);
    see_tcp(&mut table, &ended);
    let mut late = ended.clone().at(ms(21));
    late.sight = TcpSight::Late;
    late.counters.bytes_sent = 0;
    late.counters.bytes_received = 0;
    late.counters.segs_out = 1;
    late.counters.segs_in = 0;
    late.counters.srtt_us = 0;
    see_tcp(&mut table, &late);
    let record = one_until(&mut table, ms(2000));
    assert_eq!(record.total.forward.payload, 100);
    assert_eq!(record.tcp.expect("TCP has figures").rtt_us, Some(900));
}

#[test]
fn long_connection_ends_once_shortly_after_its_end() {
    let mut table = table();
    let seen = active(1).moved(100, 100);
    see_tcp(&mut table, &seen.clone().at(ms(10)));
    one_until(&mut table, ms(3000));
    see_tcp(&mut table, &seen.ended(ms(3000), TcpState::LastAck, 0));
    assert_eq!(records_until(&mut table, ms(3000)), []);
    let settled = ms(3000).after(SETTLE);
    let record = one_until(&mut table, settled);
    assert_eq!((record.id.part, record.reason), (2, EndReason::EndOfFlow));
}

#[test]
fn socket_that_is_gone_ends_with_what_is_known() {
    let mut table = table();
    see_tcp(&mut table, &active(1).moved(100, 100).at(ms(10)));
    one_until(&mut table, ms(900));
    table.observe(&Observation::Gone {
        cookie: Cookie(1),
        at: ms(2000),
    });
    let record = one_until(&mut table, ms(3000));
    assert_eq!(record.reason, EndReason::EndOfFlow);
    assert_eq!(record.total.forward.payload, 100);
    table.observe(&Observation::Gone {
        cookie: Cookie(99),
        at: ms(3000),
    });
    table.check();
}

#[test]
fn older_socket_counts_from_its_first_sight() {
    let mut table = table();
    let mut seen = active(1).moved(1_000_000, 9_000_000);
    seen.backfilled = true;
    seen.role = TcpRole::Unknown;
    seen.established = None;
    seen.counters.retransmits = 40;
    see_tcp(&mut table, &seen.clone().at(ms(10)));
    assert_eq!(table.law().observed_octets, 0);
    let first = one_until(&mut table, ms(900));
    assert_eq!(first.total, Default::default());
    assert!(first.backfilled && !first.initiator_seen);
    let tcp = first.tcp.expect("TCP has figures");
    assert_eq!((tcp.retransmits_forward, tcp.handshake_us), (0, None));
    see_tcp(&mut table, &seen.moved(10, 20).at(ms(5000)));
    let second = one_until(&mut table, ms(12_000));
    assert_eq!(second.total.forward.payload, 10);
    assert_eq!(second.delta.backward.octets, 52 + 20);
}

#[test]
fn who_listens_is_the_responder_of_an_older_connection() {
    let mut table = table();
    let mut listener = tcp(50, TcpRole::Listener, tuple("0.0.0.0:50000", "0.0.0.0:0"));
    listener.state = TcpState::Listen;
    let mut seen = tcp(1, TcpRole::Unknown, tuple("10.0.0.1:50000", "192.0.2.9:443"));
    seen.backfilled = true;
    see_tcp(&mut table, &seen);
    see_tcp(&mut table, &listener);
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.responder.endpoint, end("10.0.0.1:50000"));
}

#[test]
fn lower_port_is_the_responder_of_an_older_connection() {
    for (local, remote, responder) in [
        ("10.0.0.1:22", "192.0.2.9:50000", "10.0.0.1:22"),
        ("10.0.0.1:50000", "192.0.2.9:22", "192.0.2.9:22"),
    ] {
        let mut table = table();
        let mut seen = tcp(1, TcpRole::Unknown, tuple(local, remote));
        seen.backfilled = true;
        see_tcp(&mut table, &seen);
        let record = one_until(&mut table, ms(900));
        assert_eq!(record.responder.endpoint, end(responder));
    }
}

#[test]
fn passive_socket_is_the_responder() {
    let mut table = table();
    let seen = tcp(1, TcpRole::Passive, tuple("10.0.0.1:22", "192.0.2.9:50000"));
    see_tcp(&mut table, &seen.moved(70, 30));
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.responder.endpoint, end("10.0.0.1:22"));
    assert_eq!(record.responder.owner.program(), Some("process-1"));
    assert_eq!(
        record.initiator.owner.confidence,
        Confidence::Unknown(Unknown::Remote)
    );
    assert_eq!(
        (record.total.forward.payload, record.total.backward.payload),
        (30, 70)
    );
    assert!(record.initiator_seen);
    assert_eq!(record.tcp.expect("TCP has figures").handshake_us, None);
}

#[test]
fn better_owner_replaces_a_worse_one_and_never_the_reverse() {
    let mut table = table();
    let mut seen = tcp(1, TcpRole::Passive, tuple("10.0.0.1:22", "192.0.2.9:50000"));
    let steps = [
        (nobody(), 10),
        (owner(5, Confidence::Inherited), 20),
        (owner(6, Confidence::Exact), 40),
        (owner(5, Confidence::Inherited), 50),
        (owner(7, Confidence::Exact), 30),
    ];
    for (owner, at) in steps {
        seen.owner = owner;
        see_tcp(&mut table, &seen.clone().at(ms(at)));
    }
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.responder.owner.program(), Some("process-6"));
}

#[test]
fn port_that_is_bound_late_is_taken() {
    let mut table = table();
    let mut seen = active(1);
    seen.tuple.local.port = 0;
    seen.state = TcpState::SynSent;
    see_tcp(&mut table, &seen);
    see_tcp(&mut table, &active(1).at(ms(5)));
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.initiator.endpoint.port, 40_000);
}

#[test]
fn full_table_ends_the_oldest_with_a_record() {
    let mut table = small_table(2);
    for cookie in 1..=3 {
        see_tcp(&mut table, &active(cookie).moved(100, 0).at(ms(cookie)));
    }
    let records = polled(&mut table);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].id.cookie, Cookie(1));
    assert_eq!(records[0].reason, EndReason::LackOfResources);
    assert_eq!(records[0].total.forward.payload, 100);
    assert_eq!(table.flows(), 2);
}

#[test]
fn flow_that_left_a_full_table_goes_on_as_another_without_counting_twice() {
    let mut table = small_table(2);
    let mut seen = active(1).moved(100, 0);
    see_tcp(&mut table, &seen.clone().at(ms(1)));
    see_tcp(&mut table, &active(2).at(ms(2)));
    see_tcp(&mut table, &active(3).at(ms(3)));
    seen = seen.moved(11, 0);
    see_tcp(&mut table, &seen.clone().ended(ms(50), TcpState::LastAck, 0));
    let mut records = records_until(&mut table, ms(3000));
    records.retain(|record| record.id.cookie == Cookie(1));
    assert_eq!(records.len(), 2);
    assert_eq!(records[1].id.stream, 1);
    assert_eq!(records[1].total.forward.payload, 11);
    assert_eq!((records[1].first, records[1].id.part), (true, 1));
}

#[test]
fn stopping_ends_every_flow_once() {
    let mut table = table();
    for cookie in 1..=3 {
        see_tcp(&mut table, &active(cookie).moved(100, 0).at(ms(cookie)));
    }
    see_tcp(&mut table, &active(3).ended(ms(9), TcpState::LastAck, 0));
    table.end_all(ms(100));
    let records = polled(&mut table);
    let reasons: Vec<_> = records.iter().map(|record| record.reason).collect();
    assert_eq!(
        reasons,
        [EndReason::ForcedEnd, EndReason::ForcedEnd, EndReason::EndOfFlow]
    );
    assert_eq!((table.flows(), table.law().held_octets), (0, 0));
    assert_eq!(table.poll_timeout(), None);
}

#[test]
fn listeners_are_told_until_they_end() {
    let mut table = table();
    let mut listener = tcp(50, TcpRole::Listener, tuple("0.0.0.0:80", "0.0.0.0:0"));
    listener.state = TcpState::Listen;
    see_tcp(&mut table, &listener);
    let endpoints: Vec<_> = table.listeners().map(|listening| listening.endpoint).collect();
    assert_eq!(endpoints, [end("0.0.0.0:80")]);
    assert_eq!(table.flows(), 0);
    see_tcp(&mut table, &listener.clone().ended(ms(5), TcpState::Listen, 0));
    see_tcp(&mut table, &listener);
    assert_eq!(table.listeners().count(), 0);
}

#[test]
fn options_are_kept_within_their_bounds() {
    let mut table = table();
    table.set_options(TableOptions {
        max_flows: 0,
        active_timeout: seconds(300),
        idle_timeout: seconds(0),
        first_record_after: seconds(60),
        ..options()
    });
    assert_eq!(table.options.active_timeout, SILENT_RECORD_AFTER);
    assert_eq!(table.options.first_record_after, FIRST_RECORD_AFTER_MAX);
    assert_eq!(table.options.idle_timeout, seconds(1));
    assert_eq!(table.options.max_flows, 2);
}

#[test]
fn smaller_table_ends_what_does_not_fit() {
    let mut table = table();
    for cookie in 1..=5 {
        see_tcp(&mut table, &active(cookie).at(ms(cookie)));
    }
    table.set_options(TableOptions {
        max_flows: 3,
        ..options()
    });
    table.check();
    assert_eq!(polled(&mut table).len(), 2);
}

#[test]
fn late_driver_loses_no_record() {
    let mut table = table();
    see_tcp(&mut table, &active(1).moved(10, 10).at(ms(10)));
    table.handle_timeout(ms(60_000));
    table.check();
    assert_eq!(polled(&mut table).len(), 1);
    assert_eq!(due(&mut table), [1]);
}

/// An attempt of the socket 1 that began at `start` and was refused.
fn refused(start: u64) -> TcpObservation {
    let mut seen = active(1);
    seen.start = ms(start);
    seen.established = None;
    seen.again = start > 0;
    seen.counters.segs_out = 1;
    seen.ended(ms(start + 1), TcpState::SynSent, 111)
}

/// The connection that the socket 1 has from `start` on.
fn connected(start: u64) -> TcpObservation {
    let mut seen = active(1);
    seen.start = ms(start);
    seen.established = Some(ms(start + 1));
    seen.again = true;
    seen.moved(3_000_000, 10).at(ms(start + 2))
}

fn opened(table: &mut FlowTable, at: u64) {
    let cookie = Cookie(1);
    table.observe(&Observation::Opened { cookie, at: ms(at) });
    table.check();
}

#[test]
fn connection_after_attempts_on_the_same_socket_that_failed_is_a_flow_of_its_own() {
    // Far apart, while the end before is remembered; within the time that an ended flow is held; after all is forgotten.
    for between in [700, 20, 60_000] {
        let mut table = table();
        let mut told = Vec::new();
        for attempt in 0..3 {
            opened(&mut table, attempt * between);
            assert_eq!(due(&mut table), [1], "{between}");
            see_tcp(&mut table, &refused(attempt * between));
            told.extend(records_until(&mut table, ms(attempt * between + 15)));
        }
        let start = 3 * between;
        told.extend(records_until(&mut table, ms(start)));
        opened(&mut table, start);
        assert_eq!(due(&mut table), [1], "{between}");
        see_tcp(&mut table, &connected(start));
        let late = table.late_observations();
        for copy in [refused(0), refused(2 * between)] {
            see_tcp(&mut table, &copy);
        }
        opened(&mut table, 2 * between);
        assert_eq!((due(&mut table), table.late_observations()), (vec![], late + 2));
        see_tcp(
            &mut table,
            &connected(start).ended(ms(start + 9), TcpState::LastAck, 0),
        );
        told.extend(records_until(&mut table, ms(start + 5000)));

        let reasons: Vec<_> = told.iter().map(|record| record.reason).collect();
        let failed = EndReason::Refused;
        assert_eq!(
            reasons,
            [failed, failed, failed, EndReason::EndOfFlow],
            "{between}"
        );
        let payload: Vec<_> = told.iter().map(|record| record.total.forward.payload).collect();
        assert_eq!(payload, [0, 0, 0, 3_000_000]);
        let mut streams: Vec<_> = told.iter().map(|record| record.id.stream).collect();
        streams.dedup();
        assert_eq!(streams, [0, ms(between).0, ms(2 * between).0, ms(start).0]);
        assert!(told.iter().all(|record| record.id.part == 1));
        records_until(&mut table, ms(start + 60_000));
        assert!(table.tcp.is_empty());
    }
}

#[test]
fn connection_whose_end_was_lost_ends_when_its_socket_connects_once_more() {
    let mut table = table();
    see_tcp(&mut table, &active(1).moved(10, 10).at(ms(5)));
    records_until(&mut table, ms(2000));
    see_tcp(&mut table, &connected(3000));
    see_tcp(&mut table, &active(1).moved(20, 20).at(ms(2500)));
    let told = records_until(&mut table, ms(4000));
    let told: Vec<_> = told
        .iter()
        .map(|record| (record.id.stream, record.reason, record.total.forward.payload))
        .collect();
    let wanted = [
        (0, EndReason::EndOfFlow, 10),
        (ms(3000).0, EndReason::ActiveTimeout, 3_000_000),
    ];
    assert_eq!(told, wanted);
}

#[test]
fn socket_that_failed_to_connect_and_listens_is_a_listener() {
    let mut table = table();
    see_tcp(&mut table, &refused(0));
    records_until(&mut table, ms(2000));
    let mut listener = active(1).at(ms(3001));
    listener.start = ms(3000);
    listener.role = TcpRole::Listener;
    listener.state = TcpState::Listen;
    opened(&mut table, 3000);
    assert_eq!(due(&mut table), [1]);
    see_tcp(&mut table, &listener);
    assert_eq!(table.listeners().count(), 1);
    opened(&mut table, 3000);
    assert_eq!(due(&mut table), [0_u64; 0]);
}

/// After the ring was full, all that live are shown once more.
#[test]
fn connection_whose_first_counters_were_lost_is_asked_for_again_and_no_other() {
    let mut table = table();
    opened(&mut table, 0);
    assert_eq!(due(&mut table), [1]);
    opened(&mut table, 0);
    assert_eq!(due(&mut table), [1], "nobody answered");
    see_tcp(&mut table, &active(1).at(ms(5)));
    opened(&mut table, 0);
    assert_eq!(due(&mut table), [0_u64; 0]);
}

/// The kernel counts segments in 32 bits.
#[test]
fn packets_go_on_where_the_kernel_begins_again_at_zero() {
    const ROUND: u64 = 1 << 32;
    let mut table = table();
    let at = |packets: u64, at: u64| {
        let mut seen = active(1).at(ms(at));
        seen.counters.bytes_sent = 1000 * packets;
        seen.counters.bytes_received = 1000 * packets;
        (seen.counters.segs_out, seen.counters.segs_in) = (packets as u32, packets as u32);
        seen
    };
    let mut total = Default::default();
    let mut step = |table: &mut FlowTable, packets: u64, when: u64| {
        see_tcp(table, &at(packets, when));
        see_tcp(table, &at(packets - 500_000_000, when - 1));
        let told = records_until(table, ms(when + 10_000));
        if let Some(record) = told.last() {
            total = record.total;
        }
        total
    };
    let mut now = 5;
    for packets in [
        500_000_001,
        2_000_000_000,
        3_900_000_000,
        ROUND + 5,
        ROUND + 2_000_000_000,
    ] {
        let told = step(&mut table, packets, now);
        assert_eq!((told.forward.packets, told.backward.packets), (packets, packets));
        assert_eq!(told.forward.octets, 1000 * packets + 52 * packets + 8);
        now += 10_000;
    }
    let checkpoint = table.checkpoint();
    let boot = options().boot;
    let restore = Restore::from_checkpoint(boot, WallOffset(0), checkpoint);
    let mut table = FlowTable::with_restore(options(), restore);
    let told = step(&mut table, ROUND + 3_000_000_000, now);
    assert_eq!(told.forward.packets, ROUND + 3_000_000_000);
}
