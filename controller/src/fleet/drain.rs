//! Agents that are drained: they keep their policy and their collectors, capture nothing, and send what waits.
//!
//! That an agent is to be drained stands in its row, and what it is to have follows from it ([`Fleet::settle`]): no rollout holds it
//! up, and none undoes it. When it is done, [`Agent::drain_state`](super::agent::Agent::drain_state) tells from heartbeats.

use std::sync::Arc;

use flowtilla_proto::spiffe::MemberName;

use super::content::Content;
use super::{ChangeRefused, Fleet, Now};
use crate::store::Table;

impl Fleet {
    /// Agents are to capture nothing from here on, and to send what waits; or to go on.
    ///
    /// # Errors
    ///
    /// [`ChangeRefused::NoAgents`]: nothing has changed.
    pub fn drain(&mut self, ids: &[MemberName], drain: bool, now: Now) -> Result<(), ChangeRefused> {
        let known = |id: &&MemberName| self.agents.get(*id).is_some_and(|agent| !agent.revoked);
        let strange: Vec<String> = ids
            .iter()
            .filter(|id| !known(id))
            .map(ToString::to_string)
            .collect();
        if !strange.is_empty() {
            return Err(ChangeRefused::NoAgents(strange.join(", ")));
        }
        for id in ids {
            if let Some(agent) = self.agents.get_mut(id).filter(|agent| agent.drain != drain) {
                agent.drain = drain;
                agent.idle_beats = 0;
                self.dirty.insert(id.clone());
                self.settle(id, now);
            }
        }
        Ok(())
    }

    /// A content as it is for an agent that is drained, or is not.
    pub(super) fn drained(&mut self, content: Arc<Content>, drain: bool) -> Arc<Content> {
        let Some(other) = content.drained(drain) else {
            return content;
        };
        let digest = other.digest;
        let other = self.contents.keep(other);
        if other.digest == digest {
            self.batch.put(Table::Contents, digest, other.octets.clone());
        }
        other
    }
}
