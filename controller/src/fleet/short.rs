//! Source ids of 8 bits: by which number each collector of header version 1 knows its agents.
//!
//! An agent has a number at a collector as long as it is to feed it or feeds it, and keeps it while there are numbers enough;
//! it is free when the agent's identity is void. The 256th agent of a collector has none: it is told so, says so in its
//! health, and keeps its records until a number is free, which is looked for once a minute.
//!
//! Invariants: a number of a collector belongs to one agent at a time; what is said is on the disk first, as everything that
//! the fleet says. A restore from a backup forgets numbers that were given since: two agents may have the same until both
//! have connected again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;

use flowtilla_proto::spiffe::MemberName;

use super::agent::Agent;
use super::content::{Content, ShortNamed};
use super::{Fleet, Speech};
use crate::store::{Batch, Table};

/// Numbers that are given.
#[derive(Debug, Default)]
pub(super) struct ShortIds {
    /// By endpoint of the collector.
    collectors: BTreeMap<String, Numbers>,
    /// Agents that have none at one of their collectors.
    waiting: BTreeSet<MemberName>,
}

#[derive(Debug, Default)]
struct Numbers {
    by_number: BTreeMap<NonZeroU8, MemberName>,
    by_agent: BTreeMap<MemberName, NonZeroU8>,
}

impl Numbers {
    fn lowest_free(&self) -> Option<NonZeroU8> {
        (1..=u8::MAX)
            .filter_map(NonZeroU8::new)
            .find(|number| !self.by_number.contains_key(number))
    }
}

impl ShortIds {
    /// One that was given before, by its key in the store; `None`: it is no key.
    pub(super) fn restore(&mut self, key: &[u8], agent: MemberName) -> Option<()> {
        let (endpoint, [0, number]) = key.split_last_chunk::<2>()? else {
            return None;
        };
        let endpoint = std::str::from_utf8(endpoint).ok()?.to_owned();
        let number = NonZeroU8::new(*number)?;
        let numbers = self.collectors.entry(endpoint).or_default();
        numbers.by_number.insert(number, agent.clone());
        numbers.by_agent.insert(agent, number);
        Some(())
    }

    /// The agent's number at a collector; `None`: there is none. Whether it is given at this moment.
    fn allot(&mut self, agent: &MemberName, endpoint: &str, batch: &mut Batch) -> (Option<NonZeroU8>, bool) {
        let numbers = self.collectors.entry(endpoint.to_owned()).or_default();
        if let Some(number) = numbers.by_agent.get(agent) {
            return (Some(*number), false);
        }
        let Some(number) = numbers.lowest_free() else {
            return (None, false);
        };
        numbers.by_number.insert(number, agent.clone());
        numbers.by_agent.insert(agent.clone(), number);
        batch.put(Table::ShortSourceIds, key(endpoint, number), agent.as_str());
        (Some(number), true)
    }

    /// An agent speaks to no collector any more.
    pub(super) fn release(&mut self, agent: &MemberName, batch: &mut Batch) {
        self.waiting.remove(agent);
        let endpoints: Vec<String> = self.collectors.keys().cloned().collect();
        for endpoint in endpoints {
            self.take_back(&endpoint, agent, batch);
        }
    }

    fn take_back(&mut self, endpoint: &str, agent: &MemberName, batch: &mut Batch) {
        let Entry::Occupied(mut entry) = self.collectors.entry(endpoint.to_owned()) else {
            return;
        };
        let numbers = entry.get_mut();
        if let Some(number) = numbers.by_agent.remove(agent) {
            numbers.by_number.remove(&number);
            batch.remove(Table::ShortSourceIds, key(endpoint, number));
        }
        if numbers.by_number.is_empty() {
            entry.remove();
        }
    }
}

impl Fleet {
    /// Gives an agent its numbers at the collectors that it is to feed or feeds, and tells it, if there are such.
    pub(super) fn name_shortly(&mut self, id: &MemberName) {
        let Some(agent) = self.agents.get(id) else {
            return;
        };
        let (session, collectors) = (agent.line.as_ref().map(|line| line.session), short_named(agent));
        let (ids, _) = self.allot_short(id, &collectors);
        if let (Some(session), false) = (session, ids.is_empty()) {
            self.speech.push_back((session, Speech::ShortIds(ids)));
        }
    }

    /// Takes numbers back from agents that have no use for them, where others wait for one, and gives them to those.
    pub(super) fn name_who_waits(&mut self) {
        let waiting = self.short.waiting.clone();
        let wanted: BTreeSet<String> = waiting
            .iter()
            .filter_map(|id| self.agents.get(id))
            .flat_map(short_named)
            .map(|collector| collector.endpoint)
            .collect();
        for endpoint in &wanted {
            let Some(numbers) = self.short.collectors.get(endpoint) else {
                continue;
            };
            let uses = |id: &&MemberName| {
                let agent = self.agents.get(*id).filter(|agent| !agent.revoked);
                agent.is_some_and(|agent| short_named(agent).iter().any(|one| one.endpoint == *endpoint))
            };
            let idle: Vec<MemberName> = numbers.by_agent.keys().filter(|id| !uses(id)).cloned().collect();
            for id in idle {
                self.short.take_back(endpoint, &id, &mut self.batch);
            }
        }
        for id in waiting {
            let Some(agent) = self.agents.get(&id).filter(|agent| !agent.revoked) else {
                self.short.waiting.remove(&id);
                continue;
            };
            let (session, collectors) = (agent.line.as_ref().map(|line| line.session), short_named(agent));
            // The others were told already.
            if let ((ids, true), Some(session)) = (self.allot_short(&id, &collectors), session) {
                self.speech.push_back((session, Speech::ShortIds(ids)));
            }
        }
    }

    /// Numbers by name of the collector, 0 where none is left, and whether one was given at this moment.
    fn allot_short(&mut self, id: &MemberName, collectors: &[ShortNamed]) -> (BTreeMap<String, u32>, bool) {
        let (mut given, mut lacks) = (false, None);
        let mut ids = BTreeMap::new();
        for collector in collectors {
            let (number, news) = self.short.allot(id, &collector.endpoint, &mut self.batch);
            given |= news;
            if number.is_none() {
                lacks = Some(&collector.name);
            }
            ids.insert(
                collector.name.clone(),
                number.map_or(0, |number| number.get().into()),
            );
        }
        match lacks {
            Some(collector) if self.short.waiting.insert(id.clone()) => {
                tracing::warn!(agent = %id, collector, "no source id of 8 bits is left for it: give some of the collector's agents another one, or, if it reads it, header version 2");
            }
            Some(_) => {}
            None => {
                self.short.waiting.remove(id);
            }
        }
        (ids, given)
    }
}

/// Collectors of header version 1 that an agent feeds, and those that it is to feed, which come last.
fn short_named(agent: &Agent) -> Vec<ShortNamed> {
    let contents = [
        agent.in_force.as_deref(),
        agent.wanted.as_ref().map(|wanted| &*wanted.content),
    ];
    let named = |content: &Content| content.short.clone();
    contents.into_iter().flatten().flat_map(named).collect()
}

fn key(endpoint: &str, number: NonZeroU8) -> Vec<u8> {
    [endpoint.as_bytes(), &[0, number.get()]].concat()
}

#[cfg(test)]
mod tests;
