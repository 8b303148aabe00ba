//! Laws 1 and 3 over all runs that used one directory, and what the kernel left out, as they are kept beside the records.
//!
//! In: what was kept, and how this run stands. Out: their sum. Law 2 over all runs is in the collectors' cursors. A ledger
//! of an agent that knew no law 3 is read as one that left nothing out; what the kernel left out is written down only once
//! there is some, so that an agent which does not know of it reads the ledgers of those that left out nothing.

use serde::{Deserialize, Serialize};

use crate::loss::{Drops, KernelLaw, LeftOutSum, RecordLaw};

/// Law 1, the losses before the table and law 3, over several runs.
///
/// What a later version has besides is left out, at every depth: a program that is taken back goes on with what it knows, and
/// writes down only that. So sums that it does not know, such as the kernel's, begin anew with the next program that does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// Law 3 over all of them; what killed runs had on its way is taken out.
    #[serde(default)]
    pub record_law: RecordLaw,
    /// What the kernel side left out by itself.
    #[serde(default, skip_serializing_if = "LeftOutSum::is_nothing")]
    pub kernel_left_out: LeftOutSum,
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
        let law = &mut self.record_law;
        law.records -= law.waiting.min(law.records);
        law.waiting = 0;
        self.runs += 1;
        self
    }

    /// What this run adds to what it began with.
    #[must_use]
    pub fn with(
        mut self,
        law: &KernelLaw,
        drops: &Drops,
        records: &RecordLaw,
        left_out: &LeftOutSum,
    ) -> Self {
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
        let sum = &mut self.record_law;
        for (all, run) in [
            (&mut sum.records, records.records),
            (&mut sum.made, records.made),
            (&mut sum.waiting, records.waiting),
        ] {
            *all = all.saturating_add(run);
        }
        sum.filtered.plus(&records.filtered);
        sum.sampled_out.plus(&records.sampled_out);
        self.kernel_left_out.plus(left_out);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::{Aside, DropPoint};

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
        let with = |ledger: Ledger, law, drops| {
            ledger.with(&law, drops, &RecordLaw::default(), &LeftOutSum::default())
        };
        let first = with(Ledger::default().begin(true), law(100, 0), &drops);
        let second = with(first.begin(true), law(50, 7), &drops);
        assert!(second.kernel_law.holds());
        let third = with(second.begin(false), law(20, 1), &Drops::default());
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

    #[test]
    fn what_was_left_out_is_summed_over_runs_and_what_a_killed_one_had_on_its_way_is_not() {
        let run = |made, waiting, filtered| RecordLaw {
            records: made + waiting + filtered,
            made,
            waiting,
            filtered: Aside {
                records: filtered,
                octets: 100 * filtered,
                packets: 2 * filtered,
            },
            sampled_out: Aside::default(),
        };
        let kernel = LeftOutSum {
            connections: 1,
            packets: 10,
            octets: 600,
        };
        let with = |ledger: Ledger, law| ledger.with(&KernelLaw::default(), &Drops::default(), &law, &kernel);
        let first = with(Ledger::default().begin(true), run(5, 0, 7));
        let killed = with(first.begin(true), run(3, 4, 1));
        assert_eq!(killed.record_law.missing(), 0);
        let last = with(killed.begin(false), run(10, 0, 2));
        assert_eq!(last.record_law, run(18, 0, 10));
        let kernel = last.kernel_left_out;
        assert_eq!(
            (kernel.connections, kernel.packets, kernel.octets),
            (3, 30, 1_800)
        );
    }

    #[test]
    fn a_ledger_from_before_law_3_is_read() {
        let kept = r#"{"runs":2,"killed":1,"kernelLaw":{"observed_octets":9,"observed_packets":2,"reported_octets":9,
            "reported_packets":2,"held_octets":0,"held_packets":0,"joined_octets":0,"joined_packets":0},
            "unreportedOctets":3,"drops":{"nameRingFull":1}}"#;
        let ledger: Ledger = serde_json::from_str(kept).expect("an older ledger");
        assert_eq!((ledger.runs, ledger.kernel_law.reported_octets), (2, 9));
        assert_eq!(ledger.record_law, RecordLaw::default());
        assert!(ledger.kernel_left_out.is_nothing());
        let text = serde_json::to_string(&ledger).expect("it is written");
        assert!(!text.contains("kernelLeftOut"), "{text}");
        let mut told = ledger;
        told.kernel_left_out.octets = 5;
        let kept = serde_json::to_string(&told).expect("it is written");
        assert_eq!(serde_json::from_str::<Ledger>(&kept).expect("it is read"), told);
        let back: Ledger = serde_json::from_str(&text).expect("a ledger of this version");
        assert_eq!(back, ledger);
    }

    #[test]
    fn a_ledger_of_a_later_version_is_read_without_what_that_has_besides() {
        let mut ledger = Ledger {
            runs: 3,
            ..Ledger::default()
        };
        ledger.drops.add(DropPoint::NameRingFull, 2);
        (ledger.record_law.made, ledger.record_law.filtered.records) = (5, 1);
        ledger.kernel_left_out.octets = 7;
        let text = serde_json::to_string(&ledger).expect("it is written");
        // At each depth: itself, laws, drops, sums and what these are made of.
        assert_eq!(text.matches('{').count(), 7, "{text}");
        let later = text.replace('{', r#"{"ofALaterVersion":1,"#);
        let back: Ledger = serde_json::from_str(&later).expect("a ledger of a later version");
        assert_eq!(back, ledger);
    }
}
