//! The state of the probe: topic `event`, one JSON object, sent every 5 s.
//!
//! ntopng learns from it how long flows live, how fast the interface is and what was lost; a probe silent for 10 s is
//! forgotten. Every member is always written: ntopng does not clear its own fields, so an absent text would show what
//! stood in memory. Counters are cumulative since the agent's start.
//! Source: ntopng `ZMQParserInterface::parseEvent`, `include/nProbeStats.h`.

use std::net::IpAddr;

use bytes::Bytes;
use serde::Serialize;

use super::text;
use crate::time::WallTime;

/// Octets ntopng keeps of an interface's name.
const INTERFACE_NAME_OCTETS_MAX: usize = 31;
/// Octets ntopng keeps of the probe's unique id.
const UUID_OCTETS_MAX: usize = 35;
/// Octets ntopng keeps of version and operating system.
const LABEL_OCTETS_MAX: usize = 63;
/// Greatest number that ntopng's JSON reader holds.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// What an event tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFields {
    /// When; ntopng warns when its own clock is 10 s off.
    pub time: WallTime,
    /// IP octets seen since start.
    pub octets: u64,
    /// Packets seen since start.
    pub packets: u64,
    /// Packets that were not seen, since start.
    pub packet_drops: u64,
    /// Name of the interface (of the default route); 31 octets are kept.
    pub interface_name: String,
    /// Its speed, in Mbit/s; 0: not known.
    pub interface_speed_mbit: u32,
    /// Its address.
    pub interface_address: Option<IpAddr>,
    /// The agent's address: how the probe list names it.
    pub probe_address: Option<IpAddr>,
    /// The agent's unique id; 35 octets are kept.
    pub probe_uuid: String,
    /// The same id as in the headers.
    pub source_id: u32,
    /// The agent's version, such as `0.1.0`.
    pub version: String,
    /// The host's operating system.
    pub operating_system: String,
    /// Mean since start, in bit/s; more than 2³² - 1 is told as that.
    pub average_bps: u64,
    /// Mean since start, in packets/s.
    pub average_pps: u64,
    /// Longest time between two records of a living flow, in seconds.
    pub lifetime_s: u32,
    /// Silence after which a flow ends, in seconds; all agents of one ntopng should tell the same.
    pub idle_s: u32,
    /// Records sent since start, as the collector counts them.
    pub flow_exports: u64,
    /// Records lost on the way to this collector since start.
    pub export_drops: u64,
    /// Flows that the full table did not keep, since start.
    pub table_drops: u64,
}

#[derive(Serialize)]
struct Event {
    time: u64,
    mode: &'static str,
    bytes: u64,
    packets: u64,
    packet_drops: u64,
    iface: Interface,
    probe: Probe,
    avg: Average,
    timeout: Timeout,
    drops: Drops,
    zmq: Exports,
}

#[derive(Serialize)]
struct Interface {
    name: String,
    speed: u32,
    ip: String,
}

#[derive(Serialize)]
struct Probe {
    ip: String,
    public_ip: &'static str,
    uuid: String,
    unique_source_id: u32,
    /// What ntopng before 6.2 calls `unique_source_id`.
    uuid_num: u32,
    version: String,
    osname: String,
    license: &'static str,
    edition: &'static str,
    maintenance: &'static str,
}

#[derive(Serialize)]
struct Average {
    bps: u64,
    pps: u64,
}

#[derive(Serialize)]
struct Timeout {
    lifetime: u32,
    idle: u32,
    collected_lifetime: u32,
}

#[derive(Serialize)]
struct Drops {
    export_queue_full: u64,
    too_many_flows: u64,
    elk_flow_drops: u64,
    sflow_pkt_sample_drops: u64,
    flow_collection_drops: u64,
    flow_collection_udp_socket_drops: u64,
}

#[derive(Serialize)]
struct Exports {
    num_flow_exports: u64,
    num_exporters: u32,
    /// What ntopng from 6.2 on calls `num_exporters`.
    num_zmq_exporters: u32,
}

/// Writes an event.
#[must_use]
pub fn payload(fields: &EventFields) -> Bytes {
    let number = |n: u64| n.min(NUMBER_MAX);
    let rate = |n: u64| n.min(u32::MAX.into());
    let address = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let event = Event {
        time: fields.time.seconds(),
        // Any other mode makes the probe list look for a NetFlow collector's figures.
        mode: "packet_collection",
        bytes: number(fields.octets),
        packets: number(fields.packets),
        packet_drops: number(fields.packet_drops),
        iface: Interface {
            name: text::label(&fields.interface_name, INTERFACE_NAME_OCTETS_MAX),
            speed: fields.interface_speed_mbit,
            ip: address(fields.interface_address),
        },
        probe: Probe {
            ip: address(fields.probe_address),
            public_ip: "",
            uuid: text::label(&fields.probe_uuid, UUID_OCTETS_MAX),
            unique_source_id: fields.source_id,
            uuid_num: fields.source_id,
            version: text::label(&fields.version, LABEL_OCTETS_MAX),
            osname: text::label(&fields.operating_system, LABEL_OCTETS_MAX),
            license: "MIT or Apache-2.0",
            edition: "Flowtilla",
            maintenance: "n/a",
        },
        avg: Average {
            bps: rate(fields.average_bps),
            pps: rate(fields.average_pps),
        },
        timeout: Timeout {
            lifetime: fields.lifetime_s,
            idle: fields.idle_s,
            collected_lifetime: 0,
        },
        drops: Drops {
            export_queue_full: number(fields.export_drops),
            too_many_flows: number(fields.table_drops),
            elk_flow_drops: 0,
            sflow_pkt_sample_drops: 0,
            flow_collection_drops: 0,
            flow_collection_udp_socket_drops: 0,
        },
        zmq: Exports {
            num_flow_exports: number(fields.flow_exports),
            num_exporters: 1,
            num_zmq_exporters: 1,
        },
    };
    let json = serde_json::to_vec(&event).expect("numbers and texts always make JSON");
    Bytes::from(json)
}
