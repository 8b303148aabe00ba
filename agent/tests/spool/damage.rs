//! Torn and flipped octets: never a panic that leaves the spool, and the loss is stated exactly.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowtilla_agent::spool::SpoolOptions;

use crate::support::{
    assert_true, collector, copy, count, drain, open, options, records, value, wait_durable,
};

const VALUES: u64 = 300;
const RECORDS: u64 = VALUES * 10;

/// A spool of several segments, not closed cleanly if so wanted.
fn filled(directory: &Path, clean: bool) -> SpoolOptions {
    let options = SpoolOptions {
        octets_max: 8 << 20,
        tail_octets_max: 1 << 20,
        ..options(directory)
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    for n in 0..VALUES {
        spool.append(value(n * 10 + 1, 10, 4_000));
        if n % 20 == 19 {
            wait_durable(&spool);
        }
    }
    wait_durable(&spool);
    if clean {
        assert!(spool.close(Duration::from_secs(30)));
    }
    drop((spool, reader));
    drop(open(&options));
    options
}

/// Every file below, in order.
pub(crate) fn files(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Cuts, zeroes or flips, and tells what it did.
pub(crate) fn harm(random: &mut fastrand::Rng, path: &Path) -> String {
    let mut octets = fs::read(path).unwrap();
    let length = octets.len().max(1);
    let what = match random.u8(0..4) {
        0 => {
            let to = random.usize(0..length);
            octets.truncate(to);
            format!("cut to {to} of {length}")
        }
        1 => {
            let from = random.usize(0..length);
            let to = (from + random.usize(1..20_000)).min(octets.len());
            octets[from.min(to)..to].fill(0);
            format!("zeros in {from}..{to}")
        }
        n => {
            let flips = if n == 2 { 1 } else { 50 };
            for _ in 0..flips {
                if !octets.is_empty() {
                    let at = random.usize(0..octets.len());
                    octets[at] ^= 1 << random.u8(0..8);
                }
            }
            format!("{flips} bits flipped")
        }
    };
    fs::write(path, octets).unwrap();
    format!("{}: {what}", path.display())
}

fn damaged_anywhere_is_stated_exactly(clean: bool) {
    let directory = tempfile::tempdir().unwrap();
    let whole = filled(directory.path(), clean);
    let whole_dir = whole.directory.clone();
    for seed in 0..count(40, 1_000) {
        let mut random = fastrand::Rng::with_seed(seed);
        let directory = tempfile::tempdir().unwrap();
        let options = SpoolOptions {
            directory: directory.path().join("spool"),
            ..whole.clone()
        };
        copy(&whole_dir, &options.directory);
        let targets = files(&options.directory.join("segments"));
        let told: Vec<_> = (0..random.usize(1..3))
            .map(|_| {
                let target = random.usize(0..targets.len());
                harm(&mut random, &targets[target])
            })
            .collect();
        println!("seed {seed}: {told:?}");

        let (spool, opened) = open(&options);
        assert_eq!(
            opened.next,
            RECORDS + 1,
            "seed {seed}: the mark tells the next sequence"
        );
        let (values, lost) = drain(&spool.reader(&collector("one")), 0);
        let gone: u64 = lost.iter().map(|range| range.last - range.first + 1).sum();
        assert_eq!(records(&values) + gone, RECORDS, "seed {seed}: {lost:?}");
        values.iter().for_each(assert_true);
        let told = spool.status().borrow().damaged;
        assert_eq!(told, gone, "seed {seed}: the count is the loss");
        spool.append(value(RECORDS + 1, 10, 100));
        wait_durable(&spool);
        drop(spool);

        let (spool, opened) = open(&options);
        assert_eq!(opened.next, RECORDS + 11, "seed {seed}");
        let mut again = BTreeSet::new();
        let replayed = spool.replay(0, |value| {
            again.insert(value.first);
        });
        let first: BTreeSet<_> = values
            .iter()
            .map(|value| value.first)
            .chain([RECORDS + 1])
            .collect();
        assert_eq!(again, first, "seed {seed}: {:?}", replayed.lost);
    }
}

#[test]
fn damage_after_a_clean_stop_is_stated_exactly() {
    damaged_anywhere_is_stated_exactly(true);
}

#[test]
fn damage_after_a_crash_is_stated_exactly() {
    damaged_anywhere_is_stated_exactly(false);
}

#[test]
fn a_segment_that_does_not_open_is_set_aside_and_the_rest_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    let segments = options.directory.join("segments");
    let mut names: Vec<_> = fs::read_dir(&segments)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    // Its log cannot be opened at all.
    let db = segments.join(&names[1]).join("db");
    fs::remove_file(&db).unwrap();
    fs::create_dir(&db).unwrap();

    let (spool, opened) = open(&options);
    assert_eq!(opened.set_aside, []);
    let (values, lost) = drain(&spool.reader(&collector("one")), 0);
    let first = u64::from_str_radix(names[1].to_str().unwrap(), 16).unwrap();
    let next = u64::from_str_radix(names[2].to_str().unwrap(), 16).unwrap();
    assert_eq!((lost[0].first, lost[0].last, lost.len()), (first, next - 1, 1));
    assert_eq!(records(&values), RECORDS - (next - first));
    let aside = segments.join(&names[1]).with_extension("corrupt-0");
    assert!(aside.exists());
}

#[test]
fn a_segment_is_read_from_its_log_alone() {
    let directory = tempfile::tempdir().unwrap();
    let options = filled(directory.path(), true);
    for segment in fs::read_dir(options.directory.join("segments")).unwrap() {
        for file in files(&segment.unwrap().path()) {
            if file.file_name().unwrap() != "db" {
                fs::write(file, "segment_size: 1048576\nmore\n").unwrap();
            }
        }
    }
    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.lost), (RECORDS + 1, 0));
    let (values, lost) = drain(&spool.reader(&collector("one")), 0);
    assert_eq!((records(&values), lost), (RECORDS, vec![]));
}

#[test]
fn a_segment_that_another_holds_is_read_and_one_that_cannot_be_is_all_that_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        patience: Duration::from_secs(1),
        ..filled(directory.path(), true)
    };
    let segments = options.directory.join("segments");
    let mut names: Vec<_> = fs::read_dir(&segments)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    let segment = segments.join(&names[1]);
    let (spool, _) = open(&options);
    // As a Db does that was given up.
    let db = fs::File::open(segment.join("db")).unwrap();
    db.lock().unwrap();
    let (values, lost) = drain(&spool.reader(&collector("one")), 0);
    assert_eq!((records(&values), lost), (RECORDS, vec![]));

    // Larger than any that is copied.
    let large = fs::File::create(segment.join("large")).unwrap();
    large.set_len(1 << 30).unwrap();
    drop(spool);
    let (spool, _) = open(&options);
    let (values, lost) = drain(&spool.reader(&collector("one")), 0);
    let number = |name: &std::ffi::OsString| u64::from_str_radix(name.to_str().unwrap(), 16).unwrap();
    let (first, next) = (number(&names[1]), number(&names[2]));
    assert_eq!((lost[0].first, lost[0].last, lost.len()), (first, next - 1, 1));
    assert_eq!(records(&values), RECORDS - (next - first));
}
