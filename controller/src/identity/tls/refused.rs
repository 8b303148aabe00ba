//! Why handshakes are refused, in as many words as can be counted.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::{CertificateError, Error};

/// Why a handshake is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer's SVID has run out, or is not valid yet.
    Expired,
    /// The peer's SVID was signed by somebody else.
    Issuer,
    /// The peer's SVID is wrong in another way.
    Certificate,
    /// It is no SVID.
    Svid,
    /// It is an SVID of another trust domain.
    Domain,
    /// The peer has refused us.
    Peer,
    /// What the peer says is not TLS 1.3 as it is spoken here.
    Protocol,
    /// The line broke.
    Line,
}

/// How many were refused, by reason.
#[derive(Debug, Default)]
pub struct ByReason([AtomicU64; Reason::ALL.len()]);

impl Reason {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Expired,
        Self::Issuer,
        Self::Certificate,
        Self::Svid,
        Self::Domain,
        Self::Peer,
        Self::Protocol,
        Self::Line,
    ];

    /// One word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Issuer => "issuer",
            Self::Certificate => "certificate",
            Self::Svid => "svid",
            Self::Domain => "domain",
            Self::Peer => "peer",
            Self::Protocol => "protocol",
            Self::Line => "line",
        }
    }

    pub(super) fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match tls {
            Some(Error::InvalidCertificate(why)) => match why {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Self::Expired,
                CertificateError::UnknownIssuer => Self::Issuer,
                _ => Self::Certificate,
            },
            Some(Error::AlertReceived(_)) => Self::Peer,
            Some(_) => Self::Protocol,
            None => Self::Line,
        }
    }
}

impl ByReason {
    pub(super) fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_has_its_own_place_and_word() {
        let counts = ByReason::default();
        for (n, reason) in (1..).zip(Reason::ALL) {
            for _ in 0..n {
                counts.count(reason);
            }
        }
        let counted: Vec<u64> = Reason::ALL.iter().map(|&reason| counts.of(reason)).collect();
        assert_eq!(counted, [1, 2, 3, 4, 5, 6, 7, 8]);
        let words: std::collections::BTreeSet<&str> =
            Reason::ALL.iter().map(|reason| reason.word()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn what_tls_says_is_told_apart() {
        let of = |error| Reason::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(
            of(Error::InvalidCertificate(CertificateError::Expired)),
            Reason::Expired
        );
        assert_eq!(
            of(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
            Reason::Issuer
        );
        assert_eq!(
            of(Error::InvalidCertificate(CertificateError::BadSignature)),
            Reason::Certificate
        );
        assert_eq!(of(Error::HandshakeNotComplete), Reason::Protocol);
        assert_eq!(Reason::of(&io::ErrorKind::UnexpectedEof.into()), Reason::Line);
    }
}
