//! The same commands against the controller itself, in this process.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Parser as _;
use flowtilla_controller::clock::Clock;
use flowtilla_controller::command::execute;
use flowtilla_controller::config::Cli;
use flowtilla_controller::run::{Controller, Options};

use super::*;

const FLEET: &str = include_str!("../../../../tests/fleet/fleet.yaml");

/// A controller as `flowtilla-controller init` and `run` make it, and somebody who has logged in with the token of `init`.
async fn logged_in() -> (Controller, Desk) {
    let desk = Desk::new();
    let state = desk.directory.path().join("controller");
    let state_text = state.to_str().expect("it is UTF-8");
    let init = [
        "flowtilla-controller",
        "init",
        "--state",
        state_text,
        "--domain",
        "fleet.example",
        "--operator",
        "ann",
    ];
    let mut printed = Vec::new();
    execute(Cli::parse_from(init).command, Clock::system(), &mut printed)
        .await
        .expect("a state");
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let controller = Controller::start(Options::new(state, vec![anywhere]))
        .await
        .expect("a controller");
    let printed = String::from_utf8(printed).expect("text");
    let token = printed
        .split_whitespace()
        .find(|word| word.starts_with("flowtilla1."))
        .expect("a token");
    let said = desk
        .login(&controller.address().to_string(), token)
        .await
        .expect("it lets in");
    assert!(said.contains("operator/ann"), "{said}");
    let again = desk
        .login(&controller.address().to_string(), token)
        .await
        .expect_err("it was used");
    assert!(again.to_string().contains("make another token"), "{again:#}");
    (controller, desk)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deployed_is_what_the_controller_has() {
    let (controller, desk) = logged_in().await;
    let file = desk.file("fleet.yaml", FLEET);
    let deploy = || deploy::run(deploying(&desk, vec![file.clone()]));
    assert_eq!(deploy().await.expect("taken"), Exit::Done);
    let client = Client::reach(&desk.reach()).await.expect("let in");
    let held = async || {
        client
            .ask(client.fleet().objects(diff::NEWEST))
            .await
            .expect("told")
    };
    let first = held().await;
    assert_eq!(diff::difference(&first.objects, &objects(), true), "");
    assert_eq!(deploy().await.expect("nothing changes"), Exit::Done);
    assert_eq!(held().await.revision, first.revision);
    // Another one, and back.
    let changed = desk.file(
        "fleet.yaml",
        &FLEET.replace("activeTimeout: 10s", "activeTimeout: 20s"),
    );
    let mut dry = deploying(&desk, vec![changed.clone()]);
    dry.dry_run = true;
    assert_eq!(deploy::run(dry).await.expect("told"), Exit::Done);
    assert_eq!(held().await, first);
    assert_eq!(deploy().await.expect("taken"), Exit::Done);
    assert!(
        diff::difference(&first.objects, &held().await.objects, true).contains("+  activeTimeout: 20s\n")
    );
    let back = deploy::RollbackArgs {
        revision: first.revision,
        dry_run: false,
        follow: Follow::default(),
        reach: desk.reach(),
    };
    assert_eq!(deploy::rollback(back).await.expect("taken"), Exit::Done);
    assert_eq!(held().await.objects, first.objects);
    let List::Revisions(revisions) = List::fetch(&client, What::Revisions, None).await.expect("told") else {
        panic!("revisions were asked for");
    };
    assert_eq!(revisions[0].rollback_to, first.revision);
    assert!(revisions[0].by.ends_with("/operator/ann"));
    let status = client
        .ask(client.fleet().status(StatusRequest {}))
        .await
        .expect("told");
    assert_eq!(
        (status.trust_domain.as_str(), status.agents),
        ("fleet.example", 0)
    );
    controller.stop().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_controller_can_know_is_told_at_its_place() {
    let (controller, desk) = logged_in().await;
    let client = Client::reach(&desk.reach()).await.expect("let in");
    let fleet = desk.file("fleet.yaml", FLEET);
    deploy::run(deploying(&desk, vec![fleet])).await.expect("taken");
    // The collector is in use by a policy that these files do not have.
    let request = ApplyRequest {
        removed: vec![ObjectName {
            kind: "Collector".to_owned(),
            name: "spare".to_owned(),
        }],
        ..ApplyRequest::default()
    };
    let failed = client
        .ask(client.fleet().apply(request))
        .await
        .expect_err("it is in use");
    assert!(!failed.mistakes.is_empty(), "{failed}");
    // Somebody else was first.
    let stale = ApplyRequest {
        objects: objects(),
        expected_revision: 999,
        ..ApplyRequest::default()
    };
    let failed = client
        .ask(client.fleet().apply(stale))
        .await
        .expect_err("it is another revision");
    assert!(failed.code.is_some(), "{failed}");
    controller.stop().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_there_is_not_yet_is_told_as_that() {
    let (controller, desk) = logged_in().await;
    let client = Client::reach(&desk.reach()).await.expect("let in");
    let rollback = || {
        deploy::rollback(deploy::RollbackArgs {
            revision: 0,
            dry_run: false,
            follow: Follow::default(),
            reach: desk.reach(),
        })
    };
    let said = |result: anyhow::Result<Exit>| result.expect_err("there is none").to_string();
    assert_eq!(
        said(rollback().await),
        "there is no revision yet; agentctl deploy makes the first one"
    );
    let none = "there is no rollout yet; the first change that reaches an agent begins one";
    assert_eq!(said(watch::watch(&client, &[0], None).await), none);
    for command in [
        rollout::RolloutCommand::Abort,
        rollout::RolloutCommand::Pause,
        rollout::RolloutCommand::Resume,
    ] {
        let args = rollout::NumberArgs {
            rollout: 0,
            reach: desk.reach(),
        };
        assert_eq!(said(rollout::run(command(args)).await), none);
    }
    let fleet = desk.file("fleet.yaml", FLEET);
    deploy::run(deploying(&desk, vec![fleet])).await.expect("taken");
    assert_eq!(
        said(rollback().await),
        "there is nothing before revision 1 to go back to; name a revision: see agentctl history"
    );
    controller.stop().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_that_the_controller_finds_has_a_line() {
    let (controller, desk) = logged_in().await;
    let fleet = desk.file("fleet.yaml", FLEET);
    deploy::run(deploying(&desk, vec![fleet])).await.expect("taken");
    let delete = |what, name: &str| {
        delete::run(delete::DeleteArgs {
            what,
            name: name.to_owned(),
            dry_run: false,
            follow: Follow::default(),
            reach: desk.reach(),
        })
    };
    let nope = delete(delete::What::Policy, "nope").await;
    assert_eq!(
        nope.expect_err("there is none").to_string(),
        "1 of the objects cannot be taken\n  removed[0].name: \"nope\" is the name of no policy; leave it out, or name one \
         that there is"
    );
    let used = delete(delete::What::Collector, "main").await;
    assert_eq!(
        used.expect_err("it is in use").to_string(),
        "1 of the objects cannot be taken\n  removed[0].name: \"main\" is a collector that policy web names; take it out of \
         the policy in the same request, or leave it"
    );
    let client = Client::reach(&desk.reach()).await.expect("let in");
    let labels = [("a b", "c"), ("d", "e f")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let order = CreateTokenRequest {
        labels: labels.into(),
        ..CreateTokenRequest::default()
    };
    let refused = client.ask(client.fleet().create_token(order)).await;
    let refused = refused.expect_err("they are no labels").to_string();
    assert_eq!(refused.lines().count(), 2, "{refused}");
    assert!(!refused.contains("\\n"), "{refused}");
    let revoke = admit::RevokeArgs {
        what: admit::Void::Token,
        name: "nope".to_owned(),
        reach: desk.reach(),
    };
    let refused = admit::revoke(revoke).await.expect_err("it is none").to_string();
    assert!(
        refused.starts_with("token: \"nope\" is no token's id; "),
        "{refused}"
    );
    controller.stop().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_in_once_and_a_revoked_operator_is_out() {
    let (controller, desk) = logged_in().await;
    let address = controller.address().to_string();
    let client = Client::reach(&desk.reach()).await.expect("let in");
    let order = CreateTokenRequest {
        operator: "bob".to_owned(),
        ..CreateTokenRequest::default()
    };
    let made = client
        .ask(client.fleet().create_token(order))
        .await
        .expect("made");
    let other = Desk::new();
    other.login(&address, &made.token).await.expect("once");
    let tokens = List::fetch(&client, What::Tokens, Some(&made.id))
        .await
        .expect("told");
    assert!(tokens.text(Output::Table, clock::wall_now()).contains("used"));
    let bob = Client::reach(&other.reach()).await.expect("let in");
    bob.ask(bob.fleet().status(StatusRequest {}))
        .await
        .expect("allowed");
    let revoke = admit::RevokeArgs {
        what: admit::Void::Operator,
        name: "bob".to_owned(),
        reach: desk.reach(),
    };
    assert_eq!(admit::revoke(revoke).await.expect("known"), Exit::Done);
    let after = async {
        let bob = Client::reach(&other.reach()).await?;
        anyhow::Ok(bob.ask(bob.fleet().status(StatusRequest {})).await?)
    };
    let error = after.await.expect_err("bob is out");
    assert!(format!("{error:#}").contains("log in"), "{error:#}");
    controller.stop().await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_goes_to_a_new_file_of_its_owner_and_operators_are_listed() {
    use std::os::unix::fs::PermissionsExt as _;

    let (controller, desk) = logged_in().await;
    let client = Client::reach(&desk.reach()).await.expect("let in");
    let path = desk.directory.path().join("bob.token");
    let create = || {
        token::run(token::TokenCommand::Create(token::CreateArgs {
            label: Vec::new(),
            ttl: None,
            operator: Some("bob".to_owned()),
            token_file: Some(path.clone()),
            output: Brief::Text,
            reach: desk.reach(),
        }))
    };
    assert_eq!(create().await.expect("made"), Exit::Done);
    let mode = fs::metadata(&path).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    let text = fs::read_to_string(&path).expect("readable");
    let count = async || {
        let told = client.ask(client.fleet().tokens(TokensRequest {})).await;
        told.expect("told").tokens.len()
    };
    let before = count().await;
    let refused = create().await.expect_err("it is there");
    assert!(lines_of(&refused)[0].starts_with("--token-file: "), "{refused:#}");
    assert_eq!(
        (count().await, fs::read_to_string(&path).expect("readable")),
        (before, text.clone())
    );
    let other = Desk::new();
    other
        .login(&controller.address().to_string(), &text)
        .await
        .expect("let in");
    let listed = List::fetch(&client, What::Operators, None).await.expect("told");
    let table = listed.text(Output::Table, clock::wall_now());
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let told: Vec<_> = rows[1..].iter().map(|row| (row[0], row[1], row[4])).collect();
    assert_eq!(told, [("ann", "in", "(host)"), ("bob", "in", "ann")], "{table}");
    controller.stop().await.expect("it ends");
}
