use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use flowtilla_controller::store::sled::{FORMAT, KEY_OCTETS_MAX, SledStore, VALUE_OCTETS_MAX};
use flowtilla_controller::store::{Batch, Store, StoreError, Table};

/// A key's new value; `None`: it goes.
type Change<'a> = (Table, &'a [u8], Option<&'a [u8]>);

fn batch(changes: &[Change<'_>]) -> Batch {
    let mut batch = Batch::default();
    for &(table, key, value) in changes {
        match value {
            Some(value) => batch.put(table, key, value),
            None => batch.remove(table, key),
        }
    }
    batch
}

#[test]
fn what_is_committed_is_there_after_the_store_was_closed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let large = vec![7; 100_000];
    let store = SledStore::open(&path).expect("a store");
    store
        .commit(batch(&[
            (Table::Agents, b"a", Some(b"1")),
            (Table::Agents, b"b", Some(&large)),
            (Table::Agents, b"c", Some(b"")),
            (Table::SourceIds, b"a", Some(b"other table")),
        ]))
        .expect("committed");
    drop(store);
    let store = SledStore::open(&path).expect("the store again");
    assert_eq!(
        store.value(Table::Agents, b"b").expect("readable"),
        Some(large.clone())
    );
    assert_eq!(store.value(Table::Agents, b"z").expect("readable"), None);
    let all = store.scan(Table::Agents, None, 10).expect("readable");
    let expected = [
        (b"a".to_vec(), b"1".to_vec()),
        (b"b".to_vec(), large),
        (b"c".to_vec(), Vec::new()),
    ];
    assert_eq!(all, expected);
    let rest = store.scan(Table::Agents, Some(b"a"), 1).expect("readable");
    assert_eq!(rest, expected[1..2]);

    // A value that shrinks leaves no parts behind, and one that is removed neither.
    store
        .commit(batch(&[
            (Table::Agents, b"b", Some(b"small")),
            (Table::Agents, b"c", None),
            (Table::Agents, b"a", Some(b"2")),
            (Table::Agents, b"a", Some(b"3")),
        ]))
        .expect("committed");
    let all = store.scan(Table::Agents, None, 10).expect("readable");
    let expected = [(b"a".to_vec(), b"3".to_vec()), (b"b".to_vec(), b"small".to_vec())];
    assert_eq!(all, expected);
}

#[test]
fn what_is_out_of_bounds_is_refused_and_the_store_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SledStore::open(&directory.path().join("store")).expect("a store");
    let long_key = vec![1; KEY_OCTETS_MAX + 1];
    let large = vec![1; VALUE_OCTETS_MAX + 1];
    for changes in [
        [(Table::Agents, &long_key[..], Some(&b"x"[..]))],
        [(Table::Agents, b"k", Some(&large[..]))],
    ] {
        assert!(store.commit(batch(&changes)).is_err());
    }
    store
        .commit(batch(&[(Table::Agents, b"k", Some(b"x"))]))
        .expect("committed");
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let store = SledStore::open(&path).expect("a store");
    let later = (FORMAT + 1).to_be_bytes();
    store
        .commit(batch(&[(Table::Meta, b"format", Some(&later))]))
        .expect("committed");
    drop(store);
    match SledStore::open(&path) {
        Err(StoreError::Newer { found, known }) => assert_eq!((found, known), (FORMAT + 1, FORMAT)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn damage_is_an_error_and_no_panic() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let store = SledStore::open(&path).expect("a store");
    for n in 0..200u32 {
        let value = [n.to_be_bytes(); 200].concat();
        store
            .commit(batch(&[(Table::Agents, &n.to_be_bytes(), Some(&value))]))
            .expect("committed");
    }
    drop(store);
    let db = path.join("db");
    let whole = std::fs::read(&db).expect("readable");
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..10 {
        let mut damaged = whole.clone();
        match random.bool() {
            true => damaged.truncate(random.usize(..whole.len())),
            false => damaged[random.usize(..whole.len())] ^= 1 << random.u8(..8),
        }
        std::fs::write(&db, damaged).expect("ours");
        // It opens or it does not; reading what is there is an answer or an error.
        if let Ok(store) = SledStore::open(&path) {
            let _ = store.scan(Table::Agents, None, 1000);
        }
    }
}

/// Where the child finds its directory.
const CHILD: &str = "FLOWTILLA_TEST_STORE";
/// Entries of each batch: small ones, and one in parts.
const ENTRIES: u32 = 20;

/// Not a test by itself: what [`a_kill_at_any_moment_loses_no_commit_and_splits_no_batch`] kills.
#[test]
#[ignore = "run by another test, as a process of its own"]
fn child_that_commits_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = SledStore::open(&PathBuf::from(path)).expect("a store");
    let mut round = last_round(&store).unwrap_or(0);
    loop {
        round += 1;
        store.commit(round_batch(round)).expect("committed");
        println!("committed {round}");
    }
}

fn round_batch(round: u64) -> Batch {
    let mut batch = Batch::default();
    for entry in 0..ENTRIES {
        let times = if entry == 7 {
            3000
        } else {
            1 + usize::try_from(round % 5).expect("small")
        };
        let value = round.to_be_bytes().repeat(times);
        batch.put(Table::Agents, entry.to_be_bytes(), value);
    }
    // One that comes and goes.
    match round.is_multiple_of(2) {
        true => batch.put(Table::Rollouts, *b"even", round.to_be_bytes()),
        false => batch.remove(Table::Rollouts, *b"even"),
    }
    batch
}

/// The round that the store holds, every entry of it and no other.
fn last_round(store: &SledStore) -> Option<u64> {
    let entries = store.scan(Table::Agents, None, 100).expect("readable");
    let (_, first) = entries.first()?;
    let round = u64::from_be_bytes(*first.first_chunk().expect("a number"));
    assert_eq!(entries.len(), usize::try_from(ENTRIES).expect("small"));
    for (key, value) in entries {
        assert!(
            value.chunks(8).all(|chunk| chunk == round.to_be_bytes()),
            "entry {key:?} is not of round {round}"
        );
    }
    let even = store.value(Table::Rollouts, b"even").expect("readable");
    let expected = round.is_multiple_of(2).then(|| round.to_be_bytes().to_vec());
    assert_eq!(even, expected, "round {round}");
    Some(round)
}

#[test]
fn a_kill_at_any_moment_loses_no_commit_and_splits_no_batch() {
    let cycles = if std::env::var("FLOWTILLA_SOAK").is_ok_and(|it| it == "1") {
        100
    } else {
        10
    };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("store");
    let mut rounds = 0;
    for cycle in 0..cycles {
        let wait = Duration::from_micros(random.u64(..200_000));
        let told = commit_and_kill(&path, wait);
        let store =
            SledStore::open(&path).unwrap_or_else(|error| panic!("seed {seed}, cycle {cycle}: {error}"));
        let held = last_round(&store).unwrap_or(0);
        assert!(
            held >= told.max(rounds),
            "seed {seed}, cycle {cycle}: {told} was committed, {held} is there"
        );
        rounds = held;
    }
    assert!(
        rounds > cycles,
        "seed {seed}: only {rounds} rounds in {cycles} cycles"
    );
    println!("{rounds} rounds in {cycles} kills");
}

/// Has a child commit, kills it `wait` after its first commit; tells the last one that it spoke of.
fn commit_and_kill(path: &Path, wait: Duration) -> u64 {
    let mut child: Child = Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "store::child_that_commits_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let (told, heard) = std::sync::mpsc::sync_channel(1);
    let reader = std::thread::spawn(move || {
        let mut last = 0;
        for line in out.lines().map_while(Result::ok) {
            if let Some(round) = line.split("committed ").nth(1).and_then(|it| it.parse().ok()) {
                last = round;
                let _ = told.try_send(()); // The first one is waited for.
            }
        }
        last
    });
    heard
        .recv_timeout(super::scene::PATIENCE)
        .expect("the child commits");
    // The moment of the kill is what the test is about.
    std::thread::sleep(wait);
    child.kill().expect("killed");
    child.wait().expect("ended");
    reader.join().expect("read to the end")
}
