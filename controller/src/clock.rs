//! The only place where the controller's clock is read. Decisions take time as an argument.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

/// A time: milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallMs(pub i64);

/// What tells the time. Clones tell the same time.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    shift_ms: Arc<AtomicI64>,
}

impl WallMs {
    /// Whole seconds since the epoch.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The time `seconds` after the epoch.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// The time that is later by `by`.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(milliseconds(by)))
    }

    /// The time that is earlier by `by`.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(milliseconds(by)))
    }

    /// How long it is from `earlier` to here; nothing when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Clock {
    /// The system's wall clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// Puts this clock and its clones ahead of the system's by `by` more: a day passes in a test.
    pub fn advance(&self, by: Duration) {
        self.shift_ms.fetch_add(milliseconds(by), Ordering::Relaxed);
    }

    /// Sets this clock and its clones back by `by`: what a time server does to one that was ahead.
    pub fn set_back(&self, by: Duration) {
        self.shift_ms.fetch_sub(milliseconds(by), Ordering::Relaxed);
    }

    /// Milliseconds since some moment, for what waits within this process: never set, and not moved by [`Self::advance`].
    #[must_use]
    pub fn run_ms(&self) -> u64 {
        let time = clock_gettime(ClockId::Monotonic);
        let ms = time
            .tv_sec
            .saturating_mul(1000)
            .saturating_add(time.tv_nsec / 1_000_000);
        ms.max(0).cast_unsigned()
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> WallMs {
        let time = clock_gettime(ClockId::Realtime);
        let now = time
            .tv_sec
            .saturating_mul(1000)
            .saturating_add(time.tv_nsec / 1_000_000);
        WallMs(now.saturating_add(self.shift_ms.load(Ordering::Relaxed)))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.now().seconds()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// CPU time that this process has used, all threads.
#[must_use]
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = Duration::from_secs(time.tv_sec.max(0).cast_unsigned());
    seconds.saturating_add(Duration::from_nanos(time.tv_nsec.max(0).cast_unsigned()))
}

/// Now, for measuring a duration within this process.
#[must_use]
pub fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
