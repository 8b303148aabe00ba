//! Source ids of 8 bits: by which number each collector of header version 1 knows its agents.
//!
//! An agent is told a number for each such collector that it is to feed or feeds, by the collector's name. What a name means changes
//! with the agent's assignment, and no message can be in force at the moment at which an assignment is: so a number that is told
//! for a name is the agent's at every endpoint that the name has in anything that the agent may have in force
//! ([`Agent::may_have`]). Where there is none of that kind the agent has none until it has acked. Of an agent that holds
//! what this controller does not know (a backup was restored) nothing is known: it is told no number until it has acked what is.
//! An agent without a number keeps its records, and its status says why.
//!
//! A number belongs to its agent as long as that may feed the endpoint: until it has acked another collector, or its identity is
//! void. Then it is out of use for [`QUARANTINE_MS`](numbers::QUARANTINE_MS): a revoked agent goes on with what it holds until
//! somebody stops it. Who gets which number stands in [`numbers`]. 255 agents have one at an endpoint; the 256th has none
//! ([`numbers::NoneLeft`]) until one is free, which is looked for once a minute.
//!
//! Invariants: no two agents that may feed an endpoint have the same number there, and none that fed it within the quarantine
//! unless all the others are in use; what is said is on the disk first, as everything that the fleet says.

use std::collections::{BTreeMap, BTreeSet};

use flowtilla_proto::spiffe::MemberName;

use self::numbers::{Numbers, Use};
use super::agent::Agent;
use super::content::Content;
use super::{Fleet, Now, Speech};
use crate::policy::Objects;
use crate::store::counter::Restored;

mod numbers;

/// Most collectors that a warning before a deploy is given of.
///
/// Each is a sentence of four lines. Half of it hides the third ntopng; double it, and the list of changes is out of sight.
const CROWDED_TOLD_MAX: usize = 5;

/// Numbers that are given, and who waits for one.
#[derive(Debug)]
pub(super) struct ShortIds {
    numbers: Numbers,
    /// Agents that have none at one of their collectors.
    waiting: BTreeSet<MemberName>,
}

impl ShortIds {
    /// None yet. `restored`: the last restore of the store.
    pub(super) fn new(restored: Option<Restored>, now: Now) -> Self {
        Self {
            numbers: Numbers::new(restored, now.wall_ms),
            waiting: BTreeSet::new(),
        }
    }

    /// A row of [`ShortSourceIds`](crate::store::Table::ShortSourceIds); `None`: it is none.
    pub(super) fn restore(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        self.numbers.restore(key, value)
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Now) {
        self.numbers.handle_timeout(now.wall_ms);
    }

    /// An agent's identity is void: it waits for nothing. Its numbers are looked for within the minute.
    pub(super) fn handle_revoked(&mut self, agent: &MemberName) {
        self.waiting.remove(agent);
    }
}

impl Fleet {
    /// Gives an agent its numbers at the collectors that it is to feed or feeds, and tells it, if there is news.
    pub(super) fn name_shortly(&mut self, id: &MemberName) {
        if self.still {
            return;
        }
        let ids = self.allot_short(id);
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        // What is not known may have numbers of its own: it is told that there is none.
        let silent = ids.is_empty() && !agent.holds_unknown();
        let Some(line) = &mut agent.line else { return };
        if line.short_told.as_ref() != Some(&ids) && !(silent && line.short_told.is_none()) {
            line.short_told = Some(ids.clone());
            self.speech.push_back((line.session, Speech::ShortIds(ids)));
        }
    }

    /// Where more agents than there are numbers are to feed one collector, by a set of objects: figures and remedy, for people.
    pub(super) fn crowded(&self, objects: &Objects) -> Vec<String> {
        let mut agents = BTreeMap::<&str, usize>::new();
        for (id, agent) in self.agents.iter().filter(|(_, agent)| !agent.revoked) {
            if let Some(policy) = objects.policy_for(id, &agent.labels, agent.policy()) {
                *agents.entry(policy).or_default() += 1;
            }
        }
        // Two collectors of one endpoint are one ntopng.
        let mut fed = BTreeMap::<String, (usize, BTreeSet<String>)>::new();
        for (policy, agents) in agents {
            let content = Content::new(&objects.assignment(Some(policy), 0));
            let mut endpoints = BTreeSet::new();
            for collector in content.short {
                let (count, names) = fed.entry(collector.endpoint.clone()).or_default();
                names.insert(collector.name);
                if endpoints.insert(collector.endpoint) {
                    *count += agents;
                }
            }
        }
        let most = usize::from(self.short.numbers.most.get());
        let crowded = fed.into_iter().filter(|(_, (agents, _))| *agents > most);
        let told = crowded.map(|(endpoint, (agents, names))| {
            let names = Vec::from_iter(names).join(" and ");
            format!(
                "{agents} agents are to feed collector {names} ({endpoint}), which tells agents apart by {most} numbers of 8 bits: {} of \
                 them keep their records until one is free; give some agents another collector by a policy of their own, or, if it \
                 reads it, have header version 2 (encoding: tlv)",
                agents - most
            )
        });
        told.take(CROWDED_TOLD_MAX).collect()
    }

    /// Looks which numbers nobody has use for any more, and who waits for one.
    pub(super) fn name_who_waits(&mut self) {
        let agents = &self.agents;
        let use_of = |agent: &MemberName, endpoint: &str| use_of(agents, agent, endpoint);
        self.short.numbers.look(use_of, &mut self.batch);
        for id in self.short.waiting.clone() {
            self.name_shortly(&id);
        }
    }

    /// Numbers by name of the collector, 0 where none is left.
    fn allot_short(&mut self, id: &MemberName) -> BTreeMap<String, u32> {
        let Self {
            agents, short, batch, ..
        } = self;
        let Some(agent) = agents.get(id).filter(|agent| !agent.revoked) else {
            short.waiting.remove(id);
            return BTreeMap::new();
        };
        if agent.holds_unknown() {
            return BTreeMap::new();
        }
        let mut named: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for collector in agent.may_have().flat_map(|content| &content.short) {
            let endpoints = named.entry(&collector.name).or_default();
            endpoints.insert(&collector.endpoint);
        }
        let mut ids = BTreeMap::new();
        let mut lacks = None;
        for (collector, endpoints) in named {
            let use_of = |agent: &MemberName, endpoint: &str| use_of(agents, agent, endpoint);
            let number = short.numbers.allot(id, &endpoints, use_of, batch);
            ids.insert(
                collector.to_owned(),
                number.as_ref().map_or(0, |id| id.get().into()),
            );
            lacks = lacks.or(number.err().map(|why| (collector, why)));
        }
        match lacks {
            Some((collector, why)) => {
                if short.waiting.insert(id.clone()) {
                    tracing::warn!(agent = %id, collector, %why, "an agent waits for a source id of 8 bits");
                }
            }
            None => {
                short.waiting.remove(id);
            }
        }
        ids
    }
}

fn use_of(agents: &BTreeMap<MemberName, Agent>, id: &MemberName, endpoint: &str) -> Use {
    let Some(agent) = agents.get(id).filter(|agent| !agent.revoked) else {
        return Use::Void;
    };
    let is_there = |agent: &Agent| {
        let mut contents = agent.may_have();
        contents.any(|content| content.short.iter().any(|one| one.endpoint == endpoint))
    };
    // Nothing older comes in force after what it has acked.
    match agent.line.is_some() && agent.has_wanted() && !agent.holds_unknown() && !is_there(agent) {
        true => Use::Elsewhere,
        false => Use::MayFeed,
    }
}

#[cfg(test)]
mod tests;
