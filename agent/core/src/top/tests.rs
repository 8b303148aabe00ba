//! What the sums promise: exact within their bounds, each flow once, nothing lost when rows go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message as _;

use super::wire::{ANSWER_OCTETS_MAX, ANSWER_ROWS_MAX, Question};
use super::*;
use crate::flow::record::{BootId, CollectorSet, Counting, Counts, RecordId, TcpFigures, Traffic};
use crate::observe::NetNs;
use crate::owner::{Container, Process, ProcessKey, Runtime};
use crate::time::WallTime;

const BEGAN: KernelTime = KernelTime(1_000_000_000_000);

fn at(s: u64) -> KernelTime {
    BEGAN.after(Duration::from_secs(s))
}

fn container(n: u64) -> Container {
    Container {
        id: format!("{n:064x}"),
        runtime: Runtime::Docker,
        name: Some(format!("c{n}")),
        pod: (n == 9).then(|| Pod {
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
        }),
    }
}

/// A process of `user`, in this container or in `app.service`.
fn owner(program: &str, user: &str, container: Option<Container>) -> Owner {
    Owner {
        confidence: Confidence::Exact,
        process: Some(Process {
            key: ProcessKey {
                pid: 7,
                start: KernelTime(1),
            },
            parent_pid: 1,
            uid: 1_000,
            gid: 1_000,
            cgroup_id: 5,
            comm: program.into(),
        }),
        names: Some(Arc::new(Names {
            executable: Some(format!("/usr/bin/{program}")),
            user: (!user.is_empty()).then(|| user.to_owned()),
            unit: container.is_none().then(|| "app.service".to_owned()),
            container,
            ..Names::default()
        })),
    }
}

/// A record of flow `cookie`: so many octets and one packet forward, twice as many back.
fn record(cookie: u64, part: u32, octets: u64, client: Owner, server: Owner) -> FlowRecord {
    let party = |last, port, owner| Party {
        endpoint: Endpoint {
            address: [192, 0, 2, last].into(),
            port,
        },
        owner,
    };
    let counts = |octets, packets| Counts {
        octets,
        packets,
        payload: 0,
    };
    let delta = Traffic {
        forward: counts(octets, 1),
        backward: counts(2 * octets, 2),
    };
    FlowRecord {
        id: RecordId {
            boot: BootId([7; 16]),
            cookie: Cookie(cookie),
            stream: 0,
            part,
        },
        first: part == 1,
        protocol: Protocol::Tcp,
        initiator: party(1, 40_000, client),
        responder: party(2, 443, server),
        initiator_seen: true,
        backfilled: false,
        netns: NetNs(1),
        counting: Counting::Delta,
        delta,
        total: delta,
        start: WallTime(1),
        delta_start: WallTime(1),
        end: WallTime(2),
        tcp: Some(TcpFigures {
            rtt_us: Some(1_000),
            rtt_variance_us: Some(100),
            retransmits_forward: 3,
            retransmits_backward: 5,
            state: Some(TcpState::Established),
            ..TcpFigures::default()
        }),
        reason: EndReason::ActiveTimeout,
        held_from: CollectorSet::default(),
        baseline: None,
    }
}

fn remote() -> Owner {
    Owner::unknown(Unknown::Remote)
}

fn all(top: &mut Top, view: View, now: KernelTime) -> Report {
    top.report(view, Order::Octets, usize::MAX, now)
}

fn named(report: &Report) -> BTreeMap<String, Sums> {
    let name = |subject: &Subject| match subject {
        Subject::Container { id, name, .. } => name.clone().unwrap_or_else(|| id.clone()),
        Subject::Pod(pod) => format!("{}/{}", pod.namespace, pod.name),
        Subject::Process { program, place } => format!("{program} {}", place.text()),
        Subject::User(name) => name.clone(),
        Subject::Flow(flow) => flow.client.endpoint.port.to_string(),
    };
    report
        .rows
        .iter()
        .map(|row| (name(&row.subject), row.window))
        .collect()
}

#[test]
fn both_ends_of_a_flow_on_this_host_are_told_each_by_its_own_side() {
    let mut top = Top::default();
    let (curl, nginx) = (
        owner("curl", "ada", None),
        owner("nginx", "www", Some(container(1))),
    );
    top.take(&record(1, 1, 100, curl, nginx), at(0));

    let amount = |octets, packets| Amount { octets, packets };
    let client = Sums {
        flows_client: 1,
        sent: amount(100, 1),
        received: amount(200, 2),
        rtt_us: 1_000,
        rtt_samples: 1,
        rtt_variance_us: 100,
        rtt_variance_samples: 1,
        retransmits: 3,
        ..Sums::default()
    };
    let server = Sums {
        flows_client: 0,
        flows_server: 1,
        sent: amount(200, 2),
        received: amount(100, 1),
        retransmits: 5,
        ..client
    };
    let flow = Sums {
        retransmits: 8,
        ..client
    };
    for (view, rows) in [
        (View::Containers, vec![("c1", server)]),
        (
            View::Processes,
            vec![
                ("/usr/bin/curl app.service", client),
                ("/usr/bin/nginx c1", server),
            ],
        ),
        (View::Users, vec![("ada", client), ("www", server)]),
        (View::Flows, vec![("40000", flow)]),
        (View::Pods, vec![]),
    ] {
        let report = all(&mut top, view, at(0));
        let rows: BTreeMap<String, Sums> = rows
            .into_iter()
            .map(|(name, sums)| (name.to_owned(), sums))
            .collect();
        assert_eq!(named(&report), rows, "{view:?}");
        assert!(report.rows.iter().all(|row| row.window == row.total));
    }
    assert_eq!(
        (client.rtt_mean_us(), client.rtt_variance_mean_us()),
        (Some(1_000), Some(100))
    );
    assert_eq!(Sums::default().rtt_mean_us(), None);
}

#[test]
fn a_failed_attempt_counts_for_who_tried_and_for_nobody_else() {
    let mut top = Top::default();
    for (n, reason) in [
        EndReason::Refused,
        EndReason::TimedOut,
        EndReason::Unreachable,
        EndReason::Reset,
    ]
    .into_iter()
    .enumerate()
    {
        let mut failed = record(
            n as u64,
            1,
            60,
            owner("curl", "ada", None),
            Owner::unknown(Unknown::NotSeen),
        );
        failed.reason = reason;
        top.take(&failed, at(0));
    }
    let report = all(&mut top, View::Processes, at(0));
    let failed: BTreeMap<String, u64> = named(&report)
        .into_iter()
        .map(|(name, sums)| (name, sums.failed))
        .collect();
    // A connection that was reset had somebody at its other end.
    let expected = [
        ("/usr/bin/curl app.service".to_owned(), 3),
        ("[unknown] ".to_owned(), 0),
    ];
    assert_eq!(failed, BTreeMap::from(expected));
}

#[test]
fn an_end_on_another_host_and_a_user_without_a_name_are_told_as_such() {
    let mut top = Top::default();
    top.take(&record(1, 1, 10, owner("curl", "", None), remote()), at(0));
    assert_eq!(
        named(&all(&mut top, View::Users, at(0)))
            .keys()
            .collect::<Vec<_>>(),
        ["1000"]
    );
    assert_eq!(all(&mut top, View::Processes, at(0)).rows.len(), 1);
}

#[test]
fn a_flow_counts_once_in_the_window_and_leaves_it_after_a_minute_without_a_record() {
    let mut top = Top::default();
    let flows = |top: &mut Top, s| {
        let report = all(top, View::Users, at(s));
        report
            .rows
            .first()
            .map(|row| (row.window.flows(), row.total.flows(), row.window.sent.octets))
    };
    for n in 0..30 {
        let part = u32::try_from(n + 1).expect("small");
        top.take(
            &record(1, part, 10, owner("curl", "ada", None), remote()),
            at(10 * n),
        );
        let records = (n + 1).min(6);
        assert_eq!(
            flows(&mut top, 10 * n),
            Some((1, 1, 10 * records)),
            "after {} s",
            10 * n
        );
    }
    // The last record was in the step from 290 s.
    assert_eq!(flows(&mut top, 349), Some((1, 1, 10)));
    assert_eq!(flows(&mut top, 350), None);
    // A flow that went on before the sums began is in the window, and did not begin.
    top.take(&record(2, 9, 10, owner("curl", "ada", None), remote()), at(400));
    assert_eq!(flows(&mut top, 400), Some((1, 1, 10)));
}

#[test]
fn the_window_says_how_long_it_is() {
    let mut top = Top::default();
    top.take(&record(1, 1, 10, owner("curl", "ada", None), remote()), at(0));
    for (s, window) in [
        (0, 0),
        (3, 3),
        (59, 59),
        (60, 55),
        (64, 59),
        (65, 55),
        (3_601, 56),
    ] {
        let report = all(&mut top, View::Users, at(s));
        assert_eq!(
            (report.window, report.since),
            (Duration::from_secs(window), Duration::from_secs(s))
        );
    }
}

#[test]
fn a_name_that_is_told_later_is_shown_and_the_row_stays_one() {
    let mut top = Top::default();
    let unnamed = Container {
        name: None,
        ..container(3)
    };
    top.take(
        &record(1, 1, 10, owner("curl", "", Some(unnamed)), remote()),
        at(0),
    );
    let id = named(&all(&mut top, View::Containers, at(0)));
    assert_eq!(id.keys().collect::<Vec<_>>(), [&container(3).id]);
    top.take(
        &record(1, 2, 10, owner("curl", "", Some(container(3))), remote()),
        at(1),
    );
    let report = all(&mut top, View::Containers, at(1));
    assert_eq!(
        named(&report).get("c3").map(|sums| sums.sent.octets),
        Some(20),
        "{report:?}"
    );
    let flow = all(&mut top, View::Flows, at(1));
    let Subject::Flow(flow) = &flow.rows[0].subject else {
        panic!("{flow:?}")
    };
    assert_eq!(flow.client.place, Place::Container("c3".to_owned()));
}

#[test]
fn each_order_has_its_largest_first_and_ties_in_one_order() {
    let mut top = Top::default();
    for (n, user) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let n = n as u64;
        for flow in 0..=n {
            let mut seen = record(10 * n + flow, 1, 100 - 20 * n, owner("x", user, None), remote());
            seen.tcp = (user != "d").then(|| TcpFigures {
                rtt_us: Some(500 - 100 * u32::try_from(n).expect("small")),
                retransmits_forward: u32::from(user == "b"),
                ..TcpFigures::default()
            });
            if user == "c" {
                seen.reason = EndReason::Refused;
            }
            top.take(&seen, at(0));
        }
    }
    for (order, names) in [
        (Order::Octets, ["c", "b", "d", "a"]),
        (Order::Rtt, ["a", "b", "c", "d"]),
        (Order::Retransmits, ["b", "c", "d", "a"]),
        (Order::Flows, ["d", "c", "b", "a"]),
        (Order::Failed, ["c", "b", "d", "a"]),
    ] {
        let report = top.report(View::Users, order, 10, at(0));
        let found: Vec<&Subject> = report.rows.iter().map(|row| &row.subject).collect();
        let wanted: Vec<Subject> = names.iter().map(|&name| Subject::User(name.to_owned())).collect();
        assert_eq!(found, wanted.iter().collect::<Vec<_>>(), "{order:?}");
    }
    let first = top.report(View::Users, Order::Flows, 1, at(0));
    assert_eq!((first.rows.len(), first.more, first.other.flows()), (1, 3, 6));
}

/// Everything that was taken, to compare with.
#[derive(Default)]
struct Model(Vec<(u64, u64, Sums)>);

impl Model {
    fn window(&self, slot: u64) -> Sums {
        let mut sum = Sums::default();
        let mut flows = BTreeSet::new();
        for (_, flow, sums) in self.0.iter().filter(|(at, _, _)| is_within(*at, slot)) {
            sum.add(sums);
            flows.insert(*flow);
        }
        sum.flows_client = flows.len() as u64;
        sum
    }
}

/// Rows and the rest are all there was, at any time, however many come and go; and no table outgrows its bound.
#[test]
fn nothing_is_lost_when_rows_go_and_no_table_outgrows_its_bound() {
    for seed in 0..8 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut top, mut model, mut now) = (Top::default(), Model::default(), 0);
        top.handle_timeout(at(0));
        let (containers, flows) = (random.u64(1..4_000), random.u64(1..6_000));
        let mut parts: BTreeMap<u64, u32> = BTreeMap::new();
        for step in 0..4_000 {
            now += u64::from(random.u8(0..100) == 0) * random.u64(0..40);
            let flow = random.u64(0..flows);
            let part = parts.entry(flow).or_default();
            *part += 1;
            let owner = owner("x", "ada", Some(container(flow % containers)));
            let seen = record(flow, *part, random.u64(0..10_000), owner, remote());
            top.take(&seen, at(now));
            model
                .0
                .push((now / SLOT.as_secs(), flow, Sums::of(&seen, Side::Client)));
            for (table, kept) in [
                (&top.containers, CONTAINERS_KEPT),
                (&top.users, USERS_KEPT),
                (&top.flows, FLOWS_KEPT),
            ] {
                assert!(table.len() <= 2 * kept, "seed {seed}, step {step}");
            }
            if step % 97 != 0 {
                continue;
            }
            let rows_max = random.usize(0..1_500);
            let report = top.report(View::Containers, Order::Octets, rows_max, at(now));
            let mut sum = report.other;
            report.rows.iter().for_each(|row| sum.add(&row.window));
            let expected = model.window(now / SLOT.as_secs());
            // A flow whose row went and came again counts in both, until the former's record leaves the window.
            let flows = sum.flows_client;
            assert!(flows >= expected.flows_client, "seed {seed}, step {step}");
            if report.evicted == 0 {
                assert_eq!(flows, expected.flows_client, "seed {seed}, step {step}");
            }
            sum.flows_client = expected.flows_client;
            assert_eq!(sum, expected, "seed {seed}, step {step}");
            assert!(
                report
                    .rows
                    .is_sorted_by(|a, b| a.window.octets() >= b.window.octets())
            );
            let mut total = report.other_total;
            report.rows.iter().for_each(|row| total.add(&row.total));
            let idle = top.containers.report(Order::Octets, usize::MAX, top.slot);
            assert!(idle.rows.len() as u64 == report.rows.len() as u64 + report.more);
        }
        let all_octets: u64 = model.0.iter().map(|(_, _, sums)| sums.octets()).sum();
        let (series, rest) = top.container_series();
        let told: u64 = series.map(|(_, sums)| sums.octets()).sum::<u64>() + rest.octets();
        assert!(told <= all_octets, "seed {seed}");
    }
}

/// The busiest have series, a name that does nothing any more loses its own to one that does, and each only rises.
#[test]
fn series_are_few_go_to_the_busiest_and_only_rise() {
    for seed in 0..4 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut top = Top::default();
        let mut before: BTreeMap<String, u64> = BTreeMap::new();
        let mut rest_before = 0;
        for s in 0..600 {
            // Another hundred containers each 200 s, of which three do nearly everything.
            let base = s / 200 * 100;
            for n in 0..100 {
                if random.bool() {
                    continue;
                }
                let octets = if n < 3 { 1_000_000 } else { random.u64(1..2_000) };
                let owner = owner("x", "ada", Some(container(base + n)));
                top.take(&record(s * 1_000 + n, 1, octets, owner, remote()), at(s));
            }
            let (series, rest) = top.container_series();
            let now: BTreeMap<String, u64> = series
                .map(|(subject, sums)| match subject {
                    Subject::Container { id, .. } => (id.clone(), sums.octets()),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert!(now.len() <= SERIES_MAX, "seed {seed}, {s} s");
            assert!(rest.octets() >= rest_before, "seed {seed}, {s} s");
            for (id, octets) in &now {
                // One that went and came again begins anew.
                assert!(
                    before.get(id).is_none_or(|before| before <= octets),
                    "seed {seed}, {s} s"
                );
            }
            if s % 200 == 199 {
                for n in 0..3 {
                    assert!(
                        now.contains_key(&container(base + n).id),
                        "seed {seed}, {s} s: {now:?}"
                    );
                }
            }
            (before, rest_before) = (now, rest.octets());
        }
    }
}

#[test]
fn flows_that_are_known_to_be_in_the_window_are_bounded_and_beyond_it_those_count_that_begin() {
    let mut top = Top::default();
    let more = 1_000;
    for flow in 0..FLOWS_SEEN_MAX as u64 + more {
        for part in 1..=2 {
            top.take(&record(flow, part, 1, owner("x", "ada", None), remote()), at(0));
        }
    }
    assert_eq!(top.seen.len(), FLOWS_SEEN_MAX);
    let report = all(&mut top, View::Users, at(0));
    assert_eq!(report.rows[0].window.flows(), FLOWS_SEEN_MAX as u64 + more);
    top.handle_timeout(at(60));
    assert!(top.seen.is_empty());
}

#[test]
fn an_answer_keeps_to_its_octets_and_what_does_not_fit_is_in_its_sums() {
    let mut top = Top::default();
    let mut octets = 0;
    for n in 0..400_u64 {
        let long = format!("{n}{}", "ü".repeat(400));
        let mut owner = owner(&long, &long, None);
        owner.names = owner.names.map(|names| {
            Arc::new(Names {
                unit: Some(long.clone()),
                ..(*names).clone()
            })
        });
        octets += 3 * (n + 1);
        top.take(&record(n, 1, n + 1, owner.clone(), owner), at(0));
    }
    for view in [View::Processes, View::Users, View::Flows] {
        let question = Question {
            id: 9,
            view,
            order: Order::Octets,
            rows: ANSWER_ROWS_MAX,
        };
        let answer = top
            .report(question.view, question.order, question.rows, at(0))
            .answer(question.id);
        assert!(
            answer.encoded_len() <= ANSWER_OCTETS_MAX + 1_024,
            "{view:?}: {}",
            answer.encoded_len()
        );
        assert!(!answer.rows.is_empty() && answer.rows.len() <= ANSWER_ROWS_MAX);
        let told = |sums: &Option<flowtilla_proto::wire::session::TopSums>| {
            let sums = sums.as_ref().expect("it is told");
            sums.octets_sent + sums.octets_received
        };
        let sum: u64 = answer.rows.iter().map(|row| told(&row.window)).sum::<u64>() + told(&answer.other);
        // Of processes and users both ends are here.
        let ends = if view == View::Flows { 1 } else { 2 };
        assert_eq!(sum, ends * octets, "{view:?}");
    }
}

#[test]
fn a_question_is_read_within_its_bounds_and_an_unknown_view_is_not_answered() {
    use flowtilla_proto::wire::session::{TopOrder, TopQuestion, TopView};
    let asked = |view: i32, order: i32, rows| {
        Question::parse(&TopQuestion {
            id: 4,
            view,
            order,
            rows,
        })
    };
    assert_eq!(asked(0, 0, 1), None);
    assert_eq!(asked(99, 0, 1), None);
    let read = asked(TopView::Pods.into(), 99, u32::MAX).expect("a question");
    assert_eq!(
        (read.id, read.view, read.order, read.rows),
        (4, View::Pods, Order::Octets, ANSWER_ROWS_MAX)
    );
    let read = asked(TopView::Flows.into(), TopOrder::Failed.into(), 0).expect("a question");
    assert_eq!((read.order, read.rows), (Order::Failed, 1));
}
