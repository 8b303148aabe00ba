//! Whether agents tell what others leave to them.
//!
//! Of two agents at the ends of a flow one holds its records back, because the other tells it. That the other has the end's
//! address need not mean that it has the end: private networks overlap, and an agent may claim what it likes. So what one
//! holds back is compared with what the other says that it told. When that is less than half, lists say of the one that it is apart
//! from the other, and of the flows between the two both tell, by totals. That is one agent's word against another's, and one of
//! them may be captured: so it changes nothing for anybody else, and who says it is told with it.
//! An agent that leaves flows to the other all the same (one of before there was `apart` does), or that is apart from more than
//! [`APART_MAX`], counts as partial, and its word for nothing more.
//!
//! In: the sums of heartbeats, a time. Out: octets that nobody told. Nothing is kept of agents that hold nothing back.

use std::collections::BTreeMap;

use flowtilla_proto::spiffe::MemberName;

use super::agent::Agent;
use super::{Fleet, Now};

/// Most agents that one is apart from. Source: `session.proto`.
///
/// One is usual: it is the one with an address of another host. Half of it still does; double it, and a captured agent makes lists that
/// much longer.
pub(super) const APART_MAX: usize = 16;

/// Most agents that are named by whose word an agent tells too little.
pub(super) const UNTOLD_BY_MAX: usize = 8;

/// What is held back in one such time is compared with what was told in it and in the one after, in milliseconds.
///
/// The teller's record may be an active timeout (10 s), a wait for the owner and a heartbeat (10 s) behind the other's. Half
/// of it calls honest agents silent; double it, and flows are lost for three minutes before it is seen.
pub(super) const WINDOW_MS: u64 = 40_000;

/// Fewer octets than these are not compared.
///
/// Agents learn of a list up to 10 s apart, and the flows of that time are counted by one of them only. Half of it takes a
/// few handshakes for a loss; double it, and a lost page is not seen.
pub(super) const OCTETS_MIN: u64 = 4_096;

/// What one agent left to another. Sums count from the start of the process that tells them, and a start begins anew here.
#[derive(Debug)]
struct Pair {
    /// When the second window began.
    at_ms: u64,
    /// Held back at the start of the first window, and of the second.
    held: [u64; 2],
    /// Told by the other at the same moments.
    told: [u64; 2],
}

/// What one agent leaves to others.
#[derive(Debug, Default)]
pub(super) struct Left(BTreeMap<MemberName, Pair>);

impl Left {
    /// It has held back `held` octets in all, for which the other has `told` octets in all. Octets that are missing, when they
    /// are too many.
    fn compare(&mut self, other: &MemberName, held: u64, told: u64, now_ms: u64) -> Option<u64> {
        let begin = Pair {
            at_ms: now_ms,
            held: [held; 2],
            told: [told; 2],
        };
        let Some(pair) = self.0.get_mut(other) else {
            self.0.insert(other.clone(), begin);
            return None;
        };
        if held < pair.held[1] || told < pair.told[1] {
            *pair = begin;
            return None;
        }
        if now_ms < pair.at_ms.saturating_add(WINDOW_MS) {
            return None;
        }
        let left = pair.held[1] - pair.held[0];
        let told_since = told - pair.told[0];
        *pair = Pair {
            at_ms: now_ms,
            held: [pair.held[1], held],
            told: [pair.told[1], told],
        };
        (left >= OCTETS_MIN && told_since < left / 2).then(|| left - told_since)
    }
}

impl Agent {
    /// Whether it leaves flows to the other by its lists.
    fn relies_on(&self, other: &Self) -> bool {
        let tells_all = |agent: &Self| {
            let content = agent.in_force.as_ref();
            let whole = content.is_some_and(|content| !content.partial && !content.drain);
            whole && agent.line.is_some() && !agent.unaware
        };
        tells_all(self) && tells_all(other) && self.shares_a_collector(other)
    }
}

impl Fleet {
    /// Compares what an agent left to others with what those say that they told.
    pub(super) fn compare_told(&mut self, id: &MemberName, now: Now) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        let mut left = std::mem::take(&mut agent.left);
        let found = self.missing(id, &mut left, now);
        for (other, octets) in &found {
            tracing::warn!(agent = %other, left_by = %id, octets, "an agent does not tell the flows that another leaves to it: both tell them from here on");
            left.0.remove(other);
            if let Some(teller) = self.agents.get_mut(other) {
                teller.untold_octets = teller.untold_octets.saturating_add(*octets);
                if teller.untold_by.len() < UNTOLD_BY_MAX {
                    teller.untold_by.insert(id.clone());
                }
            }
        }
        if !found.is_empty() {
            self.members.touch();
        }
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        agent.left = left;
        for (other, _) in found {
            if agent.apart.contains_key(&other) || agent.apart.len() >= APART_MAX {
                agent.unaware = true;
            } else {
                agent.apart.insert(other, now.run_ms);
            }
        }
    }

    /// Who did not tell what an agent left to it, and octets of that.
    fn missing(&self, id: &MemberName, left: &mut Left, now: Now) -> Vec<(MemberName, u64)> {
        let Some((agent, health)) = self
            .agents
            .get(id)
            .and_then(|agent| Some((agent, agent.health.as_ref()?)))
        else {
            return Vec::new();
        };
        let held = health.peers.iter().filter(|sums| sums.held_octets > 0);
        let held: BTreeMap<MemberName, u64> = held
            .filter_map(|sums| Some((MemberName::parse(&sums.peer).ok()?, sums.held_octets)))
            .filter(|(other, _)| {
                let teller = self.agents.get(other);
                let just_found = agent.apart.get(other);
                let just_found = just_found.is_some_and(|since| now.run_ms < since.saturating_add(WINDOW_MS));
                !just_found && teller.is_some_and(|teller| agent.relies_on(teller))
            })
            .collect();
        left.0.retain(|other, _| held.contains_key(other));
        let missing = held.into_iter().filter_map(|(other, held)| {
            // One that has not told its sums yet is not relied upon anyway.
            let health = self.agents.get(&other)?.health.as_ref()?;
            let told = health.peers.iter().find(|sums| sums.peer == id.as_str());
            let told = match told {
                Some(sums) => sums.spoken_octets,
                None if health.peers_left_out > 0 => {
                    left.0.remove(&other); // It may have told them: there was no room to say so.
                    return None;
                }
                None => 0,
            };
            let octets = left.compare(&other, held, told, now.run_ms)?;
            Some((other, octets))
        });
        missing.collect()
    }

    /// An agent has other addresses now, or has gone: what was found of it was of others.
    pub(super) fn handle_moved(&mut self, id: &MemberName) {
        let Some(agent) = self.agents.get_mut(id) else {
            return;
        };
        agent.apart.clear();
        agent.unaware = false;
        // All agents are looked through for one of which anything was found only.
        if agent.untold_octets > 0 {
            for agent in self.agents.values_mut() {
                agent.apart.remove(id);
            }
        }
        self.members.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other() -> MemberName {
        MemberName::parse("other").expect("a name")
    }

    /// Heartbeats each 10 s, with what is held and told in all by then; each that found something missing.
    fn run(beats: &[(u64, u64)]) -> Vec<(usize, u64)> {
        let mut left = Left::default();
        let compared = beats.iter().enumerate().map(|(n, &(held, told))| {
            let missing = left.compare(&other(), held, told, n as u64 * 10_000);
            missing.map(|octets| (n, octets))
        });
        compared.flatten().collect()
    }

    #[test]
    fn one_that_tells_nothing_is_found_within_two_windows() {
        let beats: Vec<(u64, u64)> = (0..10).map(|n| (n * 20_000, 0)).collect();
        assert_eq!(run(&beats), [(8, 80_000)]);
        // A single page is enough.
        let mut page = vec![(0, 0); 3];
        page.extend([(13_316, 0); 10]);
        assert_eq!(run(&page), [(8, 13_316)]);
    }

    #[test]
    fn one_that_tells_a_window_later_is_believed() {
        let late = |n: u64| (n * 20_000, n.saturating_sub(4) * 20_000);
        assert_eq!(run(&(0..60).map(late).collect::<Vec<_>>()), []);
        // All at once, told three heartbeats later.
        let mut burst = vec![(0, 0); 4];
        burst.extend([(9_000_000, 0); 3]);
        burst.extend([(9_000_000, 9_000_000); 20]);
        assert_eq!(run(&burst), []);
    }

    #[test]
    fn one_that_starts_anew_is_not_blamed_for_what_it_told_before() {
        let mut beats: Vec<(u64, u64)> = (0..10).map(|n| (n * 20_000, n * 20_000)).collect();
        beats.extend((0..10).map(|n| ((10 + n) * 20_000, n * 20_000)));
        assert_eq!(run(&beats), []);
    }

    #[test]
    fn a_few_octets_of_the_time_between_two_lists_are_no_loss() {
        let mut beats = vec![(0, 0), (0, 0), (OCTETS_MIN - 1, 0)];
        beats.extend([(OCTETS_MIN - 1, 0); 20]);
        assert_eq!(run(&beats), []);
    }
}
