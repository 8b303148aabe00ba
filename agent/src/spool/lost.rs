//! Which records of the spool are gone, and why: the file `lost`.
//!
//! Invariant: ranges are ascending, disjoint, and two that touch have different causes.

use flowtilla_agent_core::loss::DropPoint;
use serde::{Deserialize, Serialize};

/// Ranges that are remembered; beyond it the oldest is forgotten, and its records have the cause of their place.
///
/// A damaged value is a range, so this is 1,024 damaged values that some collector has not passed.
const RANGES_MAX: usize = 1_024;

/// Why records can no longer be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LostCause {
    /// The bound of the spool pushed them out.
    Evicted,
    /// Torn, damaged, or never synced.
    SpoolDamaged,
    /// The disk did not take them, and memory could not hold them until it did.
    SpoolUnwritable,
}

impl LostCause {
    /// Where the ledger counts it; `None`: as evicted.
    #[must_use]
    pub fn drop_point(self) -> Option<DropPoint> {
        match self {
            Self::Evicted => None,
            Self::SpoolDamaged => Some(DropPoint::SpoolDamaged),
            Self::SpoolUnwritable => Some(DropPoint::SpoolUnwritable),
        }
    }
}

/// Records that are gone for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LostRange {
    /// First sequence.
    pub first: u64,
    /// Last sequence.
    pub last: u64,
    /// Why.
    pub cause: LostCause,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    ranges: Vec<LostRange>,
    changed: bool,
}

impl Losses {
    pub(crate) fn decode(octets: &[u8]) -> Result<Self, serde_json::Error> {
        let stored: Vec<LostRange> = serde_json::from_slice(octets)?;
        let mut losses = Self::default();
        for range in stored {
            losses.add(range.first, range.last, range.cause);
        }
        losses.changed = false;
        Ok(losses)
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&self.ranges)
    }

    /// Notes `first ..= last`, except what is noted already. Tells how many records are new in it.
    pub(crate) fn add(&mut self, first: u64, last: u64, cause: LostCause) -> u64 {
        let mut from = first;
        let mut pieces = Vec::new();
        for held in &self.ranges {
            if held.last < from {
                continue;
            }
            if held.first > last {
                break;
            }
            if held.first > from {
                pieces.push((from, held.first - 1));
            }
            from = held.last.saturating_add(1);
        }
        if from <= last {
            pieces.push((from, last));
        }
        let mut records = 0;
        for (first, last) in pieces {
            records += last - first + 1;
            let at = self.ranges.partition_point(|held| held.last < first);
            self.ranges.insert(at, LostRange { first, last, cause });
        }
        if records > 0 {
            self.changed = true;
            self.join();
        }
        records
    }

    /// Takes back what was noted as lost for `cause` in `first ..= last`: it is there after all.
    pub(crate) fn retract(&mut self, first: u64, last: u64, cause: LostCause) -> u64 {
        let mut back = 0;
        let mut kept = Vec::with_capacity(self.ranges.len());
        for held in self.ranges.drain(..) {
            if held.cause != cause || held.last < first || held.first > last {
                kept.push(held);
                continue;
            }
            back += held.last.min(last) - held.first.max(first) + 1;
            if held.first < first {
                kept.push(LostRange {
                    last: first - 1,
                    ..held
                });
            }
            if held.last > last {
                kept.push(LostRange {
                    first: last + 1,
                    ..held
                });
            }
        }
        self.ranges = kept;
        self.changed |= back > 0;
        back
    }

    /// The range that holds `sequence`.
    pub(crate) fn at(&self, sequence: u64) -> Option<LostRange> {
        let at = self.ranges.partition_point(|held| held.last < sequence);
        self.ranges.get(at).filter(|held| held.first <= sequence).copied()
    }

    /// First sequence of the first range after `sequence`.
    pub(crate) fn next_after(&self, sequence: u64) -> Option<u64> {
        let at = self.ranges.partition_point(|held| held.first <= sequence);
        self.ranges.get(at).map(|held| held.first)
    }

    /// Forgets what every reader has passed.
    pub(crate) fn forget_upto(&mut self, sequence: u64) {
        let before = self.ranges.len();
        self.ranges.retain(|held| held.last > sequence);
        self.changed |= self.ranges.len() != before;
    }

    /// All ranges, ascending.
    pub(crate) fn ranges(&self) -> &[LostRange] {
        &self.ranges
    }

    /// Whether it differs from what was last stored; stores it as told.
    pub(crate) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What was taken as stored was not.
    pub(crate) fn set_changed(&mut self) {
        self.changed = true;
    }

    fn join(&mut self) {
        let mut joined: Vec<LostRange> = Vec::with_capacity(self.ranges.len());
        for range in self.ranges.drain(..) {
            match joined.last_mut() {
                Some(held) if held.cause == range.cause && held.last.saturating_add(1) == range.first => {
                    held.last = range.last;
                }
                _ => joined.push(range),
            }
        }
        let excess = joined.len().saturating_sub(RANGES_MAX);
        joined.drain(..excess);
        self.ranges = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::LostCause::{Evicted, SpoolDamaged, SpoolUnwritable};
    use super::*;

    fn range(first: u64, last: u64, cause: LostCause) -> LostRange {
        LostRange { first, last, cause }
    }

    #[test]
    fn what_was_lost_first_keeps_its_cause() {
        let mut losses = Losses::default();
        assert_eq!(losses.add(20, 29, SpoolDamaged), 10);
        assert_eq!(losses.add(1, 40, Evicted), 30);
        assert_eq!(
            losses.ranges(),
            [
                range(1, 19, Evicted),
                range(20, 29, SpoolDamaged),
                range(30, 40, Evicted)
            ]
        );
        assert_eq!(losses.add(1, 40, SpoolUnwritable), 0);
        assert_eq!(losses.at(25), Some(range(20, 29, SpoolDamaged)));
        assert_eq!(losses.at(41), None);
        assert_eq!(losses.next_after(20), Some(30));
    }

    #[test]
    fn neighbours_of_one_cause_are_one_range() {
        let mut losses = Losses::default();
        losses.add(1, 10, Evicted);
        losses.add(11, 20, Evicted);
        assert_eq!(losses.ranges(), [range(1, 20, Evicted)]);
    }

    #[test]
    fn retraction_cuts_only_its_cause() {
        let mut losses = Losses::default();
        losses.add(1, 10, Evicted);
        losses.add(11, 20, SpoolUnwritable);
        assert_eq!(losses.retract(5, 15, SpoolUnwritable), 5);
        assert_eq!(
            losses.ranges(),
            [range(1, 10, Evicted), range(16, 20, SpoolUnwritable)]
        );
    }

    #[test]
    fn stored_ranges_come_back_and_nonsense_is_refused() {
        let mut losses = Losses::default();
        losses.add(3, 9, SpoolDamaged);
        let octets = losses.encode().unwrap();
        assert_eq!(Losses::decode(&octets).unwrap().ranges(), losses.ranges());
        assert!(Losses::decode(&octets[..octets.len() - 1]).is_err());
    }

    #[test]
    fn the_oldest_range_goes_at_the_bound() {
        let mut losses = Losses::default();
        for n in 0..=RANGES_MAX as u64 {
            losses.add(n * 10 + 1, n * 10 + 1, SpoolDamaged);
        }
        assert_eq!(losses.ranges().len(), RANGES_MAX);
        assert_eq!(losses.at(1), None);
    }
}
