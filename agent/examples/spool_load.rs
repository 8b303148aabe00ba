//! What the spool costs: `spool_load DIRECTORY RECORDS_PER_SECOND SECONDS [SPEED] [away|open]`.
//!
//! Values of 70 records, 8 KiB when there are that many; simulated time runs SPEED times as fast (default 1). A collector
//! reads along and its cursor passes, unless it is `away`. `open` only opens what is there, and reads its first MiB.
//! Prints resident memory, time of the processor, and the disk.

#![expect(clippy::unwrap_used, reason = "a measurement may panic")]

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent::clock::instant;
use flowtilla_agent::spool::{Read, Spool, SpoolOptions};
use flowtilla_agent_core::spool::{Cursor, Value};
use flowtilla_proto::{collector::Collector, wire};

const TURN: Duration = Duration::from_millis(200);
const RECORD_OCTETS: f64 = 116.0;

fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<f64>().unwrap() * 4.0 / 1024.0
}

fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn reader_of(spool: &Spool) -> flowtilla_agent::spool::Reader {
    let sent = wire::Collector {
        name: "one".to_owned(),
        endpoint: "tcp://127.0.0.1:5556".to_owned(),
        ..wire::Collector::default()
    };
    spool.reader(&Collector::try_from(sent).unwrap().name)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |at: usize, usual: f64| {
        arguments
            .get(at)
            .and_then(|text| text.parse().ok())
            .unwrap_or(usual)
    };
    let (rate, seconds, speed) = (number(2, 100.0), number(3, 60.0), number(4, 1.0));
    let word = arguments.get(5).map_or("", String::as_str);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let base = resident_mib();
    let begun = instant();
    let (spool, opened) = Spool::open(SpoolOptions {
        octets_max: 8 << 30,
        free_octets_min: 1 << 20,
        sync_interval: Duration::from_millis(500).div_f64(speed),
        ..SpoolOptions::in_directory(PathBuf::from(&arguments[1]))
    })
    .unwrap();
    println!(
        "open {:.1} ms, next {}, resident {base:.1} -> {:.1} MiB",
        begun.elapsed().as_secs_f64() * 1e3,
        opened.next,
        resident_mib()
    );
    let reader = reader_of(&spool);
    if word == "open" {
        let mut octets = 0;
        let (mut after, begun) = (0, instant());
        runtime.block_on(async {
            loop {
                match reader.read(after, 256 << 10).await {
                    Read::Values(values) => {
                        octets += values.iter().map(|value| value.octets.len()).sum::<usize>();
                        after = values.last().unwrap().last();
                    }
                    Read::Lost { upto, .. } => after = upto,
                    Read::Nothing => break,
                }
                if octets as f64 > number(3, 1.0) * f64::from(1 << 20) {
                    break;
                }
            }
        });
        let took = begun.elapsed().as_secs_f64();
        println!(
            "read {:.1} MiB in {took:.2} s, resident {:.1} MiB",
            octets as f64 / f64::from(1 << 20),
            resident_mib()
        );
        return;
    }
    if word != "away" {
        runtime.spawn(async move {
            let mut after = reader.cursor().read;
            let mut readable = reader.readable();
            loop {
                match reader.read(after, 256 << 10).await {
                    Read::Values(values) => after = values.last().unwrap().last(),
                    Read::Lost { upto, .. } => after = upto,
                    Read::Nothing => {
                        reader.save(Cursor {
                            read: after,
                            taken: after,
                            ..reader.cursor()
                        });
                        if readable.changed().await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
    }
    run(&spool, rate, seconds, speed, base);
    assert!(spool.close(Duration::from_secs(60)), "closed");
}

fn run(spool: &Spool, rate: f64, seconds: f64, speed: f64, base: f64) {
    let turns = (seconds / TURN.as_secs_f64()) as u64;
    let (mut owed, mut values, mut octets, mut most) = (0.0, 0_u64, 0_u64, 0.0_f64);
    let (begun, used) = (instant(), processor_seconds());
    let mut series = Vec::new();
    let mut random = fastrand::Rng::with_seed(1);
    for turn in 0..turns {
        owed += rate * TURN.as_secs_f64();
        while owed >= 1.0 {
            let records = owed.min(70.0) as u32;
            owed -= f64::from(records);
            let mut made = vec![0; (f64::from(records) * RECORD_OCTETS) as usize];
            random.fill(&mut made);
            octets += made.len() as u64;
            values += 1;
            spool.append(Value {
                first: spool.newest() + 1,
                records,
                octets: made.into(),
            });
        }
        if spool.checkpoint_wanted() {
            spool.checkpoint(spool.newest(), Bytes::from(vec![7; 64 << 10]));
        }
        let until = TURN.mul_f64((turn + 1) as f64 / speed);
        std::thread::sleep(until.saturating_sub(begun.elapsed()));
        most = most.max(resident_mib());
        if turn % (turns / 6).max(1) == 0 {
            series.push(resident_mib().round());
        }
    }
    let used = processor_seconds() - used;
    let status = spool.status().borrow().clone();
    println!(
        "{rate} records/s x {seconds} s at {speed}: resident {base:.1} most {most:.1} end {:.1} {series:?} MiB; {values} values, \
         {:.0} us each ({:.2} us a record); disk {:.2} MiB in {} segments, {:.2} of what was appended; {:?}",
        resident_mib(),
        used * 1e6 / values as f64,
        used * 1e6 / (rate * seconds),
        status.octets as f64 / f64::from(1 << 20),
        status.segments,
        status.octets as f64 / octets as f64,
        status,
    );
}
