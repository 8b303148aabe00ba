//! How the fleet stands, as operators see it.

use std::collections::{BTreeMap, BTreeSet};

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{
    Agent as WireAgent, AgentState, AgentsRequest, Concern, HistoryResponse, LeftOut, ObjectsResponse,
    Revision, Rollout, RolloutEvent, RolloutState,
};
use flowtilla_proto::wire::session::{EndReason, Hello, Nack};

use super::agent::Agent;
use super::load::{self, LoadError};
use super::members::octets;
use super::rollouts::event;
use super::row::RevisionRow;
use super::{Fleet, SessionId};
use crate::policy::Objects;
use crate::store::Store;

/// How the fleet stands, in numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The revision of record; 0: none was made.
    pub revision: u64,
    /// Rises with each restore.
    pub epoch: u64,
    /// Agents that have an identity.
    pub agents: u32,
    /// Of those, connected.
    pub connected: u32,
    /// Of those connected, with what they are to have in force.
    pub converged: u32,
    /// Agents that refused what they are to have, or do not know it.
    pub nacked: u32,
    /// Of those, agents that do not know it, and were not offered it.
    pub not_offered: u32,
    /// Agents, connected or not, that have not what they are to have.
    pub behind: u32,
    /// Agents that several policies of one priority choose.
    pub tied: u32,
    /// Agents whose identity two processes use in turns.
    pub conflicts: u32,
    /// Agents that are to be drained, or are.
    pub draining: u32,
    /// There is no room on the disk: nothing is changed ([`Fleet::stands_still`]).
    pub still: bool,
    /// Agents by how they are known, those with a void identity too.
    pub by_state: BTreeMap<AgentState, u32>,
    /// Rollouts that are kept, by how they stand.
    pub rollouts: BTreeMap<RolloutState, u32>,
    /// The newest rollout.
    pub rollout: Option<Rollout>,
    /// Agents of which something is the matter.
    pub concerns: Vec<Concern>,
    /// What agents left out on purpose; `None`: nobody has told anything.
    pub left_out: Option<LeftOut>,
}

impl Fleet {
    /// The revision of record; 0: none was made.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// The stream is not read: it is ended.
    pub fn handle_slow(&mut self, session: SessionId) {
        if let Some(id) = self.sessions.get(&session).cloned() {
            let text = "the agent does not read what it is told".to_owned();
            self.end(&id, EndReason::Slow, text);
        }
    }

    /// The objects of record.
    #[must_use]
    pub fn objects_of_record(&self) -> ObjectsResponse {
        ObjectsResponse {
            revision: self.meta.revision,
            objects: self.objects.to_wire(),
        }
    }

    /// Agents that were asked for, by id.
    #[must_use]
    pub fn agents(&self, request: &AgentsRequest) -> Vec<WireAgent> {
        let ids: BTreeSet<&str> = request.ids.iter().map(String::as_str).collect();
        let wanted = |id: &MemberName, agent: &Agent| {
            (ids.is_empty() || ids.contains(id.as_str()))
                && request
                    .labels
                    .iter()
                    .all(|(key, value)| agent.labels.as_map().get(key) == Some(value))
        };
        self.agents
            .iter()
            .filter(|(id, agent)| wanted(id, agent))
            .map(|(id, agent)| self.agent(id, agent))
            .collect()
    }

    fn agent(&self, id: &MemberName, agent: &Agent) -> WireAgent {
        let state = agent_state(agent);
        let wanted = agent.wanted.as_ref();
        WireAgent {
            id: id.to_string(),
            labels: agent.labels.as_map().clone(),
            state: state.into(),
            last_seen_ms: agent.seen_ms,
            enrolled_ms: agent.enrolled_ms,
            svid_not_after_ms: 0,
            hello: agent.hello.as_deref().map(|hello| Hello {
                addresses: agent.addresses.iter().map(octets).collect(),
                ..hello.clone()
            }),
            health: agent.health.as_deref().cloned(),
            effective: agent.effective.as_deref().cloned(),
            held: agent.held.map(super::Mark::to_wire),
            wanted: wanted.map(|wanted| wanted.mark.to_wire()),
            policy: agent.policy().unwrap_or_default().to_owned(),
            nack: self.refusal_told(id, agent),
            source_id: self.sources.of(id).map_or(0, |id| id.number()),
            revision_held: agent.in_force.as_ref().map_or(0, |content| content.revision),
            revision_wanted: agent.intended().map_or(0, |content| content.revision),
            tied: self.objects.tied(id, &agent.labels),
            untold_octets: agent.untold_octets,
            untold_by: agent.untold_by.iter().map(ToString::to_string).collect(),
            conflict: agent.turns.conflict.clone(),
            drain: agent.drain_state().into(),
            svid_serials: Vec::new(),
        }
    }

    /// Why an agent has not what it is to have, or is not drained.
    pub(super) fn refusal_told(&self, id: &MemberName, agent: &Agent) -> Option<Nack> {
        let own = agent.refusal().cloned();
        let of_meant = own.or_else(|| agent.refusal_of_meant());
        of_meant.or_else(|| agent.refusal_to_drain(id))
    }

    /// How the fleet stands, in numbers.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let live = || self.agents.values().filter(|agent| !agent.revoked);
        let connected = || live().filter(|agent| agent.line.is_some());
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let mut by_state = BTreeMap::<AgentState, u32>::new();
        for agent in self.agents.values() {
            *by_state.entry(agent_state(agent)).or_default() += 1;
        }
        let mut rollouts = BTreeMap::<RolloutState, u32>::new();
        let going = self.rollouts.runs().map(|run| run.head().state.wire());
        for state in going.chain(self.rollouts.past().values().map(Rollout::state)) {
            *rollouts.entry(state).or_default() += 1;
        }
        Standing {
            revision: self.meta.revision,
            epoch: self.numbers.epoch,
            agents: number(live().count()),
            connected: number(connected().count()),
            converged: number(connected().filter(|agent| agent.converged()).count()),
            nacked: number(live().filter(|agent| agent.refuses()).count()),
            not_offered: number(live().filter(|agent| agent.does_not_know()).count()),
            behind: number(live().filter(|agent| !agent.converged()).count()),
            tied: number(self.tied()),
            draining: number(live().filter(|agent| agent.drain).count()),
            conflicts: number(live().filter(|agent| !agent.turns.conflict.is_empty()).count()),
            still: self.still,
            by_state,
            rollouts,
            rollout: self.rollouts(1).pop(),
            concerns: self.concerns(),
            left_out: self.left_out(),
        }
    }

    fn tied(&self) -> usize {
        if !self.objects.has_rivals() {
            return 0;
        }
        let live = self.agents.iter().filter(|(_, agent)| !agent.revoked);
        live.filter(|(id, agent)| !self.objects.tied(id, &agent.labels).is_empty())
            .count()
    }

    /// Rollouts, the newest first.
    #[must_use]
    pub fn rollouts(&self, limit: usize) -> Vec<Rollout> {
        let mut all: BTreeMap<u64, Rollout> = self.rollouts.past().clone();
        all.extend(self.rollouts.runs().map(|run| (run.head().id, run.view())));
        all.into_values().rev().take(limit).collect()
    }

    /// Number of the newest rollout.
    #[must_use]
    pub fn newest_rollout(&self) -> Option<u64> {
        let going = self.rollouts.runs().map(|run| run.head().id);
        going.chain(self.rollouts.past().keys().copied()).max()
    }

    /// A rollout that goes on, and every agent's part.
    #[must_use]
    pub fn rollout_event(&self, id: u64) -> Option<RolloutEvent> {
        self.rollouts.run(id).map(event)
    }

    /// Rollouts that have changed since this was asked.
    pub fn take_told_rollouts(&mut self) -> BTreeSet<u64> {
        self.rollouts.take_told()
    }

    /// The revision before that of record; 0: there is none. When that of record is a roll-back, the one that it went back to:
    /// what was taken back, by the controller itself or by hand, is not brought again.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn revision_before(&self, store: &dyn Store) -> Result<u64, LoadError> {
        let row = load::revision(store, self.meta.revision)?;
        // What nobody made, the controller took back, and be it to no objects at all.
        let back = |row: &RevisionRow| row.rollback_to != 0 || row.by.is_empty();
        Ok(row.map_or(0, |row| if back(&row) { row.rollback_to } else { row.before }))
    }

    /// The newest revision, and how the rollouts of each stand: where a look at the history begins.
    #[must_use]
    pub fn newest(&self) -> Newest {
        let going = self
            .rollouts
            .runs()
            .map(|run| (run.head().revision, run.head().state.wire()));
        let past = self
            .rollouts
            .past()
            .values()
            .map(|past| (past.revision, past.state()));
        let mut states = BTreeMap::<u64, RolloutState>::new();
        for (revision, state) in going.chain(past) {
            let most = states.entry(revision).or_insert(state);
            if rank(state) < rank(*most) {
                *most = state;
            }
        }
        Newest {
            revision: self.meta.revision,
            states,
        }
    }
}

/// Where a look at the history begins. The rest of it is in the store.
#[derive(Clone, Debug)]
pub struct Newest {
    revision: u64,
    /// Of revisions with rollouts, the state that says most.
    states: BTreeMap<u64, RolloutState>,
}

impl Newest {
    /// Revisions, the newest first, until `stops`. Reads each whole and compares it with the one before, some milliseconds each for a
    /// large fleet: not for the thread that owns the fleet.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn history(
        &self,
        store: &dyn Store,
        limit: usize,
        stops: impl Fn() -> bool,
    ) -> Result<HistoryResponse, LoadError> {
        let read = |row: &RevisionRow| Objects::from_wire(&row.objects).unwrap_or_default();
        let mut revisions = Vec::new();
        let newest = load::revision(store, self.revision)?;
        let mut next = newest.map(|row| (read(&row), row));
        while let Some((objects, row)) = next {
            if revisions.len() >= limit || stops() {
                break;
            }
            let before = load::revision(store, row.before)?.map(|row| (read(&row), row));
            let none = Objects::default();
            let changes = before
                .as_ref()
                .map_or(&none, |(objects, _)| objects)
                .changes(&objects);
            revisions.push(Revision {
                revision: row.number,
                made_ms: row.made_ms,
                by: row.by,
                message: row.message,
                changes,
                rollback_to: row.rollback_to,
                state: self
                    .states
                    .get(&row.number)
                    .copied()
                    .unwrap_or(RolloutState::Done)
                    .into(),
            });
            next = before;
        }
        Ok(HistoryResponse { revisions })
    }
}

/// Which of the states of one revision's rollouts says most: the lowest.
fn rank(state: RolloutState) -> u8 {
    match state {
        RolloutState::RollingBack => 0,
        RolloutState::RolledBack => 1,
        RolloutState::Paused => 2,
        RolloutState::Running => 3,
        RolloutState::Soaking => 4,
        RolloutState::Superseded => 5,
        RolloutState::Done | RolloutState::Unspecified => 6,
    }
}

fn agent_state(agent: &Agent) -> AgentState {
    match agent {
        _ if agent.revoked => AgentState::Revoked,
        _ if agent.line.is_some() => AgentState::Connected,
        _ if agent.seen_ms == 0 => AgentState::New,
        _ => AgentState::Offline,
    }
}
