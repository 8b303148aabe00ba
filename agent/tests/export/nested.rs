//! Nested JSON into a real libzmq SUB: header version 1, and the source id that a controller allotted.

use flowtilla_agent_core::encode::header::{self, HeaderLayout, PayloadEncoding, Topic};
use flowtilla_agent_core::session::ShortIds;
use flowtilla_proto::wire;
use serde_json::Value;

use crate::fixture::{Running, Setup};
use crate::libzmq::{self, Sub, SubOptions};

fn given(number: u32) -> ShortIds {
    ShortIds::parse(&wire::session::ShortSourceIds {
        by_collector: [("main-0".to_owned(), number)].into(),
    })
}

/// Responders of all records up to number `upto`, from messages that name this source and count by one.
fn receive(sub: &Sub, source: u32, upto: u32) -> Vec<String> {
    let end = responder(upto);
    let mut responders = Vec::new();
    let mut last = None;
    while responders.last() != Some(&end) {
        let Some(frames) = sub.receive() else { continue };
        let head = header::decode(&frames[0]).unwrap();
        assert_eq!(
            (head.layout, head.encoding),
            (HeaderLayout::V1, PayloadEncoding::Json)
        );
        if head.source_id != source {
            // Of the connection before.
            assert!(last.is_none(), "{head:?} after {last:?}");
            continue;
        }
        assert_eq!(
            head.message_id,
            last.unwrap_or(0) + 1,
            "ids count by one, from 1 on each connection"
        );
        last = Some(head.message_id);
        let value: Value = serde_json::from_slice(&frames[1]).unwrap();
        match head.topic {
            Topic::Event => assert_eq!(value["probe"]["unique_source_id"], source),
            Topic::Flow => responders.extend(
                value
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|record| record["12"].as_str().unwrap().to_owned()),
            ),
            _ => {}
        }
    }
    responders
}

fn responders(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(responder).collect()
}

fn responder(number: u32) -> String {
    format!("10.0.0.{number}")
}

#[test]
fn records_wait_for_a_short_source_id_and_go_on_under_another() {
    if !libzmq::is_here() {
        return;
    }
    let sub = Sub::bind(SubOptions::default());
    let mut running = Running::start(&Setup {
        encoding: wire::Encoding::NestedJson,
        short_ids: ShortIds::untold(),
        ..Setup::to_port(sub.port)
    });
    running.wait_for_why("has not said yet by which source id of 8 bits");
    running.feed(0..10);
    running.short_ids.send_replace(given(0));
    let status = running.wait_for_why("no source id of 8 bits for this agent");
    assert_eq!((status.law.waiting, status.connects), (10, 0));
    running.short_ids.send_replace(given(200));
    assert_eq!(receive(&sub, 200, 9), responders(0..10));
    running.short_ids.send_replace(given(201));
    running.feed(10..20);
    // What went before the change was seen is under the former.
    running.wait_for("another connection", |status| status.connects == 2);
    running.feed(20..30);
    let under_201 = receive(&sub, 201, 29);
    assert!(under_201.ends_with(&responders(20..30)), "{under_201:?}");
    let status = running.stop();
    assert_eq!((status.law.made, status.law.taken), (30, 30));
}

#[test]
fn without_a_controller_the_short_source_id_follows_from_the_long_one() {
    if !libzmq::is_here() {
        return;
    }
    let sub = Sub::bind(SubOptions::default());
    let mut running = Running::start(&Setup {
        encoding: wire::Encoding::NestedJson,
        ..Setup::to_port(sub.port)
    });
    running.wait_for_stream(&sub);
    running.feed(0..3);
    assert_eq!(receive(&sub, 78, 2), responders(0..3));
    running.stop();
}
