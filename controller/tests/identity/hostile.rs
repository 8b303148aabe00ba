use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use flowtilla_controller::clock::Clock;
use flowtilla_controller::identity::ca::{Origin, SVID_LIFE};
use flowtilla_controller::identity::csr::PublicKey;
use flowtilla_controller::identity::tls::accept::Limits;
use flowtilla_controller::identity::tls::connection::CONNECTIONS_OF_ONE_MAX;
use flowtilla_grpc::enrol::enrolment_client::EnrolmentClient;
use flowtilla_grpc::trust::{self, CONTROLLER_NAME};
use flowtilla_proto::spiffe::{MemberName, Role, SpiffeId};
use flowtilla_proto::wire::enrol::{EnrolRequest, Reason, RenewRequest};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tonic::Code;

use super::scene::{Member, PATIENCE, Scene, csr, pair, reason};

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_of_another_authority_is_refused() {
    let scene = Scene::start().await;
    let foreign = Scene::start().await.member().await;
    let good = scene.member().await;
    // It knows whom to believe, and shows what it has.
    let liar = Member {
        bundle: good.bundle.clone(),
        ..foreign
    };
    scene.believes(&liar).await.err().expect("a foreign SVID");
    refused_after(&scene, 0).await;
    scene.believes(&good).await.expect("ours is believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_svid_that_is_not_for_now_is_refused_in_the_handshake() {
    let scene = Scene::start().await;
    let good = scene.member().await;
    let authority = scene.identities().authority();
    let now = scene.clock.now();
    for (then, fits) in [
        (now.minus(SVID_LIFE + Duration::from_secs(5)), false),
        (now.plus(Duration::from_secs(3600)), false),
        (now, true),
    ] {
        let pair = pair();
        let key = PublicKey::of_request(&csr(&pair)).expect("a request");
        let issued = authority.issue(&good.id, &key, then).expect("signed");
        let member = Member {
            id: good.id.clone(),
            chain: issued.chain,
            bundle: good.bundle.clone(),
            pair,
        };
        let before = refused(&scene);
        assert_eq!(scene.believes(&member).await.is_ok(), fits, "{then:?}");
        if !fits {
            refused_after(&scene, before).await;
        }
    }
}

fn refused(scene: &Scene) -> u64 {
    let counts = &scene.controller.parts().handshakes;
    counts.refused.load(Ordering::Relaxed)
}

/// Waits until more handshakes were refused: a caller hears of it before it is counted, and tries again by itself.
async fn refused_after(scene: &Scene, before: u64) {
    let counted = async {
        while refused(scene) <= before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted)
        .await
        .expect("the handshake is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_svid_of_somebody_unknown_and_of_a_controller_may_not_renew() {
    let scene = Scene::start().await;
    let good = scene.member().await;
    for role in [Role::Agent, Role::Operator, Role::Controller] {
        let pair = pair();
        let key = PublicKey::of_request(&csr(&pair)).expect("a request");
        let id = SpiffeId {
            domain: super::scene::domain(),
            role,
            name: MemberName::parse("nobody").expect("a name"),
        };
        let authority = scene.identities().authority();
        let issued = authority.issue(&id, &key, scene.clock.now()).expect("signed");
        let member = Member {
            id,
            chain: issued.chain,
            bundle: good.bundle.clone(),
            pair,
        };
        let channel = scene.channel_of(&member).await.expect("a channel");
        assert_eq!(reason(scene.renew(channel).await), Reason::NotAllowed, "{role:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_shows_no_svid_may_not_renew() {
    let scene = Scene::start().await;
    let channel = scene
        .channel(scene.pinned(&scene.token()))
        .await
        .expect("a channel");
    let request = RenewRequest { csr: csr(&pair()) };
    let status = EnrolmentClient::new(channel)
        .renew(request)
        .await
        .expect_err("refused");
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason::<()>(Err(status)), Reason::NotAllowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_cannot_pose_as_the_controller() {
    let scene = Scene::start().await;
    let agent = scene.member().await;
    let names = x509_parser::parse_x509_certificate(&agent.chain[0])
        .expect("a certificate")
        .1;
    let names = names
        .subject_alternative_name()
        .expect("readable")
        .expect("there");
    let text = format!("{:?}", names.value.general_names);
    assert!(!text.contains(CONTROLLER_NAME), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_refused() {
    let scene = Scene::start().await;
    let address = scene.controller.address();
    let answer = tokio::task::spawn_blocking(move || {
        let mut tcp = TcpStream::connect(address).expect("TCP");
        tcp.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        tcp.write_all(&client_hello_of_tls_1_2()).expect("sent");
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).expect("an answer, then the end");
        answer
    });
    let answer = answer.await.expect("no panic");
    // A record of type alert, fatal, protocol_version. Source: RFC 8446 §6.
    assert_eq!(answer.first(), Some(&21), "{answer:02x?}");
    assert_eq!(answer[answer.len() - 2..], [2, 70], "{answer:02x?}");
}

fn client_hello_of_tls_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]); // random
    body.push(0); // no session
    body.extend([0, 4, 0xc0, 0x2b, 0xc0, 0x2f]); // ECDHE with ECDSA or RSA, AES-128-GCM
    body.extend([1, 0]); // no compression
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    body.extend([0, 16]);
    body.extend(groups);
    body.extend(signatures);
    let mut handshake = vec![1, 0, 0, u8::try_from(body.len()).expect("short")];
    handshake.extend(body);
    let mut record = vec![22, 3, 1, 0, u8::try_from(handshake.len()).expect("short")];
    record.extend(handshake);
    record
}

/// Limits that a test meets soon.
fn tight() -> Limits {
    Limits {
        half_open_max: 64,
        silent_grace: Duration::from_millis(200),
        answered_grace: Duration::from_millis(600),
        visitors_max: 16,
        ..Limits::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_half_open_handshakes_and_slow_lorises_keep_nobody_out() {
    let scene = Scene::start_with(&Origin::Own, tight()).await;
    let good = scene.member().await;
    let live = scene.channel_of(&good).await.expect("a channel");
    let memory_before = resident();
    let address = scene.controller.address();
    let stop = tokio_util::sync::CancellationToken::new();
    let mut lorises = tokio::task::JoinSet::new();
    for n in 0..1000u32 {
        let stop = stop.clone();
        lorises.spawn(async move {
            // Each comes back when it is dropped, until the test ends.
            while !stop.is_cancelled() {
                let Ok(mut tcp) = tokio::net::TcpStream::connect(address).await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                for octet in client_hello_of_tls_1_2() {
                    // Every other one says nothing at all.
                    if n.is_multiple_of(2) && tcp.write_all(&[octet]).await.is_err() {
                        break;
                    }
                    let mut answer = [0; 16];
                    let wait = tokio::time::timeout(Duration::from_millis(300), tcp.read(&mut answer));
                    tokio::select! {
                        () = stop.cancelled() => return,
                        read = wait => if matches!(read, Ok(Ok(0) | Err(_))) { break },
                    }
                }
            }
        });
    }
    let counts = Arc::clone(&scene.controller.parts().handshakes);
    let under_siege = async {
        while counts.dropped.load(Ordering::Relaxed) < 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, under_siege)
        .await
        .expect("the bound is met");
    for _ in 0..5 {
        let comes_in = async {
            // An agent tries again when it is not let in.
            while scene.believes(&good).await.is_err() {}
        };
        tokio::time::timeout(PATIENCE, comes_in)
            .await
            .expect("it is let in");
        scene
            .renew(live.clone())
            .await
            .expect("live streams are unharmed");
    }
    let grown = resident().saturating_sub(memory_before);
    assert!(grown < 64 << 20, "memory grew by {grown} octets");
    stop.cancel();
    while lorises.join_next().await.is_some() {}
    scene.believes(&good).await.expect("and afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_good_callers_is_let_in_whole_although_it_is_beyond_the_bound() {
    let limits = Limits {
        half_open_max: 32,
        ..Limits::default()
    };
    let scene = Arc::new(Scene::start_with(&Origin::Own, limits).await);
    let mut members = Vec::new();
    for _ in 0..10 {
        members.push(Arc::new(scene.member().await));
    }
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..500 {
        let (scene, member) = (Arc::clone(&scene), Arc::clone(&members[n % members.len()]));
        callers.spawn(async move {
            scene
                .channel_of(&member)
                .await
                .map_err(|error| format!("{error:?}"))
        });
    }
    let channels = callers.join_all().await;
    for channel in &channels {
        assert!(channel.is_ok(), "{:?}", channel.as_ref().err());
    }
    let parts = scene.controller.parts();
    assert_eq!(parts.handshakes.dropped.load(Ordering::Relaxed), 0);
    let all_there = async {
        while parts.connections.count() < 500 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_there)
        .await
        .expect("all are connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn visitors_are_few_and_stay_for_a_while_only() {
    let limits = Limits {
        visitor_life: Duration::from_secs(2),
        ..tight()
    };
    let scene = Scene::start_with(&Origin::Own, limits).await;
    let good = scene.member().await;
    let live = scene.channel_of(&good).await.expect("a channel");
    let token = scene.token();
    let mut visitors = Vec::new();
    for _ in 0..50 {
        visitors.push(visit(&scene).await);
    }
    let connections = &scene.controller.parts().connections;
    let bounded = async {
        while connections.count() > limits.visitors_max + 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, bounded)
        .await
        .expect("the oldest are cut");
    scene.enrol(&token).await.expect("there is room for a newcomer");
    let gone = async {
        while connections.count() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone)
        .await
        .expect("the time of the others is over");
    scene.renew(live).await.expect("who has an SVID stays");
    drop(visitors);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_captured_svid_cannot_hold_many_connections_nor_keep_others_out() {
    let scene = Scene::start().await;
    let (captured, good) = (scene.member().await, scene.member().await);
    let live = scene.channel_of(&good).await.expect("a channel");
    let mut idle = Vec::new();
    for _ in 0..4 * CONNECTIONS_OF_ONE_MAX {
        idle.push(call(&scene, scene.tls_of(&captured)).await);
    }
    let connections = &scene.controller.parts().connections;
    let bounded = async {
        while connections.count() > CONNECTIONS_OF_ONE_MAX + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, bounded)
        .await
        .expect("the oldest are cut");
    scene.renew(live).await.expect("others are unharmed");
    scene.believes(&captured).await.expect("so is its owner");
    drop(idle);
    let gone = async {
        while connections.lives(&captured.id) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("none is left");
}

/// TLS without an SVID, and nothing more.
async fn visit(scene: &Scene) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let tls = trust::with_bundle(&scene.identities().authority().bundle(), None).expect("a bundle");
    call(scene, tls).await
}

async fn call(
    scene: &Scene,
    tls: rustls::ClientConfig,
) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let tcp = tokio::net::TcpStream::connect(scene.controller.address())
        .await
        .expect("TCP");
    let name = ServerName::try_from(CONTROLLER_NAME).expect("a name");
    TlsConnector::from(Arc::new(tls))
        .connect(name, tcp)
        .await
        .expect("TLS")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_no_http_is_refused_and_the_controller_goes_on() {
    let scene = Scene::start().await;
    let good = scene.member().await;
    let channel = scene
        .channel(scene.pinned(&scene.token()))
        .await
        .expect("a channel");
    let mut client = EnrolmentClient::new(channel);
    let large = EnrolRequest {
        token: "x".repeat(1 << 20),
        ..EnrolRequest::default()
    };
    let status = client.enrol(large).await.expect_err("too large");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");

    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..50 {
        let mut stream = visit(&scene).await;
        let mut octets = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        octets.truncate(random.usize(..=octets.len()));
        let more = random.usize(..2000);
        octets.extend(std::iter::repeat_with(|| random.u8(..)).take(more));
        let _ = stream.write_all(&octets).await; // It may be closed in the middle.
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _ = read.expect("the controller ends it");
    }
    scene.believes(&good).await.expect("the controller goes on");
}

/// Resident memory of this process, in octets.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("readable");
    let pages: u64 = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .expect("a number");
    pages * 4096
}

#[test]
fn a_clock_that_is_put_forward_tells_so_to_its_clones() {
    let clock = Clock::system();
    let clone = clock.clone();
    let before = clone.now();
    clock.advance(Duration::from_secs(86_400));
    assert!(clone.now().since(before) >= Duration::from_secs(86_400));
}
