//! The only place where the wall clock is read. What is shown or decided by time takes it as an argument.

use flowtilla_agent_core::time::WallTime;
use rustix::time::{ClockId, clock_gettime};

const NANOSECONDS: u64 = 1_000_000_000;

/// Now, as people count it.
pub(crate) fn wall_now() -> WallTime {
    let time = clock_gettime(ClockId::Realtime);
    let seconds = time.tv_sec.cast_unsigned().saturating_mul(NANOSECONDS);
    WallTime(seconds.saturating_add(time.tv_nsec.cast_unsigned()))
}
