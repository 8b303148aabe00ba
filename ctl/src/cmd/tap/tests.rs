//! The tap from outside: real sockets over loopback, and what it prints.

use std::net::{IpAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent_core::encode::event::{self, EventFields};
use flowtilla_agent_core::encode::header::{self, HeaderLayout, PayloadEncoding};
use flowtilla_agent_core::encode::listening::{self, Listening, ListeningPorts};
use flowtilla_agent_core::encode::tlv::{Batch, Loopback, Push, TlvOptions};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, Counting, Counts, EndReason, FlowRecord, Party, Protocol, RecordId, TcpFigures,
    Traffic,
};
use flowtilla_agent_core::observe::{Cookie, Endpoint as End, NetNs};
use flowtilla_agent_core::owner::{Confidence, Names, Owner, Process, ProcessKey, Unknown};
use flowtilla_agent_core::time::{KernelTime, WallTime};
use zeromq::{PubSocket, SocketSend, ZmqMessage};

use super::*;

/// Longest wait of a test for a message over loopback.
const DEADLINE: Duration = Duration::from_secs(20);

fn record() -> FlowRecord {
    let end = |address: [u8; 4], port, owner| Party {
        endpoint: End {
            address: IpAddr::from(address),
            port,
        },
        owner,
    };
    let curl = Owner {
        confidence: Confidence::Exact,
        process: Some(Process {
            key: ProcessKey {
                pid: 321,
                start: KernelTime(1),
            },
            parent_pid: 1,
            uid: 1_000,
            gid: 1_000,
            cgroup_id: 0,
            comm: "curl".into(),
        }),
        names: Some(Arc::new(Names {
            user: Some("alice".into()),
            ..Names::default()
        })),
    };
    let counts = |octets, packets| Counts {
        octets,
        packets,
        payload: 0,
    };
    let traffic = Traffic {
        forward: counts(840, 9),
        backward: counts(12_000, 11),
    };
    FlowRecord {
        id: RecordId {
            boot: BootId([7; 16]),
            cookie: Cookie(1),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Tcp,
        initiator: end([127, 0, 0, 1], 40_000, curl),
        responder: end([10, 0, 0, 2], 443, Owner::unknown(Unknown::Remote)),
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta: traffic,
        total: traffic,
        start: WallTime(1_795_416_480_000_000_000),
        delta_start: WallTime(1_795_416_480_000_000_000),
        end: WallTime(1_795_416_490_000_000_000),
        tcp: Some(TcpFigures {
            rtt_us: Some(700),
            retransmits_forward: 2,
            ..TcpFigures::default()
        }),
        reason: EndReason::EndOfFlow,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

fn flows(n: usize) -> Bytes {
    let mut batch = Batch::new(TlvOptions {
        loopback: Loopback::AsIs,
        ..TlvOptions::default()
    });
    for _ in 0..n {
        assert_eq!(batch.push(&record()), Push::Added);
    }
    batch.finish().unwrap().payload
}

fn message(topic: Topic, payload: &Bytes, message_id: u32, source_id: u32) -> Vec<Bytes> {
    let encoding = match topic {
        Topic::Flow => PayloadEncoding::Tlv,
        _ => PayloadEncoding::Json,
    };
    let header = header::encode(
        HeaderLayout::V2,
        topic,
        encoding,
        payload.len(),
        message_id,
        source_id,
    );
    vec![header, payload.clone()]
}

fn an_event(operating_system: &str) -> Bytes {
    event::payload(&EventFields {
        time: WallTime(1_795_416_490_000_000_000),
        octets: 5_000,
        packets: 50,
        packet_drops: 0,
        interface_name: "eth0".into(),
        interface_speed_mbit: 1_000,
        interface_address: None,
        probe_address: Some([10, 0, 0, 1].into()),
        probe_uuid: "u".into(),
        source_id: 7,
        version: "0.1.0".into(),
        operating_system: operating_system.into(),
        average_bps: 1,
        average_pps: 1,
        lifetime_s: 10,
        idle_s: 30,
        flow_exports: 3,
        export_drops: 1,
        table_drops: 0,
    })
}

fn printed(output: Output, frames: &[Bytes]) -> String {
    let mut out = Vec::new();
    Printer::new(output, &mut out)
        .arrival(&Arrival::decode(frames))
        .unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_flow_is_one_line() {
    assert_eq!(
        printed(Output::Lines, &message(Topic::Flow, &flows(1), 1, 7)),
        "7 flow 2026-11-23T06:48:10Z tcp 127.0.0.1:40000 (curl[321] alice) → 10.0.0.2:443, octets 840 → 12000, \
         rtt 0.700 ms, retransmits 2 → 0, end of flow\n"
    );
}

#[test]
fn a_flow_is_one_object() {
    let line = printed(Output::Json, &message(Topic::Flow, &flows(1), 9, 7));
    let made: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(made["messageId"], 9);
    assert_eq!(made["flow"]["client"]["program"], "curl");
    assert_eq!(made["flow"]["client"]["octets"], 840);
    assert_eq!(made["flow"]["client"]["tcpFlags"], 2);
    assert_eq!(made["flow"]["server"]["latencyMs"], 0.7);
    assert_eq!(made["flow"]["other"], serde_json::json!({}));
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn flows_of_other_exporters_are_shown_too() {
    let payload = Bytes::from(r#"[{"8":"10.0.0.1","12":"10.0.0.2","4":1,"231":5,"L7":1.5}]"#);
    let header = header::encode(
        HeaderLayout::V3,
        Topic::Flow,
        PayloadEncoding::Json,
        payload.len(),
        1,
        7,
    );
    assert_eq!(
        printed(Output::Lines, &[header, payload]),
        "7 flow - protocol 1 10.0.0.1 → 10.0.0.2, total octets 5 → -, 1 more elements\n"
    );
}

#[test]
fn events_and_ports_are_summarised() {
    assert_eq!(
        printed(Output::Lines, &message(Topic::Event, &an_event("Debian"), 1, 7)),
        "7 event 2026-11-23T06:48:10Z 10.0.0.1 on eth0 (0.1.0, Debian), octets 5000, packets 50, records 3, \
         lost packets 0, lost records 1\n"
    );
    let ports = listening::payload(&ListeningPorts {
        tcp4: vec![Listening {
            port: 22,
            process: "sshd".into(),
            package: String::new(),
        }],
        ..ListeningPorts::default()
    });
    assert_eq!(
        printed(
            Output::Lines,
            &message(Topic::ListeningPorts, &ports.payload, 1, 7)
        ),
        "7 listening-ports 0 addresses, ports tcp4 1, udp4 0, tcp6 0, udp6 0\n"
    );
}

#[test]
fn nothing_of_a_peer_moves_the_cursor() {
    let evil = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}";
    let document = serde_json::to_vec(&serde_json::json!({ "probe": { "ip": evil }, evil: evil })).unwrap();
    let mut flow = vec![1, 1, 0x2b, 8, 0, u8::try_from(evil.len()).unwrap()];
    flow.extend_from_slice(evil.as_bytes());
    for (topic, payload) in [
        (Topic::Event, document.clone()),
        (Topic::Hello, document.clone()),
        (Topic::Template, b"\x1b[2J".to_vec()),
        (Topic::Flow, flow),
    ] {
        for output in [Output::Lines, Output::Json] {
            let printed = printed(output, &message(topic, &payload.clone().into(), 1, 7));
            let line = printed.strip_suffix('\n').unwrap();
            assert!(
                !line.contains(flowtilla_agent_core::encode::text::is_unseen),
                "{line:?}"
            );
        }
    }
}

#[test]
fn what_cannot_be_read_says_why() {
    let line = |frames: &[Bytes]| printed(Output::Lines, frames);
    assert!(line(&[]).contains("a message has 2 frames, this one 0"));
    assert!(line(&["x".into(), "y".into()]).contains("a header of 1 octets is of no known layout"));
    assert!(
        line(&message(Topic::Flow, &Bytes::from_static(b"no"), 1, 7)).contains("does not begin with 01 01")
    );
    assert!(line(&message(Topic::Event, &Bytes::from_static(b"\0x"), 1, 7)).contains("compressed"));
    let long = vec![b' '; 131_073].into();
    assert!(line(&message(Topic::Event, &long, 1, 7)).contains("131073 octets are more than ntopng takes"));
}

#[test]
fn an_endpoint_that_is_none_is_refused_with_a_remedy() {
    for (given, why) in [
        ("*:5556", "does not begin with tcp://"),
        ("ipc:///tmp/x", "does not begin with tcp://"),
        ("tcp://*", "has no port"),
        ("tcp://*:70000", "has a port that is no number"),
        ("tcp://:5556", "has no host"),
        ("tcp://::1:5556", "without brackets"),
        ("tcp://a b:1", "has a host that is no name"),
    ] {
        let error = endpoint(given).unwrap_err().to_string();
        assert!(error.starts_with("ENDPOINT: ") && error.contains(why), "{error}");
        assert!(error.ends_with("tcp://[::1]:5556"), "{error}");
    }
    assert_eq!(
        endpoint("tcp://*:5556").unwrap().to_string(),
        "tcp://0.0.0.0:5556"
    );
    assert_eq!(endpoint("tcp://[::1]:1").unwrap().to_string(), "tcp://[::1]:1");
    assert_eq!(
        endpoint("tcp://localhost:1").unwrap().to_string(),
        "tcp://localhost:1"
    );
}

#[tokio::test]
async fn a_taken_port_is_told_with_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let args = args(&format!("tcp://{}", taken.local_addr().unwrap()), None);
    let error = run(&args, &mut Vec::new(), std::future::pending())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("stop the ntopng or tap that listens there"),
        "{error}"
    );
    assert!(error.downcast_ref::<UsageError>().is_none());
    let error = run(&self::args("5556", None), &mut Vec::new(), std::future::pending())
        .await
        .unwrap_err();
    assert!(error.downcast_ref::<UsageError>().is_some());
}

fn args(endpoint: &str, count: Option<u64>) -> TapArgs {
    TapArgs {
        endpoint: endpoint.into(),
        output: Output::Lines,
        count: count.and_then(NonZeroU64::new),
    }
}

/// What a tap wrote so far, readable while it runs.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn shown(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    async fn wait_for(&self, what: &str) -> String {
        let wait = async {
            while !self.shown().contains(what) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(DEADLINE, wait).await;
        assert!(waited.is_ok(), "{what} did not come: {}", self.shown());
        self.shown()
    }
}

impl Write for Screen {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn messages_of_a_real_publisher_are_shown_and_counted() {
    let screen = Screen::default();
    let mut out = screen.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let tap = tokio::spawn(async move {
        let args = args("tcp://127.0.0.1:0", None);
        run(&args, &mut out, async { drop(stopped.await) }).await
    });
    let head = screen.wait_for("as ntopng does").await;
    let endpoint = head.split(' ').nth(2).unwrap().to_owned();
    let mut publisher = PubSocket::new();
    publisher.connect(&endpoint).await.unwrap();
    let mut send = async |topic, payload: &Bytes, id, source| {
        let message = ZmqMessage::try_from(message(topic, payload, id, source)).unwrap();
        publisher.send(message).await.unwrap();
    };
    // A PUB drops until it knows the subscriptions: greet until the first event is shown.
    let mut id = 0;
    while !screen.shown().contains(" event ") {
        id += 1;
        send(Topic::Event, &an_event("Debian"), id, 7).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    send(Topic::Flow, &flows(3), id + 1, 7).await;
    send(Topic::Flow, &flows(2), id + 5, 7).await;
    send(Topic::Flow, &flows(1), 1, 8).await;
    send(Topic::Event, &an_event("the last"), 2, 8).await;
    screen.wait_for("the last").await;
    drop(stop);
    let ledger = tokio::time::timeout(DEADLINE, tap)
        .await
        .unwrap()
        .unwrap()
        .unwrap();

    let sources: Vec<_> = ledger.sources().collect();
    assert_eq!(sources.len(), 2);
    let (seven, eight) = (sources[0].1, sources[1].1);
    assert_eq!(
        (sources[0].0, seven.records, seven.lost, seven.restarts),
        (7, 5, 3, 0)
    );
    assert_eq!(
        (sources[1].0, eight.records, eight.events, eight.lost),
        (8, 1, 1, 0)
    );
    let shown = screen.shown();
    assert_eq!(
        shown
            .matches("tcp 127.0.0.1:40000 (curl[321] alice) → 10.0.0.2:443")
            .count(),
        6
    );
    assert!(shown.contains("SOURCE"), "{shown}");
}

#[tokio::test]
async fn the_count_ends_it() {
    let screen = Screen::default();
    let mut out = screen.clone();
    let tap = tokio::spawn(async move {
        let args = args("tcp://127.0.0.1:0", Some(2));
        run(&args, &mut out, std::future::pending()).await
    });
    let head = screen.wait_for("as ntopng does").await;
    let mut publisher = PubSocket::new();
    publisher.connect(head.split(' ').nth(2).unwrap()).await.unwrap();
    let mut id = 0;
    while !tap.is_finished() {
        id += 1;
        let message = message(Topic::Event, &an_event("Debian"), id, 7);
        publisher
            .send(ZmqMessage::try_from(message).unwrap())
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(tap.await.unwrap().unwrap().messages(), 2);
}
