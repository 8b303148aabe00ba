//! What became of the records that one collector was to get: law 2, from what is on the disk.
//!
//! A cursor holds the law as it was when a mark last moved. Here it is told for the newest record, and what waits is only
//! what can still be sent: records ahead of the collector that are gone already count where they will be counted when it
//! comes to them.

use flowtilla_agent_core::loss::CollectorLaw;
use flowtilla_agent_core::spool::Cursor;

use super::Survey;
use crate::spool::lost::{Losses, LostCause, LostRange};

/// One collector's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub collector: String,
    /// Its cursor, as stored.
    pub cursor: Cursor,
    /// Law 2 for all records up to [`Account::newest`].
    pub law: CollectorLaw,
    /// Last sequence given.
    pub newest: u64,
    /// Records ahead of it that are gone, ascending; they are in the law.
    pub gaps: Vec<LostRange>,
}

impl Account {
    fn of(collector: &str, cursor: &Cursor, newest: u64, lost: &[LostRange], oldest: u64) -> Self {
        let mut losses = Losses::default();
        for range in lost {
            let (first, last) = (range.first.max(cursor.taken + 1), range.last.min(newest));
            if first <= last {
                losses.add(first, last, range.cause);
            }
        }
        // Its place tells that what is older than the oldest segment was evicted.
        let last = oldest.saturating_sub(1).min(newest);
        if cursor.taken < last {
            losses.add(cursor.taken + 1, last, LostCause::Evicted);
        }
        let mut law = CollectorLaw {
            made: newest.saturating_sub(cursor.begin),
            waiting: newest.saturating_sub(cursor.taken),
            ..cursor.law
        };
        for range in losses.ranges() {
            let records = range.last - range.first + 1;
            law.waiting = law.waiting.saturating_sub(records);
            match range.cause.drop_point() {
                None => law.evicted += records,
                Some(point) => law.dropped.add(point, records),
            }
        }
        Self {
            collector: collector.to_owned(),
            cursor: cursor.clone(),
            law,
            newest,
            gaps: losses.ranges().to_vec(),
        }
    }

    /// Records that this collector never gets: lost, and not kept from it on purpose.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let dropped = self.law.dropped.lossy();
        let dropped = dropped.filter(|&(point, _)| !point.is_wanted());
        self.law.evicted + dropped.map(|(_, records)| records).sum::<u64>()
    }
}

impl Survey {
    /// The account of each collector. `unsynced`: what [`Survey::unsynced`] found.
    #[must_use]
    pub fn accounts(&self, unsynced: Option<LostRange>) -> Vec<Account> {
        let newest = self.known();
        let mut lost = Losses::default();
        for range in self.lost_ranges().iter().copied().chain(unsynced) {
            lost.add(range.first, range.last, range.cause);
        }
        // Without a segment all was evicted that nobody has; an agent at work may be about to make the first one.
        let none = if self.writer.is_some() { 0 } else { newest + 1 };
        let oldest = self.oldest().unwrap_or(none);
        let cursors = self.cursors.iter();
        cursors
            .map(|(name, cursor)| Account::of(name, cursor, newest, lost.ranges(), oldest))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use flowtilla_agent_core::loss::{DropPoint, Drops};

    use super::*;

    fn cursor(begin: u64, taken: u64) -> Cursor {
        Cursor {
            read: taken,
            taken,
            law: CollectorLaw {
                made: taken - begin,
                taken: taken - begin,
                ..CollectorLaw::default()
            },
            ..Cursor::beginning_at(begin)
        }
    }

    fn range(first: u64, last: u64, cause: LostCause) -> LostRange {
        LostRange { first, last, cause }
    }

    #[test]
    fn what_is_gone_ahead_of_a_collector_does_not_wait() {
        let lost = [
            range(1, 30, LostCause::Evicted),
            range(81, 90, LostCause::SpoolDamaged),
            range(91, 95, LostCause::SpoolUnwritable),
        ];
        let account = Account::of("one", &cursor(5, 20), 100, &lost, 41);
        assert_eq!(account.law.made, 95);
        assert_eq!(account.law.taken, 15);
        assert_eq!(account.law.waiting, 45);
        assert_eq!(account.law.evicted, 20, "10 that are told, 10 by their place");
        let mut dropped = Drops::default();
        dropped.add(DropPoint::SpoolDamaged, 10);
        dropped.add(DropPoint::SpoolUnwritable, 5);
        assert_eq!(account.law.dropped, dropped);
        assert_eq!((account.law.missing(), account.lost()), (0, 35));
        assert_eq!(account.gaps[0], range(21, 40, LostCause::Evicted));
        assert_eq!(account.gaps.len(), 3);
    }

    #[test]
    fn what_it_took_before_it_went_is_no_gap() {
        let account = Account::of("one", &cursor(0, 50), 50, &[range(1, 50, LostCause::Evicted)], 51);
        assert_eq!((account.law.waiting, account.lost()), (0, 0));
        assert_eq!((account.law.missing(), account.gaps), (0, vec![]));
    }

    #[test]
    fn a_cursor_that_does_not_add_up_breaks_the_law() {
        let mut cursor = cursor(0, 50);
        cursor.law.taken = 49;
        assert_eq!(Account::of("one", &cursor, 60, &[], 1).law.missing(), 1);
        cursor.law.taken = 52;
        assert_eq!(Account::of("one", &cursor, 60, &[], 1).law.missing(), -2);
    }

    #[test]
    fn withheld_records_are_no_loss() {
        let mut cursor = cursor(0, 50);
        cursor.law.taken = 40;
        cursor.law.dropped.add(DropPoint::Withheld, 10);
        let account = Account::of("one", &cursor, 50, &[], 1);
        assert_eq!((account.law.missing(), account.lost()), (0, 0));
    }
}
