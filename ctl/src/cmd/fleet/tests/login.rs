//! Login, renewal, recovery, contexts.

use super::*;

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
async fn a_login_takes_no_other_controllers_context_away() {
    let (controller, desk) = logged_in().await;
    let other = Scripted::start().await;
    let (first, second) = (controller.address.to_string(), other.address.to_string());
    let (kept, contexts) = (desk.identity(), desk.home.load().expect("readable"));
    // It has the same trust domain.
    for name in [None, Some("fleet.example")] {
        let token = other.token(2).expose();
        let refused = desk.login_with(&second, &token, name, false).await;
        let told = lines_of(&refused.expect_err("the context is of another controller")).join(" ");
        assert!(told.contains("--context") && told.contains("--replace"), "{told}");
    }
    assert_eq!(
        (desk.identity(), desk.home.load().expect("readable")),
        (kept.clone(), contexts)
    );
    assert!(other.script().used.is_empty(), "the token is not used up");
    let token = other.token(2).expose();
    let said = desk
        .login_with(&second, &token, Some("lab"), false)
        .await
        .expect("a name of its own");
    assert!(said.contains("context lab is the current one"), "{said}");
    assert_eq!(desk.identity(), kept);
    // The same controller once more: the key is a new one, the place the same.
    let said = desk
        .login(&first, &controller.token(4).expose())
        .await
        .expect("let in again");
    assert!(
        said.contains("context fleet.example is the current one"),
        "{said}"
    );
    assert_ne!(desk.identity(), kept);
    let token = other.token(6).expose();
    desk.login_with(&second, &token, None, true)
        .await
        .expect("it was said to replace it");
    let contexts = desk.home.load().expect("readable");
    assert_eq!(contexts.contexts["fleet.example"].controller, second);
    // Another config file in the same directory shares nothing.
    let path = desk.directory.path().join("other.yaml");
    let home = Home::by(|name| (name == "FLOWTILLA_CONFIG").then(|| path.clone().into())).expect("a place");
    assert_ne!(
        home.identity_of("lab").expect("a name"),
        desk.home.identity_of("lab").expect("a name")
    );
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
        // Once to see who it is, once for the identity.
        for _ in 0..2 {
            let (mut tcp, _) = plain.accept().await.expect("somebody calls");
            tokio::io::AsyncWriteExt::write_all(&mut tcp, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .expect("it is told");
        }
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
async fn of_many_commands_at_once_one_renews_or_recovers() {
    let (controller, desk) = logged_in().await;
    let now = clock::wall_now();
    // What they are given is due later than all of this.
    controller.script().life_h = Some(1_000);
    let later = WallTime(now.0 + 13 * HOUR_NS);
    let asked = || {
        let script = controller.script();
        (script.renewals, script.recoveries)
    };
    let reach = desk.reach();
    let at_once =
        |at| futures_util::future::join_all((0..8).map(|_| Client::reach_at(&reach, at)).collect::<Vec<_>>());
    for client in at_once(later).await {
        client.expect("it is let in");
    }
    assert_eq!(asked(), (1, 0));
    // Once more with an SVID that has run out.
    let token = controller.token(4).expose();
    controller.script().life_h = None;
    let login = desk.login(&controller.address.to_string(), &token).await;
    login.expect("let in again");
    controller.script().life_h = Some(1_000);
    for client in at_once(WallTime(now.0 + 25 * HOUR_NS)).await {
        client.expect("it is let in");
    }
    assert_eq!(asked(), (1, 1));
}

#[tokio::test]
async fn a_command_is_not_held_up_by_an_identity_that_cannot_be_kept() {
    let (controller, desk) = logged_in().await;
    let kept = desk.identity();
    let bundle = fs::read(desk.kept("fleet.example/bundle.pem")).expect("there is one");
    // In the way of what is renamed to the bundle: not even root can write to it.
    let name = format!("fleet.example/bundle.pem.{}.tmp", std::process::id());
    fs::create_dir(desk.kept(&name)).expect("ours");
    for (hours, counts) in [(13, (1, 0)), (25, (1, 1))] {
        let at = WallTime(clock::wall_now().0 + hours * HOUR_NS);
        let client = Client::reach_at(&desk.reach(), at).await.expect("it is let in");
        client
            .ask(client.fleet().status(StatusRequest {}))
            .await
            .expect("allowed");
        assert!(!client.trusted().signers.is_empty());
        let script = controller.script();
        assert_eq!((script.renewals, script.recoveries), counts, "after {hours} h");
        assert_eq!(desk.identity(), kept, "after {hours} h");
        assert_eq!(
            fs::read(desk.kept("fleet.example/bundle.pem")).expect("there"),
            bundle
        );
    }
    // Where nothing can be made nothing is asked for.
    fs::rename(desk.kept("fleet.example"), desk.kept("moved")).expect("ours");
    crate::client::identity::Identity::may_be_kept(&desk.kept("fleet.example")).expect_err("it is gone");
    crate::client::identity::Identity::may_be_kept(&desk.kept("moved")).expect("it can be written");
}

#[tokio::test]
async fn an_identity_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_controller, desk) = logged_in().await;
    let path = desk.kept("fleet.example/identity.pem");
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
    fs::copy(strange.kept(bundle), desk.kept(bundle)).expect("copied");
    let asked = async {
        let client = Client::reach(&desk.reach()).await?;
        anyhow::Ok(client.ask(client.fleet().status(StatusRequest {})).await?)
    };
    let error = asked.await.expect_err("it is a stranger there");
    // The alert is lost when the connection is reset before it was read: then it says what may be.
    let told = format!("{error:#}");
    assert!(
        told.contains("the SVID") && told.ends_with("log in again"),
        "{told}"
    );
}

#[test]
fn contexts_are_listed_chosen_and_taken_away() {
    let desk = Desk::new();
    let mut contexts = desk.home.load().expect("nothing yet");
    for (name, at) in [("lab", "[::1]:7443"), ("prod", "c.example:7443")] {
        let identity = desk.home.identity_of(name).expect("a name");
        fs::create_dir_all(&identity).expect("made");
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
    assert!(!desk.kept("prod").exists());
    assert!(desk.kept("lab/identity.pem").exists());
}

#[tokio::test]
async fn a_fleet_of_ten_thousand_fits_into_an_answer() {
    let (controller, desk) = logged_in().await;
    let agent = |n: u32| Agent {
        id: format!("web-{n}"),
        hello: Some(told::Hello {
            host_name: "h".repeat(255),
            scope: "s".repeat(255),
            ..told::Hello::default()
        }),
        ..Agent::default()
    };
    controller.script().agents = (0..10_000).map(agent).collect();
    let client = Client::reach(&desk.reach()).await.expect("it is an operator");
    let all = client.ask(client.fleet().agents(AgentsRequest::default())).await;
    assert_eq!(all.expect("read").agents.len(), 10_000);
    // What the library reads when nobody says otherwise.
    let mut short = client.fleet().max_decoding_message_size(4 << 20);
    let refused = short
        .agents(AgentsRequest::default())
        .await
        .expect_err("too long");
    assert_eq!(refused.code(), tonic::Code::OutOfRange);
}
