//! Source ids: which number names an agent to ntopng.
//!
//! Invariants: a number belongs to one agent, for ever; an agent keeps its number for life, whatever it prefers later.

use std::collections::BTreeMap;

use flowtilla_proto::ids::SourceId;
use flowtilla_proto::spiffe::MemberName;
use sha2::{Digest, Sha256};

/// How many numbers are tried that depend on the agent alone, before the next free one is taken.
///
/// With 65,536 agents the second already fails once in 4 × 10⁹ cases. It only has to end.
const TRIES_MAX: u32 = 16;

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

    /// The agent's number, and whether it is given at this moment. `epoch` is mixed into numbers that nobody preferred, so that
    /// a controller restored from a backup does not draw the ones again that it has forgotten.
    pub(super) fn allot(&mut self, agent: &MemberName, preferred: SourceId, epoch: u64) -> (SourceId, bool) {
        if let Some(id) = self.of(agent) {
            return (id, false);
        }
        let drawn = (0..TRIES_MAX).map(|attempt| draw(agent, epoch, attempt));
        let mut tries = std::iter::once(preferred).chain(drawn);
        let id = tries
            .find(|id| !self.by_number.contains_key(id))
            .unwrap_or_else(|| {
                let mut number = preferred.number();
                loop {
                    number = number.wrapping_add(1);
                    // Ends: agents are far fewer than numbers.
                    match SourceId::new(number) {
                        Some(id) if !self.by_number.contains_key(&id) => break id,
                        _ => {}
                    }
                }
            });
        self.restore(id, agent.clone());
        (id, true)
    }
}

fn draw(agent: &MemberName, epoch: u64, attempt: u32) -> SourceId {
    let mut hash = Sha256::new();
    hash.update(epoch.to_be_bytes());
    hash.update(attempt.to_be_bytes());
    hash.update(agent.as_str());
    let digest = hash.finalize();
    SourceId::from_hash(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]))
}
