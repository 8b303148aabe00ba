//! The files: what is there after a crash at any step, and what is refused.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flowtilla_grpc::proof::{self, CHALLENGE_OCTETS_MAX, Challenge, SIGNATURE_TAG};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::files::{FileError, Place, pem};
use super::{Credentials, Identity, IdentityError, ProveError, WallClock, new_key, prove};

/// An identity of `id` for a new key, by an authority that nobody else knows.
fn identity(id: &str) -> Identity {
    let root_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).expect("a root").der().clone();
    let issuer = Issuer::new(params, root_key);
    let key = new_key();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
    let svid = params.signed_by(&key, &issuer).expect("an SVID").der().clone();
    Identity::assemble(key, vec![svid], vec![root]).expect("an identity")
}

const AGENT: &str = "spiffe://test/agent/a";

#[test]
fn a_crash_at_any_step_leaves_a_whole_identity() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place(Some(directory.path().join("identity")));
    assert!(place.load().expect("nothing yet").is_none());
    let first = identity(AGENT);
    place.store(&first, &mut |_| Ok(())).expect("a disk");
    let mut steps = BTreeSet::new();
    for fails_at in 0.. {
        let before = place.load().expect("whole").expect("an identity");
        let next = identity(AGENT);
        let mut step = 0;
        let crashed = place
            .store(&next, &mut |name| {
                steps.insert(name);
                step += 1;
                if step > fails_at {
                    Err(io::Error::other("a crash"))
                } else {
                    Ok(())
                }
            })
            .is_err();
        let after = place.load().expect("whole").expect("an identity");
        let is = |one: &Identity| after.chain() == one.chain() && after.key_pem() == one.key_pem();
        assert!(is(&before) || is(&next), "step {fails_at}: neither of both");
        assert!(crashed || is(&next));
        if !crashed {
            break;
        }
    }
    assert_eq!(steps.len(), 6, "{steps:?}");
    let left = fs::read_dir(directory.path().join("identity"))
        .expect("a directory")
        .count();
    assert_eq!(left, 2, "one set and the link to it");
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let (one, other) = (identity(AGENT), identity(AGENT));
    let key = || KeyPair::from_pem(&one.key_pem()).expect("a key");
    let refused = |key, chain: &[CertificateDer<'static>], bundle: &[CertificateDer<'static>]| {
        Identity::assemble(key, chain.to_vec(), bundle.to_vec()).expect_err("they do not belong together")
    };
    assert!(matches!(
        refused(key(), other.chain(), one.bundle()),
        IdentityError::Key
    ));
    assert!(matches!(
        refused(key(), &[], one.bundle()),
        IdentityError::Chain(0)
    ));
    assert!(matches!(
        refused(key(), one.chain(), &[]),
        IdentityError::Roots(0)
    ));
    let garbage = CertificateDer::from(vec![1, 2, 3]);
    assert!(matches!(
        refused(key(), &[garbage], one.bundle()),
        IdentityError::Svid(_)
    ));
    assert!(
        matches!(refused(key(), one.bundle(), one.bundle()), IdentityError::Svid(_)),
        "an authority"
    );
}

#[test]
fn an_operators_svid_is_no_agents() {
    let root_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&root_key).expect("a root").der().clone();
    let issuer = Issuer::new(params, root_key);
    let key = new_key();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(
        "spiffe://test/operator/o".try_into().expect("ASCII"),
    )];
    let svid = params.signed_by(&key, &issuer).expect("an SVID").der().clone();
    assert!(matches!(
        Identity::assemble(key, vec![svid], vec![root]),
        Err(IdentityError::Role(_))
    ));
}

#[test]
fn an_svid_that_the_disk_did_not_take_is_kept_before_another_one_is_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join("identity");
    Place(Some(folder.clone()))
        .store(&identity(AGENT), &mut |_| Ok(()))
        .expect("a disk");
    let known = Place(Some(folder.clone())).load().expect("whole").expect("there");
    let credentials = Credentials::new(known, Some(folder.clone()), WallClock::system());
    let next = identity(AGENT);
    let chain = next.chain().to_vec();
    // A folder in the way of the link: nothing can be put in force.
    fs::create_dir(folder.join("current.tmp")).expect("a disk");
    credentials.renewed(next).expect_err("it cannot be kept");
    assert_ne!(credentials.identity().chain(), chain, "the former one counts");
    let next = credentials.unkept().expect("it was given");
    assert!(credentials.unkept().is_none(), "once");
    fs::remove_dir(folder.join("current.tmp")).expect("a disk");
    credentials.renewed(next).expect("a disk");
    assert_eq!(credentials.identity().chain(), chain);
    assert!(credentials.unkept().is_none());
}

#[test]
fn damage_on_the_disk_is_told_with_the_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    let folder = directory.path().join("identity");
    let place = Place(Some(folder.clone()));
    place.store(&identity(AGENT), &mut |_| Ok(())).expect("a disk");
    for file in ["key.pem", "chain.pem", "bundle.pem"] {
        let path = folder.join("current").join(file);
        let whole = fs::read(&path).expect("a file");
        for damaged in [
            &whole[..whole.len() / 2],
            b"",
            b"\xff\xfe",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            fs::write(&path, damaged).expect("a disk");
            let error = place.load().expect_err(file);
            assert!(matches!(error, FileError::Damaged { .. }), "{file}: {error}");
            assert!(error.to_string().contains("--token-file"));
        }
        fs::write(&path, whole).expect("a disk");
        assert!(place.load().expect("whole").is_some());
    }
    fs::remove_file(folder.join("current")).expect("a link");
    std::os::unix::fs::symlink("../../etc", folder.join("current")).expect("a link");
    assert!(
        matches!(place.load(), Err(FileError::Damaged { .. })),
        "a link to elsewhere is not followed"
    );
}

#[test]
fn the_key_of_an_enrolment_without_an_answer_asks_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = Place(Some(directory.path().join("identity")));
    let first = place.asking_key().expect("a key").serialize_pem();
    assert_eq!(place.asking_key().expect("a key").serialize_pem(), first);
    place.store(&identity(AGENT), &mut |_| Ok(())).expect("a disk");
    assert_ne!(
        place.asking_key().expect("a key").serialize_pem(),
        first,
        "it was used"
    );
}

#[test]
fn what_is_kept_proves_who_the_agent_is_and_anothers_chain_does_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path();
    let asked = Challenge::new("remove", "web-1", [1; 32]);
    let text = asked.text().as_bytes();
    let none = prove(state, text).expect_err("nothing is there");
    assert!(matches!(none, ProveError::None), "{none}");
    let ours = identity(AGENT);
    Place::below(state).store(&ours, &mut |_| Ok(())).expect("a disk");

    let said = prove(state, text).expect("it is proven");
    assert!(!said.contains("PRIVATE"), "{said}");
    let (chain, signature) = said
        .split_once(&format!("-----BEGIN {SIGNATURE_TAG}-----"))
        .expect("both");
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .expect("a chain");
    let lines: String = signature
        .lines()
        .take_while(|line| !line.starts_with('-'))
        .collect();
    let signature = STANDARD.decode(lines).expect("base64");
    let facts = proof::verify(&asked, &chain, &signature, ours.bundle(), 0).expect("it is proven");
    assert_eq!(facts.id.to_string(), AGENT);

    // Whoever may write here puts another agent's chain beside the key.
    let other = identity("spiffe://test/agent/b");
    let chain: String = other.chain().iter().map(|der| pem("CERTIFICATE", der)).collect();
    fs::write(state.join("identity/current/chain.pem"), chain).expect("a disk");
    let refused = prove(state, text).expect_err("it is another's");
    assert!(
        matches!(refused, ProveError::Files(FileError::Damaged { .. })),
        "{refused}"
    );
    for wrong in [&[][..], &[b'x'; CHALLENGE_OCTETS_MAX + 1]] {
        let refused = prove(state, wrong).expect_err("no challenge");
        assert!(matches!(refused, ProveError::Challenge(_)), "{refused}");
    }
}

#[test]
fn nobody_reads_the_key_from_a_log() {
    let one = identity(AGENT);
    let shown = format!("{one:?}");
    assert!(
        shown.contains(AGENT.rsplit('/').next().expect("a name")) && !shown.contains("PRIVATE"),
        "{shown}"
    );
}
