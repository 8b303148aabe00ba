use flowtilla_proto::wire::fleet::{TopRequest, TopResponse};
use flowtilla_proto::wire::session::{
    TopAnswer, TopFlow, TopFlowEnd, TopOrder, TopProcess, TopRow, TopSums, TopUser, TopView, top_row::Subject,
};

use super::*;
use crate::fleet::top::{
    ANSWER_MS, ASKED_AT_ONCE_MAX, REQUEST_MS, REQUESTS_MAX, ROWS_MAX, SILENT_MAX, TopRefused,
};

/// Agents `a0`, `a1`, …, connected, sessions of the same numbers; every second has label `role=web`.
fn agents(count: u64) -> Fleet {
    let mut fleet = empty();
    for n in 0..count {
        let labels = match n % 2 {
            0 => Labels::default(),
            _ => labels(&[("role", "web")]),
        };
        let hello = hello(u32::try_from(n + 1).expect("few"), None);
        fleet
            .handle_open(&name(&format!("a{n}")), &labels, hello, SessionId(n), at(0))
            .expect("welcome");
    }
    drain(&mut fleet);
    fleet
}

fn users(rows: u32) -> TopRequest {
    let mut request = TopRequest {
        rows,
        ..TopRequest::default()
    };
    request.set_view(TopView::Users);
    request.set_order(TopOrder::Octets);
    request
}

fn sums(octets: u64) -> TopSums {
    TopSums {
        flows_client: 1,
        octets_sent: octets,
        octets_received: 1,
        rtt_us: 40,
        rtt_samples: 2,
        ..TopSums::default()
    }
}

fn row(user: &str, octets: u64) -> TopRow {
    TopRow {
        subject: Some(Subject::User(TopUser {
            name: user.to_owned(),
        })),
        window: Some(sums(octets)),
        total: Some(sums(octets.saturating_mul(10))),
    }
}

fn answer(id: u64, rows: Vec<TopRow>) -> TopAnswer {
    TopAnswer {
        id,
        window_ms: 59_000,
        more: 2,
        other: Some(sums(3)),
        other_total: Some(sums(30)),
        evicted: 1,
        rows,
        ..TopAnswer::default()
    }
}

/// Which sessions are asked, and by which id.
fn asked(fleet: &mut Fleet) -> Vec<(u64, u64)> {
    drain(fleet)
        .into_iter()
        .filter_map(|(session, speech)| match speech {
            Speech::Top(question) => Some((session.0, question.id)),
            _ => None,
        })
        .collect()
}

fn says(fleet: &mut Fleet, session: u64, answer: TopAnswer, now_ms: u64) {
    let sent = from_agent(say::from_agent::Body::Top(answer));
    let heard = Heard::parse(sent).expect("an answer");
    fleet.handle_heard(SessionId(session), heard, at(now_ms));
}

fn done(fleet: &mut Fleet) -> TopResponse {
    let (_, response) = fleet.poll_top().expect("it is done with");
    assert_eq!(fleet.poll_top(), None);
    response
}

/// Octets of all rows and of the rest.
fn octets(response: &TopResponse) -> u64 {
    let window = |row: &flowtilla_proto::wire::fleet::TopAgentRow| {
        row.row
            .as_ref()
            .and_then(|row| row.window)
            .map_or(0, |sums| sums.octets())
    };
    response.rows.iter().map(window).sum::<u64>() + response.other.map_or(0, |sums| sums.octets())
}

#[test]
fn the_first_rows_of_all_agents_are_told_and_the_others_are_summed_up() {
    let mut fleet = agents(3);
    fleet.ask_top(&users(2), at(0)).expect("it is taken");
    let questions = asked(&mut fleet);
    let id = questions[0].1;
    assert_eq!(questions, [(0, id), (1, id), (2, id)]);
    says(&mut fleet, 1, answer(id, vec![row("ada", 70), row("bob", 5)]), 1);
    assert_eq!(fleet.poll_top(), None, "others are still to answer");
    says(&mut fleet, 0, answer(id, vec![row("ada", 100)]), 1);
    says(&mut fleet, 2, answer(id, vec![row("eve", 80), row("ada", 60)]), 2);

    let response = done(&mut fleet);
    let told: Vec<(&str, &Subject)> = (response.rows.iter())
        .map(|row| {
            (
                &*row.agent,
                row.row
                    .as_ref()
                    .and_then(|row| row.subject.as_ref())
                    .expect("a subject"),
            )
        })
        .collect();
    let user = |name: &str| {
        Subject::User(TopUser {
            name: name.to_owned(),
        })
    };
    assert_eq!(told, [("a0", &user("ada")), ("a2", &user("eve"))]);
    assert_eq!(
        (response.agents, response.answered, response.silent.len()),
        (3, 3, 0)
    );
    // Two of each agent, and three rows that are not among the first.
    assert_eq!(
        (response.more, response.evicted, response.window_ms),
        (3 * 2 + 3, 3, 59_000)
    );
    // Rows have one octet more than is written above, for what was received.
    assert_eq!(octets(&response), 70 + 5 + 100 + 80 + 60 + 3 * 3 + 5 + 3);
    let other = response.other_total.expect("it is told");
    assert_eq!(other.octets_sent, 3 * 30 + 10 * (70 + 5 + 60));
}

#[test]
fn each_order_compares_by_its_own_figure() {
    let figure = |order: TopOrder, user: &str| {
        let mut sums = TopSums {
            rtt_us: 10,
            rtt_samples: 1,
            ..TopSums::default()
        };
        match order {
            TopOrder::Octets | TopOrder::Unspecified => sums.octets_received = 9,
            TopOrder::Rtt => (sums.rtt_us, sums.rtt_samples) = (60, 2),
            TopOrder::Retransmits => sums.retransmits = 1,
            TopOrder::Flows => sums.flows_server = 1,
            TopOrder::Failed => sums.failed = 1,
        }
        TopRow {
            window: Some(sums),
            ..row(user, 0)
        }
    };
    let orders = [
        TopOrder::Octets,
        TopOrder::Rtt,
        TopOrder::Retransmits,
        TopOrder::Flows,
        TopOrder::Failed,
    ];
    for order in orders {
        let mut fleet = agents(1);
        let mut request = users(1);
        request.set_order(order);
        fleet.ask_top(&request, at(0)).expect("it is taken");
        let id = asked(&mut fleet)[0].1;
        let rows = orders
            .into_iter()
            .map(|of| figure(of, of.as_str_name()))
            .collect();
        says(&mut fleet, 0, answer(id, rows), 0);
        let first = done(&mut fleet).rows.remove(0).row.and_then(|row| row.subject);
        let user = TopUser {
            name: order.as_str_name().to_owned(),
        };
        assert_eq!(first, Some(Subject::User(user)));
    }
}

#[test]
fn who_does_not_answer_is_named_with_the_reason_and_holds_nobody_up() {
    let mut fleet = agents(6);
    fleet.handle_closed(SessionId(4), at(0));
    fleet.handle_revoked(&name("a5"));
    let _ = drain(&mut fleet);
    let mut request = users(10);
    request.ids = ["a0", "a1", "a2", "a4", "a5", "zz", "no name!"]
        .map(str::to_owned)
        .to_vec();
    fleet.ask_top(&request, at(0)).expect("it is taken");
    let questions = asked(&mut fleet);
    let id = questions[0].1;
    assert_eq!(
        questions.iter().map(|(session, _)| *session).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    says(&mut fleet, 0, answer(id, vec![row("ada", 7)]), 1);
    // One that was not asked, one that answers something else, one that answers twice.
    says(&mut fleet, 3, answer(id, vec![row("eve", 1_000)]), 1);
    says(&mut fleet, 1, answer(id + 1, vec![row("eve", 1_000)]), 1);
    says(&mut fleet, 0, answer(id, vec![row("eve", 1_000)]), 1);
    fleet.handle_closed(SessionId(1), at(5));
    fleet.handle_timeout(at(ANSWER_MS - 1));
    assert_eq!(fleet.poll_top(), None);
    fleet.handle_timeout(at(ANSWER_MS));
    let response = done(&mut fleet);
    let silent: Vec<(&str, &str)> = response
        .silent
        .iter()
        .map(|one| (&*one.agent, &*one.why))
        .collect();
    assert_eq!(
        silent,
        [
            ("a5", "it is revoked, or its labels are others"),
            ("no name!", "the controller does not know it"),
            ("zz", "the controller does not know it"),
            ("a4", "it is not connected"),
            ("a1", "its stream ended before it answered"),
            (
                "a2",
                "it did not answer within 2 s: it is of an earlier version, or busy"
            ),
        ]
    );
    assert_eq!(
        (response.agents, response.answered, response.rows.len()),
        (4, 1, 1)
    );
    // Late is late.
    says(&mut fleet, 2, answer(id, vec![row("eve", 1)]), ANSWER_MS);
    assert_eq!(fleet.poll_top(), None);
}

#[test]
fn labels_choose_agents_and_nobody_chosen_is_an_answer_too() {
    let mut fleet = agents(4);
    let mut request = users(10);
    request.labels = [("role".to_owned(), "web".to_owned())].into();
    fleet.ask_top(&request, at(0)).expect("it is taken");
    assert_eq!(
        asked(&mut fleet)
            .iter()
            .map(|(session, _)| *session)
            .collect::<Vec<_>>(),
        [1, 3]
    );
    request.labels = [("role".to_owned(), "db".to_owned())].into();
    fleet.ask_top(&request, at(0)).expect("it is taken");
    let response = done(&mut fleet);
    assert_eq!(
        (response.agents, response.answered, response.silent.len()),
        (0, 0, 0)
    );
}

#[test]
fn agents_are_asked_so_many_at_once_and_the_next_when_one_has_answered() {
    let count = 3 * ASKED_AT_ONCE_MAX as u64;
    let mut fleet = agents(count);
    fleet
        .ask_top(&users(ROWS_MAX as u32), at(0))
        .expect("it is taken");
    let mut to_answer = asked(&mut fleet);
    assert_eq!(to_answer.len(), ASKED_AT_ONCE_MAX);
    let mut answered = 0;
    while let Some((session, id)) = to_answer.pop() {
        let rows = (0..3).map(|n| row(&format!("u{n}"), session + n)).collect();
        says(&mut fleet, session, answer(id, rows), 1);
        answered += 1;
        to_answer.extend(asked(&mut fleet));
        assert!(to_answer.len() <= ASKED_AT_ONCE_MAX);
    }
    assert_eq!(answered, count);
    let response = done(&mut fleet);
    assert_eq!(
        (response.rows.len(), u64::from(response.answered)),
        (ROWS_MAX, count)
    );
    let expected: u64 = (0..count).map(|session| 3 * session + 3 + 3 + 4).sum();
    assert_eq!(octets(&response), expected);
}

#[test]
fn a_fleet_that_does_not_answer_is_given_up_in_bounded_time_and_names_are_bounded() {
    let count = 20 * ASKED_AT_ONCE_MAX as u64;
    let mut fleet = agents(count);
    fleet.ask_top(&users(1), at(0)).expect("it is taken");
    for ms in (0..REQUEST_MS).step_by(500) {
        fleet.handle_timeout(at(ms));
        let _ = drain(&mut fleet);
    }
    fleet.handle_timeout(at(REQUEST_MS));
    let response = done(&mut fleet);
    assert_eq!((u64::from(response.agents), response.answered), (count, 0));
    assert_eq!(response.silent.len(), SILENT_MAX);
}

#[test]
fn requests_are_bounded_and_a_view_that_is_not_known_is_refused() {
    let mut fleet = agents(1);
    for _ in 0..REQUESTS_MAX {
        fleet.ask_top(&users(1), at(0)).expect("it is taken");
    }
    assert_eq!(fleet.ask_top(&users(1), at(0)), Err(TopRefused::Busy));
    fleet.handle_timeout(at(ANSWER_MS));
    fleet
        .ask_top(&users(1), at(ANSWER_MS))
        .expect("there is room again");
    assert_eq!(
        fleet.ask_top(&TopRequest::default(), at(0)),
        Err(TopRefused::View)
    );
}

#[test]
fn what_a_captured_agent_answers_is_cut_to_its_bounds() {
    let end = |octets, port| {
        Some(TopFlowEnd {
            address: vec![1; octets],
            port,
            process: Some(TopProcess {
                program: "p".repeat(5_000),
                ..TopProcess::default()
            }),
        })
    };
    let flow = |client, server| TopRow {
        subject: Some(Subject::Flow(TopFlow {
            protocol: 6,
            client,
            server,
            state: "s".repeat(5_000),
        })),
        ..TopRow::default()
    };
    let rows = vec![
        flow(end(4, 1), end(16, 65_535)),
        flow(end(5, 1), end(4, 1)),
        flow(end(4, 1), end(4, 65_536)),
        flow(None, end(4, 1)),
        TopRow::default(),
        row(&"ü".repeat(5_000), u64::MAX),
    ];
    let many = vec![row("x", u64::MAX); 10 * ROWS_MAX];
    let parsed = |rows| match Heard::parse(from_agent(say::from_agent::Body::Top(answer(1, rows)))) {
        Ok(Heard::Top(answer)) => answer.rows,
        other => panic!("{other:?}"),
    };
    let kept = parsed(rows);
    assert_eq!(kept.len(), 2);
    assert!(
        kept.iter().all(|row| prost::Message::encoded_len(row) < 1_200),
        "{kept:?}"
    );
    assert_eq!(parsed(many.clone()).len(), ROWS_MAX);
    // Sums of numbers as large as there are stay where they are.
    let mut fleet = agents(2);
    fleet.ask_top(&users(1), at(0)).expect("it is taken");
    for (session, id) in asked(&mut fleet) {
        says(&mut fleet, session, answer(id, many.clone()), 0);
    }
    assert_eq!(
        done(&mut fleet).other.map(|sums| sums.octets_sent),
        Some(u64::MAX)
    );
}
