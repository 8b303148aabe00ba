//! Who exports to which collector, so that a flow between two agents is told once.
//!
//! In: live agents with their addresses and what they have in force. Out: one list a [`Group`], told to each agent of the
//! group when it changes, at most every [`COALESCE_MS`], not before [`FROZEN_MS`] after a start: until then agents keep the
//! lists that they have.
//!
//! Invariants: an address that two live agents claim is in no list. All lists are told within [`TOLD_WITHIN_MS`]: what does not fit
//! is off, so that agents learn of a change within the time that their rule bears (`agent/core/src/fleet/rule.rs`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session::{self as wire, Feature};
use prost::Message as _;

use super::content::Group;
use super::{Fleet, Now, SessionId, Speech};

/// Shortest time between two changes of lists, in milliseconds.
///
/// Source: design section 6. Half of it tells of each agent of a rollout by itself; double it, and a dead agent's flows are
/// told by nobody for longer.
pub(super) const COALESCE_MS: u64 = 5_000;

/// How long after a start no list is told, in milliseconds.
///
/// By then agents are back. Half of it tells short lists in a storm of reconnects; double it, and an agent that ended with the
/// controller stays in lists for a minute.
pub(super) const FROZEN_MS: u64 = 30_000;

/// Most addresses of a list; above it the list is off.
///
/// Source: design section 6. An agent keeps the list in memory and looks up both ends of each flow.
pub(super) const ADDRESSES_LISTED_MAX: usize = 4_096;

/// Octets of lists that are told at once, over all agents, and how often; the next change waits until all are told.
///
/// 335 Mbit/s, for as long as it lasts. Half of it makes the largest lists that are kept a third shorter; double it, and a controller
/// with a gigabit has no room for anything else.
const TELL_OCTETS: u64 = 20 << 20;
/// See [`TELL_OCTETS`]; milliseconds.
const TELL_EVERY_MS: u64 = 500;

/// How long a telling takes at most, in milliseconds; what is not told by then is told at once.
///
/// Agents bear 10 s between the first and the last that learns of a change, and those that died are to be told of within 20 s. Half of it
/// halves the lists that there can be; double it, and a slow line has flows counted twice.
pub(super) const TOLD_WITHIN_MS: u64 = 5_000;

/// Octets of all lists, to all agents: as many as are told in that time. The longest lists above it are off.
///
/// Some 2,300 agents with one short name and one address each, two thirds of that with two of IPv6 besides, or 20 lists of 500. They wait
/// in streams' buffers until they are read: 10,000 streams must not hold 10,000 long lists.
const TELL_ALL_OCTETS: u64 = TELL_OCTETS * (TOLD_WITHIN_MS / TELL_EVERY_MS);

/// Streams of a millisecond: more than are let in in it. Milliseconds since the epoch have 41 bits.
const RUN_SHIFT: u32 = 20;

/// Lists, and who was told which.
pub(super) struct Members {
    /// Tells streams of this run from those of others.
    run: u64,
    frozen_until_ms: u64,
    next_ms: u64,
    touched: bool,
    /// Not everybody was told of the lists there are; when to go on.
    telling: bool,
    tell_at_ms: u64,
    tell_all_at_ms: u64,
    lists: BTreeMap<Group, List>,
    /// Generations that were told on each stream.
    told: BTreeMap<SessionId, BTreeMap<Group, u64>>,
    /// Whose an address is; `None`: several agents claim it.
    owners: BTreeMap<IpAddr, Option<MemberName>>,
}

/// A list as it is told, and its octets.
struct List {
    told: Arc<wire::Members>,
    octets: u64,
}

impl Members {
    pub(super) fn new(now: Now) -> Self {
        Self {
            run: now.wall_ms.max(0).cast_unsigned() << RUN_SHIFT,
            frozen_until_ms: now.run_ms.saturating_add(FROZEN_MS),
            next_ms: 0,
            touched: true,
            telling: false,
            tell_at_ms: 0,
            tell_all_at_ms: 0,
            lists: BTreeMap::new(),
            told: BTreeMap::new(),
            owners: BTreeMap::new(),
        }
    }

    /// Something has changed that lists are made of.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    pub(super) fn handle_open(&mut self, session: SessionId) {
        self.told.insert(session, BTreeMap::new());
    }

    pub(super) fn handle_closed(&mut self, session: SessionId) {
        self.told.remove(&session);
    }

    /// Whose an address is, when it is one agent's alone.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&MemberName> {
        self.owners.get(&address)?.as_ref()
    }
}

impl Fleet {
    /// Makes lists anew when something has changed, and tells them.
    pub(super) fn update_members(&mut self, now: Now) {
        let members = &mut self.members;
        if members.touched && !members.telling && now.run_ms >= members.next_ms {
            members.next_ms = now.run_ms.saturating_add(COALESCE_MS);
            members.owners.clear();
            for (id, agent) in self.agents.iter().filter(|(_, agent)| agent.line.is_some()) {
                for address in &agent.addresses {
                    members
                        .owners
                        .entry(*address)
                        .and_modify(|owner| *owner = None)
                        .or_insert_with(|| Some(id.clone()));
                }
            }
            if now.run_ms >= members.frozen_until_ms {
                members.touched = false;
                members.telling = true;
                members.tell_at_ms = now.run_ms;
                members.tell_all_at_ms = now.run_ms.saturating_add(TOLD_WITHIN_MS);
                self.update_lists(now);
            }
        }
        if self.members.telling && now.run_ms >= self.members.tell_at_ms {
            self.members.tell_at_ms = now.run_ms.saturating_add(TELL_EVERY_MS);
            self.members.telling = !self.tell_members(now);
        }
    }

    fn update_lists(&mut self, now: Now) {
        let mut fresh = BTreeMap::<Group, Vec<wire::Member>>::new();
        let mut readers = BTreeMap::<&Group, u64>::new();
        for (id, agent) in &self.agents {
            let (Some(line), Some(content)) = (&agent.line, &agent.in_force) else {
                continue;
            };
            for group in &content.groups {
                *readers.entry(group).or_default() += 1;
            }
            let misread = agent.misreads(content).next().is_some();
            if content.drain && agent.knows(Feature::Drain) {
                continue; // It sees nothing: its peers tell what they have with it.
            }
            let own = |address: &&IpAddr| self.members.owner(**address) == Some(id);
            let addresses = agent.addresses.iter().filter(own).map(octets).collect();
            let member = wire::Member {
                agent: id.to_string(),
                addresses,
                partial: content.partial || misread || agent.unaware,
                stream: self.members.run.wrapping_add(line.session.0),
                since: 0,
                apart: agent.apart.keys().map(ToString::to_string).collect(),
            };
            for group in &content.groups {
                fresh.entry(group.clone()).or_default().push(member.clone());
            }
        }
        self.members.lists.retain(|group, _| fresh.contains_key(group));
        let mut lists = Vec::with_capacity(fresh.len());
        for (group, mut members) in fresh {
            let before = self.members.lists.get(&group).map(|list| &*list.told);
            // Rises over a restart too, which begins without lists.
            let generation = before
                .map_or(0, |before| before.generation.saturating_add(1))
                .max(now.wall_ms.max(0).cast_unsigned());
            date(&mut members, before, generation);
            let list = wire::Members {
                collector: group.name().to_owned(),
                generation,
                members,
                off: false,
            };
            let to_all = size(&list).saturating_mul(readers.get(&group).copied().unwrap_or_default());
            lists.push((to_all, group, list));
        }
        lists.sort_by(|(one, one_group, _), (other, other_group, _)| {
            (one, one_group).cmp(&(other, other_group))
        });
        let mut room = TELL_ALL_OCTETS;
        for (to_all, group, mut list) in lists {
            let agents = list.members.len();
            let addresses: usize = list.members.iter().map(|member| member.addresses.len()).sum();
            let fits = room.checked_sub(to_all);
            let off = match fits {
                _ if addresses > ADDRESSES_LISTED_MAX => Some("it would have too many addresses"),
                None => Some("all its agents could not be told of a change in time"),
                Some(left) => {
                    room = left;
                    None
                }
            };
            if off.is_some() {
                list.off = true;
                list.members.clear();
            }
            let before = self.members.lists.get(&group).map(|list| &*list.told);
            if before.is_some_and(|before| before.off == list.off && before.members == list.members) {
                continue;
            }
            if before.is_some_and(|before| before.off) != list.off {
                let collector = group.name();
                match off {
                    Some(why) => tracing::warn!(
                        collector,
                        agents,
                        addresses,
                        why,
                        "no list of the agents of this collector is kept: flows between two of them are counted twice. Give \
                         some of them a collector of their own"
                    ),
                    None => tracing::info!(
                        collector,
                        agents,
                        "the list of this collector's agents is kept again"
                    ),
                }
            }
            let list = List {
                octets: size(&list),
                told: Arc::new(list),
            };
            self.members.lists.insert(group, list);
        }
    }

    /// Tells agents the lists of their groups that they were not told, up to [`TELL_OCTETS`], or all when it is time. Whether all are
    /// told.
    fn tell_members(&mut self, now: Now) -> bool {
        let mut told = 0;
        let all = now.run_ms >= self.members.tell_all_at_ms;
        for agent in self.agents.values() {
            let (Some(line), Some(content)) = (&agent.line, &agent.in_force) else {
                continue;
            };
            let known = self.members.told.entry(line.session).or_default();
            known.retain(|group, _| content.groups.contains(group));
            for group in &content.groups {
                let Some(list) = self.members.lists.get(group) else {
                    continue;
                };
                if known.get(group) == Some(&list.told.generation) {
                    continue;
                }
                if told >= TELL_OCTETS && !all {
                    return false;
                }
                told += list.octets;
                known.insert(group.clone(), list.told.generation);
                self.speech
                    .push_back((line.session, Speech::Members(Arc::clone(&list.told))));
            }
        }
        true
    }
}

/// Says of each member since which generation it is as it is.
fn date(members: &mut [wire::Member], before: Option<&wire::Members>, generation: u64) {
    let before = before.map_or(&[][..], |before| &before.members);
    let before: BTreeMap<&str, &wire::Member> = before.iter().map(|one| (one.agent.as_str(), one)).collect();
    for member in members {
        let as_before = before.get(member.agent.as_str()).filter(|before| {
            (&before.addresses, before.partial, before.stream, &before.apart)
                == (&member.addresses, member.partial, member.stream, &member.apart)
        });
        member.since = as_before.map_or(generation, |before| before.since);
    }
}

pub(super) fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn size(list: &wire::Members) -> u64 {
    list.encoded_len() as u64
}
