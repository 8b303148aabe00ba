//! How long to wait before the next try.
//!
//! In: a seed, and each failure. Out: a delay. Reads no clock, owns no timer.
//! Full-range jitter: each delay is drawn evenly from zero to the bound, and the bound doubles with each failure, so
//! that a fleet that lost its collector at one moment does not come back at one moment.

use std::time::Duration;

/// Bound of the first delay, in milliseconds.
///
/// A collector that restarts is back within a second or two; half of it asks a refusing host 20 times a second, double
/// it, and the first try after a blink of the network comes late for no gain.
pub const BACKOFF_BASE_MS: u64 = 100;

/// Largest bound of a delay, in milliseconds.
///
/// 10,000 agents then ask 2,000 times a second at most, 1,000 on average over the jitter's two halves. Double it, and
/// records wait up to 20 s after the collector is back.
pub const BACKOFF_CAP_MS: u64 = 10_000;

/// Doublings at most: no cap is further from its base.
const BACKOFF_DOUBLINGS_MAX: u32 = 16;

/// Draws delays. One for each thing that is tried again and again.
#[derive(Clone, Debug)]
pub struct Backoff {
    random: fastrand::Rng,
    failures: u32,
    base_ms: u64,
    cap_ms: u64,
}

impl Backoff {
    /// Begins without a failure, with [`BACKOFF_BASE_MS`] and [`BACKOFF_CAP_MS`]. Same seed, same delays.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_bounds(seed, BACKOFF_BASE_MS, BACKOFF_CAP_MS)
    }

    /// Begins without a failure. `base_ms`: bound of the first delay; `cap_ms`: largest bound.
    #[must_use]
    pub fn with_bounds(seed: u64, base_ms: u64, cap_ms: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            failures: 0,
            base_ms,
            cap_ms,
        }
    }

    /// Counts a failure and draws the delay before the next try: 0 ..= `min(cap, base × 2^n)` milliseconds after `n`
    /// earlier failures.
    pub fn handle_failure(&mut self) -> Duration {
        let bound = self.bound_ms(self.failures);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(self.random.u64(0..=bound))
    }

    /// Forgets the failures: what was tried has worked.
    pub fn handle_success(&mut self) {
        self.failures = 0;
    }

    fn bound_ms(&self, failures: u32) -> u64 {
        self.cap_ms.min(
            self.base_ms
                .saturating_mul(1 << failures.min(BACKOFF_DOUBLINGS_MAX)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_doubles_up_to_the_cap() {
        let bounds: Vec<u64> = [0, 1, 2, 6, 7, 8, 1_000, u32::MAX]
            .into_iter()
            .map(|failures| Backoff::new(1).bound_ms(failures))
            .collect();
        assert_eq!(bounds, [100, 200, 400, 6_400, 10_000, 10_000, 10_000, 10_000]);
    }

    #[test]
    fn delays_fill_the_whole_range() {
        for seed in 0..64 {
            let mut backoff = Backoff::new(seed);
            for _ in 0..10 {
                backoff.handle_failure();
            }
            let delays: Vec<u64> = (0..400)
                .map(|_| u64::try_from(backoff.handle_failure().as_millis()).expect("at most the cap"))
                .collect();
            assert!(delays.iter().all(|&ms| ms <= BACKOFF_CAP_MS), "seed {seed}");
            assert!(delays.iter().any(|&ms| ms < BACKOFF_CAP_MS / 10), "seed {seed}");
            assert!(
                delays.iter().any(|&ms| ms > BACKOFF_CAP_MS * 9 / 10),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn same_seed_same_delays_and_success_starts_over() {
        let (mut one, mut two) = (Backoff::new(7), Backoff::new(7));
        for _ in 0..20 {
            assert_eq!(one.handle_failure(), two.handle_failure());
        }
        one.handle_success();
        assert!(one.handle_failure() <= Duration::from_millis(BACKOFF_BASE_MS));
    }
}
