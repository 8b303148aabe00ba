//! The rollouts that go on: who is held back, and when one ends or goes back.
//!
//! Invariants: those that hold agents back are of the revision of record; an agent's policy after the change is that of the
//! rollout that it belongs to.

use std::collections::{BTreeMap, BTreeSet};

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{self as wire, GateFailure, RolloutPart, RolloutState};
use prost::Message;

use super::agent::Agent;
use super::row::RolloutRow;
use super::{Fleet, Now};
use crate::store::Table;

/// Most rollouts that are kept, ended ones included.
///
/// A month of eight a day. Half of it still tells of two weeks; double it, and the list of them is not read.
pub(super) const ROLLOUTS_KEPT: usize = 256;

/// Most agents that a gate's failure names.
pub(super) const AGENTS_NAMED_MAX: usize = 16;

/// A rollout that goes on.
pub(super) struct Run {
    pub(super) id: u64,
    pub(super) revision: u64,
    pub(super) policy: String,
    pub(super) began_ms: i64,
    pub(super) state: RolloutState,
    pub(super) failures: Vec<GateFailure>,
    pub(super) population: BTreeSet<MemberName>,
}

/// Those that go on, and summaries of those that have ended.
#[derive(Default)]
pub(super) struct Rollouts {
    pub(super) runs: BTreeMap<u64, Run>,
    pub(super) past: BTreeMap<u64, wire::Rollout>,
    touched: bool,
    /// Rollouts of which something was changed since it was asked.
    pub(super) told: BTreeSet<u64>,
}

impl Rollouts {
    /// Something has changed that a rollout may wait for.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    pub(super) fn is_touched(&self) -> bool {
        self.touched && !self.runs.is_empty()
    }

    /// Whether an agent whose policy is to be this one must keep what it has.
    pub(super) fn holds_back(&self, agent: &MemberName, policy: Option<&str>, revision: u64) -> bool {
        let Some(policy) = policy else {
            return false;
        };
        self.runs
            .values()
            .any(|run| run.revision == revision && run.policy == policy && !run.admits(agent))
    }
}

impl Run {
    fn admits(&self, _agent: &MemberName) -> bool {
        true
    }

    pub(super) fn to_row(&self) -> RolloutRow {
        RolloutRow {
            id: self.id,
            revision: self.revision,
            policy: self.policy.clone(),
            began_ms: self.began_ms,
            ended_ms: 0,
            state: self.state.into(),
            machine: serde_json::to_vec(&self.population.iter().map(MemberName::as_str).collect::<Vec<_>>())
                .unwrap_or_default(),
            failures: self.failures.clone(),
            ended: None,
        }
    }
}

impl Fleet {
    /// Lets rollouts go on as far as they can.
    pub(super) fn advance_rollouts(&mut self, now: Now) {
        self.rollouts.touched = false;
        let ids: Vec<u64> = self.rollouts.runs.keys().copied().collect();
        for id in ids {
            self.advance(id, now);
        }
    }

    fn advance(&mut self, id: u64, now: Now) {
        let Some(run) = self.rollouts.runs.get(&id) else {
            return;
        };
        self.rollouts.told.insert(id);
        let members = run
            .population
            .iter()
            .filter_map(|name| Some((name, self.agents.get(name)?)));
        let live = members.filter(|(_, agent)| agent.line.is_some());
        let (mut waits, mut refused) = (false, Vec::new());
        for (name, agent) in live {
            match agent.refusal() {
                Some(nack) => refused.push((name.clone(), nack.clone())),
                None => waits |= !agent.converged(),
            }
        }
        match run.state {
            RolloutState::RollingBack if !waits => self.finish(id, RolloutState::RolledBack, now),
            RolloutState::Running if !refused.is_empty() => {
                let (name, nack) = &refused[0];
                let message = format!("{name} refused it: {}", nack.reason);
                let failure = GateFailure {
                    gate: "nack".to_owned(),
                    agents: refused
                        .iter()
                        .take(AGENTS_NAMED_MAX)
                        .map(|(name, _)| name.to_string())
                        .collect(),
                    value: refused.len() as f64,
                    baseline: 0.0,
                    bound: 0.0,
                    message,
                };
                self.go_back(id, vec![failure], now);
            }
            RolloutState::Running if !waits => self.finish(id, RolloutState::Done, now),
            _ => {}
        }
    }

    /// Ends a rollout. The last of a revision that is done settles the revision.
    pub(super) fn finish(&mut self, id: u64, state: RolloutState, now: Now) {
        let Some(mut run) = self.rollouts.runs.remove(&id) else {
            return;
        };
        run.state = state;
        let mut summary = self.rollout_of(&run);
        summary.ended_ms = now.wall_ms;
        let row = RolloutRow {
            ended_ms: now.wall_ms,
            machine: Vec::new(),
            ended: Some(wire::RolloutEvent {
                rollout: Some(summary.clone()),
                agents: self.parts(&run),
            }),
            ..run.to_row()
        };
        self.batch
            .put(Table::Rollouts, id.to_be_bytes(), row.encode_to_vec());
        self.rollouts.told.insert(id);
        self.rollouts.past.insert(id, summary);
        while self.rollouts.past.len() > ROLLOUTS_KEPT {
            if let Some((id, _)) = self.rollouts.past.pop_first() {
                self.batch.remove(Table::Rollouts, id.to_be_bytes());
            }
        }
        let left = self.rollouts.runs.values();
        let going = left.filter(|run| run.revision == self.meta.revision).count();
        if state == RolloutState::Done && going == 0 && run.revision == self.meta.revision {
            self.settle_revision();
        }
    }

    /// Takes a revision back: every rollout of it, with the reason in the one that failed.
    pub(super) fn go_back(&mut self, id: u64, failures: Vec<GateFailure>, now: Now) {
        let Some(run) = self.rollouts.runs.get(&id) else {
            return;
        };
        let revision = run.revision;
        let why = match failures.first() {
            Some(failure) => format!("revision {revision} went back: {}", failure.message),
            None => format!("revision {revision} was aborted"),
        };
        for run in self.rollouts.runs.values_mut() {
            if run.revision == revision {
                run.state = RolloutState::RollingBack;
                if run.id == id {
                    run.failures = failures.clone();
                }
                self.batch.put(
                    Table::Rollouts,
                    run.id.to_be_bytes(),
                    run.to_row().encode_to_vec(),
                );
            }
        }
        self.return_to_settled(why, now);
        self.rollouts.touch();
    }

    /// A rollout as it travels.
    pub(super) fn rollout_of(&self, run: &Run) -> wire::Rollout {
        let mut counts = BTreeMap::<i32, u32>::new();
        for name in &run.population {
            *counts.entry(self.part(run, name).0.into()).or_default() += 1;
        }
        let count = |part: RolloutPart| counts.get(&i32::from(part)).copied().unwrap_or_default();
        wire::Rollout {
            id: run.id,
            revision: run.revision,
            state: run.state.into(),
            wave: 1,
            waves: 1,
            began_ms: run.began_ms,
            ended_ms: 0,
            acked: count(RolloutPart::Acked),
            nacked: count(RolloutPart::Nacked),
            pending: count(RolloutPart::Offered) + count(RolloutPart::Waiting),
            offline: count(RolloutPart::Offline),
            failures: run.failures.clone(),
            soak_until_ms: 0,
            policy: run.policy.clone(),
        }
    }

    /// Every agent's part in a rollout.
    pub(super) fn parts(&self, run: &Run) -> Vec<wire::RolloutAgent> {
        let one = |name: &MemberName| {
            let (part, reason) = self.part(run, name);
            wire::RolloutAgent {
                agent: name.to_string(),
                wave: 1,
                part: part.into(),
                reason,
            }
        };
        run.population.iter().map(one).collect()
    }

    fn part(&self, run: &Run, name: &MemberName) -> (RolloutPart, String) {
        let Some(agent) = self.agents.get(name) else {
            return (RolloutPart::Offline, String::new());
        };
        let back = matches!(run.state, RolloutState::RollingBack | RolloutState::RolledBack);
        let nack = |agent: &Agent| agent.nack.as_ref().map(|(_, nack)| nack.reason.clone());
        match (agent.refusal(), back) {
            (Some(refusal), _) => (RolloutPart::Nacked, refusal.reason.clone()),
            (None, true) if agent.converged() => (RolloutPart::TakenBack, nack(agent).unwrap_or_default()),
            (None, false) if agent.converged() => (RolloutPart::Acked, String::new()),
            _ if agent.line.is_none() => (RolloutPart::Offline, String::new()),
            _ => (RolloutPart::Offered, String::new()),
        }
    }
}
