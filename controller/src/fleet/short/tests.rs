//! One claim a test: who has which number of 8 bits, what is told, what is kept, what is out of use.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::path::Path;

use flowtilla_proto::labels::Labels;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{Object, object};
use flowtilla_proto::wire::session::Feature;

use super::super::heard::Heard;
use super::super::tests::{
    ack, at, change, drain, hello, labels, memory::Memory, nack, name, object, offer_in, policy,
};
use super::super::{FORGET_EVERY_MS, Fleet, OfferOut, SessionId, Speech};
use super::numbers::{QUARANTINE_MS, Use};
use super::use_of;
use crate::backup;
use crate::clock::WallMs;
use crate::state::StateDir;
use crate::store::Store;
use crate::store::sled::SledStore;

mod random;

fn collector(name: &str, port: u16, nested: bool) -> Object {
    let mut collector = wire::Collector {
        name: name.into(),
        endpoint: format!("tcp://192.0.2.1:{port}"),
        ..wire::Collector::default()
    };
    if nested {
        collector.encoding = wire::Encoding::NestedJson.into();
    }
    Object {
        kind: Some(object::Kind::Collector(collector)),
    }
}

/// Collectors `old` and `twin` are one ntopng, `aside` is another, `new` has header version 2; whom the labels say.
fn fleet(store: &dyn Store) -> Fleet {
    let mut fleet = Fleet::load(store, at(0)).expect("an empty store");
    let all = vec![
        collector("old", 5_556, true),
        collector("twin", 5_556, true),
        collector("aside", 5_557, true),
        collector("new", 5_558, false),
        object(policy("all", 0, &[], &["old", "new"])),
        object(policy("twins", 1, &[("at", "twin")], &["twin"])),
        object(policy("asides", 1, &[("at", "aside")], &["aside"])),
        object(policy("news", 1, &[("at", "new")], &["new"])),
    ];
    fleet.apply(change(all, &[]), at(0)).expect("applied");
    fleet
}

/// An agent comes, and acks what it is offered; what it was told of its numbers last.
fn come(fleet: &mut Fleet, n: u64, of: &Labels) -> BTreeMap<String, u32> {
    fleet
        .handle_open(
            &name(&format!("agent-{n}")),
            of,
            hello(n as u32, None),
            SessionId(n),
            at(1),
        )
        .expect("welcome");
    settle(fleet).remove(&n).unwrap_or_default()
}

/// All that is offered is acked; what each agent was told of its numbers last.
fn settle(fleet: &mut Fleet) -> BTreeMap<u64, BTreeMap<String, u32>> {
    let mut told = BTreeMap::new();
    while let Some((to, speech)) = fleet.poll_speech() {
        match speech {
            Speech::ShortIds(ids) => {
                told.insert(to.0, ids);
            }
            Speech::Offer(offer) => fleet.handle_heard(to, ack(&offer), at(2)),
            _ => {}
        }
    }
    told
}

/// So much later these agents still live, and it is looked who has use for what.
fn pass(fleet: &mut Fleet, live: &[u64], ms: u64) {
    for n in live {
        fleet.handle_heard(SessionId(*n), Heard::Unknown, at(ms));
    }
    fleet.handle_timeout(at(ms));
}

fn most(fleet: &mut Fleet, most: u8) {
    fleet.short.numbers.most = NonZeroU8::new(most).expect("not 0");
}

const QUARANTINE: u64 = QUARANTINE_MS.cast_unsigned();

fn keep(fleet: &mut Fleet, store: &dyn Store) {
    store.commit(fleet.take_batch()).expect("kept");
}

fn told(fleet: &mut Fleet) -> Vec<(u64, BTreeMap<String, u32>)> {
    let ids = drain(fleet)
        .into_iter()
        .filter_map(|(session, speech)| match speech {
            Speech::ShortIds(ids) => Some((session.0, ids)),
            _ => None,
        });
    ids.collect()
}

fn one(collector: &str, number: u32) -> BTreeMap<String, u32> {
    BTreeMap::from([(collector.to_owned(), number)])
}

#[test]
fn every_agent_of_a_collector_has_a_number_of_its_own_there() {
    let mut fleet = fleet(&Memory::default());
    let none = Labels::default();
    let twin = labels(&[("at", "twin")]);
    let mut seen = BTreeSet::new();
    for n in 1..=40 {
        let (of, collector) = if n % 2 == 0 {
            (&twin, "twin")
        } else {
            (&none, "old")
        };
        let ids = come(&mut fleet, n, of);
        assert_eq!(ids.keys().collect::<Vec<_>>(), [collector]);
        let number = ids[collector];
        assert!((1..=255).contains(&number) && seen.insert(number), "{n}: {ids:?}");
    }
    // Another endpoint may be the same ntopng by another name: what nobody has is taken first. Header version 2 is none of it.
    assert_eq!(
        come(&mut fleet, 41, &labels(&[("at", "aside")])),
        one("aside", 41)
    );
    assert_eq!(come(&mut fleet, 42, &labels(&[("at", "new")])), BTreeMap::new());
}

#[test]
fn a_number_stays_with_its_agent_over_streams_and_restarts() {
    let store = Memory::default();
    let mut fleet = fleet(&store);
    let none = Labels::default();
    let before: Vec<_> = (1..=3).map(|n| come(&mut fleet, n, &none)).collect();
    keep(&mut fleet, &store);
    fleet.handle_closed(SessionId(1), at(3));
    let mut fleet = Fleet::load(&store, at(4)).expect("what was kept");
    let after: Vec<_> = (1..=3).rev().map(|n| come(&mut fleet, n, &none)).collect();
    assert_eq!(after.into_iter().rev().collect::<Vec<_>>(), before);
    assert!(!before.contains(&come(&mut fleet, 4, &none)));
}

#[test]
fn the_256th_agent_is_told_that_there_is_none_until_one_is_free() {
    let store = Memory::default();
    let mut fleet = fleet(&store);
    let none = Labels::default();
    let refused = |fleet: &mut Fleet| {
        let (agents, endpoint) = (&fleet.agents, BTreeSet::from(["tcp://192.0.2.1:5556"]));
        let uses = |agent: &_, endpoint: &str| use_of(agents, agent, endpoint);
        let numbers = &mut fleet.short.numbers;
        numbers
            .allot(&name("agent-256"), &endpoint, uses, &mut fleet.batch)
            .err()
    };
    for n in 1..=255 {
        assert_ne!(come(&mut fleet, n, &none), one("old", 0), "{n}");
    }
    assert_eq!(come(&mut fleet, 256, &none), one("old", 0));
    assert_eq!(come(&mut fleet, 257, &none), one("old", 0));
    let why = refused(&mut fleet).expect("none is left").to_string();
    for part in [
        "255 agents",
        "tcp://192.0.2.1:5556",
        "another collector",
        "revoke",
        "header version 2",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
    fleet.handle_timeout(at(10));
    assert_eq!(told(&mut fleet), [], "nothing was free");
    // A number whose agent is gone goes to who waits, the other goes on waiting.
    fleet.handle_revoked(&name("agent-7"));
    let all: Vec<u64> = (1..=257).collect();
    pass(&mut fleet, &all, 10 + FORGET_EVERY_MS);
    assert_eq!(told(&mut fleet), [(256, one("old", 7))]);
    // One that has moved to another collector needs its number no more.
    let moved = labels(&[("at", "aside")]);
    fleet.handle_closed(SessionId(9), at(20));
    assert_eq!(come(&mut fleet, 9, &moved), one("aside", 9));
    pass(&mut fleet, &all, 20 + 2 * FORGET_EVERY_MS);
    assert_eq!(told(&mut fleet), [(257, one("old", 9))]);
    keep(&mut fleet, &store);
    let mut fleet = Fleet::load(&store, at(5)).expect("what was kept");
    assert_eq!(come(&mut fleet, 257, &none), one("old", 9));
    assert_eq!(come(&mut fleet, 256, &none), one("old", 7));
}

#[test]
fn an_agent_that_changes_its_collector_is_told_of_both_before_the_offer() {
    let mut fleet = fleet(&Memory::default());
    assert_eq!(come(&mut fleet, 1, &Labels::default()), one("old", 1));
    let next = vec![object(policy("all", 0, &[], &["aside"]))];
    fleet.apply(change(next, &[]), at(3)).expect("applied");
    let said = drain(&mut fleet);
    let place = |wanted: fn(&Speech) -> bool| said.iter().position(|(_, speech)| wanted(speech));
    let ids = place(|speech| matches!(speech, Speech::ShortIds(_))).expect("numbers");
    let offer = place(|speech| matches!(speech, Speech::Offer(_))).expect("an offer");
    assert!(ids < offer, "{said:?}");
    let both = BTreeMap::from([("aside".to_owned(), 1), ("old".to_owned(), 1)]);
    assert_eq!(said[ids].1, Speech::ShortIds(both));
}

#[test]
fn an_agent_that_refuses_one_deploy_after_the_other_keeps_its_number() {
    let mut fleet = fleet(&Memory::default());
    assert_eq!(come(&mut fleet, 1, &Labels::default()), one("old", 1));
    for port in 6_000..6_012 {
        fleet
            .apply(change(vec![collector("old", port, true)], &[]), at(3))
            .expect("applied");
        let said = drain(&mut fleet);
        let told = said
            .iter()
            .any(|(_, speech)| matches!(speech, Speech::ShortIds(_)));
        assert!(!told, "{port}: {said:?}");
        fleet.handle_heard(SessionId(1), nack(offer_in(&said).nonce, "no"), at(4));
    }
}

#[test]
fn an_agent_that_is_not_offered_a_collector_has_no_number_there() {
    let mut fleet = fleet(&Memory::default());
    most(&mut fleet, 1);
    let (none, id) = (Labels::default(), name("agent-1"));
    fleet.handle_enrolled(&id, &none, at(1));
    let mut older = hello(1, None);
    older.said.features.clear();
    fleet
        .handle_open(&id, &none, older, SessionId(1), at(1))
        .expect("welcome");
    assert_eq!(settle(&mut fleet), BTreeMap::new());
    assert_eq!(come(&mut fleet, 2, &none), one("old", 1));
}

#[test]
fn what_was_offered_before_what_an_agent_holds_is_forgotten_though_it_could_not_be_offered_that_meanwhile() {
    let mut fleet = fleet(&Memory::default());
    let (none, id) = (Labels::default(), name("agent-1"));
    fleet
        .handle_open(&id, &none, hello(1, None), SessionId(1), at(1))
        .expect("welcome");
    let first = offers(&mut fleet).remove(&1).expect("an offer");
    fleet.handle_heard(SessionId(1), ack(&first), at(2));
    let rule = wire::FlowRule {
        ports: vec!["443".into()],
        pod_labels: vec!["app=web".into()],
        ..wire::FlowRule::default()
    };
    let of_pods = wire::Policy {
        capture: Some(wire::Capture {
            exclude: vec![rule],
            ..wire::Capture::default()
        }),
        ..policy("all", 0, &[], &["old", "new"])
    };
    let back = vec![collector("old", 5_556, true), object(of_pods)];
    let mut last = None;
    for objects in [vec![collector("old", 6_001, true)], back] {
        fleet.apply(change(objects, &[]), at(3)).expect("applied");
        last = offers(&mut fleet).remove(&1);
    }
    let last = last.expect("an offer");
    let mut older = hello(1, Some(first.mark));
    let unknown = i32::from(Feature::RulePodLabels);
    older.said.features.retain(|feature| *feature != unknown);
    fleet
        .handle_open(&id, &none, older, SessionId(2), at(4))
        .expect("welcome");
    assert!(fleet.agents[&id].is_withheld());
    let before = "tcp://192.0.2.1:6001";
    assert_eq!(use_of(&fleet.agents, &id, before), Use::MayFeed);
    fleet
        .handle_open(&id, &none, hello(1, Some(last.mark)), SessionId(3), at(5))
        .expect("welcome");
    assert_eq!(use_of(&fleet.agents, &id, before), Use::Elsewhere);
}

#[test]
fn a_revoked_agents_number_is_out_of_use_until_nothing_else_is_free_then_the_oldest_goes_first() {
    let store = Memory::default();
    let mut fleet = fleet(&store);
    most(&mut fleet, 5);
    let none = Labels::default();
    let given: Vec<_> = (1..=4).map(|n| come(&mut fleet, n, &none)["old"]).collect();
    assert_eq!(given, [1, 2, 3, 4]);
    for (hour, gone) in [(1, 3), (2, 1)] {
        fleet.handle_revoked(&name(&format!("agent-{gone}")));
        pass(&mut fleet, &[1, 2, 3, 4], hour * 3_600_000);
    }
    keep(&mut fleet, &store);
    let mut fleet = Fleet::load(&store, at(3 * 3_600_000)).expect("what was kept");
    most(&mut fleet, 5);
    let given: Vec<_> = (5..=8).map(|n| come(&mut fleet, n, &none)["old"]).collect();
    assert_eq!(
        given,
        [5, 3, 1, 0],
        "the last one waits: those of connected and absent agents stay"
    );
}

#[test]
fn a_restart_does_not_shorten_a_quarantine_and_its_end_is_one() {
    let none = Labels::default();
    for (later, given) in [(QUARANTINE - 60_000, 1), (QUARANTINE + 120_000, 2)] {
        let store = Memory::default();
        let mut fleet = fleet(&store);
        most(&mut fleet, 2);
        assert_eq!(come(&mut fleet, 1, &none), one("old", 1));
        assert_eq!(come(&mut fleet, 2, &none), one("old", 2));
        fleet.handle_revoked(&name("agent-2"));
        pass(&mut fleet, &[1], FORGET_EVERY_MS);
        keep(&mut fleet, &store);
        let mut fleet = Fleet::load(&store, at(later)).expect("what was kept");
        most(&mut fleet, 2);
        // Agent 1 has left for another collector: its number is free for certain, but may still be wanted back.
        come(&mut fleet, 1, &labels(&[("at", "aside")]));
        pass(&mut fleet, &[1], later);
        assert_eq!(come(&mut fleet, 3, &none), one("old", given), "{later}");
    }
}

#[test]
fn who_comes_back_within_the_quarantine_has_the_number_that_it_had() {
    let mut fleet = fleet(&Memory::default());
    let none = Labels::default();
    let before: Vec<_> = (1..=3).map(|n| come(&mut fleet, n, &none)).collect();
    fleet.handle_revoked(&name("agent-2"));
    pass(&mut fleet, &[1, 3], FORGET_EVERY_MS);
    assert_eq!(come(&mut fleet, 4, &none), one("old", 4));
    fleet.handle_enrolled(&name("agent-2"), &none, at(FORGET_EVERY_MS + 1));
    assert_eq!(come(&mut fleet, 2, &none), before[1]);
}

#[test]
fn a_collector_that_is_elsewhere_from_now_on_has_one_number_that_is_nobody_elses_at_either_end() {
    let mut fleet = fleet(&Memory::default());
    most(&mut fleet, 2);
    let (none, aside) = (Labels::default(), labels(&[("at", "aside")]));
    assert_eq!(come(&mut fleet, 1, &none), one("old", 1));
    assert_eq!(come(&mut fleet, 2, &none), one("old", 2));
    assert_eq!(come(&mut fleet, 3, &aside), one("aside", 1));
    fleet
        .apply(change(vec![collector("old", 5_557, true)], &[]), at(3))
        .expect("applied");
    let said = drain(&mut fleet);
    let told: BTreeMap<u64, &BTreeMap<String, u32>> = said
        .iter()
        .filter_map(|(to, speech)| match speech {
            Speech::ShortIds(ids) => Some((to.0, ids)),
            _ => None,
        })
        .collect();
    // 1 is agent 3's where agent 1 is to go, 2 is agent 2's where it is. Agent 2 keeps what it has, and hears nothing.
    assert_eq!(told, BTreeMap::from([(1, &one("old", 0))]), "{said:?}");
    for (to, speech) in said {
        if let Speech::Offer(offer) = speech {
            fleet.handle_heard(to, ack(&offer), at(4));
        }
    }
    // Two of two are given there.
    assert_eq!(settle(&mut fleet), BTreeMap::new());
    fleet.handle_revoked(&name("agent-3"));
    pass(&mut fleet, &[1, 2], 2 * FORGET_EVERY_MS);
    assert_eq!(told_of(&mut fleet, 1), Some(one("old", 1)));
}

fn told_of(fleet: &mut Fleet, n: u64) -> Option<BTreeMap<String, u32>> {
    settle(fleet).remove(&n)
}

#[test]
fn a_name_and_an_address_mapped_from_ipv4_are_read_as_they_are_meant() {
    let content = |endpoint: &str| {
        let collector = wire::Collector {
            name: "a".into(),
            endpoint: endpoint.into(),
            encoding: wire::Encoding::NestedJson.into(),
            ..wire::Collector::default()
        };
        let assignment = wire::session::Assignment {
            collectors: vec![collector],
            ..wire::session::Assignment::default()
        };
        let content = super::super::content::Content::new(&assignment);
        content
            .short
            .into_iter()
            .map(|one| one.endpoint)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        content("tcp://NTOPNG.example.:5556"),
        ["tcp://ntopng.example:5556"]
    );
    assert_eq!(content("tcp://[::ffff:192.0.2.1]:5556"), ["tcp://192.0.2.1:5556"]);
}

/// A restore of what was kept in `from`, by way of a file.
fn restored(from: &SledStore, directory: &Path, n: u32, ms: u64) -> SledStore {
    let mut octets = Vec::new();
    let now = |ms: u64| WallMs(at(ms).wall_ms);
    backup::write(from, directory, &mut octets, now(ms)).expect("a backup");
    let (file, state) = (
        directory.join(format!("backup-{n}")),
        directory.join(format!("state-{n}")),
    );
    std::fs::write(&file, octets).expect("ours");
    backup::restore(&file, &state, now(ms + 1_000)).expect("restored");
    SledStore::open(&state.join("store")).expect("a store")
}

#[test]
fn after_a_restore_nobody_gets_what_somebody_may_have_got_after_the_backup() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = StateDir::create(&directory.path().join("state")).expect("a state");
    let store = SledStore::open(&state.store()).expect("a store");
    let none = Labels::default();
    let mut fleet = fleet(&store);
    let known: Vec<_> = (1..=3).map(|n| come(&mut fleet, n, &none)).collect();
    keep(&mut fleet, &store);
    let later = restored(&store, directory.path(), 1, 100);
    // After the backup.
    let since: BTreeSet<u32> = (4..=40).map(|n| come(&mut fleet, n, &none)["old"]).collect();
    assert_eq!(since, (4..=40).collect());
    drop(fleet);

    let mut fleet = Fleet::load(&later, at(2_000)).expect("what was restored");
    let again: Vec<_> = (1..=3).map(|n| come(&mut fleet, n, &none)).collect();
    assert_eq!(again, known, "who was known has what it had");
    let strangers: Vec<u32> = (41..=60).map(|n| come(&mut fleet, n, &none)["old"]).collect();
    assert_eq!(strangers, (236..=255).rev().collect::<Vec<_>>());
    // One that had got a number after the backup is told another one.
    assert_eq!(come(&mut fleet, 4, &none), one("old", 235));
    keep(&mut fleet, &later);

    // Once more: neither from where the first life of the store gave, nor from where the second one does.
    let last = restored(&later, directory.path(), 2, 3_000);
    let mut fleet = Fleet::load(&last, at(5_000)).expect("what was restored");
    assert_eq!(come(&mut fleet, 61, &none), one("old", 129));
    let day = 24 * 3_600_000;
    fleet.handle_timeout(at(day));
    assert_eq!(come(&mut fleet, 62, &none), one("old", 130));
}

#[test]
fn an_agent_that_holds_what_a_restored_controller_does_not_know_has_no_number_until_it_has_acked() {
    let store = Memory::default();
    let mut fleet = fleet(&store);
    let none = Labels::default();
    let number = come(&mut fleet, 1, &none);
    keep(&mut fleet, &store);
    let backup = store.copy();
    fleet
        .apply(change(vec![collector("old", 5_559, true)], &[]), at(3))
        .expect("applied");
    let offer = offers(&mut fleet).remove(&1).expect("an offer");
    let mut fleet = Fleet::load(&backup, at(4)).expect("the backup");
    let (id, said) = (name("agent-1"), hello(1, Some(offer.mark)));
    fleet
        .handle_open(&id, &none, said, SessionId(1), at(5))
        .expect("welcome");
    let said = drain(&mut fleet);
    let told: Vec<_> = said
        .iter()
        .filter(|(_, speech)| matches!(speech, Speech::ShortIds(_)))
        .collect();
    assert_eq!(told, [&(SessionId(1), Speech::ShortIds(BTreeMap::new()))]);
    let offer = said.into_iter().find_map(|(_, speech)| match speech {
        Speech::Offer(offer) => Some(offer),
        _ => None,
    });
    fleet.handle_heard(SessionId(1), ack(&offer.expect("an offer")), at(6));
    assert_eq!(told_of(&mut fleet, 1), Some(number));
}

fn offers(fleet: &mut Fleet) -> BTreeMap<u64, OfferOut> {
    let offer = |(to, speech): (SessionId, Speech)| match speech {
        Speech::Offer(offer) => Some((to.0, offer)),
        _ => None,
    };
    drain(fleet).into_iter().filter_map(offer).collect()
}

#[test]
fn it_is_told_before_a_deploy_that_more_agents_feed_a_collector_than_it_can_tell_apart() {
    let mut fleet = fleet(&Memory::default());
    most(&mut fleet, 3);
    let none = Labels::default();
    let twin = labels(&[("at", "twin")]);
    let crowded = |fleet: &mut Fleet, dry_run: bool, objects: Vec<Object>| {
        let change = super::super::Change {
            dry_run,
            ..change(objects, &[])
        };
        let answer = fleet.apply(change, at(3)).expect("applied");
        let warnings = answer.warnings.into_iter();
        Vec::from_iter(warnings.filter(|warning| warning.contains("8 bits")))
    };
    for n in 1..=3 {
        come(&mut fleet, n, if n == 3 { &twin } else { &none });
    }
    come(&mut fleet, 4, &labels(&[("at", "new")]));
    assert_eq!(crowded(&mut fleet, true, Vec::new()), [""; 0], "three have room");
    // The fourth of one ntopng, which has two names.
    let moved = object(policy("news", 1, &[("at", "new")], &["twin"]));
    let told = "4 agents are to feed collector old and twin (tcp://192.0.2.1:5556), which tells agents apart by 3 numbers of 8 bits: 1 \
                of them keep their records until one is free; give some agents another collector by a policy of their own, or, if \
                it reads it, have header version 2 (encoding: tlv)";
    assert_eq!(crowded(&mut fleet, true, vec![moved.clone()]), [told]);
    assert_eq!(
        crowded(&mut fleet, true, Vec::new()),
        [""; 0],
        "nothing was changed"
    );
    assert_eq!(crowded(&mut fleet, false, vec![moved]), [told]);
    assert_eq!(crowded(&mut fleet, true, Vec::new()), [told], "it stands");
    fleet.handle_revoked(&name("agent-1"));
    assert_eq!(crowded(&mut fleet, true, Vec::new()), [""; 0]);
}
