//! The agent's side of the fleet over real TLS, against a controller that says what the test tells it to.
//!
//! What assignments are applied to is a stand-in: what the agent does with them has its own tests.

mod controller;

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flowtilla_agent::held::HeldStore;
use flowtilla_agent::identity::{self, Asker, Credentials, SettleError, Token, WallClock};
use flowtilla_agent::session::{Facts, Governed, News, Parts, Ready, Vitals};
use flowtilla_agent_core::flow::record::BootId;
use flowtilla_agent_core::session::{Assignment, FEATURES, Fault, Section, ShortIds};
use flowtilla_proto::ids::SourceId;
use flowtilla_proto::token::{JoinToken, TokenId};
use flowtilla_proto::wire::enrol::Reason;
use flowtilla_proto::wire::session::{self as wire, EndReason, Ended, from_agent::Body, to_agent};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use controller::{Scripted, WAIT, content, labels, now};

/// What was applied, in order; and what the next assignments with these revisions come to.
#[derive(Clone, Default)]
struct StandIn {
    applied: Arc<Mutex<Vec<u64>>>,
    refused: Arc<Mutex<Vec<u64>>>,
    source_ids: Arc<Mutex<Vec<u32>>>,
}

impl StandIn {
    fn applied(&self) -> Vec<u64> {
        self.applied.lock().expect("nobody panicked").clone()
    }

    fn refuse(&self, revision: u64) {
        self.refused.lock().expect("nobody panicked").push(revision);
    }
}

impl Governed for StandIn {
    async fn apply(&mut self, assignment: &Assignment) -> Result<wire::Effective, Fault> {
        if self
            .refused
            .lock()
            .expect("nobody panicked")
            .contains(&assignment.revision)
        {
            return Err(Fault {
                section: Section::Capture,
                path: "capture.scopes[0].netns".into(),
                reason: "it is not there".into(),
            });
        }
        self.applied
            .lock()
            .expect("nobody panicked")
            .push(assignment.revision);
        Ok(wire::Effective {
            programs: vec!["tcp_state".into()],
            ..wire::Effective::default()
        })
    }

    async fn use_short_ids(&mut self, _: ShortIds) -> Result<(), String> {
        Ok(())
    }

    async fn use_source_id(&mut self, id: SourceId) -> Result<(), String> {
        self.source_ids.lock().expect("nobody panicked").push(id.number());
        Ok(())
    }
}

/// An agent that runs.
struct Agent {
    stand_in: StandIn,
    news: watch::Receiver<News>,
    stop: CancellationToken,
    task: JoinHandle<StandIn>,
}

fn asker(controller: &Scripted) -> Asker {
    Asker {
        controller: controller.controller(),
        host_name: "host".into(),
        seed: 7,
        clock: WallClock::system(),
    }
}

async fn settle(controller: &Scripted, state: &Path, token: bool) -> Result<Credentials, SettleError> {
    let token = token.then(|| Token::Given(controller.token()));
    let (stop, asker) = (CancellationToken::new(), asker(controller));
    let settling = identity::settle(
        Some(state.join("identity")),
        token.as_ref(),
        &asker,
        &stop,
        |_| {},
    );
    tokio::time::timeout(WAIT, settling)
        .await
        .expect("an identity in time")
}

async fn start(controller: &Scripted, state: &Path, credentials: Credentials) -> Agent {
    start_with(controller, state, credentials, StandIn::default()).await
}

async fn start_with(
    controller: &Scripted,
    state: &Path,
    credentials: Credentials,
    stand_in: StandIn,
) -> Agent {
    let facts = Facts {
        version: "0".into(),
        host_name: "host".into(),
        kernel: "6".into(),
        operating_system: "Linux".into(),
        source_id: SourceId::from_hash(5),
        labels: labels(),
        boot: BootId([3; 16]),
        scope: String::new(),
        instance: 1,
        build: None,
    };
    let vitals = Vitals {
        health: Box::new(|| wire::Health {
            records: 9,
            ..wire::Health::default()
        }),
        addresses: Box::new(|| vec![IpAddr::from([192, 0, 2, 1])]),
        top: Box::new(|question| wire::TopAnswer {
            id: question.id,
            more: question.rows as u64,
            ..wire::TopAnswer::default()
        }),
    };
    let ready = Ready::restore(Parts {
        governed: stand_in.clone(),
        vitals,
        facts,
        store: HeldStore(Some(state.to_owned())),
        peers: None,
        seed: 7,
    })
    .await;
    let (news, stop) = (ready.news(), CancellationToken::new());
    let running = ready.run(controller.controller(), Arc::new(credentials), stop.clone());
    Agent {
        stand_in,
        news,
        task: tokio::spawn(running),
        stop,
    }
}

impl Agent {
    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(WAIT, self.task)
            .await
            .expect("an end in time")
            .expect("no panic");
    }

    async fn until(&mut self, what: &str, is: impl FnMut(&News) -> bool) -> News {
        let waited = tokio::time::timeout(WAIT, self.news.wait_for(is)).await;
        waited
            .unwrap_or_else(|_| panic!("not in time: {what}"))
            .expect("the agent lives")
            .clone()
    }
}

/// A controller, and the state directory of an agent that it has let in.
async fn enrolled() -> (Scripted, tempfile::TempDir, Credentials) {
    let controller = Scripted::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let credentials = settle(&controller, state.path(), true)
        .await
        .expect("an identity");
    (controller, state, credentials)
}

#[tokio::test]
async fn an_agent_enrols_is_offered_a_policy_applies_it_and_acks() {
    let (mut controller, state, credentials) = enrolled().await;
    assert_eq!(credentials.identity().id().to_string(), "spiffe://test/agent/a");
    let agent = start(&controller, state.path(), credentials).await;
    let (mut session, hello) = controller.welcomed().await;
    assert_eq!(session.svid.id.to_string(), "spiffe://test/agent/a");
    assert_eq!((hello.held, hello.source_id, hello.labels), (None, 5, labels()));
    assert_eq!(hello.features, FEATURES.map(i32::from));
    assert_eq!(
        (hello.addresses, hello.boot_id),
        (vec![vec![192, 0, 2, 1]], vec![3; 16])
    );
    let held = session.offer(1, 1, 1, &content(1)).await;
    let Body::Ack(ack) = session.hear_answer().await else {
        panic!("no ack");
    };
    assert_eq!((ack.nonce, ack.held), (1, Some(held.into())));
    assert_eq!(ack.effective.expect("what turned out").programs, ["tcp_state"]);
    assert_eq!(agent.stand_in.applied(), [1]);
    loop {
        if let Body::Heartbeat(heartbeat) = session.hear().await {
            assert_eq!(heartbeat.held, Some(held.into()));
            assert_eq!(heartbeat.health.expect("health").records, 9);
            assert_eq!(heartbeat.addresses, None, "told by the hello");
            break;
        }
    }
    agent.stop.cancel();
    assert!(matches!(session.hear_answer().await, Body::Goodbye(_)));
    agent.stop().await;
}

#[tokio::test]
async fn who_does_how_much_is_answered_at_once_and_an_unknown_view_not_at_all() {
    let (mut controller, state, credentials) = enrolled().await;
    let agent = start(&controller, state.path(), credentials).await;
    let (mut session, _) = controller.welcomed().await;
    let ask = |id, view: i32| {
        to_agent::Body::Top(wire::TopQuestion {
            id,
            view,
            rows: 7,
            ..wire::TopQuestion::default()
        })
    };
    session.say(ask(1, 77)).await;
    session.say(ask(2, wire::TopView::Users.into())).await;
    let Body::Top(answer) = session.hear_answer().await else {
        panic!("no answer");
    };
    assert_eq!((answer.id, answer.more), (2, 7));
    agent.stop().await;
}

#[tokio::test]
async fn what_cannot_be_applied_is_nacked_and_the_former_stays_in_force() {
    let (mut controller, state, credentials) = enrolled().await;
    let agent = start(&controller, state.path(), credentials).await;
    let (mut session, _) = controller.welcomed().await;
    let held = session.offer(1, 1, 1, &content(1)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    agent.stand_in.refuse(2);
    session.offer(2, 1, 2, &content(2)).await;
    let Body::Nack(nack) = session.hear_answer().await else {
        panic!("no nack");
    };
    assert_eq!((nack.nonce, nack.held.clone()), (2, Some(held.into())));
    assert_eq!(
        (nack.section(), nack.path.as_str()),
        (wire::Section::Capture, "capture.scopes[0].netns")
    );
    assert_eq!(agent.stand_in.applied(), [1, 1], "it went back");
    session.offer(3, 0, 9, &content(3)).await;
    let Body::Nack(stale) = session.hear_answer().await else {
        panic!("no nack");
    };
    assert_eq!((stale.nonce, stale.section()), (3, wire::Section::Offer));
    agent.stop().await;
    // At the next start the last one that worked is in force, before any controller was asked.
    controller.go_away().await;
    let again = settle(&controller, state.path(), false).await.expect("kept");
    let agent = start(&controller, state.path(), again).await;
    assert_eq!(agent.stand_in.applied(), [1]);
    agent.stop().await;
}

#[tokio::test]
async fn without_a_controller_the_policy_stays_and_the_agent_comes_back() {
    let (mut controller, state, credentials) = enrolled().await;
    let mut agent = start(&controller, state.path(), credentials).await;
    let (mut session, _) = controller.welcomed().await;
    let held = session.offer(1, 1, 1, &content(1)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    controller.go_away().await;
    let news = agent.until("it notices", |news| !news.connected).await;
    assert!(news.in_force && news.why.is_some(), "{news:?}");
    controller.come_back().await;
    let (mut session, hello) = controller.welcomed().await;
    assert_eq!(hello.held, Some(held.into()));
    session.offer(1, 1, 1, &content(1)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)), "acked again");
    assert_eq!(agent.stand_in.applied(), [1], "and not done again");
    agent.stop().await;
}

#[tokio::test]
async fn stale_and_replayed_offers_change_nothing() {
    let (mut controller, state, credentials) = enrolled().await;
    let agent = start(&controller, state.path(), credentials).await;
    let (mut session, _) = controller.welcomed().await;
    let newest = session.offer(1, 2, 5, &content(5)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    // An earlier version, an earlier epoch, the same place with another content: refused, with what is in force.
    for (nonce, epoch, version, revision) in [(2, 2, 4, 4), (3, 1, 9, 9), (4, 2, 5, 6)] {
        session.offer(nonce, epoch, version, &content(revision)).await;
        let Body::Nack(nack) = session.hear_answer().await else {
            panic!("nonce {nonce} was taken");
        };
        assert_eq!((nack.nonce, nack.section()), (nonce, wire::Section::Offer));
        assert_eq!(nack.held, Some(newest.into()), "nonce {nonce}");
    }
    // The same once more: it is in force, and is not put in force again.
    session.offer(5, 2, 5, &content(5)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    assert_eq!(agent.stand_in.applied(), [5]);
    agent.stop().await;
}

#[tokio::test]
async fn a_source_id_that_the_controller_gives_is_used() {
    let (mut controller, state, credentials) = enrolled().await;
    let mut agent = start(&controller, state.path(), credentials).await;
    let mut session = controller.session().await;
    assert!(matches!(session.hear().await, Body::Hello(_)));
    session.welcome(77).await;
    agent
        .until("it is told", |news| news.source_id == SourceId::new(77))
        .await;
    session.offer(1, 1, 1, &content(1)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    assert_eq!(
        *agent.stand_in.source_ids.lock().expect("nobody panicked"),
        [77],
        "before the offer is carried out"
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_renewal_needs_no_reconnect_and_the_next_connection_shows_the_next_svid() {
    let mut controller = Scripted::start().await;
    let state = tempfile::tempdir().expect("a directory");
    controller.shared.from.store(-2, Ordering::Relaxed);
    controller.shared.to.store(4, Ordering::Relaxed);
    let credentials = settle(&controller, state.path(), true)
        .await
        .expect("an identity");
    let first_key = credentials.identity().chain()[0].clone();
    controller.shared.to.store(86_400, Ordering::Relaxed);
    let mut agent = start(&controller, state.path(), credentials).await;
    let (mut session, _) = controller.welcomed().await;
    let first = session.svid.clone();
    agent.until("it renews", |news| news.renewals == 1).await;
    session.offer(1, 1, 1, &content(1)).await;
    assert!(
        matches!(session.hear_answer().await, Body::Ack(_)),
        "the stream lives on"
    );
    assert_eq!(agent.news.borrow().sessions, 1);
    session
        .say(to_agent::Body::Ended(Ended {
            reason: EndReason::Slow.into(),
            message: "come back".into(),
        }))
        .await;
    let (session, _) = controller.welcomed().await;
    assert_ne!(session.svid.serial, first.serial);
    assert_ne!(session.svid.public_key, first.public_key, "keys rotate");
    agent.stop().await;
    let kept = settle(&controller, state.path(), false).await.expect("kept");
    assert_ne!(
        kept.identity().chain()[0],
        first_key,
        "the next one is on the disk"
    );
    keys_never_left(&controller, state.path());
}

/// No octets of the private key that is kept are in anything that was asked.
fn keys_never_left(controller: &Scripted, state: &Path) {
    let pem = std::fs::read_to_string(state.join("identity/current/key.pem")).expect("a key");
    let key = rcgen::KeyPair::from_pem(&pem).expect("PKCS#8").serialize_der();
    let asked = controller.shared.asked.lock().expect("nobody panicked");
    assert!(!asked.is_empty());
    // PKCS#8 of P-256 with ring: the scalar of 32 octets is at 36.
    let scalar = &key[36..68];
    for request in asked.iter() {
        assert!(
            !request.windows(32).any(|window| window == scalar),
            "the key was sent"
        );
    }
}

#[tokio::test]
async fn an_svid_that_ran_out_is_recovered_with_its_key_once_an_operator_approves() {
    let mut controller = Scripted::start().await;
    let state = tempfile::tempdir().expect("a directory");
    controller.shared.from.store(-600, Ordering::Relaxed);
    controller.shared.to.store(-60, Ordering::Relaxed);
    let expired = settle(&controller, state.path(), true)
        .await
        .expect("an identity");
    let key = std::fs::read(state.path().join("identity/current/key.pem")).expect("a key");
    assert!(expired.identity().validity().not_after < now());
    controller.shared.to.store(86_400, Ordering::Relaxed);
    controller.shared.awaiting.store(1, Ordering::Relaxed);
    let settled = settle(&controller, state.path(), false).await.expect("recovered");
    assert!(settled.identity().validity().not_after > now());
    assert_eq!(controller.shared.recovered.load(Ordering::Relaxed), 1);
    assert_eq!(
        std::fs::read(state.path().join("identity/current/key.pem")).expect("a key"),
        key
    );
    // One that runs out while the agent runs takes the same way.
    let running = start(&controller, state.path(), expired).await;
    let (session, _) = controller.welcomed().await;
    assert!(session.svid.not_after > now());
    running.stop().await;
}

#[tokio::test]
async fn a_token_that_is_refused_says_why_and_a_lost_answer_is_asked_for_again() {
    let controller = Scripted::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let mut token = controller.token();
    token.secret.0[0] ^= 1;
    let (stop, wrong, asker) = (CancellationToken::new(), Token::Given(token), asker(&controller));
    let place = Some(state.path().join("identity"));
    let refused = identity::settle(place, Some(&wrong), &asker, &stop, |_| {});
    let Err(SettleError::Refused { source, .. }) = refused.await else {
        panic!("a wrong secret was taken");
    };
    assert!(matches!(
        source,
        identity::AskError::Refused {
            reason: Reason::TokenUnknown,
            ..
        }
    ));
    // The answer is lost: the agent dies after it was given, before it is kept.
    let first = settle(&controller, state.path(), true)
        .await
        .expect("an identity");
    let key = std::fs::read(state.path().join("identity/current/key.pem")).expect("a key");
    std::fs::remove_dir_all(state.path().join("identity")).expect("a directory");
    std::fs::create_dir(state.path().join("identity")).expect("a directory");
    std::fs::write(state.path().join("identity/asked.pem"), key).expect("a file");
    drop(first);
    // The controller knows the token as used by this very key; a request by another key is refused.
    let other = tempfile::tempdir().expect("a directory");
    let refused = settle(&controller, other.path(), true).await;
    assert!(matches!(refused, Err(SettleError::Refused { .. })), "another key");
}

#[tokio::test]
async fn a_controller_with_another_root_than_the_pin_is_not_believed() {
    let controller = Scripted::start().await;
    let mut token = controller.token();
    token.pin.0[0] ^= 1;
    let stop = CancellationToken::new();
    let (told, mut why) = watch::channel(String::new());
    let (asker, pinned) = (asker(&controller), Token::Given(token));
    let settling = identity::settle(None, Some(&pinned), &asker, &stop, |text| {
        told.send_replace(text.to_owned());
    });
    tokio::select! {
        settled = settling => panic!("{settled:?}"),
        told = tokio::time::timeout(WAIT, why.wait_for(|why| !why.is_empty())) => {
            let told = told.expect("in time").expect("alive").clone();
            assert!(told.contains("another controller"), "{told}");
        }
    }
    assert!(
        controller
            .shared
            .asked
            .lock()
            .expect("nobody panicked")
            .is_empty(),
        "the token was not shown"
    );
}

#[tokio::test]
async fn a_controller_that_breaks_the_protocol_or_sends_the_agent_away_is_asked_less_and_less() {
    let (mut controller, state, credentials) = enrolled().await;
    let agent = start(&controller, state.path(), credentials).await;
    let mut session = controller.session().await;
    session.offer(1, 1, 1, &content(1)).await;
    assert!(session.ends().await, "an offer before the welcome");
    let (mut session, _) = controller.welcomed().await;
    session.say(to_agent::Body::Offer(wire::Offer::default())).await;
    assert!(session.ends().await, "an offer without a digest");
    let (mut session, _) = controller.welcomed().await;
    let revoked = Ended {
        reason: EndReason::Revoked.into(),
        message: "you are void".into(),
    };
    session.say(to_agent::Body::Ended(revoked)).await;
    assert!(session.ends().await);
    let soon = controller.session_within(Duration::from_millis(300)).await;
    assert!(soon.is_none(), "it comes back at once");
    assert!(
        agent
            .news
            .borrow()
            .why
            .as_ref()
            .is_some_and(|why| why.contains("you are void"))
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_damaged_assignment_is_told_nothing_is_in_force_and_the_controller_is_asked() {
    let (mut controller, state, credentials) = enrolled().await;
    std::fs::write(state.path().join("held"), b"FTHDgarbage").expect("a file");
    let agent = start(&controller, state.path(), credentials).await;
    let (mut session, hello) = controller.welcomed().await;
    assert_eq!((hello.held, agent.stand_in.applied()), (None, Vec::new()));
    assert!(state.path().join("held.damaged").exists());
    session.offer(1, 1, 4, &content(4)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    assert_eq!(agent.stand_in.applied(), [4]);
    agent.stop().await;
}

#[tokio::test]
async fn everything_that_is_kept_is_for_this_user_alone() {
    let mut controller = Scripted::start().await;
    let root = tempfile::tempdir().expect("a directory");
    let state = root.path().join("state");
    let credentials = settle(&controller, &state, true).await.expect("an identity");
    let agent = start(&controller, &state, credentials).await;
    let (mut session, _) = controller.welcomed().await;
    session.offer(1, 1, 1, &content(1)).await;
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    agent.stop().await;
    let mut found = 0;
    let mut folders = vec![state];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let metadata = std::fs::symlink_metadata(&path).expect("metadata");
            let mode = metadata.permissions().mode() & 0o777;
            if metadata.is_symlink() {
                continue;
            }
            found += 1;
            let wanted = if metadata.is_dir() { 0o700 } else { 0o600 };
            assert_eq!(mode, wanted, "{} has mode {mode:o}", path.display());
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(found >= 6, "{found} files");
}

/// An offer that comes right behind the welcome is not left lying until something else happens. One thread: whoever carries
/// out orders runs only when everybody else waits.
#[tokio::test]
async fn an_offer_right_behind_the_welcome_is_not_left_lying() {
    let (mut controller, state, credentials) = enrolled().await;
    let agent = start(&controller, state.path(), credentials).await;
    let mut session = controller.session().await;
    assert!(matches!(session.hear().await, Body::Hello(_)));
    session.welcome_with(5, 3_600_000).await;
    session.offer(1, 1, 1, &content(1)).await;
    let began = tokio::time::Instant::now();
    assert!(matches!(session.hear_answer().await, Body::Ack(_)));
    let took = began.elapsed();
    // Else it lies until the next heartbeat, in an hour.
    assert!(took < Duration::from_secs(60), "{took:?}");
    agent.stop().await;
}

/// The controller's clock is ahead: by it the SVID has run out, by the agent's own it counts for an hour yet.
#[tokio::test]
async fn an_svid_that_has_run_out_by_the_controllers_clock_alone_is_recovered() {
    let mut controller = Scripted::start().await;
    let state = tempfile::tempdir().expect("a directory");
    controller.shared.from.store(-86_400, Ordering::Relaxed);
    controller.shared.to.store(3_600, Ordering::Relaxed);
    let credentials = settle(&controller, state.path(), true)
        .await
        .expect("an identity");
    controller.shared.to.store(86_400, Ordering::Relaxed);
    controller.clock_ahead(7_200).await;
    let mut agent = start(&controller, state.path(), credentials).await;
    let (session, _) = controller.welcomed().await;
    assert!(session.svid.not_after > now() + 7_200);
    assert_eq!(controller.shared.recovered.load(Ordering::Relaxed), 1);
    agent.until("welcomed", |news| news.connected).await;
    agent.stop().await;
}

/// Another controller is in the place of the one that this agent knows: its token leads to it, whether the SVID counts or not.
#[tokio::test]
async fn a_token_of_another_controller_enrols_an_agent_that_has_an_identity() {
    for life in [86_400, -60] {
        let first = Scripted::start().await;
        first.shared.from.store(-600, Ordering::Relaxed);
        first.shared.to.store(life, Ordering::Relaxed);
        let state = tempfile::tempdir().expect("a directory");
        let known = settle(&first, state.path(), true).await.expect("an identity");
        let second = Scripted::start().await;
        let next = settle(&second, state.path(), true).await.expect("an identity");
        assert_ne!(next.identity().bundle(), known.identity().bundle());
        // The same token once more, at the next start: what is kept counts.
        let kept = settle(&second, state.path(), true).await.expect("an identity");
        assert_eq!(kept.identity().chain(), next.identity().chain());
        // Without the token it is told what stands in the way: the roots have the same name, and other keys.
        let elsewhere = tempfile::tempdir().expect("a directory");
        let mut agent = start(&second, elsewhere.path(), known).await;
        let is_told = |news: &News| {
            news.why
                .as_ref()
                .is_some_and(|why| why.contains("another controller"))
        };
        agent.until("why", is_told).await;
        agent.stop().await;
    }
}

/// The controller has forgotten this agent (a backup from before its enrolment): a new token of the same controller is used,
/// and one that is refused costs nobody the identity that it has.
#[tokio::test]
async fn a_new_token_of_the_same_controller_is_used_and_a_bad_one_costs_nothing() {
    let controller = Scripted::start().await;
    let state = tempfile::tempdir().expect("a directory");
    let known = settle(&controller, state.path(), true)
        .await
        .expect("an identity");
    let with = async |token: JoinToken| {
        let (stop, asker, token) = (CancellationToken::new(), asker(&controller), Token::Given(token));
        let place = Some(state.path().join("identity"));
        identity::settle(place, Some(&token), &asker, &stop, |_| {})
            .await
            .expect("an identity")
    };
    let mut token = controller.token();
    token.id = TokenId(2);
    token.secret.0[0] ^= 1;
    let kept = with(token.clone()).await;
    assert_eq!(kept.identity().chain(), known.identity().chain(), "refused");
    controller.forget_token();
    (token.id, token.secret) = (TokenId(3), controller.token().secret);
    let next = with(token).await;
    assert_ne!(next.identity().chain(), known.identity().chain(), "enrolled anew");
}
