//! What comes over the wire is refused, or bounded.

use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::spiffe::MemberName;
use flowtilla_proto::wire::session;
use proptest::prelude::*;

use super::super::ask::{ABSENT_FRESH, ANSWER_WAIT, IN_FLIGHT_MAX};
use super::super::end::{
    Asked, LONG_TEXT_OCTETS_MAX, POD_OCTETS_MAX, QuestionError, TEXT_OCTETS_MAX, owner_of,
};
use super::super::{ADDRESSES_MAX, FarEnd, Fleet, Members, MembersError, PeerSums, SUMS_KEPT, start_of};
use super::world::{SLOT, ms, name, stream};
use crate::flow::record::{Counting, EndReason, FlowRecord};
use crate::owner::{Confidence, Container, Names, Owner, Pod, Runtime};
use crate::time::WallOffset;

fn member(agent: &str, addresses: &[&[u8]]) -> session::Member {
    session::Member {
        agent: agent.to_owned(),
        addresses: addresses.iter().map(|octets| octets.to_vec()).collect(),
        partial: false,
        stream: 1,
        since: 1,
        apart: Vec::new(),
    }
}

fn list(generation: u64, members: Vec<session::Member>) -> session::Members {
    session::Members {
        collector: "main".to_owned(),
        generation,
        members,
        off: false,
    }
}

#[test]
fn lists_that_make_no_sense_are_refused_with_the_field() {
    let good = list(1, vec![member("host-0", &[&[10, 0, 0, 1]])]);
    assert!(Members::parse(&good).is_ok());
    let refused = |change: fn(&mut session::Members)| {
        let mut list = good.clone();
        change(&mut list);
        Members::parse(&list).unwrap_err()
    };
    assert_eq!(
        refused(|list| list.collector = "no name".into()),
        MembersError::Collector("no name".into())
    );
    assert_eq!(
        refused(|list| list.members[0].agent.clear()),
        MembersError::Agent(0)
    );
    let error = refused(|list| list.members[0].addresses.push(vec![1; 5]));
    assert_eq!(
        error.to_string(),
        "members[0].addresses[1] has 5 octets, not 4 or 16"
    );
    assert_eq!(refused(|list| list.off = true), MembersError::Off);
    assert_eq!(
        refused(|list| list.members[0].addresses = vec![vec![10, 0, 0, 1]; ADDRESSES_MAX + 1]),
        MembersError::TooMany
    );
}

#[test]
fn addresses_that_are_claimed_twice_or_local_are_in_no_list() {
    let members = list(
        1,
        vec![
            member(
                "host-0",
                &[&[10, 0, 0, 1], &[10, 0, 0, 9], &[127, 0, 0, 1], &[169, 254, 1, 1]],
            ),
            member("host-1", &[&[10, 0, 0, 2], &[10, 0, 0, 9]]),
        ],
    );
    let parsed = Members::parse(&members).unwrap();
    let addresses: Vec<_> = parsed
        .places
        .iter()
        .map(|(address, _)| address.to_string())
        .collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.2"]);
}

/// Two hosts that have known each other for long, seen from the first, and a record of a flow between them.
fn settled() -> (Fleet, FlowRecord) {
    let mut fleet = Fleet::new();
    fleet.expect();
    fleet.feed(stream(), SLOT, ms(0));
    fleet.handle_connected(name(0));
    let members = vec![
        member("host-0", &[&[10, 0, 0, 1]]),
        member("host-1", &[&[10, 0, 0, 2]]),
    ];
    fleet.handle_members(Members::parse(&list(1, members)).unwrap(), ms(0));
    (fleet, super::world::record_between([0, 1], [50_000, 443], 90_000))
}

#[test]
fn the_far_end_is_asked_for_once_and_named_for_a_while() {
    let (mut fleet, record) = settled();
    let now = ms(90_500);
    let start = start_of(&record, WallOffset(0));
    assert_eq!(start, ms(90_000));
    let mut first = record.clone();
    assert_eq!(fleet.name_far_end(&mut first, start, now), FarEnd::Waiting);
    let question = fleet.poll_question().expect("a question");
    let asked = Asked::parse(&question).expect("one that can be read");
    assert_eq!((asked.near.port, asked.peer.port), (443, 50_000));
    // Other flows to the same service wait for the same answer.
    let mut second = super::world::record_between([0, 1], [50_001, 443], 90_000);
    assert_eq!(fleet.name_far_end(&mut second, start, now), FarEnd::Waiting);
    assert_eq!(fleet.poll_question(), None);
    let answer = session::Answer {
        id: question.id,
        end: Some(session::End {
            pid: 77,
            program: "nginx".into(),
            executable: "/usr/sbin/nginx".into(),
            uid: Some(33),
            ..session::End::default()
        }),
    };
    fleet.handle_answer(&answer, now);
    for record in [&mut first, &mut second] {
        assert_eq!(fleet.name_far_end(record, start, now), FarEnd::Complete);
        let owner = &record.responder.owner;
        assert_eq!(
            (owner.confidence, owner.program()),
            (Confidence::Told, Some("/usr/sbin/nginx"))
        );
    }
    let later = now.after(Duration::from_secs(61));
    let mut third = record.clone();
    assert_eq!(fleet.name_far_end(&mut third, start, later), FarEnd::Waiting);
}

#[test]
fn without_an_answer_records_go_without_and_are_not_asked_for_again_at_once() {
    let (mut fleet, mut record) = settled();
    let (start, now) = (ms(90_000), ms(90_500));
    assert_eq!(fleet.name_far_end(&mut record, start, now), FarEnd::Waiting);
    let late = now.after(ANSWER_WAIT);
    assert_eq!(fleet.name_far_end(&mut record, start, late), FarEnd::Complete);
    assert!(record.responder.owner.process.is_none());
    assert!(fleet.poll_question().is_some());
    let again = now.after(ABSENT_FRESH);
    fleet.handle_timeout(again);
    assert_eq!(fleet.name_far_end(&mut record, start, again), FarEnd::Waiting);
    assert!(fleet.poll_question().is_some());
    // Nobody answers without a stream: nothing waits.
    fleet.handle_lost(again);
    assert_eq!(fleet.name_far_end(&mut record, start, again), FarEnd::Complete);
    assert_eq!(fleet.poll_question(), None);
}

#[test]
fn the_end_that_is_silent_asks_nothing() {
    let (mut fleet, _) = settled();
    let mut record = super::world::record_between([0, 1], [443, 50_000], 90_000);
    assert_eq!(
        fleet.name_far_end(&mut record, ms(90_000), ms(90_500)),
        FarEnd::Complete
    );
    assert_eq!(fleet.poll_question(), None);
    fleet.judge(&mut record, ms(90_000), ms(90_500));
    assert!(record.held_from.contains(SLOT));
}

#[test]
fn whose_an_ended_flow_was_is_known_while_its_record_waits() {
    let (mut fleet, mut record) = settled();
    let mine = owner_of(&session::End {
        pid: 77,
        ..session::End::default()
    });
    record.initiator.owner = Owner {
        confidence: Confidence::Exact,
        ..mine.expect("an owner")
    };
    record.reason = EndReason::EndOfFlow;
    let asked = Asked {
        id: 1,
        protocol: record.protocol,
        near: record.initiator.endpoint,
        peer: record.responder.endpoint,
    };
    let now = ms(90_500);
    assert_eq!(fleet.owner_of_ended(&asked, now), None);
    assert_eq!(fleet.name_far_end(&mut record, ms(90_000), now), FarEnd::Waiting);
    let owner = fleet.owner_of_ended(&asked, now).expect("it was remembered");
    assert_eq!(owner.process.map(|process| process.key.pid), Some(77));
}

#[test]
fn a_list_without_this_agent_is_not_for_it() {
    let mut fleet = Fleet::new();
    fleet.expect();
    fleet.feed(stream(), SLOT, ms(0));
    fleet.handle_connected(name(0));
    let other = member("host-1", &[&[10, 0, 0, 2]]);
    let without = Members::parse(&list(1, vec![other.clone()])).unwrap();
    fleet.handle_members(without, ms(100));
    let mut record = super::world::record_between([0, 1], [50_000, 443], 200);
    fleet.judge(&mut record, ms(200), ms(700));
    assert_eq!((fleet.held(), record.held_from.contains(SLOT)), (1, true));
    // Addresses that somebody else claims too are left out of a list, their agent is not.
    let with = vec![member("host-0", &[]), other];
    fleet.handle_members(Members::parse(&list(2, with)).unwrap(), ms(1_000));
    fleet.handle_timeout(ms(1_000));
    assert_eq!(fleet.held(), 0);
}

#[test]
fn until_its_first_list_an_agent_tells_totals_while_it_is_connected() {
    for connected in [true, false] {
        let mut fleet = Fleet::new();
        fleet.expect();
        fleet.feed(stream(), SLOT, ms(0));
        if connected {
            fleet.handle_connected(name(0));
        }
        let mut record = super::world::record_between([0, 1], [50_000, 443], 20_000);
        fleet.judge(&mut record, ms(20_000), ms(20_500));
        let wanted = if connected {
            Counting::Total
        } else {
            Counting::Delta
        };
        assert_eq!(
            (record.counting, record.held_from.contains(SLOT)),
            (wanted, false)
        );
    }
}

#[test]
fn of_flows_with_one_that_was_not_told_by_the_other_both_ends_tell() {
    for (by, with) in [(0, 1), (1, 0)] {
        let mut told = Vec::new();
        for own in 0..2 {
            let mut fleet = Fleet::new();
            fleet.expect();
            fleet.feed(stream(), SLOT, ms(0));
            fleet.handle_connected(name(own));
            let listed = |host: u8| member(&format!("host-{host}"), &[&[10, 0, 0, host + 1]]);
            let mut members: Vec<session::Member> = (0..3).map(listed).collect();
            members[by].apart = vec![format!("host-{with}")];
            fleet.handle_members(Members::parse(&list(1, members)).unwrap(), ms(0));
            let ports = [[50_000, 443], [443, 50_000]][own];
            for far in [1 - own, 2] {
                let mut record = super::world::record_between([own, far], ports, 90_000);
                fleet.judge(&mut record, ms(90_000), ms(90_500));
                told.push((record.held_from.contains(SLOT), record.counting));
            }
            // Nothing is relied upon between the two.
            assert!(fleet.sums().all(|(peer, _)| *peer == name(2)));
        }
        assert_eq!(told[0], (false, Counting::Total));
        assert_eq!(told[1], (false, Counting::Delta), "with others all is as before");
        assert_eq!(told[2], (false, Counting::Total));
        assert!(told[3].0, "with others all is as before");
    }
}

#[test]
fn agents_with_which_one_is_apart_are_refused_when_they_make_no_sense() {
    let apart = |names: Vec<String>| {
        let mut one = member("host-0", &[&[10, 0, 0, 1]]);
        one.apart = names;
        Members::parse(&list(1, vec![one])).map(drop)
    };
    assert_eq!(apart(vec!["host-1".into(); 16]), Ok(()));
    assert_eq!(apart(vec!["host-1".into(); 65]), Err(MembersError::Apart(0)));
    assert_eq!(apart(vec!["no name".into()]), Err(MembersError::Apart(0)));
}

#[test]
fn sums_with_agents_that_are_gone_make_room_for_others() {
    let (mut fleet, _) = settled();
    let gone = |n: usize| MemberName::parse(&format!("gone-{n}")).unwrap();
    let members = || {
        vec![
            member("host-0", &[&[10, 0, 0, 1]]),
            member("host-1", &[&[10, 0, 0, 2]]),
        ]
    };
    let mut generation = 1;
    let mut tell = |fleet: &mut Fleet| {
        generation += 1;
        fleet.handle_members(Members::parse(&list(generation, members())).unwrap(), ms(1_000));
    };
    fleet.sums.insert(name(1), PeerSums::default());
    fleet
        .sums
        .extend((1..SUMS_KEPT).map(|n| (gone(n), PeerSums::default())));
    tell(&mut fleet);
    assert_eq!(fleet.sums.len(), SUMS_KEPT, "there is room");
    fleet.sums.insert(gone(0), PeerSums::default());
    tell(&mut fleet);
    assert_eq!(fleet.sums.keys().collect::<Vec<_>>(), [&name(1)]);
}

#[test]
fn questions_on_the_way_have_a_bound() {
    let (mut fleet, _) = settled();
    let mut asked = 0;
    for port in 1..2_000 {
        let mut record = super::world::record_between([0, 1], [60_000, port], 90_000);
        let _ = fleet.name_far_end(&mut record, ms(90_000), ms(90_500));
        asked += usize::from(fleet.poll_question().is_some());
    }
    assert_eq!(asked, IN_FLIGHT_MAX);
}

#[test]
fn questions_that_make_no_sense_are_refused() {
    let good = session::Question {
        id: 1,
        address: vec![10, 0, 0, 1],
        port: 443,
        protocol: 6,
        peer_address: vec![10, 0, 0, 2],
        peer_port: 50_000,
        of_flow: false,
    };
    assert!(Asked::parse(&good).is_ok());
    let refused = |change: fn(&mut session::Question)| {
        let mut question = good.clone();
        change(&mut question);
        Asked::parse(&question).unwrap_err()
    };
    assert_eq!(
        refused(|question| question.protocol = 1),
        QuestionError::Protocol(1)
    );
    assert_eq!(
        refused(|question| question.port = 65_536).to_string(),
        "port is 65536, not 1 to 65535"
    );
    assert_eq!(
        refused(|question| question.peer_address.clear()).to_string(),
        "peer_address has 0 octets, not 4 or 16"
    );
}

#[test]
fn a_container_and_its_pod_are_told_as_they_are_known() {
    let container = Container {
        id: "0123456789abcdef".repeat(4),
        runtime: Runtime::Other,
        name: Some("web".to_owned()),
        pod: Some(Pod {
            namespace: "shop".to_owned(),
            name: "p".repeat(253),
        }),
    };
    let mut owner = owner_of(&session::End {
        pid: 77,
        ..session::End::default()
    })
    .expect("an owner");
    owner.confidence = Confidence::Exact;
    owner.names = Some(Arc::new(Names {
        container: Some(container.clone()),
        ..Names::default()
    }));
    let question = session::Question {
        id: 1,
        address: vec![10, 0, 0, 1],
        port: 443,
        protocol: 6,
        peer_address: vec![10, 0, 0, 2],
        peer_port: 50_000,
        of_flow: false,
    };
    let answer = Asked::parse(&question)
        .expect("sound")
        .answer(Some(&owner), "host-1");
    let mut end = answer.end.expect("there is a process");
    let told = |end: &session::End| {
        let names = owner_of(end).and_then(|owner| owner.names);
        names.and_then(|names| names.container.clone())
    };
    assert_eq!(told(&end), Some(container.clone()));
    end.pod_namespace.clear();
    assert_eq!(
        told(&end),
        Some(Container {
            pod: None,
            ..container
        })
    );
}

proptest! {
    #[test]
    fn whatever_is_told_is_bounded(
        pid in any::<u32>(),
        text in ".{0,3000}",
        container in prop_oneof!["[0-9a-fA-F]{64}", ".{0,100}"],
    ) {
        let end = session::End {
            pid,
            program: text.clone(),
            executable: text.clone(),
            command_line: text.clone(),
            user: text.clone(),
            group: text.clone(),
            parent_pid: 1,
            parent_program: text.clone(),
            container,
            container_name: text.clone(),
            pod: text.clone(),
            pod_namespace: text,
            ..session::End::default()
        };
        let owner = owner_of(&end);
        prop_assert_eq!(owner.is_some(), pid > 0);
        if let Some(names) = owner.and_then(|owner| owner.names) {
            for long in [&names.executable, &names.command_line].into_iter().flatten() {
                prop_assert!(long.len() <= LONG_TEXT_OCTETS_MAX);
            }
            for short in [&names.user, &names.group].into_iter().flatten() {
                prop_assert!(short.len() <= TEXT_OCTETS_MAX);
            }
            if let Some(container) = &names.container {
                prop_assert_eq!(container.id.len(), 64);
                if let Some(pod) = &container.pod {
                    prop_assert!(pod.namespace.len() <= TEXT_OCTETS_MAX && pod.name.len() <= POD_OCTETS_MAX);
                }
            }
        }
    }

    #[test]
    fn whatever_is_asked_or_listed_is_read_or_refused(
        address in proptest::collection::vec(any::<u8>(), 0..20),
        port in any::<u32>(),
        protocol in any::<u32>(),
        agent in ".{0,70}",
        members in 0..20_usize,
    ) {
        let question = session::Question {
            id: 1,
            address: address.clone(),
            port,
            protocol,
            peer_address: address.clone(),
            peer_port: port,
            of_flow: false,
        };
        if let Ok(asked) = Asked::parse(&question) {
            prop_assert!(asked.near.port > 0 && matches!(address.len(), 4 | 16));
        }
        let member = member(&agent, &[&address]);
        if let Ok(parsed) = Members::parse(&list(1, vec![member; members])) {
            prop_assert!(parsed.places.len() <= 1);
        }
    }
}
