//! A join token: what lets a host or an operator ask for its first identity, once.
//!
//! Text, one line: `flowtilla1.ID.SECRET.PIN`. ID: 16 hex digits. SECRET and PIN: 32 octets each in base64url without padding
//! (RFC 4648 §5). PIN is the SHA-256 of the public key (SubjectPublicKeyInfo, DER) of the root that the controller's chain
//! ends in: whoever holds the token needs no trust on first use. The controller stores a hash of the secret only.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Octets of a token's text at most.
///
/// What a well-formed one has; a file that is longer holds something else.
pub const TOKEN_OCTETS_MAX: usize = 256;

const PREFIX: &str = "flowtilla1";

/// Names a token in lists and logs. No secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u64);

/// What proves that its holder was given the token. Never logged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenSecret(pub [u8; 32]);

/// SHA-256 of a root's SubjectPublicKeyInfo (DER).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RootPin(pub [u8; 32]);

/// A join token. Its secret is shown by [`JoinToken::expose`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Its name.
    pub id: TokenId,
    /// Its secret.
    pub secret: TokenSecret,
    /// Root of the controller that made it.
    pub pin: RootPin,
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("is no token: one begins with flowtilla1. and has four parts")]
    Shape,
    /// One of its parts is cut off or changed.
    #[error("is a token of which the {0} cannot be read: it was cut off or changed")]
    Part(&'static str),
}

impl JoinToken {
    /// Reads a token; blanks around it do not matter.
    ///
    /// # Errors
    ///
    /// [`TokenError`]; the text is not repeated in it.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(id), Some(secret), Some(pin), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(TokenError::Shape);
        };
        let id = TokenId::parse(id).ok_or(TokenError::Part("id"))?;
        let secret = decode(secret).ok_or(TokenError::Part("secret"))?;
        let pin = decode(pin).ok_or(TokenError::Part("pin"))?;
        Ok(Self {
            id,
            secret: TokenSecret(secret),
            pin: RootPin(pin),
        })
    }

    /// The text, secret included: for whoever asked for the token.
    #[must_use]
    pub fn expose(&self) -> String {
        let encode = |octets: &[u8]| URL_SAFE_NO_PAD.encode(octets);
        format!(
            "{PREFIX}.{}.{}.{}",
            self.id,
            encode(&self.secret.0),
            encode(&self.pin.0)
        )
    }
}

impl TokenId {
    /// Reads 16 hex digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.len() == 16 && text.bytes().all(|octet| octet.is_ascii_hexdigit());
        hex.then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .map(Self)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Display for RootPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for RootPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn decode(text: &str) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> JoinToken {
        JoinToken {
            id: TokenId(0xabc),
            secret: TokenSecret([7; 32]),
            pin: RootPin([0xfe; 32]),
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let text = sample().expose();
        assert!(text.len() <= TOKEN_OCTETS_MAX);
        assert_eq!(JoinToken::parse(&format!(" {text}\n")), Ok(sample()));
    }

    #[test]
    fn a_token_that_was_cut_is_refused_wherever() {
        let text = sample().expose();
        for end in 0..text.len() {
            assert!(JoinToken::parse(&text[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn neither_debug_nor_errors_show_the_secret() {
        let secret = URL_SAFE_NO_PAD.encode([7; 32]);
        assert!(!format!("{:?}", sample()).contains(&secret));
        let error = JoinToken::parse(&format!("flowtilla1.xyz.{secret}.{secret}")).expect_err("a bad id");
        assert!(!error.to_string().contains(&secret));
    }
}
