//! The only place where clocks are read. Cores take time as an argument.

use std::time::{Duration, Instant};

use flowtilla_agent_core::observe::Slept;
use flowtilla_agent_core::time::{KernelTime, WallOffset, WallTime};
use rustix::time::{ClockId, clock_gettime};

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec
        .cast_unsigned()
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec.cast_unsigned())
}

/// Now, as the kernel programs count it.
#[must_use]
pub fn kernel_now() -> KernelTime {
    KernelTime(nanoseconds(ClockId::Boottime))
}

/// Now, as people count it.
#[must_use]
pub fn wall_now() -> WallTime {
    WallTime(nanoseconds(ClockId::Realtime))
}

/// Time slept since boot.
#[must_use]
pub fn slept() -> Slept {
    Slept(nanoseconds(ClockId::Boottime).saturating_sub(nanoseconds(ClockId::Monotonic)))
}

/// What turns kernel time into wall time at this moment. Read it anew for each record: the wall clock may be set.
#[must_use]
pub fn wall_offset() -> WallOffset {
    WallOffset::between(kernel_now(), wall_now())
}

/// CPU time that this process has used, all threads.
#[must_use]
pub fn cpu_time() -> Duration {
    Duration::from_nanos(nanoseconds(ClockId::ProcessCPUTime))
}

/// Now, for measuring a duration within this process.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
pub fn instant() -> Instant {
    Instant::now()
}
