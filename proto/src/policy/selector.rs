//! Which agents a policy is for.

use std::collections::BTreeSet;

use crate::labels::Labels;
use crate::mistake::Mistakes;
use crate::reading::{Reading, Refused};
use crate::spiffe::MemberName;
use crate::wire;

/// Most agents that a selector names.
///
/// A list that a person keeps. Half of it splits the policy of a large machine room; double it, and labels are the way.
pub const SELECTOR_AGENTS_MAX: usize = 1_024;

/// Agents that a policy is for: those that match everything here. Made by parsing only; the default is every agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Selector {
    /// Labels that the agent has, all of them.
    pub labels: Labels,
    /// Ids of agents, at most [`SELECTOR_AGENTS_MAX`]; empty: any.
    pub agents: BTreeSet<MemberName>,
}

impl Selector {
    /// Whether it chooses this agent.
    #[must_use]
    pub fn matches(&self, agent: &MemberName, labels: &Labels) -> bool {
        self.labels.within(labels) && (self.agents.is_empty() || self.agents.contains(agent))
    }
}

impl TryFrom<wire::Selector> for Selector {
    type Error = Mistakes;

    /// Checks every label and id.
    ///
    /// # Errors
    ///
    /// Every field that is refused, with its path from the selector.
    fn try_from(sent: wire::Selector) -> Result<Self, Mistakes> {
        let mut reading = Reading::default();
        let labels = reading.inner("labels", Labels::parse(&sent.labels));
        if sent.agents.len() > SELECTOR_AGENTS_MAX {
            let why = format!("has {} ids", sent.agents.len());
            let remedy = format!("name at most {SELECTOR_AGENTS_MAX}, or choose them by a label");
            reading.refuse("agents", None, Refused::new(why, remedy));
        }
        let mut agents = BTreeSet::new();
        for (n, text) in sent.agents.iter().enumerate() {
            let at = format!("agents[{n}]");
            if let Some(id) = reading.inner(&at, MemberName::parse(text))
                && !agents.insert(id)
            {
                let refused = Refused::new("is there twice", "name each agent once");
                reading.refuse(&at, Some(text), refused);
            }
        }
        reading.finish(labels.map(|labels| Self { labels, agents }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(labels: &[(&str, &str)], agents: &[&str]) -> Result<Selector, String> {
        Selector::try_from(wire::Selector {
            labels: pairs(labels),
            agents: agents.iter().map(|&id| id.to_owned()).collect(),
        })
        .map_err(|mistakes| mistakes.to_string())
    }

    fn pairs(labels: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
        labels
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn an_agent_is_chosen_by_all_labels_and_by_its_id() {
        let of = |selector: &Selector, id: &str, labels: &[(&str, &str)]| {
            let id = MemberName::parse(id).expect("an id");
            selector.matches(&id, &Labels::parse(&pairs(labels)).expect("labels"))
        };
        assert!(of(&Selector::default(), "a", &[]), "every agent");
        let web = parse(&[("role", "web"), ("zone", "a")], &[]).expect("sound");
        assert!(of(&web, "a", &[("role", "web"), ("zone", "a"), ("more", "x")]));
        assert!(!of(&web, "a", &[("role", "web")]), "one of two labels");
        assert!(!of(&web, "a", &[("role", "db"), ("zone", "a")]), "another value");
        let named = parse(&[("role", "web")], &["a", "b"]).expect("sound");
        assert!(of(&named, "b", &[("role", "web")]));
        assert!(!of(&named, "c", &[("role", "web")]), "not named");
        assert!(!of(&named, "a", &[]), "named, but not labelled");
    }

    #[test]
    fn each_mistake_is_told() {
        let refused = parse(&[("-", "a")], &["A", "a", "a"]).expect_err("three");
        let paths: Vec<&str> = refused
            .lines()
            .map(|line| line.split(": ").next().unwrap_or_default())
            .collect();
        assert_eq!(paths, ["labels[-]", "agents[0]", "agents[2]"]);
        let many: Vec<String> = (0..=SELECTOR_AGENTS_MAX).map(|n| format!("a{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(parse(&[], &many[1..]).is_ok());
        assert!(parse(&[], &many).is_err());
    }
}
