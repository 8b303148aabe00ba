//! Who is in which wave.
//!
//! Pure: the same rollout id and agents give the same waves. Agents that are connected come before those that are not, so
//! that no wave waits for a host that is off while others could go first; among them the order is that of a hash of
//! rollout id and agent id, so that it is not always the same agent that goes first.

use std::collections::BTreeMap;

use flowtilla_proto::policy::Wave;
use sha2::{Digest, Sha256};

/// The wave of each agent, from 1, and how many waves there are. A wave to which nobody would be added is left out.
pub(super) fn assign(
    id: u64,
    waves: &[Wave],
    agents: impl IntoIterator<Item = (String, bool)>,
) -> (BTreeMap<String, u32>, u32) {
    let mut order: Vec<(bool, u64, String)> = agents
        .into_iter()
        .map(|(agent, connected)| (!connected, place(id, &agent), agent))
        .collect();
    order.sort_unstable();
    order.dedup_by(|a, b| a.2 == b.2);

    let all = order.len();
    let mut order = order.into_iter().map(|(_, _, agent)| agent);
    let mut assigned = BTreeMap::new();
    let mut wave = 0;
    for size in waves.iter().map(|size| size.of(all)).chain([all]) {
        if size > assigned.len() {
            wave += 1;
            let more = size - assigned.len();
            assigned.extend(order.by_ref().take(more).map(|agent| (agent, wave)));
        }
    }
    (assigned, wave)
}

fn place(id: u64, agent: &str) -> u64 {
    let digest = Sha256::new()
        .chain_update(id.to_be_bytes())
        .chain_update(agent)
        .finalize();
    digest[..8]
        .iter()
        .fold(0, |place, &octet| place << 8 | u64::from(octet))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(waves: &[Wave], connected: usize, offline: usize) -> Vec<usize> {
        let agents = (0..connected + offline).map(|n| (format!("a{n}"), n < connected));
        let (assigned, count) = assign(7, waves, agents);
        (1..=count)
            .map(|wave| assigned.values().filter(|&&of| of == wave).count())
            .collect()
    }

    #[test]
    fn shares_are_rounded_up_and_empty_waves_are_left_out() {
        let waves = [Wave::Agents(1), Wave::Percent(10), Wave::Percent(100)];
        assert_eq!(sizes(&waves, 50, 0), [1, 4, 45]);
        assert_eq!(sizes(&waves, 11, 0), [1, 1, 9]);
        assert_eq!(sizes(&waves, 10, 0), [1, 9], "a tenth of ten is the first");
        assert_eq!(sizes(&waves, 1, 0), [1]);
        assert_eq!(sizes(&waves, 0, 0), [0; 0]);
        assert_eq!(sizes(&[], 5, 0), [5], "all at once");
        assert_eq!(
            sizes(&[Wave::Percent(20), Wave::Agents(1), Wave::Percent(100)], 10, 0),
            [2, 8]
        );
    }

    #[test]
    fn agents_that_are_connected_go_first() {
        let agents = |connected: usize| (0..20).map(move |n| (format!("a{n}"), n == connected));
        for connected in 0..20 {
            let (assigned, _) = assign(3, &[Wave::Agents(1)], agents(connected));
            assert_eq!(assigned[&format!("a{connected}")], 1);
        }
    }

    #[test]
    fn another_rollout_begins_with_another_agent() {
        let first = |id| {
            let agents = (0..20).map(|n| (format!("a{n}"), true));
            let (assigned, _) = assign(id, &[Wave::Agents(1)], agents);
            assigned
                .into_iter()
                .find(|&(_, wave)| wave == 1)
                .map(|(agent, _)| agent)
        };
        assert_eq!(first(1), first(1));
        let distinct: std::collections::BTreeSet<_> = (0..50).map(first).collect();
        assert!(distinct.len() > 10, "{distinct:?}");
    }
}
