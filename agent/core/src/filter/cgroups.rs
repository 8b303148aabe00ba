//! Which cgroups the kernel is to leave out by itself.
//!
//! In: a [`Filter`], what [`Naming`] knows of cgroups and containers, and cgroups that are gone. Out: [`Change`]s for the
//! kernel's map. Reads nothing.
//!
//! Every cgroup that is known and that a whole rule matches is in the set, but where one above it is. So a container is in
//! it from the moment that its cgroup and what its runtime says of it are both known, by whichever way; what it does before
//! is left out record by record. Invariants: the kernel's map holds what the set holds, after the changes; nothing is in the
//! set that the filter would not leave out. What was told of a container may be forgotten here sooner than the container
//! ends: its cgroup stays in the set then until the rules change.
//! Bound: [`LEFT_OUT_MAX`]. What finds no room, or lies deeper than the kernel looks, is left out record by record.

use std::collections::HashMap;

use flowtilla_abi::{LEFT_OUT_DEPTHS, LEFT_OUT_MAX};

use super::{Filter, is_in};
use crate::enrich::{Naming, Whereabouts};

/// What is to be done in the kernel's map, by the id of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Leave it out, with all below it.
    Add(u64),
    /// Do so no longer.
    Remove(u64),
}

/// The cgroups that the kernel leaves out.
#[derive(Debug)]
pub struct CgroupsLeftOut {
    /// Whether paths begin at the root of the hierarchy, not at that of a cgroup namespace.
    from_root: bool,
    by_id: HashMap<u64, Box<str>>,
    by_path: HashMap<Box<str>, u64>,
    /// How many the newest round found no room for.
    beyond: u64,
}

/// Whether the rules are those of the round before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// They are: what cannot be judged any more stays.
    Same,
    /// They are not: what cannot be judged by them is not left out.
    Changed,
}

impl CgroupsLeftOut {
    /// None yet. `from_root`: paths of cgroups begin at the root of the hierarchy, because the agent is in no cgroup
    /// namespace of its own.
    #[must_use]
    pub fn new(from_root: bool) -> Self {
        Self {
            from_root,
            by_id: HashMap::new(),
            by_path: HashMap::new(),
            beyond: 0,
        }
    }

    /// What is to change, from what is known at this moment. `None`: every flow is kept.
    #[must_use]
    pub fn plan(&mut self, filter: Option<&Filter>, naming: &Naming, rules: Rules) -> Vec<Change> {
        self.beyond = 0;
        let wholes = filter.map_or(&[][..], |filter| &filter.wholes);
        if wholes.is_empty() {
            return self.clear();
        }
        let mut changes = Vec::new();
        let decided = |at: Option<Whereabouts<'_>>| match at {
            Some(at) if is_in(wholes, &at) => true,
            Some(at) if !at.unnamed => false,
            _ => rules == Rules::Same,
        };
        let over: Vec<u64> = self
            .by_id
            .keys()
            .copied()
            .filter(|&id| !decided(naming.place_of(id)))
            .collect();
        for id in over {
            changes.extend(self.remove(id));
        }
        let mut wanted: Vec<(&str, u64)> = naming
            .places()
            .filter(|(id, at)| !self.by_id.contains_key(id) && is_in(wholes, at))
            .filter_map(|(id, at)| Some((at.cgroup?, id)))
            .collect();
        // What is above comes first, and saves what is below it a place.
        wanted.sort_unstable();
        for (path, id) in wanted {
            if self.is_covered(path) {
                continue;
            }
            if self.by_id.len() >= LEFT_OUT_MAX || depth(path) >= LEFT_OUT_DEPTHS {
                self.beyond += 1;
                continue;
            }
            self.by_path.insert(path.into(), id);
            self.by_id.insert(id, path.into());
            changes.push(Change::Add(id));
        }
        changes
    }

    /// A cgroup is not there any more; `None`: it was none of these.
    pub fn remove(&mut self, id: u64) -> Option<Change> {
        let path = self.by_id.remove(&id)?;
        self.by_path.remove(&path);
        Some(Change::Remove(id))
    }

    /// Begins anew with nothing: the kernel side is let go, or what it told was lost.
    pub fn clear(&mut self) -> Vec<Change> {
        self.by_path.clear();
        self.by_id.drain().map(|(id, _)| Change::Remove(id)).collect()
    }

    /// Depths below the root at which there are cgroups, bit by bit; every bit where paths do not tell.
    #[must_use]
    pub fn depths(&self) -> u32 {
        let bit = |path: &str| match self.from_root {
            true => 1_u32.checked_shl(depth(path)).unwrap_or(0),
            false => u32::MAX,
        };
        self.by_path.keys().fold(0, |bits, path| bits | bit(path))
    }

    /// The path of one; `None`: it is not there, or its path does not begin at the root.
    #[must_use]
    pub fn path(&self, id: u64) -> Option<&str> {
        self.by_id.get(&id).filter(|_| self.from_root).map(|path| &**path)
    }

    /// Each with its path from the root; none where paths do not tell.
    pub fn paths(&self) -> impl Iterator<Item = (u64, &str)> {
        let all = self.by_id.iter().filter(|_| self.from_root);
        all.map(|(&id, path)| (id, &**path))
    }

    /// How many there are, at most [`LEFT_OUT_MAX`].
    #[must_use]
    pub fn count(&self) -> u64 {
        self.by_id.len() as u64
    }

    /// How many more there would be with more room.
    #[must_use]
    pub fn beyond(&self) -> u64 {
        self.beyond
    }

    /// Whether one at or above this path is in the set.
    fn is_covered(&self, path: &str) -> bool {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        ends.into_iter()
            .any(|end| self.by_path.contains_key(&path[..end]))
    }
}

/// Levels below where the path begins.
fn depth(path: &str) -> u32 {
    let parts = path.split('/').filter(|part| !part.is_empty());
    u32::try_from(parts.count()).unwrap_or(u32::MAX)
}
