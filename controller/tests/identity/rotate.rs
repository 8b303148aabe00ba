use flowtilla_controller::identities::IdentityError;
use flowtilla_controller::identity::ca::{Origin, RotateStep};
use flowtilla_controller::identity::tls::accept::Limits;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use super::scene::{PATIENCE, Scene, pair};

async fn step(scene: &Scene, step: RotateStep, force: bool) -> Result<usize, IdentityError> {
    let mut shown = scene.controller.parts().tls.current();
    let roots = scene.identities().rotate_ca(step, force, scene.clock.now())?;
    let counts = async {
        loop {
            let now = scene.controller.parts().tls.current();
            if !std::sync::Arc::ptr_eq(&now, &shown) {
                break;
            }
            shown = now;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counts)
        .await
        .expect("the next connection uses it");
    Ok(roots.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_changes_while_both_are_trusted() {
    let scene = Scene::start().await;
    let early = scene.member().await;
    let slow = scene.member().await;
    let old_token = scene.token();
    assert!(matches!(
        step(&scene, RotateStep::Activate, false).await,
        Err(IdentityError::Precondition(_))
    ));

    assert_eq!(
        step(&scene, RotateStep::Prepare, false).await.expect("prepared"),
        2
    );
    assert!(matches!(
        step(&scene, RotateStep::Prepare, false).await,
        Err(IdentityError::Precondition(_))
    ));
    let between = scene.member().await;
    assert_eq!(between.bundle.len(), 2);

    assert_eq!(
        step(&scene, RotateStep::Activate, false)
            .await
            .expect("activated"),
        2
    );
    // These know the first root only: the second is signed by it.
    let early = scene.believes(&early).await.expect("an SVID of the first root");
    assert_eq!(early.bundle.len(), 2);
    let old = scene
        .enrol(&old_token)
        .await
        .expect("a token that pins the first root");
    let new = scene.member().await;
    for member in [&between, &old, &new, &early] {
        scene.believes(member).await.expect("both roots are trusted");
    }

    let refused = step(&scene, RotateStep::Retire, false)
        .await
        .expect_err("one has not renewed");
    assert!(refused.to_string().contains(slow.id.name.as_str()), "{refused}");
    assert_eq!(step(&scene, RotateStep::Retire, true).await.expect("forced"), 1);
    scene
        .believes(&slow)
        .await
        .err()
        .expect("the first root is trusted no more");
    let new = scene.believes(&new).await.expect("the second one is");
    assert_eq!(new.bundle.len(), 1);
    scene.believes(&early).await.expect("who renewed in time goes on");
    scene.member().await;
    let keys = std::fs::read_dir(scene.directory.path().join("state/ca"))
        .expect("there")
        .count();
    assert_eq!(keys, 1, "the key of the retired root is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_own_intermediate_signs() {
    let (chain, key) = own_ca(IsCa::Ca(BasicConstraints::Constrained(0)));
    let origin = Origin::Brought {
        chain: chain.clone().into_bytes(),
        key: key.into_bytes(),
    };
    let scene = Scene::start_with(&origin, Limits::default()).await;
    let member = scene.member().await;
    assert_eq!(member.chain.len(), 2, "the SVID and the intermediate");
    scene.believes(&member).await.expect("it is believed");
    let refused = step(&scene, RotateStep::Prepare, false)
        .await
        .expect_err("no next CA was brought");
    assert!(refused.to_string().contains("next.pem"), "{refused}");

    let ca = scene.directory.path().join("state/ca");
    let (chain, key) = own_ca(IsCa::Ca(BasicConstraints::Unconstrained));
    std::fs::write(ca.join("next.pem"), chain).expect("ours");
    flowtilla_controller::state::write_private(&ca.join("next.key"), key.as_bytes()).expect("ours");
    step(&scene, RotateStep::Prepare, false).await.expect("prepared");
    let member = scene
        .believes(&member)
        .await
        .expect("it renews and hears of the next root");
    step(&scene, RotateStep::Activate, false)
        .await
        .expect("activated");
    let member = scene.believes(&member).await.expect("it believes the next root");
    step(&scene, RotateStep::Retire, false)
        .await
        .expect("everybody has renewed");
    scene.believes(&member).await.expect("it is believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_that_cannot_sign_svids_is_refused_with_a_remedy() {
    let (chain, key) = own_ca(IsCa::NoCa);
    let (_, other_key) = own_ca(IsCa::Ca(BasicConstraints::Constrained(0)));
    let (good, good_key) = own_ca(IsCa::Ca(BasicConstraints::Constrained(0)));
    let first = good
        .split_inclusive("-----END CERTIFICATE-----\n")
        .next()
        .expect("one")
        .to_owned();
    for (chain, key, word) in [
        (chain, key, "basicConstraints"),
        (good.clone(), other_key, "not that of the first certificate"),
        (first, good_key, "append the certificates up to your root"),
        (good.clone(), "no key".into(), "openssl pkcs8"),
        (String::new(), pair().serialize_pem(), "no certificate"),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let origin = Origin::Brought {
            chain: chain.into_bytes(),
            key: key.into_bytes(),
        };
        let now = flowtilla_controller::clock::Clock::system().now();
        let state = directory.path().join("state");
        let domain = super::scene::domain();
        let made = flowtilla_controller::setup::create(&state, &domain, &origin, PATIENCE, now);
        let error = made.err().expect("refused").to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

/// A root, and an intermediate under it: the chain and the intermediate's key, PEM.
fn own_ca(intermediate: IsCa) -> (String, String) {
    let params = |name: &str, is_ca| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = is_ca;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params
    };
    let root_pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
    let pin = &root_pair.public_key_raw()[1..5];
    let root_params = params(
        &format!("root {pin:?}"),
        IsCa::Ca(BasicConstraints::Unconstrained),
    );
    let root = root_params.self_signed(&root_pair).expect("a root");
    let pair = KeyPair::generate().expect("a key");
    let signed = params("intermediate", intermediate)
        .signed_by(&pair, &Issuer::from_params(&root_params, &root_pair))
        .expect("an intermediate");
    (
        format!("{}{}", signed.pem(), root.pem()).replace("\r\n", "\n"),
        pair.serialize_pem(),
    )
}
