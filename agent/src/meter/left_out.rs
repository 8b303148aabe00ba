//! What the policy leaves out, counted exactly, and law 3.
//!
//! In: each verdict with its record, and the table. Out: the sums, from the start of the agent on.

use flowtilla_agent_core::filter::Verdict;
use flowtilla_agent_core::flow::FlowTable;
use flowtilla_agent_core::flow::record::FlowRecord;
use flowtilla_agent_core::loss::{Aside, RecordLaw};

/// The sums of what was left out.
#[derive(Default)]
pub(super) struct LeftOut {
    filtered: Aside,
    sampled_out: Aside,
    /// Records of tables that were replaced.
    past_records: u64,
    /// Whether anything was left out since it was last asked.
    new: bool,
}

impl LeftOut {
    /// Counts a record by its verdict; whether it is kept.
    pub(super) fn count(&mut self, verdict: Verdict, record: &FlowRecord) -> bool {
        let aside = match verdict {
            Verdict::Kept => return true,
            Verdict::Filtered => &mut self.filtered,
            Verdict::SampledOut => &mut self.sampled_out,
        };
        aside.add(record);
        self.new = true;
        false
    }

    /// Whether anything was left out since this was last asked.
    pub(super) fn is_new(&mut self) -> bool {
        std::mem::take(&mut self.new)
    }

    /// Another table takes the place of this one, whose records were all handed on.
    pub(super) fn table_goes(&mut self, table: &FlowTable) {
        self.past_records += table.made();
    }

    /// Law 3, with `made` records handed on and `waiting` of those that were polled on their way.
    pub(super) fn law(&self, table: &FlowTable, made: u64, waiting: usize) -> RecordLaw {
        RecordLaw {
            records: self.past_records + table.made(),
            made,
            waiting: (waiting + table.unpolled()) as u64,
            filtered: self.filtered,
            sampled_out: self.sampled_out,
        }
    }
}
