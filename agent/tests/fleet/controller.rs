//! A controller whose every word the test says: the real stubs over real TLS 1.3, with an authority of its own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use flowtilla_agent::identity::WallClock;
use flowtilla_agent_core::session::{Digest, Held, Version};
use flowtilla_grpc::channel::Address;
use flowtilla_grpc::enrol::enrolment_server::{Enrolment, EnrolmentServer};
use flowtilla_grpc::session::session_server::{Session, SessionServer};
use flowtilla_grpc::svid::{self, SvidFacts};
use flowtilla_grpc::trust::{CONTROLLER_NAME, provider};
use flowtilla_proto::token::{JoinToken, RootPin, TokenId, TokenSecret};
use flowtilla_proto::wire::enrol::{self, EnrolRequest, RecoverRequest, RenewRequest};
use flowtilla_proto::wire::session::{FromAgent, Offer, ToAgent, Welcome, from_agent, to_agent};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// How long anything may take before a test gives up.
pub(crate) const WAIT: Duration = Duration::from_secs(20);

/// An authority, as a controller has one.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: CertificateDer<'static>,
    serial: AtomicU32,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("a root").der().clone();
        Self {
            issuer: Issuer::new(params, key),
            root,
            serial: AtomicU32::new(1),
        }
    }

    fn sign(
        &self,
        key: &impl rcgen::PublicKeyData,
        names: Vec<SanType>,
        life: (i64, i64),
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.serial_number = Some(u64::from(self.serial.fetch_add(1, Ordering::Relaxed)).into());
        let now = now();
        params.not_before =
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs((now + life.0).unsigned_abs());
        params.not_after =
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs((now + life.1).unsigned_abs());
        params
            .signed_by(key, &self.issuer)
            .expect("a certificate")
            .der()
            .clone()
    }

    /// An SVID of `id` for the key of a certificate request.
    pub(crate) fn svid(&self, id: &str, csr: &[u8], life: (i64, i64)) -> CertificateDer<'static> {
        let der = CertificateSigningRequestDer::from(csr.to_vec());
        let csr = CertificateSigningRequestParams::from_der(&der).expect("a certificate request");
        self.sign(&csr.public_key, vec![uri(id)], life)
    }
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().expect("an ASCII id"))
}

pub(crate) fn now() -> i64 {
    i64::try_from(flowtilla_agent::clock::wall_now().seconds()).expect("not so late")
}

/// Who called, by its SVID.
#[derive(Clone, Debug)]
struct Peer(Option<SvidFacts>);

/// What the test looks at and steers.
pub(crate) struct Shared {
    pub(crate) authority: Authority,
    pub(crate) secret: [u8; 32],
    /// Tokens used, with the key that did.
    used: Mutex<Option<Vec<u8>>>,
    /// Life of the SVIDs that are given, in seconds from now: from, to.
    pub(crate) from: AtomicI64,
    pub(crate) to: AtomicI64,
    /// How many more times an operator has to approve.
    pub(crate) awaiting: AtomicU32,
    /// What was asked, encoded.
    pub(crate) asked: Mutex<Vec<Vec<u8>>>,
    pub(crate) renewed: AtomicU32,
    pub(crate) recovered: AtomicU32,
    sessions: mpsc::Sender<Opened>,
}

/// One stream of an agent.
pub(crate) struct Opened {
    pub(crate) svid: SvidFacts,
    say: mpsc::Sender<Result<ToAgent, Status>>,
    heard: Streaming<FromAgent>,
}

/// A controller that is there until it is dropped.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    pub(crate) shared: Arc<Shared>,
    sessions: mpsc::Receiver<Opened>,
    tasks: Vec<JoinHandle<()>>,
    /// Every connection so far: the server's tasks do not end with it.
    connections: Arc<Mutex<Vec<OwnedFd>>>,
    /// Its clock.
    ahead: WallClock,
}

impl Scripted {
    pub(crate) async fn start() -> Self {
        let (sessions_to, sessions) = mpsc::channel(16);
        let shared = Arc::new(Shared {
            authority: Authority::new(),
            secret: [7; 32],
            used: Mutex::default(),
            from: AtomicI64::new(-300),
            to: AtomicI64::new(86_400),
            awaiting: AtomicU32::new(0),
            asked: Mutex::default(),
            renewed: AtomicU32::new(0),
            recovered: AtomicU32::new(0),
            sessions: sessions_to,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let mut scripted = Self {
            address: listener.local_addr().expect("an address"),
            shared,
            sessions,
            tasks: Vec::new(),
            connections: Arc::default(),
            ahead: WallClock::system(),
        };
        scripted.serve(listener);
        scripted
    }

    /// Ends every connection, and listens no more.
    pub(crate) async fn go_away(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            let _ = task.await;
        }
        for connection in self.connections.lock().expect("nobody panicked").drain(..) {
            let _ = rustix::net::shutdown(connection, rustix::net::Shutdown::Both);
        }
    }

    pub(crate) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the same address");
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (to, incoming) = mpsc::channel::<std::io::Result<Io>>(16);
        let acceptor = TlsAcceptor::from(Arc::new(server_config(&self.shared.authority, &self.ahead)));
        let connections = Arc::clone(&self.connections);
        self.tasks.push(tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let other = tcp.as_fd().try_clone_to_owned().expect("a descriptor");
                connections.lock().expect("nobody panicked").push(other);
                let Ok(tls) = acceptor.accept(tcp).await else {
                    continue;
                };
                let first = tls
                    .get_ref()
                    .1
                    .peer_certificates()
                    .and_then(|chain| chain.first());
                let peer = Peer(first.and_then(|svid| svid::read(svid).ok()));
                if to.send(Ok(Io(tls, peer))).await.is_err() {
                    return;
                }
            }
        }));
        let service = Service(Arc::clone(&self.shared));
        let server = Server::builder()
            .add_service(EnrolmentServer::new(service.clone()))
            .add_service(SessionServer::new(service))
            .serve_with_incoming(ReceiverStream::new(incoming));
        self.tasks.push(tokio::spawn(async move {
            let _ = server.await;
        }));
    }

    /// Comes back with a clock that is ahead by so many seconds.
    pub(crate) async fn clock_ahead(&mut self, seconds: u64) {
        self.go_away().await;
        self.ahead.advance(Duration::from_secs(seconds));
        self.come_back().await;
    }

    /// The token is as new.
    pub(crate) fn forget_token(&self) {
        *self.shared.used.lock().expect("nobody panicked") = None;
    }

    pub(crate) fn controller(&self) -> Address {
        Address::parse(&self.address.to_string()).expect("an address")
    }

    pub(crate) fn token(&self) -> JoinToken {
        JoinToken {
            id: TokenId(self.address.port().into()),
            secret: TokenSecret(self.shared.secret),
            pin: RootPin(svid::pin_of(&self.shared.authority.root).expect("a root")),
        }
    }

    /// The next stream that an agent opens.
    pub(crate) async fn session(&mut self) -> Opened {
        let opened = tokio::time::timeout(WAIT, self.sessions.recv()).await;
        opened.expect("a session in time").expect("the server lives")
    }

    /// Whether an agent opens a stream within `span`.
    pub(crate) async fn session_within(&mut self, span: Duration) -> Option<Opened> {
        tokio::time::timeout(span, self.sessions.recv())
            .await
            .ok()
            .flatten()
    }

    /// The next stream, hello heard and welcomed.
    pub(crate) async fn welcomed(&mut self) -> (Opened, flowtilla_proto::wire::session::Hello) {
        let mut session = self.session().await;
        let from_agent::Body::Hello(hello) = session.hear().await else {
            panic!("something else than a hello came first");
        };
        session.welcome(hello.source_id).await;
        (session, hello)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn server_config(authority: &Authority, clock: &WallClock) -> ServerConfig {
    let key = KeyPair::generate().expect("a key");
    let names = vec![
        uri("spiffe://test/controller/one"),
        SanType::DnsName(CONTROLLER_NAME.try_into().expect("a name")),
    ];
    let svid = authority.sign(&key, names, (-300, 86_400));
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone()).expect("a root");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .expect("a verifier");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![svid, authority.root.clone()], key)
        .expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.time_provider = Arc::new(clock.clone());
    config
}

impl Opened {
    /// The next message.
    pub(crate) async fn hear(&mut self) -> from_agent::Body {
        let heard = tokio::time::timeout(WAIT, self.heard.message())
            .await
            .expect("a message in time");
        heard
            .expect("the stream lives")
            .expect("the stream goes on")
            .body
            .expect("a body")
    }

    /// The next message that is no heartbeat.
    pub(crate) async fn hear_answer(&mut self) -> from_agent::Body {
        loop {
            match self.hear().await {
                from_agent::Body::Heartbeat(_) => {}
                answer => return answer,
            }
        }
    }

    /// Whether the agent ends the stream.
    pub(crate) async fn ends(&mut self) -> bool {
        let end = async { while let Ok(Some(_)) = self.heard.message().await {} };
        tokio::time::timeout(WAIT, end).await.is_ok()
    }

    pub(crate) async fn say(&self, body: to_agent::Body) {
        let _ = self.say.send(Ok(ToAgent { body: Some(body) })).await;
    }

    pub(crate) async fn welcome(&self, source_id: u32) {
        self.welcome_with(source_id, 200).await;
    }

    pub(crate) async fn welcome_with(&self, source_id: u32, heartbeat_ms: u64) {
        self.say(to_agent::Body::Welcome(Welcome {
            id: "spiffe://test/agent/a".into(),
            source_id,
            heartbeat_ms,
            keeps_effective: true,
        }))
        .await;
    }

    pub(crate) async fn offer(&self, nonce: u64, epoch: u64, version: u64, content: &[u8]) -> Held {
        let held = Held {
            version: Version {
                epoch,
                number: version,
            },
            digest: Digest::of(content),
        };
        self.say(to_agent::Body::Offer(Offer {
            nonce,
            epoch,
            version,
            digest: held.digest.0.to_vec(),
            content: content.to_vec(),
            ..Offer::default()
        }))
        .await;
        held
    }
}

/// Content of an offer with this revision.
pub(crate) fn content(revision: u64) -> Vec<u8> {
    flowtilla_proto::wire::session::Assignment {
        policy: Some(flowtilla_proto::wire::Policy {
            name: format!("p{revision}"),
            ..Default::default()
        }),
        collectors: Vec::new(),
        revision,
        drain: false,
    }
    .encode_to_vec()
}

#[derive(Clone)]
struct Service(Arc<Shared>);

impl Service {
    fn identity(&self, id: &str, csr: &[u8]) -> Response<enrol::Identity> {
        let life = (
            self.0.from.load(Ordering::Relaxed),
            self.0.to.load(Ordering::Relaxed),
        );
        let svid = self.0.authority.svid(id, csr, life);
        Response::new(enrol::Identity {
            id: id.to_owned(),
            chain: vec![svid.to_vec()],
            bundle: vec![self.0.authority.root.to_vec()],
            not_after: now() + life.1,
        })
    }

    fn note(&self, asked: Vec<u8>) {
        self.0.asked.lock().expect("nobody panicked").push(asked);
    }
}

fn refused(reason: enrol::Reason) -> Status {
    let refusal = enrol::Refusal {
        reason: reason.into(),
        message: format!("{reason:?}"),
    };
    Status::with_details(
        tonic::Code::PermissionDenied,
        "refused",
        refusal.encode_to_vec().into(),
    )
}

#[tonic::async_trait]
impl Enrolment for Service {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<enrol::Identity>, Status> {
        let asked = request.into_inner();
        self.note(asked.encode_to_vec());
        let token = JoinToken::parse(&asked.token).map_err(|_| refused(enrol::Reason::TokenMalformed))?;
        if token.secret.0 != self.0.secret {
            return Err(refused(enrol::Reason::TokenUnknown));
        }
        let mut used = self.0.used.lock().expect("nobody panicked");
        if used.as_ref().is_some_and(|key| *key != asked.csr) {
            return Err(refused(enrol::Reason::TokenUsed));
        }
        *used = Some(asked.csr.clone());
        Ok(self.identity("spiffe://test/agent/a", &asked.csr))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<enrol::Identity>, Status> {
        let Some(Peer(Some(caller))) = request.extensions().get::<Peer>().cloned() else {
            return Err(refused(enrol::Reason::NotAllowed));
        };
        let asked = request.into_inner();
        self.note(asked.encode_to_vec());
        self.0.renewed.fetch_add(1, Ordering::Relaxed);
        Ok(self.identity(&caller.id.to_string(), &asked.csr))
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<enrol::Identity>, Status> {
        let asked = request.into_inner();
        self.note(asked.encode_to_vec());
        let left = self.0.awaiting.load(Ordering::Relaxed);
        if left > 0 {
            self.0.awaiting.store(left - 1, Ordering::Relaxed);
            return Err(refused(enrol::Reason::AwaitingApproval));
        }
        let expired = svid::read(&asked.svid).map_err(|_| refused(enrol::Reason::ForeignSvid))?;
        self.0.recovered.fetch_add(1, Ordering::Relaxed);
        Ok(self.identity(&expired.id.to_string(), &asked.csr))
    }
}

#[tonic::async_trait]
impl Session for Service {
    type OpenStream = ReceiverStream<Result<ToAgent, Status>>;

    async fn open(
        &self,
        request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::OpenStream>, Status> {
        let Some(Peer(Some(svid))) = request.extensions().get::<Peer>().cloned() else {
            return Err(Status::unauthenticated("no SVID"));
        };
        let (say, said) = mpsc::channel(16);
        let heard = request.into_inner();
        let _ = self.0.sessions.send(Opened { svid, say, heard }).await;
        Ok(Response::new(ReceiverStream::new(said)))
    }
}

/// A connection whose peer is known.
struct Io(TlsStream<TcpStream>, Peer);

impl Connected for Io {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.1.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What labels a hello has.
pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([("role".to_owned(), "web".to_owned())])
}
