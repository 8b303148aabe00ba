//! What an agent is to have: which content, under which place in its order, and when it is offered.
//!
//! In: the objects of record, the rollouts, and what an agent is and says to hold. Out: what it is to have
//! ([`Agent::wanted`](super::agent::Agent)), and offers. Invariants: [`super`].

use std::sync::Arc;

use flowtilla_proto::spiffe::MemberName;

use super::agent::{Agent, Wanted};
use super::content::{Content, Contents, Hash};
use super::heard::Mark;
use super::rollouts::Due;
use super::row::bucket;
use super::{Fleet, Now, OfferOut, Speech, Targets};
use crate::policy::Objects;
use crate::store::{Batch, Table};

impl Fleet {
    /// Gives an agent what the objects of record say, unless a rollout holds it back.
    pub(super) fn settle(&mut self, id: &MemberName, now: Now) {
        if self.still {
            return;
        }
        let Some(agent) = self.agents.get(id).filter(|agent| !agent.revoked) else {
            return;
        };
        let drain = agent.drains();
        let Some(next) = of_targets(&self.objects, &self.targets, id, agent) else {
            return;
        };
        let mut next = self.drained(next, drain);
        if let Some(agent) = self.agents.get(id).filter(|agent| !agent.is_to_have(&next)) {
            let due = self.due(id, agent, &next);
            if let Some(due) = &due {
                self.rollouts.handle_due(id, due, self.meta.revision, now);
            }
            if due.is_some_and(|due| self.rollouts.holds_back(id, &due, self.meta.revision)) {
                // What it has stays, but for whether it is drained: that is no matter of the rollout.
                let kept = match agent.intended() {
                    Some(intended) => Some(Arc::clone(intended)),
                    None => of_targets(&self.settled_objects, &self.settled, id, agent),
                };
                let Some(kept) = kept else {
                    return;
                };
                next = self.drained(kept, drain);
            }
        }
        self.give(id, next, now);
    }

    /// Makes a content what an agent is to have, unless it is that already; or what stands in for it.
    fn give(&mut self, id: &MemberName, content: Arc<Content>, now: Now) {
        if self.still {
            return;
        }
        let stand_in = self.stand_in(id, &content);
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let (content, meant) = match stand_in {
            Some(other) => (other, Some(content)),
            None => (content, None),
        };
        let other_refusal = agent.meant.is_some() != meant.is_some();
        agent.meant = meant;
        let wanted = agent.wanted.as_ref();
        if wanted.is_none_or(|wanted| wanted.content.sameness != content.sameness) {
            self.issue(id, content, now);
        } else if other_refusal {
            self.offer(id, now);
        }
    }

    /// An agent has something else in force: what stands in for what it is to have follows that.
    pub(super) fn follow(&mut self, id: &MemberName, now: Now) {
        let intended = self.agents.get(id).and_then(Agent::intended).cloned();
        if let Some(content) = intended {
            self.give(id, content, now);
        }
    }

    /// What a rollout would bring to an agent that is to have this content; `None`: nothing in place of nothing.
    pub(super) fn due(&self, id: &MemberName, agent: &Agent, next: &Content) -> Option<Due> {
        if let Some(policy) = &next.policy {
            return Some(Due::Policy(policy.clone()));
        }
        let lost = match agent.intended() {
            Some(intended) => intended.policy.clone(),
            None => {
                let settled = self.settled_objects.policy_for(id, &agent.labels, None);
                settled.map(str::to_owned)
            }
        };
        lost.map(Due::Loss)
    }

    /// Makes a content what an agent is to have, under a version of its own, and offers it.
    fn issue(&mut self, id: &MemberName, content: Arc<Content>, now: Now) {
        if self.still {
            return;
        }
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let (epoch, floor) = agent.highest();
        let place = if epoch > self.numbers.epoch {
            // The agent has seen a later controller than this one remembers: only its own order goes on from there.
            floor.checked_add(1).map(|version| (epoch, version))
        } else {
            self.numbers.version = self.numbers.version.saturating_add(1);
            let least = if epoch == self.numbers.epoch {
                floor.checked_add(1)
            } else {
                Some(0)
            };
            least.map(|least| (self.numbers.epoch, self.numbers.version.max(least)))
        };
        let Some((epoch, version)) = place else {
            tracing::warn!(agent = %id, "holds the last version there is: nothing can be offered to it");
            return;
        };
        let mark = Mark {
            epoch,
            version,
            digest: content.digest,
        };
        agent.supersede();
        agent.wanted = Some(Wanted {
            mark,
            content,
            traceparent: Arc::clone(&self.traceparent),
            offered: false,
        });
        if agent.nack.take().is_some() {
            self.late.insert(id.clone());
        }
        self.holdings.insert(bucket(id.as_str()));
        self.name_shortly(id);
        self.offer(id, now);
    }

    /// Brings what an agent says to hold together with what it is to have.
    pub(super) fn reconcile(&mut self, id: &MemberName, now: Now) {
        let Some(agent) = self.agents.get(id) else {
            return;
        };
        let Some(wanted) = &agent.wanted else {
            return;
        };
        // It holds what this controller does not know to have given: only a higher version can be adopted.
        let beyond = |held: Mark| held != wanted.mark && held.place() >= wanted.mark.place();
        if agent.held.is_some_and(beyond) {
            let content = Arc::clone(&wanted.content);
            self.issue(id, content, now);
        } else {
            self.offer(id, now);
        }
    }

    /// Offers what an agent is to have, unless it has it, was offered it, has refused it on this stream, or would misread it.
    pub(super) fn offer(&mut self, id: &MemberName, now: Now) {
        if self.withhold(id, now) {
            return;
        }
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let (Some(line), Some(wanted)) = (&mut agent.line, &mut agent.wanted) else {
            return;
        };
        let mark = Some(wanted.mark);
        if agent.held == mark {
            line.open = None;
            return;
        }
        if line.open == mark || line.refused == mark {
            return;
        }
        line.nonce += 1;
        line.open = mark;
        line.again = std::mem::replace(&mut wanted.offered, true);
        let offer = OfferOut {
            nonce: line.nonce,
            mark: wanted.mark,
            content: Arc::clone(&wanted.content),
            traceparent: Arc::clone(&wanted.traceparent),
        };
        self.speech.push_back((line.session, Speech::Offer(offer)));
    }
}

/// What the objects say that an agent is to have.
pub(super) fn of_targets(
    objects: &Objects,
    targets: &Targets,
    id: &MemberName,
    agent: &Agent,
) -> Option<Arc<Content>> {
    let policy = objects
        .policy_for(id, &agent.labels, agent.policy())
        .map(str::to_owned);
    targets.get(&policy).cloned()
}

/// Targets of a set of objects.
pub(super) fn targets(
    objects: &Objects,
    revision: u64,
    contents: &mut Contents,
    batch: &mut Batch,
) -> Targets {
    let names = objects.policies().map(|name| Some(name.to_owned()));
    let mut made = Targets::new();
    for policy in names.chain([None]) {
        let content = Content::new(&objects.assignment(policy.as_deref(), revision));
        let digest: Hash = content.digest;
        let content = contents.keep(content);
        if content.digest == digest {
            batch.put(Table::Contents, digest, content.octets.clone());
        }
        made.insert(policy, content);
    }
    made
}
