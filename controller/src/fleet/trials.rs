//! Agents that have changed by other means than a rollout: the fleet's side of [`crate::rollout::judge`].
//!
//! Each is judged by the gates of the policy that it is to have, and compared with agents of the same policy that have not
//! changed; without a policy by the gates that policies have when they say nothing. Keeps nothing but where spans of health
//! begin.

use std::collections::BTreeMap;

use flowtilla_proto::policy;
use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::fleet as wire;

use super::agent::Agent;
use super::{Fleet, Now};
use crate::rollout::{Moment, Subject, SubjectPart, Terms, Verdict, judge};

/// What is asked about agents that have changed.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Who has changed, and who has not.
    pub agents: Vec<(MemberName, wire::Standing, Option<wire::Figures>)>,
    /// How long they are watched, in milliseconds.
    pub soak_ms: u64,
    /// Since when; `None`: from here on.
    pub since: Option<Moment>,
}

impl Fleet {
    /// What agents were like of late: for `soak_ms`, or the longest soak of the policies when that is more.
    #[must_use]
    pub fn measure(&self, ids: &[MemberName], soak_ms: u64) -> wire::MeasureResponse {
        let windows = self.rollouts.windows();
        let span_ms = soak_ms.max(windows.soak_ms());
        let measured = |id: &MemberName| {
            let there = self.agents.get(id).is_some_and(|agent| agent.line.is_some());
            let figures = windows.before(id.as_str(), span_ms).filter(|_| there);
            wire::Measured {
                agent: id.to_string(),
                figures: figures.map(Into::into),
            }
        };
        wire::MeasureResponse {
            agents: ids.iter().map(measured).collect(),
        }
    }

    /// How agents that have changed do.
    pub fn try_changed(&mut self, trial: &Trial, now: Now) -> wire::JudgeResponse {
        let moment = self.rollouts.moment(now);
        let Some(since) = trial.since else {
            for (id, ..) in &trial.agents {
                self.rollouts.cut(id);
            }
            return wire::JudgeResponse {
                since_ms: moment.0,
                ..wire::JudgeResponse::default()
            };
        };
        let mut response = wire::JudgeResponse {
            since_ms: since.0,
            soaked: true,
            ..wire::JudgeResponse::default()
        };
        for (policy, subjects) in self.subjects(trial) {
            if subjects
                .iter()
                .all(|subject| subject.part == SubjectPart::Waiting)
            {
                continue;
            }
            let verdict = self.judge_of_policy(policy.as_deref(), &subjects, (trial.soak_ms, since), moment);
            response
                .failures
                .extend(verdict.failures.iter().map(crate::rollout::Failure::view));
            response.soaked &= verdict.soaked;
            if response.waits_for.is_empty() {
                response.waits_for = verdict.waits_for;
            }
        }
        response
    }

    fn judge_of_policy(
        &self,
        policy: Option<&str>,
        subjects: &[Subject],
        (soak_ms, since): (u64, Moment),
        now: Moment,
    ) -> Verdict {
        let policy = policy.and_then(|name| self.objects.policy(name));
        let terms = match policy {
            Some(policy) => Terms::from(&policy.rollout),
            None => Terms::from(&policy::Rollout::default()),
        };
        let terms = Terms { soak_ms, ..terms };
        let times = (since, self.rollouts.began());
        judge(&terms, subjects, times, self.rollouts.windows(), now)
    }

    /// By the policy that they are to have.
    fn subjects(&self, trial: &Trial) -> BTreeMap<Option<String>, Vec<Subject>> {
        let mut subjects = BTreeMap::<Option<String>, Vec<Subject>>::new();
        for (id, standing, before) in &trial.agents {
            let agent = self.agents.get(id);
            let subject = Subject {
                agent: id.to_string(),
                part: match standing {
                    wire::Standing::Unspecified => SubjectPart::Waiting,
                    wire::Standing::Changed => SubjectPart::Changed,
                    wire::Standing::ChangedBefore => SubjectPart::ChangedBefore,
                },
                // Drained meanwhile, it captures nothing on purpose.
                before: before.map(|before| {
                    wire::Figures {
                        capturing: before.capturing && agent.is_some_and(|agent| !agent.drain),
                        ..before
                    }
                    .into()
                }),
                connected: agent.is_some_and(|agent| agent.line.is_some()),
                refusal: agent
                    .and_then(Agent::refusal)
                    .map_or(String::new(), |nack| nack.reason.clone()),
            };
            let policy = agent.and_then(Agent::policy).map(str::to_owned);
            subjects.entry(policy).or_default().push(subject);
        }
        subjects
    }
}
