//! One flow record to its items.
//!
//! The initiator is ntopng's client (SRC), the responder its server (DST). Both ends' owners stand in the same record,
//! because ntopng keeps the first process data of a flow and ignores later ones.

use std::net::IpAddr;

use bytes::BytesMut;

use super::TlvOptions;
use super::element::{self, OwnerElements};
use super::write::{end_of_record, float, named_text, number, text as put_text};
use crate::encode::text;
use crate::flow::record::{Counting, Counts, FlowRecord, TcpFigures, Traffic};
use crate::owner::{Confidence, Owner, Process, Unknown};
use crate::time::WallTime;

/// Most that one record says of one direction: ntopng reads counters modulo 2³².
const COUNTER_MAX: u64 = u32::MAX as u64;
/// Octets of an owner's name in all parts of a split record but the first, which has told it whole.
const REPEATED_NAME_OCTETS_MAX: usize = 32;
/// SYN in TCP flags.
const SYN: u8 = 2;
/// Whom a socket of the kernel belongs to when no kernel thread is known: kthreadd, the parent of all of them.
/// ntopng shows a process only when its id is above 0.
const KERNEL_PID: u32 = 2;

/// One of the parts that a record is split into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::encode) struct Part {
    /// From 0.
    pub(in crate::encode) index: u64,
    /// How many, ≥ 1.
    pub(in crate::encode) count: u64,
}

/// How many parts keep every counter of `record` below 2³². Totals are not split: they stop at 2³² - 1 instead, for
/// ntopng takes the greatest total that it has seen.
pub(super) fn parts(record: &FlowRecord) -> u64 {
    match record.counting {
        Counting::Total => 1,
        Counting::Delta => parts_of(record.delta.forward).max(parts_of(record.delta.backward)),
    }
}

/// How many parts one direction takes, ≥ 1. The other may take more: those say nothing of this one, so that a part
/// never has octets without a packet.
fn parts_of(counts: Counts) -> u64 {
    counts.octets.max(counts.packets).div_ceil(COUNTER_MAX).max(1)
}

/// The share of `sum` that part `index` of `count` tells; the shares of all parts add up to `sum`.
fn share(sum: u64, index: u64, count: u64) -> u64 {
    if index < count {
        sum / count + u64::from(index < sum % count)
    } else {
        0
    }
}

/// Appends one part of `record`, whose ends are to be called `ends` (initiator, responder).
pub(super) fn write(
    out: &mut BytesMut,
    record: &FlowRecord,
    options: &TlvOptions,
    ends: (IpAddr, IpAddr),
    part: Part,
) {
    address(out, ends.0, element::SOURCE_IPV4, element::SOURCE_IPV6);
    address(out, ends.1, element::DESTINATION_IPV4, element::DESTINATION_IPV6);
    number(out, element::SOURCE_PORT, record.initiator.endpoint.port.into());
    number(
        out,
        element::DESTINATION_PORT,
        record.responder.endpoint.port.into(),
    );
    number(out, element::IP_VERSION, if ends.0.is_ipv4() { 4 } else { 6 });
    number(out, element::PROTOCOL, record.protocol.number().into());
    counters(out, record, part);
    let first = record.delta_start.min(record.end);
    number(out, element::FIRST_SWITCHED, seconds(first));
    number(out, element::LAST_SWITCHED, seconds(record.end));
    if let Some(tcp) = &record.tcp {
        flags(out, tcp, record.initiator_seen);
        if part.index == 0 {
            latency(out, tcp, &record.initiator.owner);
            retransmits(out, tcp);
        }
    }
    put_text(out, element::END_REASON, record.reason.name());
    if let Some(address) = options.exporter_address {
        put_text(out, element::PROBE_IPV4, &address.to_string());
    }
    owner(out, &record.initiator.owner, &element::CLIENT, part);
    owner(out, &record.responder.owner, &element::SERVER, part);
    if options.record_ids {
        named_text(out, element::RECORD_ID, &identity(record, part));
    }
    end_of_record(out);
}

fn address(out: &mut BytesMut, address: IpAddr, ipv4: u16, ipv6: u16) {
    let element = if address.is_ipv4() { ipv4 } else { ipv6 };
    put_text(out, element, &address.to_string());
}

fn counters(out: &mut BytesMut, record: &FlowRecord, part: Part) {
    match record.counting {
        Counting::Delta => {
            let Traffic { forward, backward } = record.delta;
            counts(
                out,
                of_part(forward, part),
                element::DELTA_OCTETS_FORWARD,
                element::DELTA_PACKETS_FORWARD,
            );
            counts(
                out,
                of_part(backward, part),
                element::DELTA_OCTETS_BACKWARD,
                element::DELTA_PACKETS_BACKWARD,
            );
        }
        Counting::Total => {
            let Traffic { forward, backward } = record.total;
            counts(
                out,
                forward,
                element::TOTAL_OCTETS_FORWARD,
                element::TOTAL_PACKETS_FORWARD,
            );
            counts(
                out,
                backward,
                element::TOTAL_OCTETS_BACKWARD,
                element::TOTAL_PACKETS_BACKWARD,
            );
        }
    }
}

fn of_part(counts: Counts, part: Part) -> Counts {
    let count = parts_of(counts);
    Counts {
        octets: share(counts.octets, part.index, count),
        packets: share(counts.packets, part.index, count),
        payload: 0,
    }
}

/// Octets and packets of one direction as ntopng reads them.
pub(in crate::encode) fn told(counts: Counts) -> (u64, u64) {
    let octets = counts.octets.min(COUNTER_MAX);
    // ntopng leaves out the octets of a direction without packets.
    (octets, counts.packets.clamp(u64::from(octets > 0), COUNTER_MAX))
}

fn counts(out: &mut BytesMut, counts: Counts, octets_element: u16, packets_element: u16) {
    let (octets, packets) = told(counts);
    number(out, octets_element, octets);
    number(out, packets_element, packets);
}

/// Without SYN ntopng takes the end with the higher port for the client.
fn flags(out: &mut BytesMut, tcp: &TcpFigures, initiator_seen: bool) {
    let seen = if initiator_seen { SYN } else { 0 };
    number(
        out,
        element::CLIENT_TCP_FLAGS,
        u64::from(tcp.flags_forward | seen),
    );
    number(out, element::SERVER_TCP_FLAGS, tcp.flags_backward.into());
}

/// The connection's round-trip time, in µs: the smoothed one, the newest there is; the least one, then the handshake's,
/// when that was not measured.
pub(in crate::encode) fn round_trip_us(tcp: &TcpFigures) -> Option<u32> {
    [tcp.rtt_us, tcp.rtt_min_us, tcp.handshake_us]
        .into_iter()
        .flatten()
        .find(|&us| us > 0)
}

/// ntopng shows the sum of both latencies as round-trip time. This agent stands at an end, not in the middle: between
/// it and the near end lies nothing, so the whole round trip belongs to the far end. That is the client when the
/// initiator is remote, otherwise the server.
fn latency(out: &mut BytesMut, tcp: &TcpFigures, initiator: &Owner) {
    let Some(us) = round_trip_us(tcp) else { return };
    let far_end = if initiator.is_remote() {
        element::CLIENT_LATENCY_MS
    } else {
        element::SERVER_LATENCY_MS
    };
    #[expect(
        clippy::cast_possible_truncation,
        reason = "7 digits are plenty for a latency"
    )]
    float(out, far_end, (f64::from(us) / 1_000.0) as f32);
}

fn retransmits(out: &mut BytesMut, tcp: &TcpFigures) {
    for (element, n) in [
        (element::CLIENT_RETRANSMITS, tcp.retransmits_forward),
        (element::SERVER_RETRANSMITS, tcp.retransmits_backward),
    ] {
        if n > 0 {
            number(out, element, n.into());
        }
    }
}

/// Process id and program of an end, as they are shown, and what is known of the process beside; `None`: nobody is known.
pub(in crate::encode) fn shown(owner: &Owner) -> Option<(u32, String, Option<&Process>)> {
    let kernel = owner.confidence == Confidence::Unknown(Unknown::Kernel);
    let process = owner.process.as_ref().filter(|process| process.key.pid > 0);
    match (process, kernel) {
        (Some(known), true) => Some((known.key.pid, format!("[{}]", text::name(&known.comm)), process)),
        (Some(known), false) => Some((known.key.pid, program(owner, known), process)),
        (None, true) => Some((KERNEL_PID, String::from("[kernel]"), None)),
        (None, false) => None,
    }
}

/// Who is behind an end; nothing when nobody is known. A name without a process id shows nothing in ntopng, nor the
/// other way round, so they go together or not at all.
fn owner(out: &mut BytesMut, owner: &Owner, elements: &OwnerElements, part: Part) {
    let Some((pid, program, process)) = shown(owner) else {
        return;
    };
    number(out, elements.pid, pid.into());
    if part.index > 0 {
        let short = text::label(&program, REPEATED_NAME_OCTETS_MAX);
        return put_text(out, elements.program, &short);
    }
    put_text(out, elements.program, &program);
    if let Some(process) = process {
        number(out, elements.uid, process.uid.into());
    }
    let Some(names) = owner.names.as_deref() else {
        return;
    };
    optional(out, elements.user, names.user.as_deref().map(text::name));
    let command_line = names.command_line.as_deref().map(text::command_line);
    optional(out, elements.command_line, command_line);
    if let Some(container) = &names.container {
        optional(out, elements.container, Some(text::name(&container.shown())));
    }
    if let Some(parent) = &names.parent
        && parent.pid > 0
        && !parent.executable.is_empty()
    {
        number(out, elements.parent_pid, parent.pid.into());
        put_text(out, elements.parent_program, &text::path(&parent.executable));
        if let Some(uid) = parent.uid {
            number(out, elements.parent_uid, uid.into());
        }
        optional(out, elements.parent_user, parent.user.as_deref().map(text::name));
    }
}

/// The executable's path or the command's name, never empty.
fn program(owner: &Owner, process: &Process) -> String {
    match owner.program().filter(|program| !program.is_empty()) {
        Some(program) => text::path(program),
        None => format!("pid-{}", process.key.pid),
    }
}

fn optional(out: &mut BytesMut, element: u16, value: Option<String>) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        put_text(out, element, &value);
    }
}

/// Boot id, cookie, stream and part, joined by `-`; `.n` behind it for the n-th (from 0) part of a split record.
pub(in crate::encode) fn identity(record: &FlowRecord, part: Part) -> String {
    let id = record.id;
    let boot = u128::from_be_bytes(id.boot.0);
    let whole = format!("{boot:032x}-{}-{}-{}", id.cookie.0, id.stream, id.part);
    if part.count > 1 {
        format!("{whole}.{}", part.index)
    } else {
        whole
    }
}

pub(in crate::encode) fn seconds(time: WallTime) -> u64 {
    time.seconds().min(COUNTER_MAX)
}
