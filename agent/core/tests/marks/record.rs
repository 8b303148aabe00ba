//! Records with numbers, and the numbers in a payload.

use std::net::{IpAddr, Ipv4Addr};

use flowtilla_agent_core::encode::tlv::{self, Key, Value, element};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, CollectorSlot, Counting, EndReason, FlowRecord, Party, Protocol, RecordId, Traffic,
};
use flowtilla_agent_core::observe::{Cookie, Endpoint, NetNs};
use flowtilla_agent_core::owner::{Owner, Unknown};
use flowtilla_agent_core::time::WallTime;

use crate::store::Kind;

/// The slot of the collector under test.
pub(crate) const SLOT: CollectorSlot = CollectorSlot(2);

/// Record number `number`, < 2²⁴: its responder is 10.x.y.z.
pub(crate) fn record(number: u32, kind: Kind) -> FlowRecord {
    let party = |address: IpAddr| Party {
        endpoint: Endpoint { address, port: 1 },
        owner: Owner::unknown(Unknown::Remote),
    };
    let mut held_from = CollectorSet::default();
    if kind == Kind::ByPeer {
        held_from.insert(SLOT);
    }
    let mut delta = Traffic::default();
    if kind == Kind::TooLarge {
        delta.forward.octets = u64::MAX;
    }
    FlowRecord {
        id: RecordId {
            boot: BootId([1; 16]),
            cookie: Cookie(u64::from(number)),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Udp,
        initiator: party(IpAddr::from([192, 0, 2, 1])),
        responder: party(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | number))),
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta,
        total: Traffic::default(),
        start: WallTime(1),
        delta_start: WallTime(1),
        end: WallTime(2),
        tcp: None,
        reason: EndReason::IdleTimeout,
        held_from,
        baseline: None,
    }
}

/// Of its records.
pub(crate) fn numbers(payload: &[u8]) -> Vec<u32> {
    let wanted = Key::Element(u32::from(element::DESTINATION_IPV4));
    let number = |record: &Vec<(Key, Value)>| match record.iter().find(|(key, _)| *key == wanted) {
        Some((_, Value::Text(address))) => u32::from(address.parse::<Ipv4Addr>().unwrap()) & 0x00ff_ffff,
        other => panic!("address {other:?}"),
    };
    tlv::decode(payload).unwrap().iter().map(number).collect()
}
