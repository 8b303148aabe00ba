//! From a collector's endpoint to a connected socket, and the secrets of its connection.
//!
//! Every step has a time limit. Names are resolved anew each time: an address that moved is found.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use flowtilla_agent_core::zmtp::{CurveKeys, Security};
use flowtilla_proto::collector::{CollectorEndpoint, CurveKey, Host};
use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// Limit of resolving a name, and of connecting to one address.
///
/// Longer than the second retransmission of a SYN, 3 s. Half of it misses that; double it, and a name with one dead
/// address is connected to late.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Most addresses of one name that are tried.
pub const ADDRESSES_MAX: usize = 8;

/// Send buffer of a collector's socket, in octets, before the kernel doubles it.
///
/// What is in it cannot be taken back. Some round-trips' worth at the pace of one ntopng; half of it slows far lines,
/// double it, and twice as much comes twice after a break.
pub const SEND_BUFFER_OCTETS: u32 = 256 * 1024;

/// Why there is no connection: a sentence for the operator each.
#[derive(Debug, Error)]
pub(super) enum ConnectError {
    #[error("its name does not resolve: {0}")]
    Resolve(#[source] io::Error),
    #[error("its name does not resolve within 5 s")]
    ResolveTimeout,
    #[error("its name has no address")]
    NoAddress,
    #[error("connection refused: nothing listens at {0}")]
    Refused(SocketAddr),
    #[error("no connection to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("no answer from {0} within 5 s")]
    Timeout(SocketAddr),
    #[error("the system has no random numbers: {0}")]
    Entropy(#[source] io::Error),
}

/// Connects to the first address that accepts.
///
/// # Errors
/// [`ConnectError::Refused`] only when every address refused, so that it may be read as "its process is gone".
/// Otherwise what the last address said that did not refuse.
pub(super) async fn connect(endpoint: &CollectorEndpoint) -> Result<TcpStream, ConnectError> {
    let mut failure = ConnectError::NoAddress;
    for address in resolve(endpoint).await? {
        match connect_one(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let weaker = matches!(error, ConnectError::Refused(_))
                    && !matches!(failure, ConnectError::NoAddress | ConnectError::Refused(_));
                if !weaker {
                    failure = error;
                }
            }
        }
    }
    Err(failure)
}

async fn resolve(endpoint: &CollectorEndpoint) -> Result<Vec<SocketAddr>, ConnectError> {
    let port = endpoint.port.get();
    let name = match &endpoint.host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, port)]),
        Host::Name(name) => name.as_str(),
    };
    let found = timeout(CONNECT_TIMEOUT, lookup_host((name, port)))
        .await
        .map_err(|_| ConnectError::ResolveTimeout)?
        .map_err(ConnectError::Resolve)?;
    Ok(found.take(ADDRESSES_MAX).collect())
}

async fn connect_one(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::ConnectionRefused {
            ConnectError::Refused(address)
        } else {
            ConnectError::Connect { address, source }
        }
    };
    let socket = match address.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(failed)?;
    socket.set_send_buffer_size(SEND_BUFFER_OCTETS).map_err(failed)?;
    let stream = timeout(CONNECT_TIMEOUT, socket.connect(address))
        .await
        .map_err(|_| ConnectError::Timeout(address))?
        .map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    Ok(stream)
}

/// How a new connection is secured; its ephemeral secrets are drawn here.
///
/// # Errors
/// [`ConnectError::Entropy`].
pub(super) fn security(
    server: Option<&CurveKey>,
    client_secret: &[u8; 32],
) -> Result<Security, ConnectError> {
    let Some(server) = server else {
        return Ok(Security::Null);
    };
    Ok(Security::Curve(CurveKeys {
        server: *server.octets(),
        client_secret: *client_secret,
        ephemeral_secret: random()?,
        vouch_nonce: random()?,
    }))
}

/// Octets from the system's entropy.
///
/// # Errors
/// [`ConnectError::Entropy`].
pub(super) fn random<const N: usize>() -> Result<[u8; N], ConnectError> {
    let mut octets = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += getrandom(&mut octets[filled..], GetRandomFlags::empty())
            .map_err(|error| ConnectError::Entropy(error.into()))?;
    }
    Ok(octets)
}
