//! No agent is offered what it would misread: what it does not know, it would take for nothing or for the default.
//!
//! An agent says in its hello which [`Feature`]s it has, a content which ones it needs ([`super::needs`]). Where one is missing, the
//! agent keeps what it has, and the refusal stands where its own nack would: operators see it, rollouts count it. A hello without
//! features is that of a version before there were any. What such an agent holds from a controller of before there were any it
//! keeps, drained or not, and counts as understanding: nobody knows better, and an upgrade of the controller changes no agent.
//!
//! To be drained is no matter of a policy: who cannot be keeps its policy as it is, and says so beside it ([`Agent::drains`]);
//! who can is, whatever else its policy needs, by what it has already ([`Fleet::stand_in`]).

use std::sync::Arc;

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session::{Feature, Nack, Section};

use super::agent::Agent;
use super::content::Content;
use super::needs::Need;
use super::{Fleet, Now};

/// Most fields that a refusal names; of the others it says how many.
///
/// A sentence of two lines. Half of it hides the second field of a rule; double it, and a table is not read.
const NAMED_MAX: usize = 3;

/// Most characters of an agent's version in a refusal.
///
/// Versions with a commit have 20. Half of it cuts those; double it, and it pushes the field's name out of sight.
const VERSION_CHARS_MAX: usize = 32;

impl Agent {
    /// Whether it said that it understands this, or has it from before it could say so.
    pub(super) fn knows(&self, feature: Feature) -> bool {
        let hello = self.hello.as_deref();
        let said = hello.is_some_and(|hello| hello.features.contains(&feature.into()));
        let had = self.in_force.as_deref().filter(|_| self.ungated);
        said || had.is_some_and(|content| content.needs.iter().any(|need| need.feature == feature))
    }

    /// What it would misread of a content.
    pub(super) fn misreads<'a>(&'a self, content: &'a Content) -> impl Iterator<Item = &'a Need> {
        content.needs.iter().filter(|need| !self.knows(need.feature))
    }

    /// Whether what it is to have is refused in its place.
    pub(super) fn is_withheld(&self) -> bool {
        let refusal = self.refusal();
        refusal.is_some_and(|nack| nack.section() == Section::NotOffered)
    }

    /// Whether it does not know what it is to have, or how to be drained.
    pub(super) fn does_not_know(&self) -> bool {
        self.is_withheld() || self.meant.is_some() || self.refuses_to_drain()
    }

    /// Whether it refuses that, or does not know it.
    pub(super) fn refuses(&self) -> bool {
        self.refusal().is_some() || self.does_not_know()
    }

    /// Whether what it is to have says that it is drained. One that does not know it would go on capturing, while others do not
    /// count on it any more.
    pub(super) fn drains(&self) -> bool {
        self.drain && self.knows(Feature::Drain)
    }

    /// Why it is not offered a content, in place of its own nack.
    pub(super) fn refusal_of(&self, content: &Content) -> Option<Nack> {
        let lacks: Vec<&Need> = self.misreads(content).collect();
        let first = lacks.first()?;
        let holds = self.held.is_some_and(|held| held.digest == content.digest);
        let state = match holds {
            true => "misread: it has this from another program, and",
            false => "not offered:",
        };
        let remedy = match lacks.len() {
            1 => first.remedy.as_str(),
            _ => "do without them",
        };
        Some(Nack {
            section: Section::NotOffered.into(),
            path: first.path.clone(),
            reason: format!(
                "{state} {} does not know {}; upgrade the agent, or {remedy}",
                self.version(),
                listed(&lacks)
            ),
            ..Nack::default()
        })
    }

    /// Why it is not offered what it would have in place of what stands in for that.
    pub(super) fn refusal_of_meant(&self) -> Option<Nack> {
        self.refusal_of(self.meant.as_ref()?)
    }

    /// The same where it is withheld what would drain it: what it has could stand in, but is not known here.
    fn refusal_of_rest(&self, refusal: Nack) -> Nack {
        match self.drains() && self.held.is_some() && self.in_force.is_none() {
            false => refusal,
            true => Nack {
                path: "drain".to_owned(),
                reason: format!(
                    "not drained: what it has is from after the backup that was restored, and not known here; {}",
                    refusal.reason
                ),
                ..refusal
            },
        }
    }

    /// Whether it is to be drained, and goes on capturing instead. Before it has ever come it is not known what it knows.
    pub(super) fn refuses_to_drain(&self) -> bool {
        self.drain && !self.drains() && self.hello.is_some() && self.policy().is_some()
    }

    /// Why it is not drained although it is to be; `None`: it is, or will be, or has nothing to capture.
    pub(super) fn refusal_to_drain(&self, id: &MemberName) -> Option<Nack> {
        self.refuses_to_drain().then(|| Nack {
            section: Section::NotOffered.into(),
            path: "drain".to_owned(),
            reason: format!(
                "not drained: {} does not know how, and captures on; upgrade the agent, or let it: agentctl agents drain --undo {id}",
                self.version()
            ),
            ..Nack::default()
        })
    }

    fn version(&self) -> String {
        let version = self.hello.as_deref().map_or("", |hello| hello.version.as_str());
        match version {
            "" => "a version without a name".to_owned(),
            version => {
                let shown: String = version.chars().take(VERSION_CHARS_MAX).collect();
                format!("version {shown}")
            }
        }
    }
}

/// `a of policy p, b of policy p and 2 more`.
fn listed(needs: &[&Need]) -> String {
    let named: Vec<&str> = needs
        .iter()
        .take(NAMED_MAX)
        .map(|need| need.what.as_str())
        .collect();
    match needs.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

impl Fleet {
    /// What an agent that knows how to be drained is to have in place of what it would misread, when it is to be drained, or may be
    /// and is to go on: what it has already, but for that. `None`: nothing; it would not misread it, or stays as it is.
    ///
    /// What it has it may misread, too, when its program is another one since: that it has it drained, or has it back, changes nothing
    /// of that.
    pub(super) fn stand_in(&mut self, id: &MemberName, content: &Content) -> Option<Arc<Content>> {
        let agent = self.agents.get(id)?;
        if !agent.knows(Feature::Drain) || agent.misreads(content).next().is_none() {
            return None;
        }
        let drain = agent.drains();
        let wanted = agent.wanted.as_ref().map(|wanted| &wanted.content);
        let may_rest = agent.in_force.iter().chain(wanted).any(|content| content.drain);
        match (&agent.in_force, agent.held) {
            _ if !drain && !may_rest => None,
            (Some(has), _) => {
                let has = Arc::clone(has);
                Some(self.drained(has, drain))
            }
            // It may not be taken away what it sends what waits to.
            (None, Some(_)) => None,
            (None, None) => self.targets.get(&None).filter(|_| drain).cloned(),
        }
    }

    /// Refuses, in an agent's place, what it is to have and would misread. Whether it does.
    pub(super) fn withhold(&mut self, id: &MemberName, now: Now) -> bool {
        let Some(agent) = self.agents.get_mut(id) else {
            return false;
        };
        let Some(wanted) = &agent.wanted else {
            return false;
        };
        let mark = wanted.mark;
        let refusal = match agent.meant {
            // What it has already, but for being drained or not.
            Some(_) => None,
            None => agent.refusal_of(&wanted.content),
        };
        let refusal = refusal.map(|refusal| agent.refusal_of_rest(refusal));
        let Some(line) = &mut agent.line else {
            return false;
        };
        let Some(refusal) = refusal else {
            // It was refused for another program of the agent.
            let before = agent
                .nack
                .take_if(|(_, nack)| nack.section() == Section::NotOffered);
            if before.is_some() {
                self.dirty.insert(id.clone());
            }
            return false;
        };
        // Whatever was offered before: an answer to it would be taken for one to this.
        line.open = None;
        if line.refused == Some(mark) {
            return true;
        }
        line.refused = Some(mark);
        tracing::warn!(agent = %id, path = refusal.path, why = refusal.reason, "an agent would misread what it is to have");
        agent.nack = Some((mark.place(), Box::new(refusal)));
        self.dirty.insert(id.clone());
        self.tell_rollouts(id, now);
        true
    }
}
