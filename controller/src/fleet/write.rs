//! What has changed, as rows of the store: at once what nobody else remembers, at a sweep what agents say again.
//!
//! In: marks of what is dirty. Out: one [`Batch`] a turn ([`Fleet::take_batch`]), which whoever drives the fleet writes before it speaks.

use std::collections::BTreeMap;

use prost::Message;

use super::Fleet;
use super::row::{HoldingsRow, META_KEY, bucket};
use crate::store::counter::Counter;
use crate::store::{Batch, Table};

impl Fleet {
    /// The last batch is about to be taken: nothing waits for a later one.
    pub fn handle_stop(&mut self) {
        self.write_what_waits();
    }

    /// What may wait waits no longer.
    pub(super) fn write_what_waits(&mut self) {
        self.dirty.append(&mut self.late);
        self.holdings.append(&mut self.holdings_late);
        self.rollouts.write_what_waits();
    }

    /// Rows that have changed; none while the fleet stands still. Nothing that [`Self::poll_speech`] gives may be said before they
    /// are on the disk.
    pub fn take_batch(&mut self) -> Batch {
        if self.still {
            return Batch::default();
        }
        for id in std::mem::take(&mut self.dirty) {
            if let Some(agent) = self.agents.get(&id) {
                self.batch.put(Table::Agents, id.as_str(), agent.to_row());
            }
        }
        self.put_holdings();
        self.put_members();
        if std::mem::take(&mut self.meta_dirty) {
            self.batch.put(Table::Meta, META_KEY, self.meta.encode_to_vec());
        }
        let (now, kept) = (self.numbers, self.numbers_kept);
        for (counter, last, kept) in [
            (Counter::Version, now.version, kept.version),
            (Counter::Revision, now.revision, kept.revision),
            (Counter::Rollout, now.rollout, kept.rollout),
            (Counter::SourceId, now.source, kept.source),
        ] {
            if last != kept {
                counter.note(&mut self.batch, last);
            }
        }
        self.numbers_kept = now;
        std::mem::take(&mut self.batch)
    }

    fn put_holdings(&mut self) {
        let due = std::mem::take(&mut self.holdings);
        if due.is_empty() {
            return;
        }
        let empty = |bucket| (bucket, HoldingsRow::default());
        let mut rows: BTreeMap<u8, HoldingsRow> = due.into_iter().map(empty).collect();
        for (id, agent) in &self.agents {
            if let Some(row) = rows.get_mut(&bucket(id.as_str())) {
                row.agents.push(agent.holding(id.as_str()));
            }
        }
        for (bucket, row) in rows {
            match row.agents.is_empty() {
                true => self.batch.remove(Table::Holdings, [bucket]),
                false => self.batch.put(Table::Holdings, [bucket], row.encode_to_vec()),
            }
        }
    }
}
