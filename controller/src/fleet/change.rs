//! Changes of the objects: revisions are made here, forth and back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet::{AgentChange, ApplyResponse, Object, ObjectName, Rollout, Steering};
use prost::Message;

use super::assign::{of_targets, targets};
use super::rollouts::{Due, Steered};
use super::row::RevisionRow;
use super::{Fleet, Now};
use crate::policy::{ChangeMistakes, Objects};
use crate::store::Table;

/// Most revisions that are kept.
///
/// Three a day for a year. Half of it forgets the spring in autumn; double it, and a backup of a fleet with many objects takes
/// minutes.
const REVISIONS_KEPT: u64 = 1_000;

/// Longest reason of a change, in characters; what is longer is cut.
///
/// A paragraph. Half of it cuts what people write; double it, and the history is not read.
const MESSAGE_CHARS_MAX: usize = 1_024;

/// What an operator wants changed, and who it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Objects to make or to replace.
    pub objects: Vec<Object>,
    /// Objects to take away.
    pub removed: Vec<ObjectName>,
    /// Only tell what would change.
    pub dry_run: bool,
    /// Why.
    pub message: String,
    /// SPIFFE ID of the operator.
    pub by: String,
    /// The revision that the operator has seen; 0: whatever there is.
    pub expected_revision: u64,
    /// W3C trace context; empty: none.
    pub traceparent: String,
}

/// Why a change is refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ChangeRefused {
    /// Its objects are wrong.
    #[error("{} of the objects cannot be taken", .0.0.len())]
    Mistakes(ChangeMistakes),
    /// Somebody else was faster.
    #[error(
        "the fleet is at revision {revision}, and revision {expected} was expected; look at the difference and deploy again"
    )]
    Newer {
        /// What there is.
        revision: u64,
        /// What the operator had seen.
        expected: u64,
    },
    /// It is not kept, or never was.
    #[error("there is no revision {0}; see agentctl history")]
    NoRevision(u64),
    /// It is not kept, or never was.
    #[error("there is no rollout {0}; see agentctl rollout list")]
    NoRollout(u64),
    /// They are not known, or void.
    #[error("there is no agent {0}; see agentctl agents")]
    NoAgents(String),
    /// None was made.
    #[error("there is no revision yet; agentctl deploy makes the first one")]
    NoRevisionYet,
    /// None was before.
    #[error("there is nothing before revision {0} to go back to; name a revision: see agentctl history")]
    NothingBefore(u64),
    /// None has begun.
    #[error("there is no rollout yet; the first change that reaches an agent begins one")]
    NoRolloutYet,
    /// All have ended, or go back.
    #[error("no rollout goes on; see agentctl rollout list")]
    NoneGoesOn,
    /// It has ended.
    #[error("rollout {0} has ended")]
    Ended(u64),
    /// Not as it stands.
    #[error(transparent)]
    Steer(#[from] crate::rollout::SteerError),
    /// It does not say what to do.
    #[error("neither pause, resume nor abort is asked for")]
    NoSteering,
}

/// A revision that is to be made.
struct Draft {
    objects: Objects,
    by: String,
    message: String,
    rollback_to: u64,
    traceparent: String,
}

impl Fleet {
    /// Makes a revision, and begins to bring it to the agents.
    ///
    /// # Errors
    ///
    /// [`ChangeRefused`].
    pub fn apply(&mut self, change: Change, now: Now) -> Result<ApplyResponse, ChangeRefused> {
        let (expected, revision) = (change.expected_revision, self.meta.revision);
        if expected != 0 && expected != revision {
            return Err(ChangeRefused::Newer { revision, expected });
        }
        let objects = self
            .objects
            .changed(&change.objects, &change.removed)
            .map_err(ChangeRefused::Mistakes)?;
        let draft = Draft {
            objects,
            by: change.by,
            message: change.message,
            rollback_to: 0,
            traceparent: change.traceparent,
        };
        self.adopt(draft, &change.objects, change.dry_run, now)
    }

    /// Makes a revision with the objects of an earlier one, `to`, which the driver reads from the store. Of `change` only who,
    /// why and whether count.
    ///
    /// # Errors
    ///
    /// [`ChangeRefused`].
    pub fn roll_back(
        &mut self,
        to: &RevisionRow,
        change: Change,
        now: Now,
    ) -> Result<ApplyResponse, ChangeRefused> {
        let objects = Objects::from_wire(&to.objects).map_err(ChangeRefused::Mistakes)?;
        let message = match change.message.is_empty() {
            true => format!("back to revision {}", to.number),
            false => change.message,
        };
        let draft = Draft {
            objects,
            by: change.by,
            message,
            rollback_to: to.number,
            traceparent: change.traceparent,
        };
        self.adopt(draft, &to.objects, change.dry_run, now)
    }

    /// Pauses, resumes or aborts a rollout; an aborted one takes its revision back. `id` 0: the newest that goes on.
    ///
    /// # Errors
    ///
    /// [`ChangeRefused`].
    pub fn steer(
        &mut self,
        id: u64,
        steering: Steering,
        by: &str,
        now: Now,
    ) -> Result<Rollout, ChangeRefused> {
        let id = match (id, self.rollouts.newest_going()) {
            (0, Some(newest)) => newest,
            (0, None) if self.newest_rollout().is_none() => return Err(ChangeRefused::NoRolloutYet),
            (0, None) => return Err(ChangeRefused::NoneGoesOn),
            (id, _) => id,
        };
        match self.rollouts.steer(id, steering, by, now) {
            Some(Steered::Done(steered)) => steered?,
            Some(Steered::Nothing) => return Err(ChangeRefused::NoSteering),
            None if self.rollouts.past().contains_key(&id) => return Err(ChangeRefused::Ended(id)),
            None => return Err(ChangeRefused::NoRollout(id)),
        }
        self.advance_rollouts(now);
        let run = self.rollouts.run(id).map(crate::rollout::Rollout::view);
        let view = run.or_else(|| self.rollouts.past().get(&id).cloned());
        view.ok_or(ChangeRefused::NoRollout(id))
    }

    fn adopt(
        &mut self,
        draft: Draft,
        request: &[Object],
        dry_run: bool,
        now: Now,
    ) -> Result<ApplyResponse, ChangeRefused> {
        let live = self.agents.iter().filter(|(_, agent)| !agent.revoked);
        draft
            .objects
            .check_agents(
                &self.objects,
                request,
                live.map(|(id, agent)| (id, &agent.labels)),
            )
            .map_err(ChangeRefused::Mistakes)?;
        let mut response = ApplyResponse {
            revision: self.meta.revision,
            changes: self.objects.changes(&draft.objects),
            agents: Vec::new(),
            rollout: 0,
            rollouts: Vec::new(),
            warnings: draft.objects.oddities(),
            rollback_to: draft.rollback_to,
        };
        response.warnings.extend(self.idle_policies(&draft.objects));
        response.warnings.extend(self.crowded(&draft.objects));
        if response.changes.is_empty() {
            return Ok(response);
        }
        let (agents, groups) = self.difference(&draft.objects);
        response.agents = agents;
        if !dry_run {
            response.rollouts = self.make_revision(draft, Some(groups), now);
            self.advance_rollouts(now);
            response.rollout = response.rollouts.first().copied().unwrap_or_default();
            response.revision = self.meta.revision;
        }
        Ok(response)
    }

    /// Makes the objects of the last settled revision those of record again, for every agent at once.
    pub(super) fn return_to_settled(&mut self, why: String, now: Now) {
        let draft = Draft {
            objects: self.settled_objects.clone(),
            by: String::new(),
            message: why,
            rollback_to: self.meta.settled,
            traceparent: self.meta.traceparent.clone(),
        };
        self.make_revision(draft, None, now);
    }

    /// The revision of record is the one to go back to from here on, and everybody gets it.
    pub(super) fn settle_revision(&mut self, now: Now) {
        self.meta.settled = self.meta.revision;
        self.settled_objects = self.objects.clone();
        self.settled = self.targets.clone();
        self.meta_dirty = true;
        self.settle_all(now);
    }

    /// `groups`: agents whose assignment changes, by the policy that they get or lose; each makes a rollout. `None`: at once.
    fn make_revision(
        &mut self,
        draft: Draft,
        groups: Option<BTreeMap<Due, BTreeSet<MemberName>>>,
        now: Now,
    ) -> Vec<u64> {
        self.rollouts.supersede(groups.is_none(), now);
        self.numbers.revision = self.numbers.revision.max(self.meta.revision).saturating_add(1);
        let number = self.numbers.revision;
        let mut message = draft.message;
        if let Some((at, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
            message.truncate(at);
        }
        let row = RevisionRow {
            number,
            made_ms: now.wall_ms,
            by: draft.by,
            message,
            rollback_to: draft.rollback_to,
            objects: draft.objects.to_wire(),
            before: self.meta.revision,
        };
        self.batch
            .put(Table::Revisions, number.to_be_bytes(), row.encode_to_vec());
        if let Some(old) = number.checked_sub(REVISIONS_KEPT)
            && old != self.meta.settled
        {
            self.batch.remove(Table::Revisions, old.to_be_bytes());
        }
        self.meta.revision = number;
        self.traceparent = Arc::from(draft.traceparent.as_str());
        self.meta.traceparent = draft.traceparent;
        self.targets = targets(&draft.objects, number, &mut self.contents, &mut self.batch);
        let before = std::mem::replace(&mut self.objects, draft.objects);
        self.meta_dirty = true;
        let soak = self.objects.longest_soak().max(before.longest_soak());
        self.rollouts.handle_soak(soak);
        let mut ids = Vec::new();
        for (due, population) in groups.unwrap_or_default() {
            let (policy, loss) = match &due {
                Due::Policy(name) => (self.objects.policy(name), false),
                // What it asked for while it was in force; a rollout that goes on may have brought it, or not yet replaced it.
                Due::Loss(name) => {
                    let kept = before.policy(name).or_else(|| self.settled_objects.policy(name));
                    (kept.or_else(|| self.objects.policy(name)), true)
                }
            };
            let Some(policy) = policy else {
                continue;
            };
            let live = |id: &MemberName| self.agents.get(id).is_some_and(|agent| agent.line.is_some());
            let agents = population.iter().map(|id| (id.to_string(), live(id))).collect();
            self.numbers.rollout = self.numbers.rollout.saturating_add(1);
            let id = self.numbers.rollout;
            self.rollouts.begin(id, number, (policy, loss), agents, now);
            ids.push(id);
        }
        if ids.is_empty() {
            self.settle_revision(now);
        } else {
            self.settle_all(now);
        }
        ids
    }

    fn settle_all(&mut self, now: Now) {
        let ids: Vec<MemberName> = self.agents.keys().cloned().collect();
        for id in &ids {
            self.settle(id, now);
        }
    }

    /// Agents whose assignment a set of objects changes; and those that get or lose a policy, by that.
    fn difference(&self, after: &Objects) -> (Vec<AgentChange>, BTreeMap<Due, BTreeSet<MemberName>>) {
        // The number of the revision does not matter: contents are compared by what they ask.
        let mut contents = self.contents.clone();
        let new = targets(after, 0, &mut contents, &mut crate::store::Batch::default());
        let mut changes = Vec::new();
        let mut groups = BTreeMap::<Due, BTreeSet<MemberName>>::new();
        for (id, agent) in self.agents.iter().filter(|(_, agent)| !agent.revoked) {
            let Some(next) = of_targets(after, &new, id, agent) else {
                continue;
            };
            let next = match next.drained(agent.drains()) {
                Some(other) => contents.keep(other),
                None => next,
            };
            let before = agent.intended();
            if before.is_some_and(|before| before.sameness == next.sameness) {
                continue;
            }
            if let Some(due) = self.due(id, agent, &next) {
                groups.entry(due).or_default().insert(id.clone());
            }
            changes.push(AgentChange {
                agent: id.to_string(),
                policy_before: before
                    .and_then(|before| before.policy.clone())
                    .unwrap_or_default(),
                policy_after: next.policy.clone().unwrap_or_default(),
                connected: agent.line.is_some(),
                refusal: agent.line.as_ref().and_then(|_| agent.refusal_of(&next)),
            });
        }
        (changes, groups)
    }

    /// Policies that no agent gets.
    fn idle_policies(&self, objects: &Objects) -> Vec<String> {
        let live = self.agents.iter().filter(|(_, agent)| !agent.revoked);
        let used: BTreeSet<&str> = live
            .filter_map(|(id, agent)| objects.policy_for(id, &agent.labels, agent.policy()))
            .collect();
        objects
            .policies()
            .filter(|name| !used.contains(name))
            .map(|name| format!("no agent gets policy {name}"))
            .collect()
    }
}
