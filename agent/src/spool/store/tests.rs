//! What the disk thread meets after another one was given up, or after a failure in the middle.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::spool::{Spool, SpoolOptions};

const GRACE: Duration = Duration::from_secs(30);

fn value(first: u64) -> Value {
    Value {
        first,
        records: 10,
        octets: first.to_be_bytes().repeat(100).into(),
    }
}

/// What a disk thread has, without the thread.
fn shared() -> (TempDir, Arc<Shared>) {
    let directory = tempfile::tempdir().unwrap();
    let options = SpoolOptions {
        free_octets_min: 0,
        ..SpoolOptions::in_directory(directory.path().join("spool"))
    };
    let (spool, _) = Spool::open(options).unwrap();
    assert!(spool.close(GRACE));
    (directory, Arc::clone(&spool.shared))
}

fn firsts(store: &Store) -> Vec<u64> {
    store.segments.iter().map(|entry| entry.first).collect()
}

fn assert_read(store: &mut Store, first: u64) {
    match store.read(first - 1, 1) {
        Ok(Reply::Values(values)) => assert_eq!(values, [value(first)]),
        other => panic!("{first} is not read: {other:?}"),
    }
}

#[test]
fn what_a_thread_that_was_given_up_began_does_not_end_the_head() {
    let (_directory, shared) = shared();
    let mut store = Store::load(&shared, 0).unwrap();
    store.write(&[value(1)]).unwrap();
    store.seal().unwrap();
    for begun in [11, 21] {
        fs::create_dir(store.path(begun)).unwrap();
    }
    drop(store);

    let mut store = Store::load(&shared, 0).unwrap();
    store.write(&[value(11)]).unwrap();
    assert_eq!(firsts(&store), [1, 11]);
    store.expire(10).unwrap();
    assert_eq!(firsts(&store), [11]);
    assert_read(&mut store, 11);
    drop(store);
    assert_eq!(firsts(&Store::load(&shared, 0).unwrap()), [11]);
}

#[test]
fn a_segment_that_does_not_seal_is_written_anew() {
    let (_directory, shared) = shared();
    let mut store = Store::load(&shared, 0).unwrap();
    store.write(&[value(1)]).unwrap();
    store.seal().unwrap();
    store.make_head(11).unwrap();
    store.head.as_mut().unwrap().segment.abandon();
    assert!(store.seal().is_err());
    store.abandon_head();
    store.write(&[value(11)]).unwrap();
    assert_eq!(firsts(&store), [1, 11]);
    store.expire(10).unwrap();
    assert_read(&mut store, 11);
}
