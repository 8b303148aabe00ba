//! How fast one collector is fed: a token bucket over records.
//!
//! In: time, and how many records went out. Out: from when on the next may go. Kept as one moment instead of a level,
//! so that nothing is lost to rounding and nothing needs a tick.
//! Source: ITU-T I.371 (generic cell rate algorithm, virtual scheduling).

use std::time::Duration;

use crate::time::KernelTime;

/// Span of time whose records may go at once after a pause.
///
/// The driver's timers are good to a few milliseconds: at half of it they would begin to cost throughput; double it, and
/// a collector that was idle gets a visible spike.
pub const PACE_BURST: Duration = Duration::from_millis(100);

/// Spaces records out.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    /// Nanoseconds a record takes, > 0.
    record_ns: u64,
    /// Where the sum of all that was sent stands; ahead of the clock: too fast.
    ahead: KernelTime,
}

impl Pace {
    /// `records_per_second` 0 counts as 1.
    pub(super) fn new(records_per_second: u64) -> Self {
        Self {
            record_ns: (1_000_000_000 / records_per_second.max(1)).max(1),
            ahead: KernelTime(0),
        }
    }

    /// From when on the next records may go, however many.
    pub(super) fn ready_at(&self) -> KernelTime {
        self.ahead
    }

    /// Counts records that go now.
    pub(super) fn handle_sent(&mut self, records: u32, now: KernelTime) {
        let burst = u64::try_from(PACE_BURST.as_nanos()).expect("a tenth of a second");
        let floor = KernelTime(now.0.saturating_sub(burst));
        let span = Duration::from_nanos(u64::from(records).saturating_mul(self.record_ns));
        self.ahead = self.ahead.max(floor).after(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_run_keeps_to_the_rate_and_a_pause_allows_one_burst() {
        for (rate, batch) in [(20_000, 100), (1, 1), (1_000_000, 100), (7, 100)] {
            let mut pace = Pace::new(rate);
            let start = KernelTime(5_000_000_000_000);
            let mut now = start;
            let mut sent = 0;
            while now.since(start) < Duration::from_secs(100) {
                now = now.max(pace.ready_at());
                pace.handle_sent(batch, now);
                sent += u64::from(batch);
            }
            let allowed = rate * 100 + rate / 10 + 2 * u64::from(batch);
            assert!(sent <= allowed, "rate {rate}: {sent} sent, {allowed} allowed");
            assert!(sent >= rate * 99, "rate {rate}: {sent} sent");
        }
    }
}
