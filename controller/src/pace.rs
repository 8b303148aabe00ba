//! How fast something may happen: places in a row, given in order.
//!
//! A token bucket seen from the other side: instead of refusing, it says when. In: a moment. Out: how long to wait. Reads no
//! clock.

use std::time::Duration;

/// A row of places, `rate` a second; after a quiet time `burst` of them at once.
#[derive(Clone, Debug)]
pub struct Pace {
    per_place_us: u64,
    burst_us: u64,
    /// When the next place is, microseconds of the caller's clock.
    next_us: u64,
}

impl Pace {
    /// A row of `rate` places a second, of which `burst` may be taken at once. Both at least 1.
    #[must_use]
    pub fn new(rate: u32, burst: u32) -> Self {
        let per_place_us = 1_000_000 / u64::from(rate.max(1));
        Self {
            per_place_us,
            burst_us: per_place_us * u64::from(burst.max(1)),
            next_us: 0,
        }
    }

    /// Takes the next place: how long to wait for it. `None`: that is longer than `wait_max`, and no place was taken.
    pub fn take(&mut self, now_ms: u64, wait_max: Duration) -> Option<Duration> {
        let now_us = now_ms.saturating_mul(1_000);
        let next_us = self.next_us.max(now_us.saturating_sub(self.burst_us)) + self.per_place_us;
        let wait = Duration::from_micros(next_us.saturating_sub(now_us));
        if wait > wait_max {
            return None;
        }
        self.next_us = next_us;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate_holds() {
        let mut pace = Pace::new(100, 10);
        let wait = |pace: &mut Pace, now| pace.take(now, Duration::from_secs(60)).expect("a place");
        for _ in 0..10 {
            assert_eq!(wait(&mut pace, 5_000), Duration::ZERO);
        }
        assert_eq!(wait(&mut pace, 5_000), Duration::from_millis(10));
        assert_eq!(wait(&mut pace, 5_000), Duration::from_millis(20));
        assert_eq!(wait(&mut pace, 5_020), Duration::from_millis(10));
        assert_eq!(wait(&mut pace, 9_000), Duration::ZERO);
    }

    #[test]
    fn who_would_wait_too_long_takes_no_place() {
        let mut pace = Pace::new(10, 1);
        let short = Duration::from_millis(150);
        assert_eq!(pace.take(0, short), Some(Duration::from_millis(100)));
        assert_eq!(pace.take(0, short), None);
        assert_eq!(pace.take(0, short), None);
        assert_eq!(pace.take(50, short), Some(Duration::from_millis(150)));
    }

    #[test]
    fn ten_thousand_at_once_all_get_a_place_within_their_retries() {
        // A storm: everybody comes at once, and who is refused comes again after five to ten seconds.
        let mut pace = Pace::new(500, 500);
        let mut random = fastrand::Rng::with_seed(7);
        let mut coming: Vec<u64> = vec![0; 10_000];
        let mut last = 0;
        while let Some(now) = coming.pop() {
            match pace.take(now, Duration::from_secs(8)) {
                Some(wait) => last = last.max(now + wait.as_millis() as u64),
                None => coming.push(now + random.u64(5_000..10_000)),
            }
            coming.sort_unstable_by(|a, b| b.cmp(a));
            assert!(now < 60_000, "{} wait still at {now} ms", coming.len());
        }
        assert!(last < 40_000, "{last}");
    }
}
