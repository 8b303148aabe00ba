//! Nested JSON: what ntopng 5.2 relies on, and properties of any record. A failure prints its seed.

use std::sync::Arc;

use flowtilla_agent_core::encode::nested::{Batch, PAYLOAD_OCTETS_MAX, Push, RECORDS_MAX, TlvOptions};
use flowtilla_agent_core::encode::tlv::Loopback;
use flowtilla_agent_core::flow::record::{Counting, FlowRecord};
use flowtilla_agent_core::owner::{Owner, Pod, Unknown};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::properties::records;
use crate::sample::{endpoint, tcp, traffic, udp};

type Object = Map<String, Value>;

fn options() -> TlvOptions {
    TlvOptions {
        loopback: Loopback::AsIs,
        ..TlvOptions::default()
    }
}

fn payload(record: &FlowRecord, options: TlvOptions) -> String {
    let mut batch = Batch::new(options);
    assert_eq!(batch.push(record), Push::Added);
    let made = batch.finish().expect("a record is in it");
    String::from_utf8(made.payload.to_vec()).expect("JSON is text")
}

fn written(record: &FlowRecord) -> Vec<Object> {
    serde_json::from_str(&payload(record, options())).expect("an array of objects")
}

/// The same connection, its server in a pod.
fn with_pod() -> FlowRecord {
    let mut record = tcp();
    let names = record.responder.owner.names.as_mut().map(Arc::make_mut);
    let container = names
        .and_then(|names| names.container.as_mut())
        .expect("a container");
    container.name = Some("postgres".into());
    container.pod = Some(Pod {
        namespace: "prod".into(),
        name: "pg-0".into(),
    });
    record
}

#[test]
fn both_ends_are_written_as_pinned() {
    let all = TlvOptions {
        record_ids: true,
        ..options()
    };
    let pinned = include_str!("../golden/nested.json");
    assert_eq!(payload(&with_pod(), all) + "\n", pinned);
}

#[test]
fn each_end_has_a_record_of_its_own_in_the_direction_of_the_initiator() {
    let records = written(&with_pod());
    assert_eq!(records.len(), 2);
    for (record, event) in records.iter().zip(["CONNECT", "ACCEPT"]) {
        assert_eq!(record["TCP_EVENT_TYPE"], event);
        assert_eq!(record["IPV4_LOCAL_ADDR"], "10.0.0.11");
        assert_eq!(record["IPV4_REMOTE_ADDR"], "10.0.0.12");
        assert_eq!(
            (&record["L4_LOCAL_PORT"], &record["L4_REMOTE_PORT"]),
            (&json!(40_001), &json!(5_432))
        );
    }
    let container = |n: usize| &records[n]["LOCAL_CONTAINER"];
    assert_eq!(
        container(0),
        &json!({"ID": "3f2a9c1d7e55", "DOCKER": {"NAME": "web-frontend"}})
    );
    assert_eq!(
        container(1),
        &json!({"ID": "3f2a9c1d7e55", "K8S": {"NAME": "postgres", "POD": "pg-0", "NS": "prod"}})
    );
    // What went one way is what the other end received.
    let segments = |n: usize| {
        (
            records[n]["TCP"]["SEGS_OUT"].clone(),
            records[n]["TCP"]["SEGS_IN"].clone(),
        )
    };
    assert_eq!(segments(0), (json!(10), json!(300)));
    assert_eq!(segments(1), (json!(300), json!(10)));
}

#[test]
fn what_ntopng_adds_up_is_told_once() {
    let records = written(&tcp());
    let told = |key: &str| records.iter().filter(|record| record.contains_key(key)).count();
    for key in ["57550", "57551", "57581"] {
        assert_eq!(told(key), 1, "{key}");
    }
    assert_eq!(told("57582"), 0, "nothing was sent again");
    assert_eq!(records[0]["57581"], 2);
    assert_eq!(records[0]["57550"], 0x1a, "with the SYN");
}

#[test]
fn the_responder_of_udp_accepts_too() {
    let mut record = udp();
    record.responder.owner = tcp().responder.owner;
    let records = written(&record);
    let events: Vec<&Value> = records.iter().map(|record| &record["UDP_EVENT_TYPE"]).collect();
    assert_eq!(events, ["CONNECT", "ACCEPT"]);
    for record in &records {
        assert!(
            !record.contains_key("TCP") && !record.contains_key("TCP_EVENT_TYPE"),
            "{record:?}"
        );
        assert_eq!(record["IPV6_REMOTE_ADDR"], "fd00::12");
    }
    assert_eq!(
        records[0]["LOCAL_PROCESS"],
        json!({"PID": 2, "UID": 0, "UID_NAME": "0", "PROCESS_PATH": "[kernel]"})
    );
}

#[test]
fn a_flow_of_nobody_is_flat() {
    let mut record = tcp();
    record.initiator.owner = Owner::unknown(Unknown::Remote);
    record.responder.owner = Owner::unknown(Unknown::NotSeen);
    let records = written(&record);
    assert_eq!(records.len(), 1);
    let keys: Vec<&str> = records[0].keys().map(String::as_str).collect();
    assert!(
        !keys
            .iter()
            .any(|key| key.contains("LOCAL") || key.contains("TYPE") || *key == "TCP"),
        "{keys:?}"
    );
    assert_eq!(
        (&records[0]["8"], &records[0]["12"]),
        (&json!("10.0.0.11"), &json!("10.0.0.12"))
    );
    assert_eq!(
        (&records[0]["7"], &records[0]["11"]),
        (&json!(40_001), &json!(5_432))
    );
}

#[test]
fn totals_of_2_to_the_32_stop_below() {
    let mut record = tcp();
    record.total = traffic((5 << 30, 4_000_000), (100, 0));
    for record in written(&record) {
        assert_eq!(
            (&record["231"], &record["298"]),
            (&json!(u32::MAX), &json!(4_000_000))
        );
        assert_eq!(
            (&record["232"], &record["299"]),
            (&json!(100), &json!(1)),
            "octets need a packet"
        );
    }
}

#[test]
fn a_record_that_does_not_fit_waits_for_the_next_message() {
    let mut batch = Batch::new(options());
    let mut added = 0_u32;
    while batch.push(&tcp()) == Push::Added {
        added += 1;
    }
    assert_eq!(batch.push(&tcp()), Push::Full);
    let made = batch.finish().expect("records");
    assert_eq!((made.records, made.parts), (added, 2 * added));
    assert!(made.parts as usize <= RECORDS_MAX && made.payload.len() <= PAYLOAD_OCTETS_MAX);
    let read: Vec<Object> = serde_json::from_slice(&made.payload).expect("whole records only");
    assert_eq!(read.len(), made.parts as usize);
    assert!(batch.is_empty() && batch.finish().is_none());
    assert_eq!(batch.push(&tcp()), Push::Added);
}

#[test]
fn a_loopback_flow_is_withheld_or_has_the_hosts_address() {
    let mut record = tcp();
    record.initiator.endpoint = endpoint("127.0.0.1", 40_001);
    let mut batch = Batch::new(TlvOptions {
        loopback: Loopback::Omit,
        ..options()
    });
    assert_eq!(batch.push(&record), Push::Withheld);
    let mut own = options();
    own.loopback = Loopback::HostAddress;
    own.host_address.v4 = Some([192, 0, 2, 9].into());
    let text = payload(&record, own);
    assert!(text.contains(r#""IPV4_LOCAL_ADDR":"192.0.2.9""#), "{text}");
}

fn is_harmless(value: &Value) -> bool {
    match value {
        Value::String(text) => !text
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || "<>&\"'`\\".contains(c)),
        Value::Object(members) => members.values().all(is_harmless),
        _ => true,
    }
}

proptest! {
    #[test]
    fn any_record_makes_what_ntopng_reads(record in records()) {
        let text = payload(&record, options());
        prop_assert!(text.len() <= PAYLOAD_OCTETS_MAX);
        prop_assert!(text.starts_with("[{\"timestamp\":\""), "both times are set by it first: {text}");
        let records: Vec<Object> = serde_json::from_str(&text).expect("an array of objects");
        prop_assert!((1..=2).contains(&records.len()));
        for written in &records {
            prop_assert!(written.values().all(is_harmless), "{written:?}");
            let Some(Value::String(time)) = written.get("timestamp") else {
                return Err(TestCaseError::fail("a timestamp that is no text ends ntopng 5.2"));
            };
            let (seconds, fraction) = time.split_once('.').expect("a fraction");
            prop_assert!(seconds.parse::<u32>().is_ok() && fraction.len() == 6 && fraction.parse::<u32>().is_ok());
            for (key, total) in [("231", record.total.forward.octets), ("232", record.total.backward.octets)] {
                prop_assert_eq!(written[key].as_u64(), Some(total.min(u32::MAX.into())));
            }
            let who = written.contains_key("LOCAL_PROCESS") || written.contains_key("LOCAL_CONTAINER");
            prop_assert_eq!(who, written.contains_key("TCP_EVENT_TYPE"));
            for process in ["LOCAL_PROCESS", "LOCAL_FATHER_PROCESS"] {
                let Some(process) = written.get(process) else { continue };
                let filled = |key: &str| process[key].as_str().is_some_and(|text| !text.is_empty());
                prop_assert!(filled("UID_NAME") && filled("PROCESS_PATH"), "{process}");
                prop_assert!(process["PID"].as_u64() > Some(0), "{process}");
            }
        }
        // Whether the flow record tells deltas is no matter.
        let mut other = record;
        other.counting = match other.counting {
            Counting::Delta => Counting::Total,
            Counting::Total => Counting::Delta,
        };
        prop_assert_eq!(payload(&other, options()), text);
    }
}
