//! What a whole short connection within this host costs: both sockets, from the hints to the one record.

use std::hint::black_box;
use std::time::Duration;

use super::cost::watch;
use super::world::*;
use crate::flow::{FlowTable, TableOptions};
use crate::observe::{Cookie, Observation, TcpObservation, TcpRole, TcpState, Tuple};
use crate::owner::Confidence;
use crate::time::WallOffset;

/// Connections of one turn: 5,000 a second.
const TURN_CONNECTIONS: u64 = 1000;
const TURN_MS: u64 = 200;
const TURNS: u64 = 300;

#[test]
#[ignore = "prints times: run alone, in release"]
fn cost_of_a_short_connection() {
    let mut table = FlowTable::new(TableOptions {
        max_flows: 65_536,
        ..options()
    });
    let (mut observed, mut driven) = (Duration::ZERO, Duration::ZERO);
    let (mut records, mut snaps) = (0_u64, 0);
    let mut due = Vec::new();
    for turn in 0..TURNS {
        let begin = turn * TURN_MS;
        let seen: Vec<_> = (0..TURN_CONNECTIONS)
            .flat_map(|n| connection(turn * TURN_CONNECTIONS + n, begin))
            .collect();
        observed += watch(|| {
            for seen in &seen {
                table.observe(black_box(seen));
            }
        });
        driven += watch(|| {
            due.clear();
            table.poll_due(&mut due, 16_384);
            snaps += due.len();
            table.handle_timeout(ms(begin + TURN_MS));
            while let Some(record) = table.poll_record(WallOffset(0)) {
                records += 1;
                black_box(record);
            }
        });
    }
    let each = |took: Duration| took.as_nanos() / u128::from(TURNS * TURN_CONNECTIONS);
    println!(
        "a short connection: {} ns in observe, {} ns in the rest, {} ns in all; {records} records, {snaps} snaps",
        each(observed),
        each(driven),
        each(observed + driven)
    );
    assert!(table.law().holds());
}

/// Hints and ends of both sockets of the `n`th connection, of a client with many processes and one server.
fn connection(n: u64, begin: u64) -> [Observation; 4] {
    let at = ms(begin + n % TURN_MS);
    let (client, server) = (2 * n + 1, 2 * n + 2);
    let mut local = end("127.0.0.1:0");
    local.port = u16::try_from(20_000 + n % 28_000).expect("a port");
    let one = Tuple {
        local,
        ..tuple("127.0.0.1:1", "127.0.0.1:80")
    };
    let other = Tuple {
        local: one.remote,
        remote: one.local,
        ..one
    };
    let opened = |cookie| Observation::Opened {
        cookie: Cookie(cookie),
        at,
    };
    let ended = |cookie, role, tuple, left, pid| {
        let mut seen: TcpObservation = tcp(1, role, tuple);
        seen.cookie = Cookie(cookie);
        seen.start = at;
        seen.established = Some(at.after(Duration::from_micros(50)));
        seen.owner = owner(pid, Confidence::Exact);
        let seen = seen
            .moved(100, 1000)
            .ended(at.after(Duration::from_micros(200)), left, 0);
        Observation::Tcp(seen)
    };
    let pid = u32::try_from(n / 4 % 1000).expect("small") + 10;
    [
        opened(client),
        opened(server),
        ended(client, TcpRole::Active, one, TcpState::FinWait2, pid),
        ended(server, TcpRole::Passive, other, TcpState::LastAck, 5),
    ]
}
