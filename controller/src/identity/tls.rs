//! TLS as the controller speaks it: 1.3 only, nothing resumed, a caller's SVID welcome but not needed.
//!
//! What is shown and who is believed is one [`ServerConfig`] behind an [`ArcSwap`], read at each accept: a change of root or a
//! renewed SVID counts from the next connection on. The controller's own key is made at each renewal and is in memory only.
//! [`accept`] takes connections, [`connection`] is one whose handshake is done.

use std::sync::Arc;

use arc_swap::ArcSwap;
use flowtilla_grpc::trust::{self, BundleError};
use flowtilla_proto::spiffe::SpiffeId;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};

use super::ca::{Authority, CaError, Issued};
use super::csr::PublicKey;
use crate::clock::{Clock, WallMs};

pub mod accept;
pub mod connection;
pub mod refused;

/// The controller's side of TLS.
pub struct Tls {
    authority: Arc<Authority>,
    id: SpiffeId,
    clock: Clock,
    current: ArcSwap<ServerConfig>,
}

/// When the controller's own SVID is to be renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// When it was issued.
    issued: WallMs,
    /// Half of its life.
    at: WallMs,
}

impl Renewal {
    /// Whether it is to be renewed now.
    #[must_use]
    pub fn is_due(self, now: WallMs) -> bool {
        now >= self.at || self.is_ahead(now)
    }

    /// Whether it was issued in what is the future now: the clock was ahead then, and nobody may believe it yet.
    #[must_use]
    pub fn is_ahead(self, now: WallMs) -> bool {
        now < self.issued
    }
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The controller's own SVID cannot be signed.
    #[error("signing the controller's own SVID")]
    Ca(#[from] CaError),
    /// The roots cannot be used.
    #[error("using the roots of the trust domain")]
    Bundle(#[from] BundleError),
    /// The roots cannot be used.
    #[error("using the roots of the trust domain")]
    Verifier(#[from] VerifierBuilderError),
    /// The library refused.
    #[error("setting up TLS")]
    Library(#[from] rustls::Error),
}

impl Tls {
    /// Signs the controller's first SVID. Tells when it is to be renewed ([`Tls::renew`]).
    ///
    /// # Errors
    ///
    /// [`TlsError`].
    pub fn new(authority: Arc<Authority>, id: SpiffeId, clock: Clock) -> Result<(Self, Renewal), TlsError> {
        let now = clock.now();
        let (config, issued) = configure(&authority, &id, &clock, now)?;
        let due = renewal(now, &issued);
        let tls = Self {
            authority,
            id,
            clock,
            current: ArcSwap::from_pointee(config),
        };
        Ok((tls, due))
    }

    /// Makes a new key, has it signed, and uses it and the present roots from the next connection on. Tells when to do so
    /// again: at half of the SVID's life, or when the clock turns out to have been ahead.
    ///
    /// # Errors
    ///
    /// [`TlsError`]: what was in use stays so.
    pub fn renew(&self) -> Result<Renewal, TlsError> {
        let now = self.clock.now();
        let (config, issued) = configure(&self.authority, &self.id, &self.clock, now)?;
        self.current.store(Arc::new(config));
        Ok(renewal(now, &issued))
    }

    /// Who the controller is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whether one of the signers there are has signed this SVID itself: an authority below one of them has no say.
    #[must_use]
    pub fn has_signed(&self, svid: &[u8]) -> bool {
        self.authority.has_signed(svid)
    }

    /// What the next connection uses.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }
}

fn renewal(now: WallMs, issued: &Issued) -> Renewal {
    let life = WallMs::from_seconds(issued.not_after).since(now);
    Renewal {
        issued: now,
        at: now.plus(life / 2),
    }
}

fn configure(
    authority: &Authority,
    id: &SpiffeId,
    clock: &Clock,
    now: WallMs,
) -> Result<(ServerConfig, Issued), TlsError> {
    let pair = rcgen::KeyPair::generate().map_err(CaError::Sign)?;
    let issued = authority.issue(id, &PublicKey::of_pair(&pair), now)?;
    let roots = trust::roots(&authority.bundle())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), trust::provider())
        .allow_unauthenticated()
        .build()?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let mut config = ServerConfig::builder_with_details(trust::provider(), Arc::new(clock.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(authority.presented(&issued), key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, issued))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_svid_is_due_at_half_its_life_and_when_it_is_of_the_future() {
        let now = WallMs(1_000_000);
        let issued = Issued {
            chain: Vec::new(),
            not_after: 1_200,
            serial: Vec::new(),
            root: 1,
        };
        let renewal = renewal(now, &issued);
        for (at, due, ahead) in [
            (999_999, true, true),
            (1_000_000, false, false),
            (1_099_999, false, false),
            (1_100_000, true, false),
        ] {
            let at = WallMs(at);
            assert_eq!((renewal.is_due(at), renewal.is_ahead(at)), (due, ahead), "{at:?}");
        }
    }
}
