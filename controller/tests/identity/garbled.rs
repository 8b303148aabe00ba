//! Messages of an agent that are cut or garbled on their way, over its own SVID.

use flowtilla_proto::wire::session::to_agent::Body;
use flowtilla_proto::wire::session::{EndReason, FromAgent, Hello, ToAgent, from_agent};
use prost::Message as _;
use prost::bytes::{Buf as _, BufMut as _};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Request, Status};

use super::scene::{Member, PATIENCE, Scene};

/// Octets as they are.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, octets: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&octets);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let octets = from.remaining();
        Ok(Some(from.copy_to_bytes(octets).to_vec()))
    }
}

/// What the controller says first on a stream that begins with these octets and stays open.
async fn first(scene: &Scene, member: &Member, octets: Vec<u8>) -> Result<Body, Status> {
    let channel = scene.channel_of(member).await.expect("a channel");
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let (says, said) = tokio::sync::mpsc::channel(1);
    says.send(octets).await.expect("room");
    let said = tokio_stream::wrappers::ReceiverStream::new(said);
    let path = PathAndQuery::from_static("/flowtilla.session.v1.Session/Open");
    let answers = grpc.streaming(Request::new(said), path, Raw).await?;
    let answer = answers.into_inner().message().await?;
    let answer = answer.ok_or_else(|| Status::cancelled("it ended"))?;
    let answer = ToAgent::decode(&*answer).expect("the controller's message is whole");
    Ok(answer.body.expect("it says something"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_or_garbled_hello_is_refused_with_a_reason_and_hurts_nobody() {
    let scene = Scene::start().await;
    let (captured, good) = (scene.member().await, scene.member().await);
    let hello = Hello {
        version: "0.1.0".into(),
        host_name: "host".into(),
        source_id: 7,
        boot_id: vec![7; 16],
        instance: vec![1; 8],
        addresses: vec![vec![10, 0, 0, 1]],
        ..Hello::default()
    };
    let hello = FromAgent {
        body: Some(from_agent::Body::Hello(hello)),
    };
    let whole = hello.encode_to_vec();
    let is_welcome = |answer| matches!(answer, Ok(Body::Welcome(_)));
    assert!(is_welcome(first(&scene, &captured, whole.clone()).await));

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut refused = 0;
    for n in 0..whole.len() {
        let mut octets = whole.clone();
        match n % 3 {
            0 => octets[n] ^= 1 << random.u8(..8),
            1 => octets.iter_mut().for_each(|octet| *octet = random.u8(..)),
            _ => octets.truncate(n),
        }
        let answer = tokio::time::timeout(PATIENCE, first(&scene, &captured, octets)).await;
        match answer.expect("an answer") {
            Ok(Body::Ended(ended)) => {
                assert_ne!(ended.reason(), EndReason::Unspecified, "octet {n}: {ended:?}");
                refused += 1;
            }
            Ok(Body::Welcome(_)) => {}
            other => panic!("octet {n}: {other:?}"),
        }
    }
    assert!(refused >= whole.len() / 3, "{refused} of {}", whole.len());
    assert!(is_welcome(first(&scene, &captured, whole).await));
    scene.believes(&good).await.expect("the controller goes on");
}
