//! The controller's process, and identities that it will know.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use flowtilla_controller::clock::Clock;
use flowtilla_controller::enrolment::TokenOrder;
use flowtilla_controller::identities::Identities;
use flowtilla_grpc::channel::Address;
use flowtilla_grpc::trust;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

/// By what the line is known that says where it listens.
const LISTENS: &str = "the controller listens";

/// A running controller; killed when it is dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) address: Address,
    text: String,
}

impl Program {
    /// Starts it on this state, where it was before or anywhere. Blocks until it listens.
    pub(crate) fn start(state: &Path, at: Option<&str>) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_flowtilla-controller"))
            .args(["run", "--listen", at.unwrap_or("127.0.0.1:0"), "--state"])
            .arg(state)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stderr.take().expect("its words")).lines();
        let mut said = Vec::new();
        let text = loop {
            let Some(line) = lines.next() else {
                panic!("the controller has ended: {said:#?}");
            };
            let line = line.expect("readable");
            if let Some((_, rest)) = line.split_once(LISTENS) {
                let (_, address) = rest.rsplit_once('[').expect("its addresses");
                break address.trim_end().trim_end_matches(']').to_owned();
            }
            said.push(line);
        };
        // A full pipe would hold it up. The thread ends with the process.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains(" ERROR ") {
                    println!("{line}");
                }
            }
        });
        let address = Address::parse(&text).expect("an address");
        Self { child, address, text }
    }

    /// Kills it, without a chance to say goodbye. Where it was.
    pub(crate) fn kill(mut self) -> String {
        assert!(
            self.child.try_wait().expect("its state").is_none(),
            "it has ended by itself"
        );
        self.child.kill().expect("killed");
        self.child.wait().expect("it has ended");
        std::mem::take(&mut self.text)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// TLS of somebody with an identity: of an operator, or of an agent when there is no name.
pub(crate) fn identity(identities: &Identities, clock: &Clock, operator: &str) -> Arc<ClientConfig> {
    let order = TokenOrder {
        operator: operator.to_owned(),
        ..TokenOrder::default()
    };
    let (token, _) = identities
        .create_token(&order, None, clock.now())
        .expect("a token");
    let pair = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("no names");
    let csr = params.serialize_request(&pair).expect("a request");
    let granted = identities
        .enrol(&token.expose(), csr.der(), "host", clock.now())
        .expect("an identity");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let key = CertifiedKey::from_der(granted.issued.chain.clone(), key, &trust::provider()).expect("its key");
    let bundle: Vec<CertificateDer<'static>> = granted.bundle.into_iter().map(Into::into).collect();
    let shown = Arc::new(SingleCertAndKey::from(key));
    Arc::new(trust::with_bundle(&bundle, Some(shown)).expect("roots"))
}
