//! Has the kernel leave out by itself what the policy leaves out as a whole: its cgroups, and how much they did.
//!
//! In: the filter, what naming knows, and cgroups that are gone. Out: the kernel's map as [`CgroupsLeftOut`] wants it, and
//! [`KernelLeftOut`] for the status. A cgroup is looked for before it is told to the kernel: what naming knows may have been
//! removed without a word, and nobody would take it away again.
//! A failed call costs nothing but work: what the kernel does not leave out, the filter does. Of sockets that were handed on to a
//! process outside the kernel cannot always tell: the open files are to be walked for them now and then.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use flowtilla_agent_core::enrich::Naming;
use flowtilla_agent_core::filter::Filter;
use flowtilla_agent_core::filter::cgroups::{CgroupsLeftOut, Change, Rules};
use flowtilla_agent_core::loss::LeftOutSum;
use flowtilla_agent_core::observe::NameObservation;
use flowtilla_agent_core::time::KernelTime;

use super::warn;
use crate::capture::Capture;
use crate::clock;
use crate::status::KernelLeftOut;

/// A round may take this part of one processor at most: one in 50. It takes some 10 µs, but with thousands of containers
/// and dozens of rules some ms.
const ROUND_SHARE: u32 = 50;

/// How often the open files are walked, while the kernel leaves anything out, for sockets that were handed on to a process
/// outside. Nothing tells of that. A walk takes 1 ms a thousand sockets: with 50,000 this is 0.1 % of one processor; at half
/// it is twice that, at double a listener that accepts without asking who comes is left out for two minutes.
const SEARCH_PAUSE: Duration = Duration::from_secs(60);

/// The meter's part of it.
pub(crate) struct Outside {
    cgroups: CgroupsLeftOut,
    root: PathBuf,
    rules: Rules,
    /// Whether there is something to be done.
    due: bool,
    next: KernelTime,
    gone: Vec<u64>,
    /// Sums of cgroups that are left out no longer.
    past: LeftOutSum,
    /// When sockets that were handed on are to be looked for.
    next_search: KernelTime,
}

impl Outside {
    /// Leaves nothing out. `root`: where the cgroup2 hierarchy is; `from_root`: whether paths of cgroups begin there.
    pub(crate) fn new(root: PathBuf, from_root: bool) -> Self {
        Self {
            cgroups: CgroupsLeftOut::new(from_root),
            root,
            rules: Rules::Same,
            due: false,
            next: KernelTime(0),
            gone: Vec::new(),
            past: LeftOutSum::default(),
            next_search: KernelTime(0),
        }
    }

    /// The filter is another one.
    pub(super) fn handle_rules(&mut self) {
        self.rules = Rules::Changed;
        self.due = true;
    }

    /// The kernel side was attached: its map is empty.
    pub(super) fn handle_attached(&mut self) {
        self.due = true;
    }

    /// The kernel side is about to be let go.
    pub(super) fn handle_detaching(&mut self, capture: &mut Capture) {
        for change in self.cgroups.clear() {
            self.make(change, capture);
        }
    }

    /// Takes in what the kernel told.
    pub(super) fn learn(&mut self, seen: &NameObservation) {
        if let NameObservation::CgroupGone { id } = seen {
            self.gone.push(*id);
        }
    }

    /// Name events were lost, some perhaps of cgroups that are gone.
    pub(super) fn handle_lost(&mut self) {
        let gone = self
            .cgroups
            .paths()
            .filter(|(id, path)| !self.is_there(*id, path));
        let gone: Vec<u64> = gone.map(|(id, _)| id).collect();
        self.gone.extend(gone);
    }

    /// Brings the kernel's map to what is wanted. `None`: nothing changed for what there is; else whether because of other
    /// rules. A cgroup that is gone changes nothing for anybody: it was empty.
    pub(super) fn turn(
        &mut self,
        filter: Option<&Filter>,
        naming: &mut Naming,
        capture: &mut Capture,
        now: KernelTime,
    ) -> Option<Rules> {
        let mut fewer = false;
        for id in std::mem::take(&mut self.gone) {
            if let Some(change) = self.cgroups.remove(id) {
                self.make(change, capture);
                fewer = true;
            }
        }
        self.due |= naming.take_places_changed();
        if !self.due || now < self.next {
            self.set_depths(fewer, capture);
            return None;
        }
        let began = clock::instant();
        self.due = false;
        let rules = std::mem::replace(&mut self.rules, Rules::Same);
        let mut changed = false;
        for change in self.cgroups.plan(filter, naming, rules) {
            if let Change::Add(id) = change
                && !self.cgroups.path(id).is_none_or(|path| self.is_there(id, path))
            {
                self.cgroups.remove(id);
                naming.learn(&NameObservation::CgroupGone { id });
                // Another one may have its path.
                self.due = true;
                continue;
            }
            self.make(change, capture);
            changed = true;
        }
        self.set_depths(fewer || changed, capture);
        self.next = now.after((began.elapsed() * ROUND_SHARE).max(Duration::from_millis(1)));
        changed.then_some(rules)
    }

    /// Whether the open files are to be walked for sockets that were made in what is left out and handed on.
    pub(super) fn wants_search(&mut self, now: KernelTime) -> bool {
        let wants = self.is_any() && now >= self.next_search;
        if wants {
            self.next_search = now.after(SEARCH_PAUSE);
        }
        wants
    }

    /// Whether the kernel leaves anything out.
    pub(super) fn is_any(&self) -> bool {
        self.cgroups.count() > 0
    }

    /// What is left out, and was.
    pub(super) fn status(&self, capture: Option<&Capture>) -> KernelLeftOut {
        let mut sum = self.past;
        if self.cgroups.count() > 0
            && let Some(capture) = capture
        {
            match capture.left_out() {
                Ok(now) => sum.plus(&now),
                Err(error) => warn(Err(error)),
            }
        }
        KernelLeftOut {
            cgroups: self.cgroups.count(),
            beyond: self.cgroups.beyond(),
            sum,
        }
    }

    fn make(&mut self, change: Change, capture: &mut Capture) {
        match change {
            Change::Add(id) => warn(capture.leave_out(id)),
            Change::Remove(id) => match capture.take_back(id) {
                Ok(sum) => self.past.plus(&sum),
                Err(error) => warn(Err(error)),
            },
        }
    }

    fn set_depths(&self, changed: bool, capture: &mut Capture) {
        if changed {
            warn(capture.set_left_out_depths(self.cgroups.depths()));
        }
    }

    fn is_there(&self, id: u64, path: &str) -> bool {
        let folder = self.root.join(path.trim_start_matches('/'));
        std::fs::metadata(folder).is_ok_and(|found| found.ino() == id)
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_agent_core::enrich::NamingOptions;
    use flowtilla_agent_core::policy::Filtering;
    use flowtilla_proto::policy::Policy;
    use flowtilla_proto::wire;

    use super::*;

    #[test]
    fn sockets_that_were_handed_on_are_looked_for_each_minute_while_anything_is_left_out() {
        let mut outside = Outside::new(PathBuf::from("/nowhere"), true);
        let second = |n: u64| KernelTime(n * 1_000_000_000);
        assert!(!outside.wants_search(second(1)));
        let mut naming = Naming::new(NamingOptions::default());
        naming.learn(&NameObservation::Cgroup {
            id: 10,
            path: "/x.service".to_owned(),
        });
        let planned = outside
            .cgroups
            .plan(Some(&excluding("/x.service")), &naming, Rules::Changed);
        assert_eq!(planned, [Change::Add(10)]);
        let wanted: Vec<u64> = (2..=130).filter(|&n| outside.wants_search(second(n))).collect();
        assert_eq!(wanted, [2, 62, 122]);
        outside.cgroups.clear();
        assert!(!outside.wants_search(second(1_000)));
    }

    fn excluding(cgroup: &str) -> Filter {
        let rule = wire::FlowRule {
            cgroups: vec![cgroup.to_owned()],
            ..wire::FlowRule::default()
        };
        let policy = Policy::try_from(wire::Policy {
            capture: Some(wire::Capture {
                exclude: vec![rule],
                ..wire::Capture::default()
            }),
            ..wire::Policy::default()
        })
        .expect("a sound rule");
        let wanted = Filtering {
            exclude: policy.capture.exclude,
            ..Filtering::default()
        };
        Filter::new(&wanted, 10).expect("something is left out")
    }
}
