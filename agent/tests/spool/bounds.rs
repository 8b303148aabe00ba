//! At a bound the oldest goes, and it is told.

use std::time::Duration;

use flowtilla_agent::spool::{Bounds, LostCause, SpoolOptions};
use flowtilla_agent_core::spool::Cursor;

use crate::support::{collector, drain, lost_for, open, options, records, value, wait, wait_durable};

#[test]
fn the_oldest_segments_go_at_the_bound_of_octets() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        octets_max: 16 << 20,
        tail_octets_max: 1 << 20,
        ..options(directory.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    for n in 0..4_000 {
        spool.append(value(n * 10 + 1, 10, 8_000));
        if n % 50 == 49 {
            wait_durable(&spool);
        }
    }
    let status = wait(&spool, "a count of octets", |status| {
        status.octets > 0 && status.evicted > 0
    });
    // The bound is kept before each batch; one batch, as sled writes it, may stand above it.
    assert!(status.octets < options.octets_max + (6 << 20), "{status:?}");
    let (values, lost) = drain(&reader, 0);
    assert_eq!(records(&values) + lost_for(&lost, LostCause::Evicted), 40_000);
    assert!(records(&values) > 4_000 && lost.len() == 1, "{lost:?}");
    drop((spool, reader));

    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.lost), (40_001, 0));
    let (values, again) = drain(&spool.reader(&collector("one")), 0);
    // The last evictions were not on the disk yet; their place tells them all the same.
    assert_eq!(
        lost_for(&again, LostCause::Evicted),
        lost_for(&lost, LostCause::Evicted)
    );
    assert_eq!(records(&values) + lost_for(&again, LostCause::Evicted), 40_000);
}

#[test]
fn segments_go_when_they_are_too_old() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        age_max: Duration::from_secs(2),
        ..options(directory.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    let mut last = 0;
    while spool.status().borrow().evicted == 0 {
        spool.append(value(last + 1, 10, 500));
        last += 10;
        wait_durable(&spool);
        assert!(last < 10_000_000, "nothing goes");
    }
    let (values, lost) = drain(&reader, 0);
    assert_eq!(records(&values) + lost_for(&lost, LostCause::Evicted), last);
    assert!(!values.is_empty());
}

#[test]
fn a_bound_that_is_lowered_holds_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    let _reader = spool.reader(&collector("one"));
    let mut last = 0;
    let mut fill = |values: u64| {
        for _ in 0..values {
            spool.append(value(last + 1, 10, 8_000));
            last += 10;
        }
        wait_durable(&spool);
    };
    (0..40).for_each(|_| fill(50));
    let before = wait(&spool, "a count of octets", |status| status.octets > 12 << 20);
    assert_eq!(before.evicted, 0);
    let mut lowered = Bounds::from(&options);
    lowered.octets_max = 8 << 20;
    spool.set_bounds(lowered);
    fill(1);
    wait(&spool, "less on the disk", |status| {
        status.evicted > 0 && status.octets < lowered.octets_max + (6 << 20)
    });
}

#[test]
fn what_everyone_has_read_is_not_counted_as_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        octets_max: 8 << 20,
        ..options(directory.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    // Nothing goes by the cursor: there is no checkpoint.
    for n in 0..2_000 {
        spool.append(value(n * 10 + 1, 10, 8_000));
        if n % 50 == 49 {
            wait_durable(&spool);
            let newest = spool.newest();
            reader.save(Cursor {
                read: newest,
                taken: newest,
                ..reader.cursor()
            });
        }
    }
    let first = options.directory.join("segments/0000000000000001");
    assert!(!first.exists(), "the oldest went");
    assert_eq!(spool.status().borrow().evicted, 0);
}
