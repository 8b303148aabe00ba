//! What is remembered of flows that left the table, so that a socket seen again is never counted twice.
//!
//! - A TCP flow that had to leave a full table goes on from the totals it reported when its socket is seen again.
//! - A UDP peer that fell silent likewise, because the kernel's counters are cumulative. Its memory may go once the
//!   kernel's own entry of the peer is deleted: [`Past::poll_forget`] asks for that, see [`Forget`].
//!
//! Bounded by the table's own bound, each kind. What had to be forgotten early moves `baseline_before` on: a flow that
//! begins at or before it counts from its first sight, as one older than the agent.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use foldhash::fast::FixedState;

use super::key::PeerKey;
use super::pair::Spoken;
use super::sides::Sides;
use crate::observe::{Cookie, Endpoint, TcpRole};
use crate::time::KernelTime;

/// How long copies of what a dead socket showed are recognised.
///
/// Longer than any walk of the kernel's maps takes to come round; double it, and a host with 5,000 connections a
/// second keeps 10 MB of dead cookies.
pub(super) const LINGER: Duration = Duration::from_secs(30);

/// Most dead TCP sockets, and as many dead UDP sockets and silent peers, that linger; beyond it the oldest go early.
///
/// 4,000 ends a second for [`LINGER`]. Half of it lets copies from overloaded walks be taken for new sockets sooner;
/// double it, and it may keep 20 MB.
pub(super) const LINGERING_MAX: usize = 131_072;

/// An order to the capture: delete this entry of the kernel's peer map, or of its map of UDP sockets.
///
/// The driver looks the entry up and deletes it in one call (`BPF_MAP_LOOKUP_AND_DELETE_ELEM`), and gives the value it
/// got, as that of a peer, to [`FlowTable::observe`](super::FlowTable::observe) before anything read later: when the peer
/// came back meanwhile, nothing is lost. No copy read before the deletion may be observed after it. The kernel counts the
/// peer from 0 again, with a newer first datagram: by that the table tells the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forget {
    /// The socket.
    pub cookie: Cookie,
    /// The peer.
    pub peer: Endpoint,
    /// Whether it is the socket's first peer, and the socket's own entry goes with it.
    ///
    /// Nobody has the socket: it is the kernel's own, whose entry comes again with its next datagram, or datagrams came
    /// while it was closed, and no end of it will ever be told.
    pub with_socket: bool,
}

/// A TCP flow that left a full table.
#[derive(Clone, Copy, Debug)]
pub(super) struct PastTcp {
    pub(super) stream: u64,
    /// When the socket's connection was, however many flows it had.
    pub(super) opened: KernelTime,
    pub(super) seen: Sides,
    pub(super) retransmits: u32,
    /// Another flow spoke for it.
    pub(super) silent: bool,
    pub(super) role: TcpRole,
    pub(super) syns_again: u32,
}

/// A UDP flow that left the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct PastPeer {
    pub(super) stream: u64,
    /// The kernel's counters, as told last.
    pub(super) counted: Sides,
    pub(super) newest: KernelTime,
    pub(super) generation: KernelTime,
    /// Its deletion is in the queue.
    pub(super) asked: bool,
}

#[derive(Debug)]
enum Linger {
    Udp(Cookie),
    Peer(PeerKey, u64),
}

#[derive(Debug)]
pub(super) struct Past {
    evicted: BTreeMap<Cookie, PastTcp>,
    peers: BTreeMap<PeerKey, PastPeer>,
    forget: VecDeque<PeerKey>,
    linger: VecDeque<(KernelTime, Linger)>,
    pub(super) spoken: Spoken,
    pub(super) baseline_before: KernelTime,
    /// Streams up to this may have been used by a TCP socket that had to be forgotten, or in earlier runs of the agent.
    stream_floor: u64,
}

impl Past {
    pub(super) fn new(hasher: &FixedState, started: KernelTime) -> Self {
        Self {
            evicted: BTreeMap::new(),
            peers: BTreeMap::new(),
            forget: VecDeque::new(),
            linger: VecDeque::new(),
            spoken: Spoken::new(hasher),
            baseline_before: KernelTime(0),
            stream_floor: started.0,
        }
    }

    /// A TCP socket ended.
    pub(super) fn bury_tcp(&mut self, cookie: Cookie) {
        self.evicted.remove(&cookie);
    }

    /// A UDP socket ended; [`Past::expire`] tells when it may be forgotten.
    pub(super) fn bury_udp(&mut self, cookie: Cookie, now: KernelTime) {
        self.linger.push_back((now.after(LINGER), Linger::Udp(cookie)));
    }

    /// Keeps the totals of a TCP flow whose socket lives on.
    pub(super) fn keep_tcp(&mut self, cookie: Cookie, past: PastTcp, max: usize) {
        self.evicted.insert(cookie, past);
        while self.evicted.len() > max {
            if let Some((_, lost)) = self.evicted.pop_first() {
                self.baseline_before = self.baseline_before.max(lost.opened);
                self.stream_floor = self.stream_floor.max(lost.stream);
            }
        }
    }

    /// TCP flows that left a full table and whose sockets were not seen since.
    pub(super) fn left(&self) -> impl Iterator<Item = (Cookie, &PastTcp)> {
        self.evicted.iter().map(|(&cookie, past)| (cookie, past))
    }

    /// Whether the flow of a connection left a full table and its socket was not seen since.
    pub(super) fn has_left(&self, cookie: Cookie, start: KernelTime) -> bool {
        self.evicted.get(&cookie).is_some_and(|past| start <= past.opened)
    }

    /// The totals from which a TCP socket's flow goes on.
    pub(super) fn resume_tcp(&mut self, cookie: Cookie) -> Option<PastTcp> {
        self.evicted.remove(&cookie)
    }

    /// The number of a flow whose socket may have had others that are forgotten.
    pub(super) fn unused_stream(&self) -> u64 {
        self.stream_floor.saturating_add(1)
    }

    /// Keeps the totals of a UDP peer.
    pub(super) fn keep_peer(&mut self, key: PeerKey, past: PastPeer, max: usize) {
        self.peers.insert(key, past);
        while self.peers.len() > max {
            if let Some((_, lost)) = self.peers.pop_first() {
                self.baseline_before = self.baseline_before.max(lost.newest);
            }
        }
    }

    pub(super) fn peer(&self, key: &PeerKey) -> Option<PastPeer> {
        self.peers.get(key).copied()
    }

    /// The totals from which a UDP peer's flow goes on; cancels its deletion.
    pub(super) fn resume_peer(&mut self, key: &PeerKey) {
        self.peers.remove(key);
    }

    /// Has the kernel's entry of a silent peer deleted.
    pub(super) fn ask_to_forget(&mut self, key: PeerKey) {
        if let Some(past) = self.peers.get_mut(&key)
            && !past.asked
        {
            past.asked = true;
            self.forget.push_back(key);
        }
    }

    /// As [`Past::ask_to_forget`], for all silent peers of a socket.
    pub(super) fn ask_to_forget_all(&mut self, cookie: Cookie) {
        let keys: Vec<_> = self
            .peers
            .range(PeerKey::all_of(cookie))
            .map(|(&key, _)| key)
            .collect();
        for key in keys {
            self.ask_to_forget(key);
        }
    }

    /// The next peer whose deletion was asked for. Whoever makes it says so by [`Past::forgotten`].
    pub(super) fn next_to_forget(&mut self) -> Option<PeerKey> {
        while let Some(key) = self.forget.pop_front() {
            if let Some(past) = self.peers.get_mut(&key)
                && past.asked
            {
                past.asked = false;
                return Some(key);
            }
        }
        None
    }

    /// The kernel's entry of a silent peer is deleted; the memory of it lingers, for copies that are still on their way.
    pub(super) fn forgotten(&mut self, key: &PeerKey, now: KernelTime) {
        if let Some(past) = self.peers.get(key) {
            let linger = Linger::Peer(*key, past.stream);
            self.linger.push_back((now.after(LINGER), linger));
        }
    }

    /// Forgets what lingered long enough, or was too much; returns a UDP socket to forget, until there is none.
    pub(super) fn expire(&mut self, now: KernelTime) -> Option<Cookie> {
        while self.linger.len() > LINGERING_MAX || self.linger.front().is_some_and(|&(at, _)| at <= now) {
            match self.linger.pop_front()?.1 {
                Linger::Udp(cookie) => return Some(cookie),
                Linger::Peer(key, stream) => {
                    if self
                        .peers
                        .get(&key)
                        .is_some_and(|past| past.stream == stream && !past.asked)
                    {
                        self.peers.remove(&key);
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
impl Past {
    pub(super) fn is_empty(&self) -> bool {
        self.evicted.is_empty() && self.peers.is_empty() && self.linger.is_empty()
    }
}
