//! What a rule says about where an owner is: its cgroup, container and pod.
//!
//! In: a validated [`FlowRule`] and [`Whereabouts`]. Out: whether they match. What is not known matches nothing.

use flowtilla_proto::policy::{FlowRule, NamePattern, PodLabel, ScopePath};

use super::pattern::Pattern;
use crate::enrich::Whereabouts;
use crate::enrich::container::ContainerFacts;

/// The lists of a rule that are about places; none of them is empty.
#[derive(Debug)]
pub(super) struct Place(Vec<List>);

/// Members of one kind, of which one must match.
#[derive(Debug)]
pub(super) enum List {
    Cgroups(Vec<ScopePath>),
    Containers(Vec<Pattern>),
    Images(Vec<Pattern>),
    Namespaces(Vec<Pattern>),
    PodLabels(Vec<PodLabel>),
}

impl Place {
    pub(super) fn new(rule: &FlowRule) -> Self {
        let patterns = |names: &[NamePattern]| names.iter().map(|name| Pattern::new(name.as_str())).collect();
        let mut lists = Vec::new();
        if !rule.cgroups.is_empty() {
            lists.push(List::Cgroups(rule.cgroups.clone()));
        }
        if !rule.containers.is_empty() {
            lists.push(List::Containers(patterns(&rule.containers)));
        }
        if !rule.images.is_empty() {
            lists.push(List::Images(patterns(&rule.images)));
        }
        if !rule.namespaces.is_empty() {
            lists.push(List::Namespaces(patterns(&rule.namespaces)));
        }
        if !rule.pod_labels.is_empty() {
            lists.push(List::PodLabels(rule.pod_labels.clone()));
        }
        Self(lists)
    }

    /// Whether the rule is about nothing else: it means cgroups as wholes.
    pub(super) fn is_all_of(rule: &FlowRule) -> bool {
        rule.cidrs.is_empty() && rule.ports.is_empty() && rule.processes.is_empty() && rule.users.is_empty()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it can be decided only when a runtime has told of the container.
    pub(super) fn asks_runtimes(&self) -> bool {
        self.0.iter().any(|list| !matches!(list, List::Cgroups(_)))
    }

    /// Its lists, for rules that look for each of them at either end.
    pub(super) fn lists(&self) -> &[List] {
        &self.0
    }

    /// Whether one end has a member of each list.
    pub(super) fn holds(&self, at: &Whereabouts<'_>) -> bool {
        self.0.iter().all(|list| list.holds(at))
    }
}

impl List {
    pub(super) fn holds(&self, at: &Whereabouts<'_>) -> bool {
        let of_container = |holds: &dyn Fn(&ContainerFacts) -> bool| at.container.is_some_and(holds);
        match self {
            Self::Cgroups(paths) => at
                .cgroup
                .is_some_and(|path| paths.iter().any(|above| is_below(path, above.as_str()))),
            Self::Containers(names) => of_container(&|facts| any(names, facts.name())),
            Self::Images(names) => of_container(&|facts| any(names, facts.image())),
            Self::Namespaces(names) => {
                of_container(&|facts| facts.pod_namespace().is_some_and(|name| any(names, name)))
            }
            Self::PodLabels(wanted) => of_container(&|facts| wanted.iter().any(|label| has(facts, label))),
        }
    }
}

fn has(facts: &ContainerFacts, wanted: &PodLabel) -> bool {
    let found = facts.pod_label(&wanted.key);
    found.is_some_and(|value| wanted.value.as_deref().is_none_or(|wanted| value == wanted))
}

fn any(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(text))
}

/// Whether a cgroup is `above` or below it.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_below_another_by_whole_names() {
        assert!(is_below("/a", "/a") && is_below("/a/b", "/a"));
        assert!(!is_below("/ab", "/a") && !is_below("/", "/a") && !is_below("/x/a", "/a"));
    }
}
