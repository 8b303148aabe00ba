//! The commands against a controller's calls over TLS, and what they print, pinned.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use flowtilla_agent::clock;
use flowtilla_agent_core::time::WallTime;
use flowtilla_proto::wire::fleet::*;
use flowtilla_proto::wire::session as told;
use tokio::net::TcpListener;

use self::server::{Script, Scripted};
use super::deploy::{self, DeployArgs, Follow};
use super::get::{List, What};
use super::login::{LoginArgs, login};
use super::watch::Picture;
use super::*;
use crate::client::contexts::Home;
use crate::client::{Client, Reach};
use crate::cmd::up::samples::assert_pinned;
use crate::document::{Documents, Kind, Text};
use crate::exit::UsageError;

mod server;

const HOUR_NS: u64 = 3_600_000_000_000;
/// 2026-03-01T12:00:00Z.
const NOW: WallTime = WallTime(1_772_366_400_000_000_000);

/// A home for contexts, and a file with a token.
struct Desk {
    directory: tempfile::TempDir,
    home: Home,
}

impl Desk {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let config = directory.path().join("config.yaml");
        let home = Home::by(|name| (name == "FLOWTILLA_CONFIG").then(|| config.clone().into()));
        Self {
            directory,
            home: home.expect("it is set"),
        }
    }

    fn reach(&self) -> Reach {
        Reach {
            context: None,
            home: Some(self.home.clone()),
        }
    }

    async fn login(&self, controller: &str, token: &str) -> anyhow::Result<String> {
        let args = LoginArgs {
            controller: controller.to_owned(),
            token_file: "-".into(),
            context: None,
        };
        login(&self.home, &args, token.as_bytes()).await
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).expect("written");
        path
    }

    fn identity(&self) -> Vec<u8> {
        fs::read(self.directory.path().join("fleet.example/identity.pem")).expect("there is one")
    }
}

/// A controller, and somebody who has logged in to it.
async fn logged_in() -> (Scripted, Desk) {
    let (controller, desk) = (Scripted::start().await, Desk::new());
    let token = controller.token(2).expose();
    let said = desk
        .login(&controller.address.to_string(), &token)
        .await
        .expect("it lets in");
    assert!(
        said.contains("as spiffe://fleet.example/operator/ann\ncontext fleet.example is"),
        "{said}"
    );
    (controller, desk)
}

fn deploying(desk: &Desk, files: Vec<PathBuf>) -> DeployArgs {
    DeployArgs {
        file: files,
        dry_run: false,
        prune: false,
        follow: Follow::default(),
        reach: desk.reach(),
    }
}

fn lines_of(error: &anyhow::Error) -> Vec<String> {
    match error.downcast_ref::<UsageError>() {
        Some(usage) => usage.0.clone(),
        None => vec![format!("{error:#}")],
    }
}

#[tokio::test]
async fn login_keeps_an_identity_that_calls() {
    let (controller, desk) = logged_in().await;
    let key = desk.identity();
    assert!(String::from_utf8_lossy(&key).starts_with("-----BEGIN PRIVATE KEY-----"));
    let client = Client::reach(&desk.reach()).await.expect("it is an operator");
    let status = client
        .ask(client.fleet().status(StatusRequest {}))
        .await
        .expect("allowed");
    assert_eq!(status.caller, "spiffe://fleet.example/operator/ann");
    assert_eq!((controller.script().renewals, desk.identity()), (0, key));
}

#[tokio::test]
async fn each_refusal_of_a_login_is_a_sentence_with_a_remedy() {
    let (controller, other, desk) = (Scripted::start().await, Scripted::start().await, Desk::new());
    let address = controller.address.to_string();
    let mut told = String::new();
    let mut refuse = async |what: &str, address: &str, token: &str| {
        let error = desk.login(address, token).await.expect_err(what);
        let text = lines_of(&error).join("\n").replace(address, "ADDRESS");
        told += &format!("{what}\n  {text}\n");
    };
    let token = controller.token(2).expose();
    desk.login(&address, &token).await.expect("the first time");
    refuse("used token", &address, &token).await;
    refuse("token of another controller", &address, &other.token(4).expose()).await;
    refuse("an agent's token", &address, &controller.token(3).expose()).await;
    refuse("no token", &address, "hunter2").await;
    refuse("a token that was cut", &address, &token[..40]).await;
    refuse("no address", "https://c/", &token).await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let unused = free.local_addr().expect("bound").to_string();
    drop(free);
    refuse("nobody listens", &unused, &controller.token(6).expose()).await;
    let plain = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let speaks = plain.local_addr().expect("bound").to_string();
    let serving = tokio::spawn(async move {
        let (mut tcp, _) = plain.accept().await.expect("somebody calls");
        tokio::io::AsyncWriteExt::write_all(&mut tcp, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("it is told");
    });
    refuse("no TLS", &speaks, &controller.token(8).expose()).await;
    serving.await.expect("it spoke");
    assert_pinned("login-refusals.txt", &told);
    assert!(!told.contains(&token[28..]), "a secret is shown");
}

#[tokio::test]
async fn an_svid_is_renewed_past_half_of_its_life_and_recovered_when_it_has_run_out() {
    let (controller, desk) = logged_in().await;
    let now = clock::wall_now();
    let later = |hours: u64| WallTime(now.0 + hours * HOUR_NS);
    let mut kept = desk.identity();
    for (hours, renewals, recoveries) in [(11, 0, 0), (13, 1, 0), (25, 1, 1)] {
        let client = Client::reach_at(&desk.reach(), later(hours))
            .await
            .expect("it is let in");
        client
            .ask(client.fleet().status(StatusRequest {}))
            .await
            .expect("allowed");
        let script = controller.script();
        assert_eq!(
            (script.renewals, script.recoveries),
            (renewals, recoveries),
            "after {hours} h"
        );
        let changed = std::mem::replace(&mut kept, desk.identity()) != kept;
        assert_eq!(changed, hours > 11, "after {hours} h");
    }
}

#[tokio::test]
async fn an_identity_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_controller, desk) = logged_in().await;
    let path = desk.directory.path().join("fleet.example/identity.pem");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("ours");
    let error = Client::reach(&desk.reach()).await.expect_err("it is open");
    assert!(
        format!("{error:#}").contains("others can read it; run chmod 600"),
        "{error:#}"
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::write(&path, "x").expect("ours");
    let error = Client::reach(&desk.reach()).await.expect_err("it is damaged");
    assert!(
        format!("{error:#}").contains("is damaged; log in again"),
        "{error:#}"
    );
}

#[tokio::test]
async fn a_controller_of_another_domain_is_not_believed() {
    let (_controller, desk) = logged_in().await;
    let other = Scripted::start().await;
    let mut contexts = desk.home.load().expect("readable");
    contexts
        .contexts
        .get_mut("fleet.example")
        .expect("there")
        .controller = other.address.to_string();
    desk.home.store(&contexts).expect("written");
    let error = Client::reach(&desk.reach())
        .await
        .expect_err("its root is unknown");
    let told = format!("{error:#}").replace(&other.address.to_string(), "ADDRESS");
    assert_eq!(
        told,
        "connecting to the controller at ADDRESS: this is not the controller that this context logged in to, or its roots have changed meanwhile; check the address, or log in again"
    );
    // What is believed, but does not believe this operator, says so at the first call.
    let strange = Desk::new();
    strange
        .login(&other.address.to_string(), &other.token(2).expose())
        .await
        .expect("let in there");
    let bundle = "fleet.example/bundle.pem";
    fs::copy(
        strange.directory.path().join(bundle),
        desk.directory.path().join(bundle),
    )
    .expect("copied");
    let asked = async {
        let client = Client::reach(&desk.reach()).await?;
        anyhow::Ok(client.ask(client.fleet().status(StatusRequest {})).await?)
    };
    let error = asked.await.expect_err("it is a stranger there");
    assert!(
        format!("{error:#}").contains("the controller refuses the SVID"),
        "{error:#}"
    );
}

fn objects() -> Vec<Object> {
    let text = Text {
        name: "fleet.yaml".to_owned(),
        content: include_str!("../../../tests/fleet/fleet.yaml").to_owned(),
    };
    Documents::read(&[text]).0.objects()
}

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
    let file = desk.file("fleet.yaml", include_str!("../../../tests/fleet/fleet.yaml"));
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
    let wrong = desk.file("wrong.yaml", include_str!("../../../tests/fleet/wrong.yaml"));
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
    let file = desk.file("fleet.yaml", include_str!("../../../tests/fleet/fleet.yaml"));
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

fn taken_back() -> Vec<RolloutEvent> {
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

#[tokio::test]
async fn wait_ends_with_what_became_of_the_rollout() {
    let (controller, desk) = logged_in().await;
    let file = desk.file("fleet.yaml", include_str!("../../../tests/fleet/fleet.yaml"));
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

fn ms(before: Duration) -> i64 {
    let ns = NOW.0 - u64::try_from(before.as_nanos()).expect("short");
    i64::try_from(ns / 1_000_000).expect("it fits")
}

fn agents() -> Vec<Agent> {
    let held = |version| told::Held {
        epoch: 1,
        version,
        digest: vec![1; 32],
    };
    let collector = |state, reason: &str, evicted, dropped: &[(&str, u64)]| {
        let mut collector = told::CollectorHealth {
            name: "main".to_owned(),
            reason: reason.to_owned(),
            made: 1_200_345,
            taken: 1_200_000 - evicted,
            waiting: 345,
            evicted,
            dropped: dropped
                .iter()
                .map(|(point, count)| told::Drop {
                    point: (*point).to_owned(),
                    count: *count,
                })
                .collect(),
            lag_ms: 1_200,
            ..told::CollectorHealth::default()
        };
        collector.taken -= dropped.iter().map(|(_, count)| count).sum::<u64>();
        collector.set_state(state);
        collector
    };
    let agent = |id: &str, state, seen, health: Option<told::Health>| {
        let mut agent = Agent {
            id: id.to_owned(),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            last_seen_ms: ms(Duration::from_secs(seen)),
            enrolled_ms: ms(Duration::from_secs(86_400)),
            svid_not_after_ms: ms(Duration::ZERO) + 12 * 3_600_000,
            hello: Some(told::Hello {
                version: "0.1.0".to_owned(),
                host_name: format!("{id}.example"),
                addresses: vec![vec![192, 0, 2, 1], vec![0x20; 16]],
                ..told::Hello::default()
            }),
            health,
            held: Some(held(4)),
            wanted: Some(held(4)),
            policy: "web".to_owned(),
            source_id: 77,
            revision_held: 4,
            revision_wanted: 4,
            ..Agent::default()
        };
        agent.set_state(state);
        agent
    };
    let health = |collector| told::Health {
        uptime_ms: 5_000,
        observed_octets: 10,
        capturing: true,
        coverage: Some(told::Coverage {
            ends: 4,
            with_process: 4,
            with_names: 3,
        }),
        cost: Some(told::Cost {
            cpu_ns: 12_000_000_000,
            resident_octets: 34 << 20,
            ..told::Cost::default()
        }),
        collectors: vec![collector],
        ..told::Health::default()
    };
    let streaming = collector(told::CollectorState::Streaming, "", 0, &[("withheld", 3)]);
    let stalled = collector(
        told::CollectorState::Stalled,
        "no PONG for 12 s",
        20,
        &[("collectorRestarted", 5)],
    );
    let mut behind = agent("web-2-1a2b3c", AgentState::Connected, 2, Some(health(stalled)));
    behind.revision_held = 3;
    behind.held = Some(held(3));
    let mut refusing = agent(
        "web-3-00ff00",
        AgentState::Connected,
        1,
        Some(health(streaming.clone())),
    );
    refusing.nack = Some(told::Nack {
        path: "capture.scopes[0].netns".to_owned(),
        reason: "no such file\u{1b}[31m".to_owned(),
        section: told::Section::Capture.into(),
        ..told::Nack::default()
    });
    let long = agent(
        &format!("{}-aabbcc", "x".repeat(56)),
        AgentState::Offline,
        7_500,
        Some(health(streaming.clone())),
    );
    let mut fresh = agent("db-1-777777", AgentState::New, 0, None);
    (fresh.last_seen_ms, fresh.policy, fresh.labels) = (0, String::new(), [].into());
    vec![
        fresh,
        agent("web-1-abcdef", AgentState::Connected, 3, Some(health(streaming))),
        behind,
        refusing,
        long,
    ]
}

fn lists() -> Vec<(&'static str, List)> {
    let object = |kind: Kind| {
        let of_kind = objects()
            .into_iter()
            .filter(|object| crate::document::name_of(object).kind == kind.name());
        List::Objects(kind, of_kind.collect())
    };
    let token = |id: &str, operator: &str, used_by: &str, left: i64| Token {
        id: id.to_owned(),
        operator: operator.to_owned(),
        made_ms: ms(Duration::from_secs(600)),
        expires_ms: ms(Duration::ZERO) + left,
        used_by: used_by.to_owned(),
        ..Token::default()
    };
    let change = |kind: &str, name: &str, change: Change| ObjectChange {
        object: Some(ObjectName {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }),
        change: change.into(),
        ..ObjectChange::default()
    };
    let revision = |revision, message: &str, changes| Revision {
        revision,
        made_ms: ms(Duration::from_secs(1_000 * revision)),
        by: "spiffe://fleet.example/operator/ann".to_owned(),
        message: message.to_owned(),
        changes,
        state: RolloutState::Done.into(),
        ..Revision::default()
    };
    let mut back = revision(1, "too slow", vec![change("Policy", "web", Change::Changed)]);
    back.rollback_to = 3;
    let mut failed = taken_back()
        .pop()
        .and_then(|event| event.rollout)
        .expect("there is one");
    failed.began_ms = ms(Duration::from_secs(90));
    vec![
        ("agents", List::Agents(agents())),
        ("policies", object(Kind::Policy)),
        ("collectors", object(Kind::Collector)),
        (
            "tokens",
            List::Tokens(vec![
                token("0000000000000abc", "", "", 3_000_000),
                token(
                    "0000000000000abd",
                    "ann",
                    "spiffe://fleet.example/operator/ann",
                    3_000_000,
                ),
                token("0000000000000abe", "", "", -1),
            ]),
        ),
        (
            "revisions",
            List::Revisions(vec![
                back,
                revision(
                    2,
                    "two ntopngs and what the web servers do, for the new site",
                    vec![
                        change("Collector", "main", Change::Added),
                        change("Collector", "old", Change::Removed),
                        change("Policy", "web", Change::Changed),
                    ],
                ),
            ]),
        ),
        ("rollouts", List::Rollouts(vec![failed])),
    ]
}

#[test]
fn tables_fit_and_are_pinned() {
    let mut text = String::new();
    for (name, list) in lists() {
        let table = list.text(Output::Table, NOW);
        for line in table.lines() {
            assert!(width(line) <= COLUMNS, "{line}");
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        text += &format!(
            "$ get {name}\n{table}$ get {name} -o name\n{}",
            list.text(Output::Name, NOW)
        );
    }
    assert_pinned("get.txt", &text);
}

#[test]
fn wide_tables_cut_nothing() {
    for (name, list) in lists() {
        let wide = list.text(Output::Wide, NOW);
        for id in list.text(Output::Name, NOW).lines() {
            assert!(wide.contains(id), "{name}: {id}\n{wide}");
        }
        assert!(!wide.contains('…'), "{wide}");
    }
}

#[test]
fn values_are_json_and_yaml_of_the_same() {
    let mut shapes = String::new();
    for (name, list) in lists() {
        let json = list.text(Output::Json, NOW);
        assert!(json.trim_end().chars().all(|c| !c.is_control()), "{json}");
        let from_json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
        let yaml = list.text(Output::Yaml, NOW);
        let from_yaml: Vec<serde_json::Value> = match &list {
            List::Objects(..) => serde_saphyr::from_multiple(&yaml).expect("it is YAML"),
            _ => serde_saphyr::from_str(&yaml).expect("it is YAML"),
        };
        assert_eq!(from_json, serde_json::Value::Array(from_yaml), "{name}");
        shapes += &format!(
            "$ get {name} -o json\n{}\n",
            serde_json::to_string_pretty(&from_json).expect("it is JSON")
        );
        assert!(!list.described(NOW).is_empty(), "{name}");
    }
    assert_pinned("get-json.txt", &shapes);
}

#[test]
fn marks_of_direction_reach_no_terminal() {
    let value = Plain::Map(vec![(
        "host".to_owned(),
        Plain::Text("\u{202e}exe.txt".to_owned()),
    )]);
    let shown = yaml_shown(&value);
    assert_eq!(shown, "{\"host\":\"\\u202eexe.txt\"}\n");
    let read: serde_json::Value = serde_saphyr::from_str(&shown).expect("it is YAML");
    assert_eq!(read["host"], "\u{202e}exe.txt");
}

#[test]
fn status_and_loss_are_pinned() {
    let status = StatusResponse {
        version: "0.1.0".to_owned(),
        trust_domain: "fleet.example".to_owned(),
        started_ms: ms(Duration::from_secs(7_500)),
        revision: 8,
        epoch: 1,
        agents: 5,
        connected: 3,
        converged: 1,
        nacked: 1,
        roots: vec![Root {
            id: "0123456789abcdef".repeat(4),
            not_after_ms: ms(Duration::ZERO) + 86_400_000,
            signs: true,
        }],
        rollout: taken_back().pop().and_then(|event| event.rollout),
        caller: "spiffe://fleet.example/operator/ann".to_owned(),
        caller_not_after_ms: ms(Duration::ZERO) + 3_600_000,
    };
    let mut agents = agents();
    agents[1].health.as_mut().expect("there").peers = vec![told::PeerSums {
        peer: "web-3-00ff00".to_owned(),
        spoken_octets: 1_000,
        ..told::PeerSums::default()
    }];
    let text = format!("{}\n{}", status::text(&status, NOW), loss::text(&agents, NOW));
    assert_pinned("status-loss.txt", &text);
    assert!(text.lines().all(|line| width(line) <= COLUMNS), "{text}");
    assert!(!loss::nothing_lost(&agents));
    let well: Vec<Agent> = vec![agents[0].clone(), agents[1].clone()];
    assert!(
        loss::nothing_lost(&well),
        "one is new, of the other records are withheld on purpose"
    );
    let mut broken = well.clone();
    broken[1].health.as_mut().expect("there").collectors[0].made += 1;
    assert!(!loss::nothing_lost(&broken));
    let mut silent = well;
    silent[1].health = None;
    assert!(
        !loss::nothing_lost(&silent),
        "what tells nothing may have lost something"
    );
    let json: serde_json::Value = serde_json::from_str(&json(&loss::told(&agents))).expect("it is JSON");
    assert_eq!(json["nothingLost"], false);
    assert_eq!(json["agents"][1]["collectors"][0]["lost"], 25);
    assert_eq!(json["agents"][1]["collectors"][0]["missing"], 0);
}

#[test]
fn what_changes_for_whom_is_pinned() {
    let before = objects();
    let mut after = before.clone();
    let Some(object::Kind::Policy(policy)) = &mut after[2].kind else {
        panic!("the third is a policy");
    };
    policy.capture.as_mut().expect("there").active_timeout_ms = Some(20_000);
    policy.name = "web".to_owned();
    let change = |change: Change, before: Option<&Object>, after: Option<&Object>| ObjectChange {
        object: after.or(before).map(crate::document::name_of),
        change: change.into(),
        before: before.cloned(),
        after: after.cloned(),
    };
    let answer = ApplyResponse {
        revision: 9,
        changes: vec![
            change(Change::Added, None, Some(&after[0])),
            change(Change::Removed, Some(&before[1]), None),
            change(Change::Changed, Some(&before[2]), Some(&after[2])),
        ],
        agents: (0..22)
            .map(|n| AgentChange {
                agent: format!("web-{n}"),
                policy_before: if n == 0 { String::new() } else { "web".to_owned() },
                policy_after: "web".to_owned(),
                connected: n % 2 == 0,
            })
            .collect(),
        rollout: 3,
        rollouts: vec![3, 4],
        ..ApplyResponse::default()
    };
    let nothing = ApplyResponse {
        revision: 9,
        ..ApplyResponse::default()
    };
    let text = [
        deploy::told(&answer, false),
        deploy::told(&answer, true),
        deploy::told(&nothing, false),
        diff::difference(&before, &after, true),
    ];
    assert_pinned("deploy.txt", &text.join("--\n"));
    assert_eq!(diff::difference(&before, &before, true), "");
    assert_eq!(diff::difference(&before, &before[..2], false), "");
    assert!(diff::difference(&before, &before[..2], true).contains("-name: web\n"));
}

#[test]
fn contexts_are_listed_chosen_and_taken_away() {
    let desk = Desk::new();
    let mut contexts = desk.home.load().expect("nothing yet");
    for (name, at) in [("lab", "[::1]:7443"), ("prod", "c.example:7443")] {
        let identity = desk.home.identity_of(name).expect("a name");
        fs::create_dir(&identity).expect("made");
        fs::write(identity.join("identity.pem"), "x").expect("written");
        let place = crate::client::contexts::Place {
            controller: at.to_owned(),
            identity,
        };
        contexts.contexts.insert(name.to_owned(), place);
    }
    desk.home.store(&contexts).expect("written");
    let told = |command| context::told(&desk.home, &command);
    let named = |name: &str| context::NameArgs {
        name: name.to_owned(),
    };
    assert_eq!(
        told(context::ContextCommand::Use(named("prod"))).expect("known"),
        "context prod is the current one\n"
    );
    assert_eq!(
        told(context::ContextCommand::List).expect("readable"),
        "  NAME CONTROLLER\n  lab  [::1]:7443\n* prod c.example:7443\n"
    );
    let error = told(context::ContextCommand::Use(named("x"))).expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "NAME: \"x\" is no context; write one of lab, prod, or log in"
    );
    told(context::ContextCommand::Delete(named("prod"))).expect("known");
    let left = desk.home.load().expect("readable");
    assert_eq!((left.current, left.contexts.len()), (None, 1));
    assert!(!desk.directory.path().join("prod").exists());
    assert!(desk.directory.path().join("lab/identity.pem").exists());
}
