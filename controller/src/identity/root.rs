//! One root of the trust domain, with what signs SVIDs under it: made here, or an intermediate from the operator's own CA.
//!
//! Parses, makes and checks certificates; does no IO.

use std::time::Duration;

use flowtilla_proto::spiffe::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ca::CaError;
use super::csr;
use super::rows::RootRow;
use crate::clock::WallMs;

/// How long a root that is made here lasts.
///
/// What a rotation that is forgotten for years survives. Half of it asks for one in the life of a host; double it, and it
/// outlives its algorithm.
pub(crate) const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How far the start of validity is before now, for clocks that are late.
pub(crate) const BACKDATED: Duration = Duration::from_secs(300);
/// Most certificates in a chain that an operator brings.
const CHAIN_MAX: usize = 6;

/// In which part of its life a root is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RootState {
    /// Trusted; does not sign yet.
    Prepared,
    /// Signs.
    Signing,
    /// Trusted; signs no more.
    Retiring,
}

/// A root, ready for use.
pub(crate) struct Root {
    pub(crate) number: u64,
    pub(crate) state: RootState,
    pub(crate) signer: CertificateDer<'static>,
    /// From the signer (included, unless it is the root) up to the root (not included).
    pub(crate) between: Vec<CertificateDer<'static>>,
    pub(crate) root: CertificateDer<'static>,
    pub(crate) cross: Option<CertificateDer<'static>>,
    pub(crate) brought: bool,
    pub(crate) made: WallMs,
    /// When the first of the signer and the root runs out, seconds.
    pub(crate) not_after: i64,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl RootState {
    fn number(self) -> u32 {
        match self {
            Self::Prepared => 1,
            Self::Signing => 2,
            Self::Retiring => 3,
        }
    }

    fn of_number(number: u32) -> Option<Self> {
        [Self::Prepared, Self::Signing, Self::Retiring]
            .into_iter()
            .find(|state| state.number() == number)
    }
}

impl Root {
    /// Makes a root with a new key.
    pub(crate) fn make(
        domain: &TrustDomain,
        number: u64,
        state: RootState,
        now: WallMs,
    ) -> Result<Self, CaError> {
        let pair = KeyPair::generate().map_err(CaError::Sign)?;
        let params = authority_params(domain, number, now)?;
        let certificate = params.self_signed(&pair).map_err(CaError::Sign)?;
        let root: CertificateDer<'static> = certificate.der().clone();
        Ok(Self {
            number,
            state,
            signer: root.clone(),
            between: Vec::new(),
            not_after: not_after(&root)?,
            issuer: Issuer::from_ca_cert_der(&root, pair).map_err(CaError::Sign)?,
            root,
            cross: None,
            brought: false,
            made: now,
        })
    }

    /// Takes what an operator brings. `chain`: PEM, the signer's certificate, then its issuers, the root last. `key`: PEM.
    pub(crate) fn bring(
        number: u64,
        state: RootState,
        chain: &[u8],
        key: &[u8],
        now: WallMs,
    ) -> Result<Self, CaError> {
        let mut chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .take(CHAIN_MAX + 1)
            .collect::<Result<_, _>>()
            .map_err(|_| CaError::Brought("the certificates cannot be read: they must be PEM"))?;
        if chain.len() > CHAIN_MAX {
            return Err(CaError::Brought("there are too many certificates in the chain"));
        }
        let root = chain.pop().ok_or(CaError::Brought(
            "there is no certificate in the file of certificates",
        ))?;
        if !is_self_signed(&root)? {
            return Err(CaError::Brought(
                "the last certificate is no root: append the certificates up to your root to the file",
            ));
        }
        let signer = chain.first().cloned().ok_or(CaError::Brought(
            "it is a root alone, and whatever a root signs would be believed: have it sign an intermediate for this \
             controller, and give that one's certificate, then the root's",
        ))?;
        let made = Self {
            number,
            state,
            not_after: not_after(&signer)?.min(not_after(&root)?),
            issuer: Issuer::from_ca_cert_der(&signer, key_pair(key)?).map_err(CaError::Sign)?,
            signer,
            between: chain,
            root,
            cross: None,
            brought: true,
            made: now,
        };
        made.check(now)?;
        Ok(made)
    }

    /// Puts a root together from its row and its key (PEM).
    pub(crate) fn load(number: u64, row: &RootRow, key: &[u8]) -> Result<Self, CaError> {
        let damaged = || CaError::Damaged(number);
        let der = |octets: &Vec<u8>| CertificateDer::from(octets.clone());
        let signer = der(&row.signer);
        let root = der(&row.root);
        let loaded = Self {
            number,
            state: RootState::of_number(row.state).ok_or_else(damaged)?,
            not_after: not_after(&signer)?.min(not_after(&root)?),
            issuer: Issuer::from_ca_cert_der(&signer, key_pair(key)?).map_err(|_| damaged())?,
            signer,
            between: row.between.iter().map(der).collect(),
            root,
            cross: (!row.cross.is_empty()).then(|| der(&row.cross)),
            brought: row.brought,
            made: WallMs(row.made_ms),
        };
        loaded.check_key()?;
        Ok(loaded)
    }

    pub(crate) fn row(&self) -> RootRow {
        RootRow {
            state: self.state.number(),
            signer: self.signer.to_vec(),
            between: self.between.iter().map(|der| der.to_vec()).collect(),
            root: self.root.to_vec(),
            cross: self.cross.as_ref().map(|der| der.to_vec()).unwrap_or_default(),
            made_ms: self.made.0,
            brought: self.brought,
        }
    }

    /// The signer's key, PEM (PKCS#8).
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Has `older` sign this root's key, so that whoever knows only `older` believes this one. `None` when `older` may not
    /// sign authorities, or this one was brought.
    pub(crate) fn crossed_by(
        &self,
        older: &Self,
        domain: &TrustDomain,
        now: WallMs,
    ) -> Result<Option<CertificateDer<'static>>, CaError> {
        if self.brought {
            return Ok(None);
        }
        let mut params = authority_params(domain, self.number, now)?;
        let last = older.not_after.min(self.not_after);
        set_validity(&mut params, now.minus(BACKDATED).seconds(), last);
        params.use_authority_key_identifier_extension = true;
        let cross = params
            .signed_by(&public_key(&self.root)?, &older.issuer)
            .map_err(CaError::Sign)?
            .der()
            .clone();
        let mut chain = vec![cross.clone()];
        chain.extend(older.between.iter().cloned());
        Ok(self.probe(&older.root, &chain, now).is_ok().then_some(cross))
    }

    fn check(&self, now: WallMs) -> Result<(), CaError> {
        self.check_key()?;
        // As the operator's CA allows it, and as it is believed here: with the signer as the end of each chain.
        self.probe(&self.root, &self.between, now)
            .and_then(|()| self.probe(&self.signer, &[], now))
            .map_err(CaError::BroughtChain)
    }

    fn check_key(&self) -> Result<(), CaError> {
        let (_, signer) =
            X509Certificate::from_der(&self.signer).map_err(|_| CaError::Damaged(self.number))?;
        let of_pair = csr::PublicKey::of_pair(self.issuer.key());
        match signer.public_key().raw == of_pair.der() {
            true => Ok(()),
            false => Err(CaError::Brought("the key is not that of the first certificate")),
        }
    }

    /// Signs an SVID for a key that is thrown away, and has the TLS library look whether it would be believed.
    fn probe(
        &self,
        root: &CertificateDer<'static>,
        chain: &[CertificateDer<'static>],
        now: WallMs,
    ) -> Result<(), rustls::Error> {
        let general = |error: &dyn std::fmt::Display| rustls::Error::General(error.to_string());
        let pair = KeyPair::generate().map_err(|error| general(&error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        set_validity(
            &mut params,
            now.minus(BACKDATED).seconds(),
            now.plus(BACKDATED).seconds(),
        );
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let uri = "spiffe://probe.invalid/agent/probe";
        params.subject_alt_names = vec![rcgen::SanType::URI(
            uri.try_into().map_err(|error| general(&error))?,
        )];
        let probe = params
            .signed_by(&pair, &self.issuer)
            .map_err(|error| general(&error))?;
        let roots =
            flowtilla_grpc::trust::roots(std::slice::from_ref(root)).map_err(|error| general(&error))?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), flowtilla_grpc::trust::provider())
                .build()
                .map_err(|error| general(&error))?;
        let seconds = u64::try_from(now.seconds()).unwrap_or(0);
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        verifier.verify_client_cert(probe.der(), chain, time).map(drop)
    }
}

/// Sets when a certificate is valid, in seconds since the epoch.
pub(crate) fn set_validity(params: &mut CertificateParams, from: i64, to: i64) {
    // Certificates cannot tell other times.
    let second = |seconds: i64| Duration::from_secs(seconds.clamp(0, LAST_SECOND).unsigned_abs());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + second(from);
    params.not_after = epoch + second(to);
}

/// 9999-12-31T23:59:59Z, the last time that a certificate can tell. Source: RFC 5280 §4.1.2.5.
const LAST_SECOND: i64 = 253_402_300_799;

/// A serial number: 16 random octets, never negative. Source: RFC 5280 §4.1.2.2.
pub(crate) fn serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut serial)
        .map_err(|_| CaError::Random)?;
    serial[0] = serial[0] & 0x7f | 0x40;
    Ok(serial)
}

/// A certificate's key, as certificates are made for it.
pub(crate) fn public_key(der: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfo, CaError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CaError::Certificate)?;
    SubjectPublicKeyInfo::from_der(certificate.public_key().raw).map_err(CaError::Sign)
}

fn authority_params(domain: &TrustDomain, number: u64, now: WallMs) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, domain.as_str());
    // Each root has a name of its own: chains are put together by names.
    params
        .distinguished_name
        .push(DnType::CommonName, format!("flowtilla root {number}"));
    set_validity(
        &mut params,
        now.minus(BACKDATED).seconds(),
        now.plus(ROOT_LIFE).seconds(),
    );
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn key_pair(pem: &[u8]) -> Result<KeyPair, CaError> {
    let unreadable = CaError::Brought(
        "the key is no ECDSA P-256 key in PEM (PKCS#8); make it one with \
         `openssl pkcs8 -topk8 -nocrypt -in KEY -out NEW`",
    );
    let Ok(text) = std::str::from_utf8(pem) else {
        return Err(unreadable);
    };
    KeyPair::from_pem_and_sign_algo(text, &rcgen::PKCS_ECDSA_P256_SHA256).map_err(|_| unreadable)
}

fn is_self_signed(der: &CertificateDer<'_>) -> Result<bool, CaError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CaError::Certificate)?;
    Ok(certificate.issuer() == certificate.subject() && certificate.verify_signature(None).is_ok())
}

fn not_after(der: &CertificateDer<'_>) -> Result<i64, CaError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| CaError::Certificate)?;
    Ok(certificate.validity().not_after.timestamp())
}
