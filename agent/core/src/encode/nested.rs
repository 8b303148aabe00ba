//! Flow records to JSON with an object for each end's process, container and TCP figures, which ntopng 5.2 takes for topic
//! `flow`, and later ones whose build can be licensed as Pro.
//!
//! ```text
//! payload := [ record, … ]
//! record  := { "timestamp": "SECONDS.FRACTION", "22": first, "21": last, "PROTOCOL": …, totals, ends, who }
//! ends    := LOCAL_/REMOTE_ addresses and ports; without a process or a container the elements' numbers
//! who     := "TCP_EVENT_TYPE" or "UDP_EVENT_TYPE": "CONNECT" or "ACCEPT",
//!            LOCAL_PROCESS, LOCAL_FATHER_PROCESS, LOCAL_CONTAINER, TCP
//! ```
//!
//! ntopng takes one end from a record: the responder's when the event is ACCEPT, otherwise the initiator's; "local" is the
//! initiator's address in both. So each end that has a process or a container makes a record of its own, and a flow of
//! which nothing is known but its counters makes one without `who`.
//!
//! In: [`FlowRecord`]s. Out: payloads of at most [`RECORDS_MAX`] records as ntopng counts them and [`PAYLOAD_OCTETS_MAX`]
//! octets. Invariants: a record is in a batch whole or not at all; counters are totals, whatever the flow record says, for
//! ntopng reads those of records with objects so, and the same totals in both ends' records count once. They stop at
//! 2³² - 1 a direction. `timestamp` is a text, and processes have `PROCESS_PATH` and `UID_NAME`: ntopng 5.2 ends itself
//! otherwise. `timestamp` comes first, because it sets both times. What was sent again goes by the elements 57581 and 57582, since
//! the record before, in one record: ntopng adds it to the flow, and to hosts and the interface twice, once as it reads the record
//! and once as it sums up the flow (5.2.1 and 6.3-dev, TLV too). No form of the record avoids that but one that halves the flow's.
//! Source: ntopng 5.2 `ZMQParserInterface::parseNProbeAgentField`, `Flow::setParsedeBPFInfo`, `ParserInterface::processFlow`.

use std::net::IpAddr;

use bytes::Bytes;
use serde::Serialize;

use super::text;
pub use super::tlv::{EncodedBatch, PAYLOAD_OCTETS_MAX, Push, RECORDS_MAX, TlvOptions};
use super::tlv::{Part, identity, round_trip_us, seconds, shown, told};
use crate::flow::record::{Counts, FlowRecord, Protocol, TcpFigures, Traffic};
use crate::observe::TcpState;
use crate::owner::{self, CONTAINER_ID_SHOWN, Owner};
use crate::time::WallTime;

/// What stands for a user that is not known at all.
const NO_USER: &str = "unknown";
/// SYN in TCP flags.
const SYN: u8 = 2;

#[derive(Serialize)]
struct Record {
    timestamp: String,
    #[serde(rename = "22")]
    first_switched: u64,
    #[serde(rename = "21")]
    last_switched: u64,
    #[serde(rename = "PROTOCOL")]
    protocol: u8,
    #[serde(flatten)]
    ends: Ends,
    #[serde(rename = "231")]
    octets_forward: u64,
    #[serde(rename = "298")]
    packets_forward: u64,
    #[serde(rename = "232")]
    octets_backward: u64,
    #[serde(rename = "299")]
    packets_backward: u64,
    #[serde(flatten)]
    once: Option<Once>,
    #[serde(flatten)]
    who: Option<Who>,
    #[serde(rename = "FLOWTILLA_RECORD_ID", skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

/// Addresses and ports, the initiator's first.
#[derive(Serialize)]
#[serde(untagged)]
enum Ends {
    Ipv4 {
        #[serde(rename = "IPV4_LOCAL_ADDR")]
        local: String,
        #[serde(rename = "IPV4_REMOTE_ADDR")]
        remote: String,
        #[serde(rename = "L4_LOCAL_PORT")]
        local_port: u16,
        #[serde(rename = "L4_REMOTE_PORT")]
        remote_port: u16,
    },
    Ipv6 {
        #[serde(rename = "IPV6_LOCAL_ADDR")]
        local: String,
        #[serde(rename = "IPV6_REMOTE_ADDR")]
        remote: String,
        #[serde(rename = "L4_LOCAL_PORT")]
        local_port: u16,
        #[serde(rename = "L4_REMOTE_PORT")]
        remote_port: u16,
    },
    FlatIpv4 {
        #[serde(rename = "8")]
        source: String,
        #[serde(rename = "12")]
        destination: String,
        #[serde(rename = "7")]
        source_port: u16,
        #[serde(rename = "11")]
        destination_port: u16,
        #[serde(rename = "60")]
        ip_version: u8,
    },
    FlatIpv6 {
        #[serde(rename = "27")]
        source: String,
        #[serde(rename = "28")]
        destination: String,
        #[serde(rename = "7")]
        source_port: u16,
        #[serde(rename = "11")]
        destination_port: u16,
        #[serde(rename = "60")]
        ip_version: u8,
    },
}

/// What is about the connection and not about an end: in one record of a flow record only, because ntopng adds it up.
#[derive(Serialize)]
struct Once {
    /// Without SYN ntopng takes the end with the higher port for the client.
    #[serde(rename = "57550")]
    client_flags: u8,
    #[serde(rename = "57551")]
    server_flags: u8,
    #[serde(rename = "57581", skip_serializing_if = "is_none")]
    client_retransmits: u32,
    #[serde(rename = "57582", skip_serializing_if = "is_none")]
    server_retransmits: u32,
}

#[derive(Serialize)]
struct Who {
    #[serde(rename = "TCP_EVENT_TYPE", skip_serializing_if = "Option::is_none")]
    tcp_event: Option<&'static str>,
    #[serde(rename = "UDP_EVENT_TYPE", skip_serializing_if = "Option::is_none")]
    udp_event: Option<&'static str>,
    #[serde(rename = "LOCAL_PROCESS", skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
    #[serde(rename = "LOCAL_FATHER_PROCESS", skip_serializing_if = "Option::is_none")]
    father: Option<Process>,
    #[serde(rename = "LOCAL_CONTAINER", skip_serializing_if = "Option::is_none")]
    container: Option<Container>,
    #[serde(rename = "TCP", skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
}

#[derive(Serialize)]
struct Process {
    #[serde(rename = "PID")]
    pid: u32,
    #[serde(rename = "UID", skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(rename = "UID_NAME")]
    user: String,
    #[serde(rename = "GID", skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(rename = "PROCESS_PATH")]
    program: String,
}

#[derive(Serialize)]
struct Container {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "K8S", skip_serializing_if = "Option::is_none")]
    pod: Option<Pod>,
    /// ntopng looks at it only without a pod.
    #[serde(rename = "DOCKER", skip_serializing_if = "Option::is_none")]
    alone: Option<Alone>,
}

#[derive(Serialize)]
struct Pod {
    #[serde(rename = "NAME")]
    container: String,
    #[serde(rename = "POD")]
    name: String,
    #[serde(rename = "NS")]
    namespace: String,
}

#[derive(Serialize)]
struct Alone {
    #[serde(rename = "NAME")]
    name: String,
}

/// TCP as one end has it. `RETRAN_PKTS` and `LOST_PKTS` are left out: ntopng reads them and shows them nowhere, as totals, of which
/// a record has none; what was lost is not known at all. [`Once`] has what was sent again.
#[derive(Serialize)]
struct Tcp {
    #[serde(rename = "CONN_STATE", skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(rename = "SEGS_IN")]
    segments_in: u64,
    #[serde(rename = "SEGS_OUT")]
    segments_out: u64,
    /// Milliseconds.
    #[serde(rename = "RTT", skip_serializing_if = "Option::is_none")]
    round_trip: Option<f64>,
    #[serde(rename = "RTT_VARIANCE", skip_serializing_if = "Option::is_none")]
    variance: Option<f64>,
}

/// Which end of a flow a record is about.
#[derive(Clone, Copy)]
enum End {
    Initiator,
    Responder,
}

/// Records on their way into one message.
#[derive(Debug)]
pub struct Batch {
    options: TlvOptions,
    payload: Vec<u8>,
    records: u32,
    parts: u32,
}

impl Batch {
    /// An empty batch. [`TlvOptions::exporter_address`] is nothing that these records have.
    #[must_use]
    pub fn new(options: TlvOptions) -> Self {
        Self {
            options,
            payload: Vec::new(),
            records: 0,
            parts: 0,
        }
    }

    /// Puts a record into the batch, whole or not at all.
    pub fn push(&mut self, record: &FlowRecord) -> Push {
        let Some(addresses) = self.options.ends(record) else {
            return Push::Withheld;
        };
        let refusal = match self.records {
            0 => Push::TooLarge,
            _ => Push::Full,
        };
        let mut known: Vec<Option<Who>> = [End::Initiator, End::Responder]
            .into_iter()
            .filter_map(|end| who(record, end).map(Some))
            .collect();
        if known.is_empty() {
            known.push(None);
        }
        let count = known.len();
        if self.parts as usize + count > RECORDS_MAX {
            return refusal;
        }
        let before = self.payload.len();
        for (index, who) in (0..).zip(known) {
            self.payload
                .push(if self.payload.is_empty() { b'[' } else { b',' });
            let part = Part {
                index,
                count: count as u64,
            };
            let written = written(record, addresses, who, part, self.options.record_ids);
            serde_json::to_writer(&mut self.payload, &written).expect("numbers and texts always make JSON");
        }
        // The bracket at the end comes with `finish`.
        if self.payload.len() >= PAYLOAD_OCTETS_MAX {
            self.payload.truncate(before);
            return refusal;
        }
        self.records += 1;
        self.parts += u32::try_from(count).expect("a flow has two ends");
        Push::Added
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Takes the payload out and leaves the batch empty, ready for the next; `None` when nothing was in it.
    pub fn finish(&mut self) -> Option<EncodedBatch> {
        let mut payload = std::mem::take(&mut self.payload);
        let records = std::mem::take(&mut self.records);
        let parts = std::mem::take(&mut self.parts);
        (records > 0).then(|| {
            payload.push(b']');
            EncodedBatch {
                payload: Bytes::from(payload),
                records,
                parts,
            }
        })
    }
}

fn written(
    record: &FlowRecord,
    addresses: (IpAddr, IpAddr),
    who: Option<Who>,
    part: Part,
    with_id: bool,
) -> Record {
    let (octets_forward, packets_forward) = told(record.total.forward);
    let (octets_backward, packets_backward) = told(record.total.backward);
    let tcp = record.tcp.as_ref().filter(|_| part.index == 0);
    Record {
        timestamp: timestamp(record.end),
        first_switched: seconds(record.delta_start.min(record.end)),
        last_switched: seconds(record.end),
        protocol: record.protocol.number(),
        ends: ends(record, addresses, who.is_some()),
        octets_forward,
        packets_forward,
        octets_backward,
        packets_backward,
        once: tcp.map(|tcp| Once {
            client_flags: tcp.flags_forward | if record.initiator_seen { SYN } else { 0 },
            server_flags: tcp.flags_backward,
            client_retransmits: tcp.retransmits_forward,
            server_retransmits: tcp.retransmits_backward,
        }),
        who,
        id: with_id.then(|| identity(record, part)),
    }
}

fn ends(record: &FlowRecord, addresses: (IpAddr, IpAddr), nested: bool) -> Ends {
    let (initiator, responder) = (record.initiator.endpoint.port, record.responder.endpoint.port);
    let (first, second) = (addresses.0.to_string(), addresses.1.to_string());
    match (nested, addresses.0.is_ipv4()) {
        (true, true) => Ends::Ipv4 {
            local: first,
            remote: second,
            local_port: initiator,
            remote_port: responder,
        },
        (true, false) => Ends::Ipv6 {
            local: first,
            remote: second,
            local_port: initiator,
            remote_port: responder,
        },
        (false, true) => Ends::FlatIpv4 {
            source: first,
            destination: second,
            source_port: initiator,
            destination_port: responder,
            ip_version: 4,
        },
        (false, false) => Ends::FlatIpv6 {
            source: first,
            destination: second,
            source_port: initiator,
            destination_port: responder,
            ip_version: 6,
        },
    }
}

/// Who is at an end; `None`: neither process nor container is known.
fn who(record: &FlowRecord, end: End) -> Option<Who> {
    let owner = match end {
        End::Initiator => &record.initiator.owner,
        End::Responder => &record.responder.owner,
    };
    let names = owner.names.as_deref();
    let container = names
        .and_then(|names| names.container.as_ref())
        .and_then(container);
    let process = process(owner);
    if process.is_none() && container.is_none() {
        return None;
    }
    let event = match end {
        End::Initiator => "CONNECT",
        End::Responder => "ACCEPT",
    };
    Some(Who {
        tcp_event: (record.protocol == Protocol::Tcp).then_some(event),
        // RECV would not mark the responder's end.
        udp_event: (record.protocol == Protocol::Udp).then_some(event),
        process,
        father: names.and_then(|names| names.parent.as_ref()).and_then(father),
        container,
        tcp: record.tcp.as_ref().map(|tcp| figures(tcp, record.total, end)),
    })
}

fn process(owner: &Owner) -> Option<Process> {
    let (pid, program, process) = shown(owner)?;
    let uid = process.map_or(0, |process| process.uid);
    let user = owner.names.as_deref().and_then(|names| names.user.as_deref());
    Some(Process {
        pid,
        uid: Some(uid),
        user: user_name(user, Some(uid)),
        gid: process.map(|process| process.gid),
        program,
    })
}

fn father(parent: &owner::Parent) -> Option<Process> {
    (parent.pid > 0 && !parent.executable.is_empty()).then(|| Process {
        pid: parent.pid,
        uid: parent.uid,
        user: user_name(parent.user.as_deref(), parent.uid),
        gid: None,
        program: text::path(&parent.executable),
    })
}

/// Never empty.
fn user_name(name: Option<&str>, uid: Option<u32>) -> String {
    match (name.filter(|name| !name.is_empty()), uid) {
        (Some(name), _) => text::name(name),
        (None, Some(uid)) => uid.to_string(),
        (None, None) => NO_USER.to_owned(),
    }
}

/// `None`: it has no id.
fn container(container: &owner::Container) -> Option<Container> {
    let id = text::name(container.id.get(..CONTAINER_ID_SHOWN).unwrap_or(&container.id));
    let alone = || owner::Container {
        pod: None,
        ..container.clone()
    };
    (!id.is_empty()).then(|| Container {
        id,
        pod: container.pod.as_ref().map(|pod| Pod {
            container: text::name(&alone().shown()),
            name: text::name(&pod.name),
            namespace: text::name(&pod.namespace),
        }),
        alone: container.pod.is_none().then(|| Alone {
            name: text::name(&container.shown()),
        }),
    })
}

fn figures(tcp: &TcpFigures, total: Traffic, end: End) -> Tcp {
    let (sent, received) = match end {
        End::Initiator => (total.forward, total.backward),
        End::Responder => (total.backward, total.forward),
    };
    let packets = |counts: Counts| told(counts).1;
    let ms = |us: u32| f64::from(us) / 1_000.0;
    Tcp {
        state: tcp.state.map(state),
        segments_in: packets(received),
        segments_out: packets(sent),
        round_trip: round_trip_us(tcp).map(ms),
        variance: tcp.rtt_variance_us.map(ms),
    }
}

/// As ntopng knows it.
fn state(state: TcpState) -> &'static str {
    match state {
        TcpState::Established => "ESTABLISHED",
        TcpState::SynSent => "SYN-SENT",
        TcpState::SynRecv => "SYN-RECV",
        TcpState::FinWait1 => "FIN-WAIT-1",
        TcpState::FinWait2 => "FIN-WAIT-2",
        TcpState::TimeWait => "TIME-WAIT",
        TcpState::Close => "CLOSE",
        TcpState::CloseWait => "CLOSE-WAIT",
        TcpState::LastAck => "LAST-ACK",
        TcpState::Listen => "LISTEN",
        TcpState::Closing => "CLOSING",
    }
}

/// Seconds and microseconds since the epoch.
fn timestamp(time: WallTime) -> String {
    format!("{}.{:06}", seconds(time), time.0 % 1_000_000_000 / 1_000)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_none(count: &u32) -> bool {
    *count == 0
}
