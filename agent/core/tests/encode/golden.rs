//! Compares what encoders make with `tests/golden/*.hex`, octet by octet. `#` begins a comment in these files.

use std::fmt::Write;

use flowtilla_agent_core::encode::event::{self, EventFields};
use flowtilla_agent_core::encode::header::{self, HeaderLayout, PayloadEncoding, Topic};
use flowtilla_agent_core::encode::listening::{self, Listening, ListeningPorts};
use flowtilla_agent_core::encode::tlv::{Batch, Push, TlvOptions};
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::time::WallTime;

use crate::sample;

fn octets(golden: &str) -> Vec<u8> {
    golden
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace())
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect()
}

fn compare(name: &str, made: &[u8], golden: &str) {
    let wanted = octets(golden);
    let at = made.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
    let hex = made[at..].iter().take(16).fold(String::new(), |mut hex, octet| {
        write!(hex, "{octet:02x} ").unwrap();
        hex
    });
    assert!(
        made == wanted,
        "{name} differs at octet {at} of {} ({} wanted): {hex}",
        made.len(),
        wanted.len()
    );
}

fn batch(record: &FlowRecord, options: TlvOptions) -> Vec<u8> {
    let mut batch = Batch::new(options);
    assert_eq!(batch.push(record), Push::Added);
    batch.finish().unwrap().payload.to_vec()
}

#[test]
fn flow_payloads_are_golden() {
    let all = TlvOptions {
        exporter_address: Some([10, 0, 0, 11].into()),
        record_ids: true,
        ..TlvOptions::default()
    };
    compare(
        "flow",
        &batch(&sample::tcp(), all),
        include_str!("../golden/flow.hex"),
    );
    compare(
        "flow with totals",
        &batch(&sample::udp(), TlvOptions::default()),
        include_str!("../golden/flow_total.hex"),
    );
}

#[test]
fn headers_are_golden() {
    use HeaderLayout::{V1, V2, V3};
    use PayloadEncoding::{Json, Tlv};
    for (layout, topic, encoding, size, id, golden) in [
        (
            V1,
            Topic::Flow,
            Tlv,
            517,
            9,
            include_str!("../golden/header_v1_flow.hex"),
        ),
        (
            V2,
            Topic::Flow,
            Tlv,
            517,
            9,
            include_str!("../golden/header_v2_flow.hex"),
        ),
        (
            V2,
            Topic::Event,
            Json,
            655,
            8,
            include_str!("../golden/header_v2_event.hex"),
        ),
        (
            V3,
            Topic::Flow,
            Tlv,
            517,
            9,
            include_str!("../golden/header_v3_flow.hex"),
        ),
        (
            V3,
            Topic::ListeningPorts,
            Json,
            70_000,
            10,
            include_str!("../golden/header_v3_listening_ports.hex"),
        ),
    ] {
        let made = header::encode(layout, topic, encoding, size, id, 0x1234_5678);
        compare(&format!("{layout:?} {topic:?}"), &made, golden);
    }
}

#[test]
fn events_are_golden() {
    let fields = EventFields {
        time: WallTime(1_795_416_500_000_000_000),
        octets: 9_876_543,
        packets: 12_345,
        packet_drops: 3,
        interface_name: "eth0".into(),
        interface_speed_mbit: 10_000,
        interface_address: Some([10, 0, 0, 11].into()),
        probe_address: Some([10, 0, 0, 11].into()),
        probe_uuid: "9f0c5b1e2d3c4b5a69788796a5b4c3d2".into(),
        source_id: 0x1234_5678,
        version: "0.1.0".into(),
        operating_system: "Debian GNU/Linux 13".into(),
        average_bps: 8_000,
        average_pps: 10,
        lifetime_s: 10,
        idle_s: 30,
        flow_exports: 321,
        export_drops: 4,
        table_drops: 5,
    };
    compare(
        "event",
        &event::payload(&fields),
        include_str!("../golden/event.hex"),
    );
}

#[test]
fn listening_ports_are_golden() {
    let listening = |port, process: &str, package: &str| Listening {
        port,
        process: process.into(),
        package: package.into(),
    };
    let ports = ListeningPorts {
        addresses: vec![[10, 0, 0, 11].into(), "fd00::11".parse().unwrap()],
        tcp4: vec![
            listening(22, "/usr/sbin/sshd", "openssh-server"),
            listening(5_432, "/usr/lib/postgresql/15/bin/postgres", ""),
        ],
        tcp6: vec![listening(22, "/usr/sbin/sshd", "openssh-server")],
        udp6: vec![listening(546, "", "")],
        ..ListeningPorts::default()
    };
    let made = listening::payload(&ports);
    assert_eq!(made.left_out, 0);
    compare(
        "listening ports",
        &made.payload,
        include_str!("../golden/listening_ports.hex"),
    );
}
