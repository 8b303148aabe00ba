//! What is known about cgroups: the container, and whose users its processes see. Bounded.
//!
//! In: paths, and what processes that were read see. Out: containers, and the [`Scope`] of processes that nobody looked at
//! in time. Asks nobody itself.

use lru::LruCache;

use super::ask::Scope;
use super::cgroup;
use super::container::ContainerFacts;
use crate::owner::Container;

/// Where an owner on this host is, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whereabouts<'a> {
    /// Path of its cgroup from the root of the cgroup2 file system.
    pub cgroup: Option<&'a str>,
    /// What a runtime told about its container.
    pub container: Option<&'a ContainerFacts>,
    /// Whether it is in a container that no runtime told of.
    pub unnamed: bool,
}

/// Whether the path of a cgroup is known.
#[derive(Clone, Debug)]
pub(super) enum CgroupPath {
    Asked,
    Absent,
    Known {
        path: Box<str>,
        container: Option<Container>,
    },
}

impl CgroupPath {
    pub(super) fn known(path: &str) -> Self {
        Self::Known {
            path: path.into(),
            container: cgroup::container(path),
        }
    }
}

#[derive(Debug)]
struct Entry {
    path: CgroupPath,
    /// What the newest of its processes that was read sees, when that is not the host's.
    other: Option<Scope>,
    /// Whether it was removed: its last records are still to be named.
    gone: bool,
}

pub(super) struct Cgroups(LruCache<u64, Entry>);

impl Cgroups {
    pub(super) fn new(max: usize) -> Self {
        Self(LruCache::new(super::at_least_one(max)))
    }

    /// Remembers that it was removed.
    pub(super) fn gone(&mut self, id: u64) {
        if let Some(entry) = self.0.peek_mut(&id) {
            entry.gone = true;
        }
    }

    /// Every cgroup that is there and whose path is known.
    pub(super) fn known(&self) -> impl Iterator<Item = (u64, &str, Option<&Container>)> {
        let there = self.0.iter().filter(|(_, entry)| !entry.gone);
        there.filter_map(|(&id, entry)| match &entry.path {
            CgroupPath::Known { path, container } => Some((id, &**path, container.as_ref())),
            CgroupPath::Asked | CgroupPath::Absent => None,
        })
    }

    /// The path and the container, without a change of what was used last.
    pub(super) fn peek(&self, id: u64) -> Option<(&str, Option<&Container>)> {
        match &self.0.peek(&id)?.path {
            CgroupPath::Known { path, container } => Some((path, container.as_ref())),
            CgroupPath::Asked | CgroupPath::Absent => None,
        }
    }

    pub(super) fn path(&mut self, id: u64) -> Option<&CgroupPath> {
        self.0.get(&id).map(|entry| &entry.path)
    }

    pub(super) fn know(&mut self, id: u64, path: CgroupPath) {
        let other = self.0.peek(&id).and_then(|entry| entry.other);
        let gone = self.0.peek(&id).is_some_and(|entry| entry.gone);
        self.0.put(id, Entry { path, other, gone });
    }

    /// Remembers what a process of this cgroup sees, for those that are gone before anyone looks.
    pub(super) fn saw(&mut self, id: u64, scope: Scope) {
        if scope != Scope::Host
            && let Some(entry) = self.0.peek_mut(&id)
        {
            entry.other = Some(scope);
        }
    }

    /// What a process that nobody looked at in time sees, by its parent in the same cgroup, or by the others there;
    /// `None`: open.
    pub(super) fn scope(&self, id: u64, of_parent: Option<Scope>) -> Option<Scope> {
        let entry = self.0.peek(&id)?;
        match &entry.path {
            CgroupPath::Asked | CgroupPath::Absent => None,
            // A runtime that has entered the cgroup and not yet the root file system is no witness.
            CgroupPath::Known {
                container: Some(_), ..
            } => of_parent.filter(|&scope| scope != Scope::Host).or(entry.other),
            // Where a process with a list of its own was seen, others may have it too.
            CgroupPath::Known { container: None, .. } => {
                of_parent.or_else(|| entry.other.is_none().then_some(Scope::Host))
            }
        }
    }
}
