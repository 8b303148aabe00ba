//! A fleet whose disk is full: it stands still, and is there.
//!
//! Nothing is decided that would have to be on the disk before it is said. No change of an operator's is taken, no rollout goes on,
//! nobody is given another content or a number, and an agent that never was here is sent away. Everything else goes on: streams
//! stay, heartbeats and acks are taken, lists of members, questions and `top` are answered. What changes of agents is marked, as
//! ever, and written when there is room: the marks are sets, which the number of agents bounds.
//!
//! Whoever drives the fleet looks whether there is room ([`Store::room`](crate::store::Store::room)), and tells it.

use flowtilla_proto::spiffe::MemberName;

use super::{Fleet, Now};

impl Fleet {
    /// Whether there is no room on the disk.
    #[must_use]
    pub fn stands_still(&self) -> bool {
        self.still
    }

    /// There is no room. Whether that is news.
    ///
    /// Every row that was made must have been written: to be called between two batches.
    pub fn stand_still(&mut self) -> bool {
        !std::mem::replace(&mut self.still, true)
    }

    /// There is room. Whether that is news: then every agent gets what it is to have by now.
    pub fn go_on(&mut self, now: Now) -> bool {
        if !std::mem::replace(&mut self.still, false) {
            return false;
        }
        let ids: Vec<MemberName> = self.agents.keys().cloned().collect();
        for id in &ids {
            self.settle(id, now);
            self.reconcile(id, now);
            self.name_shortly(id);
        }
        self.rollouts.touch();
        true
    }
}
