//! Certificate requests (PKCS#10): the key that is asked for, and the proof that whoever asks has it.
//!
//! Nothing else of a request is used: every name in an SVID is the controller's. Source: RFC 2986; RFC 5480 (EC keys).

use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Most octets of a request. One with an EC key and some names has less than 1 KiB.
pub const CSR_OCTETS_MAX: usize = 8 << 10;

/// Octets of a P-256 point that is not compressed.
const POINT_OCTETS: usize = 65;

/// A public key, ECDSA P-256: SubjectPublicKeyInfo, DER.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It is no request.
    #[error("the certificate request cannot be read: send PKCS#10 in DER")]
    Malformed,
    /// Whoever asks has not the key.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// Another kind of key.
    #[error("the certificate request's key is not ECDSA P-256")]
    Kind,
}

impl PublicKey {
    /// Reads the key of a certificate request.
    ///
    /// # Errors
    ///
    /// [`CsrError`].
    pub fn of_request(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > CSR_OCTETS_MAX {
            return Err(CsrError::Malformed);
        }
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        let key = &request.certification_request_info.subject_pki;
        if !is_p256(key) {
            return Err(CsrError::Kind);
        }
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        Ok(Self(key.raw.to_vec()))
    }

    /// The key that this process has made itself.
    pub(crate) fn of_pair(pair: &rcgen::KeyPair) -> Self {
        Self(rcgen::PublicKeyData::subject_public_key_info(pair))
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.0
    }

    /// SHA-256 of [`Self::der`].
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }
}

/// Whether a key is a P-256 one.
pub(crate) fn is_p256(key: &SubjectPublicKeyInfo<'_>) -> bool {
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|curve| curve.as_oid().ok());
    let point = &key.subject_public_key.data;
    key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve == OID_EC_P256)
        && point.len() == POINT_OCTETS
        && point[0] == 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key");
        let params = rcgen::CertificateParams::new(vec!["who.example".into()]).expect("a name");
        params.serialize_request(&pair).expect("a request").der().to_vec()
    }

    #[test]
    fn the_key_of_a_request_is_read() {
        let der = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        let key = PublicKey::of_request(&der).expect("a good request");
        assert!(key.der().len() > POINT_OCTETS);
    }

    #[test]
    fn other_kinds_of_keys_are_refused() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            assert_eq!(PublicKey::of_request(&request(algorithm)), Err(CsrError::Kind));
        }
    }

    #[test]
    fn a_request_that_was_cut_or_changed_is_refused_wherever() {
        let der = request(&rcgen::PKCS_ECDSA_P256_SHA256);
        for end in 0..der.len() {
            assert!(PublicKey::of_request(&der[..end]).is_err(), "cut at {end}");
        }
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 1;
            assert!(PublicKey::of_request(&changed).is_err(), "changed at {at}");
        }
        let mut longer = der;
        longer.push(0);
        assert_eq!(PublicKey::of_request(&longer), Err(CsrError::Malformed));
    }
}
