//! Deploy, and what follows it.

use super::*;

#[tokio::test]
async fn deploy_sends_files_whole_and_bound_to_what_was_seen() {
    let (controller, desk) = logged_in().await;
    let old = "apiVersion: flowtilla/v1\nkind: Collector\nname: old\nendpoint: tcp://192.0.2.9:1\n";
    let (held, _) = Documents::read(&[Text {
        name: "old".to_owned(),
        content: old.to_owned(),
    }]);
    {
        let mut script = controller.script();
        script.revision = 7;
        script.objects = held.objects();
    }
    let file = desk.file("fleet.yaml", include_str!("../../../../tests/fleet/fleet.yaml"));
    let mut args = deploying(&desk, vec![file]);
    args.prune = true;
    args.follow.message = Some("why".to_owned());
    assert_eq!(deploy::run(args).await.expect("taken"), Exit::Done);
    let asked = controller.script().applied.remove(0);
    assert_eq!(
        (asked.expected_revision, asked.message.as_str(), asked.dry_run),
        (7, "why", false)
    );
    assert_eq!(asked.objects, objects());
    assert_eq!(asked.removed.len(), 1);
    assert_eq!(
        (asked.removed[0].kind.as_str(), asked.removed[0].name.as_str()),
        ("Collector", "old")
    );
}

#[tokio::test]
async fn nothing_is_sent_while_anything_is_wrong() {
    let (controller, desk) = logged_in().await;
    let wrong = desk.file("wrong.yaml", include_str!("../../../../tests/fleet/wrong.yaml"));
    let dangling = desk.file(
        "dangling.yaml",
        "apiVersion: flowtilla/v1\nkind: Policy\nname: p\nexport: {collectors: [nowhere]}\n",
    );
    let both = deploy::run(deploying(&desk, vec![wrong, dangling.clone()]))
        .await
        .expect_err("refused");
    let lines = lines_of(&both);
    assert!(lines.len() > 30, "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("dangling.yaml:4:23: export.collectors[0]")),
        "{lines:?}"
    );
    let alone = deploy::run(deploying(&desk, vec![dangling.clone()]))
        .await
        .expect_err("refused");
    assert_eq!(lines_of(&alone).len(), 1);
    assert!(controller.script().applied.is_empty());
    // The controller's own objects count.
    controller.script().objects = vec![Object {
        kind: Some(object::Kind::Collector(flowtilla_proto::wire::Collector {
            name: "nowhere".to_owned(),
            ..flowtilla_proto::wire::Collector::default()
        })),
    }];
    deploy::run(deploying(&desk, vec![dangling.clone()]))
        .await
        .expect("it is known there");
    let mut args = deploying(&desk, vec![dangling]);
    args.prune = true;
    assert!(deploy::run(args).await.is_err(), "it would be taken away");
}

#[tokio::test]
async fn what_the_controller_refuses_stands_at_its_place_in_the_files() {
    let (controller, desk) = logged_in().await;
    let file = desk.file("fleet.yaml", include_str!("../../../../tests/fleet/fleet.yaml"));
    controller.script().refusal = Some(Mistakes {
        mistakes: vec![Mistake {
            object: 2,
            path: "priority".to_owned(),
            value: Some("10".to_owned()),
            why: "is also that of policy db, and agent web-1 matches both".to_owned(),
            remedy: "write another priority".to_owned(),
        }],
    });
    let error = deploy::run(deploying(&desk, vec![file.clone()]))
        .await
        .expect_err("refused");
    let place = format!("{}:18:11: ", file.display());
    assert_eq!(
        lines_of(&error),
        [place
            + "priority: \"10\" is also that of policy db, and agent web-1 matches both; write another priority"]
    );
}

fn rollout(state: RolloutState, wave: u32, agents: &[(&str, RolloutPart, &str)]) -> RolloutEvent {
    let count = |part| agents.iter().filter(|(_, of, _)| *of == part).count() as u32;
    let mut rollout = Rollout {
        id: 3,
        revision: 8,
        wave,
        waves: 2,
        policy: "web".to_owned(),
        acked: count(RolloutPart::Acked),
        nacked: count(RolloutPart::Nacked),
        pending: count(RolloutPart::Offered),
        offline: count(RolloutPart::Offline),
        ..Rollout::default()
    };
    rollout.set_state(state);
    let agents = agents.iter().map(|(agent, part, reason)| {
        let mut told = RolloutAgent {
            agent: (*agent).to_owned(),
            wave,
            reason: (*reason).to_owned(),
            ..RolloutAgent::default()
        };
        told.set_part(*part);
        told
    });
    RolloutEvent {
        rollout: Some(rollout),
        agents: agents.collect(),
    }
}

pub(super) fn taken_back() -> Vec<RolloutEvent> {
    let mut failed = rollout(
        RolloutState::RollingBack,
        1,
        &[
            ("web-1", RolloutPart::Acked, ""),
            (
                "web-2",
                RolloutPart::Nacked,
                "capture.scopes[0].netns: no such file\u{1b}[2J",
            ),
        ],
    );
    failed.rollout.as_mut().expect("there").failures = vec![GateFailure {
        gate: "nack".to_owned(),
        agents: vec!["web-2".to_owned()],
        value: 1.0,
        message: "nack: web-2 refused the policy".to_owned(),
        ..GateFailure::default()
    }];
    let mut over = failed.clone();
    over.rollout
        .as_mut()
        .expect("there")
        .set_state(RolloutState::RolledBack);
    over.agents = rollout(
        RolloutState::RolledBack,
        1,
        &[("web-1", RolloutPart::TakenBack, "")],
    )
    .agents;
    vec![
        rollout(
            RolloutState::Running,
            1,
            &[
                ("web-1", RolloutPart::Offered, ""),
                ("web-3", RolloutPart::Waiting, ""),
            ],
        ),
        failed,
        over,
    ]
}

#[test]
fn a_rollout_is_told_once_as_it_goes() {
    let mut picture = Picture::default();
    let mut text = String::new();
    // The stream broke, and the controller tells everything again.
    for event in taken_back().into_iter().flat_map(|event| [event.clone(), event]) {
        for line in picture.take(event) {
            text += &format!("{line}\n");
        }
        text += &format!("[{}]\n", picture.line(NOW));
    }
    assert_pinned("rollout.txt", &text);
    assert_eq!(picture.outcome(1), Some(Exit::Failed));
    assert_eq!(picture.outcome(2), None, "another one goes on");
}

#[test]
fn what_a_rollout_waits_for_is_told_once() {
    let mut picture = Picture::default();
    let mut waits = rollout(RolloutState::Running, 2, &[]);
    let why = "no agent of wave 2 is there; the wave goes on when one has come";
    why.clone_into(&mut waits.rollout.as_mut().expect("there").waits_for);
    let first = picture.take(waits.clone());
    assert_eq!(
        first,
        [
            "rollout 3 of web: running, wave 2 of 2",
            &format!("  waits: {why}")
        ]
    );
    assert!(picture.take(waits.clone()).is_empty());
    let list = List::Rollouts(waits.rollout.iter().cloned().collect());
    assert!(list.text(Output::Wide, NOW).contains(why));
    assert!(
        list.text(Output::Json, NOW)
            .contains(&format!("\"waitsFor\":\"{why}\""))
    );
    let status = StatusResponse {
        rollout: waits.rollout.clone(),
        ..StatusResponse::default()
    };
    assert!(status::text(&status, NOW).contains(&format!("waits: {why}\n")));
    waits.rollout.as_mut().expect("there").waits_for.clear();
    assert!(picture.take(waits).is_empty());
}

#[tokio::test]
async fn an_empty_file_is_named() {
    let (_controller, desk) = logged_in().await;
    let file = desk.file("empty.yaml", "# nothing\n");
    let error = deploy::run(deploying(&desk, vec![file.clone()]))
        .await
        .expect_err("refused");
    assert_eq!(
        lines_of(&error),
        [format!(
            "-f: {:?}: there is no document in it; write one, such as agentctl schema describes",
            file.display().to_string()
        )]
    );
}

#[tokio::test]
async fn wait_ends_with_what_became_of_the_rollout() {
    let (controller, desk) = logged_in().await;
    let file = desk.file("fleet.yaml", include_str!("../../../../tests/fleet/fleet.yaml"));
    let answer = ApplyResponse {
        revision: 8,
        rollout: 3,
        rollouts: vec![3],
        ..ApplyResponse::default()
    };
    let wait = |wait| {
        let mut args = deploying(&desk, vec![file.clone()]);
        args.follow.wait = wait;
        deploy::run(args)
    };
    let running = || rollout(RolloutState::Running, 1, &[("web-1", RolloutPart::Offered, "")]);
    let done = || {
        rollout(
            RolloutState::Done,
            2,
            &[
                ("web-1", RolloutPart::Acked, ""),
                ("web-2", RolloutPart::Offline, ""),
            ],
        )
    };
    let set = |events: Vec<Vec<RolloutEvent>>| {
        let mut script = controller.script();
        let Script {
            answer: to,
            events: told,
            ..
        } = &mut *script;
        (*to, *told) = (answer.clone(), events);
    };
    set(vec![vec![running(), done()]]);
    assert_eq!(wait(Some(60_000)).await.expect("watched"), Exit::Done);
    set(vec![taken_back()]);
    assert_eq!(wait(Some(60_000)).await.expect("watched"), Exit::Failed);
    // The stream ends before the rollout: it is asked for again.
    set(vec![vec![running()], vec![done()]]);
    assert_eq!(wait(Some(60_000)).await.expect("watched"), Exit::Done);
    // Called again, it changes nothing: what the first call has begun is waited for.
    let began = |id, revision, ended_ms| Rollout {
        id,
        revision,
        ended_ms,
        ..Rollout::default()
    };
    let nothing_new = || {
        let mut script = controller.script();
        script.answer.rollout = 0;
        script.answer.rollouts.clear();
    };
    controller.script().rollouts = vec![began(3, 8, 0), began(2, 8, 1), began(1, 7, 0)];
    set(vec![taken_back()]);
    nothing_new();
    assert_eq!(wait(Some(60_000)).await.expect("watched"), Exit::Failed);
    set(vec![vec![running(), done()]]);
    nothing_new();
    assert_eq!(wait(Some(60_000)).await.expect("watched"), Exit::Done);
    // What has ended, and what goes back from an earlier revision, is not.
    controller.script().rollouts.remove(0);
    set(vec![taken_back()]);
    nothing_new();
    assert_eq!(wait(Some(60_000)).await.expect("nothing goes on"), Exit::Done);
    // Nobody is waited for when nobody asked.
    set(Vec::new());
    assert_eq!(wait(None).await.expect("not watched"), Exit::Done);
    let refused = wait(Some(60_000)).await.expect_err("there is none");
    assert_eq!(refused.to_string(), "there is no rollout; see history");
    // The time is over, and the rollout is not.
    set(vec![vec![running()]; 50]);
    assert_eq!(wait(Some(1_500)).await.expect("watched"), Exit::Failed);
}

#[tokio::test]
async fn what_is_not_there_is_told() {
    let (controller, desk) = logged_in().await;
    let client = Client::reach(&desk.reach()).await.expect("let in");
    for what in [
        What::Agents,
        What::Policies,
        What::Collectors,
        What::Operators,
        What::Tokens,
        What::Revisions,
        What::Rollouts,
    ] {
        let error = List::fetch(&client, what, Some("x\u{1b}"))
            .await
            .expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "\"x\\\\u{1b}\" is not known to the controller; see the list without a name",
            "{what:?}"
        );
    }
    let approve = admit::ApproveArgs {
        name: "web-1".to_owned(),
        reach: desk.reach(),
    };
    let error = admit::approve(approve).await.expect_err("it does not wait");
    assert_eq!(
        error.to_string(),
        "agent web-1 does not wait for an approval; see get agents"
    );
    let revoke = admit::RevokeArgs {
        what: admit::Void::Agent,
        name: "web-1".to_owned(),
        reach: desk.reach(),
    };
    assert_eq!(admit::revoke(revoke).await.expect("known"), Exit::Done);
    assert_eq!(
        controller.script().revoked[0].what,
        Some(revoke_request::What::Agent("web-1".to_owned()))
    );
}
