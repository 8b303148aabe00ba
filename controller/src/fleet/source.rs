//! Source ids: which number names an agent to ntopng.
//!
//! Invariants: a number belongs to one agent, for ever; an agent keeps its number for life, whatever it prefers later.

use std::collections::BTreeMap;

use flowtilla_proto::ids::SourceId;
use flowtilla_proto::spiffe::MemberName;

/// Numbers that were given.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceIds {
    by_number: BTreeMap<SourceId, MemberName>,
    by_agent: BTreeMap<MemberName, SourceId>,
}

impl SourceIds {
    /// One that was given before.
    pub(super) fn restore(&mut self, id: SourceId, agent: MemberName) {
        self.by_number.insert(id, agent.clone());
        self.by_agent.insert(agent, id);
    }

    pub(super) fn of(&self, agent: &MemberName) -> Option<SourceId> {
        self.by_agent.get(agent).copied()
    }

    /// The agent's number, and whether it is given at this moment. `drawn` counts the numbers that nobody preferred, over all
    /// time: a restore from a backup makes it jump, so that those forgotten are not drawn again.
    pub(super) fn allot(
        &mut self,
        agent: &MemberName,
        preferred: SourceId,
        drawn: &mut u64,
    ) -> (SourceId, bool) {
        if let Some(id) = self.of(agent) {
            return (id, false);
        }
        let mut id = Some(preferred);
        // Ends: agents are far fewer than numbers.
        let id = loop {
            match id {
                Some(id) if !self.by_number.contains_key(&id) => break id,
                _ => {
                    *drawn += 1;
                    id = SourceId::new(spread(*drawn));
                }
            }
        };
        self.restore(id, agent.clone());
        (id, true)
    }
}

/// A number for each count below 2^32, no two the same, far from one another: hosts that prefer small numbers keep them.
fn spread(count: u64) -> u32 {
    // Odd, so that multiplying is one to one; the low 32 bits are what is wanted.
    #[expect(clippy::cast_possible_truncation, reason = "one to one within 32 bits")]
    let low = count as u32;
    low.wrapping_mul(0x9e37_79b1)
}
