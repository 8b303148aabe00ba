//! What was committed is there: after a store was closed and opened again, and after its process was killed.
//!
//! Generated histories against a map, by seed. `FLOWTILLA_SOAK=1` runs all of them, else a tenth.

use std::collections::BTreeMap;

use super::*;

/// How often a store is opened again.
const REOPENS: u64 = 2_000;
/// How often a process is killed.
const KILLS: u64 = 600;
/// Keys that are written again and again in each table, as the rows of a small fleet are.
const KEYS: u64 = 40;

type Model = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

struct Writer {
    rng: fastrand::Rng,
    model: Model,
}

impl Writer {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self {
            rng: fastrand::Rng::with_seed(seed),
            model: Model::new(),
        }
    }

    /// A batch as the fleet writes them: some rows, a counter, now and then a revision in many parts or something that goes.
    fn commit(&mut self, store: &SledStore) {
        let mut batch = Batch::default();
        for _ in 0..self.rng.usize(1..12) {
            let table = Table::ALL[self.rng.usize(..Table::ALL.len())];
            let key = self.rng.u64(..KEYS).to_be_bytes();
            if self.rng.u8(..8) == 0 {
                batch.remove(table, key);
                self.model.remove(&(table, key.to_vec()));
                continue;
            }
            let length = match self.rng.u8(..40) {
                0 => self.rng.usize(..200_000),
                1..4 => self.rng.usize(..PART_OCTETS * 2),
                _ => self.rng.usize(..300),
            };
            let value = vec![self.rng.u8(..); length];
            self.model.insert((table, key.to_vec()), value.clone());
            batch.put(table, key, value);
        }
        store.commit(batch).expect("committed");
    }

    #[track_caller]
    fn check(&self, store: &SledStore, round: u64) {
        let mut found = Model::new();
        let taken = store.snapshot(|table, key, value| {
            // The store's own.
            if (table, key.as_slice()) != (Table::Meta, FORMAT_KEY) {
                found.insert((table, key), value);
            }
            Ok::<_, StoreError>(())
        });
        taken.expect("it can be read");
        let is_lost = |key: &&(Table, Vec<u8>)| found.get(*key) != self.model.get(*key);
        let lost: Vec<_> = self.model.keys().filter(is_lost).take(5).collect();
        assert!(
            found == self.model,
            "round {round}: {} entries, {} were committed; not as committed: {lost:?}",
            found.len(),
            self.model.len()
        );
    }
}

fn rounds(all: u64) -> u64 {
    match std::env::var("FLOWTILLA_SOAK").is_ok_and(|value| value == "1") {
        true => all,
        false => all / 10,
    }
}

/// What a process leaves on the disk that is killed in this moment.
fn left_behind(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for entry in fs::read_dir(from).expect("the store's") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            left_behind(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

#[test]
fn what_was_committed_is_there_after_each_reopen() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = Writer::new(1);
    for round in 0..rounds(REOPENS) {
        let store = SledStore::open(directory.path()).expect("opened");
        writer.check(&store, round);
        for _ in 0..writer.rng.u32(..6) {
            writer.commit(&store);
        }
    }
}

#[test]
fn what_was_committed_is_there_after_each_kill() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut writer = Writer::new(2);
    let at = |round: u64| directory.path().join(round.to_string());
    let mut store = SledStore::open(&at(0)).expect("opened");
    for round in 1..=rounds(KILLS) {
        for _ in 0..writer.rng.u32(..12) {
            writer.commit(&store);
        }
        // Nothing writes: what is copied is what the killed one's successor would find.
        left_behind(&at(round - 1), &at(round));
        if round % 3 == 0 {
            // A power failure has torn them, too.
            remove_what_sled_can_make_anew(&at(round)).expect("removed");
        }
        drop(store);
        fs::remove_dir_all(at(round - 1)).expect("removed");
        store = SledStore::open(&at(round)).expect("opened");
        writer.check(&store, round);
    }
}
