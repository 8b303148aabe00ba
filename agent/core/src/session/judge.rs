//! Whether an offer is taken: the rule, as a table.
//!
//! Versions of assignments rise; an epoch is above any version. Source: house style 2.3; `session.proto`, `Offer`.

use std::fmt;

use flowtilla_proto::wire::session as wire;
use sha2::{Digest as _, Sha256};

/// How new an assignment is. The epoch counts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Rises when the controller is restored from a backup.
    pub epoch: u64,
    /// Rises with each change.
    pub number: u64,
}

/// SHA-256 of an assignment's octets.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// Names one assignment: no two with the same name have other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// How new it is.
    pub version: Version,
    /// What it says.
    pub digest: Digest,
}

/// What becomes of an offer that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is newer.
    Adopt,
    /// It is what is held: said again, nothing done again.
    AlreadyHeld,
}

/// Why an offer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Something newer is held.
    #[error("version {offered} is older than {held}, which is held")]
    Stale {
        /// Of the offer.
        offered: Version,
        /// Of what is held.
        held: Version,
    },
    /// The same version with other content is held: one of two controllers does not know of the other, or lies.
    #[error("version {version} is held with other content")]
    Conflict {
        /// Of both.
        version: Version,
    },
    /// The content is not what the offer names.
    #[error("the content's SHA-256 is {found}, the offer says {expected}")]
    Digest {
        /// Of the content.
        found: Digest,
        /// What the offer says.
        expected: Digest,
    },
}

/// Judges what is offered by what is held. Asked twice, it says the same.
///
/// # Errors
///
/// [`Refusal::Stale`], [`Refusal::Conflict`].
pub fn judge(held: Option<&Held>, offered: &Held) -> Result<Verdict, Refusal> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let Some(held) = held else {
        return Ok(Verdict::Adopt);
    };
    match offered.version.cmp(&held.version) {
        Greater => Ok(Verdict::Adopt),
        Equal if offered.digest == held.digest => Ok(Verdict::AlreadyHeld),
        Equal => Err(Refusal::Conflict {
            version: held.version,
        }),
        Less => Err(Refusal::Stale {
            offered: offered.version,
            held: held.version,
        }),
    }
}

impl Digest {
    /// Of these octets.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }
}

impl Held {
    /// Reads what travels; `None`: the digest has not 32 octets.
    #[must_use]
    pub fn parse(sent: &wire::Held) -> Option<Self> {
        let digest = sent.digest.as_slice().try_into().ok()?;
        Some(Self {
            version: Version {
                epoch: sent.epoch,
                number: sent.version,
            },
            digest: Digest(digest),
        })
    }
}

impl From<Held> for wire::Held {
    fn from(held: Held) -> Self {
        Self {
            epoch: held.version.epoch,
            version: held.version.number,
            digest: held.digest.0.to_vec(),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.number)
    }
}

impl fmt::Display for Digest {
    /// The first 8 octets, in hex.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8]
            .iter()
            .try_for_each(|octet| write!(f, "{octet:02x}"))?;
        f.write_str("…")
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(epoch: u64, number: u64, content: &str) -> Held {
        Held {
            version: Version { epoch, number },
            digest: Digest::of(content.as_bytes()),
        }
    }

    #[test]
    fn the_table() {
        let stale = |offered: (u64, u64), held: (u64, u64)| {
            let version = |(epoch, number)| Version { epoch, number };
            Err(Refusal::Stale {
                offered: version(offered),
                held: version(held),
            })
        };
        let conflict = Err(Refusal::Conflict {
            version: Version { epoch: 1, number: 5 },
        });
        for (case, offered, verdict) in [
            ("newer", held(1, 6, "a"), Ok(Verdict::Adopt)),
            ("newer with the same content", held(1, 6, "x"), Ok(Verdict::Adopt)),
            ("the same again", held(1, 5, "x"), Ok(Verdict::AlreadyHeld)),
            ("the same version with other content", held(1, 5, "a"), conflict),
            ("older", held(1, 4, "a"), stale((1, 4), (1, 5))),
            (
                "older with the same content",
                held(1, 4, "x"),
                stale((1, 4), (1, 5)),
            ),
            (
                "a later epoch with a lower version",
                held(2, 1, "a"),
                Ok(Verdict::Adopt),
            ),
            (
                "an earlier epoch with a higher version",
                held(0, 9, "a"),
                stale((0, 9), (1, 5)),
            ),
        ] {
            assert_eq!(judge(Some(&held(1, 5, "x")), &offered), verdict, "{case}");
        }
        assert_eq!(judge(None, &held(0, 0, "a")), Ok(Verdict::Adopt));
    }

    #[test]
    fn what_travels_is_read_as_it_was_written() {
        let one = held(3, 9, "x");
        assert_eq!(Held::parse(&one.into()), Some(one));
        let mut sent = wire::Held::from(one);
        sent.digest.pop();
        assert_eq!(Held::parse(&sent), None);
    }
}
