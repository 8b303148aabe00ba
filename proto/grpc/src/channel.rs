//! A channel to a controller.
//!
//! TCP, then TLS as [`crate::trust`] set it up, then HTTP/2. TLS is ours and not tonic's, because tonic's has no TLS 1.3 only,
//! no change of identity and no pin.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_proto::spiffe::SpiffeId;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::svid;
use crate::trust::CONTROLLER_NAME;

/// Port of a controller when the address names none.
pub const PORT_DEFAULT: u16 = 7443;

/// How long a connection may take, TLS included.
///
/// Three retransmissions of a SYN take 7 s. Half of it gives up on a bad line; double it, and a dead controller holds up its
/// callers.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a controller asks, by HTTP/2, whether who is silent is there. Callers do not ask: they wait to be asked.
///
/// Agents of a fleet must learn of the same change within ten seconds of each other, a cut line included. Half of it is
/// traffic on an idle line; double it, and both ends of a flow may tell it for as long.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long the answer may take. Longer than a storm of reconnects keeps a controller busy.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a caller takes a controller for alive that says nothing.
///
/// A controller that hears something just before it would ask asks twice [`KEEP_ALIVE`] after it spoke last; from then on it has
/// as long as it gives its callers. So the two ends of a cut line notice it within [`KEEP_ALIVE`] of each other, of which agents of
/// one list bear twice as much (`agent/core/src/fleet/rule.rs`). `integration/tests/fleet/cut.rs` cuts one, and prints how far they
/// are apart.
pub const SILENCE_MAX: Duration = KEEP_ALIVE.saturating_mul(2).saturating_add(KEEP_ALIVE_TIMEOUT);

/// Where a controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no address of a controller; write HOST or HOST:PORT, an IPv6 address in brackets")]
pub struct AddressError;

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not reached, or not believed.
    #[error("connecting to the controller at {address}")]
    Connect {
        /// Where.
        address: Address,
        /// TCP, TLS or HTTP/2: see its own sources.
        #[source]
        source: tonic::transport::Error,
    },
}

impl Address {
    /// Reads `HOST`, `HOST:PORT`, `ADDRESS` or `[ADDRESS]:PORT`.
    ///
    /// # Errors
    ///
    /// [`AddressError`].
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let of = |host: &str, port: Option<&str>| {
            let port = match port {
                None => PORT_DEFAULT,
                Some(digits) if digits.bytes().all(|octet| octet.is_ascii_digit()) => {
                    digits.parse().ok().filter(|&port| port > 0).ok_or(AddressError)?
                }
                Some(_) => return Err(AddressError),
            };
            let name = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_');
            let address = host.parse::<std::net::Ipv6Addr>().is_ok();
            if host.is_empty() || host.len() > 253 || !(address || host.bytes().all(name)) {
                return Err(AddressError);
            }
            Ok(Self {
                host: host.to_owned(),
                port,
            })
        };
        if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(AddressError)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| AddressError)?;
            return match rest {
                "" => of(host, None),
                _ => of(host, Some(rest.strip_prefix(':').ok_or(AddressError)?)),
            };
        }
        match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => of(text, None),
            Some((host, port)) => of(host, Some(port)),
            None => of(text, None),
        }
    }

    /// The host: a name, or an address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Connects. The channel makes a connection of its own again when this one ends; whoever wants to decide when (the agent's
/// session does) drops it.
///
/// # Errors
///
/// [`ConnectError`]. A controller that refuses the caller's SVID shows it at the first call only: in TLS 1.3 the caller's
/// handshake ends before the SVID is looked at.
///
/// # Cancel safety
///
/// The connection is dropped.
pub async fn connect(address: &Address, tls: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let target = (address.host.clone(), address.port);
    let connector = tower::service_fn(move |_| {
        let (target, tls) = (target.clone(), Arc::clone(&tls));
        async move {
            let connected = handshake(&target.0, target.1, tls).await;
            connected.map(|stream| TokioIo::new(Box::pin(watched(stream))))
        }
    });
    // The scheme and the name are tonic's alone: TLS is in the connector.
    Endpoint::from_static("http://controller.flowtilla.internal")
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Connect {
            address: address.clone(),
            source,
        })
}

/// Who answers at an address: TLS, the SVID that it shows, and closed again. Nothing is asked and nothing is shown.
///
/// # Errors
///
/// What the line or TLS says; also when what is shown is no SVID.
///
/// # Cancel safety
///
/// The connection is dropped.
pub async fn who(address: &Address, tls: Arc<ClientConfig>) -> io::Result<SpiffeId> {
    let stream = handshake(&address.host, address.port, tls).await?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let facts = shown.and_then(|shown| svid::read(shown).ok());
    let facts = facts.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it shows no SVID"))?;
    Ok(facts.id)
}

/// A stream of which a read fails when nothing came for [`SILENCE_MAX`].
fn watched<S: AsyncRead + AsyncWrite>(stream: S) -> TimeoutStream<S> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_read_timeout(Some(SILENCE_MAX));
    stream
}

async fn handshake(host: &str, port: u16, tls: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(CONTROLLER_NAME).expect("a DNS name");
        TlsConnector::from(tls).connect(name, tcp).await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_asks_is_alive_and_one_that_is_silent_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut ours = Box::pin(watched(ours));
        for _ in 0..10 {
            let (asked, read) = tokio::join!(
                async {
                    tokio::time::sleep(SILENCE_MAX - KEEP_ALIVE).await;
                    theirs.write_all(b"?").await
                },
                ours.read_u8(),
            );
            assert_eq!((asked.is_ok(), read.ok()), (true, Some(b'?')));
        }
        // What is sent does not count: the line may be cut.
        assert!(ours.write_all(b"!").await.is_ok());
        let silence = ours.read_u8().await.map_err(|error| error.kind());
        assert_eq!(silence, Err(io::ErrorKind::TimedOut));
    }

    #[test]
    fn addresses_are_hosts_with_or_without_a_port() {
        for (text, shown) in [
            ("c.example", "c.example:7443"),
            ("c.example:1", "c.example:1"),
            ("192.0.2.1:65535", "192.0.2.1:65535"),
            ("[2001:db8::1]:9", "[2001:db8::1]:9"),
            ("[::1]", "[::1]:7443"),
            ("2001:db8::1", "[2001:db8::1]:7443"),
        ] {
            assert_eq!(
                Address::parse(text).map(|a| a.to_string()),
                Ok(shown.to_owned()),
                "{text}"
            );
        }
        for text in [
            "", ":1", "a:", "a:0", "a:65536", "a:+1", "a b", "[a]:1", "[::1", "[::1]1", "http://a", "a/b",
        ] {
            assert_eq!(Address::parse(text), Err(AddressError), "{text}");
        }
    }
}
