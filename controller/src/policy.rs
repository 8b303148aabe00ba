//! What the fleet is to do: the objects of one revision, and which of them an agent gets.
//!
//! In: objects as operators send them, an agent's id and labels. Out: a set that was checked whole ([`Objects`]), the
//! differences between two sets, and the assignment of an agent. No IO, no clock.
//!
//! Invariants: a set is changed by [`Objects::changed`] only, which makes another one or tells every mistake at once; every
//! collector that a policy names is in the set; no two policies of one priority have the same selector.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use flowtilla_proto::collector::Collector;
use flowtilla_proto::hosts::HostGroup;
use flowtilla_proto::labels::Labels;
use flowtilla_proto::mistake::{MISTAKES_MAX, Mistake, Mistakes};
use flowtilla_proto::policy::{Policy, Rollout, Selector};
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{Change, Object, ObjectChange, ObjectName, object};
use flowtilla_proto::wire::session::Assignment;
use prost::Message;

/// Most objects of a revision.
///
/// A fleet has some policies and fewer collectors. Half of it would still do; double it, and a revision, which is kept whole,
/// passes the size of a message.
pub const OBJECTS_MAX: usize = 1_024;

/// Most octets of a policy with its collectors, encoded: what one agent is offered.
///
/// Agents refuse more than twice as much. Half of it is near to a policy with every list full; double it, and what agents
/// refuse is not refused here.
pub const ASSIGNMENT_OCTETS_MAX: usize = 512 << 10;

/// Most octets of all objects together, encoded, and of each policy with its collectors once more: what one change writes.
///
/// The store takes values of 16 MiB. Half of it would still hold ten policies with every list full, and ten thousand hosts; double
/// it, and a revision passes what the store takes.
pub const REVISION_OCTETS_MAX: usize = 12 << 20;

/// Kind of a policy in an [`ObjectName`].
pub const KIND_POLICY: &str = "Policy";
/// Kind of a collector in an [`ObjectName`].
pub const KIND_COLLECTOR: &str = "Collector";
/// Kind of a group of hosts in an [`ObjectName`].
pub const KIND_HOST_GROUP: &str = "HostGroup";

/// The objects of one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    policies: BTreeMap<String, Kept>,
    collectors: BTreeMap<String, wire::Collector>,
    /// Kept for operators: no agent gets anything of them.
    host_groups: BTreeMap<String, wire::HostGroup>,
}

/// A policy as it was sent, and as it was read.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    sent: wire::Policy,
    parsed: Policy,
}

/// A mistake in a request, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMistake {
    /// The object's place in the request; `None`: none of them alone.
    pub object: Option<usize>,
    /// What is wrong.
    pub mistake: Mistake,
}

/// Everything that is wrong with a request; at least one mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeMistakes(pub Vec<ObjectMistake>);

impl Objects {
    /// The set with `objects` made or replaced, and `removed` taken away.
    ///
    /// # Errors
    ///
    /// Every mistake in the objects, in what is removed, and between them and those that stay.
    pub fn changed(&self, objects: &[Object], removed: &[ObjectName]) -> Result<Self, ChangeMistakes> {
        let mut check = Check::default();
        let mut made = self.clone();
        for (n, name) in removed.iter().enumerate() {
            made.remove(&mut check, n, name);
        }
        for (n, object) in objects.iter().enumerate() {
            made.insert(&mut check, n, object, removed);
        }
        let count = made.policies.len() + made.collectors.len() + made.host_groups.len();
        if count > OBJECTS_MAX {
            let why = format!("the fleet would have {count} objects");
            check.refuse(None, "", None, why, format!("keep at most {OBJECTS_MAX}"));
        }
        made.check_collectors(&mut check, self, removed);
        made.check_selectors(&mut check);
        made.check_sizes(&mut check);
        made.check_hosts(&mut check);
        check.finish(made)
    }

    /// Objects that were checked before, as [`Self::to_wire`] gave them.
    ///
    /// # Errors
    ///
    /// As [`Self::changed`]: what is kept was made by an incompatible version.
    pub fn from_wire(objects: &[Object]) -> Result<Self, ChangeMistakes> {
        Self::default().changed(objects, &[])
    }

    /// Every object: collectors, then policies, then groups of hosts, each by name.
    #[must_use]
    pub fn to_wire(&self) -> Vec<Object> {
        let collectors = self.collectors.values().cloned().map(object::Kind::Collector);
        let policies = self
            .policies
            .values()
            .map(|kept| object::Kind::Policy(kept.sent.clone()));
        let groups = self.host_groups.values().cloned().map(object::Kind::HostGroup);
        collectors
            .chain(policies)
            .chain(groups)
            .map(|kind| Object { kind: Some(kind) })
            .collect()
    }

    /// Names of the policies.
    pub fn policies(&self) -> impl Iterator<Item = &str> {
        self.policies.keys().map(String::as_str)
    }

    /// A policy; its `rollout` says how a change of it reaches its agents.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<&Policy> {
        Some(&self.policies.get(name)?.parsed)
    }

    /// The longest time that a policy wants agents to be watched after a change.
    #[must_use]
    pub fn longest_soak(&self) -> Duration {
        let rollouts = self.policies.values().map(|kept| &kept.parsed.rollout);
        rollouts
            .map(|rollout: &Rollout| rollout.soak)
            .max()
            .unwrap_or_default()
    }

    /// Name of the policy that an agent gets: the one of the highest priority that matches it. When several are equal, which
    /// [`Self::tied`] tells, `has`, the one that it has, or, when that is none of them, the first by name: what a host says of
    /// itself takes no policy from it.
    #[must_use]
    pub fn policy_for(&self, agent: &MemberName, labels: &Labels, has: Option<&str>) -> Option<&str> {
        self.policies
            .iter()
            .filter(|(_, kept)| kept.parsed.selector.matches(agent, labels))
            // The last of equal ones is taken: seen from the end it is the first by name.
            .rev()
            .max_by_key(|(name, kept)| (kept.sent.priority, Some(name.as_str()) == has))
            .map(|(name, _)| name.as_str())
    }

    /// Policies of one priority that all match an agent, none of a higher one doing so, by name; empty: there is one, or none.
    #[must_use]
    pub fn tied(&self, agent: &MemberName, labels: &Labels) -> Vec<String> {
        let matching = || {
            let all = self.policies.iter();
            all.filter(move |(_, kept)| kept.parsed.selector.matches(agent, labels))
        };
        let highest = matching().map(|(_, kept)| kept.sent.priority).max();
        let tied: Vec<String> = matching()
            .filter(|(_, kept)| Some(kept.sent.priority) == highest)
            .map(|(name, _)| name.clone())
            .collect();
        if tied.len() > 1 { tied } else { Vec::new() }
    }

    /// Whether any two policies have one priority.
    #[must_use]
    pub fn has_rivals(&self) -> bool {
        let priorities: BTreeSet<u32> = self.policies.values().map(|kept| kept.sent.priority).collect();
        priorities.len() < self.policies.len()
    }

    /// Whether two policies have one priority, and both match an agent.
    fn both_match(&self, one: &str, other: &str, agent: &MemberName, labels: &Labels) -> bool {
        let (Some(one), Some(other)) = (self.policies.get(one), self.policies.get(other)) else {
            return false;
        };
        let matches = |kept: &Kept| kept.parsed.selector.matches(agent, labels);
        one.sent.priority == other.sent.priority && matches(one) && matches(other)
    }

    /// Refuses policies of one priority that match the same agent, for each agent given, unless they did so in `before`: that is
    /// no fault of this request, and must not stand in its way.
    ///
    /// # Errors
    ///
    /// One mistake a pair of policies, with an agent that both match. `objects`: the request, to tell their places.
    pub fn check_agents<'a>(
        &self,
        before: &Self,
        objects: &[Object],
        agents: impl Iterator<Item = (&'a MemberName, &'a Labels)>,
    ) -> Result<(), ChangeMistakes> {
        let mut by_priority = BTreeMap::<u32, Vec<(&str, &Selector)>>::new();
        for (name, kept) in &self.policies {
            by_priority
                .entry(kept.sent.priority)
                .or_default()
                .push((name, &kept.parsed.selector));
        }
        by_priority.retain(|_, policies| policies.len() > 1);
        let mut pairs = BTreeMap::new();
        for (agent, labels) in agents {
            for policies in by_priority.values() {
                let mut first = None;
                for (name, selector) in policies {
                    if !selector.matches(agent, labels) {
                        continue;
                    }
                    match first {
                        None => first = Some(*name),
                        Some(first) if before.both_match(first, name, agent, labels) => {}
                        Some(first) => {
                            pairs.entry((first, *name)).or_insert(agent);
                        }
                    }
                }
            }
            if pairs.len() >= MISTAKES_MAX {
                break;
            }
        }
        let mut check = Check::default();
        for ((first, second), agent) in pairs {
            let (object, name, other) = match (place_of(objects, first), place_of(objects, second)) {
                (at, None) if at.is_some() => (at, first, second),
                (_, at) => (at, second, first),
            };
            let why = format!("is the priority of policy {other} too, and both are for agent {agent}");
            let remedy = "write another priority, or a selector that chooses other agents";
            let priority = self.policies[name].sent.priority.to_string();
            check.refuse(object, "priority", Some(priority), why, remedy);
        }
        check.finish(())
    }

    /// What is odd, one sentence each: policies of one priority that an agent may come to match both, collectors that no
    /// policy names.
    #[must_use]
    pub fn oddities(&self) -> Vec<String> {
        let mut odd = Vec::new();
        for (n, (name, kept)) in self.policies.iter().enumerate() {
            for (other, with) in self.policies.iter().skip(n + 1) {
                if kept.sent.priority == with.sent.priority
                    && may_meet(&kept.parsed.selector, &with.parsed.selector)
                {
                    odd.push(format!(
                        "policies {name} and {other} have the priority {}: an agent that comes to match both keeps the one that it has, or gets {name}",
                        kept.sent.priority
                    ));
                }
                if odd.len() >= MISTAKES_MAX {
                    return odd;
                }
            }
        }
        let named: BTreeSet<&String> = self
            .policies
            .values()
            .flat_map(|kept| names(&kept.sent))
            .collect();
        let idle = self.collectors.keys().filter(|name| !named.contains(name));
        odd.extend(
            idle.take(MISTAKES_MAX)
                .map(|name| format!("no policy names collector {name}")),
        );
        odd
    }

    /// What an agent of this policy is to do; `None`: nothing. What only the controller uses of a policy (selector,
    /// priority, rollout) stays here, so that a change of it offers nothing anew.
    ///
    /// Same set, policy and revision: the same assignment.
    #[must_use]
    pub fn assignment(&self, policy: Option<&str>, revision: u64) -> Assignment {
        let Some(kept) = policy.and_then(|name| self.policies.get(name)) else {
            return Assignment {
                policy: None,
                collectors: Vec::new(),
                revision,
                drain: false,
            };
        };
        let collectors = names(&kept.sent)
            .filter_map(|name| self.collectors.get(name).cloned())
            .collect();
        let policy = wire::Policy {
            selector: None,
            priority: 0,
            rollout: None,
            ..kept.sent.clone()
        };
        Assignment {
            policy: Some(policy),
            collectors,
            revision,
            drain: false,
        }
    }

    /// What is different in `after`, by kind and name.
    #[must_use]
    pub fn changes(&self, after: &Self) -> Vec<ObjectChange> {
        let index = |objects: &Self| -> BTreeMap<(String, String), Object> {
            let named = |object: Object| name_of(&object).map(|name| ((name.kind, name.name), object));
            objects.to_wire().into_iter().filter_map(named).collect()
        };
        let (before, mut later) = (index(self), index(after));
        let mut changes = Vec::new();
        let change = |(kind, name), change: Change, before, after| ObjectChange {
            object: Some(ObjectName { kind, name }),
            change: change.into(),
            before,
            after,
        };
        for (key, old) in before {
            match later.remove(&key) {
                None => changes.push(change(key, Change::Removed, Some(old), None)),
                Some(new) if new != old => changes.push(change(key, Change::Changed, Some(old), Some(new))),
                Some(_) => {}
            }
        }
        let added = later
            .into_iter()
            .map(|(key, new)| change(key, Change::Added, None, Some(new)));
        changes.extend(added);
        changes
    }

    fn remove(&mut self, check: &mut Check, n: usize, name: &ObjectName) {
        let there = match name.kind.as_str() {
            KIND_POLICY => self.policies.remove(&name.name).is_some(),
            KIND_COLLECTOR => self.collectors.remove(&name.name).is_some(),
            KIND_HOST_GROUP => self.host_groups.remove(&name.name).is_some(),
            _ => {
                let path = format!("removed[{n}].kind");
                let (why, remedy) = ("is no kind of object", "write Policy, Collector or HostGroup");
                check.refuse(None, &path, Some(name.kind.clone()), why, remedy);
                return;
            }
        };
        if !there {
            let why = format!("is the name of no {}", name.kind.to_lowercase());
            let path = format!("removed[{n}].name");
            check.refuse(
                None,
                &path,
                Some(name.name.clone()),
                why,
                "leave it out, or name one that there is",
            );
        }
    }

    fn insert(&mut self, check: &mut Check, n: usize, object: &Object, removed: &[ObjectName]) {
        let name = match &object.kind {
            None => {
                let why = "is of no kind that this version knows";
                check.refuse(
                    Some(n),
                    "",
                    None,
                    why,
                    "send a policy, a collector or a group of hosts",
                );
                return;
            }
            Some(object::Kind::Policy(sent)) => {
                if sent.name.is_empty() {
                    check.object(
                        n,
                        MemberName::parse("").err().map(|mistakes| mistakes.under("name")),
                    );
                }
                match Policy::try_from(sent.clone()) {
                    Err(mistakes) => {
                        check.object(n, Some(mistakes));
                        // Its collectors are not looked at: the names of others must not hide behind it.
                        self.policies.remove(&sent.name);
                    }
                    Ok(parsed) => {
                        let kept = Kept {
                            sent: sent.clone(),
                            parsed,
                        };
                        self.policies.insert(sent.name.clone(), kept);
                    }
                }
                (KIND_POLICY, &sent.name)
            }
            Some(object::Kind::Collector(sent)) => {
                check.object(n, Collector::try_from(sent.clone()).err());
                self.collectors.insert(sent.name.clone(), sent.clone());
                (KIND_COLLECTOR, &sent.name)
            }
            Some(object::Kind::HostGroup(sent)) => {
                check.object(n, HostGroup::try_from(sent.clone()).err());
                self.host_groups.insert(sent.name.clone(), sent.clone());
                (KIND_HOST_GROUP, &sent.name)
            }
        };
        if !check.names.insert((name.0, name.1.clone())) {
            let why = format!("is the name of another {} in this request", name.0.to_lowercase());
            check.refuse(
                Some(n),
                "name",
                Some(name.1.clone()),
                why,
                "give each a name of its own",
            );
        }
        if removed
            .iter()
            .any(|gone| gone.kind == name.0 && gone.name == *name.1)
        {
            let why = "is to be removed by the same request";
            check.refuse(
                Some(n),
                "name",
                Some(name.1.clone()),
                why,
                "write it, or remove it",
            );
        }
        check.places.insert((name.0, name.1.clone()), n);
    }

    /// Every collector that a policy names is there.
    fn check_collectors(&self, check: &mut Check, before: &Self, removed: &[ObjectName]) {
        for (policy, kept) in &self.policies {
            let place = check.place(KIND_POLICY, policy);
            for (n, name) in names(&kept.sent).enumerate() {
                if self.collectors.contains_key(name) {
                    continue;
                }
                let gone = removed
                    .iter()
                    .position(|gone| gone.kind == KIND_COLLECTOR && gone.name == *name);
                match (place, gone) {
                    (None, Some(gone)) => {
                        let why = format!("is a collector that policy {policy} names");
                        let remedy = "take it out of the policy in the same request, or leave it";
                        let path = format!("removed[{gone}].name");
                        check.refuse(None, &path, Some(name.clone()), why, remedy);
                    }
                    _ => {
                        debug_assert!(place.is_some() || gone.is_some(), "{before:?}");
                        let path = format!("export.collectors[{n}]");
                        let why = "is the name of no collector";
                        let remedy = "write a collector of that name, or another name";
                        check.refuse(place, &path, Some(name.clone()), why, remedy);
                    }
                }
            }
        }
    }

    /// No agent is offered more than it takes.
    fn check_sizes(&self, check: &mut Check) {
        let mut all: usize = self.to_wire().iter().map(Message::encoded_len).sum();
        for policy in self.policies.keys() {
            let octets = self.assignment(Some(policy), u64::MAX).encoded_len();
            all = all.saturating_add(octets);
            if octets > ASSIGNMENT_OCTETS_MAX {
                let place = check.place(KIND_POLICY, policy);
                let why = format!("policy {policy} takes {octets} octets with its collectors");
                let remedy =
                    format!("shorten its lists: at most {ASSIGNMENT_OCTETS_MAX} octets reach an agent");
                check.refuse(place, "", None, why, remedy);
            }
        }
        if all > REVISION_OCTETS_MAX {
            let why = format!(
                "the fleet's objects would take {all} octets, each policy with its collectors once more"
            );
            let remedy =
                format!("shorten lists, or take objects away: at most {REVISION_OCTETS_MAX} octets are kept");
            check.refuse(None, "", None, why, remedy);
        }
    }

    /// No host is in two groups: it has one agent, with one set of labels.
    fn check_hosts(&self, check: &mut Check) {
        let mut seen = HashMap::new();
        for (name, sent) in &self.host_groups {
            // One that is refused is told already.
            let Ok(group) = HostGroup::try_from(sent.clone()) else {
                continue;
            };
            for (n, target) in group.hosts.iter().enumerate() {
                let Some((first, at)) = seen.insert(target.place(), (name, n)) else {
                    continue;
                };
                let (object, n, other, group) = match check.place(KIND_HOST_GROUP, name) {
                    Some(here) => (Some(here), n, first, sent),
                    None => {
                        let place = check.place(KIND_HOST_GROUP, first);
                        (place, at, name, &self.host_groups[first])
                    }
                };
                let why = format!("is in group {other}, too");
                let value = Some(group.hosts[n].clone());
                let path = format!("hosts[{n}]");
                check.refuse(object, &path, value, why, "write each host in one group");
            }
        }
    }

    /// No two policies of one priority have the same selector.
    fn check_selectors(&self, check: &mut Check) {
        let mut seen = HashMap::new();
        for (name, kept) in &self.policies {
            let Some(first) = seen.insert((kept.sent.priority, &kept.parsed.selector), name) else {
                continue;
            };
            let (object, other) = match (check.place(KIND_POLICY, name), check.place(KIND_POLICY, first)) {
                (None, Some(at)) => (Some(at), name),
                (at, _) => (at, first),
            };
            let why = format!("is the priority of policy {other} too, which is for the same agents");
            let remedy = "write another priority or another selector";
            check.refuse(
                object,
                "priority",
                Some(kept.sent.priority.to_string()),
                why,
                remedy,
            );
        }
    }
}

/// Names of the collectors of a policy, as they stand there.
fn names(policy: &wire::Policy) -> impl Iterator<Item = &String> {
    policy.export.iter().flat_map(|export| &export.collectors)
}

/// Kind and name of an object; `None`: it is of no kind that is known.
#[must_use]
pub fn name_of(object: &Object) -> Option<ObjectName> {
    let (kind, name) = match object.kind.as_ref()? {
        object::Kind::Policy(policy) => (KIND_POLICY, &policy.name),
        object::Kind::Collector(collector) => (KIND_COLLECTOR, &collector.name),
        object::Kind::HostGroup(group) => (KIND_HOST_GROUP, &group.name),
    };
    Some(ObjectName {
        kind: kind.to_owned(),
        name: name.clone(),
    })
}

/// Whether an agent can be that both choose.
fn may_meet(one: &Selector, other: &Selector) -> bool {
    let ids = one.agents.is_empty() || other.agents.is_empty() || !one.agents.is_disjoint(&other.agents);
    let theirs = other.labels.as_map();
    let contradicts = |(key, value): (&String, &String)| theirs.get(key).is_some_and(|other| other != value);
    ids && !one.labels.as_map().iter().any(contradicts)
}

fn place_of(objects: &[Object], policy: &str) -> Option<usize> {
    objects
        .iter()
        .position(|object| matches!(&object.kind, Some(object::Kind::Policy(sent)) if sent.name == policy))
}

/// The mistakes of a request, as they are found, and the places of its objects.
#[derive(Default)]
struct Check {
    mistakes: Vec<ObjectMistake>,
    names: BTreeSet<(&'static str, String)>,
    places: BTreeMap<(&'static str, String), usize>,
}

impl Check {
    fn refuse(
        &mut self,
        object: Option<usize>,
        path: &str,
        value: Option<String>,
        why: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let mistake = Mistake {
            path: path.to_owned(),
            value,
            why: why.into(),
            remedy: remedy.into(),
        };
        self.mistakes.push(ObjectMistake { object, mistake });
    }

    fn object(&mut self, n: usize, mistakes: Option<Mistakes>) {
        let mistakes = mistakes.into_iter().flatten();
        self.mistakes.extend(mistakes.map(|mistake| ObjectMistake {
            object: Some(n),
            mistake,
        }));
    }

    fn place(&self, kind: &'static str, name: &str) -> Option<usize> {
        self.places.get(&(kind, name.to_owned())).copied()
    }

    fn finish<T>(mut self, made: T) -> Result<T, ChangeMistakes> {
        if self.mistakes.is_empty() {
            return Ok(made);
        }
        self.mistakes
            .sort_by_key(|found| found.object.map_or(usize::MAX, |n| n));
        self.mistakes.truncate(MISTAKES_MAX);
        Err(ChangeMistakes(self.mistakes))
    }
}

#[cfg(test)]
mod tests;
