//! What a flow is known by: its own key, and the key under which its twin on this host would look for it.

use std::hash::{BuildHasher as _, Hasher as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use foldhash::fast::FixedState;

use crate::flow::record::Protocol;
use crate::observe::{Cookie, Endpoint, Tuple};

/// One flow of one socket; never used twice while the host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FlowKey {
    pub(super) cookie: Cookie,
    /// As in [`RecordId::stream`](crate::flow::record::RecordId::stream).
    pub(super) stream: u64,
}

/// One peer of one UDP socket. Ordered by socket, so that a range finds all peers of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerKey {
    pub(super) cookie: Cookie,
    pub(super) peer: Endpoint,
}

impl PeerKey {
    /// All peers of one socket.
    pub(super) fn all_of(cookie: Cookie) -> RangeInclusive<Self> {
        let end = |address, port| Self {
            cookie,
            peer: Endpoint { address, port },
        };
        end(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)..=end(IpAddr::V6(Ipv6Addr::from([0xff; 16])), u16::MAX)
    }
}

/// Both ends of a socket as a number, the same for the socket at the other end but for `first`.
///
/// Equal numbers may mean other ends, though hardly ever: [`mirrors`] decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PairKey {
    pub(super) number: u64,
    /// Which of both ends it is.
    pub(super) first: bool,
}

impl PairKey {
    /// `None` when there cannot be a twin: an end is not bound, or the socket is connected to itself.
    pub(super) fn of(protocol: Protocol, tuple: &Tuple, hasher: &FixedState) -> Option<Self> {
        let Tuple { local, remote, .. } = *tuple;
        if local.port == 0 || remote.port == 0 || local == remote {
            return None;
        }
        let (local, remote) = (number(local), number(remote));
        let first = local <= remote;
        let (low, high) = if first { (local, remote) } else { (remote, local) };
        let mut hash = hasher.build_hasher();
        hash.write_u128(low.0);
        hash.write_u128(high.0);
        hash.write_u64(u64::from(low.1) << 32 | u64::from(high.1) << 8 | u64::from(protocol.number()));
        if is_own_to_namespace(tuple) {
            hash.write_u32(tuple.netns.0);
        }
        Some(Self {
            number: hash.finish(),
            first,
        })
    }

    /// The key of the socket at the other end.
    pub(super) fn mirror(self) -> Self {
        Self {
            first: !self.first,
            ..self
        }
    }
}

/// Whether two sockets of one protocol are at both ends of one connection. Loopback addresses mean another host in each
/// network namespace, all others mean the same wherever they are used on this host.
pub(super) fn mirrors(one: &Tuple, other: &Tuple) -> bool {
    one.local == other.remote
        && one.remote == other.local
        && (one.netns == other.netns || !is_own_to_namespace(one))
}

fn is_own_to_namespace(tuple: &Tuple) -> bool {
    tuple.local.address.is_loopback() || tuple.remote.address.is_loopback()
}

fn number(end: Endpoint) -> (u128, u16) {
    let address = match end.address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    (address.to_bits(), end.port)
}
