//! Properties of any record and of any octets. A failure prints its seed.

use std::net::IpAddr;
use std::sync::Arc;

use flowtilla_agent_core::encode::header::{self, Header, HeaderLayout, PayloadEncoding, Topic};
use flowtilla_agent_core::encode::tlv::{
    Batch, Key, PAYLOAD_OCTETS_MAX, Push, RECORDS_MAX, TlvOptions, Value, decode,
};
use flowtilla_agent_core::flow::record::{Counting, FlowRecord, TcpFigures, Traffic};
use flowtilla_agent_core::owner::{Confidence, Container, Names, Owner, Parent, Pod, Runtime, Unknown};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::sample::{Items, NTOP, number, process, tcp, text, traffic, written};

/// Up to 3,000 octets of anything a process may choose.
fn words() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[a-z/]{1,40}",
        any::<String>(),
        ("[<>&\"'`\\\\ \n\u{202e}é]{1,10}", 1_usize..300).prop_map(|(word, n)| word.repeat(n)),
    ]
}

fn owners() -> impl Strategy<Value = Owner> {
    let names = (words(), words(), words(), words(), words(), any::<[bool; 7]>()).prop_map(
        |(executable, command_line, user, parent, container, known)| {
            let some = |at: usize, text: &String| known[at].then(|| text.clone());
            Names {
                executable: some(0, &executable),
                command_line: some(1, &command_line),
                user: some(2, &user),
                group: None,
                parent: some(3, &parent).map(|executable| Parent {
                    pid: 3,
                    executable,
                    uid: Some(4),
                    user: Some(user.clone()),
                }),
                container: some(4, &container).map(|id| Container {
                    name: some(5, &id),
                    id,
                    runtime: Runtime::Other,
                    pod: some(6, &container).map(|name| Pod {
                        namespace: container.clone(),
                        name,
                    }),
                }),
                unit: None,
            }
        },
    );
    let known = (any::<u32>(), any::<u32>(), words(), proptest::option::of(names)).prop_map(
        |(pid, uid, comm, names)| Owner {
            confidence: Confidence::Exact,
            process: Some(process(pid, uid, &comm)),
            names: names.map(Arc::new),
        },
    );
    prop_oneof![
        4 => known,
        1 => Just(Owner::unknown(Unknown::Remote)),
        1 => Just(Owner::unknown(Unknown::Kernel)),
    ]
}

fn traffics() -> impl Strategy<Value = Traffic> {
    let octets = || prop_oneof![Just(0), 1_u64..100_000, 0..(40_u64 << 30)];
    // At least a packet for each 1 MiB, as on any link.
    let counts = || (octets(), 1_u64..100).prop_map(|(octets, n)| (octets, octets / n + octets.min(1)));
    (counts(), counts()).prop_map(|(forward, backward)| traffic(forward, backward))
}

pub(crate) fn records() -> impl Strategy<Value = FlowRecord> {
    let figures = (any::<[Option<u32>; 3]>(), any::<[u32; 2]>(), any::<[u8; 2]>()).prop_map(
        |(times, retransmits, flags)| TcpFigures {
            handshake_us: times[0],
            rtt_us: times[1],
            rtt_min_us: times[2],
            retransmits_forward: retransmits[0],
            retransmits_backward: retransmits[1],
            flags_forward: flags[0],
            flags_backward: flags[1],
            ..TcpFigures::default()
        },
    );
    let ends = prop_oneof![
        any::<([u8; 4], [u8; 4])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
        any::<([u8; 16], [u8; 16])>().prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b))),
    ];
    (
        (owners(), owners()),
        (traffics(), traffics(), any::<bool>()),
        (ends, any::<(u16, u16)>(), any::<bool>()),
        (any::<u64>(), any::<u64>()),
        proptest::option::of(figures),
    )
        .prop_map(|(owners, traffic, ends, times, figures)| {
            let mut record = tcp();
            (record.initiator.owner, record.responder.owner) = owners;
            (record.delta, record.total) = (traffic.0, traffic.1);
            record.counting = if traffic.2 {
                Counting::Delta
            } else {
                Counting::Total
            };
            (
                record.initiator.endpoint.address,
                record.responder.endpoint.address,
            ) = ends.0;
            (record.initiator.endpoint.port, record.responder.endpoint.port) = ends.1;
            record.initiator_seen = ends.2;
            (record.delta_start.0, record.end.0) = times;
            record.tcp = figures;
            record
        })
}

fn options() -> TlvOptions {
    TlvOptions {
        loopback: flowtilla_agent_core::encode::tlv::Loopback::AsIs,
        exporter_address: Some([10, 0, 0, 1].into()),
        record_ids: true,
        ..TlvOptions::default()
    }
}

fn sum(parts: &[Items], element: u32) -> u64 {
    parts.iter().filter_map(|part| number(part, element)).sum()
}

proptest! {
    #[test]
    fn what_is_written_is_read(record in records()) {
        let parts = written(&record, options());
        match record.counting {
            Counting::Delta => {
                prop_assert_eq!(sum(&parts, 1), record.delta.forward.octets);
                prop_assert_eq!(sum(&parts, 2), record.delta.forward.packets);
                prop_assert_eq!(sum(&parts, 23), record.delta.backward.octets);
                prop_assert_eq!(sum(&parts, 24), record.delta.backward.packets);
            }
            Counting::Total => {
                prop_assert_eq!(parts.len(), 1);
                let most = u64::from(u32::MAX);
                prop_assert_eq!(sum(&parts, 231), record.total.forward.octets.min(most));
                prop_assert_eq!(sum(&parts, 299), record.total.backward.packets.min(most));
            }
        }
        for part in &parts {
            for (octets, packets) in [(1, 2), (23, 24), (231, 298), (232, 299)] {
                let counts = (number(part, octets), number(part, packets));
                prop_assert!(counts.0.is_none() || counts.0 <= Some(u32::MAX.into()));
                prop_assert!(counts.0.unwrap_or(0) == 0 || counts.1.unwrap_or(0) > 0);
            }
            prop_assert!(number(part, 22) <= number(part, 21));
            prop_assert_eq!(number(part, 7), Some(record.initiator.endpoint.port.into()));
            let v4 = record.initiator.endpoint.address.is_ipv4();
            let source = text(part, if v4 { 8 } else { 27 }).unwrap();
            prop_assert_eq!(source.parse::<IpAddr>().unwrap(), record.initiator.endpoint.address);
            for (pid, program, others) in [(168, 169, [425, 372, 558]), (375, 376, [426, 377, 559])] {
                let known = number(part, NTOP + pid).is_some();
                prop_assert_eq!(known, text(part, NTOP + program).is_some_and(|name| !name.is_empty()));
                prop_assert!(number(part, NTOP + pid) != Some(0));
                let more = others.iter().any(|&other| part.contains_key(&Key::Element(NTOP + other)));
                prop_assert!(known || !more);
            }
            for value in part.values() {
                let Value::Text(text) = value else { continue };
                let harmful = |c: char| c.is_control() || "<>&\"'`\\".contains(c);
                prop_assert!(!text.contains(harmful), "{text:?}");
            }
        }
    }

    #[test]
    fn batches_keep_their_bounds_and_lose_no_record(records in vec(records(), 1..40), times in 1_usize..5) {
        let mut batch = Batch::new(options());
        let mut taken = 0;
        let mut seen = 0;
        let mut finish = |batch: &mut Batch| {
            let made = batch.finish().unwrap();
            assert!(made.payload.len() <= PAYLOAD_OCTETS_MAX);
            assert!(made.parts as usize <= RECORDS_MAX);
            assert_eq!(decode(&made.payload).unwrap().len(), made.parts as usize);
            seen += made.records;
        };
        for record in std::iter::repeat_n(&records, times).flatten() {
            let mut pushed = batch.push(record);
            if pushed == Push::Full {
                finish(&mut batch);
                pushed = batch.push(record);
            }
            prop_assert_eq!(pushed, Push::Added);
            taken += 1;
        }
        finish(&mut batch);
        prop_assert_eq!(seen, taken);
    }

    #[test]
    fn any_octets_are_read_or_refused(octets in vec(any::<u8>(), 0..600)) {
        let _ = decode(&octets);
        let _ = decode(&[&[1, 1], octets.as_slice()].concat());
        let _ = header::decode(&octets);
    }

    #[test]
    fn a_cut_or_flipped_payload_never_panics(record in records(), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let mut batch = Batch::new(options());
        prop_assert_eq!(batch.push(&record), Push::Added);
        let mut payload = batch.finish().unwrap().payload.to_vec();
        let at = at.index(payload.len());
        let _ = decode(&payload[..at]);
        payload[at] ^= 1_u8 << bit;
        let _ = decode(&payload);
    }

    #[test]
    fn headers_are_read_as_written(
        layout in prop::sample::select(vec![HeaderLayout::V1, HeaderLayout::V2, HeaderLayout::V3]),
        topic in prop::sample::select(Topic::ALL.to_vec()),
        tlv in any::<bool>(),
        payload_octets in 0..65_536_u32,
        message_id in any::<u32>(),
        source_id in any::<u32>(),
        at in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let encoding = if tlv { PayloadEncoding::Tlv } else { PayloadEncoding::Json };
        let frame = header::encode(layout, topic, encoding, payload_octets as usize, message_id, source_id);
        prop_assert_eq!(frame.len(), layout.octets());
        let source_id = if layout == HeaderLayout::V1 { source_id & 0xff } else { source_id };
        let wanted = Header { layout, topic, encoding, compressed: false, payload_octets, message_id, source_id };
        prop_assert_eq!(header::decode(&frame), Ok(wanted));
        let mut flipped = frame.to_vec();
        flipped[at.index(frame.len())] ^= 1_u8 << bit;
        let _ = header::decode(&flipped);
        prop_assert!(header::decode(&frame[..frame.len() - 1]).is_err());
    }
}
