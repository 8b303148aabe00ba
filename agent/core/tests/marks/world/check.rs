//! What must hold after each step.

use flowtilla_agent_core::collector::window::{MESSAGE_OVERHEAD_OCTETS, READ_SLACK_MESSAGES};
use flowtilla_agent_core::encode::tlv::PAYLOAD_OCTETS_MAX;
use flowtilla_agent_core::loss::{CollectorLaw, DropPoint};
use flowtilla_agent_core::spool::LostCause;

use super::{Fate, World, range};

impl World {
    /// What a kill at this moment makes come twice.
    pub(super) fn check_risk(&self) {
        let (seed, cursor) = (self.seed, self.collector.cursor());
        let at_risk = self
            .sent
            .iter()
            .filter(|(last, _)| (cursor.read + 1..=cursor.taken).contains(last));
        let bound = if self.peer.connections <= 1 { 1 } else { 2 };
        assert!(
            at_risk.count() as u64 <= bound * READ_SLACK_MESSAGES,
            "seed {seed}: duplicates ≤ 1,100 messages"
        );
        let on_the_way: u64 = self
            .sent
            .iter()
            .filter(|&&(last, _)| last == 0 || last > cursor.taken)
            .map(|(_, octets)| octets)
            .sum();
        let single = PAYLOAD_OCTETS_MAX as u64 + MESSAGE_OVERHEAD_OCTETS;
        assert!(
            on_the_way <= self.climate.window_octets.max(single),
            "seed {seed}: the window"
        );
    }

    pub(super) fn check(&self) {
        let (seed, law, cursor) = (self.seed, self.collector.law(), self.collector.cursor());
        assert_eq!(law.missing(), 0, "seed {seed}: {law:?}");
        assert_eq!(cursor.law, law, "seed {seed}");
        let newest = law.made + cursor.begin;
        assert_eq!(law.waiting, newest - cursor.taken, "seed {seed}");
        assert_eq!(
            cursor.at_risk.records(),
            cursor.taken - cursor.read,
            "seed {seed}: {cursor:?}"
        );
        assert!(
            cursor.begin <= cursor.read && cursor.read <= cursor.taken && cursor.taken <= newest,
            "seed {seed}: {cursor:?}"
        );
        assert!(newest <= self.store.newest(), "seed {seed}");
        let held = self.collector.held_octets();
        let bound = self.climate.window_octets
            + 2 * READ_SLACK_MESSAGES * MESSAGE_OVERHEAD_OCTETS
            + PAYLOAD_OCTETS_MAX as u64;
        assert!(held <= bound, "seed {seed}: {held} octets held");
    }

    /// A walk over all sequences: the law record by record, and what *read* claims.
    pub(super) fn check_all(&self) {
        let (seed, cursor) = (self.seed, self.collector.cursor());
        let mut expected = CollectorLaw {
            made: cursor.law.made,
            waiting: cursor.law.waiting,
            ..CollectorLaw::default()
        };
        for (index, fate) in self.fates[range(cursor.begin, cursor.taken)].iter().enumerate() {
            match fate {
                Fate::Unknown => panic!("seed {seed}: {index} was taken unread"),
                Fate::Sent => expected.taken += 1,
                Fate::ByPeer => expected.dropped.add(DropPoint::ReportedByPeer, 1),
                Fate::TooLarge => expected.dropped.add(DropPoint::RecordTooLarge, 1),
                Fate::Lost(LostCause::Evicted) => expected.evicted += 1,
                Fate::Lost(LostCause::Damaged) => expected.dropped.add(DropPoint::SpoolDamaged, 1),
                Fate::Lost(LostCause::Unwritable) => expected.dropped.add(DropPoint::SpoolUnwritable, 1),
                Fate::Skipped => expected.dropped.add(DropPoint::CollectorRestarted, 1),
            }
        }
        assert_eq!(cursor.law, expected, "seed {seed}");
        let at_risk = &self.fates[range(cursor.read, cursor.taken)];
        let sent = at_risk.iter().filter(|&&fate| fate == Fate::Sent).count() as u64;
        assert_eq!(cursor.at_risk.taken, sent, "seed {seed}");
        for sequence in cursor.begin + 1..=cursor.read {
            let fate = self.fates[usize::try_from(sequence - 1).unwrap()];
            let number = self.store.slot(sequence).number;
            assert!(
                fate != Fate::Sent || self.has_handled(number),
                "seed {seed}: {sequence} counts as read, and was never handled"
            );
        }
    }

    /// Records that were sent, that nothing counts as lost, and that no process of the collector ever handled.
    pub(crate) fn unhandled(&self) -> usize {
        let law = self.collector.law();
        assert_eq!(
            (law.waiting, law.made),
            (0, self.store.newest()),
            "seed {}",
            self.seed
        );
        self.fates
            .iter()
            .zip(1_u64..)
            .filter(|&(fate, sequence)| {
                *fate == Fate::Sent && !self.has_handled(self.store.slot(sequence).number)
            })
            .count()
    }

    fn has_handled(&self, number: u32) -> bool {
        [&self.peer, &self.spare]
            .iter()
            .any(|peer| peer.handled.contains(&number))
    }
}
