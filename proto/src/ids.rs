//! Names and numbers that could be taken for one another.

use std::fmt;
use std::num::NonZeroU32;

use crate::reading::Refused;

/// Longest name, in octets.
///
/// A DNS label's length, so that a name may stand in a host name or a metric's label. Half of it cuts names that people
/// make of region, site and role; double it, and no table fits a terminal.
pub const NAME_OCTETS_MAX: usize = 63;

/// Name of a collector: 1 to [`NAME_OCTETS_MAX`] of `a-z 0-9 - .`, a letter or digit at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectorName(String);

impl CollectorName {
    pub(crate) fn parse(text: &str) -> Result<Self, Refused> {
        parse_name(text).map(Self)
    }

    /// Reads a name that was told, [`Self::failover`] too; `None`: it is none.
    #[must_use]
    pub fn told(text: &str) -> Option<Self> {
        Self::parse(text).ok()
    }

    /// The name of all collectors together when only one of them is fed at a time. No collector has it.
    #[must_use]
    pub fn failover() -> Self {
        Self("failover".to_owned())
    }

    /// Whether it is [`Self::failover`].
    #[must_use]
    pub fn is_failover(&self) -> bool {
        self.0 == "failover"
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a policy: as that of a collector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyName(String);

impl PolicyName {
    pub(crate) fn parse(text: &str) -> Result<Self, Refused> {
        parse_name(text).map(Self)
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name: 1 to [`NAME_OCTETS_MAX`] of `a-z 0-9 - .`, a letter or digit at both ends.
pub(crate) fn parse_name(text: &str) -> Result<String, Refused> {
    let remedy = || {
        format!("write 1 to {NAME_OCTETS_MAX} of a-z, 0-9, '-' and '.', with a letter or digit at both ends")
    };
    let inner = |octet: u8| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let outer = |octet: Option<&u8>| octet.is_some_and(|octet| matches!(octet, b'a'..=b'z' | b'0'..=b'9'));
    let octets = text.as_bytes();
    if octets.is_empty() {
        return Err(Refused::new("is no name", remedy()));
    }
    if octets.len() > NAME_OCTETS_MAX {
        return Err(Refused::new("is too long for a name", remedy()));
    }
    if !octets.iter().all(|&octet| inner(octet)) || !outer(octets.first()) || !outer(octets.last()) {
        return Err(Refused::new("is not a name", remedy()));
    }
    Ok(text.to_owned())
}

impl fmt::Display for CollectorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// ntopng's `source_id`: which agent a message is from. Never 0, stable for the life of a host.
///
/// Source: design section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(NonZeroU32);

impl SourceId {
    /// The id of this number; `None` for 0, which ntopng takes for "no source".
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The id made of a hash: 0 becomes 1.
    #[must_use]
    pub fn from_hash(hash: u32) -> Self {
        Self(NonZeroU32::new(hash).unwrap_or(NonZeroU32::MIN))
    }

    /// The number.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_like() {
        for good in ["a", "ntopng-1", "eu.west.2", &"x".repeat(NAME_OCTETS_MAX)] {
            assert!(CollectorName::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            ".a",
            "A",
            "a b",
            "a_b",
            "ä",
            "a\n",
            &"x".repeat(NAME_OCTETS_MAX + 1),
        ] {
            assert!(CollectorName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_source_id_is_never_zero() {
        assert_eq!(SourceId::new(0), None);
        assert_eq!(SourceId::new(7).map(SourceId::number), Some(7));
        assert_eq!(SourceId::from_hash(0).number(), 1);
        assert_eq!(SourceId::from_hash(9).number(), 9);
    }
}
