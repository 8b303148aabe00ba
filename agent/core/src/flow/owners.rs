//! One copy of each owner, shared by all flows of a process.
//!
//! Bounded: at the bound, owners that no flow holds go first; if all are held, the pool starts anew and copies are made
//! again. Invariant: a shared owner never changes.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::owner::{Confidence, Owner, ProcessKey};

/// Most owners that are shared.
///
/// A host runs a few thousand processes. Half of it makes hosts with very many short-lived processes copy more; double
/// it, and the pool keeps 2 MB of the dead.
const SHARED_OWNERS_MAX: usize = 16_384;

#[derive(Debug)]
pub(super) struct Owners {
    shared: HashMap<(ProcessKey, Confidence), Arc<Owner>, FixedState>,
    nobody: Arc<Owner>,
}

impl Owners {
    pub(super) fn new(hasher: &FixedState) -> Self {
        Self {
            shared: HashMap::with_hasher(hasher.clone()),
            nobody: Arc::new(Owner::unknown(crate::owner::Unknown::NotSeen)),
        }
    }

    /// Nobody known.
    pub(super) fn nobody(&self) -> Arc<Owner> {
        Arc::clone(&self.nobody)
    }

    /// The one copy of `owner`.
    pub(super) fn share(&mut self, owner: &Owner) -> Arc<Owner> {
        let Some(process) = &owner.process else {
            return if *owner == *self.nobody {
                self.nobody()
            } else {
                Arc::new(owner.clone())
            };
        };
        let key = (process.key, owner.confidence);
        if let Some(held) = self.shared.get(&key)
            && **held == *owner
        {
            return Arc::clone(held);
        }
        if self.shared.len() >= SHARED_OWNERS_MAX {
            self.shared.retain(|_, owner| Arc::strong_count(owner) > 1);
            if self.shared.len() >= SHARED_OWNERS_MAX {
                self.shared.clear();
            }
        }
        let owner = Arc::new(owner.clone());
        self.shared.insert(key, Arc::clone(&owner));
        owner
    }
}
