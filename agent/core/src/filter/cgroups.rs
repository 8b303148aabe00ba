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

#[cfg(test)]
mod tests {
    use flowtilla_proto::policy::Policy;
    use flowtilla_proto::wire;

    use super::*;
    use crate::enrich::NamingOptions;
    use crate::enrich::container::{ContainerFacts, ContainerId, ContainerNews};
    use crate::observe::NameObservation;
    use crate::policy::Filtering;

    #[test]
    fn a_container_is_left_out_once_its_cgroup_and_its_name_are_known_in_either_order() {
        let filter = excluding(&["web-*"], &[]);
        for name_first in [false, true] {
            let mut naming = naming(&[]);
            let mut set = CgroupsLeftOut::new(true);
            for step in [name_first, !name_first] {
                assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [], "{name_first}");
                match step {
                    true => tell(&mut naming, 1, "web-1"),
                    false => made(&mut naming, 10, &path(1)),
                }
                assert!(naming.take_places_changed());
            }
            assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [Change::Add(10)]);
            assert_eq!((set.count(), set.depths()), (1, 1 << 2));
            assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), []);
        }
    }

    #[test]
    fn what_is_below_a_cgroup_needs_no_place_of_its_own() {
        let filter = excluding(&["web"], &[]);
        let inner = format!("{}/init.scope", path(1));
        let mut naming = naming(&[(11, &inner), (10, &path(1)), (12, &path(2))]);
        tell(&mut naming, 1, "web");
        let mut set = CgroupsLeftOut::new(true);
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [Change::Add(10)]);
    }

    #[test]
    fn rules_of_cgroups_need_no_container() {
        let filter = excluding(&[], &["/system.slice/backup.service", "/x"]);
        let naming = naming(&[
            (10, "/system.slice/backup.service"),
            (11, "/system.slice/backup.service/a"),
            (12, "/system.slice"),
            (13, "/xy"),
            (14, "/x/y/z"),
        ]);
        let mut set = CgroupsLeftOut::new(true);
        assert_eq!(
            set.plan(Some(&filter), &naming, Rules::Same),
            [Change::Add(10), Change::Add(14)]
        );
        assert_eq!(set.depths(), 1 << 2 | 1 << 3);
    }

    #[test]
    fn a_change_of_rules_takes_back_what_they_do_not_leave_out() {
        let mut naming = naming(&[(10, &path(1)), (11, &path(2)), (12, &path(3))]);
        (1..=2).for_each(|n| tell(&mut naming, n, &format!("web-{n}")));
        let mut set = CgroupsLeftOut::new(true);
        let first = set.plan(Some(&excluding(&["web-*"], &[])), &naming, Rules::Changed);
        assert_eq!(first, [Change::Add(10), Change::Add(11)]);
        let second = set.plan(Some(&excluding(&["web-2"], &[])), &naming, Rules::Changed);
        assert_eq!(second, [Change::Remove(10)]);
        // No filter, and one without such a rule.
        assert_eq!(set.plan(None, &naming, Rules::Changed), [Change::Remove(11)]);
        assert_eq!((set.count(), set.depths()), (0, 0));
    }

    #[test]
    fn a_rename_counts_and_what_was_forgotten_stays_until_the_rules_change() {
        let filter = excluding(&["web"], &[]);
        let mut naming = naming(&[(10, &path(1))]);
        tell(&mut naming, 1, "web");
        let mut set = CgroupsLeftOut::new(true);
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [Change::Add(10)]);
        tell(&mut naming, 1, "shop");
        assert_eq!(
            set.plan(Some(&filter), &naming, Rules::Same),
            [Change::Remove(10)]
        );
        tell(&mut naming, 1, "web");
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [Change::Add(10)]);
        for forgotten in [
            naming_without_runtime(&[(10, &path(1))]),
            super::tests::naming(&[]),
        ] {
            assert_eq!(set.plan(Some(&filter), &forgotten, Rules::Same), []);
        }
        let forgotten = super::tests::naming(&[]);
        assert_eq!(
            set.plan(Some(&filter), &forgotten, Rules::Changed),
            [Change::Remove(10)]
        );
    }

    #[test]
    fn a_cgroup_that_is_gone_is_not_left_out_again_and_its_successor_is() {
        let filter = excluding(&[], &["/x.service"]);
        let mut naming = naming(&[(10, "/x.service")]);
        let mut set = CgroupsLeftOut::new(true);
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [Change::Add(10)]);
        made(&mut naming, 11, "/x.service");
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), []);
        naming.learn(&NameObservation::CgroupGone { id: 10 });
        assert_eq!((set.remove(10), set.remove(10)), (Some(Change::Remove(10)), None));
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [Change::Add(11)]);
    }

    #[test]
    fn places_are_bounded_and_what_finds_none_is_counted() {
        let filter = excluding(&[], &["/all"]);
        let cgroups: Vec<String> = (0..LEFT_OUT_MAX + 5).map(|n| format!("/all/{n}")).collect();
        let mut naming = naming(&[]);
        for (id, path) in (1..).zip(&cgroups) {
            made(&mut naming, id, path);
        }
        let mut set = CgroupsLeftOut::new(true);
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same).len(), LEFT_OUT_MAX);
        assert_eq!((set.count(), set.beyond()), (LEFT_OUT_MAX as u64, 5));
        assert!(
            set.remove(set.by_id.keys().copied().next().expect("many"))
                .is_some()
        );
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same).len(), 1);
        // Deeper than the kernel looks.
        let deep = "/all".to_owned() + &"/d".repeat(LEFT_OUT_DEPTHS as usize);
        let naming = super::tests::naming(&[(1, &deep)]);
        let mut set = CgroupsLeftOut::new(true);
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), []);
        assert_eq!(set.beyond(), 1);
    }

    #[test]
    fn where_paths_do_not_begin_at_the_root_the_kernel_looks_at_every_depth() {
        let filter = excluding(&["web"], &[]);
        let mut naming = naming(&[(10, &format!("/../{}", id_text(1)))]);
        tell(&mut naming, 1, "web");
        let mut set = CgroupsLeftOut::new(false);
        assert_eq!(set.depths(), 0);
        assert_eq!(set.plan(Some(&filter), &naming, Rules::Same), [Change::Add(10)]);
        assert_eq!((set.depths(), set.path(10)), (u32::MAX, None));
    }

    /// Over any history the set is what the newest rules leave out of what is known and there, or is below one of it.
    #[test]
    fn the_set_follows_the_filter_whatever_happens() {
        for seed in 0..200_u64 {
            let mut state = seed;
            let mut next = |below: u64| {
                state = super::super::mixed(state);
                state % below
            };
            let (mut naming, mut set) = (naming(&[]), CgroupsLeftOut::new(true));
            let mut names = [None; 6];
            let mut there: HashMap<u64, u64> = HashMap::new();
            let mut wanted = "web-*";
            for id in 100..160_u64 {
                let n = next(6);
                let mut rules = Rules::Same;
                match next(5) {
                    0 => {
                        made(&mut naming, id, &path(n));
                        if let Some(former) = there.insert(n, id) {
                            naming.learn(&NameObservation::CgroupGone { id: former });
                            let _ = set.remove(former);
                        }
                    }
                    1 => {
                        if let Some(former) = there.remove(&n) {
                            naming.learn(&NameObservation::CgroupGone { id: former });
                            let _ = set.remove(former);
                        }
                    }
                    2 | 3 => {
                        let name = ["web-1", "web-2", "db"][next(3) as usize];
                        names[n as usize] = Some(name);
                        tell(&mut naming, n, name);
                    }
                    _ => {
                        wanted = ["web-*", "db", "web-2", "*"][next(4) as usize];
                        rules = Rules::Changed;
                    }
                }
                let _ = set.plan(Some(&excluding(&[wanted], &[])), &naming, rules);
                let matches = |name: &&str| match wanted.strip_suffix('*') {
                    Some(prefix) => name.starts_with(prefix),
                    None => *name == wanted,
                };
                let mut model: Vec<u64> = there
                    .iter()
                    .filter(|(n, _)| names[**n as usize].as_ref().is_some_and(matches))
                    .map(|(_, id)| *id)
                    .collect();
                model.sort_unstable();
                let mut held: Vec<u64> = set.by_id.keys().copied().collect();
                held.sort_unstable();
                assert_eq!(held, model, "seed {seed}, step {id}");
                assert_eq!(set.by_path.len(), set.by_id.len(), "seed {seed}, step {id}");
            }
        }
    }

    fn excluding(containers: &[&str], cgroups: &[&str]) -> Filter {
        let rule = |containers: &[&str], cgroups: &[&str]| wire::FlowRule {
            containers: containers.iter().map(ToString::to_string).collect(),
            cgroups: cgroups.iter().map(ToString::to_string).collect(),
            ..wire::FlowRule::default()
        };
        let policy = Policy::try_from(wire::Policy {
            capture: Some(wire::Capture {
                exclude: vec![rule(containers, cgroups)],
                ..wire::Capture::default()
            }),
            ..wire::Policy::default()
        })
        .expect("sound rules");
        let wanted = Filtering {
            exclude: policy.capture.exclude,
            ..Filtering::default()
        };
        Filter::new(&wanted, 10).expect("something is left out")
    }

    fn id_text(n: u64) -> String {
        format!("{n:064x}")
    }

    fn path(n: u64) -> String {
        format!("/docker/{}", id_text(n))
    }

    fn naming_without_runtime(cgroups: &[(u64, &str)]) -> Naming {
        let mut naming = Naming::new(NamingOptions::default());
        cgroups.iter().for_each(|(id, path)| made(&mut naming, *id, path));
        naming
    }

    fn naming(cgroups: &[(u64, &str)]) -> Naming {
        let mut naming = naming_without_runtime(cgroups);
        naming.set_container_sockets(1);
        naming
    }

    fn made(naming: &mut Naming, id: u64, path: &str) {
        naming.learn(&NameObservation::Cgroup {
            id,
            path: path.to_owned(),
        });
    }

    fn tell(naming: &mut Naming, n: u64, name: &str) {
        let id = ContainerId::parse(&id_text(n)).expect("64 digits");
        let facts = ContainerFacts::new(id, name, "", []).expect("a name");
        naming.learn_container(ContainerNews::Known(facts));
    }
}
