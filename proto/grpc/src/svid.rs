//! What stands in an X.509 SVID: who it is of, for which key, until when.
//!
//! Reads only; whether to believe it is [`crate::trust`]'s and the TLS library's business. Source: X.509-SVID §2 and §3.

use flowtilla_proto::spiffe::SpiffeId;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What stands in an SVID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SvidFacts {
    /// Who it is of.
    pub id: SpiffeId,
    /// Serial number, big-endian, as it stands there.
    pub serial: Vec<u8>,
    /// Seconds since the epoch before which it is void.
    pub not_before: i64,
    /// Seconds since the epoch after which it is void.
    pub not_after: i64,
    /// SubjectPublicKeyInfo, DER.
    pub public_key: Vec<u8>,
}

/// Why a certificate is no SVID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// It is no certificate.
    #[error("no X.509 certificate")]
    Malformed,
    /// An SVID has exactly one URI.
    #[error("a certificate with {0} URIs in its subject alternative name, where an SVID has one")]
    Uris(usize),
    /// The URI is no SPIFFE ID of this project.
    #[error("a certificate whose URI is no SPIFFE ID of an agent, an operator or a controller")]
    Id,
    /// It may sign others.
    #[error("a certificate of an authority, which speaks for nobody")]
    Authority,
}

/// Reads an SVID (DER).
///
/// # Errors
///
/// [`SvidError`].
pub fn read(der: &[u8]) -> Result<SvidFacts, SvidError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| SvidError::Malformed)?;
    if !rest.is_empty() {
        return Err(SvidError::Malformed);
    }
    if certificate.is_ca() {
        return Err(SvidError::Authority);
    }
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| SvidError::Malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    let [uri] = uris[..] else {
        return Err(SvidError::Uris(uris.len()));
    };
    Ok(SvidFacts {
        id: SpiffeId::parse(uri).map_err(|_| SvidError::Id)?,
        serial: certificate.raw_serial().to_vec(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        public_key: certificate.public_key().raw.to_vec(),
    })
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo, DER): what a token pins.
#[must_use]
pub fn pin_of(der: &[u8]) -> Option<[u8; 32]> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(Sha256::digest(certificate.public_key().raw).into())
}
