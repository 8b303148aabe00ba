//! Work that several threads share.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, anyhow};

/// Numbers of pieces of work: each comes to one of the threads that share them, once.
#[derive(Debug)]
pub struct Numbers<'a> {
    next: &'a AtomicUsize,
    end: usize,
}

impl Iterator for Numbers<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        (n < self.end).then_some(n)
    }
}

/// Has so many threads do the pieces of work of these numbers, and puts together what they made.
///
/// # Errors
/// The first one of a thread; the others have come to their end by then.
pub fn share<T: Send>(
    threads: usize,
    which: Range<usize>,
    work: impl Fn(Numbers<'_>) -> Result<Vec<T>> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(which.start);
    let numbers = || Numbers {
        next: &next,
        end: which.end,
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(numbers()))).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        // All are awaited before the first error is told.
        let ended: Vec<_> = joined
            .map(|made| made.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
            .collect();
        let made: Result<Vec<Vec<T>>> = ended.into_iter().collect();
        Ok(made?.into_iter().flatten().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_done_once() {
        for which in [5..50, 5..5] {
            let mut made = share(3, which.clone(), |numbers| Ok(numbers.collect())).expect("nothing fails");
            made.sort_unstable();
            assert_eq!(made, which.collect::<Vec<usize>>());
        }
    }

    #[test]
    fn what_one_thread_fails_with_is_told() {
        let failed = share(2, 0..9, |numbers| {
            let work = |n| if n == 7 { Err(anyhow!("no {n}")) } else { Ok(n) };
            numbers.map(work).collect()
        });
        assert_eq!(failed.expect_err("one fails").to_string(), "no 7");
        let panicked = share(2, 0..1, |numbers| {
            let done: Vec<usize> = numbers.collect();
            assert!(done.is_empty(), "on purpose");
            Ok(done)
        });
        assert_eq!(panicked.expect_err("one panics").to_string(), "a thread panicked");
    }
}
