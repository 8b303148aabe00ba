//! The fleet's thread and the agents' stream over real HTTP/2 connections, without TLS: who calls stands in a header here.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flowtilla_grpc::session::session_client::SessionClient;
use flowtilla_proto::spiffe::{Role, SpiffeId, TrustDomain};
use flowtilla_proto::wire::session::{FromAgent, ToAgent, from_agent, to_agent::Body};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::task::TaskTracker;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status, Streaming};

use super::memory::Memory;
use super::*;
use crate::fleet::thread::{self, FleetHandle};
use crate::grpc::session::{Admission, Door, Enrolled, SessionService};

const PATIENCE: Duration = Duration::from_secs(30);
const HEADER: &str = "x-agent";

/// A controller whose clock is moved by hand.
struct Controller {
    address: SocketAddr,
    fleet: FleetHandle,
    store: Arc<Memory>,
    run_ms: Arc<AtomicU64>,
}

/// An agent's side of a stream.
struct Line {
    out: mpsc::Sender<FromAgent>,
    told: Streaming<ToAgent>,
}

async fn controller() -> Controller {
    let store = Arc::new(Memory::default());
    let run_ms = Arc::new(AtomicU64::new(1_000_000));
    let shared = Arc::clone(&run_ms);
    let clock = move || at(shared.load(Ordering::SeqCst));
    let (fleet, _thread) = thread::start(Arc::<Memory>::clone(&store), clock.clone()).expect("a thread");
    let door: Door = Arc::new(|request| {
        let enrolled = request.extensions().get::<Enrolled>().cloned();
        enrolled.ok_or_else(|| Status::permission_denied("only an agent opens a session"))
    });
    let service = SessionService::new(
        fleet.clone(),
        door,
        Admission::new(10_000, 10_000),
        Arc::new(clock),
        TaskTracker::new(),
    );
    let server = InterceptedService::new(service.into_server(), |mut request: Request<()>| {
        let Some(agent) = request.metadata().get(HEADER) else {
            return Ok(request);
        };
        let agent = agent.to_str().map_err(|_| Status::internal("header"))?;
        let id = SpiffeId {
            domain: TrustDomain::parse("fleet.test").expect("a domain"),
            role: Role::Agent,
            name: name(agent),
        };
        request.extensions_mut().insert(Enrolled {
            id,
            labels: Labels::default(),
        });
        Ok(request)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(
        Server::builder()
            .add_service(server)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    Controller {
        address,
        fleet,
        store,
        run_ms,
    }
}

impl Controller {
    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("an address");
        endpoint.connect().await.expect("connected")
    }

    async fn open(&self, channel: &Channel, agent: &str) -> Line {
        let (out, messages) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(messages));
        request
            .metadata_mut()
            .insert(HEADER, agent.parse().expect("a header"));
        let mut client = SessionClient::new(channel.clone());
        let told = client.open(request).await.expect("opened").into_inner();
        Line { out, told }
    }

    /// Opens a stream and says hello.
    async fn join(&self, channel: &Channel, agent: &str, source_id: u32) -> Line {
        let mut line = self.open(channel, agent).await;
        line.say(from_agent::Body::Hello(hello_wire(source_id))).await;
        let Body::Welcome(welcome) = line.next().await else {
            panic!("no welcome");
        };
        assert_eq!(welcome.id, format!("spiffe://fleet.test/agent/{agent}"));
        assert_eq!((welcome.source_id, welcome.keeps_effective), (source_id, true));
        line
    }

    async fn apply(&self, objects: Vec<Object>) -> flowtilla_proto::wire::fleet::ApplyResponse {
        self.fleet.apply(change(objects, &[])).await.expect("applied")
    }

    async fn converged(&self, count: u32) {
        let reached = async {
            while self.fleet.standing().await.expect("standing").converged != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("converged");
    }
}

impl Line {
    async fn say(&self, body: from_agent::Body) {
        self.out.send(from_agent_message(body)).await.expect("sent");
    }

    async fn next(&mut self) -> Body {
        let message = tokio::time::timeout(PATIENCE, self.told.message()).await;
        let message = message
            .expect("in time")
            .expect("a message")
            .expect("not the end");
        message.body.expect("a known message")
    }

    async fn offer(&mut self) -> say::Offer {
        loop {
            match self.next().await {
                Body::Offer(offer) => return offer,
                Body::Members(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn ended(&mut self) -> (EndReason, String) {
        loop {
            if let Body::Ended(ended) = self.next().await {
                let after = tokio::time::timeout(PATIENCE, self.told.message()).await;
                assert_eq!(after.expect("in time").expect("a proper end"), None);
                return (ended.reason(), ended.message);
            }
        }
    }

    async fn ack(&self, offer: &say::Offer) {
        self.say(from_agent::Body::Ack(say::Ack {
            nonce: offer.nonce,
            held: Some(say::Held {
                epoch: offer.epoch,
                version: offer.version,
                digest: offer.digest.clone(),
            }),
            effective: None,
        }))
        .await;
    }
}

fn from_agent_message(body: from_agent::Body) -> FromAgent {
    FromAgent { body: Some(body) }
}

fn one_policy(timeout_ms: u64) -> Vec<Object> {
    let mut policy = policy("p", 0, &[], &["c"]);
    policy.capture = Some(wire::Capture {
        active_timeout_ms: Some(timeout_ms),
        ..wire::Capture::default()
    });
    vec![collector("c"), object(policy)]
}

#[tokio::test]
async fn a_policy_is_pushed_and_acked() {
    let controller = controller().await;
    let channel = controller.channel().await;
    let mut line = controller.join(&channel, "a", 7).await;
    line.offer().await;
    controller.apply(one_policy(5_000)).await;
    let offer = line.offer().await;
    let content = prost::Message::decode(&offer.content[..]);
    let assignment: say::Assignment = content.expect("an assignment");
    assert_eq!(assignment.policy.expect("a policy").name, "p");
    assert_eq!(assignment.collectors.len(), 1);
    line.ack(&offer).await;
    controller.converged(1).await;
}

#[tokio::test]
async fn who_has_no_agents_identity_opens_no_session() {
    let controller = controller().await;
    let channel = controller.channel().await;
    let (_out, messages) = mpsc::channel::<FromAgent>(1);
    let refused = SessionClient::new(channel)
        .open(ReceiverStream::new(messages))
        .await
        .expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn a_second_stream_of_one_agent_ends_the_first() {
    let controller = controller().await;
    let mut first = controller.join(&controller.channel().await, "a", 7).await;
    let mut second = controller.join(&controller.channel().await, "a", 7).await;
    assert_eq!(first.ended().await.0, EndReason::Replaced);
    let offer = second.offer().await;
    second.ack(&offer).await;
    controller.converged(1).await;
}

#[tokio::test]
async fn what_an_agent_may_not_say_ends_its_stream_with_the_reason() {
    let controller = controller().await;
    let channel = controller.channel().await;
    let cases: [(from_agent::Body, &str); 5] = [
        (
            from_agent::Body::Heartbeat(say::Heartbeat::default()),
            "not a hello",
        ),
        (from_agent::Body::Hello(hello_wire(0)), "source_id"),
        (
            from_agent::Body::Hello(say::Hello {
                addresses: vec![vec![1, 2, 3]],
                ..hello_wire(1)
            }),
            "addresses",
        ),
        (
            from_agent::Body::Hello(say::Hello {
                held: Some(say::Held::default()),
                ..hello_wire(1)
            }),
            "held",
        ),
        (
            from_agent::Body::Hello(say::Hello {
                version: "x".repeat(crate::fleet::heard::FROM_AGENT_OCTETS_MAX),
                ..hello_wire(1)
            }),
            "cannot be read",
        ),
    ];
    for (body, why) in cases {
        let mut line = controller.open(&channel, "bad").await;
        line.say(body).await;
        let (reason, text) = line.ended().await;
        assert_eq!(reason, EndReason::Protocol, "{text}");
        assert!(text.contains(why), "{text}");
    }
    // And afterwards: twice hello, and an ack of something else.
    let mut line = controller.join(&channel, "bad", 1).await;
    line.say(from_agent::Body::Hello(hello_wire(1))).await;
    assert_eq!(line.ended().await.0, EndReason::Protocol);
    let mut line = controller.join(&channel, "bad", 1).await;
    let mut offer = line.offer().await;
    offer.version += 1;
    line.ack(&offer).await;
    assert_eq!(line.ended().await.0, EndReason::Protocol);
    // Others are not touched by it.
    let mut good = controller.join(&channel, "good", 2).await;
    let offer = good.offer().await;
    good.ack(&offer).await;
    controller.converged(1).await;
}

#[tokio::test]
async fn octets_that_are_no_message_end_the_stream_with_the_reason() {
    use tonic::codegen::http::uri::PathAndQuery;

    /// Sends octets as they are.
    #[derive(Clone, Default)]
    struct Raw;
    impl tonic::codec::Encoder for Raw {
        type Item = Vec<u8>;
        type Error = Status;
        fn encode(&mut self, item: Vec<u8>, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
            prost::bytes::BufMut::put_slice(buffer, &item);
            Ok(())
        }
    }
    #[derive(Default)]
    struct RawCodec;
    impl tonic::codec::Codec for RawCodec {
        type Encode = Vec<u8>;
        type Decode = ToAgent;
        type Encoder = Raw;
        type Decoder = <tonic_prost::ProstCodec<FromAgent, ToAgent> as tonic::codec::Codec>::Decoder;
        fn encoder(&mut self) -> Raw {
            Raw
        }
        fn decoder(&mut self) -> Self::Decoder {
            tonic_prost::ProstCodec::<FromAgent, ToAgent>::default().decoder()
        }
    }

    let controller = controller().await;
    let channel = controller.channel().await;
    for octets in [
        vec![0xff; 9],
        vec![0x0a, 0x7f, 1],
        vec![0x0a, 0x05, 0x0a, 0xff, 0, 0, 0],
    ] {
        let (out, messages) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(messages));
        request
            .metadata_mut()
            .insert(HEADER, "bad".parse().expect("a header"));
        let mut client = tonic::client::Grpc::new(channel.clone());
        client.ready().await.expect("ready");
        let path = PathAndQuery::from_static("/flowtilla.session.v1.Session/Open");
        let told = client.streaming(request, path, RawCodec).await.expect("opened");
        out.send(octets).await.expect("sent");
        let (out, _) = mpsc::channel(1);
        let mut line = Line {
            out,
            told: told.into_inner(),
        };
        assert_eq!(line.ended().await.0, EndReason::Protocol);
    }
}

#[tokio::test]
async fn who_does_not_read_gets_the_newest_and_then_is_ended() {
    let controller = controller().await;
    let channel = controller.channel().await;
    let mut line = controller.join(&channel, "a", 7).await;
    line.offer().await;
    // Nobody reads: the stream's window fills, then only the newest offer waits.
    let mut last = 0;
    for n in 0..40_u64 {
        let mut objects = one_policy(1_000 + n);
        let large = |rule: u64| wire::FlowRule {
            cidrs: (0..60).map(|host| format!("203.0.{rule}.{host}/32")).collect(),
            ..wire::FlowRule::default()
        };
        if let Some(object::Kind::Policy(policy)) = &mut objects[1].kind {
            policy.capture.get_or_insert_default().exclude = (0..15).map(large).collect();
        }
        last = controller.apply(objects).await.revision;
    }
    let mut seen = 0;
    loop {
        let offer = line.offer().await;
        seen += 1;
        let content = prost::Message::decode(&offer.content[..]);
        let assignment: say::Assignment = content.expect("an assignment");
        if assignment.revision == last {
            break;
        }
    }
    assert!(seen <= 40, "{seen}");
    // It reads, and says nothing: after a minute that is the end.
    controller
        .run_ms
        .fetch_add(crate::fleet::SILENCE_MS + 1, Ordering::SeqCst);
    assert_eq!(line.ended().await.0, EndReason::Slow);
}

#[tokio::test]
async fn a_store_that_fails_makes_nobody_believe_anything() {
    let controller = controller().await;
    let channel = controller.channel().await;
    let mut line = controller.join(&channel, "a", 7).await;
    let offer = line.offer().await;
    line.ack(&offer).await;
    controller.converged(1).await;
    controller.store.failing.store(true, Ordering::SeqCst);
    let refused = controller.fleet.apply(change(one_policy(5_000), &[])).await;
    assert!(matches!(refused, Err(thread::FleetError::Store)), "{refused:?}");
    assert_eq!(line.ended().await.0, EndReason::Stopping);
    controller.store.failing.store(false, Ordering::SeqCst);
    assert_eq!(controller.apply(one_policy(5_000)).await.revision, 1);
    let mut line = controller.join(&channel, "a", 7).await;
    let offer = line.offer().await;
    line.ack(&offer).await;
    controller.converged(1).await;
}

#[tokio::test]
async fn two_hundred_agents_converge_and_acks_share_commits() {
    const AGENTS: u32 = 200;
    let controller = controller().await;
    let mut channels = Vec::new();
    for _ in 0..8 {
        channels.push(controller.channel().await);
    }
    let mut agents = tokio::task::JoinSet::new();
    for n in 0..AGENTS {
        let mut line = controller
            .join(&channels[n as usize % channels.len()], &format!("a{n}"), n + 1)
            .await;
        agents.spawn(async move {
            loop {
                let offer = line.offer().await;
                line.ack(&offer).await;
                let content = prost::Message::decode(&offer.content[..]);
                let assignment: say::Assignment = content.expect("an assignment");
                if assignment.policy.is_some() {
                    return line;
                }
            }
        });
    }
    controller.converged(AGENTS).await;
    let before = controller.store.commits.load(Ordering::SeqCst);
    let applied = controller.apply(one_policy(5_000)).await;
    assert_eq!(applied.agents.len(), AGENTS as usize);
    let mut watched = controller.fleet.watch(applied.rollout).await.expect("watched");
    controller.converged(AGENTS).await;
    let commits = controller.store.commits.load(Ordering::SeqCst) - before;
    assert!(commits < u64::from(AGENTS), "{commits} commits for {AGENTS} acks");
    let end = async {
        loop {
            let rollout = watched.borrow_and_update().rollout.clone().expect("a rollout");
            if rollout.ended_ms != 0 {
                return rollout;
            }
            // The thread tells no more than some times a second of its clock, which stands still here.
            controller.run_ms.fetch_add(1_000, Ordering::SeqCst);
            let _ = watched.changed().await;
        }
    };
    let rollout = tokio::time::timeout(PATIENCE, end).await.expect("an end");
    assert_eq!(rollout.acked, AGENTS);
    let lines = agents.join_all().await;
    assert_eq!(lines.len(), AGENTS as usize);
}
