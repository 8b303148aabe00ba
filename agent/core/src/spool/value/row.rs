//! One record as a row of a body: a word of flags, then only what the flags and the row before do not tell.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ValueError;
use super::parts::{REASONS, STATES, Source, at, put, reason_number, state_number, take};
use crate::flow::record::{
    BootId, CollectorSet, Counting, Counts, FlowRecord, Party, Protocol, RecordId, TcpFigures, Traffic,
};
use crate::observe::{Cookie, Endpoint, NetNs};
use crate::owner::Owner;
use crate::time::WallTime;

/// Most octets of a row: every number at its longest, and some to spare.
pub(super) const ROW_OCTETS_MAX: usize = 400;

/// Least octets of a row: flags, cookie, two ends, two owners, six counters, two times.
pub(super) const ROW_OCTETS_MIN: usize = 24;

/// Bits of the flags. Bits 0 to 3 are the end reason, 4 to 7 the TCP state; what is set in most rows comes first, so
/// that the word is short.
mod flag {
    pub(super) const FIRST: u32 = 1 << 8;
    pub(super) const UDP: u32 = 1 << 9;
    pub(super) const INITIATOR_SEEN: u32 = 1 << 10;
    pub(super) const BACKFILLED: u32 = 1 << 11;
    pub(super) const COUNTING_TOTAL: u32 = 1 << 12;
    /// The totals are not the deltas: both are there.
    pub(super) const TOTAL: u32 = 1 << 13;
    /// The delta's begin is not the flow's.
    pub(super) const DELTA_START: u32 = 1 << 14;
    pub(super) const TCP: u32 = 1 << 15;
    pub(super) const HANDSHAKE: u32 = 1 << 16;
    pub(super) const RTT: u32 = 1 << 17;
    pub(super) const RTT_VARIANCE: u32 = 1 << 18;
    pub(super) const RTT_MIN: u32 = 1 << 19;
    /// Not the first record of the socket's first flow.
    pub(super) const NUMBERED: u32 = 1 << 20;
    pub(super) const INITIATOR_V6: u32 = 1 << 21;
    pub(super) const RESPONDER_V6: u32 = 1 << 22;
    /// Another network namespace than the row before.
    pub(super) const NETNS: u32 = 1 << 23;
    pub(super) const RETRANSMITS: u32 = 1 << 24;
    pub(super) const HELD: u32 = 1 << 25;
    pub(super) const BASELINE: u32 = 1 << 26;
    /// Above them all.
    pub(super) const END: u32 = 1 << 27;
}

/// What the next row is told against: the row before; zeros at the begin of a body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    cookie: u64,
    start: u64,
    netns: u32,
}

impl Before {
    fn pass(&mut self, record: &FlowRecord) {
        self.cookie = record.id.cookie.0;
        self.start = record.start.0;
        self.netns = record.netns.0;
    }
}

/// Appends a row; `owners` are the positions of both ends' owners in the value's dictionary.
pub(super) fn put_row(out: &mut Vec<u8>, record: &FlowRecord, owners: (u32, u32), before: &mut Before) {
    let flags = flags(record, before);
    let has = |bit| flags & bit != 0;
    put(out, &(flags, difference(record.id.cookie.0, before.cookie)));
    if has(flag::NUMBERED) {
        put(out, &(record.id.stream, record.id.part));
    }
    put_endpoint(out, record.initiator.endpoint);
    put_endpoint(out, record.responder.endpoint);
    put(out, &owners);
    if has(flag::NETNS) {
        put(out, &record.netns.0);
    }
    let header = header_octets(flags);
    put_traffic(out, &record.delta, header);
    if has(flag::TOTAL) {
        put_traffic(
            out,
            &each(&record.total, &record.delta, u64::wrapping_sub),
            header,
        );
    }
    put(out, &difference(record.start.0, before.start));
    if has(flag::DELTA_START) {
        put(out, &difference(record.delta_start.0, record.start.0));
    }
    put(out, &difference(record.end.0, record.delta_start.0));
    if let Some(tcp) = &record.tcp {
        put(out, &(tcp.flags_forward, tcp.flags_backward));
        for figure in [tcp.handshake_us, tcp.rtt_us, tcp.rtt_variance_us, tcp.rtt_min_us]
            .into_iter()
            .flatten()
        {
            put(out, &figure);
        }
        if has(flag::RETRANSMITS) {
            put(out, &(tcp.retransmits_forward, tcp.retransmits_backward));
        }
    }
    if has(flag::HELD) {
        put(out, &record.held_from.bits());
    }
    if let Some(baseline) = &record.baseline {
        put(out, &**baseline);
    }
    before.pass(record);
}

/// Reads the next row.
pub(super) fn take_row(
    from: &mut Source<'_>,
    boot: BootId,
    owners: &[Owner],
    before: &mut Before,
) -> Result<FlowRecord, ValueError> {
    let (flags, cookie): (u32, i64) = take(from)?;
    if flags >= flag::END {
        return Err(ValueError::Body);
    }
    let has = |bit| flags & bit != 0;
    let (stream, part) = if has(flag::NUMBERED) { take(from)? } else { (0, 1) };
    let initiator = take_endpoint(from, has(flag::INITIATOR_V6))?;
    let responder = take_endpoint(from, has(flag::RESPONDER_V6))?;
    let (initiator_owner, responder_owner): (u32, u32) = take(from)?;
    let party = |endpoint, owner| {
        owners
            .get(owner as usize)
            .map(|owner| Party {
                endpoint,
                owner: owner.clone(),
            })
            .ok_or(ValueError::Body)
    };
    let netns = if has(flag::NETNS) {
        take(from)?
    } else {
        before.netns
    };
    let header = header_octets(flags);
    let delta = take_traffic(from, header)?;
    let total = if has(flag::TOTAL) {
        each(&take_traffic(from, header)?, &delta, u64::wrapping_add)
    } else {
        delta
    };
    let start = before.start.wrapping_add_signed(take(from)?);
    let delta_start = if has(flag::DELTA_START) {
        start.wrapping_add_signed(take(from)?)
    } else {
        start
    };
    let end = delta_start.wrapping_add_signed(take(from)?);
    let tcp = has(flag::TCP).then(|| take_tcp(from, flags)).transpose()?;
    let held = if has(flag::HELD) { take(from)? } else { 0 };
    let baseline = has(flag::BASELINE).then(|| take(from)).transpose()?;
    let record = FlowRecord {
        id: RecordId {
            boot,
            cookie: Cookie(before.cookie.wrapping_add_signed(cookie)),
            stream,
            part,
        },
        first: has(flag::FIRST),
        protocol: if has(flag::UDP) {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        initiator: party(initiator, initiator_owner)?,
        responder: party(responder, responder_owner)?,
        initiator_seen: has(flag::INITIATOR_SEEN),
        backfilled: has(flag::BACKFILLED),
        netns: NetNs(netns),
        counting: if has(flag::COUNTING_TOTAL) {
            Counting::Total
        } else {
            Counting::Delta
        },
        delta,
        total,
        start: WallTime(start),
        delta_start: WallTime(delta_start),
        end: WallTime(end),
        tcp,
        reason: at(&REASONS, flags & 15)?,
        held_from: CollectorSet::from_bits(held),
        baseline: baseline.map(Box::new),
    };
    before.pass(&record);
    Ok(record)
}

fn flags(record: &FlowRecord, before: &Before) -> u32 {
    let bit = |set: bool, bit: u32| if set { bit } else { 0 };
    let mut flags = reason_number(record.reason)
        | bit(record.first, flag::FIRST)
        | bit(record.protocol == Protocol::Udp, flag::UDP)
        | bit(record.initiator_seen, flag::INITIATOR_SEEN)
        | bit(record.backfilled, flag::BACKFILLED)
        | bit(record.counting == Counting::Total, flag::COUNTING_TOTAL)
        | bit(record.total != record.delta, flag::TOTAL)
        | bit(record.delta_start != record.start, flag::DELTA_START)
        | bit(record.id.stream != 0 || record.id.part != 1, flag::NUMBERED)
        | bit(record.initiator.endpoint.address.is_ipv6(), flag::INITIATOR_V6)
        | bit(record.responder.endpoint.address.is_ipv6(), flag::RESPONDER_V6)
        | bit(record.netns.0 != before.netns, flag::NETNS)
        | bit(record.held_from.bits() != 0, flag::HELD)
        | bit(record.baseline.is_some(), flag::BASELINE);
    if let Some(tcp) = &record.tcp {
        flags |= flag::TCP
            | state_number(tcp.state) << 4
            | bit(tcp.handshake_us.is_some(), flag::HANDSHAKE)
            | bit(tcp.rtt_us.is_some(), flag::RTT)
            | bit(tcp.rtt_variance_us.is_some(), flag::RTT_VARIANCE)
            | bit(tcp.rtt_min_us.is_some(), flag::RTT_MIN)
            | bit(
                tcp.retransmits_forward != 0 || tcp.retransmits_backward != 0,
                flag::RETRANSMITS,
            );
    }
    flags
}

fn take_tcp(from: &mut Source<'_>, flags: u32) -> Result<TcpFigures, ValueError> {
    let (flags_forward, flags_backward) = take(from)?;
    let mut figure = |bit| (flags & bit != 0).then(|| take(from)).transpose();
    let handshake_us = figure(flag::HANDSHAKE)?;
    let rtt_us = figure(flag::RTT)?;
    let rtt_variance_us = figure(flag::RTT_VARIANCE)?;
    let rtt_min_us = figure(flag::RTT_MIN)?;
    let (retransmits_forward, retransmits_backward) = if flags & flag::RETRANSMITS != 0 {
        take(from)?
    } else {
        (0, 0)
    };
    Ok(TcpFigures {
        handshake_us,
        rtt_us,
        rtt_variance_us,
        rtt_min_us,
        retransmits_forward,
        retransmits_backward,
        flags_forward,
        flags_backward,
        state: at(&STATES, flags >> 4 & 15)?,
    })
}

fn put_endpoint(out: &mut Vec<u8>, endpoint: Endpoint) {
    match endpoint.address {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
    out.extend_from_slice(&endpoint.port.to_be_bytes());
}

fn take_endpoint(from: &mut Source<'_>, v6: bool) -> Result<Endpoint, ValueError> {
    let address = if v6 {
        IpAddr::from(take::<[u8; 16]>(from)?)
    } else {
        IpAddr::from(take::<[u8; 4]>(from)?)
    };
    Ok(Endpoint {
        address,
        port: u16::from_be_bytes(take(from)?),
    })
}

/// What went one way: IP octets are told by what payload and usual headers leave of them.
#[derive(Serialize, Deserialize)]
struct CountsPart {
    packets: u64,
    payload: u64,
    rest: i64,
}

fn put_traffic(out: &mut Vec<u8>, traffic: &Traffic, header: u64) {
    let part = |counts: &Counts| CountsPart {
        packets: counts.packets,
        payload: counts.payload,
        rest: difference(
            counts.octets,
            usual_octets(counts.packets, counts.payload, header),
        ),
    };
    put(out, &(part(&traffic.forward), part(&traffic.backward)));
}

fn take_traffic(from: &mut Source<'_>, header: u64) -> Result<Traffic, ValueError> {
    let (forward, backward): (CountsPart, CountsPart) = take(from)?;
    let counts = |part: CountsPart| Counts {
        octets: usual_octets(part.packets, part.payload, header).wrapping_add_signed(part.rest),
        packets: part.packets,
        payload: part.payload,
    };
    Ok(Traffic {
        forward: counts(forward),
        backward: counts(backward),
    })
}

fn usual_octets(packets: u64, payload: u64, header: u64) -> u64 {
    payload.wrapping_add(packets.wrapping_mul(header))
}

/// Octets of the headers of most packets: IP and UDP, or IP and TCP with time stamps.
fn header_octets(flags: u32) -> u64 {
    let ip = if flags & flag::INITIATOR_V6 != 0 { 40 } else { 20 };
    ip + if flags & flag::UDP != 0 { 8 } else { 32 }
}

fn each(left: &Traffic, right: &Traffic, apply: fn(u64, u64) -> u64) -> Traffic {
    let counts = |left: &Counts, right: &Counts| Counts {
        octets: apply(left.octets, right.octets),
        packets: apply(left.packets, right.packets),
        payload: apply(left.payload, right.payload),
    };
    Traffic {
        forward: counts(&left.forward, &right.forward),
        backward: counts(&left.backward, &right.backward),
    }
}

/// `left - right`, short when they are near; wraps, so that every pair comes back.
fn difference(left: u64, right: u64) -> i64 {
    left.wrapping_sub(right).cast_signed()
}
