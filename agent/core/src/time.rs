//! The two kinds of time: the kernel's, for order and durations, and the wall's, for people and collectors.

use std::time::Duration;

/// Nanoseconds of `CLOCK_BOOTTIME`: since boot, sleep included, never set back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelTime(pub u64);

impl KernelTime {
    /// This time and `span` more, at most the end of time.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// Time since `earlier`; zero when that lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct WallTime(pub u64);

impl WallTime {
    /// Whole seconds since the epoch.
    #[must_use]
    pub fn seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }
}

/// What turns kernel time into wall time: the difference of both clocks, read at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallOffset(pub i64);

impl WallOffset {
    /// The offset when both clocks were read together.
    #[must_use]
    pub fn between(kernel: KernelTime, wall: WallTime) -> Self {
        Self(wall.0.cast_signed().wrapping_sub(kernel.0.cast_signed()))
    }

    /// Wall time of `kernel`.
    #[must_use]
    pub fn wall(self, kernel: KernelTime) -> WallTime {
        WallTime(
            kernel
                .0
                .cast_signed()
                .saturating_add(self.0)
                .max(0)
                .cast_unsigned(),
        )
    }
}
