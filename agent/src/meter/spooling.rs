//! Records on their way into the spool: gathered into values, numbered, appended.

use std::sync::Arc;

use flowtilla_agent_core::flow::checkpoint::Checkpoint;
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::ledger::Ledger;
use flowtilla_agent_core::loss::{Drops, KernelLaw, LeftOutSum, RecordLaw};
use flowtilla_agent_core::spool::value::{Builder, Pushed};

use crate::spool::Spool;

/// Records on their way into the spool.
pub(crate) struct Spooling {
    spool: Arc<Spool>,
    builder: Builder,
    /// Sequence of the next value's first record.
    next: u64,
    /// As this run began.
    ledger: Ledger,
}

impl Spooling {
    /// Goes on after the newest value of the spool, which nobody else appends to.
    pub(crate) fn new(spool: Arc<Spool>, ledger: Ledger) -> Self {
        Self {
            ledger,
            next: spool.newest() + 1,
            builder: Builder::default(),
            spool,
        }
    }

    /// Adds a record; `false`: no value can hold it.
    pub(super) fn add(&mut self, record: &FlowRecord) -> bool {
        let mut pushed = self.builder.push(record);
        if pushed == Pushed::Full {
            self.seal();
            pushed = self.builder.push(record);
        }
        pushed == Pushed::Added
    }

    /// Hands everything to the spool.
    pub(super) fn seal(&mut self) {
        while let Some(value) = self.builder.seal(self.next) {
            self.next = value.last() + 1;
            self.spool.append(value);
        }
    }

    /// Records that were given a number.
    #[cfg(test)]
    pub(super) fn given(&self) -> u64 {
        self.next - 1
    }

    /// Whether it is time for a checkpoint.
    pub(super) fn checkpoint_wanted(&self) -> bool {
        self.spool.checkpoint_wanted()
    }

    /// Keeps what was reported in the records so far, all of which were added and sealed.
    pub(super) fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        self.spool
            .checkpoint(self.next - 1, checkpoint.to_octets().into());
    }

    /// Records were left out: the next checkpoint is about them too.
    pub(super) fn left_out(&self) {
        self.spool.want_checkpoint();
    }

    /// Keeps how laws 1 and 3 stand over all runs, and what the kernel left out.
    pub(super) fn keep_ledger(
        &self,
        law: &KernelLaw,
        drops: &Drops,
        records: &RecordLaw,
        left_out: &LeftOutSum,
    ) {
        match serde_json::to_vec(&self.ledger.with(law, drops, records, left_out)) {
            Ok(octets) => self.spool.keep_ledger(octets.into()),
            Err(error) => tracing::error!(%error, "the ledger cannot be written down"),
        }
    }
}
