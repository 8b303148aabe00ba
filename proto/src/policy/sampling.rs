//! Sampling: which share of the flows is kept.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use crate::mistake::Mistakes;
use crate::reading::Reading;
use crate::wire;

/// Least and most of `oneIn`. Beyond it a busy host keeps no flow in an hour.
pub const ONE_IN: RangeInclusive<u64> = 1..=1_000_000;
const _: () = assert!(*ONE_IN.start() > 0 && *ONE_IN.end() <= u32::MAX as u64);

/// Keeps some flows whole and leaves the others out, by the flow's identity alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Sampling {
    /// One flow of so many is kept, within [`ONE_IN`]; 1: every flow.
    pub one_in: NonZeroU32,
}

impl Default for Sampling {
    /// Every flow.
    fn default() -> Self {
        Self {
            one_in: NonZeroU32::MIN,
        }
    }
}

pub(super) fn parse(sent: wire::Sampling) -> Result<Sampling, Mistakes> {
    let mut reading = Reading::default();
    let one_in = reading.number("oneIn", sent.one_in, 1, &ONE_IN, "");
    let made = one_in.map(|one_in| Sampling {
        one_in: u32::try_from(one_in)
            .ok()
            .and_then(NonZeroU32::new)
            .expect("within ONE_IN"),
    });
    reading.finish(made)
}
