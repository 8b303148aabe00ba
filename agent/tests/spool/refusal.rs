//! A disk that does not take records: full, read-only, hanging. Readers are fed from memory meanwhile.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use flowtilla_agent::spool::{LostCause, Spool, SpoolOptions, SpoolState};

use crate::support::{Image, collector, drain, lost_for, open, options, records, value, wait, wait_durable};

fn append(spool: &Spool, values: u64) {
    for _ in 0..values {
        spool.append(value(spool.newest() + 1, 10, 8_000));
    }
}

fn why(spool: &Spool) -> String {
    let status = wait(spool, "memory only", |status| status.state != SpoolState::Working);
    match status.state {
        SpoolState::MemoryOnly { why } => why,
        SpoolState::Working => unreachable!("just waited for"),
    }
}

fn wait_working(spool: &Spool) {
    wait(spool, "working", |status| status.state == SpoolState::Working);
    wait_durable(spool);
}

#[test]
fn a_full_disk_feeds_readers_from_memory_and_is_tried_again() {
    let Some(image) = Image::make(96 << 20, "loop") else {
        return;
    };
    let options = SpoolOptions {
        tail_octets_max: 2 << 20,
        ..options(image.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    append(&spool, 100);
    wait_durable(&spool);
    let filler = image.path().join("filler");
    fill(&filler);
    append(&spool, 100);
    let why = why(&spool);
    assert!(why.contains("free on the disk"), "{why}");
    assert_eq!(records(&drain(&reader, 1_000).0), 1_000, "fed from memory");
    append(&spool, 500);
    let (values, lost) = drain(&reader, 2_000);
    assert!(
        lost_for(&lost, LostCause::SpoolUnwritable) > 0,
        "memory is bounded: {lost:?}"
    );
    assert_eq!(
        records(&values) + lost_for(&lost, LostCause::SpoolUnwritable),
        5_000
    );

    // The thousand that this reader had before they fell out count too.
    let unwritable = spool.status().borrow().unwritable;
    assert_eq!(unwritable, lost_for(&lost, LostCause::SpoolUnwritable) + 1_000);

    fs::remove_file(&filler).unwrap();
    wait_working(&spool);
    assert_eq!(spool.status().borrow().unwritable, unwritable);
    append(&spool, 10);
    assert!(spool.close(crate::support::DEADLINE));
    drop((spool, reader));

    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.lost), (7_101, 0));
    let (values, lost) = drain(&spool.reader(&collector("one")), 0);
    let gone: u64 = lost.iter().map(|range| range.last - range.first + 1).sum();
    assert_eq!(records(&values) + gone, 7_100, "{lost:?}");
    assert_eq!(lost_for(&lost, LostCause::SpoolDamaged), 0, "{lost:?}");
    // Told with its own reason after a restart too.
    assert_eq!(
        lost_for(&lost, LostCause::SpoolUnwritable),
        unwritable,
        "{lost:?}"
    );
}

/// Takes what is free on a file system.
fn fill(path: &std::path::Path) {
    let mut file = File::create(path).unwrap();
    let block = vec![0x5a; 1 << 20];
    while file.write_all(&block).is_ok() {}
    let _ = file.sync_all();
}

#[test]
fn sled_never_meets_a_disk_that_fills_slowly() {
    let Some(image) = Image::make(64 << 20, "loop") else {
        return;
    };
    let options = SpoolOptions {
        tail_octets_max: 1 << 20,
        ..options(image.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    for _ in 0..80 {
        append(&spool, 50);
        wait_durable(&spool);
    }
    assert_eq!(spool.status().borrow().state, SpoolState::Working);
    let (values, lost) = drain(&reader, 0);
    assert_eq!(
        records(&values) + lost_for(&lost, LostCause::Evicted),
        40_000,
        "{lost:?}"
    );
}

#[test]
fn a_disk_that_fails_feeds_readers_from_memory() {
    let Some(image) = Image::make(64 << 20, "loop") else {
        return;
    };
    let options = options(image.path());
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    append(&spool, 100);
    wait_durable(&spool);
    abort(image.path());
    append(&spool, 100);
    let why = why(&spool);
    assert!(
        why.to_lowercase().contains("refused") || why.contains("segment"),
        "{why}"
    );
    assert_eq!(records(&drain(&reader, 1_000).0), 1_000, "fed from memory");
}

/// Shuts ext4 down as an error of the disk does: everything that writes fails from here on.
fn abort(mounted: &std::path::Path) {
    let directory = File::open(mounted).unwrap();
    let how: u32 = 2; // EXT4_GOING_FLAGS_NOLOGFLUSH
    // SAFETY: EXT4_IOC_SHUTDOWN reads a u32.
    let outcome = unsafe { libc::ioctl(directory.as_raw_fd(), 0x8004_587d, &raw const how) };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_read_only_directory_is_no_reason_not_to_start() {
    let Some(image) = Image::make(64 << 20, "loop") else {
        return;
    };
    let options = options(image.path());
    let (spool, _) = open(&options);
    append(&spool, 100);
    assert!(spool.close(crate::support::DEADLINE));
    drop(spool);
    image.remount("ro").unwrap();

    let options = SpoolOptions {
        patience: std::time::Duration::from_secs(5),
        ..options
    };
    let (spool, opened) = open(&options);
    assert_eq!(opened.next, 1_001);
    let reader = spool.reader(&collector("one"));
    let why = why(&spool);
    append(&spool, 100);
    assert_eq!(records(&drain(&reader, 1_000).0), 1_000, "{why}");
    assert_eq!(records(&drain(&reader, 0).0), 2_000, "what is on it is read");
    image.remount("rw").unwrap();
    wait_working(&spool);
    assert_eq!(records(&drain(&reader, 0).0), 2_000);
}

#[test]
fn a_disk_that_hangs_is_given_up_and_taken_again() {
    let Some(image) = Image::make(64 << 20, "loop") else {
        return;
    };
    let options = options(image.path());
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    append(&spool, 100);
    wait_durable(&spool);
    let frozen = Frozen::new(image.path());
    append(&spool, 100);
    let why = why(&spool);
    assert!(why.contains("has not answered"), "{why}");
    assert_eq!(records(&drain(&reader, 1_000).0), 1_000, "fed from memory");
    drop(frozen);
    wait_working(&spool);
    append(&spool, 100);
    wait_durable(&spool);
    assert!(spool.close(crate::support::DEADLINE));
    drop((spool, reader));

    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.lost), (3_001, 0));
    assert_eq!(records(&drain(&spool.reader(&collector("one")), 0).0), 3_000);
}

/// A file system on which every write waits.
struct Frozen(File);

impl Frozen {
    fn new(mounted: &std::path::Path) -> Self {
        let directory = File::open(mounted).unwrap();
        // SAFETY: FIFREEZE takes no argument.
        let outcome = unsafe { libc::ioctl(directory.as_raw_fd(), 0xc004_5877, 0) };
        assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
        Self(directory)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: FITHAW takes no argument.
        unsafe { libc::ioctl(self.0.as_raw_fd(), 0xc004_5878, 0) };
    }
}
