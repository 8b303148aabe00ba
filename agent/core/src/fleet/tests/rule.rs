//! Two agents decide alike.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::super::rule::{Between, LISTS_APART, Partial, Verdict, speaks, verdict};
use crate::flow::record::Traffic;
use crate::observe::Endpoint;
use crate::time::KernelTime;

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let address = prop_oneof![
        (0..4_u8).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        (0..4_u16).prop_map(|n| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, n])),
    ];
    let port = prop_oneof![1..4_u16, Just(443), 32_768..=u16::MAX];
    (address, port).prop_map(|(address, port)| Endpoint { address, port })
}

proptest! {
    #[test]
    fn of_two_ends_exactly_one_speaks(one in endpoint(), other in endpoint()) {
        prop_assume!(one != other);
        prop_assert!(speaks(one, other) != speaks(other, one));
    }

    /// Whatever two agents with the same lists, told at most [`LISTS_APART`] apart, decide at any two moments.
    #[test]
    fn what_two_agents_decide_adds_up(
        apart in 0..LISTS_APART.as_millis() as u64,
        first in any::<bool>(),
        partial in any::<bool>(),
        start in 0..100_000_u64,
        after in (0..60_000_u64, 0..60_000_u64),
    ) {
        let at = |ms: u64| KernelTime(ms * 1_000_000);
        let (one, other) = if first { (40_000, 40_000 + apart) } else { (40_000 + apart, 40_000) };
        let decide = |changed: u64, speaks: bool, now: u64| {
            let partial = if partial { Partial::Both } else { Partial::Neither };
            let between = Between { changed: at(changed), partial };
            // Before its change an agent decided by an older one, which is long past.
            let between = if now < changed { Between { changed: at(0), partial: Partial::Neither } } else { between };
            verdict(between, speaks, at(start), &Traffic::default(), at(now))
        };
        let (speaker_now, other_now) = (start + after.0, start + after.1);
        let (speaker, silent) = (decide(one, true, speaker_now), decide(other, false, other_now));
        // One that is silent for good is silent only while the other end speaks, or will.
        prop_assert_ne!(speaker, Verdict::Held);
        prop_assert_ne!(silent, Verdict::Delta);
        // Deltas and totals of one flow never come in such an order that a delta is added to what it is part of.
        if speaker == Verdict::Delta && silent == Verdict::Total {
            prop_assert!(speaker_now < other_now, "{} {}", speaker_now, other_now);
        }
    }
}

#[test]
fn beyond_what_totals_can_say_one_end_alone_goes_on() {
    let mut told = Traffic::default();
    told.forward.octets = 5 << 30;
    let now = KernelTime(0).after(Duration::from_secs(100));
    for (partial, speaker, other) in [
        (Partial::Both, Verdict::Delta, Verdict::Held),
        (Partial::Far, Verdict::Delta, Verdict::Delta),
        (Partial::Near, Verdict::Held, Verdict::Held),
    ] {
        let between = Between {
            changed: KernelTime(0),
            partial,
        };
        let decide = |speaks| verdict(between, speaks, KernelTime(1), &told, now);
        assert_eq!((decide(true), decide(false)), (speaker, other), "{partial:?}");
    }
}
