//! Stubs of what is asked of a runtime of Kubernetes (`cri/runtime.proto`), and a channel to one.
//!
//! One connection over a Unix socket, which is not made anew: whoever loses it asks for another channel, and begins with what
//! the runtime is by then.

use std::io;
use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// Generated types and stubs.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated: the .proto file holds the documentation"
)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// Most octets of the headers of one answer. A status takes some hundred.
const HEADERS_OCTETS_MAX: u32 = 16 << 10;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens, or this user may not.
    #[error("connecting")]
    Connect(#[source] io::Error),
    /// The connection broke at once.
    #[error("the connection")]
    Transport(#[source] tonic::transport::Error),
}

/// Connects. That the other side speaks gRPC is seen at the first call. Bounded in time by the caller.
///
/// # Errors
/// Each [`ConnectError`].
pub async fn connect(socket: &Path) -> Result<Channel, ConnectError> {
    let stream = UnixStream::connect(socket).await.map_err(ConnectError::Connect)?;
    let mut once = Some(TokioIo::new(stream));
    let connector = service_fn(move |_| {
        let stream = once.take().ok_or(io::ErrorKind::NotConnected);
        async move { stream.map_err(io::Error::from) }
    });
    // A Unix socket has no name; servers take this one.
    Endpoint::from_static("http://localhost")
        .http2_max_header_list_size(HEADERS_OCTETS_MAX)
        .connect_with_connector(connector)
        .await
        .map_err(ConnectError::Transport)
}
