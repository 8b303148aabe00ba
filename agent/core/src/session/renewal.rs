//! When to ask for the next SVID.
//!
//! In: the validity of the SVID there is, time, and how each try ended. Out: when to try. At half life, a tenth of the life
//! to and fro, so that a fleet that enrolled at one moment does not renew at one moment; after a failure with full-range
//! jitter, for what is left of the life.

use std::time::Duration;

use crate::backoff::Backoff;
use crate::time::WallTime;

/// Bound of the first delay after a failed renewal, in milliseconds.
///
/// Nothing is lost for hours. Half of it asks a controller that starts twice; double it, and the first try after its start
/// comes late for no gain.
const RENEW_BACKOFF_BASE_MS: u64 = 5_000;
/// Largest bound of that delay, in milliseconds: some hundred tries in the second half of a day.
const RENEW_BACKOFF_CAP_MS: u64 = 300_000;
/// Longest wait when the roots have changed, in milliseconds: 10,000 agents ask 2,000 times a second.
const RENEW_AT_ONCE_MS: u64 = 5_000;

/// From when to when an SVID counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Seconds since the epoch.
    pub not_before: i64,
    /// Seconds since the epoch.
    pub not_after: i64,
}

impl Validity {
    /// Whether it is over at `now`.
    #[must_use]
    pub fn is_over(&self, now: WallTime) -> bool {
        seconds(now) > self.not_after
    }
}

/// Says when to renew.
#[derive(Clone, Debug)]
pub struct Renewal {
    random: fastrand::Rng,
    backoff: Backoff,
    due: WallTime,
}

impl Renewal {
    /// Of an SVID. Same seed, same times.
    #[must_use]
    pub fn new(validity: Validity, seed: u64) -> Self {
        let mut renewal = Self {
            random: fastrand::Rng::with_seed(seed),
            backoff: Backoff::with_bounds(seed ^ 1, RENEW_BACKOFF_BASE_MS, RENEW_BACKOFF_CAP_MS),
            due: WallTime(0),
        };
        renewal.handle_renewed(validity);
        renewal
    }

    /// There is another SVID.
    pub fn handle_renewed(&mut self, validity: Validity) {
        let life = u64::try_from(validity.not_after.saturating_sub(validity.not_before)).unwrap_or(0);
        let permille = self.random.u64(450..=550);
        let begin = u64::try_from(validity.not_before).unwrap_or(0);
        let due = begin.saturating_add(life.saturating_mul(permille) / 1000);
        self.due = WallTime(due.saturating_mul(1_000_000_000));
        self.backoff.handle_success();
    }

    /// The roots have changed: what is held may soon be believed by nobody.
    pub fn handle_roots_changed(&mut self, now: WallTime) {
        let wait = Duration::from_millis(self.random.u64(0..=RENEW_AT_ONCE_MS));
        self.due = self.due.min(after(now, wait));
    }

    /// The try that was due has failed.
    pub fn handle_failed(&mut self, now: WallTime) {
        self.due = after(now, self.backoff.handle_failure());
    }

    /// When the next try is due.
    #[must_use]
    pub fn poll_due(&self) -> WallTime {
        self.due
    }
}

fn after(now: WallTime, wait: Duration) -> WallTime {
    WallTime(
        now.0
            .saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)),
    )
}

fn seconds(now: WallTime) -> i64 {
    i64::try_from(now.seconds()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn at(seconds: i64) -> WallTime {
        WallTime(seconds.unsigned_abs() * 1_000_000_000)
    }

    #[test]
    fn it_is_due_near_half_life_and_not_for_all_at_once() {
        let validity = Validity {
            not_before: 1_000_000,
            not_after: 1_000_000 + DAY,
        };
        let dues: Vec<_> = (0..200)
            .map(|seed| Renewal::new(validity, seed).poll_due())
            .collect();
        let half = 1_000_000 + DAY / 2;
        let (early, late) = (at(half - DAY / 20), at(half + DAY / 20));
        assert!(dues.iter().all(|&due| early <= due && due <= late));
        assert!(dues.iter().any(|&due| due < at(half - DAY / 40)));
        assert!(dues.iter().any(|&due| due > at(half + DAY / 40)));
    }

    #[test]
    fn failures_are_tried_again_until_the_end_and_success_starts_over() {
        let validity = Validity {
            not_before: 0,
            not_after: DAY,
        };
        let mut renewal = Renewal::new(validity, 7);
        let (mut tries, mut now) = (0, renewal.poll_due());
        while !validity.is_over(now) {
            renewal.handle_failed(now);
            let next = renewal.poll_due();
            assert!(next.0 - now.0 <= RENEW_BACKOFF_CAP_MS * 1_000_000);
            (now, tries) = (next.max(WallTime(now.0 + 1)), tries + 1);
        }
        assert!(tries > 100, "{tries} tries in half a day");
        renewal.handle_renewed(Validity {
            not_before: DAY,
            not_after: 2 * DAY,
        });
        assert!(renewal.poll_due() > at(DAY + DAY / 3));
    }

    #[test]
    fn new_roots_make_it_due_within_seconds_and_never_later() {
        let mut renewal = Renewal::new(
            Validity {
                not_before: 0,
                not_after: DAY,
            },
            3,
        );
        renewal.handle_roots_changed(at(100));
        assert!(renewal.poll_due() <= at(105));
        let due = renewal.poll_due();
        renewal.handle_roots_changed(at(90_000));
        assert_eq!(renewal.poll_due(), due);
    }

    #[test]
    fn a_validity_from_nowhere_is_due_at_once() {
        let odd = Validity {
            not_before: i64::MAX,
            not_after: i64::MIN,
        };
        assert!(odd.is_over(at(1)));
        let _ = Renewal::new(odd, 1).poll_due();
    }
}
