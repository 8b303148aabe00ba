//! Spools for the tests of `loss` and `buffer`, made through the agent's own, and what makes their output the same
//! everywhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::loss::{CollectorLaw, DropPoint};
use flowtilla_agent_core::spool::Cursor;
use flowtilla_agent_core::spool::value::{Builder, Pushed};
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::collector::Collector;
use flowtilla_proto::ids::CollectorName;
use flowtilla_proto::wire;
use tempfile::TempDir;

use crate::cmd::spooled::{Spool, SpoolOptions, Survey};
use crate::cmd::up::samples;

/// Longest wait of a test.
const DEADLINE: Duration = Duration::from_secs(60);

/// Records in a sample, six to a value, a minute between two values.
pub(crate) const RECORDS: u64 = 60;

/// The records of value `n`, from 0.
pub(crate) fn records(n: u64) -> Vec<FlowRecord> {
    let later = |record: FlowRecord| FlowRecord {
        start: WallTime(record.start.0 + n * 60_000_000_000),
        end: WallTime(record.end.0 + n * 60_000_000_000),
        ..record
    };
    samples::all().into_iter().map(later).collect()
}

/// A state's directory with a spool of two segments: a collector that has taken 24 of 60 records, two of them withheld,
/// and one that has nothing yet.
pub(crate) fn spool() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory can be made");
    for half in 0..2 {
        let options = SpoolOptions {
            free_octets_min: 0,
            ..SpoolOptions::in_directory(directory.path().join("spool"))
        };
        let (spool, _) = Spool::open(options).expect("nobody else uses it");
        let (one, _two) = (spool.reader(&name("ntopng-1")), spool.reader(&name("ntopng-2")));
        append(&spool, half * 5..half * 5 + 5);
        if half == 1 {
            let mut law = CollectorLaw {
                made: RECORDS,
                taken: 22,
                waiting: 36,
                ..CollectorLaw::default()
            };
            law.dropped.add(DropPoint::Withheld, 2);
            one.save(Cursor {
                begin: 0,
                read: 12,
                taken: 24,
                law,
                ..one.cursor()
            });
        }
        assert!(spool.close(DEADLINE), "it closes");
        released(directory.path());
    }
    directory
}

fn append(spool: &Spool, values: std::ops::Range<u64>) {
    let (mut builder, mut next) = (Builder::default(), spool.newest() + 1);
    for n in values {
        for record in records(n) {
            assert_eq!(builder.push(&record), Pushed::Added);
        }
        while let Some(value) = builder.seal(next) {
            next = value.last() + 1;
            spool.append(value);
        }
    }
}

/// Waits until its lock is gone, which goes with a thread.
fn released(directory: &Path) {
    let begun = tokio::time::Instant::now();
    while Survey::take(directory).expect("it is a spool").writer.is_some() {
        assert!(begun.elapsed() < DEADLINE, "it is still in use");
        std::thread::yield_now();
    }
}

fn name(name: &str) -> CollectorName {
    let sent = wire::Collector {
        name: name.to_owned(),
        endpoint: "tcp://127.0.0.1:5556".to_owned(),
        ..wire::Collector::default()
    };
    Collector::try_from(sent).expect("it is sound").name
}

/// The segments' directories, oldest first.
pub(crate) fn segments(state: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(state.join("spool/segments"))
        .expect("it is a spool")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    found.sort();
    found
}

/// `text` with DIR for the directory, and sizes that no file system has.
pub(crate) fn settled(text: &[u8], state: &Path) -> String {
    let text = String::from_utf8(text.to_vec()).expect("it is text");
    let text = text.replace(&state.to_string_lossy().into_owned(), "DIR");
    let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    for n in 1..words.len() {
        let is_unit = words[n].starts_with("KiB") || words[n].starts_with("MiB");
        let digits = words[n - 1]
            .bytes()
            .all(|octet| octet.is_ascii_digit() || octet == b'.');
        if is_unit && digits {
            words[n - 1] = "#".repeat(words[n - 1].len().min(2));
            words[n] = words[n].replacen("MiB", "KiB", 1);
        }
    }
    words.join(" ")
}
