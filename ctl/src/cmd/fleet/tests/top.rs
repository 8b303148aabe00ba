//! What `top` asks and shows.

use clap::Parser;
use flowtilla_proto::wire::session::top_row::Subject;
use flowtilla_proto::wire::session::{
    TopContainer, TopFlow, TopFlowEnd, TopOrder, TopPod, TopProcess, TopRow, TopSums, TopUser, TopView,
};

use super::*;
use crate::cmd::fleet::top::{Looking, Sort, TopArgs, View, picture, plain};
use crate::cmd::up::table::Frame;

#[derive(Parser)]
struct Only {
    #[command(flatten)]
    args: TopArgs,
}

fn args(words: &[&str]) -> TopArgs {
    let words = ["top"].iter().chain(words);
    Only::try_parse_from(words).expect("clap takes it").args
}

fn sums(n: u64) -> TopSums {
    TopSums {
        flows_client: 3 * n,
        flows_server: n / 2,
        octets_sent: 59 * n * n * 1_017,
        octets_received: 59 * n * 20_011,
        packets_sent: 59 * n * 8,
        packets_received: 59 * n * 9,
        rtt_us: n * n * 777,
        rtt_samples: n,
        rtt_variance_us: n * 91,
        rtt_variance_samples: n,
        retransmits: n / 4,
        failed: u64::from(n == 3),
    }
}

fn process(program: &str, container: &str, unit: &str) -> TopProcess {
    TopProcess {
        program: program.to_owned(),
        container: container.to_owned(),
        unit: unit.to_owned(),
    }
}

fn subjects(view: View) -> Vec<Subject> {
    let container = |digit: &str, name: &str, namespace: &str, pod: &str| {
        Subject::Container(TopContainer {
            id: digit.repeat(64),
            name: name.to_owned(),
            pod_namespace: namespace.to_owned(),
            pod: pod.to_owned(),
        })
    };
    let end = |address: &[u8], port, process| {
        Some(TopFlowEnd {
            address: address.to_vec(),
            port,
            process,
        })
    };
    let curl = || Some(process("/usr/bin/curl", "", "backup.service"));
    match view {
        View::Containers => vec![
            container("a", "", "", ""),
            container("b", "server", "shop", "frontend-7d4b9c6f5-x2x9q"),
            container("c", "registry-cache", "", ""),
        ],
        View::Pods => ["frontend-7d4b9c6f5-x2x9q", "db-0"]
            .map(|name| {
                Subject::Pod(TopPod {
                    pod_namespace: "shop".to_owned(),
                    name: name.to_owned(),
                })
            })
            .to_vec(),
        View::Processes => [
            process("/usr/bin/python3.11", "", "session-3.scope"),
            process("/usr/sbin/nginx", "shop/frontend-7d4b9c6f5-x2x9q/server", ""),
            process("[kernel]", "", ""),
            process("nmap", "", "user@1000.service"),
        ]
        .map(Subject::Process)
        .to_vec(),
        View::Users => ["root", "www-data", "1004"]
            .map(|name| {
                Subject::User(TopUser {
                    name: name.to_owned(),
                })
            })
            .to_vec(),
        View::Flows => [
            (
                6,
                "established",
                end(&[10, 0, 0, 5], 43_210, curl()),
                end(&[93, 184, 216, 34], 443, None),
            ),
            (
                17,
                "open",
                end(&[0xfd; 16], 5_353, None),
                end(&[0xfd; 16], 53, Some(process("named", "", ""))),
            ),
            (
                6,
                "refused",
                end(&[10, 0, 0, 5], 43_211, curl()),
                end(&[10, 0, 0, 9], 9, None),
            ),
        ]
        .map(|(protocol, state, client, server)| {
            Subject::Flow(TopFlow {
                protocol,
                client,
                server,
                state: state.to_owned(),
            })
        })
        .to_vec(),
    }
}

/// Three agents, of which one does not answer.
fn response(view: View) -> TopResponse {
    let subjects = subjects(view);
    let count = u64::try_from(subjects.len()).expect("few");
    let rows = subjects.into_iter().zip(0..).map(|(subject, place)| TopAgentRow {
        agent: ["web-1-7f", "db-2-11"][usize::try_from(place % 2).expect("few")].to_owned(),
        row: Some(TopRow {
            subject: Some(subject),
            window: Some(sums(count - place)),
            total: Some(sums(40 * (count - place))),
        }),
        window_ms: 58_700,
    });
    TopResponse {
        rows: rows.collect(),
        more: 12,
        other: Some(sums(1)),
        other_total: Some(sums(7)),
        window_ms: 58_700,
        agents: 3,
        answered: 2,
        silent: vec![TopSilent {
            agent: "old-3-0c".to_owned(),
            why: "it did not answer within 2 s: it is of an earlier version, or busy".to_owned(),
        }],
        evicted: 4,
    }
}

fn looking(view: View) -> Looking {
    Looking {
        view,
        sort: Sort::Octets,
    }
}

fn text(frame: &Frame) -> String {
    frame
        .iter()
        .map(|(paint, line)| format!("{:<6}|{line}\n", format!("{paint:?}")))
        .collect()
}

#[test]
fn pictures_of_80_and_200_columns_are_pinned() {
    for (columns, name) in [(80, "top-80.txt"), (200, "top-200.txt")] {
        let mut all = String::new();
        for view in View::ALL {
            let frame = picture::frame(&response(view), looking(view), "q ends", None, (columns, 24));
            assert!(
                frame.iter().all(|(_, line)| width(line) <= columns),
                "{}",
                text(&frame)
            );
            all += &text(&frame);
        }
        let one = TopResponse {
            agents: 1,
            answered: 1,
            more: 0,
            other: None,
            silent: Vec::new(),
            ..response(View::Users)
        };
        all += &text(&picture::frame(
            &one,
            looking(View::Users),
            "q ends",
            None,
            (columns, 24),
        ));
        let nobody = TopResponse::default();
        let away = Some("the controller broke off");
        all += &text(&picture::frame(
            &nobody,
            looking(View::Pods),
            "q ends",
            away,
            (columns, 24),
        ));
        assert_pinned(name, &all);
    }
}

#[test]
fn tables_and_json_are_pinned() {
    let mut all = String::new();
    for columns in [Some(80), None] {
        for view in View::ALL {
            all += &picture::text(&response(view), looking(view), columns);
        }
    }
    assert_pinned("top.txt", &all);
    let all: String = View::ALL
        .map(|view| json(&plain::top(&response(view), looking(view))))
        .concat();
    assert_pinned("top.jsonl", &all);
}

/// Whatever an agent tells, lines keep to the screen, obey no name, and no octet of the answer is shown by nobody.
#[test]
fn every_size_of_screen_is_kept_to_and_names_are_harmless() {
    for view in View::ALL {
        let mut told = response(view);
        let evil = "\u{1b}[2J\u{202e}尺寸\n".repeat(20);
        for row in &mut told.rows {
            row.agent = evil.clone();
            match row.row.as_mut().and_then(|row| row.subject.as_mut()) {
                Some(Subject::Container(one)) => {
                    (one.id, one.name, one.pod) = (evil.clone(), evil.clone(), evil.clone())
                }
                Some(Subject::Pod(pod)) => (pod.pod_namespace, pod.name) = (evil.clone(), evil.clone()),
                Some(Subject::Process(one)) => *one = process(&evil, &evil, &evil),
                Some(Subject::User(user)) => user.name = evil.clone(),
                Some(Subject::Flow(flow)) => flow.state = evil.clone(),
                None => {}
            }
        }
        told.rows.push(TopAgentRow::default());
        for columns in 20..220 {
            for lines in [1, 2, 3, 4, 5, 9, 50] {
                let failed = Some("\u{1b}c");
                let frame = picture::frame(&told, looking(view), "q ends", failed, (columns, lines));
                assert!(
                    frame.len() < lines.max(1) || lines == 1,
                    "{lines} lines: {}",
                    text(&frame)
                );
                assert!(
                    frame.iter().all(|(_, line)| width(line) <= columns),
                    "{columns}: {}",
                    text(&frame)
                );
                let all = text(&frame).replace('\n', "");
                assert!(
                    !all.contains(|c: char| c.is_control() || c == '\u{202e}'),
                    "{all:?}"
                );
            }
        }
        let wide = picture::text(&told, looking(view), None).replace('\n', "");
        assert!(
            !wide.contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{wide:?}"
        );
    }
}

#[test]
fn rows_that_a_screen_does_not_hold_are_in_its_last_row() {
    let view = View::Processes;
    for lines in 7..12 {
        let frame = picture::frame(&response(view), looking(view), "q ends", None, (200, lines));
        let rest = frame
            .iter()
            .map(|(_, line)| line)
            .find(|line| line.contains(" more "))
            .expect("a sum");
        // A headline, the columns' names, who is silent, the sum, and the cursor's line.
        let shown = lines - 5;
        let hidden = 4_usize.saturating_sub(shown);
        assert!(
            rest.trim_start().starts_with(&format!("{} more ", 12 + hidden)),
            "{lines}: {}",
            text(&frame)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_is_asked_and_exit_codes_say_who_answered() {
    let (server, desk) = logged_in().await;
    let run = |words: &[&str]| {
        let mut args = args(words);
        args.reach = desk.reach();
        args.run()
    };
    server.script().top = response(View::Pods);
    let flags = [
        "pods", "--agent", "web-1-7f", "-l", "role=web", "-l", "zone=a", "--sort", "rtt", "-n", "7", "--once",
    ];
    assert_eq!(run(&flags).await.expect("an answer"), Exit::Done);
    let asked = server.script().tops.remove(0);
    assert_eq!(
        (asked.view(), asked.order(), asked.rows),
        (TopView::Pods, TopOrder::Rtt, 7)
    );
    assert_eq!(asked.ids, ["web-1-7f"]);
    let labels = [("role", "web"), ("zone", "a")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(asked.labels, labels.into());

    assert_eq!(
        run(&["pods", "--agent", "old-3-0c", "--once"])
            .await
            .expect("an answer"),
        Exit::Failed
    );
    assert_eq!(run(&["pods", "-o", "json"]).await.expect("an answer"), Exit::Done);
    server.script().top = TopResponse::default();
    assert_eq!(
        run(&["pods", "-o", "wide"]).await.expect("an answer"),
        Exit::Failed
    );
}

#[tokio::test]
async fn wrong_flags_are_told_all_at_once_before_anything_is_asked() {
    let error = args(&["users", "-l", "a=b", "-l", "a=c", "--interval", "100ms"])
        .run()
        .await
        .expect_err("it is wrong");
    let usage = error.downcast_ref::<UsageError>().expect("flags are wrong");
    assert_eq!(
        usage.0,
        [
            "--selector: \"a\" is there twice; write it once",
            "--interval: is too short; write 500ms or more",
        ]
    );
}
