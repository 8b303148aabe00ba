//! Single cases of agents that go on from a checkpoint and the records after it, and the form of the checkpoint.

use super::world::*;
use crate::flow::checkpoint::{Checkpoint, CheckpointError};
use crate::flow::record::{BootId, EndReason, FlowRecord};
use crate::flow::restore::Restore;
use crate::flow::{FlowTable, TableOptions};
use crate::observe::{Cookie, TcpObservation, TcpRole, TcpState};
use crate::time::{KernelTime, WallOffset};

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.1:443";

fn client() -> TcpObservation {
    tcp(1, TcpRole::Active, tuple(CLIENT, SERVER))
}

fn server() -> TcpObservation {
    tcp(2, TcpRole::Passive, tuple(SERVER, CLIENT))
}

/// The socket as the walk of an agent shows it that starts at `at`.
fn walked(mut seen: TcpObservation, at: KernelTime) -> TcpObservation {
    seen.backfilled = true;
    seen.role = TcpRole::Unknown;
    seen.established = None;
    seen.start = at;
    seen.at(at)
}

/// An agent that starts at 20 s from what is kept.
fn next(checkpoint: Option<&Checkpoint>, records: &[FlowRecord]) -> FlowTable {
    let boot = options().boot;
    let mut restore = Restore::new(boot, WallOffset(0));
    if let Some(checkpoint) = checkpoint {
        let kept = Checkpoint::from_octets(&checkpoint.to_octets()).expect("as written");
        assert_eq!(kept, *checkpoint);
        restore = Restore::from_checkpoint(boot, WallOffset(0), kept);
    }
    records.iter().for_each(|record| restore.replay(record));
    let options = TableOptions {
        started: ms(20_000),
        ..options()
    };
    FlowTable::with_restore(options, restore)
}

fn walk(table: &mut FlowTable, sockets: &[TcpObservation]) {
    for seen in sockets {
        see_tcp(table, &walked(seen.clone(), ms(20_000)));
    }
    table.end_restore();
}

/// A connection to a far host that was told once, with all figures there are.
fn told() -> (FlowTable, Vec<FlowRecord>, TcpObservation) {
    let mut table = table();
    let mut seen = active(1).moved(100, 1000);
    seen.established = Some(ms(12));
    seen.counters.retransmits = 2;
    seen.counters.segs_out += 2;
    see_tcp(&mut table, &seen.clone().at(ms(20)));
    let records = records_until(&mut table, ms(900));
    (table, records, seen)
}

#[test]
fn next_record_is_what_it_would_have_been_without_a_restart() {
    let (mut table, records, mut seen) = told();
    let checkpoint = table.checkpoint();
    seen = seen.moved(7, 8);
    seen.counters.retransmits = 3;
    see_tcp(&mut table, &seen.clone().at(ms(5000)));
    let expected = one_until(&mut table, ms(11_000));
    for (checkpoint, records) in [
        (Some(&checkpoint), &[][..]),
        (Some(&checkpoint), &records),
        (None, &records),
    ] {
        let mut table = next(checkpoint, records);
        walk(&mut table, std::slice::from_ref(&seen));
        let mut record = one_until(&mut table, ms(21_000));
        record.end = expected.end;
        assert_eq!(record, expected);
        assert_eq!(table.ended_unseen(), 0);
    }
}

#[test]
fn what_flowed_while_no_agent_ran_is_in_the_last_record_of_a_socket_that_ended_at_once() {
    let (table, _, seen) = told();
    let mut table = next(Some(&table.checkpoint()), &[]);
    let ended = walked(seen.moved(7, 8), ms(20_000)).ended(ms(20_001), TcpState::LastAck, 0);
    see_tcp(&mut table, &ended);
    let last = one_until(&mut table, ms(21_000));
    assert_eq!((last.id.part, last.reason), (2, EndReason::EndOfFlow));
    assert_eq!((last.delta.forward.payload, last.total.forward.payload), (7, 107));
}

#[test]
fn flow_that_no_record_told_yet_counts_from_its_socket_s_first_octet() {
    let mut table = table();
    let seen = active(1).moved(100, 1000);
    see_tcp(&mut table, &seen.clone().at(ms(20)));
    let mut table = next(Some(&table.checkpoint()), &[]);
    walk(&mut table, &[seen.moved(1, 1)]);
    let record = one_until(&mut table, ms(21_000));
    assert_eq!((record.first, record.id.part, record.id.stream), (true, 1, 0));
    assert_eq!(record.total.forward.payload, 101);
    assert_eq!(record.start.0, ms(0).0);
    assert!(record.initiator_seen && !record.backfilled);
}

#[test]
fn everything_of_another_run_of_the_kernel_is_void() {
    let (table, records, seen) = told();
    let boot = BootId([8; 16]);
    let mut restore = Restore::from_checkpoint(boot, WallOffset(0), table.checkpoint());
    records.iter().for_each(|record| restore.replay(record));
    assert_eq!(restore.sockets(), 0);
    let stale = Restore::from_checkpoint(options().boot, WallOffset(0), table.checkpoint());
    let mut table = FlowTable::with_restore(TableOptions { boot, ..options() }, stale);
    walk(&mut table, &[seen]);
    assert_eq!(one_until(&mut table, ms(21_000)).total, Default::default());
}

#[test]
fn socket_that_nothing_is_known_of_begins_as_another_flow() {
    let (_, _, seen) = told();
    let mut table = next(None, &[]);
    walk(&mut table, &[seen]);
    let record = one_until(&mut table, ms(21_000));
    assert_eq!((record.id.stream, record.id.part), (ms(20_000).0, 1));
    assert!(record.first && record.backfilled);
    assert_eq!(record.total, Default::default());
}

#[test]
fn sockets_that_ended_while_no_agent_ran_are_counted_and_forgotten() {
    let (mut table, _, seen) = told();
    see_tcp(
        &mut table,
        &tcp(5, TcpRole::Active, tuple("10.0.0.1:5", "192.0.2.9:5")),
    );
    let mut table = next(Some(&table.checkpoint()), &[]);
    assert_eq!(
        table.checkpoint().sockets(),
        2,
        "still known until the walk is done"
    );
    walk(&mut table, &[seen]);
    assert_eq!(table.ended_unseen(), 1);
    assert_eq!(table.checkpoint().sockets(), 1);
}

#[test]
fn record_that_ends_a_socket_takes_it_out() {
    let (mut table, mut records, seen) = told();
    let checkpoint = table.checkpoint();
    see_tcp(&mut table, &seen.ended(ms(1000), TcpState::LastAck, 0));
    records.extend(records_until(&mut table, ms(2000)));
    let mut table = next(Some(&checkpoint), &records);
    walk(&mut table, &[]);
    assert_eq!((table.ended_unseen(), table.checkpoint().sockets()), (0, 0));
}

#[test]
fn flow_that_a_stop_ended_goes_on_as_another_from_what_was_told() {
    let (mut table, mut records, seen) = told();
    let before = table.checkpoint();
    table.end_all(ms(1000));
    records.extend(polled(&mut table));
    let after = table.checkpoint();
    for (checkpoint, records) in [
        (Some(&before), &records[..]),
        (Some(&after), &[]),
        (None, &records),
    ] {
        let mut table = next(checkpoint, records);
        walk(&mut table, &[seen.clone().moved(7, 8)]);
        let record = one_until(&mut table, ms(21_000));
        assert_eq!((record.id.stream, record.id.part, record.first), (1, 1, true));
        assert_eq!(
            (record.total.forward.payload, record.total.backward.payload),
            (7, 8)
        );
        assert_eq!(record.tcp.expect("TCP has figures").retransmits_forward, 0);
    }
}

#[test]
fn both_sockets_of_a_connection_stay_one_flow_whichever_is_shown_first() {
    let mut table = table();
    see_tcp(&mut table, &client().moved(300, 700).at(ms(5)));
    see_tcp(&mut table, &server().moved(700, 300).at(ms(6)));
    let records = records_until(&mut table, ms(900));
    assert_eq!(records.len(), 1);
    let checkpoint = table.checkpoint();
    let ends = [
        client().moved(300, 700).moved(1, 2),
        server().moved(700, 300).moved(2, 1),
    ];
    for (checkpoint, records) in [(Some(&checkpoint), &[][..]), (None, &records)] {
        for turned in [false, true] {
            let mut table = next(checkpoint, records);
            let mut ends = ends.clone();
            if turned {
                ends.swap(0, 1);
            }
            walk(&mut table, &ends);
            let record = one_until(&mut table, ms(21_000));
            assert_eq!((record.id.cookie, record.id.part), (Cookie(1), 2));
            assert_eq!(
                (record.delta.forward.payload, record.delta.backward.payload),
                (1, 2)
            );
            assert_eq!(record.responder.owner.program(), Some("process-2"));
            assert_eq!(table.ended_unseen(), 0);
        }
    }
}

#[test]
fn responder_of_a_connection_that_was_told_says_nothing_when_the_initiator_is_gone() {
    let mut table = table();
    see_tcp(&mut table, &client().moved(300, 700).at(ms(5)));
    see_tcp(&mut table, &server().moved(700, 300).at(ms(6)));
    let untold = table.checkpoint();
    let records = records_until(&mut table, ms(900));
    let told = table.checkpoint();
    see_tcp(
        &mut table,
        &client().moved(300, 700).ended(ms(1000), TcpState::FinWait2, 0),
    );
    let ending = records_until(&mut table, ms(2000));
    let mut all = records.clone();
    all.extend(ending.iter().cloned());
    for (checkpoint, records) in [
        (Some(&untold), &records[..]),
        (Some(&untold), &all),
        (Some(&told), &ending),
        (Some(&told), &[]),
        (None, &records),
    ] {
        let mut table = next(checkpoint, records);
        walk(&mut table, &[server().moved(700, 300)]);
        assert_eq!(records_until(&mut table, ms(40_000)), []);
        assert_eq!(table.law().reported_octets, 0);
    }
}

#[test]
fn streams_of_udp_never_come_again() {
    let mut ids = Vec::new();
    for started in [0, 20_000] {
        let mut table = FlowTable::new(TableOptions {
            started: ms(started),
            ..options()
        });
        for (peer, last) in [("192.0.2.1:53", 1), ("192.0.2.2:53", 2)] {
            let mut seen = udp(1, tuple("10.0.0.1:5000", peer), 1, 1, ms(started + last));
            seen.counters.first = ms(started + last);
            see_udp(&mut table, &seen);
        }
        ids.extend(
            records_until(&mut table, ms(started + 900))
                .iter()
                .map(|record| record.id),
        );
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    assert_eq!(ids[2].stream, ms(20_000).0 + 1);
}

#[test]
fn checkpoint_that_was_cut_or_changed_is_refused() {
    let (table, ..) = told();
    let octets = table.checkpoint().to_octets();
    assert!(octets.len() < 150, "{} octets", octets.len());
    for length in 0..octets.len() {
        assert!(Checkpoint::from_octets(&octets[..length]).is_err());
    }
    for bit in 0..8 * octets.len() {
        let mut changed = octets.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(Checkpoint::from_octets(&changed).is_err(), "bit {bit}");
    }
    let mut newer = octets.clone();
    newer[0] += 1;
    assert_eq!(
        Checkpoint::from_octets(&newer),
        Err(CheckpointError::Version { found: 2 })
    );
}

#[test]
fn whatever_a_checkpoint_says_nothing_panics() {
    let seed = fastrand::u64(..);
    let mut rng = fastrand::Rng::with_seed(seed);
    let (table, records, seen) = told();
    let octets = table.checkpoint().to_octets();
    let mut read = 0;
    for _ in 0..20_000 {
        let mut content = octets[..octets.len() - 4].to_vec();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(19..content.len());
            content[at] = rng.u8(..);
        }
        let checksum = crc32c::crc32c(&content);
        content.extend(checksum.to_le_bytes());
        let Ok(checkpoint) = Checkpoint::from_octets(&content) else {
            continue;
        };
        read += 1;
        let mut table = next(Some(&checkpoint), &records);
        walk(&mut table, std::slice::from_ref(&seen));
        table.end_all(ms(40_000));
        while table.poll_record(WallOffset(i64::MAX)).is_some() {}
    }
    assert!(read > 1000, "seed {seed}: {read} were read");
}
