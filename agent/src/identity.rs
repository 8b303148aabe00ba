//! Who this agent is to its controller: key, SVID, roots; and how it gets them, keeps them and gets them back.
//!
//! Keys are made here and never leave: what goes out is a certificate request. Out: TLS settings that show the SVID there is
//! at each handshake, so that a renewed one needs no reconnect. A bad answer changes nothing.
//!
//! | there is | then |
//! |---|---|
//! | an SVID that counts | it is used; at half life the next one is asked for, with a new key |
//! | an SVID that has run out | the next one is asked for, with the same key; an operator may have to approve |
//! | none, and a token | it enrols |
//! | none, and no token | it cannot talk to a controller; what is held stays in force, and the token's file is looked for |
//!
//! Source: design section 7; `enrol.proto`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use flowtilla_agent_core::session::Validity;
use flowtilla_agent_core::time::WallTime;
use flowtilla_grpc::{svid, trust};
use flowtilla_proto::spiffe::{Role, SpiffeId};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, SignatureScheme};

use crate::clock;

pub use self::ask::{ANSWER_WAIT, AskError, Asked, enrol, recover, renew};
pub(crate) use self::ask::{explain_connect, explain_status, is_expired, is_refused, is_stranger, shown};
pub use self::files::FileError;
pub use self::prove::{ProveError, prove};
pub use self::settle::{Asker, SettleError, Token, settle};
pub(crate) use self::settle::{EnrolError, NewToken, TOKEN_LOOK, is_enrolled};

mod ask;
mod files;
mod prove;
mod settle;
#[cfg(test)]
mod tests;

/// Certificates between an SVID and its root, the SVID included, at most.
pub const CHAIN_MAX: usize = 8;

/// Who this agent is. Whole: the key is that of the SVID.
pub struct Identity {
    id: SpiffeId,
    validity: Validity,
    key: KeyPair,
    chain: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    certified: Arc<CertifiedKey>,
}

/// Why something is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What says which set of files counts.
    #[error("`current` names no set of files")]
    Link,
    /// A file of the set.
    #[error("{0} is missing")]
    Missing(String),
    /// A file of the set.
    #[error("{0} holds something else")]
    Pem(String),
    /// No certificate at all, or too many.
    #[error("{0} certificates in the SVID's chain")]
    Chain(usize),
    /// The first certificate.
    #[error("the SVID")]
    Svid(#[source] svid::SvidError),
    /// An SVID of somebody else.
    #[error("the SVID is of {0}, and not of an agent")]
    Role(Box<SpiffeId>),
    /// An SVID of another agent.
    #[error("the SVID is of {0}, who is somebody else")]
    Other(Box<SpiffeId>),
    /// Key and SVID do not belong together.
    #[error("the SVID is for another key")]
    Key,
    /// The roots.
    #[error("{0} roots of trust")]
    Roots(usize),
    /// The roots.
    #[error(transparent)]
    Bundle(#[from] trust::BundleError),
    /// The TLS library does not take the key.
    #[error("the key cannot be used")]
    Unusable(#[source] rustls::Error),
}

/// What tells wall time: the system's clock, or one that is ahead of it in a test. Clones tell the same time.
#[derive(Clone, Debug, Default)]
pub struct WallClock {
    ahead_s: Arc<AtomicU64>,
}

impl WallClock {
    /// The system's.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// Puts this clock and its clones ahead by `by` more: a day passes in a test.
    pub fn advance(&self, by: Duration) {
        self.ahead_s.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> WallTime {
        let ahead = self.ahead_s.load(Ordering::Relaxed).saturating_mul(1_000_000_000);
        WallTime(clock::wall_now().0.saturating_add(ahead))
    }

    /// TLS by this clock.
    fn govern(&self, mut config: ClientConfig) -> Arc<ClientConfig> {
        config.time_provider = Arc::new(self.clone());
        Arc::new(config)
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.now().seconds(),
        )))
    }
}

/// A key of the one kind that is used.
#[must_use]
pub(crate) fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .expect("the system has randomness, and ring this algorithm")
}

impl Identity {
    /// Puts the parts together. DER.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn assemble(
        key: KeyPair,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let first = chain.first().filter(|_| chain.len() <= CHAIN_MAX);
        let first = first.ok_or(IdentityError::Chain(chain.len()))?;
        let facts = svid::read(first).map_err(IdentityError::Svid)?;
        if facts.id.role != Role::Agent {
            return Err(IdentityError::Role(Box::new(facts.id)));
        }
        if facts.public_key != key.subject_public_key_info() {
            return Err(IdentityError::Key);
        }
        check_bundle(&bundle)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing =
            rustls::crypto::ring::sign::any_ecdsa_type(&private).map_err(IdentityError::Unusable)?;
        Ok(Self {
            id: facts.id,
            validity: Validity {
                not_before: facts.not_before,
                not_after: facts.not_after,
            },
            certified: Arc::new(CertifiedKey::new(chain.clone(), signing)),
            key,
            chain,
            bundle,
        })
    }

    /// SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// From when to when the SVID counts.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The SVID, then the certificates between it and a root; DER.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Roots of the trust domain; DER.
    #[must_use]
    pub fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The same, with other roots.
    fn with_bundle(&self, bundle: Vec<CertificateDer<'static>>) -> Result<Self, IdentityError> {
        let key = KeyPair::from_pem(&self.key_pem()).map_err(|_| IdentityError::Key)?;
        Self::assemble(key, self.chain.clone(), bundle)
    }
}

fn check_bundle(bundle: &[CertificateDer<'static>]) -> Result<(), IdentityError> {
    match bundle.len() {
        1..=flowtilla_agent_core::session::ROOTS_MAX => {
            trust::roots(bundle).map(drop).map_err(IdentityError::from)
        }
        n => Err(IdentityError::Roots(n)),
    }
}

impl std::fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// The identity in use, and where it is kept.
#[derive(Debug)]
pub struct Credentials {
    current: Arc<Current>,
    place: files::Place,
    clock: WallClock,
    /// One change at a time. Within: an SVID that was given and that the disk did not take.
    changing: Mutex<Option<Identity>>,
}

/// What a handshake shows.
#[derive(Debug)]
struct Current(ArcSwap<Identity>);

impl Credentials {
    /// Of an identity that is kept in this directory, or in memory only.
    #[must_use]
    pub fn new(identity: Identity, directory: Option<PathBuf>, clock: WallClock) -> Self {
        Self {
            current: Arc::new(Current(ArcSwap::from_pointee(identity))),
            place: files::Place(directory),
            clock,
            changing: Mutex::default(),
        }
    }

    /// The identity there is at this moment.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        self.current.0.load_full()
    }

    /// What tells the time.
    #[must_use]
    pub fn clock(&self) -> &WallClock {
        &self.clock
    }

    /// TLS to the controller, with the roots of this moment and the SVID of each handshake's.
    ///
    /// # Errors
    /// [`trust::BundleError`].
    pub fn tls(&self) -> Result<Arc<ClientConfig>, trust::BundleError> {
        let identity = Arc::clone(&self.current) as Arc<dyn ResolvesClientCert>;
        let config = trust::with_bundle(self.identity().bundle(), Some(identity))?;
        Ok(self.clock.govern(config))
    }

    /// Keeps the next SVID, then uses it. Blocks on the disk.
    ///
    /// # Errors
    /// [`FileError`]: the former one counts, here and on the disk; among them [`IdentityError::Other`]. What the disk did not
    /// take is there for [`Self::unkept`].
    pub fn renewed(&self, next: Identity) -> Result<(), FileError> {
        let mut unkept = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        *unkept = None;
        let known = self.identity();
        if next.id != known.id {
            return Err(self.damaged(IdentityError::Other(Box::new(next.id))));
        }
        if let Err(error) = self.place.store(&next, &mut |_| Ok(())) {
            *unkept = Some(next);
            return Err(error);
        }
        self.current.0.store(Arc::new(next));
        Ok(())
    }

    /// Keeps an identity in the place of this one, of the same agent or of another, then uses it. Blocks on the disk.
    ///
    /// # Errors
    /// [`FileError`]: the former one counts.
    pub(crate) fn enrolled_anew(&self, next: Identity) -> Result<(), FileError> {
        let mut unkept = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        *unkept = None;
        self.place.store(&next, &mut |_| Ok(()))?;
        self.current.0.store(Arc::new(next));
        Ok(())
    }

    /// The SVID that was given last and that the disk did not take, once: it is kept before another one is asked for.
    ///
    /// A controller gives an identity back for the newest few SVIDs only. A full disk at which each try asked for one more
    /// would leave this agent with an SVID before those.
    pub(crate) fn unkept(&self) -> Option<Identity> {
        let mut unkept = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = unkept.take()?;
        (!next.validity.is_over(self.clock.now())).then_some(next)
    }

    /// Keeps other roots (DER), then believes them. Blocks on the disk.
    ///
    /// # Errors
    /// [`FileError`]: the former ones count.
    pub fn roots_changed(&self, roots: Vec<Vec<u8>>) -> Result<(), FileError> {
        let mut unkept = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        *unkept = None; // It has the former roots.
        let bundle: Vec<_> = roots.into_iter().map(CertificateDer::from).collect();
        let known = self.identity();
        if known.bundle == bundle {
            return Ok(());
        }
        let next = known.with_bundle(bundle).map_err(|source| self.damaged(source))?;
        self.place.store(&next, &mut |_| Ok(()))?;
        self.current.0.store(Arc::new(next));
        Ok(())
    }

    fn damaged(&self, source: IdentityError) -> FileError {
        FileError::Damaged {
            path: self.place.0.clone().unwrap_or_default(),
            source,
        }
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().certified))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
