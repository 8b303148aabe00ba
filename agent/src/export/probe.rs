//! Whether a collector that is not fed could be: a connection, the whole handshake, its subscription, and closed again.
//!
//! Sends no message, and has no way to any mark. A task each, owned by the exporter; ends by itself, within the time limits
//! of connecting and [`HANDSHAKE_TIMEOUT`].

use std::io;

use flowtilla_agent_core::encode::header::Topic;
use flowtilla_agent_core::zmtp::{Event, Peer, Security};
use flowtilla_proto::collector::CollectorEndpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::connect::{ConnectError, connect};
use super::link::HANDSHAKE_TIMEOUT;

/// Octets read at once: a greeting and some subscriptions.
const READ_OCTETS: usize = 1_024;

/// What a probe found; an error is the reason why not, one sentence.
pub(super) type Probed = Result<(), String>;

/// Probes one collector.
pub(super) async fn probe(endpoint: CollectorEndpoint, security: Result<Security, ConnectError>) -> Probed {
    let security = security.map_err(|error| error.to_string())?;
    let mut stream = connect(&endpoint).await.map_err(|error| error.to_string())?;
    let mut peer = Peer::new(&security);
    let mut greeted = false;
    let talk = async {
        let mut octets = [0; READ_OCTETS];
        loop {
            while let Some(output) = peer.poll_output() {
                stream.write_all(&output).await.map_err(|error| broke(&error))?;
            }
            let count = stream.read(&mut octets).await.map_err(|error| broke(&error))?;
            if count == 0 {
                return Err(peer.closed().to_string());
            }
            peer.handle_input(&octets[..count])
                .map_err(|error| error.to_string())?;
            while let Some(event) = peer.poll_event() {
                greeted |= matches!(event, Event::HandshakeDone { .. });
            }
            if peer.is_subscribed(Topic::Flow.name().as_bytes()) {
                return Ok(());
            }
        }
    };
    match timeout(HANDSHAKE_TIMEOUT, talk).await {
        Ok(probed) => probed,
        Err(_) if greeted => Err("it does not subscribe to flows".into()),
        Err(_) => Err(peer.silent().to_string()),
    }
}

fn broke(error: &io::Error) -> String {
    format!("the connection broke: {error}")
}
