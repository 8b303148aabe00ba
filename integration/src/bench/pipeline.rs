//! Records a second from the flow table to a collector on one core, with the spool between and without it.
//!
//! Synthetic sights of sockets go through the product's own table and encoder: each connection of two sockets makes one
//! record with both owners named. *With*: values, sled, the exporter. *Without*: records are handed to the collector's
//! machine at once, and one thread drives it over a socket. *With rules*: as with, and ten exclude rules of all kinds are
//! asked of each record, and match none. The sink is libzmq's SUB, in a process of its own on another
//! core, and throws away what it takes; all of it was acknowledged before a run is over. CPU time is this process's:
//! table, names, encoding, spool, export.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use flowtilla_abi as abi;
use flowtilla_agent::clock::kernel_now;
use flowtilla_agent::export::{Announcements, Exporter, ExporterOptions};
use flowtilla_agent::spool::{Spool, SpoolOptions};
use flowtilla_agent_core::collector::window::OnRestart;
use flowtilla_agent_core::collector::{Collector, CollectorOptions, Transmit, Wanted};
use flowtilla_agent_core::encode::header::{self, HeaderLayout, PayloadEncoding, Topic};
use flowtilla_agent_core::encode::tlv::{HostAddress, Loopback, RECORDS_MAX, TlvOptions};
use flowtilla_agent_core::enrich::Whereabouts;
use flowtilla_agent_core::filter::{Filter, Verdict};
use flowtilla_agent_core::flow::record::{BootId, CollectorSlot, FlowRecord};
use flowtilla_agent_core::flow::{FlowTable, TableOptions};
use flowtilla_agent_core::observe::{self, TcpSight};
use flowtilla_agent_core::owner::Names;
use flowtilla_agent_core::policy::Filtering;
use flowtilla_agent_core::session::ShortIds;
use flowtilla_agent_core::spool::Cursor;
use flowtilla_agent_core::spool::value::{Builder, Pushed};
use flowtilla_agent_core::time::{KernelTime, WallOffset};
use flowtilla_agent_core::zmtp::{Event, PING_MINOR_MIN, Peer, Security};
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::{collector as policy, policy::Policy, wire};
use integration::collector::apart::{Apart, Likeness};
use integration::wait::{PATIENCE, Stopwatch};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;
use tokio::sync::watch;
use zerocopy::FromZeros as _;

use super::table::median;

/// Connections of one turn of the table.
const TURN: u64 = 1_000;
/// Simulated time of a turn, longer than a flow that ended is held.
const TURN_TIME: Duration = Duration::from_secs(1);
/// Records that may be ahead of the collector: some of them are in the spool's memory, which is bounded.
const AHEAD_MAX: u64 = 60_000;
/// Processes that the connections are of.
const PROCESSES: u64 = 20;
/// Where a collector may not be told another pace: as fast as can be.
const PACE: u64 = 1_000_000;

/// One run: records a second, CPU µs a record.
type Run = (f64, f64);

/// Measures in `rounds` pairs of runs of `records` each, and prints.
pub(super) fn measure(rounds: usize, records: u64, cpu: usize) -> Result<()> {
    println!("## From the table to a collector on one core\n");
    let mut sink = Apart::start(Likeness {
        discard: true,
        ..Likeness::default()
    })?;
    let mut only = CpuSet::new();
    only.set(cpu).context("--cpu")?;
    sched_setaffinity(Pid::from_raw(0), &only).context("stay on one core")?;
    let (mut with, mut ruled, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        with.push(spooled(sink.endpoint(), records, None)?);
        ruled.push(spooled(sink.endpoint(), records, Some(ten_rules()?))?);
        without.push(direct(sink.endpoint(), records)?);
    }
    sink.close()?;
    println!("{records} records a run, {rounds} rounds, medians; the sink is on another core.\n");
    println!("| path | records a second | CPU µs a record | ratio of CPU |");
    println!("|---|---:|---:|---:|");
    let of = |runs: &[Run], pick: fn(&Run) -> f64| median(&runs.iter().map(pick).collect::<Vec<_>>());
    let base = of(&without, |run| run.1);
    for (name, runs) in [
        ("without the spool", &without),
        ("with the spool", &with),
        ("with the spool and ten rules", &ruled),
    ] {
        let cost = of(runs, |run| run.1);
        println!(
            "| {name} | {:.0} | {cost:.2} | {:.2} |",
            of(runs, |run| run.0),
            cost / base
        );
    }
    println!();
    Ok(())
}

/// Ten rules of all kinds that match none of the flows.
fn ten_rules() -> Result<Filter> {
    let rule = |set: fn(&mut wire::FlowRule) -> &mut Vec<String>, text: &str| {
        let mut rule = wire::FlowRule::default();
        set(&mut rule).push(text.to_owned());
        rule
    };
    let exclude = vec![
        rule(|rule| &mut rule.cidrs, "192.0.2.0/24"),
        rule(|rule| &mut rule.cidrs, "2001:db8::/32"),
        rule(|rule| &mut rule.ports, "53"),
        rule(|rule| &mut rule.ports, "100-1000"),
        rule(|rule| &mut rule.processes, "agentctl"),
        rule(|rule| &mut rule.processes, "*-exporter"),
        rule(|rule| &mut rule.processes, "/opt/*/bin/*"),
        rule(|rule| &mut rule.users, "backup"),
        rule(|rule| &mut rule.users, "65534"),
        rule(|rule| &mut rule.cgroups, "/system.slice/backup.service"),
    ];
    let policy = wire::Policy {
        capture: Some(wire::Capture {
            exclude,
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    };
    let policy = Policy::try_from(policy)?;
    let filtering = Filtering {
        exclude: policy.capture.exclude,
        ..Filtering::default()
    };
    Filter::new(&filtering, 65_536).context("rules make a filter")
}

/// Table, names, rules, values, spool, exporter.
fn spooled(endpoint: &str, records: u64, mut filter: Option<Filter>) -> Result<Run> {
    let directory = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let (spool, opened) = Spool::open(SpoolOptions::in_directory(directory.path().join("spool")))?;
    let collector = collector(endpoint)?;
    let reader = spool.reader(&collector.name);
    let announcements = watch::Sender::new(Announcements {
        event: flowtilla_agent_core::encode::event::EventFields::default(),
        listening: None,
    });
    let (stop, stopped) = watch::channel(None);
    let options = ExporterOptions {
        name: collector.name.clone(),
        collectors: vec![collector],
        failover: None,
        slot: CollectorSlot(0),
        source_id: SourceId::from_hash(1),
        short_ids: watch::Sender::new(ShortIds::Own).subscribe(),
        tlv: tlv(),
        grace: PATIENCE,
        ephemeral: true,
        seed: 1,
    };
    let exporter = Exporter::new(options, reader, announcements.subscribe(), stopped);
    let mut status = exporter.status();
    let task = runtime.spawn(exporter.run());
    let mut source = Source::new();
    let (mut builder, mut next) = (Builder::default(), opened.next);
    let (watch, cpu) = (Stopwatch::start(), cpu_time()?);
    let mut made = 0;
    while made < records {
        let ahead = spool.newest().saturating_sub(status.borrow().law.taken);
        if ahead > AHEAD_MAX {
            ensure!(
                watch.elapsed() < PATIENCE,
                "the collector does not keep up: {:?}",
                status.borrow()
            );
            runtime.block_on(status.changed())?;
            continue;
        }
        let mut seal = |builder: &mut Builder| {
            while let Some(value) = builder.seal(next) {
                next = value.last() + 1;
                spool.append(value);
            }
        };
        made += source.turn(|record| {
            if let Some(filter) = &mut filter {
                let at = Whereabouts {
                    cgroup: Some("/user.slice"),
                    ..Whereabouts::default()
                };
                assert_eq!(filter.judge(&record, |_| at), Verdict::Kept);
            }
            let mut pushed = builder.push(&record);
            if pushed == Pushed::Full {
                seal(&mut builder);
                pushed = builder.push(&record);
            }
            assert_eq!(pushed, Pushed::Added);
        });
        seal(&mut builder);
    }
    stop.send_replace(Some(spool.newest()));
    let ended = runtime.block_on(task)?;
    let (took, spent) = (watch.elapsed(), cpu_time()? - cpu);
    ensure!(
        ended.law.taken == made && ended.law.missing() == 0,
        "{made} made: {:?}",
        ended.law
    );
    spool.close(PATIENCE);
    Ok(figures(made, took, spent))
}

/// Table, names, and the collector's machine driven by this thread.
fn direct(endpoint: &str, records: u64) -> Result<Run> {
    let mut line = Line::connect(endpoint)?;
    let mut source = Source::new();
    let (watch, cpu) = (Stopwatch::start(), cpu_time()?);
    let (mut made, mut turn) = (0, Vec::new());
    while made < records {
        let first = made + 1;
        made += source.turn(|record| turn.push(record));
        line.collector.handle_readable(made);
        let mut given = 0;
        while given < turn.len() {
            let now = kernel_now();
            if line.collector.poll_read(now).is_some() {
                let upto = (given + 100).min(turn.len());
                let sequence = first + given as u64;
                ensure!(
                    line.collector.handle_values(sequence, &turn[given..upto], now),
                    "the machine refuses {sequence}"
                );
                given = upto;
            }
            line.drive()?;
        }
        turn.clear();
    }
    while line.collector.law().taken < made {
        line.drive()?;
        ensure!(
            watch.elapsed() < PATIENCE,
            "not all was taken: {:?}",
            line.collector.law()
        );
    }
    Ok(figures(made, watch.elapsed(), cpu_time()? - cpu))
}

fn figures(made: u64, took: Duration, spent: Duration) -> Run {
    (
        made as f64 / took.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / made as f64,
    )
}

fn cpu_time() -> Result<Duration> {
    Ok(ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?.into())
}

fn tlv() -> TlvOptions {
    TlvOptions {
        loopback: Loopback::HostAddress,
        host_address: HostAddress {
            v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            v6: None,
        },
        exporter_address: Some(Ipv4Addr::new(192, 0, 2, 1)),
        record_ids: false,
    }
}

fn collector(endpoint: &str) -> Result<policy::Collector> {
    let sent = wire::Collector {
        name: "sink".to_owned(),
        endpoint: endpoint.to_owned(),
        records_per_second: Some(PACE),
        ..wire::Collector::default()
    };
    policy::Collector::try_from(sent).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))
}

/// Sights of connections within this host, and the table that makes records of them.
struct Source {
    table: FlowTable,
    names: Vec<Arc<Names>>,
    now: KernelTime,
    made: u64,
}

impl Source {
    fn new() -> Self {
        let names = (0..PROCESSES).map(|n| {
            Arc::new(Names {
                executable: Some(format!("/usr/lib/service-{n}/bin/worker")),
                command_line: Some(format!(
                    "/usr/lib/service-{n}/bin/worker --config /etc/service-{n}/worker.toml --listen 0.0.0.0:{} --log info",
                    8_000 + n
                )),
                user: Some(format!("service-{n}")),
                group: Some("services".to_owned()),
                parent: None,
                container: None,
                unit: Some(format!("service-{n}.service")),
            })
        });
        Self {
            table: FlowTable::new(TableOptions::new(BootId([7; 16]))),
            names: names.collect(),
            now: KernelTime(1_000_000_000_000),
            made: 0,
        }
    }

    /// A turn of connections that began and ended; how many records it made.
    fn turn(&mut self, mut each: impl FnMut(FlowRecord)) -> u64 {
        for n in self.made..self.made + TURN {
            for (cookie, client) in [(2 * n + 1, true), (2 * n + 2, false)] {
                self.table.observe(&ended(cookie, n, client, self.now.0));
            }
        }
        self.made += TURN;
        self.now = self.now.after(TURN_TIME);
        self.table.handle_timeout(self.now);
        let mut records = 0;
        while let Some(mut record) = self.table.poll_record(WallOffset(1_700_000_000_000_000_000)) {
            for owner in [&mut record.initiator.owner, &mut record.responder.owner] {
                let pid = owner
                    .process
                    .as_ref()
                    .map_or(0, |process| u64::from(process.key.pid));
                owner.names = Some(Arc::clone(&self.names[(pid % PROCESSES) as usize]));
            }
            records += 1;
            each(record);
        }
        records
    }
}

/// The end of one socket of the `n`th connection.
fn ended(cookie: u64, n: u64, client: bool, at: u64) -> observe::Observation {
    let mut entry = abi::TcpEntry::new_zeroed();
    let port = 1_024 + (n % 60_000) as u16;
    let loopback =
        |octets: &mut [u8; 16]| octets.copy_from_slice(&Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
    loopback(&mut entry.tuple.local);
    loopback(&mut entry.tuple.remote);
    (entry.tuple.local_port, entry.tuple.remote_port) = if client { (port, 80) } else { (80, port) };
    entry.tuple.family = 2;
    entry.tuple.netns = 4_026_531_840;
    entry.role = if client {
        abi::tcp_role::ACTIVE
    } else {
        abi::tcp_role::PASSIVE
    };
    (entry.start_ns, entry.established_ns, entry.end_ns) = (at, at + 40_000, at + 900_000);
    entry.owner.kind = abi::owner_kind::EXACT;
    entry.owner.tgid = 1_000 + (n.wrapping_mul(0x9e37_79b9) % 97) as u32 + u32::from(client) * 100;
    entry.owner.start_ns = 1;
    let (sent, received) = if client { (100, 200) } else { (200, 100) };
    entry.counters.bytes_sent = sent;
    entry.counters.bytes_received = received;
    entry.counters.segs_out = 6;
    entry.counters.segs_in = 5;
    entry.counters.state = 8;
    observe::tcp(cookie, at + 900_000, TcpSight::Ended, &entry)
}

/// A connection that one thread drives.
struct Line {
    stream: TcpStream,
    peer: Peer,
    pending: Bytes,
    collector: Collector,
}

impl Line {
    /// Connects and waits until the collector has subscribed.
    fn connect(endpoint: &str) -> Result<Self> {
        let address = endpoint
            .strip_prefix("tcp://")
            .context("an endpoint of the collector")?;
        let stream = TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        ensure!(matches!(stream.peer_addr()?.ip(), IpAddr::V4(_)), "{endpoint}");
        let collector = Collector::new(
            &CollectorOptions {
                slot: CollectorSlot(0),
                encoding: PayloadEncoding::Tlv,
                tlv: tlv(),
                window_octets: policy::WINDOW_OCTETS_DEFAULT,
                message_records_max: RECORDS_MAX,
                on_restart: OnRestart::Replay,
                records_per_second: PACE,
            },
            &Cursor::beginning_at(0),
        );
        let mut line = Self {
            stream,
            peer: Peer::new(&Security::Null),
            pending: Bytes::new(),
            collector,
        };
        let watch = Stopwatch::start();
        while !line.peer.is_subscribed(Topic::Flow.name().as_bytes()) {
            line.drive()?;
            ensure!(watch.elapsed() < PATIENCE, "the collector does not subscribe");
        }
        Ok(line)
    }

    /// Reads what came and writes what there is, without waiting.
    fn drive(&mut self) -> Result<()> {
        let now = kernel_now();
        let mut octets = [0; 16 * 1024];
        match self.stream.read(&mut octets) {
            Ok(0) => bail!("the collector closed"),
            Ok(count) => self.peer.handle_input(&octets[..count])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(event) = self.peer.poll_event() {
            match event {
                Event::HandshakeDone { peer_minor } => {
                    self.collector.handle_connected(peer_minor >= PING_MINOR_MIN, now);
                }
                Event::Subscribed(_) | Event::Unsubscribed(_) => {
                    self.collector.handle_subscriptions(Wanted {
                        flows: self.peer.is_subscribed(Topic::Flow.name().as_bytes()),
                        ..Wanted::default()
                    })
                }
                Event::Pong(context) => self.collector.handle_pong(&context, now),
            }
        }
        if self.pending.is_empty() {
            while self.peer.output_octets() < 64 * 1024
                && let Some(transmit) = self.collector.poll_transmit(now)
            {
                match transmit {
                    Transmit::Flows { id, payload } => {
                        let header = header::encode(
                            HeaderLayout::V2,
                            Topic::Flow,
                            PayloadEncoding::Tlv,
                            payload.len(),
                            id,
                            2,
                        );
                        self.peer.send_message(&[&header, &payload]);
                    }
                    Transmit::Announce(_) => {}
                    Transmit::Ping(context) => self.peer.ping(0, &context),
                }
            }
            self.pending = self.peer.poll_output().unwrap_or_default();
        }
        match self.stream.write(&self.pending) {
            Ok(count) => drop(self.pending.split_to(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
