//! One JSON object a record, one record a line. Fields are added, never renamed or given another meaning.
//!
//! ```text
//! id             boot: 32 hex digits; cookie, stream, part: numbers. Never twice anywhere. A TCP flow keeps cookie and
//!                stream over a restart of the agent that goes on from what is kept; UDP flows begin anew.
//! first, ended   whether it is the first, the last record of its flow
//! protocol       "tcp" | "udp"
//! initiator, responder
//!   address, port
//!   confidence   "exact" | "inherited" | "backfilled" | "unknown"
//!   unknown      with "unknown": "remote" | "kernel" | "notSeen"
//!   process      pid, startNs (boot clock), parentPid, uid, gid, cgroupId, comm; null: not known
//!   names        executable, commandLine, user, group, parent {pid, executable, uid, user},
//!                container {id, runtime, name, pod {namespace, name}},
//!                unit (systemd's, of a process in no container); null: not known
//! initiatorSeen  whether the beginning was seen; otherwise who began is inferred
//! backfilled     whether the socket is older than the agent
//! netns          inode of the network namespace
//! counting       "delta" | "total": how a collector is to read the counters
//! delta, total   forward (from the initiator), backward: octets (IP), packets, payload (octets);
//!                since the last record, since the flow began
//! start, deltaStart, end   RFC 3339, UTC, nine digits of the second
//! tcp            handshakeUs, rttUs, rttVarianceUs, rttMinUs, retransmitsForward, retransmitsBackward,
//!                flagsForward, flagsBackward, state (the kernel's
//!                names, such as "ESTABLISHED"); null for UDP
//! reason         "active-timeout" (it lives) | "idle-timeout" | "end-of-flow" | "forced-end" | "lack-of-resources" |
//!                "refused" | "reset" | "timed-out" | "unreachable"
//! ```
//! Text is as processes chose it; whatever a terminal would obey is written as `\u` and four digits.

use std::fmt::Write as _;

use flowtilla_agent_core::flow::record::{
    BootId, Counting, EndReason, FlowRecord, Party, Protocol, TcpFigures, Traffic,
};
use flowtilla_agent_core::owner::{Confidence, Names, Process, Unknown};
use serde::Serialize;

use super::row;
use crate::output::{harmless_json, rfc3339};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    id: Id,
    first: bool,
    ended: bool,
    protocol: Protocol,
    initiator: End<'a>,
    responder: End<'a>,
    initiator_seen: bool,
    backfilled: bool,
    netns: u32,
    counting: Counting,
    delta: Traffic,
    total: Traffic,
    start: String,
    delta_start: String,
    end: String,
    tcp: Option<TcpFigures>,
    reason: EndReason,
}

#[derive(Serialize)]
struct Id {
    boot: String,
    cookie: u64,
    stream: u64,
    part: u32,
}

#[derive(Serialize)]
struct End<'a> {
    address: String,
    port: u16,
    confidence: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<Unknown>,
    process: Option<ProcessOut<'a>>,
    names: Option<&'a Names>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessOut<'a> {
    pid: u32,
    start_ns: u64,
    parent_pid: u32,
    uid: u32,
    gid: u32,
    cgroup_id: u64,
    comm: &'a str,
}

/// Appends the line of a record, with its end.
pub(crate) fn render(record: &FlowRecord, text: &mut String) {
    let json =
        serde_json::to_string(&Record::from(record)).expect("only maps with text keys, no foreign code");
    text.push_str(&harmless_json(json));
    text.push('\n');
}

impl<'a> From<&'a FlowRecord> for Record<'a> {
    fn from(record: &'a FlowRecord) -> Self {
        Self {
            id: Id {
                boot: hex(record.id.boot),
                cookie: record.id.cookie.0,
                stream: record.id.stream,
                part: record.id.part,
            },
            first: record.first,
            ended: row::ended(record),
            protocol: record.protocol,
            initiator: End::from(&record.initiator),
            responder: End::from(&record.responder),
            initiator_seen: record.initiator_seen,
            backfilled: record.backfilled,
            netns: record.netns.0,
            counting: record.counting,
            delta: record.delta,
            total: record.total,
            start: rfc3339(record.start).to_string(),
            delta_start: rfc3339(record.delta_start).to_string(),
            end: rfc3339(record.end).to_string(),
            tcp: record.tcp,
            reason: record.reason,
        }
    }
}

impl<'a> From<&'a Party> for End<'a> {
    fn from(party: &'a Party) -> Self {
        let (confidence, unknown) = match party.owner.confidence {
            Confidence::Exact => ("exact", None),
            Confidence::Inherited => ("inherited", None),
            Confidence::Backfilled => ("backfilled", None),
            Confidence::Told => ("told", None),
            Confidence::Unknown(why) => ("unknown", Some(why)),
        };
        Self {
            address: party.endpoint.address.to_string(),
            port: party.endpoint.port,
            confidence,
            unknown,
            process: party.owner.process.as_ref().map(ProcessOut::from),
            names: party.owner.names.as_deref(),
        }
    }
}

impl<'a> From<&'a Process> for ProcessOut<'a> {
    fn from(process: &'a Process) -> Self {
        Self {
            pid: process.key.pid,
            start_ns: process.key.start.0,
            parent_pid: process.parent_pid,
            uid: process.uid,
            gid: process.gid,
            cgroup_id: process.cgroup_id,
            comm: &process.comm,
        }
    }
}

fn hex(boot: BootId) -> String {
    boot.0.iter().fold(String::new(), |mut text, octet| {
        let _ = write!(text, "{octet:02x}"); // Writing to a String cannot fail.
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::up::samples;

    #[test]
    fn objects_are_pinned() {
        let mut text = String::new();
        samples::all().iter().for_each(|record| render(record, &mut text));
        samples::assert_pinned("records.jsonl", &text);
    }

    #[test]
    fn a_harmful_name_is_harmless_and_comes_back_unchanged() {
        let record = samples::harmful();
        let mut line = String::new();
        render(&record, &mut line);
        assert!(
            line.trim_end().chars().all(|c| c.is_ascii_graphic() || c == ' '),
            "{line:?}"
        );
        let read: serde_json::Value = serde_json::from_str(&line).expect("a line is JSON");
        let comm = &record.initiator.owner.process.as_ref().expect("it has one").comm;
        assert_eq!(read["initiator"]["process"]["comm"].as_str(), Some(&**comm));
    }
}
