//! Proof that somebody has the key of an SVID: what is signed, and whether to believe it.
//!
//! In: a [`Challenge`], which the verifier makes anew for each question; the chain and the signature that came back; signers that
//! are trusted. Out: what stands in the SVID, or why it proves nothing. An SVID that has run out proves as much as one that has
//! not: what it is good for is its issuer's to say, and who asks compares its serial with those that the issuer tells. A signer is
//! judged strictly: it must be one of those that are trusted.
//!
//! The key signs other things, too: TLS 1.3 signs 64 spaces first, a certificate request begins with 0x30. Text that begins with
//! [`DOMAIN`] is neither, so a proof is of no use elsewhere, and nothing from elsewhere is a proof.
//! Source: RFC 8446 §4.4.3; RFC 2986 §4.2.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{Error, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::svid::{self, SvidError, SvidFacts};
use crate::trust::{self, BundleError};

/// How keys of SVIDs sign. Source: `enrol.proto`, which takes no other key.
pub const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;
/// Longest challenge, in octets. Purpose, a user, the longest host name, and a nonce take 500.
pub const CHALLENGE_OCTETS_MAX: usize = 1024;
/// Octets of a nonce. No two questions have the same, whoever asks.
pub const NONCE_OCTETS: usize = 32;
/// Name of the block of PEM with the signature, behind those with the chain.
pub const SIGNATURE_TAG: &str = "FLOWTILLA PROOF";

/// What everything that is signed begins with.
const DOMAIN: &[u8] = b"flowtilla: proof of an agent's key, version 1\0";

/// A question that only the holder of a key can answer, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge(String);

impl Challenge {
    /// For `purpose`, at `host`, as whoever asks calls both. An answer for another purpose, host or nonce is none.
    #[must_use]
    pub fn new(purpose: &str, host: &str, nonce: [u8; NONCE_OCTETS]) -> Self {
        let nonce: String = nonce.iter().map(|octet| format!("{octet:02x}")).collect();
        Self(format!("{purpose}\n{host}\n{nonce}"))
    }

    /// As it is handed to whoever is to prove.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

/// A nonce.
///
/// # Panics
///
/// The system has no randomness.
#[must_use]
pub fn nonce() -> [u8; NONCE_OCTETS] {
    let mut nonce = [0; NONCE_OCTETS];
    let random = trust::provider().secure_random;
    random.fill(&mut nonce).expect("the system has randomness");
    nonce
}

/// What is signed for a challenge.
#[must_use]
pub fn signed(challenge: &[u8]) -> Vec<u8> {
    [DOMAIN, challenge].concat()
}

/// Why something proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// There is no SVID.
    #[error("no SVID was shown")]
    Empty,
    /// The first certificate.
    #[error("what was shown is {0}")]
    Svid(#[from] SvidError),
    /// What is trusted.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// What is trusted.
    #[error("no signer is trusted")]
    Signers(#[from] VerifierBuilderError),
    /// None of the trusted signers has signed it.
    #[error("its SVID is of no signer that is trusted here")]
    Signer(#[source] Error),
    /// The signature is another key's, or for another challenge.
    #[error("the signature is not by the SVID's key, or not for this question")]
    Signature,
}

/// Checks a proof. `chain`: the SVID, then the certificates between it and a signer; `now_s`: seconds since the epoch.
///
/// # Errors
///
/// [`ProofError`].
pub fn verify(
    challenge: &Challenge,
    chain: &[CertificateDer<'_>],
    signature: &[u8],
    signers: &[CertificateDer<'static>],
    now_s: i64,
) -> Result<SvidFacts, ProofError> {
    let (first, between) = chain.split_first().ok_or(ProofError::Empty)?;
    let facts = svid::read(first)?;
    // An SVID that has run out is looked at as of its last moment.
    let moment = now_s.min(facts.not_after).max(facts.not_before);
    let moment = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(moment).unwrap_or(0)));
    let provider = trust::provider();
    let signers = trust::roots(signers)?;
    WebPkiClientVerifier::builder_with_provider(signers.into(), provider.clone())
        .build()?
        .verify_client_cert(first, between, moment)
        .map_err(ProofError::Signer)?;
    let (_, svid) = X509Certificate::from_der(first).map_err(|_| SvidError::Malformed)?;
    let key = &svid.public_key().subject_public_key.data;
    let algorithms = provider.signature_verification_algorithms.mapping;
    let ours = algorithms.iter().filter(|(scheme, _)| *scheme == SCHEME);
    let message = signed(challenge.text().as_bytes());
    let is_good = ours
        .flat_map(|(_, algorithms)| *algorithms)
        .any(|algorithm| algorithm.verify_signature(key, &message, signature).is_ok());
    match is_good {
        true => Ok(facts),
        false => Err(ProofError::Signature),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, SigningKey as _};

    use super::*;

    const AGENT: &str = "spiffe://fleet.test/agent/web-1";

    struct Signer {
        certificate: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn signer() -> Signer {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a signer").der().clone();
        Signer {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// An SVID for the first ten days of 2020.
    fn svid(signer: &Signer, key: &KeyPair) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 11);
        params.subject_alt_names = vec![SanType::URI(AGENT.try_into().expect("ASCII"))];
        params
            .signed_by(key, &signer.issuer)
            .expect("an SVID")
            .der()
            .clone()
    }

    fn sign(key: &KeyPair, challenge: &Challenge) -> Vec<u8> {
        key.sign(&signed(challenge.text().as_bytes()))
            .expect("a signature")
    }

    const DURING: i64 = 1_578_000_000;

    #[test]
    fn who_has_the_key_proves_it_for_this_question_alone() {
        let (ours, key) = (signer(), KeyPair::generate().expect("a key"));
        let chain = [svid(&ours, &key)];
        let trusted = [ours.certificate.clone()];
        let asked = Challenge::new("remove", "op@web-1:22", [7; NONCE_OCTETS]);
        let signature = sign(&key, &asked);
        let told = |asked: &Challenge, signature: &[u8]| verify(asked, &chain, signature, &trusted, DURING);
        assert_eq!(
            told(&asked, &signature).expect("it is proven").id.to_string(),
            AGENT
        );
        for other in [
            Challenge::new("upgrade", "op@web-1:22", [7; NONCE_OCTETS]),
            Challenge::new("remove", "op@web-2:22", [7; NONCE_OCTETS]),
            Challenge::new("remove", "op@web-1:22", [8; NONCE_OCTETS]),
        ] {
            assert!(
                matches!(told(&other, &signature), Err(ProofError::Signature)),
                "{other:?}"
            );
        }
        for at in 0..signature.len() {
            let mut flipped = signature.clone();
            flipped[at] ^= 1;
            assert!(told(&asked, &flipped).is_err(), "octet {at}");
            assert!(told(&asked, &signature[..at]).is_err(), "{at} octets");
        }
        // What the key signs elsewhere begins otherwise.
        let bare = key.sign(asked.text().as_bytes()).expect("a signature");
        assert!(matches!(told(&asked, &bare), Err(ProofError::Signature)));
        let other = KeyPair::generate().expect("a key");
        assert!(matches!(
            told(&asked, &sign(&other, &asked)),
            Err(ProofError::Signature)
        ));
    }

    #[test]
    fn an_svid_that_ran_out_proves_and_one_of_another_signer_does_not() {
        let (ours, other, key) = (signer(), signer(), KeyPair::generate().expect("a key"));
        let asked = Challenge::new("deploy", "web-1", nonce());
        let signature = sign(&key, &asked);
        let trusted = [ours.certificate.clone()];
        let told = |chain: &[CertificateDer<'static>], now| verify(&asked, chain, &signature, &trusted, now);
        let good = [svid(&ours, &key)];
        for now in [0, DURING, DURING + 10 * 365 * 86_400] {
            assert_eq!(
                told(&good, now).expect("it is proven").id.to_string(),
                AGENT,
                "{now}"
            );
        }
        let foreign = [svid(&other, &key), other.certificate.clone()];
        assert!(matches!(told(&foreign, DURING), Err(ProofError::Signer(_))));
        assert!(matches!(told(&[], DURING), Err(ProofError::Empty)));
        assert!(matches!(
            told(&trusted, DURING),
            Err(ProofError::Svid(SvidError::Authority))
        ));
        assert!(matches!(
            told(&[CertificateDer::from(vec![1, 2, 3])], DURING),
            Err(ProofError::Svid(SvidError::Malformed))
        ));
    }

    #[test]
    fn no_two_nonces_are_the_same() {
        assert_ne!(nonce(), nonce());
    }
}
