//! Which agents a policy is for.

use std::collections::BTreeSet;

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire;

use super::Check;
use super::labels::{Labels, LabelsRefused};

/// Most agents that a selector names.
///
/// Lists of agents are for a handful; labels choose many. Half of it would still do; double it, and a policy is mostly a list.
const AGENTS_MAX: usize = 1_024;

/// Agents that have all the labels and, when ids are given, one of these ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Selector {
    labels: Labels,
    agents: BTreeSet<MemberName>,
}

impl Selector {
    /// Reads the selector of object `n`; its mistakes are noted, and then it chooses less than it should.
    pub(super) fn parse(check: &mut Check, n: usize, sent: Option<&wire::Selector>) -> Self {
        let Some(sent) = sent else {
            return Self::default();
        };
        let labels = Labels::parse(&sent.labels).unwrap_or_else(|refused| {
            match &refused {
                LabelsRefused::TooMany(count) => {
                    let why = format!("has {count} labels");
                    check.refuse(Some(n), "selector.labels", None, why, "write fewer of them");
                }
                LabelsRefused::Label { key, value } => {
                    let text = refused.to_string();
                    let (why, remedy) = text.split_once("; ").unwrap_or((&text, ""));
                    let shown = format!("{key}: {value}");
                    check.refuse(Some(n), "selector.labels", Some(shown), why, remedy);
                }
            }
            Labels::default()
        });
        if sent.agents.len() > AGENTS_MAX {
            let why = format!("has {} agents", sent.agents.len());
            let remedy = format!("name at most {AGENTS_MAX}, or choose them by labels");
            check.refuse(Some(n), "selector.agents", None, why, remedy);
        }
        let mut agents = BTreeSet::new();
        for (at, text) in sent.agents.iter().enumerate().take(AGENTS_MAX) {
            let path = format!("selector.agents[{at}]");
            match MemberName::parse(text) {
                Err(mistakes) => check.object(n, Some(mistakes.under(&path))),
                Ok(agent) => {
                    if !agents.insert(agent) {
                        let why = "is there twice";
                        check.refuse(Some(n), &path, Some(text.clone()), why, "name each agent once");
                    }
                }
            }
        }
        Self { labels, agents }
    }

    pub(super) fn matches(&self, agent: &MemberName, labels: &Labels) -> bool {
        labels.has_all(&self.labels) && (self.agents.is_empty() || self.agents.contains(agent))
    }

    /// Whether an agent can be that both match.
    pub(super) fn may_meet(&self, other: &Self) -> bool {
        let ids =
            self.agents.is_empty() || other.agents.is_empty() || !self.agents.is_disjoint(&other.agents);
        ids && !self.labels.contradicts(&other.labels)
    }
}
