//! Octets of a ring to typed events. Wrong lengths and unknown kinds are errors; nothing panics.

use core::fmt;
use zerocopy::FromBytes;

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
    let length = |_| wrong_length(head.kind, octets);
    Ok(match head.kind {
        kind::OPENED => Event::Opened(EventHead::ref_from_bytes(octets).map_err(|e| length(drop(e)))?),
        kind::GONE => Event::Gone(EventHead::ref_from_bytes(octets).map_err(|e| length(drop(e)))?),
        kind::TCP_SNAP | kind::TCP_ENDED | kind::TCP_LATE => {
            Event::Tcp(TcpEvent::ref_from_bytes(octets).map_err(|e| length(drop(e)))?)
        }
        kind::UDP_ENDED => Event::UdpEnded(UdpEvent::ref_from_bytes(octets).map_err(|e| length(drop(e)))?),
        kind::EXEC => Event::Exec(ExecEvent::ref_from_bytes(octets).map_err(|e| length(drop(e)))?),
        kind::FORK => Event::Fork(ForkEvent::ref_from_bytes(octets).map_err(|e| length(drop(e)))?),
        kind::CGROUP => Event::Cgroup(CgroupEvent::ref_from_bytes(octets).map_err(|e| length(drop(e)))?),
        other => return Err(DecodeError::Kind(other)),
    })
}

fn wrong_length(kind: u32, octets: &[u8]) -> DecodeError {
    DecodeError::Length {
        kind,
        found: octets.len(),
    }
}
