//! Law 1 over all runs that used one directory, as it is kept beside the records.
//!
//! In: what was kept, and how this run stands. Out: their sum. Law 2 over all runs is in the collectors' cursors.

use serde::{Deserialize, Serialize};

use crate::loss::{Drops, KernelLaw};

/// Law 1 and the losses before the table, over several runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ledger {
    /// Runs, this one included.
    pub runs: u64,
    /// Runs that ended without a word: killed, or cut off.
    pub killed: u64,
    /// Law 1 over all of them.
    pub kernel_law: KernelLaw,
    /// IP octets that killed runs had seen and not reported. Those of TCP sockets that live on are seen again.
    pub unreported_octets: u64,
    /// Losses before the table.
    pub drops: Drops,
}

impl Ledger {
    /// What a run begins with. `clean`: the last one ended in order.
    #[must_use]
    pub fn begin(mut self, clean: bool) -> Self {
        let law = &mut self.kernel_law;
        self.killed += u64::from(!clean);
        self.unreported_octets += law.held_octets;
        law.observed_octets -= law.held_octets.min(law.observed_octets);
        law.observed_packets -= law.held_packets.min(law.observed_packets);
        (law.held_octets, law.held_packets) = (0, 0);
        self.runs += 1;
        self
    }

    /// What this run adds to what it began with.
    #[must_use]
    pub fn with(mut self, law: &KernelLaw, drops: &Drops) -> Self {
        let sum = &mut self.kernel_law;
        for (all, run) in [
            (&mut sum.observed_octets, law.observed_octets),
            (&mut sum.observed_packets, law.observed_packets),
            (&mut sum.reported_octets, law.reported_octets),
            (&mut sum.reported_packets, law.reported_packets),
            (&mut sum.held_octets, law.held_octets),
            (&mut sum.held_packets, law.held_packets),
            (&mut sum.joined_octets, law.joined_octets),
            (&mut sum.joined_packets, law.joined_packets),
        ] {
            *all = all.saturating_add(run);
        }
        drops.lossy().for_each(|(point, n)| self.drops.add(point, n));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::DropPoint;

    fn law(reported: u64, held: u64) -> KernelLaw {
        KernelLaw {
            observed_octets: reported + held,
            reported_octets: reported,
            held_octets: held,
            ..KernelLaw::default()
        }
    }

    #[test]
    fn the_law_holds_over_runs_that_ended_in_order_and_runs_that_were_killed() {
        let mut drops = Drops::default();
        drops.add(DropPoint::NameRingFull, 3);
        let first = Ledger::default().begin(true).with(&law(100, 0), &drops);
        let second = first.begin(true).with(&law(50, 7), &drops);
        assert!(second.kernel_law.holds());
        let third = second.begin(false).with(&law(20, 1), &Drops::default());
        assert!(third.kernel_law.holds(), "{third:?}");
        assert_eq!((third.runs, third.killed, third.unreported_octets), (3, 1, 7));
        assert_eq!(
            (
                third.kernel_law.reported_octets,
                third.drops.at(DropPoint::NameRingFull)
            ),
            (170, 6)
        );
    }
}
