//! Records with numbers, an exporter under test, and what a collector got.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use flowtilla_agent::export::{Announcements, Exporter, ExporterOptions};
use flowtilla_agent::spool::{Spool, SpoolOptions};
use flowtilla_agent::status::{CollectorState, CollectorStatus};
use flowtilla_agent_core::collector::failover::Times;
use flowtilla_agent_core::encode::event::EventFields;
use flowtilla_agent_core::encode::header::{self, Header, Topic};
use flowtilla_agent_core::encode::listening::{Listening, ListeningPorts};
use flowtilla_agent_core::encode::tlv::{self, Key, Loopback, TlvOptions, Value, element};
use flowtilla_agent_core::flow::record::{
    BootId, CollectorSet, CollectorSlot, Counting, EndReason, FlowRecord, Party, Protocol, RecordId, Traffic,
};
use flowtilla_agent_core::observe::{Cookie, Endpoint, NetNs};
use flowtilla_agent_core::owner::{Owner, Unknown};
use flowtilla_agent_core::session::ShortIds;
use flowtilla_agent_core::spool::value::{Builder, Pushed};
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::collector::Collector;
use flowtilla_proto::ids::{CollectorName, SourceId};
use flowtilla_proto::wire;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::libzmq::Sub;

/// Longest wait for anything. Far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The slot of the collector under test.
pub(crate) const SLOT: CollectorSlot = CollectorSlot(3);

/// Record number `number`, < 2²⁴: its responder is 10.x.y.z.
pub(crate) fn record(number: u32) -> FlowRecord {
    let party = |address: IpAddr, port| Party {
        endpoint: Endpoint { address, port },
        owner: Owner::unknown(Unknown::Remote),
    };
    FlowRecord {
        id: RecordId {
            boot: BootId([1; 16]),
            cookie: Cookie(u64::from(number)),
            stream: 0,
            part: 1,
        },
        first: true,
        protocol: Protocol::Tcp,
        initiator: party(IpAddr::from([192, 0, 2, 1]), 40_000),
        responder: party(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | number)), 443),
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta: Traffic::default(),
        total: Traffic::default(),
        start: WallTime(1),
        delta_start: WallTime(1),
        end: WallTime(2),
        tcp: None,
        reason: EndReason::EndOfFlow,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

/// What differs between tests.
pub(crate) struct Setup {
    pub(crate) endpoint: String,
    /// Collectors to change over to.
    pub(crate) spares: Vec<String>,
    pub(crate) times: Times,
    pub(crate) server_key: Option<&'static str>,
    pub(crate) window_octets: u64,
    /// Whether the spool ends with the exporter.
    pub(crate) ephemeral: bool,
    pub(crate) grace: Duration,
    pub(crate) on_restart: wire::OnCollectorRestart,
    pub(crate) encoding: wire::Encoding,
    pub(crate) short_ids: ShortIds,
}

impl Setup {
    pub(crate) fn to(endpoint: String) -> Self {
        Self {
            endpoint,
            spares: Vec::new(),
            times: Times {
                fail_after: Duration::from_secs(1),
                fail_back_after: Duration::from_secs(1),
            },
            server_key: None,
            window_octets: 4 << 20,
            ephemeral: false,
            grace: PATIENCE,
            on_restart: wire::OnCollectorRestart::Replay,
            encoding: wire::Encoding::Tlv,
            short_ids: ShortIds::Own,
        }
    }

    pub(crate) fn to_port(port: u16) -> Self {
        Self::to(address(port))
    }

    /// To the first of these.
    pub(crate) fn to_first_of(ports: [u16; 2]) -> Self {
        Self {
            spares: vec![address(ports[1])],
            ..Self::to_port(ports[0])
        }
    }
}

fn address(port: u16) -> String {
    format!("tcp://127.0.0.1:{port}")
}

/// A running exporter.
pub(crate) struct Running {
    pub(crate) runtime: Runtime,
    pub(crate) status: watch::Receiver<CollectorStatus>,
    pub(crate) short_ids: watch::Sender<ShortIds>,
    spool: Spool,
    builder: Builder,
    next: u64,
    stop: watch::Sender<Option<u64>>,
    task: JoinHandle<CollectorStatus>,
    _announcements: watch::Sender<Announcements>,
    _directory: Option<tempfile::TempDir>,
}

impl Running {
    /// Over a new spool.
    pub(crate) fn start(setup: &Setup) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut running = Self::start_in(directory.path(), setup);
        running._directory = Some(directory);
        running
    }

    /// Over the spool in this directory.
    pub(crate) fn start_in(directory: &Path, setup: &Setup) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let collector = |(n, endpoint): (usize, &String)| {
            let sent = wire::Collector {
                name: format!("main-{n}"),
                endpoint: endpoint.clone(),
                curve_server_key: setup.server_key.map(str::to_owned),
                window_octets: Some(setup.window_octets),
                records_per_second: Some(1_000_000),
                on_collector_restart: setup.on_restart.into(),
                encoding: setup.encoding.into(),
                ..wire::Collector::default()
            };
            Collector::try_from(sent).unwrap()
        };
        let endpoints = std::iter::once(&setup.endpoint).chain(&setup.spares);
        let collectors: Vec<_> = endpoints.enumerate().map(collector).collect();
        let short_ids = watch::Sender::new(setup.short_ids.clone());
        let options = ExporterOptions {
            name: match setup.spares.as_slice() {
                [] => collectors[0].name.clone(),
                _ => CollectorName::failover(),
            },
            collectors,
            failover: (!setup.spares.is_empty()).then_some(setup.times),
            slot: SLOT,
            source_id: SourceId::new(77).unwrap(),
            short_ids: short_ids.subscribe(),
            tlv: TlvOptions {
                loopback: Loopback::Omit,
                ..TlvOptions::default()
            },
            grace: setup.grace,
            ephemeral: setup.ephemeral,
            seed: 1,
        };
        let (announcements, announced) = watch::channel(announcements());
        let (spool, opened) = Spool::open(SpoolOptions::in_directory(directory.join("spool"))).unwrap();
        let (stop, stopped) = watch::channel(None);
        let reader = spool.reader(&options.name);
        let exporter = Exporter::new(options, reader, announced, stopped);
        let status = exporter.status();
        let task = runtime.spawn(exporter.run());
        Self {
            runtime,
            status,
            short_ids,
            spool,
            builder: Builder::default(),
            next: opened.next,
            stop,
            task,
            _announcements: announcements,
            _directory: None,
        }
    }

    /// Appends records, each portion when the disk has the one before: none falls out of memory.
    pub(crate) fn feed(&mut self, numbers: std::ops::Range<u32>) {
        let numbers: Vec<u32> = numbers.collect();
        for portion in numbers.chunks(20_000) {
            self.append(portion.iter().map(|&number| record(number)));
        }
    }

    /// Appends records and waits until the exporter may read them.
    pub(crate) fn append(&mut self, records: impl IntoIterator<Item = FlowRecord>) {
        for record in records {
            if self.builder.push(&record) == Pushed::Full {
                self.seal();
                assert_eq!(self.builder.push(&record), Pushed::Added);
            }
        }
        self.seal();
        let made = self.next - 1;
        self.wait_for("records readable", |status| status.law.made >= made);
    }

    fn seal(&mut self) {
        while let Some(value) = self.builder.seal(self.next) {
            self.next = value.last() + 1;
            self.spool.append(value);
        }
    }

    /// Waits until the status is so.
    pub(crate) fn wait_for(
        &mut self,
        what: &str,
        wanted: impl Fn(&CollectorStatus) -> bool,
    ) -> CollectorStatus {
        let status = &mut self.status;
        let found = self.runtime.block_on(async {
            let found = tokio::time::timeout(PATIENCE, status.wait_for(wanted)).await;
            found.ok().and_then(Result::ok).map(|status| status.clone())
        });
        found.unwrap_or_else(|| panic!("{what}: still not so: {:?}", *self.status.borrow()))
    }

    /// Waits until records can flow to `sub`, acknowledged.
    pub(crate) fn wait_for_stream(&mut self, sub: &Sub) {
        let streams =
            |status: &CollectorStatus| status.state == CollectorState::Streaming { acknowledged: true };
        let status = &mut self.status;
        let found = self.runtime.block_on(async {
            let wait = async {
                while !streams(&status.borrow_and_update()) {
                    sub.attend();
                    let _ = tokio::time::timeout(Duration::from_millis(20), status.changed()).await;
                }
            };
            tokio::time::timeout(PATIENCE, wait).await
        });
        assert!(found.is_ok(), "still no stream: {:?}", *self.status.borrow());
    }

    /// Waits for a failure to connect whose sentence contains `part`.
    pub(crate) fn wait_for_why(&mut self, part: &str) -> CollectorStatus {
        self.wait_for(part, |status| {
            matches!(&status.state, CollectorState::Connecting { why: Some(why) } if why.contains(part))
        })
    }

    /// Ends the exporter, the spool after it, and checks that nothing waits.
    pub(crate) fn stop(self) -> CollectorStatus {
        let status = self.end();
        assert_eq!(status.law.waiting, 0, "nothing waits at the end");
        status
    }

    /// Ends the exporter, and the spool after it.
    pub(crate) fn end(mut self) -> CollectorStatus {
        self.stop.send_replace(Some(self.next - 1));
        let task = &mut self.task;
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE * 2, task).await });
        let status = ended.expect("the exporter ends").expect("it does not panic");
        assert_eq!(status.law.missing(), 0, "law 2: {status:?}");
        assert!(self.spool.close(PATIENCE), "the spool closes");
        status
    }

    /// Ends all of it as a kill does: no stop, no close.
    pub(crate) fn kill(self) {
        self.task.abort();
        drop(self.spool);
    }
}

fn announcements() -> Announcements {
    Announcements {
        event: EventFields {
            time: WallTime(0),
            octets: 1,
            packets: 1,
            packet_drops: 0,
            interface_name: "eth0".into(),
            interface_speed_mbit: 1_000,
            interface_address: None,
            probe_address: None,
            probe_uuid: "test".into(),
            source_id: 0,
            version: "0".into(),
            operating_system: "Linux".into(),
            average_bps: 0,
            average_pps: 0,
            lifetime_s: 10,
            idle_s: 15,
            flow_exports: 0,
            export_drops: 0,
            table_drops: 0,
        },
        listening: Some(ListeningPorts {
            tcp4: vec![Listening {
                port: 22,
                process: "sshd".into(),
                package: String::new(),
            }],
            ..ListeningPorts::default()
        }),
    }
}

/// What one process of a collector got, with ids checked as ntopng checks them.
#[derive(Default)]
pub(crate) struct Got {
    /// Numbers of the records, in order of arrival.
    pub(crate) numbers: Vec<u32>,
    pub(crate) events: u32,
    pub(crate) listening: u32,
    pub(crate) messages: u32,
    last_id: u32,
}

impl Got {
    pub(crate) fn take(&mut self, frames: &[Vec<u8>]) {
        let [head, payload] = frames else {
            panic!("{} frames", frames.len());
        };
        let Header {
            topic,
            message_id,
            source_id,
            ..
        } = header::decode(head).unwrap();
        assert_eq!(source_id, 77);
        assert_eq!(message_id, self.last_id + 1, "ids count by one, without a gap");
        self.last_id = message_id;
        self.messages += 1;
        match topic {
            Topic::Event => self.events += 1,
            Topic::ListeningPorts => self.listening += 1,
            _ => self.numbers.extend(numbers(payload)),
        }
    }

    /// Numbers of the records of any message.
    pub(crate) fn numbers_of(frames: &[Vec<u8>]) -> Vec<u32> {
        match header::decode(&frames[0]).unwrap().topic {
            Topic::Flow => numbers(&frames[1]),
            _ => Vec::new(),
        }
    }

    /// The same process after a new connection, whose ids begin anew.
    pub(crate) fn reconnected(&mut self) {
        self.last_id = 0;
    }
}

fn numbers(payload: &[u8]) -> Vec<u32> {
    let wanted = Key::Element(u32::from(element::DESTINATION_IPV4));
    let number = |record: &Vec<(Key, Value)>| {
        let value = record
            .iter()
            .find(|(key, _)| *key == wanted)
            .map(|(_, value)| value);
        match value {
            Some(Value::Text(address)) => u32::from(address.parse::<Ipv4Addr>().unwrap()) & 0x00ff_ffff,
            other => panic!("address {other:?}"),
        }
    };
    tlv::decode(payload).unwrap().iter().map(number).collect()
}
