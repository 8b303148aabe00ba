use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use flowtilla_controller::backup::{self, JUMP};
use flowtilla_controller::command;
use flowtilla_controller::config::Cli;
use flowtilla_controller::enrolment::TokenOrder;
use flowtilla_controller::identities::{Identities, Revocation};
use flowtilla_controller::run::{Controller, Options};
use flowtilla_controller::setup;
use flowtilla_controller::store::counter::{self, Counter};
use flowtilla_controller::store::{Batch, Store as _};
use flowtilla_grpc::fleet::fleet_client::FleetClient;
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::enrol::Reason;
use flowtilla_proto::wire::fleet::StatusRequest;

use super::scene::{Member, Scene, loopback, reason};

/// Runs a command as `main` does; what it wrote.
async fn command(scene: &Scene, words: &[&str]) -> anyhow::Result<String> {
    let cli = Cli::try_parse_from(["flowtilla-controller"].iter().chain(words))?;
    let mut out = Vec::new();
    command::execute(cli.command, scene.clock.clone(), &mut out).await?;
    Ok(String::from_utf8(out)?)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_brings_everybody_back_and_gives_no_number_again() {
    let scene = Scene::start().await;
    let member = scene.member().await;
    let waiting = scene.token();
    let store = &scene.controller.parts().store;
    let mut batch = Batch::default();
    for (counter, last) in Counter::ALL.into_iter().zip(5..) {
        counter.note(&mut batch, last);
    }
    // The first root has a number already: the counter of roots goes on from there.
    store.commit(batch).expect("committed");
    let epoch = counter::epoch(&**store).expect("readable");

    let (state, file) = (
        scene.directory.path().join("state"),
        scene.directory.path().join("backup"),
    );
    command(&scene, &["backup", "--state", text(&state), text(&file)])
        .await
        .expect("a backup of one that runs");
    let mode = std::fs::metadata(&file).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);
    let again = command(&scene, &["backup", "--state", text(&state), text(&file)]).await;
    again.expect_err("a file that is there is not overwritten");

    let mut epochs = vec![epoch];
    for n in 0..2 {
        scene.clock.advance(Duration::from_secs(10));
        let to = scene.directory.path().join(format!("restored-{n}"));
        let told = command(&scene, &["restore", text(&file), "--state", text(&to)])
            .await
            .expect("restored");
        assert!(told.contains("\n1 join tokens that were not used"), "{told}");
        let opened = setup::open(&to, Duration::from_secs(3600)).expect("a state");
        for (counter, last) in Counter::ALL.into_iter().zip(5u64..) {
            let now = counter.last(&*opened.store).expect("readable");
            assert!(now >= last + JUMP, "{counter:?}: {now}");
        }
        epochs.push(counter::epoch(&*opened.store).expect("readable"));
        if n == 0 {
            continue;
        }
        let mut options = Options::new(to.clone(), vec![loopback()]);
        options.clock = scene.clock.clone();
        let restored = Scene {
            controller: Controller::start_on(opened, options).await.expect("a controller"),
            clock: scene.clock.clone(),
            directory: tempfile::tempdir().expect("a directory"),
        };
        restored
            .believes(&member)
            .await
            .expect("who had an identity has it still");
        restored.member().await;
        // Somebody may have used it since the backup.
        assert_eq!(reason(restored.enrol(&waiting).await), Reason::Revoked);
        restored.controller.stop().await.expect("a stop");
    }
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    let there = command(&scene, &["restore", text(&file), "--state", text(&state)]).await;
    there.expect_err("a state that is there is not overwritten");
}

/// A controller's disk dies, and its last backup is older than the SVIDs that are in use.
#[tokio::test(flavor = "multi_thread")]
async fn who_renewed_after_the_backup_comes_back_and_who_was_replaced_or_revoked_before_it_does_not() {
    let scene = Scene::start().await;
    let hours = |n: u64| {
        scene.clock.advance(Duration::from_secs(n * 3_600));
        scene.controller.parts().tls.renew().expect("its own SVID");
    };
    let (first, asleep, void) = (scene.member().await, scene.member().await, scene.member().await);
    let order = TokenOrder {
        operator: "ada".into(),
        ..TokenOrder::default()
    };
    let token = scene
        .identities()
        .create_token(&order, None, scene.clock.now())
        .expect("a token")
        .0;
    let ada = scene.enrol(&token).await.expect("an operator");
    let mut agent = scene.believes(&first).await.expect("renewed");
    for _ in 0..3 {
        agent = scene.believes(&agent).await.expect("renewed");
    }
    let revoke = |identities: &Identities, member: &Member| {
        let what = Revocation::Identity(member.id.clone());
        identities
            .revoke(&what, None, scene.clock.now())
            .expect("revoked");
    };
    revoke(scene.identities(), &void);
    let late_void = scene.member().await;
    hours(1);
    let (state, file) = (
        scene.directory.path().join("state"),
        scene.directory.path().join("backup"),
    );
    command(&scene, &["backup", "--state", text(&state), text(&file)])
        .await
        .expect("a backup");
    hours(1);
    let asleep = scene.believes(&asleep).await.expect("renewed");
    let late_void = scene.believes(&late_void).await.expect("renewed");
    hours(12);
    let agent = scene.believes(&agent).await.expect("renewed");
    let ada = scene.believes(&ada).await.expect("renewed");
    let newcomer = scene.member().await;
    revoke(scene.identities(), &late_void);
    hours(13);

    let to = scene.directory.path().join("restored");
    let told = command(&scene, &["restore", text(&file), "--state", text(&to)])
        .await
        .expect("restored");
    assert!(told.contains("needs a new token"), "{told}");
    let restored = scene.beside(to).await;
    // All SVIDs that the backup knows have run out; this one lives.
    let channel = restored.channel_of(&ada).await.expect("a channel");
    let status = FleetClient::new(channel.clone())
        .status(StatusRequest {})
        .await
        .expect("allowed");
    assert!(status.get_ref().caller.ends_with("/operator/ada"), "{status:?}");
    let parts = restored.controller.parts();
    let over = parts
        .connections
        .identities_where(|id, shown| restored.identities().has_run_out(id, shown, restored.clock.now()));
    assert!(over.is_empty(), "nothing is to be cut: {over:?}");
    let recover = |member: &Member| {
        let (svid, pair) = (member.chain[0].clone(), member.same_pair());
        let restored = &restored;
        async move { restored.recover(&svid, pair).await }
    };
    // These do not: they were given between the backup and the restore.
    let back = recover(&asleep).await.expect("it comes back");
    assert_eq!(back.id, asleep.id);
    restored.believes(&back).await.expect("it is believed again");
    recover(&asleep)
        .await
        .expect("once more, for the answer may be lost");
    recover(&agent).await.expect("and so does one that lives still");
    assert_eq!(reason(recover(&first).await), Reason::OtherKey);
    assert_eq!(reason(recover(&void).await), Reason::Revoked);
    assert_eq!(reason(recover(&newcomer).await), Reason::NotAllowed);
    // Its revocation is lost, as `restore` says: it is to be revoked again.
    recover(&late_void)
        .await
        .expect("nobody knows that it was revoked");
    revoke(restored.identities(), &late_void);
    assert_eq!(reason(recover(&late_void).await), Reason::Revoked);
    drop(channel);
    restored.controller.stop().await.expect("a stop");
}

const NOBODY: Option<u32> = Some(65_534);

/// Runs as root only: it gives directories to another user.
#[tokio::test(flavor = "multi_thread")]
async fn root_asks_the_controller_of_another_user_and_makes_nothing_that_the_user_cannot_use() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: it gives directories away, which needs root");
        return;
    }
    let scene = Scene::start().await;
    let state = scene.directory.path().join("state");
    let file = scene.directory.path().join("backup");
    std::os::unix::fs::chown(&state, NOBODY, NOBODY).expect("root may");
    command(&scene, &["backup", "--state", text(&state), text(&file)])
        .await
        .expect("a backup of one that runs");
    backup::verify(&file).expect("it is whole");
    let token = command(&scene, &["token", "--state", text(&state), "--operator", "ada"]).await;
    let token = JoinToken::parse(&token.expect("a token")).expect("readable");
    scene.enrol(&token).await.expect("an identity");

    // Nobody answers any more: what root does there would be root's.
    let Scene {
        controller,
        clock,
        directory,
    } = scene;
    controller.stop().await.expect("a stop");
    let private = directory.path().join("private");
    std::fs::create_dir(&private).expect("ours");
    std::fs::set_permissions(&private, std::fs::Permissions::from_mode(0o700)).expect("ours");
    std::os::unix::fs::chown(&private, NOBODY, NOBODY).expect("root may");
    let theirs = private.join("state");
    let other = directory.path().join("other");
    for words in [
        vec!["backup", "--state", text(&state), text(&other)],
        vec!["token", "--state", text(&state), "--operator", "bob"],
        vec!["restore", text(&file), "--state", text(&theirs)],
        vec!["init", "--state", text(&theirs)],
    ] {
        let cli = Cli::parse_from(["flowtilla-controller"].iter().chain(&words));
        let refused = command::execute(cli.command, clock.clone(), &mut Vec::new()).await;
        let told = format!("{:#}", refused.expect_err("refused"));
        assert!(
            told.contains("belongs to user 65534") && told.contains("runuser"),
            "{words:?}: {told}"
        );
    }
    assert!(!theirs.exists() && !other.exists(), "nothing is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_is_not_whole_makes_nothing() {
    let scene = Scene::start().await;
    scene.member().await;
    let (state, file) = (
        scene.directory.path().join("state"),
        scene.directory.path().join("backup"),
    );
    command(&scene, &["backup", "--state", text(&state), text(&file)])
        .await
        .expect("a backup");
    let whole = std::fs::read(&file).expect("readable");
    let damaged = scene.directory.path().join("damaged");
    let to = scene.directory.path().join("restored");
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for n in 0..200 {
        let mut octets = whole.clone();
        match n % 3 {
            0 => octets.truncate(random.usize(..whole.len())),
            1 => octets[random.usize(..whole.len())] ^= 1 << random.u8(..8),
            _ => octets.push(random.u8(..)),
        }
        std::fs::write(&damaged, &octets).expect("ours");
        let error = backup::restore(&damaged, &to, scene.clock.now()).expect_err("refused");
        assert!(
            matches!(error, backup::BackupError::Damaged { .. }),
            "seed {seed}, {n}: {error}"
        );
        assert!(!to.exists(), "seed {seed}, {n}");
    }
    backup::restore(&file, &to, scene.clock.now()).expect("the whole one is good");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_token_is_made_with_and_without_a_controller_that_runs() {
    let scene = Scene::start().await;
    let state = scene.directory.path().join("state");
    let words = ["token", "--state", text(&state), "--operator", "ada"];
    let token = JoinToken::parse(&command(&scene, &words).await.expect("a token")).expect("readable");
    let member = scene.enrol(&token).await.expect("an identity");
    assert_eq!(member.id.to_string(), "spiffe://fleet.example/operator/ada");
    let bad = ["token", "--state", text(&state), "--operator", "A B"];
    let error = command(&scene, &bad).await.expect_err("no name").to_string();
    assert!(error.contains("operator"), "{error}");

    let Scene {
        controller,
        clock,
        directory,
    } = scene;
    controller.stop().await.expect("a stop");
    let file = directory.path().join("token");
    let words = [
        "token",
        "--state",
        text(&state),
        "--operator",
        "bob",
        "--token-file",
        text(&file),
    ];
    let cli = Cli::parse_from(["flowtilla-controller"].iter().chain(&words));
    let mut out = Vec::new();
    command::execute(cli.command, clock.clone(), &mut out)
        .await
        .expect("a token");
    assert!(out.is_empty(), "the token is in the file only");
    let mode = std::fs::metadata(&file).expect("there").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o600);

    let mut options = Options::new(state, vec![loopback()]);
    options.clock = clock.clone();
    let controller = Controller::start(options).await.expect("a controller");
    let scene = Scene {
        controller,
        clock,
        directory,
    };
    let token = std::fs::read_to_string(&file).expect("readable");
    let token = JoinToken::parse(&token).expect("a token");
    let member = scene.enrol(&token).await.expect("an identity");
    assert_eq!(member.id.name.as_str(), "bob");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_makes_a_state_once_and_shows_a_token_once() {
    let scene = Scene::start().await;
    let state = scene.directory.path().join("another");
    let nowhere = scene.directory.path().join("nowhere/token");
    let lost = ["init", "--state", text(&state), "--token-file", text(&nowhere)];
    let error = command(&scene, &lost)
        .await
        .expect_err("there is no such directory");
    assert!(format!("{error:#}").starts_with("--token-file: "), "{error:#}");
    assert!(!state.exists(), "nothing is made without a place for the token");
    let words = [
        "init",
        "--state",
        text(&state),
        "--domain",
        "b.example",
        "--operator",
        "root",
    ];
    let token = command(&scene, &words).await.expect("a state");
    let token = JoinToken::parse(&token).expect("a token and nothing else");
    let error = command(&scene, &words)
        .await
        .expect_err("it is there")
        .to_string();
    assert!(error.contains("already"), "{error}");
    let remedy = format!(
        "flowtilla-controller token --state {} --operator root",
        text(&state)
    );
    assert!(error.contains(&remedy), "{error}");
    let file = scene.directory.path().join("again");
    let again: Vec<&str> = words
        .iter()
        .copied()
        .chain(["--token-file", text(&file)])
        .collect();
    command(&scene, &again).await.expect_err("it is there");
    assert!(!file.exists(), "no empty file stays");

    let second = scene.beside(state).await;
    let member = second.enrol(&token).await.expect("an identity");
    assert_eq!(member.id.to_string(), "spiffe://b.example/operator/root");

    let absent = scene.directory.path().join("absent");
    let run = ["token", "--state", text(&absent), "--operator", "x"];
    let error = command(&scene, &run)
        .await
        .expect_err("nothing is there")
        .to_string();
    assert!(error.contains("init --state"), "{error}");
}
