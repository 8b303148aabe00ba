//! A store in memory, which can fail and can be looked into.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::store::{Batch, Entry, Store, StoreError, Table};

type Rows = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

#[derive(Default)]
pub(crate) struct Memory {
    rows: Mutex<Rows>,
    pub(crate) failing: AtomicBool,
    /// There is little room: enough for what is under way.
    pub(crate) full: AtomicBool,
    pub(crate) commits: AtomicU64,
}

impl Memory {
    /// Another store with the same rows.
    pub(crate) fn copy(&self) -> Self {
        Self {
            rows: Mutex::new(self.rows.lock().expect("rows").clone()),
            ..Self::default()
        }
    }
}

impl Store for Memory {
    fn value(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .rows
            .lock()
            .expect("rows")
            .get(&(table, key.to_vec()))
            .cloned())
    }

    fn scan(&self, table: Table, after: Option<&[u8]>, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let rows = self.rows.lock().expect("rows");
        let entries = rows
            .iter()
            .filter(|((of, key), _)| *of == table && after.is_none_or(|after| key.as_slice() > after))
            .take(limit)
            .map(|((_, key), value)| (key.clone(), value.clone()));
        Ok(entries.collect())
    }

    fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if self.failing.load(Ordering::SeqCst) {
            return Err(StoreError::Failed("the test's disk has failed".into()));
        }
        self.commits.fetch_add(1, Ordering::SeqCst);
        let mut rows = self.rows.lock().expect("rows");
        for (table, key, value) in batch.0 {
            match value {
                Some(value) => rows.insert((table, key), value),
                None => rows.remove(&(table, key)),
            };
        }
        Ok(())
    }

    fn room(&self) -> Result<(), StoreError> {
        match self.full.load(Ordering::SeqCst) {
            true => Err(StoreError::Full {
                path: "memory".into(),
                free: 1,
                needed: 2,
            }),
            false => Ok(()),
        }
    }
}
