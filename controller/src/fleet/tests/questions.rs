use std::net::IpAddr;

use super::*;
use crate::fleet::heard::About;
use crate::fleet::questions::{ANSWER_MS, CACHE_MS, WAITING_OF_ONE_MAX};

/// Three agents of one collector at 10.0.0.1 to 10.0.0.3, and one of another at 10.0.0.4; sessions of the same numbers.
fn fleet() -> Fleet {
    let mut fleet = empty();
    let objects = vec![
        collector("c"),
        collector("d"),
        object(policy("c", 0, &[], &["c"])),
        object(policy("d", 1, &[("n", "4")], &["d"])),
    ];
    fleet.apply(change(objects, &[]), at(0)).expect("applied");
    for n in 1..=4_u8 {
        let sent = say::Hello {
            addresses: vec![vec![10, 0, 0, n]],
            ..hello_wire(n.into())
        };
        let hello = Hello::parse(from_agent(say::from_agent::Body::Hello(sent))).expect("a hello");
        let id = name(&format!("a{n}"));
        let labels = labels(&[("n", &n.to_string())]);
        let session = SessionId(n.into());
        fleet
            .handle_open(&id, &labels, hello, session, at(0))
            .expect("welcome");
        let offer = offer_in(&drain(&mut fleet));
        fleet.handle_heard(session, ack(&offer), at(0));
    }
    fleet.handle_timeout(at(0));
    drain(&mut fleet);
    fleet
}

fn ip(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn ask(fleet: &mut Fleet, from: u8, id: u64, about: u8, port: u16, now_ms: u64) -> Vec<(SessionId, Speech)> {
    let about = About {
        address: ip(about),
        port,
        protocol: 6,
        peer_address: ip(from),
        peer_port: 40_000,
        of_flow: false,
    };
    fleet.handle_heard(SessionId(from.into()), Heard::Question { id, about }, at(now_ms));
    drain(fleet)
}

fn asked(said: &[(SessionId, Speech)]) -> (SessionId, u64) {
    match said {
        [(session, Speech::Question(question))] => (*session, question.id),
        other => panic!("no question: {other:?}"),
    }
}

fn answer(id: u64, pid: Option<u32>) -> Speech {
    let end = pid.map(|pid| say::End {
        pid,
        ..say::End::default()
    });
    Speech::Answer(Box::new(say::Answer { id, end }))
}

fn reply(fleet: &mut Fleet, from: u64, id: u64, pid: Option<u32>, now_ms: u64) -> Vec<(SessionId, Speech)> {
    let end = pid.map(|pid| {
        Box::new(say::End {
            pid,
            ..say::End::default()
        })
    });
    fleet.handle_heard(SessionId(from), Heard::Answer { id, end }, at(now_ms));
    drain(fleet)
}

#[test]
fn a_question_goes_to_the_owner_once_and_the_answer_to_all_who_ask() {
    let mut fleet = fleet();
    let (owner, number) = asked(&ask(&mut fleet, 1, 11, 3, 443, 0));
    assert_eq!(owner, SessionId(3));
    assert_eq!(ask(&mut fleet, 2, 22, 3, 443, 1), [], "the same question waits");
    // Only who was asked may answer.
    assert_eq!(reply(&mut fleet, 2, number, Some(666), 2), []);
    let told = reply(&mut fleet, 3, number, Some(77), 3);
    assert_eq!(
        told,
        [
            (SessionId(1), answer(11, Some(77))),
            (SessionId(2), answer(22, Some(77)))
        ]
    );
    assert_eq!(
        ask(&mut fleet, 1, 12, 3, 443, CACHE_MS),
        [(SessionId(1), answer(12, Some(77)))]
    );
    asked(&ask(&mut fleet, 1, 13, 3, 443, CACHE_MS + 3));
}

#[test]
fn nobody_knows_and_no_answer_in_time_are_answered_with_nothing() {
    let mut fleet = fleet();
    assert_eq!(
        ask(&mut fleet, 1, 1, 9, 443, 0),
        [(SessionId(1), answer(1, None))]
    );
    asked(&ask(&mut fleet, 1, 2, 3, 443, 0));
    fleet.handle_timeout(at(ANSWER_MS - 1));
    assert_eq!(drain(&mut fleet), []);
    fleet.handle_timeout(at(ANSWER_MS));
    assert_eq!(drain(&mut fleet), [(SessionId(1), answer(2, None))]);
    let (_, number) = asked(&ask(&mut fleet, 1, 3, 2, 443, ANSWER_MS));
    fleet.handle_closed(SessionId(2), at(ANSWER_MS));
    assert_eq!(drain(&mut fleet), [(SessionId(1), answer(3, None))]);
    assert_eq!(reply(&mut fleet, 2, number, Some(1), ANSWER_MS), []);
}

#[test]
fn an_agent_asks_for_its_own_flows_only() {
    let mut fleet = fleet();
    let about = About {
        address: ip(3),
        port: 443,
        protocol: 6,
        peer_address: ip(2),
        peer_port: 40_000,
        of_flow: false,
    };
    fleet.handle_heard(SessionId(1), Heard::Question { id: 5, about }, at(0));
    assert_eq!(drain(&mut fleet), [(SessionId(1), answer(5, None))]);
}

#[test]
fn one_stream_has_so_many_questions_open_and_no_more() {
    let mut fleet = fleet();
    for n in 0..WAITING_OF_ONE_MAX as u64 {
        asked(&ask(&mut fleet, 1, n, 3, n as u16 + 1, 0));
    }
    assert_eq!(
        ask(&mut fleet, 1, 999, 3, 60_000, 0),
        [(SessionId(1), answer(999, None))]
    );
    asked(&ask(&mut fleet, 2, 1, 3, 60_000, 0));
    fleet.handle_closed(SessionId(1), at(0));
    fleet.handle_timeout(at(ANSWER_MS));
    assert_eq!(drain(&mut fleet), [(SessionId(2), answer(1, None))]);
}

#[test]
fn who_shares_no_collector_learns_nothing_and_keeps_nobody_from_learning() {
    let mut fleet = fleet();
    let nothing = |id| [(SessionId(4), answer(id, None))];
    assert_eq!(ask(&mut fleet, 4, 1, 3, 443, 0), nothing(1));
    let (_, number) = asked(&ask(&mut fleet, 1, 1, 3, 443, 0));
    assert_eq!(ask(&mut fleet, 4, 2, 3, 443, 0), nothing(2), "while it waits");
    assert_eq!(
        reply(&mut fleet, 3, number, Some(77), 1),
        [(SessionId(1), answer(1, Some(77)))]
    );
    assert_eq!(
        ask(&mut fleet, 4, 3, 3, 443, 2),
        nothing(3),
        "while the answer is kept"
    );
    assert_eq!(
        ask(&mut fleet, 2, 1, 3, 443, 2),
        [(SessionId(2), answer(1, Some(77)))]
    );
}

#[test]
fn an_answer_about_the_end_that_began_is_of_its_flow_alone() {
    let mut fleet = fleet();
    let mut about = |port, of_flow, peer_port| {
        let about = About {
            address: ip(3),
            port,
            protocol: 6,
            peer_address: ip(1),
            peer_port,
            of_flow,
        };
        let id = u64::from(peer_port);
        fleet.handle_heard(SessionId(1), Heard::Question { id, about }, at(0));
        let said = drain(&mut fleet);
        let new = matches!(said[..], [(_, Speech::Question(_))]);
        if let [(_, Speech::Question(question))] = &said[..] {
            reply(&mut fleet, 3, question.id, Some(peer_port.into()), 0);
        }
        new
    };
    // A port that a system gives, whoever asks; another one when the agent says so.
    for (port, of_flow) in [(40_000, false), (5_000, true)] {
        assert!(
            about(port, of_flow, 50_051) && about(port, of_flow, 50_052),
            "{port}"
        );
        assert!(!about(port, of_flow, 50_051), "{port}");
    }
    // A service is the same for all.
    assert!(about(5_000, false, 50_051) && !about(5_000, false, 50_052));
}
