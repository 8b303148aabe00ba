//! A collector's public CURVE key, in the forms in which ntopng shows it.
//!
//! Source: ZeroMQ RFC 32 (Z85); ntopng prints 40 characters of Z85, later versions the hex digits of these characters.

use std::fmt;

use crate::reading::Refused;

/// Octets of an X25519 key.
const KEY_OCTETS: usize = 32;
/// Characters of its Z85 form.
const Z85_CHARACTERS: usize = 40;
/// Hex digits of these characters.
const HEX_DIGITS: usize = 2 * Z85_CHARACTERS;

const REMEDY: &str = "write the 40 characters or 80 hex digits that ntopng shows on its interface page";

/// A public CURVE key. Displayed as 40 characters of Z85.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CurveKey([u8; KEY_OCTETS]);

impl CurveKey {
    pub(crate) fn parse(text: &str) -> Result<Self, Refused> {
        match text.len() {
            Z85_CHARACTERS => from_z85(text.as_bytes()),
            HEX_DIGITS => from_z85(&from_hex(text)?),
            length => Err(Refused::new(format!("has {length} characters"), REMEDY)),
        }
    }

    /// The key.
    #[must_use]
    pub fn octets(&self) -> &[u8; KEY_OCTETS] {
        &self.0
    }
}

impl fmt::Display for CurveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&z85::encode(self.0))
    }
}

impl fmt::Debug for CurveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CurveKey({self})")
    }
}

fn from_z85(characters: &[u8]) -> Result<CurveKey, Refused> {
    let octets = z85::decode(characters)
        .ok()
        .and_then(|octets| <[u8; KEY_OCTETS]>::try_from(octets).ok());
    let Some(octets) = octets else {
        return Err(Refused::new("has characters that Z85 does not use", REMEDY));
    };
    if octets == [0; KEY_OCTETS] {
        return Err(Refused::new("is all zero, which is no public key", REMEDY));
    }
    Ok(CurveKey(octets))
}

fn from_hex(text: &str) -> Result<Vec<u8>, Refused> {
    let digit = |octet: u8| {
        char::from(octet)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| Refused::new("has characters that are not hex digits", REMEDY))
}
