//! Looks at those that have changed: answers that do not come, silence, limits, and the gates.
//!
//! Nothing here changes who has what: it finds what is wrong, and whether enough was seen to go on.

use super::gates::{Breach, Gate, PEERS_MIN, Peers, judge};
use super::{Figures, HealthWindows, Member, Moment, Part, Rollout};

impl Rollout {
    /// Remembers what those that have not changed were like, before the wave that begins. Those that are silent already
    /// say nothing.
    pub(super) fn note_peers(&mut self, windows: &HealthWindows) {
        let wave = self.head.wave;
        let soak_ms = self.head.terms.soak_ms;
        let now = self.head.wave_began;
        self.peers_before = (self.members.iter())
            .filter(|(_, member)| member.part == Part::Waiting && member.wave > wave)
            .filter(|(agent, _)| !self.is_silent(agent, Moment(0), windows, now))
            .filter_map(|(agent, _)| Some((agent.clone(), windows.before(agent, soak_ms)?)))
            .collect();
    }

    /// What is wrong, by agent; empty: nothing.
    pub(super) fn look(&self, windows: &HealthWindows, now: Moment) -> Vec<(String, Breach)> {
        let mut breaches = Vec::new();
        let terms = &self.head.terms;
        for (agent, member) in &self.members {
            if let Part::Offered { since } = member.part {
                let waited = now.0.saturating_sub(since.max(self.patience).0);
                if waited > terms.ack_timeout_ms {
                    breaches.push((
                        agent.clone(),
                        Breach::waited(Gate::Ack, waited, terms.ack_timeout_ms),
                    ));
                }
            }
        }
        if terms.soak_ms == 0 {
            return breaches;
        }
        breaches.extend(self.silent(windows, now));
        let peers = self.peers(windows);
        for (agent, member) in &self.members {
            let Part::Acked { at } = member.part else {
                continue;
            };
            if let Some(sentence) = windows.over_limits(agent, at.max(self.watched_from)).first() {
                breaches.push((agent.clone(), Breach::said(Gate::Limits, sentence)));
            }
            if let Some(since) = windows.since(agent, at.max(self.soak_from())) {
                let found = judge(terms, &since, member.before.as_ref(), peers.as_ref());
                breaches.extend(found.into_iter().map(|breach| (agent.clone(), breach)));
            }
        }
        breaches
    }

    /// Whether each agent that the soak under way began with was heard of for long enough.
    pub(super) fn seen_enough(&mut self, windows: &HealthWindows, now: Moment) -> bool {
        let from = self.soak_from();
        let enough_ms = self.head.terms.soak_ms.min(windows.soak_ms()) / 2;
        let (mut seen, mut unseen) = (0_usize, 0_usize);
        for (agent, member) in &self.members {
            let Part::Acked { at } = member.part else {
                continue;
            };
            if member.wave != self.head.wave || member.left {
                continue;
            }
            let span = windows
                .since(agent, at.max(from))
                .map_or(0, |figures| figures.span_ms);
            let enough = span > 0 && span >= enough_ms && self.connected.contains(agent);
            if enough && !self.is_silent(agent, at, windows, now) {
                seen += 1;
            } else if at <= from {
                unseen += 1;
            }
        }
        if unseen > 0 {
            self.say(format!(
                "{unseen} agents of wave {} have not been heard of for a whole soak",
                self.head.wave
            ));
        } else if seen == 0 {
            self.say(format!(
                "no agent of wave {} is there to be watched",
                self.head.wave
            ));
        }
        unseen == 0 && seen > 0
    }

    /// Agents of which nothing is heard. When as large a part of those that have not changed is silent too, it is not the
    /// change, and nobody is at fault; the soak does not end meanwhile.
    fn silent(&self, windows: &HealthWindows, now: Moment) -> Vec<(String, Breach)> {
        let bound = self.head.terms.silence_ms;
        let (mut watched, mut silent) = (0_usize, Vec::new());
        for (agent, member) in &self.members {
            let Part::Acked { at } = member.part else {
                continue;
            };
            if member.left || !self.in_own_soak(member, at, now) {
                continue;
            }
            watched += 1;
            let quiet = self.quiet_ms(agent, at, windows, now);
            if quiet > bound {
                silent.push((agent.clone(), Breach::waited(Gate::Silence, quiet, bound)));
            }
        }
        let peers = self.peers_before.len();
        let quiet_peers = (self.peers_before.keys())
            .filter(|agent| self.is_silent(agent, self.head.wave_began, windows, now))
            .count();
        if peers >= PEERS_MIN && quiet_peers > 0 && quiet_peers * watched >= silent.len() * peers {
            silent.clear();
        }
        silent
    }

    fn is_silent(&self, agent: &str, from: Moment, windows: &HealthWindows, now: Moment) -> bool {
        self.quiet_ms(agent, from, windows, now) > self.head.terms.silence_ms
    }

    fn quiet_ms(&self, agent: &str, from: Moment, windows: &HealthWindows, now: Moment) -> u64 {
        let heard = windows
            .last_at(agent)
            .unwrap_or(from)
            .max(from)
            .max(self.patience);
        now.0.saturating_sub(heard.0)
    }

    /// Whether it is of the wave under way, or came late and has not had a soak of its own.
    fn in_own_soak(&self, member: &Member, at: Moment, now: Moment) -> bool {
        member.wave == self.head.wave || now.0 < at.0.saturating_add(self.head.terms.soak_ms)
    }

    /// How those that have still not changed fare since the wave under way began.
    fn peers(&self, windows: &HealthWindows) -> Option<Peers> {
        let from = self.head.wave_began.max(self.watched_from);
        let pairs: Vec<(Figures, Figures)> = (self.peers_before.iter())
            .filter(|(agent, _)| {
                (self.members.get(*agent)).is_some_and(|member| member.part == Part::Waiting)
            })
            .filter_map(|(agent, before)| Some((*before, windows.since(agent, from)?)))
            .collect();
        Peers::of(&pairs)
    }
}
