//! Waiting, the only way tests here wait: on a condition, with a deadline that names what did not come.
//!
//! Deadlines are generous, since machines are noisy; a passed wait returns at once. The crate's one clock.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition.
///
/// Half of it spends a visible share of two cores on looking; at double, waits of the benchmark grow longer than
/// what they wait for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Longest wait for a local process to do what takes milliseconds on an idle machine.
///
/// Half of it was seen to fail on machines that build something else at the same time; double only delays a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Time since a moment.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts to count.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "tests and benchmarks run in real time; this is their clock"
    )]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Looks until `look` finds something, and returns it.
///
/// # Errors
/// What `look` fails with, at once; or, after `deadline`, that `what` did not come.
pub fn until<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let watch = Stopwatch::start();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if watch.elapsed() > deadline {
            bail!("{what}: did not come within {} s", deadline.as_secs_f32());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Looks until `look` is true.
///
/// # Errors
/// After `deadline`: that `what` did not come.
pub fn until_true(deadline: Duration, what: &str, mut look: impl FnMut() -> bool) -> Result<()> {
    until(deadline, what, || Ok(look().then_some(())))
}

/// Watches for the whole `span` that `holds` stays true.
///
/// # Errors
/// That `what` ceased to hold, and after how long.
pub fn throughout(span: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let watch = Stopwatch::start();
    while watch.elapsed() < span {
        if !holds() {
            bail!("{what}: no longer so after {} s", watch.elapsed().as_secs_f32());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_is_returned() {
        let mut looks = 0;
        let found = until(PATIENCE, "third look", || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.expect("the third look finds it"), 3);
    }

    #[test]
    fn what_does_not_come_is_named() {
        let missed = until_true(Duration::ZERO, "a miracle", || false);
        assert!(
            missed
                .expect_err("nothing comes")
                .to_string()
                .contains("a miracle")
        );
    }
}
