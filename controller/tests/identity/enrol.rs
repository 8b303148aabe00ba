use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_controller::enrolment::TokenOrder;
use flowtilla_controller::identities::{IdentityError, Revocation};
use flowtilla_controller::setup;
use flowtilla_grpc::enrol::enrolment_client::EnrolmentClient;
use flowtilla_proto::spiffe::Role;
use flowtilla_proto::token::{JoinToken, RootPin, TokenId, TokenSecret};
use flowtilla_proto::wire::enrol::{EnrolRequest, Reason};

use super::scene::{Scene, csr, pair, reason};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_gives_an_identity_and_a_renewal_keeps_the_name_and_changes_the_key() {
    let scene = Scene::start().await;
    let member = scene.member().await;
    assert_eq!(member.id.role, Role::Agent);
    assert!(
        member.id.name.as_str().starts_with("web-1.example-"),
        "{}",
        member.id
    );
    let names = x509_parser::parse_x509_certificate(&member.chain[0])
        .expect("a certificate")
        .1;
    let names = names
        .subject_alternative_name()
        .expect("readable")
        .expect("there");
    assert_eq!(
        names.value.general_names.len(),
        1,
        "the request's names are ignored"
    );

    let channel = scene.channel_of(&member).await.expect("a channel");
    let mut last = scene.renew(channel.clone()).await.expect("a renewal");
    for _ in 0..5 {
        let next = scene
            .renew(channel.clone())
            .await
            .expect("a renewal on the same channel");
        assert_eq!(next.id, member.id);
        assert_ne!(next.facts().serial, last.facts().serial);
        assert_ne!(next.facts().public_key, last.facts().public_key);
        last = next;
    }
    scene.believes(&last).await.expect("the newest SVID is believed");
    assert_eq!(scene.identities().agents().len(), 1);
    scene.controller.stop().await.expect("a stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_good_is_refused_with_its_reason() {
    let scene = Scene::start().await;
    let used = scene.token();
    scene.enrol(&used).await.expect("an identity");
    assert_eq!(reason(scene.enrol(&used).await), Reason::TokenUsed);

    let good = scene.token();
    let forged = JoinToken {
        secret: TokenSecret([7; 32]),
        ..good.clone()
    };
    assert_eq!(reason(scene.enrol(&forged).await), Reason::TokenUnknown);
    let unknown = JoinToken {
        id: TokenId(good.id.0 ^ 1),
        ..good.clone()
    };
    assert_eq!(reason(scene.enrol(&unknown).await), Reason::TokenUnknown);

    let revoked = scene.token();
    let now = scene.clock.now();
    scene
        .identities()
        .revoke(&Revocation::Token(revoked.id), None, now)
        .expect("taken back");
    assert_eq!(reason(scene.enrol(&revoked).await), Reason::Revoked);
    let error = scene.identities().revoke(&Revocation::Token(used.id), None, now);
    assert!(matches!(error, Err(IdentityError::Precondition(_))), "{error:?}");

    scene.clock.advance(Duration::from_secs(3601));
    assert_eq!(reason(scene.enrol(&good).await), Reason::TokenExpired);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_token_or_no_request_is_refused_with_its_reason() {
    let scene = Scene::start().await;
    let token = scene.token();
    let channel = scene.channel(scene.pinned(&token)).await.expect("a channel");
    let mut client = EnrolmentClient::new(channel);
    let good = EnrolRequest {
        token: token.expose(),
        csr: csr(&pair()),
        ..EnrolRequest::default()
    };
    for text in [
        "",
        "flowtilla1",
        &good.token[..good.token.len() - 1],
        "flowtilla2.0.0.0",
    ] {
        let request = EnrolRequest {
            token: text.to_owned(),
            ..good.clone()
        };
        assert_eq!(
            reason(client.enrol(request).await),
            Reason::TokenMalformed,
            "{text}"
        );
    }
    let mut cut = good.csr.clone();
    cut.pop();
    for csr in [Vec::new(), vec![0; 100], cut] {
        let request = EnrolRequest { csr, ..good.clone() };
        assert_eq!(reason(client.enrol(request).await), Reason::Csr);
    }
    client.enrol(good).await.expect("the token is still good");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_without_the_pinned_root_is_not_told_the_token() {
    let scene = Scene::start().await;
    let token = JoinToken {
        pin: RootPin([7; 32]),
        ..scene.token()
    };
    let error = scene
        .channel(scene.pinned(&token))
        .await
        .expect_err("another root");
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_twenty_show_at_once_gives_one_identity() {
    let scene = Arc::new(Scene::start().await);
    let token = scene.token();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (scene, token) = (Arc::clone(&scene), token.clone());
        tasks.spawn(async move {
            scene
                .enrol(&token)
                .await
                .map_err(|status| reason::<()>(Err(status)))
        });
    }
    let outcomes = tasks.join_all().await;
    let given = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let used = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Err(Reason::TokenUsed)))
        .count();
    assert_eq!((given, used), (1, 19));
    assert_eq!(scene.identities().agents().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_did_not_hear_the_answer_gets_the_same_identity_with_the_same_key() {
    let scene = Scene::start().await;
    let token = scene.token();
    let first = scene.enrol(&token).await.expect("an identity");
    let again = scene
        .enrol_with(&token, first.same_pair())
        .await
        .expect("the same identity");
    assert_eq!(again.id, first.id);
    scene.believes(&again).await.expect("it is believed");
    assert_eq!(scene.identities().agents().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_has_the_name_that_the_token_has() {
    let scene = Scene::start().await;
    let order = TokenOrder {
        operator: "ada".into(),
        ..TokenOrder::default()
    };
    let make = || scene.identities().create_token(&order, None, scene.clock.now());
    let member = scene
        .enrol(&make().expect("a token").0)
        .await
        .expect("an identity");
    assert_eq!(member.id.to_string(), "spiffe://fleet.example/operator/ada");
    let waiting = make().expect("a token for another machine").0;
    scene
        .identities()
        .revoke(&Revocation::Identity(member.id), None, scene.clock.now())
        .expect("revoked");
    assert_eq!(reason(scene.enrol(&waiting).await), Reason::Revoked);
    assert!(matches!(make(), Err(IdentityError::Precondition(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_for_their_owner_alone_and_a_key_that_others_could_read_is_refused() {
    let scene = Scene::start().await;
    let state = scene.directory.path().join("state");
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    let key = state.join("ca/0000000000000001.key");
    assert_eq!(mode(&key), 0o600);
    for directory in [state.clone(), state.join("ca"), state.join("store")] {
        assert_eq!(mode(&directory), 0o700, "{directory:?}");
    }
    let second = setup::open(&state, Duration::ZERO)
        .err()
        .expect("in use")
        .to_string();
    let process = std::process::id().to_string();
    assert!(second.contains("in use") && second.contains(&process), "{second}");
    scene.controller.stop().await.expect("a stop");

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("ours");
    let error = setup::open(&state, Duration::ZERO)
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("ours");
    setup::open(&state, Duration::ZERO).expect("accepted");
}
