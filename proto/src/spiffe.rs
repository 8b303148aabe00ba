//! SPIFFE IDs: who is at the other end of a connection.
//!
//! `spiffe://DOMAIN/agent/ID`, `/operator/NAME`, `/controller/ID`. Source: SPIFFE-ID §2 (trust domain: lower-case letters,
//! digits, dots, dashes, underscores; at most 255 octets; path: the same and upper case; the whole at most 2048 octets).

use std::fmt;

use crate::ids::{NAME_OCTETS_MAX, parse_name};
use crate::mistake::{Mistake, Mistakes};
use crate::reading::Refused;

/// Longest trust domain, in octets. Source: SPIFFE-ID §2.1.
pub const TRUST_DOMAIN_OCTETS_MAX: usize = 255;

/// A trust domain's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(String);

/// Name of an agent, an operator or a controller within its trust domain: 1 to [`NAME_OCTETS_MAX`] of `a-z 0-9 - .`, a
/// letter or digit at both ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(String);

/// What somebody is in a trust domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Captures on a host.
    Agent,
    /// Tells the controller what is wanted.
    Operator,
    /// Tells agents what to do.
    Controller,
}

/// Who somebody is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    /// Whose word it is.
    pub domain: TrustDomain,
    /// What it is.
    pub role: Role,
    /// Its name.
    pub name: MemberName,
}

/// Why a text is no SPIFFE ID of this project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no SPIFFE ID of an agent, an operator or a controller")]
pub struct SpiffeError;

impl TrustDomain {
    /// Reads a trust domain's name.
    ///
    /// # Errors
    ///
    /// One mistake, without a path.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        let inner = |octet: u8| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
        let remedy = format!("write 1 to {TRUST_DOMAIN_OCTETS_MAX} of a-z, 0-9, '-', '.' and '_'");
        let why = match text {
            "" => "is no name",
            _ if text.len() > TRUST_DOMAIN_OCTETS_MAX => "is too long for a trust domain",
            _ if !text.bytes().all(inner) => "is no trust domain",
            _ => return Ok(Self(text.to_owned())),
        };
        Err(one_mistake(text, Refused::new(why, remedy)))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl MemberName {
    /// Reads a name.
    ///
    /// # Errors
    ///
    /// One mistake, without a path.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        parse_name(text)
            .map(Self)
            .map_err(|refused| one_mistake(text, refused))
    }

    /// The name that is nearest to any text, such as a host's name, with `suffix` after a dash; cut where it is too long.
    /// `suffix`: at most 32 of `a-z 0-9`, not empty.
    #[must_use]
    pub fn nearest(text: &str, suffix: &str) -> Self {
        debug_assert!(!suffix.is_empty() && suffix.len() <= 32, "{suffix}");
        let plain: String = text
            .to_lowercase()
            .chars()
            .map(|c| {
                if matches!(c, 'a'..='z' | '0'..='9' | '.') {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        let room = NAME_OCTETS_MAX - suffix.len() - 1;
        let plain = plain.trim_matches(['-', '.']);
        let plain = plain[..plain.len().min(room)].trim_end_matches(['-', '.']);
        let plain = if plain.is_empty() { "host" } else { plain };
        Self(format!("{plain}-{suffix}"))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Role {
    /// Its word in a SPIFFE ID.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Operator => "operator",
            Self::Controller => "controller",
        }
    }
}

impl SpiffeId {
    /// Reads a SPIFFE ID.
    ///
    /// # Errors
    ///
    /// [`SpiffeError`].
    pub fn parse(text: &str) -> Result<Self, SpiffeError> {
        let path = text.strip_prefix("spiffe://").ok_or(SpiffeError)?;
        let mut parts = path.split('/');
        let (Some(domain), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(SpiffeError);
        };
        let role = [Role::Agent, Role::Operator, Role::Controller]
            .into_iter()
            .find(|known| known.as_str() == role)
            .ok_or(SpiffeError)?;
        Ok(Self {
            domain: TrustDomain::parse(domain).map_err(|_| SpiffeError)?,
            role,
            name: MemberName::parse(name).map_err(|_| SpiffeError)?,
        })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.domain, self.role.as_str(), self.name)
    }
}

fn one_mistake(text: &str, refused: Refused) -> Mistakes {
    let mistake = Mistake {
        path: String::new(),
        value: Some(text.to_owned()),
        why: refused.why,
        remedy: refused.remedy,
    };
    Mistakes::from_list(vec![mistake]).expect("one mistake")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written() {
        for text in [
            "spiffe://fleet.example/agent/web-1",
            "spiffe://x/operator/admin",
            "spiffe://x/controller/c1",
        ] {
            assert_eq!(SpiffeId::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn what_is_nearly_an_id_is_refused() {
        for text in [
            "",
            "spiffe://",
            "http://x/agent/a",
            "spiffe://x/agent",
            "spiffe://x/agent/",
            "spiffe://x/agent/a/b",
            "spiffe://x/agent/a/",
            "spiffe://x/root/a",
            "spiffe://X/agent/a",
            "spiffe://x:1/agent/a",
            "spiffe://u@x/agent/a",
            "spiffe://x/agent/a%20b",
            "spiffe://x/agent/..",
            "spiffe:///agent/a",
        ] {
            assert!(SpiffeId::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn any_host_name_gives_a_name() {
        for (host, name) in [
            ("web-1", "web-1-7f"),
            ("Web_1.example", "web-1.example-7f"),
            ("", "host-7f"),
            ("--", "host-7f"),
            ("näin", "n-in-7f"),
        ] {
            assert_eq!(MemberName::nearest(host, "7f").as_str(), name);
        }
        let long = MemberName::nearest(&"x".repeat(300), "7f");
        assert!(MemberName::parse(long.as_str()).is_ok(), "{long}");
    }
}
