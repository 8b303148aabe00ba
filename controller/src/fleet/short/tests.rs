//! One claim a test: who has which number of 8 bits, what is told, what is kept.

use std::collections::{BTreeMap, BTreeSet};

use flowtilla_proto::labels::Labels;
use flowtilla_proto::wire;
use flowtilla_proto::wire::fleet::{Object, object};

use super::super::heard::Heard;
use super::super::tests::{ack, at, change, drain, hello, labels, memory::Memory, name, object, policy};
use super::super::{FORGET_EVERY_MS, Fleet, SessionId, Speech};
use crate::store::Store as _;

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
fn fleet(store: &Memory) -> Fleet {
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

/// An agent comes, and acks what it is offered; what it was told of its numbers before that.
fn come(fleet: &mut Fleet, n: u64, of: &Labels) -> BTreeMap<String, u32> {
    let (id, session) = (name(&format!("agent-{n}")), SessionId(n));
    fleet
        .handle_open(&id, of, hello(n as u32, None), session, at(1))
        .expect("welcome");
    let mut ids = BTreeMap::new();
    for (to, speech) in drain(fleet) {
        match speech {
            Speech::ShortIds(told) if to == session => ids = told,
            Speech::Offer(offer) => fleet.handle_heard(to, ack(&offer), at(2)),
            _ => {}
        }
    }
    ids
}

/// All of so many agents say something: their streams live on.
fn live_on(fleet: &mut Fleet, agents: u64, ms: u64) {
    for n in 1..=agents {
        fleet.handle_heard(SessionId(n), Heard::Unknown, at(ms));
    }
}

fn keep(fleet: &mut Fleet, store: &Memory) {
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
    // Another ntopng counts anew, and one of header version 2 is none of it.
    assert_eq!(come(&mut fleet, 41, &labels(&[("at", "aside")])), one("aside", 1));
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
    for n in 1..=255 {
        assert_ne!(come(&mut fleet, n, &none), one("old", 0), "{n}");
    }
    assert_eq!(come(&mut fleet, 256, &none), one("old", 0));
    assert_eq!(come(&mut fleet, 257, &none), one("old", 0));
    fleet.handle_timeout(at(10));
    assert_eq!(told(&mut fleet), [], "nothing was free");
    // A number whose agent is gone goes to who waits, the other goes on waiting.
    fleet.handle_revoked(&name("agent-7"));
    live_on(&mut fleet, 257, FORGET_EVERY_MS);
    fleet.handle_timeout(at(10 + FORGET_EVERY_MS));
    assert_eq!(told(&mut fleet), [(256, one("old", 7))]);
    // One that has moved to another collector needs its number no more.
    let moved = labels(&[("at", "aside")]);
    fleet.handle_closed(SessionId(9), at(20));
    assert_eq!(come(&mut fleet, 9, &moved)["aside"], 1);
    live_on(&mut fleet, 257, 2 * FORGET_EVERY_MS);
    fleet.handle_timeout(at(10 + 2 * FORGET_EVERY_MS));
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
