//! The program itself, killed while it gives identities.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flowtilla_controller::setup;
use flowtilla_grpc::channel::{Address, connect};
use flowtilla_grpc::enrol::enrolment_client::EnrolmentClient;
use flowtilla_grpc::trust;
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::enrol::{EnrolRequest, Identity};
use tonic::Code;

use super::scene::{PATIENCE, csr, pair};

/// A controller as a process of its own. It is killed when this goes.
struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    fn start(state: &Path, listen: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flowtilla-controller"))
            .args(["run", "--listen", listen, "--state"])
            .arg(state)
            .env_remove("FLOWTILLA_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (says, hears) = std::sync::mpsc::sync_channel(1);
        // Reads on to the end, so that the program can write.
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                let address = line
                    .split("addresses=[")
                    .nth(1)
                    .and_then(|rest| rest.split(']').next());
                if let Some(address) = address.and_then(|address| address.parse().ok()) {
                    let _ = says.try_send(address); // Waited for once.
                }
            }
        });
        let address = hears.recv_timeout(PATIENCE).expect("it says where it listens");
        Self { child, address }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may have ended.
        let _ = self.child.wait();
    }
}

fn token(state: &Path, operator: &str) -> JoinToken {
    let out = Command::new(env!("CARGO_BIN_EXE_flowtilla-controller"))
        .args(["token", "--operator", operator, "--state"])
        .arg(state)
        .stderr(Stdio::null())
        .output()
        .expect("the program");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    JoinToken::parse(&text).expect("a token")
}

/// Asks until it is answered, as an agent does that has no identity yet.
async fn enrol(address: SocketAddr, token: JoinToken, csr: Vec<u8>) -> Identity {
    let address = Address::parse(&address.to_string()).expect("an address");
    let request = EnrolRequest {
        token: token.expose(),
        csr,
        ..EnrolRequest::default()
    };
    loop {
        if let Ok(channel) = connect(&address, Arc::new(trust::with_pin(token.pin.0))).await {
            match EnrolmentClient::new(channel).enrol(request.clone()).await {
                Ok(identity) => return identity.into_inner(),
                // Cut off in the middle: nobody knows what has happened. A refusal would be final.
                Err(status) => assert_ne!(status.code(), Code::PermissionDenied, "{status:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_while_it_enrols_gives_each_token_one_identity() {
    let cycles = if std::env::var("FLOWTILLA_SOAK").is_ok_and(|it| it == "1") {
        100
    } else {
        10
    };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let state = directory.path().join("state");
    let made = Command::new(env!("CARGO_BIN_EXE_flowtilla-controller"))
        .args(["init", "--operator", "first", "--state"])
        .arg(&state)
        .output()
        .expect("the program");
    assert!(made.status.success(), "{made:?}");

    let mut program = Program::start(&state, "127.0.0.1:0");
    let address = program.address;
    let mut again = 0;
    for cycle in 0..cycles {
        let token = token(&state, &format!("operator-{cycle}"));
        let asking = tokio::spawn(enrol(address, token, csr(&pair())));
        let moment = Duration::from_micros(random.u64(..12_000));
        tokio::time::sleep(moment).await; // The moment of the kill is what the test is about.
        again += u32::from(!asking.is_finished());
        drop(program);
        program = Program::start(&state, &address.to_string());
        let identity = tokio::time::timeout(PATIENCE, asking)
            .await
            .unwrap_or_else(|_| panic!("seed {seed}, cycle {cycle}: not answered"));
        let id = identity
            .unwrap_or_else(|error| panic!("seed {seed}, cycle {cycle}: {error}"))
            .id;
        assert!(id.ends_with(&format!("/operator/operator-{cycle}")), "{id}");
    }
    drop(program);
    let opened = setup::open(&state, Duration::ZERO).expect("the state");
    assert_eq!(opened.identities.operators().len(), cycles, "seed {seed}");
    let unused = opened
        .identities
        .tokens()
        .into_iter()
        .filter(|token| token.used_by.is_empty());
    assert_eq!(unused.count(), 1, "the first operator's");
    println!("{again} of {cycles} were cut off before their answer");
}
