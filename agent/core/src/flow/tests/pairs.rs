//! Two sockets of one connection on this host are one record.

use super::world::*;
use crate::flow::FlowTable;
use crate::flow::record::EndReason;
use crate::observe::{Cookie, NetNs, Observation, TcpObservation, TcpRole, TcpState};
use crate::owner::{Confidence, Unknown};
use crate::time::WallOffset;

const CLIENT: &str = "127.0.0.1:40000";
const SERVER: &str = "127.0.0.1:80";

fn client(cookie: u64) -> TcpObservation {
    tcp(cookie, TcpRole::Active, tuple(CLIENT, SERVER))
}

fn server(cookie: u64) -> TcpObservation {
    tcp(cookie, TcpRole::Passive, tuple(SERVER, CLIENT))
}

fn hosts(netns_client: u32, netns_server: u32) -> (TcpObservation, TcpObservation) {
    let mut one = tcp(1, TcpRole::Active, tuple("10.1.0.2:40000", "10.1.0.3:80"));
    let mut other = tcp(2, TcpRole::Passive, tuple("10.1.0.3:80", "10.1.0.2:40000"));
    one.tuple.netns = NetNs(netns_client);
    other.tuple.netns = NetNs(netns_server);
    (one, other)
}

fn both_end(table: &mut FlowTable, one: &TcpObservation, other: &TcpObservation, at: u64) {
    see_tcp(table, &one.clone().ended(ms(at), TcpState::FinWait2, 0));
    see_tcp(table, &other.clone().ended(ms(at), TcpState::LastAck, 0));
}

#[test]
fn both_sockets_of_a_loopback_connection_make_one_record_with_both_owners() {
    for server_first in [false, true] {
        let mut table = table();
        let (one, other) = (client(1).moved(300, 700), server(2).moved(700, 300));
        let order = if server_first {
            [&other, &one]
        } else {
            [&one, &other]
        };
        for seen in order {
            see_tcp(&mut table, seen);
        }
        both_end(&mut table, &one, &other, 40);
        let record = one_until(&mut table, ms(2000));
        assert_eq!(record.id.cookie, Cookie(1));
        assert_eq!(record.initiator.owner.program(), Some("process-1"));
        assert_eq!(record.responder.owner.program(), Some("process-2"));
        assert_eq!(record.total.forward.payload, 300);
        let law = table.law();
        assert_eq!(law.held_octets, 0);
        assert_eq!(law.joined_octets, 2 * 52 + 8 + 700 + 3 * 52 + 8 + 300);
    }
}

#[test]
fn record_of_a_known_pair_does_not_wait() {
    let mut table = table();
    see_tcp(&mut table, &client(1).at(ms(5)));
    see_tcp(&mut table, &server(2).at(ms(6)));
    assert!(one_until(&mut table, ms(260)).first);
}

#[test]
fn record_of_a_pair_waits_for_an_owner_that_is_only_inherited() {
    let mut table = table();
    let mut other = server(2);
    other.owner = owner(9, Confidence::Inherited);
    see_tcp(&mut table, &client(1).at(ms(5)));
    see_tcp(&mut table, &other.clone().at(ms(6)));
    assert_eq!(records_until(&mut table, ms(500)), []);
    other.owner = owner(10, Confidence::Exact);
    see_tcp(&mut table, &other.at(ms(500)));
    let record = one_until(&mut table, ms(501));
    assert_eq!(record.responder.owner.program(), Some("process-10"));
}

#[test]
fn retransmits_of_the_responder_are_its_own() {
    let mut table = table();
    let mut other = server(2);
    other.counters.retransmits = 4;
    see_tcp(&mut table, &client(1).at(ms(5)));
    see_tcp(&mut table, &other.clone().at(ms(6)));
    let first = one_until(&mut table, ms(900)).tcp.expect("TCP has figures");
    assert_eq!((first.retransmits_forward, first.retransmits_backward), (0, 4));
    other.counters.retransmits = 5;
    see_tcp(&mut table, &client(1).moved(1, 1).at(ms(5000)));
    see_tcp(&mut table, &other.at(ms(5000)));
    let second = one_until(&mut table, ms(12_000)).tcp.expect("TCP has figures");
    assert_eq!(second.retransmits_backward, 1);
}

#[test]
fn loopback_addresses_of_two_namespaces_are_not_joined() {
    let mut table = table();
    let mut other = server(2);
    other.tuple.netns = NetNs(2);
    see_tcp(&mut table, &client(1));
    see_tcp(&mut table, &other);
    let records = records_until(&mut table, ms(900));
    assert_eq!(records.len(), 2);
    let unseen = &records[0].responder.owner.confidence;
    assert_eq!(*unseen, Confidence::Unknown(Unknown::NotSeen));
}

#[test]
fn other_addresses_are_joined_across_namespaces() {
    let mut table = table();
    let (one, other) = hosts(1, 2);
    see_tcp(&mut table, &other);
    see_tcp(&mut table, &one);
    assert_eq!(one_until(&mut table, ms(900)).netns, NetNs(1));
}

#[test]
fn several_that_could_be_meant_are_not_joined_in_any_order() {
    let (one, other) = hosts(1, 2);
    let (mut third, _) = hosts(3, 3);
    third.cookie = Cookie(3);
    for order in [
        [&one, &other, &third],
        [&third, &one, &other],
        [&other, &third, &one],
    ] {
        let mut table = table();
        for seen in order {
            see_tcp(&mut table, seen);
        }
        assert_eq!(records_until(&mut table, ms(900)).len(), 3);
        assert_eq!(table.law().joined_octets, 0);
    }
}

#[test]
fn pair_that_was_told_stays_when_another_candidate_appears() {
    let mut table = table();
    let (one, other) = hosts(1, 2);
    let (mut third, _) = hosts(3, 3);
    third.cookie = Cookie(3);
    third.start = ms(950);
    see_tcp(&mut table, &one);
    see_tcp(&mut table, &other);
    one_until(&mut table, ms(900));
    see_tcp(&mut table, &third.at(ms(960)));
    let alone = one_until(&mut table, ms(2000));
    assert_eq!(alone.id.cookie, Cookie(3));
}

#[test]
fn twin_of_a_flow_that_was_told_alone_is_silent_and_names_its_owner() {
    let mut table = table();
    see_tcp(&mut table, &server(2).moved(700, 300));
    let first = one_until(&mut table, ms(900));
    assert_eq!(first.id.cookie, Cookie(2));
    see_tcp(&mut table, &client(1).moved(300, 700).at(ms(950)));
    see_tcp(&mut table, &server(2).moved(700, 300).moved(5, 6).at(ms(5000)));
    let second = one_until(&mut table, ms(12_000));
    assert_eq!((second.id.cookie, second.id.part), (Cookie(2), 2));
    assert_eq!(second.initiator.owner.program(), Some("process-1"));
    assert_eq!(second.delta.forward.payload, 6);
}

#[test]
fn twin_that_shows_up_after_the_other_was_told_and_left_is_silent() {
    let mut table = table();
    see_tcp(
        &mut table,
        &client(1).moved(300, 700).ended(ms(40), TcpState::FinWait2, 0),
    );
    assert_eq!(one_until(&mut table, ms(2000)).reason, EndReason::EndOfFlow);
    let other = server(2).moved(700, 300).ended(ms(41), TcpState::LastAck, 0);
    see_tcp(&mut table, &other.at(ms(3000)));
    assert_eq!(records_until(&mut table, ms(9000)), []);
    assert_eq!((table.flows(), table.law().held_octets), (0, 0));
}

#[test]
fn one_end_alone_is_reported_alone() {
    let mut table = table();
    see_tcp(
        &mut table,
        &server(2).moved(700, 300).ended(ms(40), TcpState::LastAck, 0),
    );
    let record = one_until(&mut table, ms(2000));
    assert_eq!(record.id.cookie, Cookie(2));
    assert_eq!(record.total.forward.payload, 300);
}

#[test]
fn pair_lives_as_long_as_its_initiator() {
    let mut table = table();
    see_tcp(&mut table, &client(1).at(ms(5)));
    see_tcp(&mut table, &server(2).at(ms(6)));
    one_until(&mut table, ms(900));
    see_tcp(&mut table, &server(2).ended(ms(1000), TcpState::FinWait2, 0));
    assert_eq!(records_until(&mut table, ms(2000)), []);
    see_tcp(
        &mut table,
        &client(1).moved(9, 9).ended(ms(3000), TcpState::LastAck, 0),
    );
    let last = one_until(&mut table, ms(4000));
    assert_eq!(last.responder.owner.program(), Some("process-2"));
    assert_eq!(table.flows(), 0);
}

#[test]
fn what_the_responder_counts_after_the_pair_ended_is_joined() {
    let mut table = table();
    see_tcp(&mut table, &client(1).at(ms(5)));
    see_tcp(&mut table, &server(2).at(ms(6)));
    see_tcp(
        &mut table,
        &client(1).moved(9, 9).ended(ms(100), TcpState::FinWait2, 0),
    );
    one_until(&mut table, ms(900));
    see_tcp(
        &mut table,
        &server(2).moved(9, 9).ended(ms(60_000), TcpState::LastAck, 0),
    );
    assert_eq!(records_until(&mut table, ms(90_000)), []);
    assert_eq!(table.flows(), 0);
}

#[test]
fn port_used_again_at_once_pairs_with_its_own_twin() {
    let mut table = table();
    let life = |seen: TcpObservation, start: u64, end: u64| {
        let mut seen = seen.ended(ms(end), TcpState::Established, 104);
        seen.start = ms(start);
        seen
    };
    for seen in [
        life(client(1), 0, 10),
        life(server(2), 1, 10),
        life(client(3), 20, 30),
        life(server(4), 21, 30),
    ] {
        see_tcp(&mut table, &seen);
    }
    let records = records_until(&mut table, ms(2000));
    let ends: Vec<_> = records
        .iter()
        .map(|record| {
            (
                record.id.cookie.0,
                record.responder.owner.program().map(str::to_owned),
            )
        })
        .collect();
    assert_eq!(
        ends,
        [
            (1, Some("process-2".to_owned())),
            (3, Some("process-4".to_owned()))
        ]
    );
}

#[test]
fn socket_connected_to_itself_is_one_flow() {
    let mut table = table();
    see_tcp(&mut table, &tcp(1, TcpRole::Active, tuple(CLIENT, CLIENT)));
    assert_eq!(records_until(&mut table, ms(900)).len(), 1);
}

#[test]
fn both_ends_of_an_older_connection_are_joined() {
    let mut table = table();
    let older = |mut seen: TcpObservation| {
        seen.backfilled = true;
        seen.role = TcpRole::Unknown;
        seen
    };
    see_tcp(&mut table, &older(server(2)));
    see_tcp(&mut table, &older(client(1)));
    let record = one_until(&mut table, ms(900));
    assert_eq!(record.id.cookie, Cookie(1));
    assert_eq!(record.responder.endpoint, end(SERVER));
}

#[test]
fn full_table_ends_both_ends_of_a_pair_with_one_record() {
    let mut table = small_table(3);
    see_tcp(&mut table, &client(1).moved(10, 10));
    see_tcp(&mut table, &server(2).moved(10, 10));
    see_tcp(&mut table, &active(3));
    see_tcp(&mut table, &active(4));
    let record = &polled(&mut table)[..];
    assert_eq!(record.len(), 1);
    assert_eq!(record[0].reason, EndReason::LackOfResources);
    assert_eq!(record[0].responder.owner.program(), Some("process-2"));
    assert_eq!(table.flows(), 2);
}

#[test]
fn both_sockets_of_a_udp_conversation_make_one_record() {
    let mut table = table();
    let (client, server) = ("10.0.0.1:5000", "10.0.0.1:53");
    let mut answers = udp(2, tuple(server, client), 1, 1, ms(3));
    answers.counters.peer_first = true;
    see_udp(&mut table, &answers);
    see_udp(&mut table, &udp(1, tuple(client, server), 1, 1, ms(3)));
    let records = records_until(&mut table, ms(20_000));
    let parts: Vec<_> = records
        .iter()
        .map(|record| (record.id.cookie.0, record.id.part, record.reason))
        .collect();
    assert_eq!(
        parts,
        [(1, 1, EndReason::ActiveTimeout), (1, 2, EndReason::IdleTimeout)]
    );
    assert_eq!(records[0].responder.owner.program(), Some("process-2"));
    assert_eq!(table.law().joined_octets, 256);
    assert_eq!(table.law().reported_octets, 256);
}

#[test]
fn udp_that_goes_on_after_its_twin_ended_speaks_for_itself() {
    let mut table = table();
    let (client, server) = ("10.0.0.1:5000", "10.0.0.1:53");
    let mut answers = udp(2, tuple(server, client), 1, 1, ms(3));
    answers.counters.peer_first = true;
    see_udp(&mut table, &udp(1, tuple(client, server), 1, 1, ms(3)));
    see_udp(&mut table, &answers);
    let mut over = udp(1, tuple(client, server), 1, 1, ms(3)).at(ms(1000));
    over.ended = true;
    see_udp(&mut table, &over);
    records_until(&mut table, ms(2000));
    // In flight when the other end closed: the twin's.
    answers.counters.packets_out = 2;
    answers.counters.octets_out = 256;
    answers.counters.last = ms(1500);
    see_udp(&mut table, &answers.clone().at(ms(2000)));
    assert_eq!(table.law().joined_octets, 256 + 128);
    // Long after: its own.
    answers.counters.packets_out = 3;
    answers.counters.octets_out = 384;
    answers.counters.last = ms(9000);
    see_udp(&mut table, &answers.at(ms(9000)));
    let record = one_until(&mut table, ms(10_000));
    assert_eq!((record.id.cookie, record.id.stream), (Cookie(2), 2));
    assert_eq!(record.total.forward.packets + record.total.backward.packets, 1);
}

/// Any process can make flows with equal ends as fast as it can open and close a socket.
#[test]
fn flows_with_the_same_ends_cost_a_bounded_number_of_steps_each() {
    const FLOWS: u64 = 65_536;
    /// A flow looks for its twin when it begins, when its record is due, and at its end; and then at its twin's rivals.
    const STEPS_MAX: u64 = 3 * 2 * 16;
    let (own, far) = ("10.0.0.1:9998", "10.0.0.2:5555");
    for with_twin in [false, true] {
        let mut table = small_table(2 * FLOWS as usize);
        if with_twin {
            let twin = udp(FLOWS + 1, tuple(far, own), FLOWS, 0, ms(1));
            table.observe(&Observation::Udp(twin));
        }
        for cookie in 1..=FLOWS {
            let mut seen = udp(cookie, tuple(own, far), 0, 1, ms(1));
            seen.ended = true;
            table.observe(&Observation::Udp(seen));
        }
        let flows = table.flows() as u64;
        let mut told = 0;
        while table.poll_timeout().is_some_and(|due| due <= ms(2000)) {
            table.handle_timeout(ms(2000));
            told += std::iter::from_fn(|| table.poll_record(WallOffset(0))).count() as u64;
        }
        assert_eq!(flows, FLOWS + u64::from(with_twin));
        // The last that is left has its twin for itself.
        assert!(told + 1 >= FLOWS, "{told} records");
        let steps = table.pairs.followed.get();
        assert!(steps <= STEPS_MAX * flows, "{steps} steps for {flows} flows");
        assert!(!with_twin || steps >= flows, "{steps} steps");
    }
}

#[test]
fn flows_with_the_same_ends_leave_in_any_order() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut table = table();
    let mut cookies: Vec<u64> = (1..=40).collect();
    for &cookie in &cookies {
        see_tcp(&mut table, &client(cookie));
    }
    rng.shuffle(&mut cookies);
    for (left, &cookie) in cookies.iter().rev().enumerate() {
        let at = 10_000 + 1000 * left as u64;
        see_tcp(&mut table, &client(cookie).ended(ms(at), TcpState::LastAck, 0));
        // Checks that all the others are found.
        records_until(&mut table, ms(at + 900));
        assert_eq!(table.flows(), cookies.len() - left - 1, "seed {seed}");
    }
}

#[test]
fn connections_that_use_one_port_again_and_again_are_told_once_each() {
    const CONNECTIONS: u64 = 150;
    let mut table = table();
    let lived = |mut seen: TcpObservation, n: u64, left| {
        seen.start = ms(5 * n);
        seen.established = Some(ms(5 * n));
        seen.moved(100, 100).ended(ms(5 * n + 3), left, 0)
    };
    for n in 0..CONNECTIONS {
        see_tcp(&mut table, &lived(client(2 * n + 1), n, TcpState::FinWait2));
        see_tcp(&mut table, &lived(server(2 * n + 2), n, TcpState::LastAck));
    }
    let told = records_until(&mut table, ms(5_000));
    assert_eq!(told.len() as u64, CONNECTIONS);
    assert!(told.iter().all(|record| record.responder.owner.process.is_some()));
}
