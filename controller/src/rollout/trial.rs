//! Judges agents that have changed by other means than a rollout, such as to another program: as rollouts do, without being one.
//!
//! In: who has changed and since when, what each was like before, and who has not; the windows of health. Out: a [`Verdict`].
//! Keeps nothing: whoever asks tells everything again. The looks and the gates are [`super::watch`]'s and [`super::gates`]'.

use std::collections::{BTreeMap, HashMap, HashSet};

use flowtilla_proto::wire::fleet as wire;

use super::gates::{Breach, Failure, Gate, JUDGED_AFTER_MS, Terms, failures};
use super::{Figures, Head, HealthWindows, Member, Moment, Part, RESTART_GRACE_MS, Rollout, State};

/// Waves of what is judged: changed before, changed last, not changed.
const WAVES: u32 = 3;

/// An agent that is judged, or compared with.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its id.
    pub agent: String,
    /// Whether it has changed.
    pub part: SubjectPart,
    /// What it was like before.
    pub before: Option<Figures>,
    /// Whether its stream is open.
    pub connected: bool,
    /// Why it refuses what it is to have; empty: it does not.
    pub refusal: String,
}

/// Whether an agent has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectPart {
    /// In an earlier wave.
    ChangedBefore,
    /// In the wave that is watched.
    Changed,
    /// Not yet.
    Waiting,
}

/// How those that have changed do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// What speaks against them; empty: nothing so far.
    pub failures: Vec<Failure>,
    /// The soak is over, and each that changed last was heard of for long enough.
    pub soaked: bool,
    /// What it waits for, when that is out of the ordinary.
    pub waits_for: String,
}

/// Judges. `since`: when the wave began to be watched. `began`: when this controller began to hear of agents.
#[must_use]
pub fn judge(
    terms: &Terms,
    subjects: &[Subject],
    (since, began): (Moment, Moment),
    windows: &HealthWindows,
    now: Moment,
) -> Verdict {
    let mut rollout = rollout(terms, subjects, (since, began));
    let mut breaches = rollout.look(windows, now);
    for subject in subjects
        .iter()
        .filter(|subject| subject.part != SubjectPart::Waiting)
    {
        if !subject.refusal.is_empty() {
            breaches.push((subject.agent.clone(), Breach::said(Gate::Nack, &subject.refusal)));
        }
        let captured = subject.before.is_some_and(|before| before.capturing);
        let figures = windows.since(&subject.agent, since.max(began));
        // An agent attaches anew for a moment: one heartbeat alone says nothing.
        let idle = |figures: Figures| {
            !figures.capturing && figures.span_ms >= JUDGED_AFTER_MS.min(terms.soak_ms / 2)
        };
        if captured && figures.is_some_and(idle) {
            breaches.push((subject.agent.clone(), Breach::said(Gate::Capture, "")));
        }
    }
    if !breaches.is_empty() {
        return Verdict {
            failures: failures(breaches),
            ..Verdict::default()
        };
    }
    let over = now >= rollout.soak_until();
    // Of a policy none of whose agents changed last nobody is soaked: what speaks against the others is above.
    let soaks = (subjects.iter()).any(|subject| subject.part == SubjectPart::Changed);
    let soaked = over && (!soaks || rollout.seen_enough(windows, now));
    let waits_for = match over && !soaked {
        true => "some of those that have changed were not heard of for a whole soak".to_owned(),
        false => String::new(),
    };
    Verdict {
        failures: Vec::new(),
        soaked,
        waits_for,
    }
}

/// What a rollout would be like that is in this very soak.
fn rollout(terms: &Terms, subjects: &[Subject], (since, began): (Moment, Moment)) -> Rollout {
    let head = Head {
        id: 0,
        revision: 0,
        policy: String::new(),
        loss: false,
        terms: terms.clone(),
        wave: WAVES - 1,
        waves: WAVES,
        state: State::Soaking { since },
        began: since,
        wave_began: since,
        ended: None,
        failures: Vec::new(),
    };
    let member = |subject: &Subject| {
        let (wave, part) = match subject.part {
            SubjectPart::ChangedBefore => (1, Part::Acked { at: since }),
            SubjectPart::Changed => (WAVES - 1, Part::Acked { at: since }),
            SubjectPart::Waiting => (WAVES, Part::Waiting),
        };
        Member {
            wave,
            part,
            before: subject.before,
            left: false,
            reason: String::new(),
        }
    };
    let members: BTreeMap<String, Member> = (subjects.iter())
        .map(|subject| (subject.agent.clone(), member(subject)))
        .collect();
    let mut rollout = Rollout::made(head, members, began);
    rollout.patience = Moment(began.0.saturating_add(RESTART_GRACE_MS));
    rollout.connected = (subjects.iter())
        .filter(|subject| subject.connected)
        .map(|subject| subject.agent.clone())
        .collect::<HashSet<String>>();
    rollout.peers_before = (subjects.iter())
        .filter(|subject| subject.part == SubjectPart::Waiting)
        .filter_map(|subject| Some((subject.agent.clone(), subject.before?)))
        .collect::<HashMap<String, Figures>>();
    rollout
}

impl From<Figures> for wire::Figures {
    fn from(figures: Figures) -> Self {
        Self {
            up_ms: figures.up_ms,
            span_ms: figures.span_ms,
            drops_ppm: figures.drops_ppm,
            coverage_ppm: figures.coverage_ppm,
            lag_ms: figures.lag_ms,
            lag_first_ms: figures.lag_first_ms,
            cpu_ppm: figures.cpu_ppm,
            memory_octets: figures.memory_octets,
            starts: figures.starts,
            capturing: figures.capturing,
        }
    }
}

impl From<wire::Figures> for Figures {
    fn from(sent: wire::Figures) -> Self {
        Self {
            up_ms: sent.up_ms,
            span_ms: sent.span_ms,
            drops_ppm: sent.drops_ppm,
            coverage_ppm: sent.coverage_ppm,
            lag_ms: sent.lag_ms,
            lag_first_ms: sent.lag_first_ms,
            cpu_ppm: sent.cpu_ppm,
            memory_octets: sent.memory_octets,
            starts: sent.starts,
            capturing: sent.capturing,
        }
    }
}

#[cfg(test)]
mod tests;
