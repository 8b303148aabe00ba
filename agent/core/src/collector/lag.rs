//! How long the oldest record that waits for a collector has waited.
//!
//! In: law 2 of the collector, now and then, and time. Out: a span. The n-th record that waits was made when the counter of
//! records made passed n: a list of (made, when) tells when. What was waiting when the first law was seen counts from then.
//! Bounded: at [`STEPS_MAX`] every other step is dropped, and the answer errs by at most two steps, to the long side.

use std::collections::VecDeque;
use std::time::Duration;

use crate::loss::CollectorLaw;
use crate::time::KernelTime;

/// Steps that are remembered. A step a second: an hour whole, days in steps of minutes.
pub const STEPS_MAX: usize = 4_096;

/// Remembers when records were made.
#[derive(Clone, Debug, Default)]
pub struct Lag {
    /// (records made, when), both ascending: up to so many records were made before that time.
    steps: VecDeque<(u64, KernelTime)>,
}

impl Lag {
    /// Takes the law of this moment, and tells how long the oldest record that waits has waited; zero: none waits.
    pub fn handle_law(&mut self, law: &CollectorLaw, now: KernelTime) -> Duration {
        if self.steps.back().is_none_or(|&(made, _)| made < law.made) {
            self.steps.push_back((law.made, now));
        }
        let done = law.made.saturating_sub(law.waiting);
        while self.steps.front().is_some_and(|&(made, _)| made <= done) && self.steps.len() > 1 {
            self.steps.pop_front();
        }
        if self.steps.len() > STEPS_MAX {
            let mut n = 0_usize;
            // The earlier of two stays: what is told is never too short.
            let (mut merged, mut steps) = (
                VecDeque::with_capacity(STEPS_MAX),
                std::mem::take(&mut self.steps),
            );
            while let Some((made, at)) = steps.pop_front() {
                match merged.back_mut() {
                    Some((last, _)) if n % 2 == 1 => *last = made,
                    _ => merged.push_back((made, at)),
                }
                n += 1;
            }
            self.steps = merged;
        }
        match self.steps.front() {
            Some(&(_, at)) if law.waiting > 0 => now.since(at),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(made: u64, waiting: u64) -> CollectorLaw {
        CollectorLaw {
            made,
            taken: made - waiting,
            waiting,
            ..CollectorLaw::default()
        }
    }

    fn at(seconds: u64) -> KernelTime {
        KernelTime(seconds * 1_000_000_000)
    }

    #[test]
    fn it_is_the_age_of_the_oldest_record_that_waits() {
        let mut lag = Lag::default();
        let mut ask = |made, waiting, now| lag.handle_law(&law(made, waiting), at(now)).as_secs();
        assert_eq!(ask(0, 0, 0), 0);
        assert_eq!(ask(10, 10, 1), 0);
        assert_eq!(ask(20, 20, 2), 1);
        assert_eq!(ask(20, 20, 60), 59);
        assert_eq!(ask(20, 11, 61), 60, "the tenth record waits");
        assert_eq!(ask(20, 10, 62), 60, "the eleventh");
        assert_eq!(ask(30, 10, 63), 0, "what was made just now");
        assert_eq!(ask(30, 0, 90), 0);
    }

    #[test]
    fn it_is_bounded_and_never_too_short() {
        let mut lag = Lag::default();
        for n in 1..100_000 {
            assert_eq!(lag.handle_law(&law(n, n), at(n)).as_secs(), n - 1);
            assert!(lag.steps.len() <= STEPS_MAX);
        }
        for done in 0..99_999 {
            let told = lag.handle_law(&law(99_999, 99_999 - done), at(100_000)).as_secs();
            let truth = 100_000 - (done + 1);
            assert!(told >= truth, "{done} done: {told} < {truth}");
        }
    }
}
