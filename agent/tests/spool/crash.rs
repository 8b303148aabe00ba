//! The process is killed, the power is cut: what was told to be durable is there.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flowtilla_agent::spool::{LostCause, LostRange, SpoolOptions};
use flowtilla_agent_core::spool::Cursor;

use crate::support::{Image, assert_true, collector, count, lost_for, open, options, records, value};

const DIRECTORY: &str = "FLOWTILLA_SPOOL_WRITER";

fn writer_options(directory: &Path) -> SpoolOptions {
    SpoolOptions {
        octets_max: 48 << 20,
        tail_octets_max: 1 << 20,
        sync_interval: Duration::from_millis(10),
        ..options(directory)
    }
}

/// Appends for ever, and tells each time what is durable; reads behind it, and keeps its cursor.
#[test]
#[ignore = "a process that other tests start"]
fn writer() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).expect("started by another test"));
    let (spool, opened) = open(&writer_options(&directory));
    let reader = spool.reader(&collector("one"));
    let mut random = fastrand::Rng::with_seed(opened.next);
    let mut durable = spool.status();
    let (mut next, mut read) = (opened.next, opened.next - 1);
    let runtime = crate::support::runtime();
    loop {
        for _ in 0..random.u32(1..40) {
            let records = random.u32(1..80);
            spool.append(value(next, records, random.usize(1..8_100)));
            next += u64::from(records);
        }
        runtime
            .block_on(durable.wait_for(|status| status.durable > read))
            .unwrap();
        let told = durable.borrow().durable;
        // A far reader opens sealed segments while others are written.
        runtime.block_on(reader.read(read.saturating_sub(100_000), 1 << 18));
        read = told;
        reader.save(Cursor {
            taken: read,
            ..reader.cursor()
        });
        let mut out = std::io::stdout().lock();
        writeln!(out, "durable {told}").unwrap();
        out.flush().unwrap();
    }
}

struct Writer {
    child: Child,
    lines: std::sync::mpsc::Receiver<u64>,
}

impl Writer {
    fn start(directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::writer", "--ignored", "--nocapture"])
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::sync_channel(100_000);
        std::thread::spawn(move || {
            let told = out.lines().map_while(Result::ok);
            for durable in told.filter_map(|line| line.strip_prefix("durable ")?.parse().ok()) {
                let _ = sender.send(durable);
            }
        });
        Self { child, lines }
    }

    /// Lets it run for so many reports; tells the last.
    fn run(&self, reports: u64) -> u64 {
        let mut last = 0;
        for _ in 0..reports {
            last = self
                .lines
                .recv_timeout(crate::support::DEADLINE)
                .expect("the writer works");
        }
        last
    }

    /// Lets it go on for a while that no report ends, so that the end comes in the middle of anything.
    fn go_on(&self, random: &mut fastrand::Rng) -> u64 {
        let (begun, while_ms) = (flowtilla_agent::clock::instant(), random.u64(0..60));
        let mut last = 0;
        while let Some(left) = Duration::from_millis(while_ms).checked_sub(begun.elapsed()) {
            last = self.lines.recv_timeout(left).unwrap_or(last);
        }
        last
    }

    fn stop(&self) -> u64 {
        let process = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
        self.lines.try_iter().last().unwrap_or(0)
    }

    /// Kills it; tells the last that it reported.
    fn kill(mut self) -> u64 {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.lines.iter().last().unwrap_or(0)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Opens what a crash left, and checks that all up to `durable` is there or was evicted.
///
/// `known`: what earlier crashes took before it was durable; what this one took is added.
fn check(directory: &Path, durable: u64, known: &mut Vec<LostRange>, what: &str) -> (u64, u64) {
    let (spool, opened) = open(&writer_options(directory));
    assert!(
        opened.next > durable,
        "{what}: {opened:?}, but {durable} was durable"
    );
    assert_eq!(
        opened.set_aside,
        [],
        "{what}: durable was {durable}, next is {}",
        opened.next
    );
    let mut values = Vec::new();
    let replayed = spool.replay(0, |value| values.push(value));
    values.iter().for_each(assert_true);
    let gone =
        lost_for(&replayed.lost, LostCause::Evicted) + lost_for(&replayed.lost, LostCause::SpoolDamaged);
    assert_eq!(
        records(&values) + gone,
        opened.next - 1,
        "{what}: {:?}",
        replayed.lost
    );
    for range in &replayed.lost {
        let earlier = known
            .iter()
            .any(|known| known.first <= range.first && range.last <= known.last);
        let allowed = range.cause == LostCause::Evicted || range.first > durable || earlier;
        assert!(allowed, "{what}: {range:?} is gone, and {durable} was durable");
    }
    known.extend(replayed.lost);
    let cursor = spool.reader(&collector("one")).cursor();
    assert!(cursor.taken < opened.next, "{what}: {cursor:?}");
    let status = spool.status().borrow().clone();
    assert_eq!(status.blobs, 0, "{what}");
    (opened.next, opened.lost)
}

#[test]
fn a_killed_process_leaves_everything_durable() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(9);
    let (mut next, mut known) = (1, Vec::new());
    for cycle in 0..count(20, 100) {
        let writer = Writer::start(directory.path());
        let told = writer.run(random.u64(1..60)).max(writer.go_on(&mut random));
        let durable = writer.kill().max(told);
        assert!(durable >= next, "sequences go on");
        next = check(directory.path(), durable, &mut known, &format!("cycle {cycle}")).0;
    }
}

#[test]
fn a_power_cut_leaves_everything_durable() {
    let mut random = fastrand::Rng::with_seed(11);
    let cuts = count(3, 30);
    for cut in 0..cuts {
        // The journal commits by itself every 300 s only: what nobody synced is not there.
        let Some(image) = Image::make(256 << 20, "loop,commit=300") else {
            return;
        };
        let writer = Writer::start(image.path());
        let told = writer.run(random.u64(5..250)).max(writer.go_on(&mut random));
        let durable = writer.stop().max(told);
        let after = image.cut();
        let (next, lost) = check(after.path(), durable, &mut Vec::new(), &format!("cut {cut}"));
        println!(
            "cut {}/{cuts}: durable {durable}, next {next}, lost after it {lost}",
            cut + 1
        );
    }
}
