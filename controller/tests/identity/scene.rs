//! A controller in a directory of its own, and those who call it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_controller::clock::Clock;
use flowtilla_controller::enrolment::TokenOrder;
use flowtilla_controller::identities::Identities;
use flowtilla_controller::identity::ca::Origin;
use flowtilla_controller::identity::tls::accept::Limits;
use flowtilla_controller::run::{Controller, Options};
use flowtilla_controller::setup;
use flowtilla_grpc::channel::{Address, connect};
use flowtilla_grpc::enrol::enrolment_client::EnrolmentClient;
use flowtilla_grpc::{svid, trust};
use flowtilla_proto::spiffe::{SpiffeId, TrustDomain};
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::enrol::{self, Reason};
use prost::Message as _;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

/// Longest wait for anything that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Scene {
    pub(crate) controller: Controller,
    pub(crate) clock: Clock,
    pub(crate) directory: TempDir,
}

/// Somebody with an identity.
pub(crate) struct Member {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) bundle: Vec<CertificateDer<'static>>,
    pub(crate) pair: rcgen::KeyPair,
}

pub(crate) fn domain() -> TrustDomain {
    TrustDomain::parse("fleet.example").expect("a domain")
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

impl Scene {
    pub(crate) async fn start() -> Self {
        Self::start_with(&Origin::Own, Limits::default()).await
    }

    pub(crate) async fn start_with(origin: &Origin, limits: Limits) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = Clock::system();
        let state = directory.path().join("state");
        let mut options = Options::new(state.clone(), vec![loopback()]);
        options.limits = limits;
        options.clock = clock.clone();
        let opened =
            setup::create(&state, &domain(), origin, options.renew_grace, clock.now()).expect("a state");
        Self {
            controller: Controller::start_on(opened, options).await.expect("a controller"),
            clock,
            directory,
        }
    }

    /// Another controller on this state, by the same clock.
    pub(crate) async fn beside(&self, state: PathBuf) -> Self {
        let mut options = Options::new(state, vec![loopback()]);
        options.clock = self.clock.clone();
        Self {
            controller: Controller::start(options).await.expect("a controller"),
            clock: self.clock.clone(),
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    pub(crate) fn identities(&self) -> &Arc<Identities> {
        &self.controller.parts().identities
    }

    pub(crate) fn address(&self) -> Address {
        Address::parse(&self.controller.address().to_string()).expect("an address")
    }

    pub(crate) fn token(&self) -> JoinToken {
        let order = TokenOrder::default();
        let made = self.identities().create_token(&order, None, self.clock.now());
        made.expect("a token").0
    }

    /// TLS of somebody who has but a token.
    pub(crate) fn pinned(&self, token: &JoinToken) -> ClientConfig {
        let mut tls = trust::with_pin(token.pin.0);
        tls.time_provider = Arc::new(self.clock.clone());
        tls
    }

    pub(crate) async fn channel(&self, tls: ClientConfig) -> anyhow::Result<Channel> {
        Ok(connect(&self.address(), Arc::new(tls)).await?)
    }

    /// A channel of somebody with an identity.
    pub(crate) async fn channel_of(&self, member: &Member) -> anyhow::Result<Channel> {
        self.channel(self.tls_of(member)).await
    }

    pub(crate) fn tls_of(&self, member: &Member) -> ClientConfig {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(member.pair.serialize_der()));
        let key = CertifiedKey::from_der(member.chain.clone(), key, &trust::provider()).expect("a pair");
        let shown = Arc::new(SingleCertAndKey::from(key));
        let mut tls = trust::with_bundle(&member.bundle, Some(shown)).expect("a bundle");
        tls.time_provider = Arc::new(self.clock.clone());
        tls
    }

    pub(crate) async fn enrol(&self, token: &JoinToken) -> Result<Member, Status> {
        self.enrol_with(token, pair()).await
    }

    pub(crate) async fn enrol_with(&self, token: &JoinToken, pair: rcgen::KeyPair) -> Result<Member, Status> {
        let channel = self.channel(self.pinned(token)).await;
        let request = enrol::EnrolRequest {
            token: token.expose(),
            csr: csr(&pair),
            host_name: "Web_1.example".into(),
            version: "test".into(),
        };
        let channel = channel.map_err(|error| Status::unavailable(format!("{error:#}")))?;
        let identity = EnrolmentClient::new(channel).enrol(request).await?;
        Ok(Member::of(identity.into_inner(), pair))
    }

    /// An enrolled agent.
    pub(crate) async fn member(&self) -> Member {
        self.enrol(&self.token()).await.expect("an identity")
    }

    /// The next identity, on a channel that is there.
    pub(crate) async fn renew(&self, channel: Channel) -> Result<Member, Status> {
        let pair = pair();
        let request = enrol::RenewRequest { csr: csr(&pair) };
        let identity = EnrolmentClient::new(channel).renew(request).await?;
        Ok(Member::of(identity.into_inner(), pair))
    }

    /// Whether the controller takes this member for who it is, on a new connection.
    pub(crate) async fn believes(&self, member: &Member) -> Result<Member, String> {
        let channel = self
            .channel_of(member)
            .await
            .map_err(|error| format!("{error:#}"))?;
        self.renew(channel).await.map_err(|status| format!("{status:?}"))
    }

    pub(crate) async fn recover(&self, svid: &[u8], pair: rcgen::KeyPair) -> Result<Member, Status> {
        let token = self.token();
        let channel = self.channel(self.pinned(&token)).await.expect("a channel");
        let request = enrol::RecoverRequest {
            svid: svid.to_vec(),
            csr: csr(&pair),
        };
        let identity = EnrolmentClient::new(channel).recover(request).await?;
        Ok(Member::of(identity.into_inner(), pair))
    }
}

impl Member {
    fn of(identity: enrol::Identity, pair: rcgen::KeyPair) -> Self {
        let der = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        let member = Self {
            id: SpiffeId::parse(&identity.id).expect("an id"),
            chain: der(identity.chain),
            bundle: der(identity.bundle),
            pair,
        };
        let facts = member.facts();
        assert_eq!(facts.id, member.id);
        assert_eq!(facts.not_after, identity.not_after);
        member
    }

    pub(crate) fn facts(&self) -> svid::SvidFacts {
        svid::read(&self.chain[0]).expect("an SVID")
    }

    /// The same key once more.
    pub(crate) fn same_pair(&self) -> rcgen::KeyPair {
        rcgen::KeyPair::from_pem(&self.pair.serialize_pem()).expect("the same key")
    }
}

pub(crate) fn pair() -> rcgen::KeyPair {
    rcgen::KeyPair::generate().expect("a key")
}

/// A request for a key, with a name that must not matter.
pub(crate) fn csr(pair: &rcgen::KeyPair) -> Vec<u8> {
    let mut params =
        rcgen::CertificateParams::new(vec!["controller.flowtilla.internal".into()]).expect("a name");
    let uri = "spiffe://fleet.example/operator/root".try_into().expect("a URI");
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    params.serialize_request(pair).expect("a request").der().to_vec()
}

/// Why it was refused, by the details of the status.
pub(crate) fn reason<T>(outcome: Result<T, Status>) -> Reason {
    let status = outcome.err().expect("refused");
    let refusal = enrol::Refusal::decode(status.details()).unwrap_or_else(|_| panic!("{status:?}"));
    assert!(!refusal.message.is_empty());
    refusal.reason()
}
