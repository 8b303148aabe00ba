//! What ntopng relies on, rule by rule.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flowtilla_agent_core::encode::tlv::{
    Batch, HostAddress, Key, Loopback, PARTS_MAX, Push, RECORDS_MAX, TlvError, TlvOptions, Value, decode,
};
use flowtilla_agent_core::flow::record::{Counting, FlowRecord, TcpFigures};
use flowtilla_agent_core::owner::{Confidence, Container, Names, Owner, Parent, Pod, Runtime, Unknown};
use flowtilla_agent_core::time::WallTime;

use crate::sample::{NTOP, endpoint, number, process, tcp, text, traffic, udp, written};

const GIB: u64 = 1 << 30;

fn one(record: &FlowRecord) -> crate::sample::Items {
    let mut records = written(record, TlvOptions::default());
    assert_eq!(records.len(), 1);
    records.remove(0)
}

#[test]
fn a_direction_of_4_gib_is_split_and_its_sums_are_exact() {
    let mut record = tcp();
    record.delta = traffic((9 * GIB + 7, 6_442_451), (4 * GIB, 3));
    let parts = written(&record, TlvOptions::default());
    assert_eq!(parts.len(), 3);
    for (element, sum) in [(1, 9 * GIB + 7), (2, 6_442_451), (23, 4 * GIB), (24, 3)] {
        let shares: Vec<u64> = parts.iter().filter_map(|part| number(part, element)).collect();
        assert_eq!(shares.iter().sum::<u64>(), sum, "element {element}");
        assert!(shares.iter().all(|&share| share < 4 * GIB), "{shares:?}");
    }
    for part in &parts {
        assert!(number(part, 2) > Some(0));
        assert_eq!(number(part, NTOP + 78), Some(0x1a), "SYN in every part");
        assert_eq!(text(part, NTOP + 169), Some("/usr/bin/psql"));
    }
    let retransmits: u64 = parts.iter().filter_map(|part| number(part, NTOP + 109)).sum();
    assert_eq!(retransmits, 2, "told once");
}

#[test]
fn a_split_for_one_direction_makes_up_no_packets_of_the_other() {
    let mut record = tcp();
    record.delta = traffic((120, 1), (9 * GIB, 7_000_000));
    let parts = written(&record, TlvOptions::default());
    let forward: Vec<_> = parts
        .iter()
        .map(|part| (number(part, 1), number(part, 2)))
        .collect();
    let nothing = (Some(0), Some(0));
    assert_eq!(forward, [(Some(120), Some(1)), nothing, nothing]);
}

#[test]
fn one_octet_below_4_gib_is_one_record() {
    let mut record = tcp();
    record.delta = traffic((4 * GIB - 1, 9), (4 * GIB - 1, 9));
    assert_eq!(number(&one(&record), 1), Some(4 * GIB - 1));
}

#[test]
fn a_record_of_too_many_parts_is_refused() {
    let mut batch = Batch::new(TlvOptions::default());
    let mut record = tcp();
    record.delta = traffic((PARTS_MAX * (4 * GIB - 1) + 1, 1_000), (0, 0));
    assert_eq!(batch.push(&record), Push::TooLarge);
    record.delta = traffic((PARTS_MAX * (4 * GIB - 1), 1_000), (0, 0));
    assert_eq!(batch.push(&record), Push::Added);
    let made = batch.finish().unwrap();
    assert_eq!((made.records, u64::from(made.parts)), (1, PARTS_MAX));
}

#[test]
fn the_longest_record_there_is_fits_into_one_message() {
    let long = "<".repeat(5_000);
    let owner = Owner {
        confidence: Confidence::Exact,
        process: Some(process(u32::MAX, u32::MAX, &long)),
        names: Some(Arc::new(Names {
            executable: Some(long.clone()),
            command_line: Some(long.clone()),
            user: Some(long.clone()),
            group: None,
            parent: Some(Parent {
                pid: u32::MAX,
                executable: long.clone(),
                uid: Some(u32::MAX),
                user: Some(long.clone()),
            }),
            container: Some(Container {
                id: long.clone(),
                runtime: Runtime::Other,
                name: Some(long.clone()),
                pod: Some(Pod {
                    namespace: long.clone(),
                    name: long,
                }),
            }),
            unit: Some("long.service".to_owned()),
        })),
    };
    let mut record = tcp();
    record.initiator.owner = owner.clone();
    record.responder.owner = owner;
    let address = "fd00:1111:2222:3333:4444:5555:6666:7777";
    record.initiator.endpoint = endpoint(address, u16::MAX);
    record.responder.endpoint = endpoint(address, u16::MAX);
    let most = PARTS_MAX * (4 * GIB - 1);
    record.delta = traffic((most, most), (most, most));
    let options = TlvOptions {
        exporter_address: Some([255, 255, 255, 255].into()),
        record_ids: true,
        ..TlvOptions::default()
    };
    let mut batch = Batch::new(options);
    assert_eq!(batch.push(&record), Push::Added);
    assert!(batch.finish().unwrap().payload.len() > 20_000);
}

#[test]
fn totals_stop_at_4_gib() {
    let mut record = tcp();
    record.counting = Counting::Total;
    record.total = traffic((5 * GIB, 10), (3 * GIB, 0));
    let items = one(&record);
    assert_eq!(number(&items, 231), Some(4 * GIB - 1));
    assert_eq!(number(&items, 232), Some(3 * GIB));
    assert_eq!(number(&items, 298), Some(10));
    assert_eq!(number(&items, 299), Some(1), "never octets without packets");
    assert_eq!(number(&items, 1), None, "totals and deltas do not mix");
}

#[test]
fn octets_never_stand_without_packets() {
    let mut record = tcp();
    record.delta = traffic((60, 0), (0, 0));
    let items = one(&record);
    assert_eq!((number(&items, 1), number(&items, 2)), (Some(60), Some(1)));
    assert_eq!((number(&items, 23), number(&items, 24)), (Some(0), Some(0)));
}

#[test]
fn syn_is_told_exactly_when_the_beginning_was_seen() {
    let mut record = tcp();
    assert_eq!(number(&one(&record), NTOP + 78), Some(0x1a));
    record.initiator_seen = false;
    assert_eq!(number(&one(&record), NTOP + 78), Some(0x18));
    assert_eq!(number(&one(&udp()), NTOP + 78), None);
}

#[test]
fn a_record_never_begins_after_its_end() {
    let mut record = tcp();
    record.delta_start = WallTime(record.end.0 + 5_000_000_000);
    let items = one(&record);
    assert_eq!(number(&items, 22), number(&items, 21));
}

#[test]
fn the_round_trip_belongs_to_the_far_end() {
    let latency = |record: &FlowRecord| {
        let items = one(record);
        let at = |element| items.get(&Key::Element(NTOP + element)).cloned();
        (at(123), at(124))
    };
    let mut record = tcp();
    assert_eq!(latency(&record), (None, Some(Value::Float(0.5))));
    record.initiator.owner = Owner::unknown(Unknown::Remote);
    assert_eq!(latency(&record), (Some(Value::Float(0.5)), None));
    record.tcp = Some(TcpFigures {
        handshake_us: Some(700),
        ..TcpFigures::default()
    });
    assert_eq!(latency(&record), (Some(Value::Float(0.7)), None));
    record.tcp = Some(TcpFigures::default());
    assert_eq!(latency(&record), (None, None));
}

#[test]
fn process_data_have_a_name_and_an_id_or_are_absent() {
    let mut record = tcp();
    let client = |record: &FlowRecord| {
        let items = one(record);
        (
            number(&items, NTOP + 168),
            text(&items, NTOP + 169).map(str::to_owned),
            number(&items, NTOP + 425),
        )
    };
    record.initiator.owner = Owner::unknown(Unknown::NotSeen);
    assert_eq!(client(&record), (None, None, None));
    record.initiator.owner = Owner::unknown(Unknown::Kernel);
    assert_eq!(client(&record), (Some(2), Some("[kernel]".into()), None));
    record.initiator.owner.process = Some(process(77, 0, "nfsd"));
    assert_eq!(client(&record), (Some(77), Some("[nfsd]".into()), Some(0)));
    record.initiator.owner = Owner {
        confidence: Confidence::Exact,
        process: Some(process(78, 5, "")),
        names: None,
    };
    assert_eq!(client(&record), (Some(78), Some("pid-78".into()), Some(5)));
    record.initiator.owner.process = Some(process(0, 5, "swapper"));
    assert_eq!(client(&record), (None, None, None));
}

#[test]
fn harmful_names_arrive_harmless() {
    let evil = "<img src=x onerror=\"alert('1')\">&`\\\n";
    let mut record = tcp();
    record.initiator.owner.names = Some(Arc::new(Names {
        executable: Some(evil.into()),
        command_line: Some(evil.into()),
        user: Some(evil.into()),
        group: Some(evil.into()),
        parent: Some(Parent {
            pid: 1,
            executable: evil.into(),
            uid: None,
            user: Some(evil.into()),
        }),
        container: Some(Container {
            id: evil.into(),
            runtime: Runtime::Other,
            name: Some(evil.into()),
            pod: Some(Pod {
                namespace: evil.into(),
                name: evil.into(),
            }),
        }),
        unit: Some(evil.into()),
    }));
    let items = one(&record);
    let mut texts = 0;
    for (key, value) in &items {
        let Value::Text(text) = value else { continue };
        texts += 1;
        assert!(
            !text.contains(['<', '>', '&', '"', '\'', '`', '\\', '\n']),
            "{key:?} {text}"
        );
    }
    assert_eq!(
        texts,
        2 + 1 + 6 + 3,
        "addresses, end reason, client's six, server's three"
    );
    let harmless = "‹img_src=x_onerror=”alert(’1’)”›＆ˋ＼_";
    assert_eq!(
        text(&items, NTOP + 558),
        Some(&*format!("{harmless}/{harmless}/{harmless}"))
    );
}

#[test]
fn loopback_becomes_the_hosts_address_or_stays_here() {
    let mut record = tcp();
    record.initiator.endpoint = endpoint("127.0.0.1", 40_001);
    record.responder.endpoint = endpoint("127.0.0.53", 53);
    let v4 = Ipv4Addr::new(10, 0, 0, 11);
    let v6 = "fd00::11".parse::<Ipv6Addr>().unwrap();
    let options = |loopback, v4, v6| TlvOptions {
        loopback,
        host_address: HostAddress { v4, v6 },
        ..TlvOptions::default()
    };
    let push = |record: &FlowRecord, options| Batch::new(options).push(record);
    let ends = |record: &FlowRecord, options| {
        let items = written(record, options).remove(0);
        let end = |v4, v6| text(&items, v4).or(text(&items, v6)).unwrap().to_owned();
        (number(&items, 60).unwrap(), end(8, 27), end(12, 28))
    };
    let own = options(Loopback::HostAddress, Some(v4), Some(v6));
    assert_eq!(ends(&record, own), (4, "10.0.0.11".into(), "10.0.0.11".into()));
    let as_is = options(Loopback::AsIs, Some(v4), Some(v6));
    assert_eq!(ends(&record, as_is), (4, "127.0.0.1".into(), "127.0.0.53".into()));
    assert_eq!(
        push(&record, options(Loopback::Omit, Some(v4), Some(v6))),
        Push::Withheld
    );
    assert_eq!(
        push(&record, options(Loopback::HostAddress, None, None)),
        Push::Withheld
    );

    record.initiator.endpoint = endpoint("::1", 40_001);
    record.responder.endpoint = endpoint("::1", 80);
    assert_eq!(ends(&record, own), (6, "fd00::11".into(), "fd00::11".into()));
    let only_v4 = options(Loopback::HostAddress, Some(v4), None);
    assert_eq!(
        ends(&record, only_v4),
        (4, "10.0.0.11".into(), "10.0.0.11".into())
    );

    record.responder.endpoint = endpoint("fd00::12", 80);
    assert_eq!(ends(&record, own), (6, "fd00::11".into(), "fd00::12".into()));
    assert_eq!(
        push(&record, only_v4),
        Push::Withheld,
        "two families in one record"
    );
    assert_eq!(push(&tcp(), options(Loopback::Omit, None, None)), Push::Added);
}

#[test]
fn a_full_batch_takes_the_record_after_finish() {
    let mut batch = Batch::new(TlvOptions::default());
    assert_eq!(batch.finish(), None);
    for _ in 0..RECORDS_MAX {
        assert_eq!(batch.push(&udp()), Push::Added);
    }
    assert_eq!(batch.push(&udp()), Push::Full);
    let made = batch.finish().unwrap();
    assert_eq!(made.records as usize, RECORDS_MAX);
    assert_eq!(decode(&made.payload).unwrap().len(), RECORDS_MAX);
    assert!(batch.is_empty());
    assert_eq!(batch.push(&udp()), Push::Added);
    assert_eq!(batch.finish().unwrap().records, 1);
}

#[test]
fn the_decoder_refuses_what_ntopng_gives_up_at() {
    assert_eq!(decode(&[]), Err(TlvError::Start));
    assert_eq!(decode(&[1, 0]), Err(TlvError::Start));
    assert_eq!(decode(&[1, 1]), Ok(vec![]));
    assert_eq!(decode(&[1, 1, 0x23, 7, 0]), Err(TlvError::Truncated { at: 2 }));
    assert_eq!(
        decode(&[1, 1, 0x2b, 7, 0, 3, b'a']),
        Err(TlvError::Truncated { at: 2 })
    );
    assert_eq!(
        decode(&[1, 1, 1, 0x62, 7, 0]),
        Err(TlvError::KeyType { at: 3, kind: 6 })
    );
    assert_eq!(
        decode(&[1, 1, 0x2e, 7, 0]),
        Err(TlvError::ValueType { at: 2, kind: 14 })
    );
    let without_end = decode(&[1, 1, 0x22, 4, 6]).unwrap();
    assert_eq!(without_end, vec![vec![(Key::Element(4), Value::Unsigned(6))]]);
    let signed = decode(&[1, 1, 0x46, 0, 0, 0, 5, 0xff, 1]).unwrap();
    assert_eq!(signed, vec![vec![(Key::Element(5), Value::Signed(-1))]]);
}
