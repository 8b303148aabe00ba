//! What the kernel side showed, in the agent's own words: the one door from the shared structures.
//!
//! In: decoded [`flowtilla_abi`] structures. Out: [`Observation`]s for the flow table and [`NameObservation`]s for
//! enrichment. Nothing a process can choose (its name, its path, its arguments) can fail here.

use std::net::{IpAddr, Ipv6Addr};

use flowtilla_abi as abi;

use crate::owner::{Comm, Confidence, Owner, Process, ProcessKey, Unknown};
use crate::time::KernelTime;

/// Identity of a socket for as long as the host runs. Source: `bpf_get_socket_cookie`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cookie(pub u64);

/// Address and port of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address; IPv4-mapped ones are IPv4 here.
    pub address: IpAddr,
    /// Port; 0 when it was never bound.
    pub port: u16,
}

/// One network namespace, by its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetNs(pub u32);

/// Both ends of a socket, as the socket sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// This end.
    pub local: Endpoint,
    /// The other end; port 0: none.
    pub remote: Endpoint,
    /// Where the socket lives.
    pub netns: NetNs,
}

/// Which end a TCP socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpRole {
    /// Older than the agent: not known.
    Unknown,
    /// It sent the SYN.
    Active,
    /// It was accepted.
    Passive,
    /// It listens.
    Listener,
}

/// Why a TCP socket is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpSight {
    /// It lives; its counters were read.
    Snap,
    /// It reached CLOSE.
    Ended,
    /// It sent something after CLOSE (a reset): counters replace those of `Ended`.
    Late,
}

/// State of a TCP socket. Source: Linux `include/net/tcp_states.h`, numbers 1 to 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[expect(missing_docs, reason = "the kernel's own names")]
pub enum TcpState {
    Established,
    SynSent,
    SynRecv,
    FinWait1,
    FinWait2,
    TimeWait,
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
}

impl TcpState {
    /// One lower-case word, as `ss` and others name it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Established => "established",
            Self::SynSent => "syn-sent",
            Self::SynRecv => "syn-recv",
            Self::FinWait1 => "fin-wait-1",
            Self::FinWait2 => "fin-wait-2",
            Self::TimeWait => "time-wait",
            Self::Close => "close",
            Self::CloseWait => "close-wait",
            Self::LastAck => "last-ack",
            Self::Listen => "listen",
            Self::Closing => "closing",
        }
    }
}

/// One sight of one TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpObservation {
    /// The socket.
    pub cookie: Cookie,
    /// When it was read.
    pub at: KernelTime,
    /// Why it is shown.
    pub sight: TcpSight,
    /// Both ends.
    pub tuple: Tuple,
    /// Which end it is.
    pub role: TcpRole,
    /// Whether it is older than the agent: its first counters are a baseline.
    pub backfilled: bool,
    /// Whether the socket is known to have had another connection before, or to have listened.
    pub again: bool,
    /// SYN sent, child made, or first seen: the same in all sights of one connection, later than the end of the socket's
    /// connection before.
    pub start: KernelTime,
    /// Handshake complete.
    pub established: Option<KernelTime>,
    /// CLOSE reached.
    pub end: Option<KernelTime>,
    /// Who holds it.
    pub owner: Owner,
    /// The kernel's cumulative counters.
    pub counters: abi::TcpCounters,
    /// State now; at CLOSE the state it left.
    pub state: TcpState,
}

/// What went between a UDP socket and one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpCounters {
    /// First datagram; a scheduler tick (4 ms or less) early at most.
    pub first: KernelTime,
    /// Newest datagram, likewise.
    pub last: KernelTime,
    /// Datagrams sent (segments, when the kernel segmented).
    pub packets_out: u64,
    /// Datagrams received.
    pub packets_in: u64,
    /// IP octets sent.
    pub octets_out: u64,
    /// IP octets received.
    pub octets_in: u64,
    /// Payload octets sent.
    pub payload_out: u64,
    /// Payload octets received.
    pub payload_in: u64,
    /// Whether the peer sent first.
    pub peer_first: bool,
}

/// One sight of one UDP socket and one of its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpObservation {
    /// The socket.
    pub cookie: Cookie,
    /// When it was read.
    pub at: KernelTime,
    /// Both ends; remote port 0: no datagram yet, only owner and life are told.
    pub tuple: Tuple,
    /// Who holds it; `None` from the peer map, which does not say.
    pub owner: Option<Owner>,
    /// Whether it is older than the agent.
    pub backfilled: bool,
    /// Sums since the socket was made or the peer was forgotten; monotone.
    pub counters: UdpCounters,
    /// Whether the socket was released.
    pub ended: bool,
}

/// What the flow table eats. Made on the stack and looked at once, so that its size costs less than a box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A socket entered the map, or is in it: have it read.
    Opened {
        /// The socket.
        cookie: Cookie,
        /// When it entered: [`TcpObservation::start`].
        at: KernelTime,
    },
    /// A snap found no such socket any more, and no end was told.
    Gone {
        /// The socket.
        cookie: Cookie,
        /// When.
        at: KernelTime,
    },
    /// A TCP socket.
    Tcp(TcpObservation),
    /// A UDP socket.
    Udp(UdpObservation),
}

/// What enrichment learns names from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameObservation {
    /// A process executed a program.
    Exec {
        /// The process, after exec.
        process: Process,
        /// Start of its parent.
        parent_start: KernelTime,
        /// Path as given to exec; `None`: unreadable.
        path: Option<String>,
        /// Arguments, the first at index 0, cut at [`abi::EXEC_ARGS_MAX`] octets.
        arguments: Vec<String>,
        /// Whether arguments were cut.
        cut: bool,
    },
    /// A process forked: the child has its parent's names.
    Fork {
        /// The parent.
        parent: Process,
        /// The child.
        child: ProcessKey,
    },
    /// A cgroup was made.
    Cgroup {
        /// Inode of its folder.
        id: u64,
        /// Path below the cgroup2 root.
        path: String,
    },
    /// A cgroup was removed. Told of those only that the kernel side leaves out.
    CgroupGone {
        /// Inode its folder had.
        id: u64,
    },
}

impl Endpoint {
    fn from_abi(address: [u8; 16], port: u16) -> Self {
        Self {
            address: IpAddr::V6(Ipv6Addr::from(address)).to_canonical(),
            port,
        }
    }
}

impl From<&abi::Tuple> for Tuple {
    fn from(tuple: &abi::Tuple) -> Self {
        Self {
            local: Endpoint::from_abi(tuple.local, tuple.local_port),
            remote: Endpoint::from_abi(tuple.remote, tuple.remote_port),
            netns: NetNs(tuple.netns),
        }
    }
}

impl From<&abi::Owner> for Process {
    fn from(owner: &abi::Owner) -> Self {
        Self {
            key: ProcessKey {
                pid: owner.tgid,
                start: KernelTime(owner.start_ns),
            },
            parent_pid: owner.ppid,
            uid: owner.uid,
            gid: owner.gid,
            cgroup_id: owner.cgroup_id,
            comm: comm(&owner.comm),
        }
    }
}

impl From<&abi::Owner> for Owner {
    fn from(owner: &abi::Owner) -> Self {
        let confidence = match owner.kind {
            abi::owner_kind::EXACT => Confidence::Exact,
            abi::owner_kind::INHERITED => Confidence::Inherited,
            abi::owner_kind::BACKFILLED => Confidence::Backfilled,
            abi::owner_kind::KERNEL => Confidence::Unknown(Unknown::Kernel),
            _ => Confidence::Unknown(Unknown::NotSeen),
        };
        let process = (owner.tgid > 0).then(|| Process::from(owner));
        if process.is_none() && !matches!(confidence, Confidence::Unknown(_)) {
            return Self::unknown(Unknown::NotSeen);
        }
        Self {
            confidence,
            process,
            names: None,
        }
    }
}

impl From<u8> for TcpState {
    /// Numbers the kernel may add later read as `Close`.
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynRecv,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => Self::Close,
        }
    }
}

/// A TCP event of the ring, or an entry that a walk found (`sight` says why).
#[must_use]
pub fn tcp(cookie: u64, at_ns: u64, sight: TcpSight, entry: &abi::TcpEntry) -> Observation {
    let some_time = |ns: u64| (ns > 0).then_some(KernelTime(ns));
    Observation::Tcp(TcpObservation {
        cookie: Cookie(cookie),
        at: KernelTime(at_ns),
        sight,
        tuple: Tuple::from(&entry.tuple),
        role: match entry.role {
            abi::tcp_role::ACTIVE => TcpRole::Active,
            abi::tcp_role::PASSIVE => TcpRole::Passive,
            abi::tcp_role::LISTENER => TcpRole::Listener,
            _ => TcpRole::Unknown,
        },
        backfilled: entry.backfilled != 0,
        again: entry.again != 0,
        start: KernelTime(entry.start_ns),
        established: some_time(entry.established_ns),
        end: some_time(entry.end_ns),
        owner: Owner::from(&entry.owner),
        counters: entry.counters,
        state: TcpState::from(entry.counters.state),
    })
}

/// Nanoseconds that `CLOCK_BOOTTIME` is ahead of `CLOCK_MONOTONIC`: the time slept since boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slept(pub u64);

/// What an event of the flow ring shows; `None` for events of the name ring.
#[must_use]
pub fn flow_event(event: &abi::Event<'_>, slept: Slept) -> Option<Observation> {
    Some(match event {
        abi::Event::Opened(head) => Observation::Opened {
            cookie: Cookie(head.cookie),
            at: KernelTime(head.at_ns),
        },
        abi::Event::Gone(head) => Observation::Gone {
            cookie: Cookie(head.cookie),
            at: KernelTime(head.at_ns),
        },
        abi::Event::Tcp(event) => {
            let sight = match event.head.kind {
                abi::kind::TCP_ENDED => TcpSight::Ended,
                abi::kind::TCP_LATE => TcpSight::Late,
                _ => TcpSight::Snap,
            };
            tcp(event.head.cookie, event.head.at_ns, sight, &event.entry)
        }
        abi::Event::UdpEnded(event) => udp(event.head.cookie, event.head.at_ns, &event.entry, true, slept),
        abi::Event::Exec(_) | abi::Event::Fork(_) | abi::Event::Cgroup(_) | abi::Event::CgroupGone(_) => {
            return None;
        }
    })
}

/// The entry of a UDP socket, with its first peer.
#[must_use]
pub fn udp(cookie: u64, at_ns: u64, entry: &abi::UdpEntry, ended: bool, slept: Slept) -> Observation {
    let tuple = Tuple::from(&entry.tuple);
    Observation::Udp(UdpObservation {
        cookie: Cookie(cookie),
        at: KernelTime(at_ns),
        tuple,
        owner: Some(Owner::from(&entry.owner)),
        backfilled: entry.backfilled != 0,
        counters: udp_counters(&entry.counters, tuple.remote.address, slept),
        ended,
    })
}

/// An entry of the peer map: a peer of a socket after its first.
#[must_use]
pub fn udp_peer(cookie: u64, at_ns: u64, value: &abi::UdpPeerValue, slept: Slept) -> Observation {
    let tuple = Tuple::from(&value.tuple);
    Observation::Udp(UdpObservation {
        cookie: Cookie(cookie),
        at: KernelTime(at_ns),
        tuple,
        owner: None,
        backfilled: false,
        counters: udp_counters(&value.counters, tuple.remote.address, slept),
        ended: false,
    })
}

/// IP octets are payload and a header of 28 (IPv4) or 48 (IPv6) octets a datagram; IP options are not seen.
fn udp_counters(counters: &abi::UdpCounters, peer: IpAddr, slept: Slept) -> UdpCounters {
    let header = if peer.is_ipv4() { 28 } else { 48 };
    let octets = |payload: u64, packets: u64| payload.saturating_add(packets.saturating_mul(header));
    UdpCounters {
        first: KernelTime(counters.first_ns.saturating_add(slept.0)),
        last: KernelTime(counters.last_ns.saturating_add(slept.0)),
        packets_out: counters.packets_out,
        packets_in: counters.packets_in,
        octets_out: octets(counters.payload_out, counters.packets_out),
        octets_in: octets(counters.payload_in, counters.packets_in),
        payload_out: counters.payload_out,
        payload_in: counters.payload_in,
        peer_first: counters.first_in != 0,
    }
}

/// What an event of the name ring shows; `None` for events of the flow ring.
#[must_use]
pub fn name_event(event: &abi::Event<'_>) -> Option<NameObservation> {
    Some(match event {
        abi::Event::Exec(event) => {
            let args = &event.args[..usize::from(event.args_octets).min(event.args.len())];
            let path = &event.path[..usize::from(event.path_octets).min(event.path.len())];
            NameObservation::Exec {
                process: Process::from(&event.owner),
                parent_start: KernelTime(event.parent_start_ns),
                path: (!path.is_empty()).then(|| text(path)),
                arguments: arguments(args),
                cut: event.args_total as usize > args.len(),
            }
        }
        abi::Event::Fork(event) => NameObservation::Fork {
            parent: Process::from(&event.parent),
            child: ProcessKey {
                pid: event.child_tgid,
                start: KernelTime(event.child_start_ns),
            },
        },
        abi::Event::Cgroup(event) => NameObservation::Cgroup {
            id: event.cgroup_id,
            path: text(&event.path[..(event.path_octets as usize).min(event.path.len())]),
        },
        abi::Event::CgroupGone(head) => NameObservation::CgroupGone { id: head.cookie },
        _ => return None,
    })
}

/// Octets up to the first NUL.
fn before_nul(octets: &[u8]) -> &[u8] {
    let end = octets
        .iter()
        .position(|&octet| octet == 0)
        .unwrap_or(octets.len());
    &octets[..end]
}

fn comm(octets: &[u8]) -> Comm {
    Comm::from(before_nul(octets))
}

/// Octets up to the first NUL, lossily decoded.
fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(before_nul(octets)).into_owned()
}

/// Arguments that are each ended by NUL; the last may be cut.
fn arguments(octets: &[u8]) -> Vec<String> {
    let octets = octets.strip_suffix(&[0]).unwrap_or(octets);
    if octets.is_empty() {
        return Vec::new();
    }
    octets
        .split(|&octet| octet == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}
