//! What a flow is known by: its own key, and the key under which its twin on this host would look for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::flow::record::Protocol;
use crate::observe::{Cookie, Endpoint, NetNs, Tuple};

/// One flow of one socket; never used twice while the host runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FlowKey {
    pub(super) cookie: Cookie,
    /// As in [`RecordId::stream`](crate::flow::record::RecordId::stream).
    pub(super) stream: u32,
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

/// Both ends as one socket sees them, where they are unique: loopback addresses mean another host in each network
/// namespace, all others mean the same wherever they are used on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PairKey {
    local: Endpoint,
    remote: Endpoint,
    netns: NetNs,
    protocol: Protocol,
}

impl PairKey {
    /// `None` when there cannot be a twin: an end is not bound, or the socket is connected to itself.
    pub(super) fn of(protocol: Protocol, tuple: &Tuple) -> Option<Self> {
        let Tuple { local, remote, netns } = *tuple;
        if local.port == 0 || remote.port == 0 || local == remote {
            return None;
        }
        let own_to_namespace = local.address.is_loopback() || remote.address.is_loopback();
        Some(Self {
            local,
            remote,
            netns: if own_to_namespace { netns } else { NetNs(0) },
            protocol,
        })
    }

    /// The key of the socket at the other end.
    pub(super) fn mirror(self) -> Self {
        Self {
            local: self.remote,
            remote: self.local,
            ..self
        }
    }
}
