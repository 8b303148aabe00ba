//! What is kept, and what comes back after a stop.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::time::Duration;

use bytes::Bytes;
use flowtilla_agent::spool::{Bounds, Read, Spool, SpoolError, SpoolOptions};
use flowtilla_agent_core::spool::Cursor;

use crate::support::{self, assert_same, collector, drain, open, options, value, wait, wait_durable};

const GRACE: Duration = Duration::from_secs(30);

#[test]
fn what_is_appended_is_read_and_comes_back_after_a_clean_stop() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.clean, opened.lost), (1, true, 0));
    let reader = spool.reader(&collector("one"));
    let values: Vec<_> = (0..200).map(|n| value(n * 70 + 1, 70, 8_000)).collect();
    values.iter().cloned().for_each(|value| spool.append(value));
    wait_durable(&spool);
    assert_same(&drain(&reader, 0), &values);
    // From the middle of a value.
    assert_same(&drain(&reader, 75), &values[1..]);
    assert!(spool.close(GRACE));
    drop((spool, reader));

    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.clean, opened.lost), (200 * 70 + 1, true, 0));
    let mut replayed = Vec::new();
    let told = spool.replay(70, |value| replayed.push(value));
    assert_same(&(replayed, told.lost), &values[1..]);
    let reader = spool.reader(&collector("one"));
    assert_eq!(reader.cursor().begin, 0);
    assert_same(&drain(&reader, 0), &values);
}

#[test]
fn what_was_durable_comes_back_without_a_clean_stop() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    for n in 0..50 {
        spool.append(value(n * 10 + 1, 10, 3_000));
    }
    wait_durable(&spool);
    drop((spool, reader));

    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.clean, opened.lost), (501, false, 0));
    spool.append(value(501, 10, 100));
    wait_durable(&spool);
    let (values, lost) = drain(&spool.reader(&collector("two")), 0);
    assert_eq!((support::records(&values), lost), (510, vec![]));
}

#[test]
fn a_second_process_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (_spool, _) = open(&options);
    let refused = Spool::open(options.clone()).unwrap_err();
    assert!(matches!(refused, SpoolError::Locked(path) if path == options.directory));
}

#[test]
fn a_spool_of_another_version_is_set_aside_whole() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    spool.append(value(1, 10, 100));
    assert!(spool.close(GRACE));
    drop(spool);
    fs::write(options.directory.join("format"), "flowtilla-spool 0\n").unwrap();

    let (spool, opened) = open(&options);
    assert_eq!(opened.next, 1);
    let aside = &opened.set_aside[0].path;
    assert_eq!(
        fs::read_to_string(aside.join("format")).unwrap(),
        "flowtilla-spool 0\n"
    );
    assert_eq!(fs::read_dir(aside.join("segments")).unwrap().count(), 1);
    spool.append(value(1, 10, 100));
    wait_durable(&spool);
}

#[test]
fn a_cursor_is_kept_and_a_forgotten_one_begins_at_now() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    let (one, two) = (collector("one"), collector("two"));
    let readers = [spool.reader(&one), spool.reader(&two)];
    spool.append(value(1, 100, 1_000));
    let saved = Cursor {
        read: 20,
        taken: 50,
        ..readers[0].cursor()
    };
    readers[0].save(saved.clone());
    spool.forget(&two);
    readers[1].save(Cursor {
        taken: 1,
        ..readers[1].cursor()
    });
    assert!(spool.close(GRACE));
    drop((spool, readers));

    let (spool, _) = open(&options);
    assert_eq!(spool.reader(&one).cursor(), saved);
    assert_eq!(spool.reader(&two).cursor().begin, 100);
}

#[test]
fn a_damaged_cursor_gets_everything_once_more() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    let one = collector("one");
    let reader = spool.reader(&one);
    spool.append(value(1, 100, 1_000));
    reader.save(Cursor {
        read: 100,
        taken: 100,
        ..reader.cursor()
    });
    assert!(spool.close(GRACE));
    drop((spool, reader));
    fs::write(options.directory.join("cursors/one.json"), "{\"begin\":0,\"rea").unwrap();

    let (spool, _) = open(&options);
    assert_eq!(spool.reader(&one).cursor().taken, 0);
}

#[test]
fn segments_go_when_cursors_and_checkpoint_have_passed_them() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    for n in 0..1_200 {
        spool.append(value(n * 10 + 1, 10, 8_000));
        if n % 200 == 0 {
            wait_durable(&spool);
        }
    }
    wait_durable(&spool);
    let newest = spool.newest();
    let full = wait(&spool, "three segments", |status| status.segments >= 3);
    reader.save(Cursor {
        read: newest,
        taken: newest,
        ..reader.cursor()
    });
    spool.checkpoint(newest, Bytes::from_static(b"table"));
    assert!(!spool.checkpoint_wanted());
    wait(&spool, "one segment", |status| {
        status.segments == 1 && status.octets < full.octets
    });
    assert!(spool.close(GRACE));
    drop((spool, reader));

    let (spool, opened) = open(&options);
    let checkpoint = opened.checkpoint.unwrap();
    assert_eq!(
        (checkpoint.sequence, checkpoint.octets.as_ref()),
        (newest, b"table".as_slice())
    );
    assert_eq!((opened.next, opened.lost), (newest + 1, 0));
    spool.append(value(newest + 1, 1, 10));
    wait_durable(&spool);
    let read = support::runtime().block_on(spool.reader(&collector("one")).read(newest, 1));
    assert_eq!(read, Read::Values(vec![value(newest + 1, 1, 10)]));
}

#[test]
fn the_ledger_comes_back_unless_it_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, opened) = open(&options);
    assert_eq!(opened.ledger, None);
    spool.keep_ledger(Bytes::from_static(b"one"));
    spool.keep_ledger(Bytes::from_static(b"two"));
    assert!(spool.close(GRACE));
    drop(spool);

    let (spool, opened) = open(&options);
    assert_eq!(opened.ledger.as_deref(), Some(b"two".as_slice()));
    assert!(spool.close(GRACE));
    drop(spool);
    let path = options.directory.join("ledger");
    let mut octets = fs::read(&path).unwrap();
    octets[9] ^= 1;
    fs::write(&path, octets).unwrap();
    assert_eq!(open(&options).1.ledger, None);
}

#[test]
fn only_the_collectors_that_are_named_keep_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    let (one, two) = (collector("one"), collector("two"));
    let readers = [spool.reader(&one), spool.reader(&two)];
    spool.append(value(1, 100, 1_000));
    spool.retain(std::slice::from_ref(&one));
    assert!(spool.close(GRACE));
    drop((spool, readers));

    let (spool, _) = open(&options);
    assert_eq!(spool.reader(&one).cursor().begin, 0);
    assert_eq!(spool.reader(&two).cursor().begin, 100);
}

#[test]
fn a_stop_under_pressure_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        tail_octets_max: 16 << 20,
        sync_interval: Duration::from_secs(3_600),
        ..options(directory.path())
    };
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    let values: Vec<_> = (0..1_500).map(|n| value(n * 10 + 1, 10, 8_000)).collect();
    values.iter().cloned().for_each(|value| spool.append(value));
    assert!(spool.close(GRACE));
    drop((spool, reader));

    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.clean, opened.lost), (15_001, true, 0));
    assert_same(&drain(&spool.reader(&collector("one")), 0), &values);
}

#[test]
fn what_a_stop_cannot_write_is_counted_and_its_numbers_are_not_given_again() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let (spool, _) = open(&options);
    let reader = spool.reader(&collector("one"));
    spool.append(value(1, 10, 1_000));
    wait_durable(&spool);
    let mut full = Bounds::from(&options);
    full.free_octets_min = 1 << 60;
    spool.set_bounds(full);
    spool.append(value(11, 10, 1_000));
    assert!(!spool.close(GRACE));
    drop((spool, reader));

    let (spool, opened) = open(&options);
    assert_eq!((opened.next, opened.clean), (21, false));
    let (values, lost) = drain(&spool.reader(&collector("one")), 0);
    let gone: u64 = lost.iter().map(|range| range.last - range.first + 1).sum();
    // A second try before the stop lets the oldest go, as the bound of the free disk wants.
    let kept = if gone == 20 {
        vec![]
    } else {
        vec![value(1, 10, 1_000)]
    };
    assert_eq!((&values, support::records(&values) + gone), (&kept, 20));
    assert_eq!(
        (opened.lost, lost.last().map(|range| range.last)),
        (gone, Some(20))
    );
}

#[test]
fn a_cursor_that_must_be_stored_is_there_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let one = collector("one");
    for taken in [40, 30, 90] {
        let (spool, opened) = open(&options);
        let reader = spool.reader(&one);
        spool.append(value(opened.next, 100, 1_000));
        wait_durable(&spool);
        let cursor = Cursor {
            taken,
            ..reader.cursor()
        };
        assert!(support::runtime().block_on(reader.save_now(cursor.clone())));
        // Again, with nothing new.
        assert!(support::runtime().block_on(reader.save_now(cursor)));
        drop((spool, reader));
        let (spool, _) = open(&options);
        assert_eq!(spool.reader(&one).cursor().taken, taken);
    }
}

#[test]
fn a_directory_that_others_can_change_is_refused_with_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    drop(open(&options));
    let refused = || match Spool::open(options.clone()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it was opened"),
    };
    for inner in ["", "segments", "cursors"] {
        let path = options.directory.join(inner);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(refused().contains("chmod go-w"), "{}", refused());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    // Only root can give it away.
    if chown(&options.directory, Some(4_242), None).is_ok() {
        assert!(refused().contains("user 4242") && refused().contains("chown"));
        chown(&options.directory, Some(0), None).unwrap();
    }
    drop(open(&options));
}

#[test]
fn a_link_in_place_of_a_file_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    drop(open(&options));
    let target = directory.path().join("target");
    fs::write(&target, "of another").unwrap();
    for name in ["cursors/one.json.tmp", "lock"] {
        let link = options.directory.join(name);
        let _ = fs::remove_file(&link);
        symlink(&target, &link).unwrap();
    }
    let (spool, _) = open(&options);
    let _reader = spool.reader(&collector("one"));
    spool.append(value(1, 10, 100));
    assert!(!spool.close(GRACE), "the cursor cannot be written");
    assert_eq!(fs::read_to_string(&target).unwrap(), "of another");
}
