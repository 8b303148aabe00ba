//! A replay into a real libzmq SUB: all of it arrives, under a source id that is no agent's.

use std::time::Duration;

use flowtilla_agent::host::Host;
use flowtilla_agent::replay::Replay;
use flowtilla_agent_core::encode::header::{self, Topic};
use flowtilla_agent_core::encode::tlv::Loopback;
use flowtilla_agent_core::loss::DropPoint;
use flowtilla_proto::collector::Collector;
use flowtilla_proto::wire;

use crate::fixture::{Got, record};
use crate::libzmq::{self, Sub, SubOptions};
use crate::{PUBLIC, SECRET, count_up};

/// More than the octets that may wait at once.
const RECORDS: u32 = 120_000;

fn collector(port: u16, key: Option<&str>) -> Collector {
    let sent = wire::Collector {
        name: "replay".into(),
        endpoint: format!("tcp://127.0.0.1:{port}"),
        curve_server_key: key.map(str::to_owned),
        records_per_second: Some(1_000_000),
        ..wire::Collector::default()
    };
    Collector::try_from(sent).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn a_replay_arrives_whole_under_a_source_id_of_its_own() {
    if !libzmq::is_here() {
        return;
    }
    let sub = Sub::bind(SubOptions {
        secret_key: Some(SECRET),
        ..SubOptions::default()
    });
    let port = sub.port;
    let receiver = std::thread::spawn(move || {
        let (mut numbers, mut source_ids, mut last_id, mut events) = (Vec::new(), Vec::new(), 0, 0);
        while numbers.len() < RECORDS as usize {
            let Some(frames) = sub.receive() else { continue };
            let header = header::decode(&frames[0]).unwrap();
            assert_eq!(header.message_id, last_id + 1, "ids count by one, without a gap");
            last_id = header.message_id;
            source_ids.push(header.source_id);
            events += u32::from(header.topic == Topic::Event);
            numbers.extend(Got::numbers_of(&frames));
        }
        source_ids.dedup();
        // The PING behind the last message is answered by whoever still looks after the socket.
        (numbers, source_ids, events, sub)
    });
    let status = runtime().block_on(async {
        let mut replay = Replay::start(collector(port, Some(PUBLIC)), Loopback::AsIs).unwrap();
        for number in 0..RECORDS {
            replay.push(&record(number)).await.unwrap();
        }
        tokio::time::timeout(Duration::from_secs(120), replay.settle())
            .await
            .unwrap()
            .unwrap();
        replay.finish().await.unwrap()
    });
    let (numbers, source_ids, events, _sub) = receiver.join().unwrap();
    assert_eq!(numbers, count_up(RECORDS));
    let host = Host::read(&[]).unwrap();
    assert_eq!(source_ids, [host.replay_source_id().number()]);
    assert_ne!(host.replay_source_id(), host.source_id);
    assert!(events >= 1, "the probe is announced, or ntopng would not show it");
    assert_eq!(
        (status.law.made, status.law.taken),
        (u64::from(RECORDS), u64::from(RECORDS))
    );
    assert_eq!(status.law.missing(), 0);
}

#[test]
fn a_replay_that_is_ended_early_tells_what_was_not_taken() {
    // Nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let status = runtime().block_on(async {
        let mut replay = Replay::start(collector(port, None), Loopback::AsIs).unwrap();
        for number in 0..1_000 {
            replay.push(&record(number)).await.unwrap();
        }
        let mut status = replay.status();
        let settled = tokio::select! { biased;
            settled = replay.settle() => Some(settled),
            known = status.wait_for(|status| status.law.made == 1_000) => { known.unwrap(); None }
        };
        assert!(settled.is_none(), "nobody took them");
        replay.finish().await.unwrap()
    });
    assert_eq!((status.law.made, status.law.taken), (1_000, 0));
    assert_eq!(status.law.dropped.at(DropPoint::ShutdownGrace), 1_000);
}
