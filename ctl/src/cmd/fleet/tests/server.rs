//! A controller's calls over TLS as a controller speaks it, with answers that a test sets: what the commands ask and show is
//! tested against it, not what a controller decides.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock;
use flowtilla_grpc::enrol::enrolment_server::{Enrolment, EnrolmentServer};
use flowtilla_grpc::fleet::fleet_server::{Fleet, FleetServer};
use flowtilla_grpc::svid;
use flowtilla_grpc::trust::{self, CONTROLLER_NAME};
use flowtilla_proto::token::{JoinToken, RootPin, TokenId, TokenSecret};
use flowtilla_proto::wire::enrol::{
    self as enrol_wire, EnrolRequest, Reason, RecoverRequest, Refusal, RenewRequest,
};
use flowtilla_proto::wire::fleet::*;
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};

const DOMAIN: &str = "fleet.example";
/// Hours that an SVID lasts.
const LIFE_H: u64 = 24;

/// What a test sets, and what was asked.
#[derive(Default)]
pub(super) struct Script {
    pub(super) used: BTreeSet<TokenId>,
    pub(super) renewals: u32,
    pub(super) recoveries: u32,
    /// Hours that an SVID lasts from here on; `None`: a day.
    pub(super) life_h: Option<u64>,
    pub(super) objects: Vec<Object>,
    pub(super) revision: u64,
    pub(super) agents: Vec<Agent>,
    pub(super) applied: Vec<ApplyRequest>,
    pub(super) answer: ApplyResponse,
    pub(super) refusal: Option<Mistakes>,
    /// Events of each call of Watch, in order; after the last call's the stream ends.
    pub(super) events: Vec<Vec<RolloutEvent>>,
    pub(super) rollouts: Vec<Rollout>,
    pub(super) revoked: Vec<RevokeRequest>,
    pub(super) status: StatusResponse,
    pub(super) top: TopResponse,
    /// What was asked.
    pub(super) tops: Vec<TopRequest>,
}

/// A controller that says what it was told to say.
#[derive(Clone)]
pub(super) struct Scripted {
    pub(super) address: SocketAddr,
    authority: Arc<Authority>,
    script: Arc<Mutex<Script>>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let root = params.self_signed(&key).expect("a root").der().clone();
        Self {
            issuer: Issuer::new(params, key),
            root,
        }
    }

    fn params(id: &str, life_h: u64) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(
            format!("spiffe://{DOMAIN}/{id}").try_into().expect("ASCII"),
        )];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let now = clock::wall_now().seconds();
        params.not_before = epoch + Duration::from_secs(now - 300);
        params.not_after = epoch + Duration::from_secs(now + life_h * 3_600);
        params
    }

    fn identity(&self, id: &str, csr: &[u8], life_h: u64) -> Result<Response<enrol_wire::Identity>, Status> {
        let mut request = CertificateSigningRequestParams::from_der(&csr.into())
            .map_err(|_| refused(Reason::Csr, "the request cannot be read"))?;
        request.params = Self::params(id, life_h);
        let svid = request.signed_by(&self.issuer).expect("it signs");
        Ok(Response::new(enrol_wire::Identity {
            id: format!("spiffe://{DOMAIN}/{id}"),
            chain: vec![svid.der().to_vec()],
            bundle: vec![self.root.to_vec()],
            not_after: 0,
        }))
    }
}

fn refused(reason: Reason, message: &str) -> Status {
    let refusal = Refusal {
        reason: reason.into(),
        message: message.to_owned(),
    };
    Status::with_details(Code::PermissionDenied, message, refusal.encode_to_vec().into())
}

impl Scripted {
    pub(super) async fn start() -> Self {
        let authority = Arc::new(Authority::new());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let this = Self {
            address: listener.local_addr().expect("bound"),
            authority,
            script: Arc::default(),
        };
        let acceptor = this.acceptor();
        let (to, incoming) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                let to = to.clone();
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let _ = to.send(Ok::<_, io::Error>(Accepted::of(tls))).await; // The server may have ended.
                    }
                });
            }
        });
        let server = Server::builder()
            .add_service(EnrolmentServer::new(this.clone()))
            .add_service(FleetServer::new(this.clone()))
            .serve_with_incoming(ReceiverStream::new(incoming));
        tokio::spawn(async move { server.await.expect("it serves") });
        this
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("nobody panics with it")
    }

    fn life_h(&self) -> u64 {
        self.script().life_h.unwrap_or(LIFE_H)
    }

    /// A token: even ids are operators', odd ones agents'.
    pub(super) fn token(&self, id: u64) -> JoinToken {
        JoinToken {
            id: TokenId(id),
            secret: TokenSecret([7; 32]),
            pin: RootPin(svid::pin_of(&self.authority.root).expect("a root")),
        }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut params = Authority::params("controller/one", LIFE_H);
        params
            .subject_alt_names
            .push(SanType::DnsName(CONTROLLER_NAME.try_into().expect("ASCII")));
        let svid = params.signed_by(&key, &self.authority.issuer).expect("signed");
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.root.clone()).expect("a root");
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), trust::provider())
            .allow_unauthenticated()
            .build()
            .expect("there is a root");
        let mut config = rustls::ServerConfig::builder_with_provider(trust::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("ring has it")
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![svid.der().clone(), self.authority.root.clone()],
                PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("they belong together");
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 0;
        TlsAcceptor::from(Arc::new(config))
    }

    fn operator<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let id = peer
            .0
            .and_then(|der| svid::read(&der).ok())
            .map(|facts| facts.id.to_string());
        id.filter(|id| id.contains("/operator/"))
            .ok_or_else(|| Status::permission_denied("this is for operators"))
    }
}

#[tonic::async_trait]
impl Enrolment for Scripted {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<enrol_wire::Identity>, Status> {
        let request = request.into_inner();
        let token = JoinToken::parse(&request.token)
            .map_err(|_| refused(Reason::TokenMalformed, "it is no token"))?;
        if !self.script().used.insert(token.id) {
            return Err(refused(Reason::TokenUsed, "the token was used already"));
        }
        let id = match token.id.0.is_multiple_of(2) {
            true => "operator/ann",
            false => "agent/web-1-7f",
        };
        self.authority.identity(id, &request.csr, self.life_h())
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<enrol_wire::Identity>, Status> {
        self.operator(&request)?;
        self.script().renewals += 1;
        self.authority
            .identity("operator/ann", &request.into_inner().csr, self.life_h())
    }

    async fn recover(
        &self,
        request: Request<RecoverRequest>,
    ) -> Result<Response<enrol_wire::Identity>, Status> {
        let request = request.into_inner();
        let facts =
            svid::read(&request.svid).map_err(|_| refused(Reason::ForeignSvid, "it is no SVID of ours"))?;
        let csr = CertificateSigningRequestParams::from_der(&request.csr.as_slice().into());
        let csr = csr.map_err(|_| refused(Reason::Csr, "the request cannot be read"))?;
        if rcgen::PublicKeyData::subject_public_key_info(&csr.public_key) != facts.public_key {
            return Err(refused(Reason::OtherKey, "the key is another one"));
        }
        self.script().recoveries += 1;
        self.authority
            .identity("operator/ann", &request.csr, self.life_h())
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Fleet for Scripted {
    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        self.operator(&request)?;
        let mut script = self.script();
        let request = request.into_inner();
        if request.expected_revision != 0 && request.expected_revision != script.revision {
            return Err(Status::aborted("there is a newer revision"));
        }
        script.applied.push(request);
        if let Some(mistakes) = &script.refusal {
            let details = mistakes.encode_to_vec().into();
            return Err(Status::with_details(
                Code::InvalidArgument,
                "objects are refused",
                details,
            ));
        }
        Ok(Response::new(script.answer.clone()))
    }

    async fn objects(&self, request: Request<ObjectsRequest>) -> Answer<ObjectsResponse> {
        self.operator(&request)?;
        let script = self.script();
        Ok(Response::new(ObjectsResponse {
            revision: script.revision,
            objects: script.objects.clone(),
        }))
    }

    async fn history(&self, request: Request<HistoryRequest>) -> Answer<HistoryResponse> {
        self.operator(&request)?;
        Ok(Response::new(HistoryResponse::default()))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Answer<ApplyResponse> {
        self.operator(&request)?;
        match request.get_ref().revision {
            0 => Ok(Response::new(self.script().answer.clone())),
            n => Err(Status::not_found(format!(
                "there is no revision {n}; see history"
            ))),
        }
    }

    async fn agents(&self, request: Request<AgentsRequest>) -> Answer<AgentsResponse> {
        self.operator(&request)?;
        let agents = self.script().agents.clone();
        Ok(Response::new(AgentsResponse { agents }))
    }

    type WatchStream = ReceiverStream<Result<RolloutEvent, Status>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        self.operator(&request)?;
        let mut script = self.script();
        if script.events.is_empty() {
            return Err(Status::not_found("there is no rollout; see history"));
        }
        let events = script.events.remove(0);
        let (to, stream) = mpsc::channel(events.len().max(1));
        for event in events {
            to.try_send(Ok(event)).expect("there is room");
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn rollouts(&self, request: Request<RolloutsRequest>) -> Answer<RolloutsResponse> {
        self.operator(&request)?;
        let rollouts = self.script().rollouts.clone();
        Ok(Response::new(RolloutsResponse { rollouts }))
    }

    async fn steer(&self, request: Request<SteerRequest>) -> Answer<Rollout> {
        self.operator(&request)?;
        // What 0 stands for is the controller's to know: see `real`.
        let mut rollout = Rollout {
            id: request.get_ref().rollout,
            ..Rollout::default()
        };
        rollout.set_state(match request.get_ref().steering() {
            Steering::Pause => RolloutState::Paused,
            Steering::Resume => RolloutState::Running,
            Steering::Abort => RolloutState::RollingBack,
            Steering::Unspecified => return Err(Status::invalid_argument("steering: is absent; write one")),
        });
        Ok(Response::new(rollout))
    }

    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Answer<CreateTokenResponse> {
        self.operator(&request)?;
        let token = self.token(if request.get_ref().operator.is_empty() {
            11
        } else {
            12
        });
        Ok(Response::new(CreateTokenResponse {
            token: token.expose(),
            id: token.id.to_string(),
            expires_ms: 0,
        }))
    }

    async fn tokens(&self, request: Request<TokensRequest>) -> Answer<TokensResponse> {
        self.operator(&request)?;
        Ok(Response::new(TokensResponse::default()))
    }

    async fn operators(&self, request: Request<OperatorsRequest>) -> Answer<OperatorsResponse> {
        self.operator(&request)?;
        Ok(Response::new(OperatorsResponse::default()))
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Answer<RevokeResponse> {
        self.operator(&request)?;
        self.script().revoked.push(request.into_inner());
        Ok(Response::new(RevokeResponse {
            streams: 1,
            ..RevokeResponse::default()
        }))
    }

    async fn approve(&self, request: Request<ApproveRequest>) -> Answer<ApproveResponse> {
        self.operator(&request)?;
        Err(Status::failed_precondition(
            "agent web-1 does not wait for an approval; see get agents",
        ))
    }

    async fn rotate_ca(&self, request: Request<RotateCaRequest>) -> Answer<RotateCaResponse> {
        self.operator(&request)?;
        Ok(Response::new(RotateCaResponse::default()))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Answer<DrainResponse> {
        self.operator(&request)?;
        Ok(Response::new(DrainResponse {}))
    }

    async fn measure(&self, request: Request<MeasureRequest>) -> Answer<MeasureResponse> {
        self.operator(&request)?;
        Ok(Response::new(MeasureResponse::default()))
    }

    async fn judge(&self, request: Request<JudgeRequest>) -> Answer<JudgeResponse> {
        self.operator(&request)?;
        Ok(Response::new(JudgeResponse::default()))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let caller = self.operator(&request)?;
        let mut status = self.script().status.clone();
        status.caller = caller;
        Ok(Response::new(status))
    }

    async fn top(&self, request: Request<TopRequest>) -> Answer<TopResponse> {
        self.operator(&request)?;
        let mut script = self.script();
        script.tops.push(request.into_inner());
        Ok(Response::new(script.top.clone()))
    }
}

/// Who is at the other end.
#[derive(Clone, Default)]
struct Peer(Option<CertificateDer<'static>>);

/// A connection after its handshake.
struct Accepted {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Accepted {
    fn of(stream: TlsStream<TcpStream>) -> Self {
        let chain = stream.get_ref().1.peer_certificates();
        let peer = Peer(
            chain
                .and_then(|chain| chain.first())
                .map(|first| first.clone().into_owned()),
        );
        Self { stream, peer }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
