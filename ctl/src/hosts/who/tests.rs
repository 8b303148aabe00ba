use flowtilla_grpc::proof::{Challenge, NONCE_OCTETS, SIGNATURE_TAG, signed};
use flowtilla_proto::spiffe::TrustDomain;
use pem::Pem;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, SigningKey as _};

use super::*;

const NOW_S: i64 = 1_578_000_000; // In January 2020, as are the SVIDs.

struct Fleet {
    trusted: Trusted,
    issuer: Issuer<'static, KeyPair>,
}

/// An agent's key and SVID.
struct Identity {
    key: KeyPair,
    svid: CertificateDer<'static>,
}

impl Fleet {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signer = params.self_signed(&key).expect("a signer").der().clone();
        Self {
            trusted: Trusted {
                domain: TrustDomain::parse("fleet.test").expect("a name"),
                signers: vec![signer],
            },
            issuer: Issuer::new(params, key),
        }
    }

    fn identity(&self, id: &str) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 11);
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        let svid = params.signed_by(&key, &self.issuer).expect("an SVID");
        Identity {
            key,
            svid: svid.der().clone(),
        }
    }

    fn judge(&self, said: &str, asked: &Challenge, agent: &Agent) -> Who {
        Shown::read(None, said).judge(asked, &self.trusted, Some(agent), NOW_S)
    }
}

impl Identity {
    /// What the agent's program says for a challenge, with this chain.
    fn prove(&self, asked: &Challenge, svid: &CertificateDer<'static>) -> String {
        let signature = self.key.sign(&signed(asked.text().as_bytes())).expect("signed");
        pem::encode_many(&[
            Pem::new("CERTIFICATE", svid.to_vec()),
            Pem::new(SIGNATURE_TAG, signature),
        ])
    }

    /// What the controller knows of it.
    fn known(&self, id: &str) -> Agent {
        Agent {
            id: id.to_owned(),
            state: AgentState::Connected.into(),
            svid_serials: vec![vec![1], svid::read(&self.svid).expect("an SVID").serial],
            ..Agent::default()
        }
    }
}

fn asked(host: &str, nonce: u8) -> Challenge {
    Challenge::new("remove", host, [nonce; NONCE_OCTETS])
}

fn refuted(who: Who) -> String {
    match who {
        Who::Claims(agent, Unproven::Refuted(why)) => format!("{agent}: {why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_is_its_own_agent_and_no_other() {
    let fleet = Fleet::new();
    let (ours, other) = (
        fleet.identity("spiffe://fleet.test/agent/a"),
        fleet.identity("spiffe://fleet.test/agent/b"),
    );
    let now = asked("h0", 1);
    let own = fleet.judge(&ours.prove(&now, &ours.svid), &now, &ours.known("a"));
    assert_eq!(own, Who::Proven("a".to_owned()));

    // Another agent's chain, signed with the key that is there.
    let foreign = fleet.judge(&ours.prove(&now, &other.svid), &now, &other.known("b"));
    assert_eq!(
        refuted(foreign),
        "b: the signature is not by the SVID's key, or not for this question"
    );
    // What that agent has answered at another host, or before.
    for stale in [asked("h1", 1), asked("h0", 2)] {
        let replayed = fleet.judge(&other.prove(&stale, &other.svid), &now, &other.known("b"));
        assert!(refuted(replayed).starts_with("b: the signature"));
    }
    // An identity of that name by somebody else.
    let forged = Fleet::new().identity("spiffe://fleet.test/agent/b");
    let strange = fleet.judge(&forged.prove(&now, &forged.svid), &now, &forged.known("b"));
    assert_eq!(
        refuted(strange),
        "b: its SVID is of no signer that is trusted here"
    );
    // A key of that agent that was left lying about.
    let former = fleet.identity("spiffe://fleet.test/agent/b");
    let old = fleet.judge(&former.prove(&now, &former.svid), &now, &other.known("b"));
    assert_eq!(
        refuted(old),
        "b: its SVID is none of the agent's newest, which the controller tells; if that was restored from a backup, wait until the \
         agent has renewed its SVID"
    );
}

#[test]
fn who_counts_for_nothing_is_nobody() {
    let fleet = Fleet::new();
    let now = asked("h0", 1);
    let judge = |id: &str, state| {
        let identity = fleet.identity(id);
        let mut known = identity.known("a");
        known.state = i32::from(state);
        fleet.judge(&identity.prove(&now, &identity.svid), &now, &known)
    };
    let ours = "spiffe://fleet.test/agent/a";
    assert_eq!(judge(ours, AgentState::Offline), Who::Proven("a".to_owned()));
    assert_eq!(judge(ours, AgentState::Revoked), Who::Nobody);
    let elsewhere = "spiffe://other.test/agent/a";
    assert_eq!(judge(elsewhere, AgentState::Connected), Who::Nobody);
    for (id, other) in [(ours, None), (elsewhere, Some("other.test"))] {
        let identity = fleet.identity(id);
        let shown = Shown::read(None, &identity.prove(&now, &identity.svid));
        let told = shown.other_fleet(&fleet.trusted.domain);
        assert_eq!(told.map(|domain| domain.to_string()), other.map(str::to_owned));
    }
    let operator = "spiffe://fleet.test/operator/a";
    assert_eq!(judge(operator, AgentState::Connected), Who::Nobody);
    let identity = fleet.identity(ours);
    let said = identity.prove(&now, &identity.svid);
    assert_eq!(
        Shown::read(None, &said).judge(&now, &fleet.trusted, None, NOW_S),
        Who::Nobody
    );
    assert_eq!(fleet.judge("", &now, &identity.known("a")), Who::Nobody);
}

#[test]
fn without_a_proof_it_is_told_why() {
    let fleet = Fleet::new();
    let now = asked("h0", 1);
    let identity = fleet.identity("spiffe://fleet.test/agent/a");
    let chain = pem::encode(&Pem::new("CERTIFICATE", identity.svid.to_vec()));
    for (unproven, why) in [
        ("2 For more information, try '--help'.", Unproven::Older),
        ("124 ", Unproven::Silent("its program took too long".to_owned())),
        (
            "1 flowtilla-agent: \x1b[31mno",
            Unproven::Silent("its program ended with exit code 1: flowtilla-agent: \\u{1b}[31mno".to_owned()),
        ),
    ] {
        let shown = Shown::read(Some(unproven), &chain);
        let who = shown.judge(&now, &fleet.trusted, Some(&identity.known("a")), NOW_S);
        assert_eq!(who, Who::Claims("a".to_owned(), why), "{unproven}");
    }
    let older = Agent {
        svid_serials: Vec::new(),
        ..identity.known("a")
    };
    let who = fleet.judge(&identity.prove(&now, &identity.svid), &now, &older);
    assert_eq!(who, Who::Claims("a".to_owned(), Unproven::Controller));
}
