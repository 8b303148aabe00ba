use std::time::Duration;

use flowtilla_controller::enrolment::{Refusal, TOKEN_LIFE_MAX, TokenOrder};
use flowtilla_controller::identities::{IdentityError, Revocation};
use flowtilla_proto::spiffe::SpiffeId;
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::enrol::Reason;

use super::scene::{Scene, csr, pair, reason};

fn token(scene: &Scene, operator: &str, by: Option<&SpiffeId>) -> Result<JoinToken, IdentityError> {
    let order = TokenOrder {
        operator: operator.into(),
        life: Some(TOKEN_LIFE_MAX),
        ..TokenOrder::default()
    };
    let made = scene.identities().create_token(&order, by, scene.clock.now());
    made.map(|(token, _)| token)
}

async fn operator(scene: &Scene, name: &str, by: Option<&SpiffeId>) -> SpiffeId {
    let token = token(scene, name, by).expect("a token");
    scene.enrol(&token).await.expect("an identity").id
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tokens_of_a_revoked_operator_let_nobody_in() {
    let scene = Scene::start().await;
    let admin = operator(&scene, "admin", None).await;
    let bob = operator(&scene, "bob", Some(&admin)).await;
    let mal = operator(&scene, "mal", Some(&bob)).await;
    let by_bob = [
        token(&scene, "eve", Some(&bob)).expect("a new name"),
        token(&scene, "", Some(&bob)).expect("an agent's"),
    ];
    let by_admin = token(&scene, "dan", Some(&admin)).expect("a new name");
    let revoke = || {
        let what = Revocation::Identity(bob.clone());
        scene.identities().revoke(&what, Some(&admin), scene.clock.now())
    };
    let revoked = revoke().expect("known");
    assert_eq!((revoked.tokens, revoked.admitted), (2, vec![mal]));
    for token in &by_bob {
        assert_eq!(reason(scene.enrol(token).await), Reason::Revoked);
    }
    assert!(matches!(
        token(&scene, "", Some(&bob)),
        Err(IdentityError::Refused(_))
    ));
    scene.enrol(&by_admin).await.expect("admin stands well");
    let facts = scene.identities().tokens();
    let theirs = |by: &SpiffeId| {
        facts
            .iter()
            .filter(|facts| facts.made_by == by.to_string())
            .count()
    };
    assert_eq!((theirs(&bob), theirs(&admin)), (3, 2));
    // Once more says who is left, and that is all.
    let again = revoke().expect("known");
    assert_eq!((again.tokens, again.admitted.len()), (0, 1));
    // Nor when nobody knows any more who that was.
    scene.clock.advance(Duration::from_secs(20 * 24 * 3_600));
    scene.identities().forget(scene.clock.now()).expect("forgotten");
    assert!(scene.identities().identity(&bob).is_none());
    let asked = (by_bob[0].expose(), csr(&pair()));
    let refused = scene
        .identities()
        .enrol(&asked.0, &asked.1, "h", scene.clock.now());
    assert!(matches!(
        refused,
        Err(IdentityError::Refused(Refusal::TokenRevoked))
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_a_token_for_the_name_of_another_operator() {
    let scene = Scene::start().await;
    let admin = operator(&scene, "admin", None).await;
    let bob = operator(&scene, "bob", Some(&admin)).await;
    let refused = token(&scene, "admin", Some(&bob)).expect_err("the name is another's");
    assert!(
        refused.to_string().contains("flowtilla-controller token"),
        "{refused}"
    );
    for by in [Some(&admin), None] {
        let own = token(&scene, "admin", by).expect("a token for another machine");
        assert_eq!(scene.enrol(&own).await.expect("let in").id, admin);
    }
    // A name that was free when the token was made is not free any more.
    let early = token(&scene, "eve", Some(&bob)).expect("a new name");
    let eve = operator(&scene, "eve", Some(&admin)).await;
    assert_eq!(reason(scene.enrol(&early).await), Reason::NotAllowed);
    let record = scene.identities().identity(&eve).expect("known");
    assert_eq!(record.admitted_by, admin.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_operator_is_revoked_on_the_controllers_host_only() {
    let scene = Scene::start().await;
    let admin = operator(&scene, "admin", None).await;
    let bob = operator(&scene, "bob", Some(&admin)).await;
    let revoke = |id: &SpiffeId, by: Option<&SpiffeId>| {
        let what = Revocation::Identity(id.clone());
        scene.identities().revoke(&what, by, scene.clock.now())
    };
    revoke(&bob, Some(&bob)).expect("there is another one");
    let refused = revoke(&admin, Some(&admin)).expect_err("nobody would be left");
    assert!(refused.to_string().contains("last operator"), "{refused}");
    scene
        .identities()
        .check(&admin, 0, scene.clock.now())
        .expect("in still");
    revoke(&admin, None).expect("the controller's host may");
}
