//! A rollout as operators see it.

use flowtilla_proto::wire::fleet as wire;

use super::{Failure, Gate, Member, Moment, Part, Rollout, State};

impl Rollout {
    /// How it stands.
    #[must_use]
    pub fn view(&self) -> wire::Rollout {
        let head = &self.head;
        let mut view = wire::Rollout {
            id: head.id,
            revision: head.revision,
            state: head.state.wire().into(),
            wave: head.wave,
            waves: head.waves,
            began_ms: ms(head.began),
            ended_ms: head.ended.map_or(0, ms),
            failures: head.failures.iter().map(Failure::view).collect(),
            soak_until_ms: match head.state {
                State::Soaking { .. } => ms(self.soak_until()),
                _ => 0,
            },
            policy: head.policy.clone(),
            waits_for: self.waits_for.clone(),
            ..wire::Rollout::default()
        };
        let back = matches!(head.state, State::RollingBack { .. } | State::RolledBack);
        for member in self.members.values() {
            match member.part {
                Part::Acked { .. } => view.acked += 1,
                Part::Nacked => view.nacked += 1,
                // It is told to go back because it refused, and goes on to be the one that did.
                Part::TakingBack | Part::TakenBack if !member.reason.is_empty() => view.nacked += 1,
                // Nothing is to come any more.
                Part::Waiting if back => {}
                Part::Waiting | Part::Offered { .. } if head.ended.is_some() => {}
                // It gets back what it had when it comes.
                Part::TakingBack if head.ended.is_some() => view.offline += 1,
                Part::Waiting | Part::Offered { .. } | Part::TakingBack => view.pending += 1,
                Part::Away => view.offline += 1,
                Part::TakenBack => {}
            }
        }
        view
    }

    /// One agent's part; `None`: it has none.
    #[must_use]
    pub fn view_of(&self, agent: &str) -> Option<wire::RolloutAgent> {
        Some(self.members.get(agent)?.view(agent))
    }
}

impl Member {
    /// As operators see it.
    #[must_use]
    pub fn view(&self, agent: &str) -> wire::RolloutAgent {
        let part = match self.part {
            Part::Waiting => wire::RolloutPart::Waiting,
            Part::Away => wire::RolloutPart::Offline,
            Part::Offered { .. } => wire::RolloutPart::Offered,
            Part::Acked { .. } => wire::RolloutPart::Acked,
            Part::Nacked => wire::RolloutPart::Nacked,
            Part::TakingBack => wire::RolloutPart::TakingBack,
            Part::TakenBack => wire::RolloutPart::TakenBack,
        };
        wire::RolloutAgent {
            agent: agent.to_owned(),
            wave: self.wave,
            part: part.into(),
            reason: self.reason.clone(),
        }
    }
}

impl State {
    /// As operators see it.
    #[must_use]
    pub fn wire(self) -> wire::RolloutState {
        match self {
            Self::Running => wire::RolloutState::Running,
            Self::Soaking { .. } => wire::RolloutState::Soaking,
            Self::Paused => wire::RolloutState::Paused,
            Self::Done => wire::RolloutState::Done,
            Self::RollingBack { .. } => wire::RolloutState::RollingBack,
            Self::RolledBack => wire::RolloutState::RolledBack,
            Self::Superseded => wire::RolloutState::Superseded,
        }
    }
}

impl Failure {
    /// As operators see it: shares in thousandths, times in milliseconds, memory in octets.
    #[must_use]
    pub fn view(&self) -> wire::GateFailure {
        let scale = match self.gate {
            Gate::Drops | Gate::Coverage | Gate::Cpu => 1_000.0,
            _ => 1.0,
        };
        // Exact below 2⁵³, and what is above is no figure of an agent.
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let number = |value: u64| value as f64 / scale;
        wire::GateFailure {
            gate: self.gate.as_str().to_owned(),
            agents: self.agents.clone(),
            value: number(self.value),
            baseline: number(self.baseline),
            bound: number(self.bound),
            message: self.message.clone(),
        }
    }
}

fn ms(moment: Moment) -> i64 {
    i64::try_from(moment.0).unwrap_or(i64::MAX)
}
