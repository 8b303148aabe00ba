//! How fast one collector is fed: a token bucket over records, whose rate follows the round trips.
//!
//! In: time, how many records went out, how long a PONG took. Out: from when on the next may go. Kept as one moment
//! instead of a level, so that nothing is lost to rounding and nothing needs a tick.
//!
//! A PONG comes when everything before its PING is in the collector's process, so a long round trip is a long queue on
//! the way. One PING is timed at once: a round trip is a sample, and the rate changes at most once in each.
//! - Longer than [`ROUND_TRIP_FACTOR`] times the least of this connection, held between [`ROUND_TRIP_SLOW_MIN`] and
//!   [`ROUND_TRIP_SLOW_MAX`]: the rate is halved, down to one in [`RATE_FLOOR_DIVISOR`] of the full one.
//! - Otherwise it grows by one in [`RECOVERY_DIVISOR`] of the full one for each second since the last sample, a second
//!   at most.
//!
//! Source: ITU-T I.371 (generic cell rate algorithm, virtual scheduling); RFC 5681 (halve, then add).

use std::time::Duration;

use crate::time::KernelTime;

/// Span of time whose records may go at once after a pause.
///
/// The driver's timers are good to a few milliseconds: at half of it they would begin to cost throughput; double it, and
/// a collector that was idle gets a visible spike.
pub const PACE_BURST: Duration = Duration::from_millis(100);

/// How many times the least round trip still is a good one: a queue of three lines' worth. At half of it ordinary jitter
/// of a far line slows it down.
pub const ROUND_TRIP_FACTOR: u32 = 4;

/// A round trip up to this is never slow: ntopng polls once a second when it has little to do.
pub const ROUND_TRIP_SLOW_MIN: Duration = Duration::from_secs(1);

/// A round trip beyond this is always slow, though the first one seen was no better.
pub const ROUND_TRIP_SLOW_MAX: Duration = Duration::from_secs(4);

/// Six halvings. Below it a backlog would not shrink even under the records of a quiet host.
pub const RATE_FLOOR_DIVISOR: u64 = 64;

/// Seconds of good round trips from a standstill to the full rate. Half of it swings; double it, and a collector that
/// was frozen once is caught up with late.
pub const RECOVERY_DIVISOR: u64 = 20;

/// Spaces records out.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Records a second at most, ≥ 1.
    full: u64,
    /// Records a second, ≥ 1.
    rate: u64,
    /// Least round trip of this connection.
    least: Option<Duration>,
    sampled_at: KernelTime,
    /// Where the sum of all that was sent stands; ahead of the clock: too fast.
    ahead: KernelTime,
}

impl Pace {
    /// `records_per_second` 0 counts as 1.
    pub(super) fn new(records_per_second: u64) -> Self {
        let full = records_per_second.max(1);
        Self {
            full,
            rate: full,
            least: None,
            sampled_at: KernelTime(0),
            ahead: KernelTime(0),
        }
    }

    /// From when on the next records may go, however many.
    pub(super) fn ready_at(&self) -> KernelTime {
        self.ahead
    }

    /// Records a second, as of now.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// Counts records that go now.
    pub(super) fn handle_sent(&mut self, records: u32, now: KernelTime) {
        let burst = u64::try_from(PACE_BURST.as_nanos()).expect("a tenth of a second");
        let floor = KernelTime(now.0.saturating_sub(burst));
        let record_ns = (1_000_000_000 / self.rate).max(1);
        let span = Duration::from_nanos(u64::from(records).saturating_mul(record_ns));
        self.ahead = self.ahead.max(floor).after(span);
    }

    /// A new connection: its line may be another one. The rate stays.
    pub(super) fn handle_connected(&mut self) {
        self.least = None;
    }

    /// A PONG came, so long after its PING.
    pub(super) fn handle_round_trip(&mut self, took: Duration, now: KernelTime) {
        let least = *self
            .least
            .insert(self.least.map_or(took, |least| least.min(took)));
        let slow = (least * ROUND_TRIP_FACTOR).clamp(ROUND_TRIP_SLOW_MIN, ROUND_TRIP_SLOW_MAX);
        let since = now.since(self.sampled_at).min(Duration::from_secs(1));
        self.sampled_at = now;
        self.rate = if took > slow {
            (self.rate / 2).max(self.full / RATE_FLOOR_DIVISOR).max(1)
        } else {
            let grown = u128::from(self.full) * since.as_millis() / u128::from(RECOVERY_DIVISOR * 1_000);
            let grown = u64::try_from(grown).unwrap_or(u64::MAX).max(1);
            self.rate.saturating_add(grown).min(self.full)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: KernelTime = KernelTime(5_000_000_000_000);
    const FAST: Duration = Duration::from_millis(2);
    const SLOW: Duration = Duration::from_millis(1_001);

    #[test]
    fn long_run_keeps_to_the_rate_and_a_pause_allows_one_burst() {
        for (rate, batch) in [(20_000, 100), (1, 1), (1_000_000, 100), (7, 100)] {
            let mut pace = Pace::new(rate);
            let mut now = START;
            let mut sent = 0;
            while now.since(START) < Duration::from_secs(100) {
                now = now.max(pace.ready_at());
                pace.handle_sent(batch, now);
                sent += u64::from(batch);
            }
            let allowed = rate * 100 + rate / 10 + 2 * u64::from(batch);
            assert!(sent <= allowed, "rate {rate}: {sent} sent, {allowed} allowed");
            assert!(sent >= rate * 99, "rate {rate}: {sent} sent");
        }
    }

    #[test]
    fn slow_round_trips_halve_the_rate_and_never_below_the_floor() {
        for full in [20_000, 64, 3, 1] {
            let mut pace = Pace::new(full);
            pace.handle_round_trip(FAST, START);
            assert_eq!(pace.rate(), full);
            pace.handle_round_trip(SLOW, START);
            assert_eq!(pace.rate(), (full / 2).max(1));
            for _ in 0..100 {
                pace.handle_round_trip(SLOW, START);
            }
            assert_eq!(pace.rate(), (full / RATE_FLOOR_DIVISOR).max(1));
        }
    }

    #[test]
    fn good_round_trips_bring_the_rate_back_by_equal_steps() {
        let mut pace = Pace::new(20_000);
        pace.handle_round_trip(FAST, START);
        (0..10).for_each(|_| pace.handle_round_trip(SLOW, START));
        let (mut now, mut last) = (START, pace.rate());
        for _ in 0..RECOVERY_DIVISOR {
            now = now.after(Duration::from_secs(1));
            pace.handle_round_trip(FAST, now);
            assert_eq!(pace.rate(), (last + 1_000).min(20_000));
            last = pace.rate();
        }
        assert_eq!(last, 20_000);
        // Many samples a second grow it no faster than one.
        pace.handle_round_trip(SLOW, now);
        for _ in 0..1_000 {
            now = now.after(Duration::from_millis(1));
            pace.handle_round_trip(FAST, now);
        }
        assert_eq!(pace.rate(), 11_000);
        // Nor does a long pause.
        pace.handle_round_trip(FAST, now.after(Duration::from_secs(3_600)));
        assert_eq!(pace.rate(), 12_000);
    }

    #[test]
    fn far_line_is_not_slow_and_a_first_sample_excuses_nothing_for_ever() {
        let mut pace = Pace::new(1_000);
        let far = Duration::from_millis(600);
        (0..5).for_each(|_| pace.handle_round_trip(far, START));
        pace.handle_round_trip(far * 4, START);
        assert_eq!(pace.rate(), 1_000, "four times its least is still a good one");
        pace.handle_round_trip(far * 4 + FAST, START);
        assert_eq!(pace.rate(), 500);

        let mut pace = Pace::new(1_000);
        pace.handle_round_trip(Duration::from_secs(30), START);
        assert_eq!(pace.rate(), 500);
        pace.handle_connected();
        pace.handle_round_trip(FAST, START.after(Duration::from_secs(1)));
        assert_eq!(pace.rate(), 550);
    }
}
