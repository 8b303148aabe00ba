//! What operators may want to look at: agents of which something is the matter, and what agents left out on purpose.
//!
//! In: the agents. Out: [`Concern`]s, each with the number of its agents and the names of a few, and [`LeftOut`] in sums. Changes
//! nothing.
//!
//! Invariant: an agent is in one at most of the four that say whether it has what it is to have and whether it is there.

use std::collections::{BTreeMap, BTreeSet};

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{Concern, ConcernKind, ConcernedAgent, LeftOut};
use flowtilla_proto::wire::session::{Aside, CollectorHealth, CollectorState, Health, KernelLeftOut};

use super::Fleet;
use super::agent::Agent;

/// Most agents of a concern that are named.
///
/// What a person reads of a line or two. Half of it hides the second rack; double it, and the verdict is out of sight.
const NAMED_MAX: usize = 10;

/// How many agents a concern has, and which were heard longest ago.
#[derive(Default)]
struct Found<'a> {
    agents: u32,
    first: BTreeSet<(i64, &'a MemberName)>,
}

impl<'a> Found<'a> {
    fn add(&mut self, id: &'a MemberName, agent: &Agent) {
        self.agents = self.agents.saturating_add(1);
        self.first.insert((agent.seen_ms, id));
        if self.first.len() > NAMED_MAX {
            self.first.pop_last();
        }
    }
}

impl Fleet {
    /// Agents of which something is the matter, by kind.
    pub(super) fn concerns(&self) -> Vec<Concern> {
        let mut found = BTreeMap::<ConcernKind, Found<'_>>::new();
        for (id, agent) in self.agents.iter().filter(|(_, agent)| !agent.revoked) {
            let standing = standing(agent);
            let conflict = (!agent.turns.conflict.is_empty()).then_some(ConcernKind::Conflict);
            let export = untaken(agent).map(|_| ConcernKind::Export);
            for kind in standing.into_iter().chain(conflict).chain(export) {
                found.entry(kind).or_default().add(id, agent);
            }
        }
        let concern = |(kind, found): (ConcernKind, Found<'_>)| Concern {
            kind: kind.into(),
            agents: found.agents,
            first: (found.first.iter())
                .filter_map(|(_, id)| Some(self.concerned(kind, id, self.agents.get(*id)?)))
                .collect(),
        };
        found.into_iter().map(concern).collect()
    }

    fn concerned(&self, kind: ConcernKind, id: &MemberName, agent: &Agent) -> ConcernedAgent {
        let why = match kind {
            ConcernKind::Refuses => self.refusal_told(id, agent).map(|nack| nack.reason),
            ConcernKind::Behind | ConcernKind::AwayBehind if agent.hello.is_none() => {
                Some("it has never come".to_owned())
            }
            ConcernKind::Conflict => Some(agent.turns.conflict.clone()),
            ConcernKind::Export => untaken(agent).map(reason),
            ConcernKind::Behind | ConcernKind::AwayBehind | ConcernKind::Away | ConcernKind::Unspecified => {
                None
            }
        };
        ConcernedAgent {
            agent: id.to_string(),
            last_seen_ms: agent.seen_ms,
            why: why.unwrap_or_default(),
        }
    }

    /// What agents left out on purpose; `None`: nobody has told anything.
    pub(super) fn left_out(&self) -> Option<LeftOut> {
        let live = self.agents.values().filter(|agent| !agent.revoked);
        let mut sums: Option<LeftOut> = None;
        for health in live.filter_map(|agent| agent.health.as_deref()) {
            let sums = sums.get_or_insert_default();
            sums.agents = sums.agents.saturating_add(1);
            add(sums.filtered.get_or_insert_default(), health.filtered);
            add(sums.sampled_out.get_or_insert_default(), health.sampled_out);
            add_kernel(sums.kernel.get_or_insert_default(), health);
        }
        sums
    }
}

/// Whether it has what it is to have, and is there; `None`: both.
fn standing(agent: &Agent) -> Option<ConcernKind> {
    match (agent.line.is_some(), agent.converged()) {
        _ if agent.refuses() => Some(ConcernKind::Refuses),
        (true, true) => None,
        (true, false) => Some(ConcernKind::Behind),
        (false, false) => Some(ConcernKind::AwayBehind),
        (false, true) => Some(ConcernKind::Away),
    }
}

/// Of collectors that it feeds one of at a time, or alone, and none of which takes its records though some wait: one that says why,
/// or the first.
fn untaken(agent: &Agent) -> Option<&CollectorHealth> {
    let (Some(_), Some(health), Some(content)) = (&agent.line, &agent.health, &agent.in_force) else {
        return None;
    };
    content.groups.iter().find_map(|group| {
        let of_group = || {
            let all = health.collectors.iter();
            all.filter(|collector| group.collectors.contains(&collector.name))
        };
        // One that acknowledges nothing takes them all the same.
        let takes = [CollectorState::Streaming, CollectorState::Unacknowledged];
        let taken = of_group().any(|collector| takes.contains(&collector.state()));
        let waits = of_group().any(|collector| collector.waiting > 0);
        let telling = of_group().find(|collector| !collector.reason.is_empty());
        telling.or_else(|| of_group().next()).filter(|_| waits && !taken)
    })
}

fn reason(collector: &CollectorHealth) -> String {
    let reason = match (collector.reason.as_str(), collector.state()) {
        ("", CollectorState::AwaitingSubscription) => "it is connected and does not subscribe",
        ("", _) => "it is not reached",
        (reason, _) => reason,
    };
    format!("{}: {reason}", collector.name)
}

fn add(sum: &mut Aside, told: Option<Aside>) {
    let told = told.unwrap_or_default();
    sum.records = sum.records.saturating_add(told.records);
    sum.octets = sum.octets.saturating_add(told.octets);
    sum.packets = sum.packets.saturating_add(told.packets);
}

fn add_kernel(sum: &mut KernelLeftOut, health: &Health) {
    let told = health.kernel_left_out.unwrap_or_default();
    sum.connections = sum.connections.saturating_add(told.connections);
    sum.packets = sum.packets.saturating_add(told.packets);
    sum.octets = sum.octets.saturating_add(told.octets);
    sum.cgroups = sum.cgroups.saturating_add(told.cgroups);
    sum.beyond = sum.beyond.saturating_add(told.beyond);
}
