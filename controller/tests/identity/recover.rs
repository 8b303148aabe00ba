use std::sync::Arc;
use std::time::Duration;

use flowtilla_controller::enrolment::RENEW_GRACE_DEFAULT;
use flowtilla_controller::fleet::thread::Known;
use flowtilla_controller::identities::{IdentityError, Revocation};
use flowtilla_controller::identity::ca::SVID_LIFE;
use flowtilla_proto::wire::enrol::Reason;
use flowtilla_proto::wire::fleet::AgentsRequest;

use super::scene::{PATIENCE, Scene, pair, reason};

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_renews_its_own_svid_when_half_its_life_is_over() {
    let scene = Scene::start().await;
    let member = scene.member().await;
    let first = scene.controller.parts().tls.current();
    scene.clock.advance(SVID_LIFE / 2 + Duration::from_secs(1));
    let renews = async {
        while Arc::ptr_eq(&first, &scene.controller.parts().tls.current()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renews)
        .await
        .expect("it renews by itself");
    let member = scene.believes(&member).await.expect("an agent renews too");
    scene.clock.advance(SVID_LIFE / 2 + Duration::from_secs(1));
    scene
        .believes(&member)
        .await
        .expect("a day has passed, and nobody has noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_clock_was_ahead_is_believed_once_it_is_set_back() {
    let scene = Scene::start().await;
    let token = scene.token();
    let first = scene.controller.parts().tls.current();
    scene.clock.set_back(Duration::from_secs(8 * 3_600));
    let renews = async {
        while Arc::ptr_eq(&first, &scene.controller.parts().tls.current()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renews)
        .await
        .expect("it does not wait for eight hours");
    let member = scene.enrol(&token).await.expect("its SVID counts");
    scene.believes(&member).await.expect("and so does what it gives");
}

/// The controller has noticed that its own SVID is void after the clock jumped.
async fn renewed(scene: &Scene) {
    scene.controller.parts().tls.renew().expect("its own SVID");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_that_ran_out_is_refused_and_comes_back_with_its_own_key() {
    let scene = Scene::start().await;
    let member = scene.member().await;
    scene.clock.advance(SVID_LIFE + Duration::from_secs(3600));
    renewed(&scene).await;
    let refused = scene.believes(&member).await.err().expect("it has run out");
    assert!(
        refused.contains("CertificateExpired") || refused.contains("transport"),
        "{refused}"
    );

    assert_eq!(
        reason(scene.recover(&member.chain[0], pair()).await),
        Reason::OtherKey
    );
    let back = scene
        .recover(&member.chain[0], member.same_pair())
        .await
        .expect("it comes back");
    assert_eq!(back.id, member.id);
    scene.believes(&back).await.expect("it is believed again");
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_grace_an_operator_decides_once() {
    let scene = Scene::start().await;
    let member = scene.member().await;
    let early = scene.identities().approve(&member.id.name, None);
    assert!(matches!(early, Err(IdentityError::Precondition(_))), "{early:?}");
    scene
        .clock
        .advance(SVID_LIFE + RENEW_GRACE_DEFAULT + Duration::from_secs(2));
    renewed(&scene).await;
    let recover = || scene.recover(&member.chain[0], member.same_pair());
    assert_eq!(reason(recover().await), Reason::AwaitingApproval);
    assert!(scene.identities().identity(&member.id).expect("known").awaiting);
    scene
        .identities()
        .approve(&member.id.name, None)
        .expect("approved");
    let back = recover().await.expect("it comes back");
    scene.believes(&back).await.expect("it is believed again");
    assert_eq!(
        reason(recover().await),
        Reason::AwaitingApproval,
        "an approval counts once"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_signed_and_who_was_revoked_does_not_come_back() {
    let scene = Scene::start().await;
    let foreign = Scene::start().await.member().await;
    let refused = scene.recover(&foreign.chain[0], foreign.same_pair()).await;
    assert_eq!(reason(refused), Reason::ForeignSvid);
    let junk = scene.recover(&[1, 2, 3], pair()).await;
    assert_eq!(reason(junk), Reason::ForeignSvid);

    let member = scene.member().await;
    let now = scene.clock.now();
    scene
        .identities()
        .revoke(&Revocation::Identity(member.id.clone()), None, now)
        .expect("revoked");
    let refused = scene.recover(&member.chain[0], member.same_pair()).await;
    assert_eq!(reason(refused), Reason::Revoked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_identity_is_refused_and_its_connections_are_cut() {
    let scene = Scene::start().await;
    let (member, other) = (scene.member().await, scene.member().await);
    let channel = scene.channel_of(&member).await.expect("a channel");
    scene.renew(channel.clone()).await.expect("it is good");
    let others = scene.channel_of(&other).await.expect("a channel");
    scene.renew(others.clone()).await.expect("it is good");
    let mut heard = scene.identities().subscribe_revocations();
    let before = scene.controller.parts().connections.count();

    let began = tokio::time::Instant::now();
    let now = scene.clock.now();
    scene
        .identities()
        .revoke(&Revocation::Identity(member.id.clone()), None, now)
        .expect("revoked");
    assert_eq!(heard.recv().await.expect("told"), member.id);
    assert_eq!(reason(scene.renew(channel).await), Reason::Revoked);
    let cut = async {
        while scene.controller.parts().connections.count() >= before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, cut)
        .await
        .expect("its connection is cut");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    let again = scene.channel_of(&member).await.expect("TLS alone does not know");
    assert_eq!(reason(scene.renew(again).await), Reason::Revoked);
    scene.renew(others).await.expect("the other one is unharmed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_void_for_good_is_forgotten_and_stays_out() {
    let scene = Scene::start().await;
    let (member, other) = (scene.member().await, scene.member().await);
    let parts = scene.controller.parts();
    let revoke = |id| {
        let now = scene.clock.now();
        scene
            .identities()
            .revoke(&Revocation::Identity(id), None, now)
            .expect("revoked");
    };
    let forget = || scene.identities().forget(scene.clock.now()).expect("a store");
    revoke(member.id.clone());
    assert_eq!(forget(), 0, "its SVID could count once more");
    scene
        .clock
        .advance(SVID_LIFE + RENEW_GRACE_DEFAULT + Duration::from_secs(2));
    renewed(&scene).await;
    assert_eq!(forget(), 1);
    // The fleet hears of a revocation by itself, a moment later, and forgets what it has heard of.
    let forgotten = async {
        loop {
            let known = scene.identities().agents().into_iter();
            let known = known.map(|(id, record)| Known::of(id, &record)).collect();
            parts.fleet.all_known(known).await;
            let agents = parts.fleet.agents(AgentsRequest::default()).await;
            let agents = agents.expect("the fleet").agents;
            if agents.len() == 1 {
                break agents;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let agents = tokio::time::timeout(PATIENCE, forgotten)
        .await
        .expect("one of them is left");
    assert_eq!(agents[0].id, other.id.name.to_string());
    assert!(scene.identities().identity(&member.id).is_none());
    assert!(
        scene.identities().identity(&other.id).is_some(),
        "it was not revoked"
    );
    let refused = scene.recover(&member.chain[0], member.same_pair()).await;
    assert_eq!(reason(refused), Reason::NotAllowed);
    revoke(other.id);
    assert_eq!(forget(), 1, "it could not count any more when it was revoked");
}
