use std::sync::Arc;

use flowtilla_controller::enrolment::TokenOrder;
use flowtilla_controller::identities::IdentityError;
use flowtilla_controller::identity::ca::{Origin, RotateStep};
use flowtilla_controller::identity::tls::accept::Limits;
use flowtilla_grpc::trust::{self, CONTROLLER_NAME};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::scene::{Member, PATIENCE, Scene, pair};

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
    assert!(!refused.to_string().contains("join tokens"), "{refused}");
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
async fn a_root_is_not_retired_while_an_unused_token_pins_it() {
    let scene = Scene::start().await;
    let token = scene.token();
    for next in [RotateStep::Prepare, RotateStep::Activate] {
        step(&scene, next, false).await.expect("in its turn");
    }
    let newer = scene.token();
    let refused = step(&scene, RotateStep::Retire, false).await;
    let told = refused.expect_err("a host may have it yet").to_string();
    assert!(
        told.starts_with("1 join tokens that nobody has used pin the root")
            && told.contains(&token.id.to_string()),
        "{told}"
    );
    scene.enrol(&token).await.expect("it is used while it can be");
    assert_eq!(step(&scene, RotateStep::Retire, false).await.expect("retired"), 1);
    scene.enrol(&newer).await.expect("it pins the root that signs");
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

/// Another intermediate of the same root stands for any that the operator's CA has for other ends.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_operators_root_signs_beside_is_no_svid() {
    let root = OwnRoot::new();
    let (chain, key) = root.intermediate(IsCa::Ca(BasicConstraints::Constrained(0)));
    let (beside, beside_key) = root.intermediate(IsCa::Ca(BasicConstraints::Constrained(0)));
    let origin = Origin::Brought {
        chain: chain.into_bytes(),
        key: key.into_bytes(),
    };
    let scene = Scene::start_with(&origin, Limits::default()).await;
    let order = TokenOrder {
        operator: "admin".into(),
        ..TokenOrder::default()
    };
    let made = scene.identities().create_token(&order, None, scene.clock.now());
    let token = made.expect("a token").0;
    let admin = scene.enrol(&token).await.expect("an identity");
    scene.believes(&admin).await.expect("ours is believed");

    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(beside.as_bytes())
        .collect::<Result<_, _>>()
        .expect("PEM");
    let beside_pair = KeyPair::from_pem(&beside_key).expect("a key");
    let issuer = Issuer::from_ca_cert_der(&certificates[0], beside_pair).expect("an authority");
    let leaf = |id: &str| {
        let (pair, mut params) = (pair(), CertificateParams::default());
        let uri = format!("spiffe://fleet.example/{id}").try_into().expect("ASCII");
        let name = CONTROLLER_NAME.try_into().expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(uri), SanType::DnsName(name)];
        let der = params.signed_by(&pair, &issuer).expect("signed").der().clone();
        (pair, [vec![der], certificates.clone()].concat())
    };
    let (liars_pair, chain) = leaf("operator/admin");
    let liar = Member {
        id: admin.id.clone(),
        chain,
        bundle: admin.bundle.clone(),
        pair: liars_pair,
    };
    scene.believes(&liar).await.err().expect("no SVID of ours");

    // Nor is a controller one that shows such a certificate, whatever else it shows.
    let (controllers_pair, mut chain) = leaf("controller/one");
    chain.extend(admin.bundle.clone());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(controllers_pair.serialize_der()));
    let shown = rustls::ServerConfig::builder_with_provider(trust::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has it")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    let posing = Arc::new(shown);
    let believers = [
        trust::with_bundle(&admin.bundle, None).expect("a bundle"),
        trust::with_pin(scene.token().pin.0),
    ];
    for believer in believers {
        let error = greet(believer, &posing).expect_err("it is not the controller");
        assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");
    }
    // The same with what the controller itself shows.
    let real = scene.controller.parts().tls.current();
    for believer in [
        trust::with_bundle(&admin.bundle, None).expect("a bundle"),
        trust::with_pin(scene.token().pin.0),
    ] {
        greet(believer, &real).expect("it is the controller");
    }
}

/// A handshake in memory; what the calling side says to it.
fn greet(caller: rustls::ClientConfig, answering: &Arc<rustls::ServerConfig>) -> Result<(), rustls::Error> {
    let name = rustls::pki_types::ServerName::try_from(CONTROLLER_NAME).expect("a name");
    let mut caller = rustls::ClientConnection::new(Arc::new(caller), name).expect("a caller");
    let mut answering = rustls::ServerConnection::new(Arc::clone(answering)).expect("an end");
    while caller.is_handshaking() {
        let mut octets = Vec::new();
        while caller.wants_write() {
            caller.write_tls(&mut octets).expect("memory");
        }
        answering.read_tls(&mut octets.as_slice()).expect("memory");
        answering.process_new_packets()?;
        let mut octets = Vec::new();
        while answering.wants_write() {
            answering.write_tls(&mut octets).expect("memory");
        }
        caller.read_tls(&mut octets.as_slice()).expect("memory");
        caller.process_new_packets()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_alone_is_no_ca_for_a_controller() {
    let root = OwnRoot::new();
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::Brought {
        chain: root.pem.into_bytes(),
        key: root.pair.serialize_pem().into_bytes(),
    };
    let now = flowtilla_controller::clock::Clock::system().now();
    let (state, domain) = (directory.path().join("state"), super::scene::domain());
    let made = flowtilla_controller::setup::create(&state, &domain, &origin, PATIENCE, now);
    let error = made.err().expect("refused").to_string();
    assert!(error.contains("intermediate"), "{error}");
}

/// A root, and an intermediate under it: the chain and the intermediate's key, PEM.
fn own_ca(intermediate: IsCa) -> (String, String) {
    OwnRoot::new().intermediate(intermediate)
}

/// The root of an operator's own CA.
struct OwnRoot {
    pair: KeyPair,
    params: CertificateParams,
    pem: String,
}

impl OwnRoot {
    fn new() -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("a key");
        let pin = &pair.public_key_raw()[1..5];
        let params = authority(
            &format!("root {pin:?}"),
            IsCa::Ca(BasicConstraints::Unconstrained),
        );
        let pem = params.self_signed(&pair).expect("a root").pem();
        Self { pair, params, pem }
    }

    /// The chain from an intermediate on, and the intermediate's key, PEM.
    fn intermediate(&self, is_ca: IsCa) -> (String, String) {
        let pair = KeyPair::generate().expect("a key");
        let signed = authority("intermediate", is_ca)
            .signed_by(&pair, &Issuer::from_params(&self.params, &self.pair))
            .expect("an intermediate");
        (
            format!("{}{}", signed.pem(), self.pem).replace("\r\n", "\n"),
            pair.serialize_pem(),
        )
    }
}

fn authority(name: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params
}
