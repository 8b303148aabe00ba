//! Which flow is to be looked at next.
//!
//! What is due within the present span of time is in a heap; the rest lies in lists, one a span, and is put in order when
//! its span comes. A deadline that was replaced by an earlier one stays until its time: whoever takes it asks the flow
//! whether it still holds. A flow's deadlines only come forward while one is held, so it has a few here at most.
//!
//! Invariant: `near` is empty only when all is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::flows::Handle;
use crate::time::KernelTime;

/// A span is 2^28 ns, 0.27 s, about one turn of the driver. Half of it doubles the spans to look among; double it, and the
/// heap is twice as large.
const SPAN_BITS: u32 = 28;

/// Time, then handle, in one number: what costs in a heap is comparing.
type Deadline = Reverse<u128>;

fn joined(at: KernelTime, handle: Handle) -> Deadline {
    Reverse(u128::from(at.0) << 64 | u128::from(handle.to_bits()))
}

fn parted(Reverse(joined): Deadline) -> (KernelTime, Handle) {
    let (at, handle) = (joined >> 64, joined & u128::from(u64::MAX));
    (KernelTime(at as u64), Handle::from_bits(handle as u64))
}

#[derive(Debug, Default)]
pub(super) struct Deadlines {
    near: BinaryHeap<Deadline>,
    far: BTreeMap<u64, Vec<Deadline>>,
    /// The first span that is not in `near`.
    horizon: u64,
}

impl Deadlines {
    pub(super) fn insert(&mut self, at: KernelTime, handle: Handle) {
        let span = at.0 >> SPAN_BITS;
        if self.near.is_empty() {
            self.horizon = span + 1;
        }
        if span < self.horizon {
            self.near.push(joined(at, handle));
        } else {
            self.far.entry(span).or_default().push(joined(at, handle));
        }
    }

    /// The earliest, which may not hold any more.
    pub(super) fn first(&self) -> Option<KernelTime> {
        self.near.peek().map(|&first| parted(first).0)
    }

    /// Takes the earliest out if it lies at or before `now`.
    pub(super) fn pop(&mut self, now: KernelTime) -> Option<(KernelTime, Handle)> {
        if self.first()? > now {
            return None;
        }
        let due = self.near.pop().map(parted)?;
        if self.near.is_empty()
            && let Some((span, next)) = self.far.pop_first()
        {
            self.near = BinaryHeap::from(next);
            self.horizon = span + 1;
        }
        Some(due)
    }

    pub(super) fn clear(&mut self) {
        self.near.clear();
        self.far.clear();
    }
}

#[cfg(test)]
impl Deadlines {
    pub(super) fn all(&self) -> std::collections::HashSet<(KernelTime, Handle), foldhash::fast::FixedState> {
        let far = self.far.values().flatten();
        self.near.iter().chain(far).map(|&held| parted(held)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_come_in_their_order_and_never_early() {
        let seed = fastrand::u64(..);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut deadlines = Deadlines::default();
        let mut held = std::collections::BTreeSet::new();
        let mut now = KernelTime(0);
        for number in 1..20_000 {
            if rng.u8(0..3) > 0 {
                let span = [1_000, 300_000_000, 40_000_000_000, u64::MAX][rng.usize(0..4)];
                let at = KernelTime(now.0.saturating_add(rng.u64(0..span)));
                let handle = Handle::of(number);
                deadlines.insert(at, handle);
                held.insert((at, handle));
            } else {
                now = KernelTime(now.0 + rng.u64(0..200_000_000));
                while let Some(due) = deadlines.pop(now) {
                    assert_eq!(held.pop_first(), Some(due), "seed {seed}");
                    assert!(due.0 <= now);
                }
                assert!(held.first().is_none_or(|&(at, _)| at > now), "seed {seed}");
            }
            assert_eq!(deadlines.first(), held.first().map(|&(at, _)| at), "seed {seed}");
        }
    }
}
