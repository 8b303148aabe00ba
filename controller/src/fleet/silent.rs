//! Whether agents tell what others leave to them.
//!
//! Of two agents at the ends of a flow one holds its records back, because the other tells it. That the other has the end's
//! address need not mean that it has the end: private networks overlap, and an agent may claim what it likes. So what one
//! holds back is compared with what the other says that it told, and who tells less than half of it is not relied upon:
//! lists name it partial, and both tell such flows, by totals.
//!
//! In: the sums of heartbeats, a time. Out: octets that nobody told. Nothing is kept of agents that hold nothing back.

use std::collections::BTreeMap;

use flowtilla_proto::spiffe::MemberName;

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
    /// Forgets those that it does not name any more.
    pub(super) fn retain(&mut self, named: impl Fn(&MemberName) -> bool) {
        self.0.retain(|other, _| named(other));
    }

    /// It has held back `held` octets in all, for which the other has `told` octets in all. Octets that are missing, when they
    /// are too many.
    pub(super) fn compare(&mut self, other: &MemberName, held: u64, told: u64, now_ms: u64) -> Option<u64> {
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
