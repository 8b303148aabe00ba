//! Octets of a ring to typed events. Wrong lengths and unknown kinds are errors; nothing panics.

use core::fmt;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::{CgroupEvent, EventHead, ExecEvent, ForkEvent, TcpEvent, UdpEvent, kind};

/// One event of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A socket entered the map.
    Opened(&'a EventHead),
    /// A snap found no such socket any more.
    Gone(&'a EventHead),
    /// A TCP socket was read or ended; `head.kind` tells which.
    Tcp(&'a TcpEvent),
    /// A UDP socket was released.
    UdpEnded(&'a UdpEvent),
    /// A process executed a program.
    Exec(&'a ExecEvent),
    /// A process forked.
    Fork(&'a ForkEvent),
    /// A cgroup was made.
    Cgroup(&'a CgroupEvent),
    /// A cgroup that is left out was removed.
    CgroupGone(&'a EventHead),
}

/// Why octets are no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Fewer octets than the kind needs, more than it has, or not aligned to 8.
    Length {
        /// Kind read from the head; 0: not even a head.
        kind: u32,
        /// Octets found.
        found: usize,
    },
    /// No such kind.
    Kind(u32),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { kind, found } => {
                write!(f, "event of kind {kind} with a wrong length of {found} octets")
            }
            Self::Kind(kind) => write!(f, "event of unknown kind {kind}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Reads one event. `octets` must be aligned to 8, as a ring's items are.
///
/// # Errors
/// [`DecodeError::Length`] and [`DecodeError::Kind`].
pub fn decode(octets: &[u8]) -> Result<Event<'_>, DecodeError> {
    let (head, _) = EventHead::ref_from_prefix(octets).map_err(|_| wrong_length(0, octets))?;
    let kind = head.kind;
    Ok(match kind {
        kind::OPENED => Event::Opened(whole(kind, octets)?),
        kind::GONE => Event::Gone(whole(kind, octets)?),
        kind::TCP_SNAP | kind::TCP_ENDED | kind::TCP_LATE => Event::Tcp(whole(kind, octets)?),
        kind::UDP_ENDED => Event::UdpEnded(whole(kind, octets)?),
        kind::EXEC => Event::Exec(whole(kind, octets)?),
        kind::FORK => Event::Fork(whole(kind, octets)?),
        kind::CGROUP => Event::Cgroup(whole(kind, octets)?),
        kind::CGROUP_GONE => Event::CgroupGone(whole(kind, octets)?),
        other => return Err(DecodeError::Kind(other)),
    })
}

fn whole<T: FromBytes + KnownLayout + Immutable>(kind: u32, octets: &[u8]) -> Result<&T, DecodeError> {
    T::ref_from_bytes(octets).map_err(|_| wrong_length(kind, octets))
}

fn wrong_length(kind: u32, octets: &[u8]) -> DecodeError {
    DecodeError::Length {
        kind,
        found: octets.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros as _, IntoBytes as _};

    #[test]
    fn an_event_is_read_and_its_neighbours_in_length_are_refused() {
        let mut event = TcpEvent::new_zeroed();
        event.head.kind = kind::TCP_ENDED;
        let mut octets = [0_u64; 64];
        let octets = octets.as_mut_bytes();
        octets[..232].copy_from_slice(event.as_bytes());
        assert_eq!(decode(&octets[..232]), Ok(Event::Tcp(&event)));
        for wrong in (0..232).chain(233..octets.len()) {
            assert!(
                matches!(decode(&octets[..wrong]), Err(DecodeError::Length { found, .. }) if found == wrong)
            );
        }
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let mut head = EventHead::new_zeroed();
        head.kind = 99;
        assert_eq!(decode(head.as_bytes()), Err(DecodeError::Kind(99)));
    }
}
