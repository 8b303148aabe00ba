//! An operator's identity: key, SVID and roots, in the directory of its context.
//!
//! `identity.pem` (0600): the key (PKCS#8), the SVID, then the certificates between it and a root. `bundle.pem`: roots of the trust
//! domain. Order of writes: the bundle, then key and SVID as one file. While a CA is changed a bundle holds both roots, so a
//! crash between the two leaves a pair that works.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, bail, ensure};
use flowtilla_agent_core::time::WallTime;
use flowtilla_grpc::{svid, trust};
use flowtilla_proto::spiffe::SpiffeId;
use flowtilla_proto::wire::enrol as wire;
use pem::Pem;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::contexts::{make_directory, replace};
use crate::output::harmless;

const IDENTITY: &str = "identity.pem";
const BUNDLE: &str = "bundle.pem";
/// Longest file, in octets. A chain or a bundle of 64 certificates.
const FILE_OCTETS_MAX: u64 = 256 << 10;

const KEY_TAG: &str = "PRIVATE KEY";
const CERTIFICATE_TAG: &str = "CERTIFICATE";

/// A key, made here. It is shown to nobody.
pub(crate) struct Key(KeyPair);

/// See the module.
pub(crate) struct Identity {
    key: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
    bundle: Vec<CertificateDer<'static>>,
    facts: svid::SvidFacts,
}

impl Key {
    /// A new one, ECDSA P-256.
    pub(crate) fn new() -> Self {
        Self(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system has randomness"))
    }

    /// A certificate request of it, DER. It names nobody: the controller decides every name.
    pub(crate) fn request(&self) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params
            .serialize_request(&self.0)
            .expect("a key signs what it is given");
        request.der().to_vec()
    }
}

impl Identity {
    /// What a controller gave for a key.
    ///
    /// # Errors
    ///
    /// It is no identity for this key.
    pub(crate) fn of_answer(key: Key, answer: wire::Identity) -> anyhow::Result<Self> {
        let certificates = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        let made = Self::assemble(
            key.0.serialize_der(),
            certificates(answer.chain),
            certificates(answer.bundle),
        );
        made.context("what the controller gave is no identity")
    }

    /// Reads a context's directory.
    ///
    /// # Errors
    ///
    /// There is none, others can read it, or it is damaged.
    pub(crate) fn load(directory: &Path) -> anyhow::Result<Self> {
        let shown = harmless(&directory.to_string_lossy());
        let read = |name: &str| read(&directory.join(name)).with_context(|| format!("{shown}/{name}"));
        let (identity, bundle) = (read(IDENTITY)?, read(BUNDLE)?);
        let parse = |text: &[u8]| pem::parse_many(text).context("it is no PEM");
        let made = (|| {
            let mut key = None;
            let mut chain = Vec::new();
            for part in parse(&identity)? {
                match part.tag() {
                    KEY_TAG => key = Some(part.into_contents()),
                    CERTIFICATE_TAG => chain.push(CertificateDer::from(part.into_contents())),
                    _ => {}
                }
            }
            let bundle = parse(&bundle)?
                .into_iter()
                .map(|part| CertificateDer::from(part.into_contents()));
            Self::assemble(key.context("it has no key")?, chain, bundle.collect())
        })();
        made.with_context(|| format!("the identity in {shown} is damaged; log in again"))
    }

    /// Replaces what a context's directory holds.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(crate) fn store(&self, directory: &Path) -> anyhow::Result<()> {
        let certificate = |der: &CertificateDer<'_>| Pem::new(CERTIFICATE_TAG, der.to_vec());
        let mut identity = vec![Pem::new(KEY_TAG, self.key.clone())];
        identity.extend(self.chain.iter().map(certificate));
        let bundle: Vec<Pem> = self.bundle.iter().map(certificate).collect();
        let write = || -> io::Result<()> {
            make_directory(directory)?;
            replace(&directory.join(BUNDLE), pem::encode_many(&bundle).as_bytes())?;
            replace(&directory.join(IDENTITY), pem::encode_many(&identity).as_bytes())
        };
        write().with_context(|| not_kept(directory))
    }

    /// Whether [`Self::store`] can write there, as far as that can be told without it.
    ///
    /// # Errors
    ///
    /// It cannot.
    pub(crate) fn may_be_kept(directory: &Path) -> anyhow::Result<()> {
        let made = tempfile::tempfile_in(directory).map(drop);
        made.with_context(|| not_kept(directory))
    }

    fn assemble(
        key: Vec<u8>,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> anyhow::Result<Self> {
        let Some(first) = chain.first() else {
            bail!("there is no certificate in it");
        };
        ensure!(!bundle.is_empty(), "there is no root in it");
        let facts = svid::read(first)?;
        let pair = KeyPair::try_from(key.as_slice()).map_err(|_| anyhow!("its key cannot be read"))?;
        ensure!(
            rcgen::PublicKeyData::subject_public_key_info(&pair) == facts.public_key,
            "its certificate is for another key"
        );
        trust::roots(&bundle)?;
        Ok(Self {
            key,
            chain,
            bundle,
            facts,
        })
    }

    /// Who one is.
    pub(crate) fn id(&self) -> &SpiffeId {
        &self.facts.id
    }

    /// The key once more: an SVID that ran out is recovered with it.
    pub(crate) fn key(&self) -> anyhow::Result<Key> {
        let pair = KeyPair::try_from(self.key.as_slice()).map_err(|_| anyhow!("its key cannot be read"))?;
        Ok(Key(pair))
    }

    /// The SVID, DER.
    pub(crate) fn svid(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// Roots of the trust domain.
    pub(crate) fn bundle(&self) -> &[CertificateDer<'static>] {
        &self.bundle
    }

    /// Seconds since the epoch after which the SVID is void.
    pub(crate) fn not_after(&self) -> i64 {
        self.facts.not_after
    }

    /// Whether it has run out.
    pub(crate) fn is_over(&self, now: WallTime) -> bool {
        seconds(now) >= self.facts.not_after
    }

    /// Whether more than half of its life is over.
    pub(crate) fn is_due(&self, now: WallTime) -> bool {
        let half = (self.facts.not_after - self.facts.not_before) / 2;
        seconds(now) >= self.facts.not_before.saturating_add(half)
    }

    /// For TLS.
    pub(crate) fn resolver(&self) -> anyhow::Result<Arc<dyn ResolvesClientCert>> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()));
        let certified = CertifiedKey::from_der(self.chain.clone(), key, &trust::provider())?;
        Ok(Arc::new(SingleCertAndKey::from(certified)))
    }
}

fn not_kept(directory: &Path) -> String {
    let shown = harmless(&directory.to_string_lossy());
    format!("the identity cannot be kept in {shown}, which needs room and must be this user's to write")
}

fn seconds(now: WallTime) -> i64 {
    i64::try_from(now.seconds()).unwrap_or(i64::MAX)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut octets = Vec::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no identity here; log in: agentctl login")
        }
        file => file?,
    };
    let mode = file.metadata()?.permissions().mode();
    ensure!(
        mode & 0o077 == 0,
        "others can read it; run chmod 600 on it, and consider to log in again"
    );
    file.take(FILE_OCTETS_MAX).read_to_end(&mut octets)?;
    Ok(octets)
}

/// Takes a context's identity away.
///
/// # Errors
///
/// The system refuses.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    for name in [IDENTITY, BUNDLE] {
        match fs::remove_file(directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    // Something else may be in it: then it stays.
    let _ = fs::remove_dir(directory);
    Ok(())
}
