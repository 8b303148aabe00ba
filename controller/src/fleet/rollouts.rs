//! The rollouts that go on: the fleet's side of [`crate::rollout`].
//!
//! Tells rollouts what agents do, gives agents what they are admitted to, keeps rows. A change makes one rollout for each
//! policy whose agents get something else, and one for each that agents lose without getting another ([`Due`]); when one of
//! them goes back, the revision goes back, and with it the others.
//! Invariants: the rollouts that hold agents back are of the revision of record; what is told of a rollout is on the disk,
//! but for answers of the last half second, which agents give again, and on which no step rests that is there.

use std::collections::{BTreeMap, BTreeSet};

use flowtilla_proto::policy::Policy;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet as wire;
use prost::Message;

use super::row::{RolloutRow, bucket};
use super::{Fleet, Now};
use crate::rollout::{Content, HealthWindows, Member, Moment, Part, Rollout, State};
use crate::store::Table;

/// Most rollouts that are kept, ended ones included.
///
/// A month of eight a day. Half of it still tells of two weeks; double it, and the list of them is not read.
const ROLLOUTS_KEPT: usize = 256;

/// Most ended rollouts of which each agent's part is kept.
///
/// With 10,000 agents each takes half a mebibyte. Half of it is a busy day's; double it, and a backup is mostly old rollouts.
const PARTS_KEPT: usize = 32;

/// Those that go on, and summaries of those that have ended.
#[derive(Default)]
pub(super) struct Rollouts {
    runs: BTreeMap<u64, Rollout>,
    past: BTreeMap<u64, wire::Rollout>,
    windows: HealthWindows,
    touched: bool,
    /// Rollouts of which something was changed since it was asked.
    told: BTreeSet<u64>,
    /// Rows of members that are to be written with the next batch: rollout, bucket.
    due: BTreeSet<(u64, u8)>,
    /// Those that may wait: of agents that have answered, and will say again what they hold.
    late: BTreeSet<(u64, u8)>,
    /// The first moment, on both clocks.
    began: Option<(Moment, u64)>,
}

/// What a rollout brings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// A policy of this name.
    Policy(String),
    /// Nothing, in place of a policy of this name.
    Loss(String),
}

impl Due {
    /// Whether it is this rollout, of this revision, that brings it.
    fn is_brought_by(&self, run: &Rollout, revision: u64) -> bool {
        let head = run.head();
        let (policy, loss) = match self {
            Self::Policy(policy) => (policy, false),
            Self::Loss(policy) => (policy, true),
        };
        head.revision == revision && head.policy == *policy && head.loss == loss
    }
}

/// Key of the parts of the agents of a bucket.
fn members_key(id: u64, bucket: u8) -> Vec<u8> {
    [&id.to_be_bytes()[..], &[0, bucket]].concat()
}

impl Rollouts {
    /// Something has changed that a rollout may wait for.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// An agent's part is to be written with the next batch.
    pub(super) fn note(&mut self, id: u64, agent: &str) {
        self.due.insert((id, bucket(agent)));
    }

    /// What may wait waits no longer.
    pub(super) fn write_what_waits(&mut self) {
        self.due.append(&mut self.late);
    }

    /// One that was kept, as it ended.
    pub(super) fn restore_past(&mut self, id: u64, summary: wire::Rollout) {
        self.past.insert(id, summary);
    }

    /// One that was kept and goes on.
    pub(super) fn restore(&mut self, rollout: Rollout) {
        self.runs.insert(rollout.head().id, rollout);
    }

    /// Whether an agent to which this is due must keep what it has.
    pub(super) fn holds_back(&self, agent: &MemberName, due: &Due, revision: u64) -> bool {
        let run = self.runs.values().find(|run| due.is_brought_by(run, revision));
        run.is_some_and(|run| !run.admitted(agent.as_str()))
    }

    /// The newest that goes on.
    pub(super) fn newest_going(&self) -> Option<u64> {
        let going = self.runs.values().filter(|run| run.goes_on());
        going.map(|run| run.head().id).max()
    }

    /// This moment. Goes on from the first one as time does, also when the clock is set: a soak is neither cut nor drawn out.
    pub(super) fn moment(&mut self, now: Now) -> Moment {
        let wall_ms = now.wall_ms.max(0).cast_unsigned();
        let (from, since) = *self.began.get_or_insert((Moment(wall_ms), now.run_ms));
        Moment(from.0.saturating_add(now.run_ms.saturating_sub(since)))
    }

    /// When this controller began to hear of agents.
    pub(super) fn began(&self) -> Moment {
        self.began.map_or(Moment(0), |(began, _)| began)
    }

    /// What agents were like of late.
    pub(super) fn windows(&self) -> &HealthWindows {
        &self.windows
    }

    /// The agent's next heartbeat begins a span of its own.
    pub(super) fn cut(&mut self, agent: &MemberName) {
        self.windows.cut(agent.as_str());
    }

    pub(super) fn handle_health(&mut self, agent: &MemberName, health: &super::wire::Health, now: Now) {
        let now = self.moment(now);
        self.windows.note(agent.as_str(), health, now);
    }

    pub(super) fn handle_open(&mut self, agent: &MemberName, now: Now) {
        let now = self.moment(now);
        for run in self.runs.values_mut() {
            run.connected(agent.as_str(), &self.windows, now);
        }
    }

    pub(super) fn handle_closed(&mut self, agent: &MemberName, on_purpose: bool) {
        for run in self.runs.values_mut() {
            run.disconnected(agent.as_str(), on_purpose);
        }
        self.touched = true;
    }

    pub(super) fn handle_revoked(&mut self, agent: &MemberName) {
        for run in self.runs.values_mut() {
            run.removed(agent.as_str());
        }
        self.windows.remove(agent.as_str());
        self.touched = true;
    }

    /// An agent that does not belong to the rollout that brings what it is to get joins it.
    pub(super) fn handle_due(&mut self, agent: &MemberName, due: &Due, revision: u64, now: Now) {
        let now = self.moment(now);
        let Self { runs, windows, .. } = self;
        for run in runs.values_mut() {
            if due.is_brought_by(run, revision) {
                run.joined(agent.as_str(), windows, now);
            }
        }
    }

    /// Health is kept for as long as the longest soak asks.
    pub(super) fn handle_soak(&mut self, soak: std::time::Duration) {
        let ms = u64::try_from(soak.as_millis()).unwrap_or(u64::MAX);
        self.windows.set_soak(ms);
    }

    /// A rollout begins, on the terms of this policy; whether its agents lose it.
    pub(super) fn begin(
        &mut self,
        id: u64,
        revision: u64,
        (policy, loss): (&Policy, bool),
        agents: Vec<(String, bool)>,
        now: Now,
    ) {
        let now = self.moment(now);
        let run = Rollout::new(id, revision, policy, agents, now);
        let run = if loss { run.of_loss() } else { run };
        self.runs.insert(id, run);
        self.touched = true;
    }

    /// Those that go on, or go back, give way to a newer revision. `back`: those that go back go on with it.
    pub(super) fn supersede(&mut self, back: bool, now: Now) {
        let now = self.moment(now);
        for run in self.runs.values_mut() {
            if !back || run.goes_on() {
                run.supersede(now);
            }
        }
        self.touched = true;
    }

    /// Pauses, resumes or aborts one.
    pub(super) fn steer(&mut self, id: u64, steering: wire::Steering, by: &str, now: Now) -> Option<Steered> {
        let now = self.moment(now);
        let run = self.runs.get_mut(&id)?;
        self.touched = true;
        Some(match steering {
            wire::Steering::Unspecified => Steered::Nothing,
            wire::Steering::Pause => Steered::Done(run.pause()),
            wire::Steering::Resume => Steered::Done(run.resume(now)),
            wire::Steering::Abort => Steered::Done(run.abort(by, now)),
        })
    }

    pub(super) fn run(&self, id: u64) -> Option<&Rollout> {
        self.runs.get(&id)
    }

    pub(super) fn runs(&self) -> impl Iterator<Item = &Rollout> {
        self.runs.values()
    }

    pub(super) fn past(&self) -> &BTreeMap<u64, wire::Rollout> {
        &self.past
    }

    pub(super) fn take_told(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.told)
    }
}

/// What became of a steering.
pub(super) enum Steered {
    /// It does not say what to do.
    Nothing,
    /// It was tried.
    Done(Result<(), crate::rollout::SteerError>),
}

impl Fleet {
    /// An agent has in force what it is to have, or refuses it: its rollouts hear of it.
    pub(super) fn tell_rollouts(&mut self, id: &MemberName, now: Now) {
        let Some(agent) = self.agents.get(id) else {
            return;
        };
        let own = agent.refusal().map(|nack| nack.reason.clone());
        let refusal = own.or_else(|| agent.refusal_of_meant().map(|nack| nack.reason));
        let converged = agent.converged();
        let moment = self.rollouts.moment(now);
        for run in self.rollouts.runs.values_mut() {
            // A revision that went back is not of record any more: what its agents are to have is what they had.
            let content = match run.head().revision == self.meta.revision {
                true => Content::Change,
                false => Content::Before,
            };
            match &refusal {
                Some(reason) => run.nacked(id.as_str(), content, reason, moment),
                None if converged => run.acked(id.as_str(), content, moment),
                None => {}
            }
        }
        self.rollouts.touch();
    }

    /// Lets rollouts go on as far as they can. `due`: time has passed; else only what has come in counts.
    pub(super) fn advance_rollouts(&mut self, now: Now) {
        let moment = self.rollouts.moment(now);
        // A step of one may be a step of another: those of one revision go back together. Bounded: each goes back once.
        for _ in 0..=self.rollouts.runs.len() {
            self.rollouts.touched = false;
            let ids: Vec<u64> = self.rollouts.runs.keys().copied().collect();
            for id in ids {
                self.advance(id, moment, now);
            }
            if !self.rollouts.touched {
                break;
            }
        }
    }

    /// Whether there is something for the rollouts to look at.
    pub(super) fn rollouts_wait(&mut self, now: Now) -> bool {
        let moment = self.rollouts.moment(now);
        let due = |run: &Rollout| run.poll_timeout().is_some_and(|at| at <= moment);
        self.rollouts.touched || self.rollouts.runs.values().any(due)
    }

    fn advance(&mut self, id: u64, moment: Moment, now: Now) {
        let Rollouts { runs, windows, .. } = &mut self.rollouts;
        let Some(run) = runs.get_mut(&id) else {
            return;
        };
        if run.poll_timeout().is_some_and(|at| at <= moment) {
            run.handle_timeout(windows, moment);
        }
        let going_back = matches!(run.head().state, State::RollingBack { .. } | State::RolledBack);
        if going_back && run.head().revision == self.meta.revision {
            self.take_back(id, moment, now);
        }
        self.settle_changed(id, now);
        let run = self.rollouts.runs.get(&id);
        if run.is_some_and(|run| run.head().ended.is_some()) {
            self.finish(id, now);
        }
    }

    /// A rollout has gone back: so do the others of its revision, and the objects of record.
    fn take_back(&mut self, id: u64, moment: Moment, now: Now) {
        let revision = self.meta.revision;
        let failed = self
            .rollouts
            .runs
            .get(&id)
            .and_then(|run| run.head().failures.first());
        let why = match failed {
            Some(failure) => format!("revision {revision} went back: {}", failure.message),
            None => format!("revision {revision} went back"),
        };
        let by = format!("rollout {id}, which went back,");
        for run in self.rollouts.runs.values_mut() {
            if run.head().revision == revision && run.head().id != id {
                // One that has ended or goes back already is left as it is.
                let _ = run.abort(&by, moment);
            }
        }
        self.return_to_settled(why, now);
        self.rollouts.touch();
    }

    /// Writes what has changed of a rollout, and gives those their part that have another one.
    fn settle_changed(&mut self, id: u64, now: Now) {
        let Some(run) = self.rollouts.runs.get_mut(&id) else {
            return;
        };
        let changed = run.take_changed();
        if !changed.head && changed.members.is_empty() {
            return;
        }
        self.rollouts.told.insert(id);
        if changed.head {
            self.put_head(id);
            // A step of the rollout rests on these.
            let late = &mut self.rollouts.late;
            let of_it = late.extract_if((id, 0)..=(id, u8::MAX), |_| true);
            self.rollouts.due.extend(of_it);
        }
        for agent in changed.members {
            let part = self
                .rollouts
                .runs
                .get(&id)
                .and_then(|run| run.members().get(&agent))
                .cloned();
            let answered = matches!(
                part.as_ref().map(|member| member.part),
                Some(Part::Acked { .. } | Part::TakenBack)
            );
            match answered && !changed.head {
                true => self.rollouts.late.insert((id, bucket(&agent))),
                false => self.rollouts.due.insert((id, bucket(&agent))),
            };
            let Some(Part::Offered { .. } | Part::TakingBack) = part.map(|member| member.part) else {
                continue;
            };
            let Ok(name) = MemberName::parse(&agent) else {
                continue;
            };
            self.settle(&name, now);
            // It may have had it already: then nothing was offered, and no answer comes.
            self.tell_rollouts(&name, now);
        }
    }

    fn put_head(&mut self, id: u64) {
        let Some(run) = self.rollouts.runs.get(&id) else {
            return;
        };
        let row = RolloutRow {
            head: serde_json::to_vec(run.head()).unwrap_or_default(),
            ended: None,
        };
        self.batch
            .put(Table::Rollouts, id.to_be_bytes(), row.encode_to_vec());
    }

    /// Writes the parts of agents that are due.
    pub(super) fn put_members(&mut self) {
        let mut due = BTreeMap::<u64, BTreeMap<u8, BTreeMap<&str, &Member>>>::new();
        for (id, bucket) in std::mem::take(&mut self.rollouts.due) {
            due.entry(id).or_default().insert(bucket, BTreeMap::new());
        }
        for (id, mut buckets) in due {
            let Some(run) = self.rollouts.runs.get(&id) else {
                continue;
            };
            for (agent, member) in run.members() {
                if let Some(members) = buckets.get_mut(&bucket(agent)) {
                    members.insert(agent, member);
                }
            }
            for (bucket, members) in buckets {
                let key = members_key(id, bucket);
                match members.is_empty() {
                    true => self.batch.remove(Table::Rollouts, key),
                    false => {
                        let value = serde_json::to_vec(&members).unwrap_or_default();
                        self.batch.put(Table::Rollouts, key, value);
                    }
                }
            }
        }
    }

    /// A rollout has ended. The last of a revision that is done settles the revision.
    fn finish(&mut self, id: u64, now: Now) {
        let Some(run) = self.rollouts.runs.remove(&id) else {
            return;
        };
        let event = event(&run);
        self.rollouts.due.retain(|(of, _)| *of != id);
        self.rollouts.late.retain(|(of, _)| *of != id);
        let buckets: BTreeSet<u8> = run.members().keys().map(|agent| bucket(agent)).collect();
        for bucket in buckets {
            self.batch.remove(Table::Rollouts, members_key(id, bucket));
        }
        self.put_past(id, event.clone());
        self.rollouts.told.insert(id);
        self.rollouts.past.insert(id, event.rollout.unwrap_or_default());
        // Its parts go first, then the whole of it.
        if let Some((old, summary)) = self.rollouts.past.iter().rev().nth(PARTS_KEPT) {
            let summary = wire::RolloutEvent {
                rollout: Some(summary.clone()),
                agents: Vec::new(),
            };
            self.put_past(*old, summary);
        }
        while self.rollouts.past.len() > ROLLOUTS_KEPT {
            if let Some((old, _)) = self.rollouts.past.pop_first() {
                self.batch.remove(Table::Rollouts, old.to_be_bytes());
            }
        }
        let revision = run.head().revision;
        let going = self.rollouts.runs().any(|run| run.head().revision == revision);
        if run.head().state == State::Done && !going && revision == self.meta.revision {
            self.settle_revision(now);
        }
    }

    fn put_past(&mut self, id: u64, event: wire::RolloutEvent) {
        let row = RolloutRow {
            head: Vec::new(),
            ended: Some(event),
        };
        self.batch
            .put(Table::Rollouts, id.to_be_bytes(), row.encode_to_vec());
    }
}

/// A rollout and every agent's part.
pub(super) fn event(run: &Rollout) -> wire::RolloutEvent {
    let agents = run.members().iter().map(|(agent, member)| member.view(agent));
    wire::RolloutEvent {
        rollout: Some(run.view()),
        agents: agents.collect(),
    }
}
