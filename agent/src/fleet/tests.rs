//! What an agent does before it hears from its controller.

use std::io;
use std::net::TcpListener;
use std::time::Duration;

use flowtilla_agent_core::session::{Digest, Held, Version};
use flowtilla_proto::policy::Policy;
use flowtilla_proto::wire;
use prost::Message as _;

use super::*;
use crate::held::Kept;
use crate::status::CollectorState;

/// Longest wait for anything. Far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Holds a policy that feeds one collector of header version 1, there, and captures nothing: no privilege is needed.
fn hold(state: &Path, port: u16) {
    let collector = wire::Collector {
        name: "main".into(),
        endpoint: format!("tcp://127.0.0.1:{port}"),
        encoding: wire::Encoding::NestedJson.into(),
        ..wire::Collector::default()
    };
    let policy = wire::Policy {
        name: "all".into(),
        export: Some(wire::Export {
            collectors: vec!["main".into()],
            ..wire::Export::default()
        }),
        ..wire::Policy::default()
    };
    let content = wire::session::Assignment {
        policy: Some(policy),
        collectors: vec![collector],
        revision: 1,
        drain: true,
    }
    .encode_to_vec();
    let held = Held {
        version: Version { epoch: 1, number: 1 },
        digest: Digest::of(&content),
    };
    let store = HeldStore(Some(state.to_owned()));
    store.prepare(&Kept { held, content }).expect("written");
    store.commit().expect("held");
}

/// A cgroup that is not there: nothing is captured, so nobody looks.
fn own_scope() -> Vec<Scope> {
    let part = wire::scope::Part::Cgroup(format!("/flowtilla-test-{:016x}", fastrand::u64(..)));
    let policy = wire::Policy {
        capture: Some(wire::Capture {
            scopes: vec![wire::Scope { part: Some(part) }],
            ..wire::Capture::default()
        }),
        ..wire::Policy::default()
    };
    Policy::try_from(policy).expect("sound").capture.scopes
}

/// An agent over this state. It has no identity, so it speaks to no controller.
async fn started(state: &Path) -> Running {
    start(Options {
        controller: Address::parse("127.0.0.1:1").expect("an address"),
        state: Some(state.to_owned()),
        spool: Some(state.to_owned()),
        token: None,
        labels: BTreeMap::new(),
        // Whatever agent of this host is at work: its place is another.
        scopes: own_scope(),
        alone: true,
        view_records_max: 0,
        clock: WallClock::system(),
        build: None,
    })
    .await
    .expect("an agent")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_of_header_version_1_is_not_spoken_to_under_a_number_that_nobody_gave() {
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().join("state");
    make_directory(&state).expect("ours");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("ours");
    hold(&state, listener.local_addr().expect("bound").port());

    let running = started(&state).await;
    let mut status = running.status.clone();
    let untold = status.wait_for(|status| {
        let states = status.collectors.iter().map(|collector| &collector.state);
        let mut whys = states.filter_map(|state| match state {
            CollectorState::Connecting { why } => why.as_deref(),
            _ => None,
        });
        whys.any(|why| why.contains("has not said yet by which source id of 8 bits"))
    });
    // A guard that lived on would hold up the agent's end.
    let untold = tokio::time::timeout(PATIENCE, untold).await;
    let untold = untold.is_ok_and(|found| found.is_ok());
    assert!(untold, "still: {:?}", running.status.borrow().collectors);
    let status = running.stop().await.expect("a stop");
    assert_eq!(status.collectors[0].connects, 0);
    let nobody = listener.accept().expect_err("nobody came");
    assert_eq!(nobody.kind(), io::ErrorKind::WouldBlock);

    // What a controller has given is used without one.
    std::fs::write(state.join("short-source-ids"), "main 7\n").expect("ours");
    let running = started(&state).await;
    let mut status = running.status.clone();
    let connected = status.wait_for(|status| status.collectors.iter().any(|one| one.connects > 0));
    let connected = tokio::time::timeout(PATIENCE, connected).await;
    let connected = connected.is_ok_and(|found| found.is_ok());
    assert!(connected, "still: {:?}", running.status.borrow().collectors);
    running.stop().await.expect("a stop");
    listener.accept().expect("it came");
}
