//! The authority of a trust domain: its roots, and the SVIDs that it signs.
//!
//! Roots live in the store's table `Roots`, their keys in files `ca/NUMBER.key` of mode 0600; the key is on the disk before the
//! row that needs it, and goes after it. A change of root has three steps: *prepare* (a root is trusted beside the one that
//! signs), *activate* (it signs), *retire* (the one before is trusted no more). Between activate and retire the new root's key
//! is also signed by the root before (`cross`), so that those who were away since before *prepare* still believe the controller.
//! What is in use is one value behind an [`ArcSwap`]: readers see all of a change or nothing of it. Blocking where it writes.
//!
//! Trusted is whoever signs SVIDs, and nobody above: of an operator's own CA the intermediate that was brought, because its root
//! signs others, too. So bundles and pins hold signers, and [`Authority::has_signed`] is asked of each SVID that is shown.
//!
//! SVIDs: ECDSA P-256, one URI (the SPIFFE ID), the DNS name of a controller for controllers only, 24 h, backdated 5 min.
//! Source: X.509-SVID §2 to §4; RFC 5280.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use flowtilla_grpc::svid::pin_of;
use flowtilla_grpc::trust::CONTROLLER_NAME;
use flowtilla_proto::spiffe::{Role, SpiffeId, TrustDomain};
use flowtilla_proto::token::RootPin;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::csr::PublicKey;
use super::root::{BACKDATED, Root, RootState, serial, set_validity};
use super::rows::{self, RootRow};
use crate::clock::WallMs;
use crate::state::{self, StateError};
use crate::store::counter::Counter;
use crate::store::{Batch, Store, StoreError, Table};

/// How long an SVID lasts.
///
/// A stolen one is of use for a day, and a controller may be away for half of one. Source: design section 7.
pub const SVID_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Most roots at once: one that signs, and the one before or after it.
const ROOTS_MAX: usize = 2;

/// The authority.
pub struct Authority {
    domain: TrustDomain,
    directory: PathBuf,
    store: Arc<dyn Store>,
    trust: ArcSwap<Vec<Arc<Root>>>,
    /// Held by whoever changes the roots.
    changing: Mutex<()>,
    changes: watch::Sender<u64>,
}

/// Where the signing key comes from.
#[derive(Debug)]
pub enum Origin {
    /// A root of our own.
    Own,
    /// An intermediate of the operator's CA.
    Brought {
        /// Its certificate, then its issuers, the root last; PEM.
        chain: Vec<u8>,
        /// Its key, PEM (PKCS#8), ECDSA P-256.
        key: Vec<u8>,
    },
}

/// An SVID, signed.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The SVID, then the certificates between it and a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Seconds since the epoch after which it is void.
    pub not_after: i64,
    /// Its serial number.
    pub serial: Vec<u8>,
    /// Number of the root that it ends in.
    pub root: u64,
}

/// A root, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// Its number.
    pub number: u64,
    /// SHA-256 of the public key that signs SVIDs under it: what tokens pin.
    pub pin: RootPin,
    /// Seconds since the epoch after which it is void.
    pub not_after: i64,
    /// Whether SVIDs are signed under it.
    pub signs: bool,
    /// Whether it is trusted only until it is retired.
    pub retiring: bool,
}

/// A step of a change of root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotateStep {
    /// Make a root, and trust it.
    Prepare,
    /// Sign under it.
    Activate,
    /// Trust the one before no more.
    Retire,
}

/// Why the authority does not do what is asked.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// What an operator brings cannot be used.
    #[error("the CA's files cannot be used: {0}")]
    Brought(&'static str),
    /// Nobody would believe what it signs.
    #[error(
        "the CA's files cannot be used: SVIDs that the key signs would not be believed; check basicConstraints, \
         pathLen, dates and the order of the chain"
    )]
    BroughtChain(#[source] rustls::Error),
    /// A certificate cannot be read.
    #[error("a certificate of the CA cannot be read")]
    Certificate,
    /// A row or a key is not what was written.
    #[error(
        "root {0} is damaged: its row, or its file in ca/, is not what was written; restore from a backup"
    )]
    Damaged(u64),
    /// There is none in the store.
    #[error("the store holds no root that signs; restore from a backup")]
    None,
    /// The library refused.
    #[error("signing a certificate")]
    Sign(#[source] rcgen::Error),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// The step comes at the wrong time.
    #[error("{0}")]
    Step(String),
    /// See there.
    #[error(transparent)]
    State(#[from] StateError),
    /// See there.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Authority {
    /// Makes the first root: its key in `directory`, its row in `batch`.
    ///
    /// # Errors
    ///
    /// [`CaError`]: also when what the operator brings cannot sign SVIDs that are believed.
    pub fn found(
        domain: &TrustDomain,
        directory: &Path,
        origin: &Origin,
        now: WallMs,
        batch: &mut Batch,
    ) -> Result<(), CaError> {
        let root = match origin {
            Origin::Own => Root::make(domain, 1, RootState::Signing, now)?,
            Origin::Brought { chain, key } => Root::bring(1, RootState::Signing, chain, key, now)?,
        };
        state::write_private(&key_file(directory, 1), root.key().as_bytes())?;
        put(batch, &root);
        Counter::Root.note(batch, 1);
        Ok(())
    }

    /// Takes up the roots that there are.
    ///
    /// # Errors
    ///
    /// [`CaError`]: also when a key's file could be read by others.
    pub fn load(domain: TrustDomain, directory: PathBuf, store: Arc<dyn Store>) -> Result<Self, CaError> {
        let mut roots = Vec::new();
        for (key, row) in store.scan(Table::Roots, None, ROOTS_MAX + 1)? {
            let number: [u8; 8] = key.try_into().map_err(|_| CaError::Damaged(0))?;
            let number = u64::from_be_bytes(number);
            let row: RootRow = rows::read("root", &row)?;
            let key = state::read_private(&key_file(&directory, number))?;
            roots.push(Arc::new(Root::load(number, &row, &key)?));
        }
        if roots.len() > ROOTS_MAX || !roots.iter().any(|root| root.state == RootState::Signing) {
            return Err(CaError::None);
        }
        Ok(Self {
            domain,
            directory,
            store,
            trust: ArcSwap::from_pointee(roots),
            changing: Mutex::new(()),
            changes: watch::Sender::new(0),
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Signs an SVID. Its life ends with its signer's at the latest.
    ///
    /// # Errors
    ///
    /// [`CaError::Sign`], [`CaError::Random`], [`CaError::None`].
    pub fn issue(&self, id: &SpiffeId, key: &PublicKey, now: WallMs) -> Result<Issued, CaError> {
        let root = self.signing()?;
        let serial = serial()?;
        let not_after = now.plus(SVID_LIFE).seconds().min(root.not_after);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, id.name.as_str());
        set_validity(&mut params, now.minus(BACKDATED).seconds(), not_after);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let text = |text: String| text.try_into().map_err(CaError::Sign);
        params.subject_alt_names = vec![SanType::URI(text(id.to_string())?)];
        if id.role == Role::Controller {
            let name = SanType::DnsName(text(CONTROLLER_NAME.to_owned())?);
            params.subject_alt_names.push(name);
        }
        let key = SubjectPublicKeyInfo::from_der(key.der()).map_err(CaError::Sign)?;
        let svid = params.signed_by(&key, &root.issuer).map_err(CaError::Sign)?;
        let mut chain = vec![svid.der().clone()];
        chain.extend(root.between.iter().cloned());
        chain.extend(root.cross.iter().cloned());
        Ok(Issued {
            chain,
            not_after,
            serial: serial.to_vec(),
            root: root.number,
        })
    }

    /// The certificates that peers' chains may end in: the signers, and not the root of an operator's own CA. Whatever else
    /// that root signs, an SVID it is not.
    #[must_use]
    pub fn bundle(&self) -> Vec<CertificateDer<'static>> {
        self.trust.load().iter().map(|root| root.signer.clone()).collect()
    }

    /// What a controller shows: its chain, then every signer, so that a pin can be checked.
    #[must_use]
    pub fn presented(&self, issued: &Issued) -> Vec<CertificateDer<'static>> {
        let mut shown = issued.chain.clone();
        for signer in self.bundle() {
            if !shown.contains(&signer) {
                shown.push(signer);
            }
        }
        shown
    }

    /// What a token made at this moment pins, the key that signs; and the number of its root.
    ///
    /// # Errors
    ///
    /// [`CaError::None`].
    pub fn pin(&self) -> Result<(RootPin, u64), CaError> {
        let root = self.signing()?;
        let pin = pin_of(&root.signer).ok_or(CaError::Certificate)?;
        Ok((RootPin(pin), root.number))
    }

    /// The roots, the oldest first.
    #[must_use]
    pub fn roots(&self) -> Vec<RootFacts> {
        let facts = |root: &Arc<Root>| {
            Some(RootFacts {
                number: root.number,
                pin: RootPin(pin_of(&root.signer)?),
                not_after: root.not_after,
                signs: root.state == RootState::Signing,
                retiring: root.state == RootState::Retiring,
            })
        };
        self.trust.load().iter().filter_map(facts).collect()
    }

    /// Whether one of the roots' signers has signed this certificate. Dates do not matter here.
    #[must_use]
    pub fn has_signed(&self, svid: &[u8]) -> bool {
        let Ok((_, svid)) = X509Certificate::from_der(svid) else {
            return false;
        };
        self.trust.load().iter().any(|root| {
            X509Certificate::from_der(&root.signer).is_ok_and(|(_, signer)| {
                svid.issuer() == signer.subject() && svid.verify_signature(Some(signer.public_key())).is_ok()
            })
        })
    }

    /// Tells each change of the roots, by counting them.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Takes a step of a change of root. Blocking.
    ///
    /// *Prepare* takes `ca/next.pem` and `ca/next.key` when they are there (an operator's own CA), and makes a root otherwise.
    ///
    /// # Errors
    ///
    /// [`CaError::Step`] at the wrong time; nothing has changed after any error.
    pub fn rotate(&self, step: RotateStep, now: WallMs) -> Result<Vec<RootFacts>, CaError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            RotateStep::Prepare => self.prepare(now)?,
            RotateStep::Activate => self.activate(now)?,
            RotateStep::Retire => self.retire()?,
        }
        self.changes.send_modify(|count| *count += 1);
        Ok(self.roots())
    }

    fn prepare(&self, now: WallMs) -> Result<(), CaError> {
        let roots = self.trust.load_full();
        if roots.len() >= ROOTS_MAX {
            let why =
                "a change of root is under way: activate what is prepared, and retire the root before it";
            return Err(CaError::Step(why.into()));
        }
        let signing = self.signing()?;
        let number = Counter::Root.last(&*self.store)? + 1;
        let (chain, key) = (self.directory.join("next.pem"), self.directory.join("next.key"));
        let root = if chain.exists() || key.exists() {
            let (chain, key) = (state::read_small(&chain)?, state::read_private(&key)?);
            Root::bring(number, RootState::Prepared, &chain, &key, now)?
        } else if signing.brought {
            let why = format!(
                "the root in use was brought from another CA: put the next chain into {} and its key into {} \
                 (mode 0600), then prepare again",
                chain.display(),
                key.display()
            );
            return Err(CaError::Step(why));
        } else {
            Root::make(&self.domain, number, RootState::Prepared, now)?
        };
        let file = key_file(&self.directory, number);
        if file.exists() {
            // Left by a prepare that was cut off: no row names it, and its number was not given.
            std::fs::remove_file(&file).map_err(|source| state::io_error("removing", &file, source))?;
        }
        state::write_private(&file, root.key().as_bytes())?;
        let mut batch = Batch::default();
        put(&mut batch, &root);
        Counter::Root.note(&mut batch, number);
        self.store.commit(batch)?;
        self.trust.store(Arc::new(vec![signing, Arc::new(root)]));
        Ok(())
    }

    fn activate(&self, now: WallMs) -> Result<(), CaError> {
        let roots = self.trust.load_full();
        let prepared = roots.iter().find(|root| root.state == RootState::Prepared);
        let Some(prepared) = prepared else {
            let why = "no root is prepared: prepare one first";
            return Err(CaError::Step(why.into()));
        };
        let signing = self.signing()?;
        let cross = prepared.crossed_by(&signing, &self.domain, now)?;
        if cross.is_none() {
            tracing::warn!(
                root = prepared.number,
                "agents that were away since before `prepare` will not believe the new root, nor will whoever shows a token that \
                 was made before this"
            );
        }
        let before = self.again(&signing, RootState::Retiring, None)?;
        let after = self.again(prepared, RootState::Signing, cross)?;
        let mut batch = Batch::default();
        put(&mut batch, &before);
        put(&mut batch, &after);
        self.store.commit(batch)?;
        self.trust
            .store(Arc::new(vec![Arc::new(before), Arc::new(after)]));
        Ok(())
    }

    fn retire(&self) -> Result<(), CaError> {
        let roots = self.trust.load_full();
        let retiring = roots.iter().find(|root| root.state == RootState::Retiring);
        let Some(retiring) = retiring else {
            let why = "no root is to be retired: prepare another one and activate it first";
            return Err(CaError::Step(why.into()));
        };
        let after = self.again(&*self.signing()?, RootState::Signing, None)?;
        let mut batch = Batch::default();
        batch.remove(Table::Roots, retiring.number.to_be_bytes());
        put(&mut batch, &after);
        self.store.commit(batch)?;
        self.trust.store(Arc::new(vec![Arc::new(after)]));
        let file = key_file(&self.directory, retiring.number);
        if let Err(error) = std::fs::remove_file(&file) {
            tracing::warn!(path = %file.display(), %error, "the key of a retired root stays");
        }
        Ok(())
    }

    /// The same root in another state.
    fn again(
        &self,
        root: &Root,
        state: RootState,
        cross: Option<CertificateDer<'static>>,
    ) -> Result<Root, CaError> {
        let mut again = Root::load(root.number, &root.row(), root.key().as_bytes())?;
        again.state = state;
        again.cross = cross;
        Ok(again)
    }

    fn signing(&self) -> Result<Arc<Root>, CaError> {
        let roots = self.trust.load();
        let signing = roots.iter().find(|root| root.state == RootState::Signing);
        signing.cloned().ok_or(CaError::None)
    }
}

fn put(batch: &mut Batch, root: &Root) {
    let row = prost::Message::encode_to_vec(&root.row());
    batch.put(Table::Roots, root.number.to_be_bytes(), row);
}

pub(crate) fn key_file(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.key"))
}
