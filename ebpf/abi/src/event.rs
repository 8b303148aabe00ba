//! The structures, in the order of the header. See `ebpf/include/flowtilla_abi.h` for what each field means.

use core::mem::{offset_of, size_of};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{CGROUP_PATH_MAX, EXEC_ARGS_MAX, EXEC_PATH_MAX};

/// `(field, offset, size)` in octets, in declaration order.
pub type Layout = &'static [(&'static str, usize, usize)];

/// Declares a structure with its C name, its size and a table of its fields; `IntoBytes` refuses hidden padding.
macro_rules! shared {
    ($(#[$meta:meta])* struct $name:ident = $c:literal, $size:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $size);
        impl $name {
            /// Name of the structure in the C header.
            pub const C_NAME: &'static str = $c;
            /// Fields with their offsets and sizes.
            pub const LAYOUT: Layout = &[$((stringify!($field), offset_of!($name, $field), size_of::<$ty>())),*];
        }
    };
}

shared! {
    /// Who holds a socket.
    struct Owner = "owner", 56 {
        /// Start of the process (group leader), ns since boot.
        start_ns: u64,
        /// Inode of its cgroup2 folder.
        cgroup_id: u64,
        /// Process id in the first pid namespace.
        tgid: u32,
        /// Parent's process id.
        ppid: u32,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
        /// One of [`owner_kind`](crate::owner_kind).
        kind: u8,
        /// Zero.
        pad: [u8; 7],
        /// The group leader's command name, NUL padded.
        comm: [u8; 16],
    }
}
shared! {
    /// Both ends, as seen from the socket.
    struct Tuple = "tuple", 48 {
        /// This end's address.
        local: [u8; 16],
        /// The other end's address.
        remote: [u8; 16],
        /// This end's port.
        local_port: u16,
        /// The other end's port.
        remote_port: u16,
        /// Inode of the network namespace.
        netns: u32,
        /// The socket's address family: 2 or 10.
        family: u8,
        /// Zero.
        pad: [u8; 7],
    }
}
shared! {
    /// What the kernel counted for one TCP socket since it was made.
    struct TcpCounters = "tcp_counters", 64 {
        /// Payload octets sent, retransmissions included.
        bytes_sent: u64,
        /// Payload octets retransmitted.
        bytes_retrans: u64,
        /// Payload octets received, and one for a FIN.
        bytes_received: u64,
        /// Segments sent.
        segs_out: u32,
        /// Segments received.
        segs_in: u32,
        /// Segments retransmitted.
        retransmits: u32,
        /// Smoothed round-trip time, µs; 0: not measured.
        srtt_us: u32,
        /// Its mean deviation, µs.
        rttvar_us: u32,
        /// Least round-trip time of the kernel's window, µs; 0 or `u32::MAX`: not measured.
        rtt_min_us: u32,
        /// Octets written and not yet acknowledged.
        send_queue: u32,
        /// `sk_err`: a positive errno, or 0.
        error: u32,
        /// Octets of each segment's TCP header.
        header_octets: u16,
        /// TCP state number; at CLOSE the state it left.
        state: u8,
        /// Bits of [`tcp_flag`](crate::tcp_flag).
        flags: u8,
        /// Zero.
        pad: u32,
    }
}
shared! {
    /// The kernel's entry of one TCP socket.
    struct TcpEntry = "tcp_entry", 208 {
        /// Kernel pointer; only the snap program uses it.
        sock: u64,
        /// SYN sent, child made, or first seen when backfilled.
        start_ns: u64,
        /// Handshake complete; 0: not (yet).
        established_ns: u64,
        /// CLOSE; 0: open.
        end_ns: u64,
        /// Who holds it.
        owner: Owner,
        /// Both ends.
        tuple: Tuple,
        /// As of CLOSE, or of this snap.
        counters: TcpCounters,
        /// One of [`tcp_role`](crate::tcp_role).
        role: u8,
        /// One of [`tcp_phase`](crate::tcp_phase).
        phase: u8,
        /// 1: older than the agent.
        backfilled: u8,
        /// 1: the socket had another connection before, or listened: counters begin at 0.
        again: u8,
        /// Zero.
        pad: [u8; 4],
    }
}
shared! {
    /// What the kernel side counted for one UDP peer.
    struct UdpCounters = "udp_counters", 56 {
        /// First datagram, ns of `CLOCK_MONOTONIC_COARSE`.
        first_ns: u64,
        /// Newest datagram, likewise.
        last_ns: u64,
        /// Datagrams sent.
        packets_out: u64,
        /// Datagrams received.
        packets_in: u64,
        /// Payload octets sent.
        payload_out: u64,
        /// Payload octets received.
        payload_in: u64,
        /// 1: the peer sent first.
        first_in: u8,
        /// Zero.
        pad: [u8; 7],
    }
}
shared! {
    /// The kernel's entry of one UDP socket with its first peer.
    struct UdpEntry = "udp_entry", 176 {
        /// The kernel's lock; reads as 0.
        lock: u32,
        /// 1: other peers are in the peer map.
        spilled: u8,
        /// 1: older than the agent.
        backfilled: u8,
        /// 1: its cgroup was left out after the socket was made; 2: a process outside has it, so it is told for its life.
        left_out: u8,
        /// Zero.
        pad: u8,
        /// When the socket was made or first seen.
        created_ns: u64,
        /// Who holds it.
        owner: Owner,
        /// Both ends; `remote_port` 0: no peer yet.
        tuple: Tuple,
        /// Of the first peer.
        counters: UdpCounters,
    }
}
shared! {
    /// Key of the peer map.
    struct UdpPeerKey = "udp_peer_key", 32 {
        /// The socket.
        cookie: u64,
        /// The peer's address.
        remote: [u8; 16],
        /// The peer's port.
        remote_port: u16,
        /// Zero.
        pad: [u8; 6],
    }
}
shared! {
    /// Value of the peer map.
    struct UdpPeerValue = "udp_peer_value", 104 {
        /// Both ends.
        tuple: Tuple,
        /// Of this peer.
        counters: UdpCounters,
    }
}
shared! {
    /// Key of the listener map.
    struct ListenerKey = "listener_key", 24 {
        /// Address listened on; all zero: any.
        local: [u8; 16],
        /// Inode of the network namespace.
        netns: u32,
        /// Port.
        port: u16,
        /// Address family of the socket.
        family: u8,
        /// Zero.
        pad: u8,
    }
}
shared! {
    /// Value of the listener map.
    struct ListenerValue = "listener_value", 64 {
        /// The listening socket.
        cookie: u64,
        /// Who listens.
        owner: Owner,
    }
}
shared! {
    /// What the kernel side left out because of one cgroup.
    struct LeftOutSum = "left_out_sum", 24 {
        /// TCP connections that began.
        connections: u64,
        /// Packets of TCP connections that ended, and datagrams.
        packets: u64,
        /// Their IP octets.
        octets: u64,
    }
}
shared! {
    /// First octets of every event.
    struct EventHead = "event_head", 24 {
        /// One of [`kind`](crate::kind).
        kind: u32,
        /// Zero.
        pad: u32,
        /// The socket; 0 for names; the cgroup that is gone.
        cookie: u64,
        /// When it happened.
        at_ns: u64,
    }
}
shared! {
    /// A TCP socket ended, or was read.
    struct TcpEvent = "tcp_event", 232 {
        /// Kind, socket, time.
        head: EventHead,
        /// Copy of the entry.
        entry: TcpEntry,
    }
}
shared! {
    /// A UDP socket was released.
    struct UdpEvent = "udp_event", 200 {
        /// Kind, socket, time.
        head: EventHead,
        /// Copy of the entry.
        entry: UdpEntry,
    }
}
shared! {
    /// A process executed a program.
    struct ExecEvent = "exec_event", 864 {
        /// Kind and time.
        head: EventHead,
        /// The process after exec.
        owner: Owner,
        /// Start of its parent.
        parent_start_ns: u64,
        /// Octets of `path` with its NUL; 0: unreadable.
        path_octets: u16,
        /// Octets of `args`; 0: unreadable or none.
        args_octets: u16,
        /// Octets of the arguments before they were cut.
        args_total: u32,
        /// Path as it was given to exec.
        path: [u8; EXEC_PATH_MAX],
        /// Arguments, each ended by NUL.
        args: [u8; EXEC_ARGS_MAX],
    }
}
shared! {
    /// A process forked.
    struct ForkEvent = "fork_event", 96 {
        /// Kind and time.
        head: EventHead,
        /// The parent.
        parent: Owner,
        /// Start of the child.
        child_start_ns: u64,
        /// The child's process id.
        child_tgid: u32,
        /// Zero.
        pad: u32,
    }
}
shared! {
    /// A cgroup was made.
    struct CgroupEvent = "cgroup_event", 296 {
        /// Kind and time.
        head: EventHead,
        /// Its id: inode of its folder.
        cgroup_id: u64,
        /// Octets of `path` with its NUL.
        path_octets: u32,
        /// Zero.
        pad: u32,
        /// Path below the cgroup2 root.
        path: [u8; CGROUP_PATH_MAX],
    }
}

/// Every shared structure: C name, size, fields.
pub const ALL: &[(&str, usize, Layout)] = &[
    (Owner::C_NAME, size_of::<Owner>(), Owner::LAYOUT),
    (Tuple::C_NAME, size_of::<Tuple>(), Tuple::LAYOUT),
    (TcpCounters::C_NAME, size_of::<TcpCounters>(), TcpCounters::LAYOUT),
    (TcpEntry::C_NAME, size_of::<TcpEntry>(), TcpEntry::LAYOUT),
    (UdpCounters::C_NAME, size_of::<UdpCounters>(), UdpCounters::LAYOUT),
    (UdpEntry::C_NAME, size_of::<UdpEntry>(), UdpEntry::LAYOUT),
    (UdpPeerKey::C_NAME, size_of::<UdpPeerKey>(), UdpPeerKey::LAYOUT),
    (
        UdpPeerValue::C_NAME,
        size_of::<UdpPeerValue>(),
        UdpPeerValue::LAYOUT,
    ),
    (ListenerKey::C_NAME, size_of::<ListenerKey>(), ListenerKey::LAYOUT),
    (
        ListenerValue::C_NAME,
        size_of::<ListenerValue>(),
        ListenerValue::LAYOUT,
    ),
    (LeftOutSum::C_NAME, size_of::<LeftOutSum>(), LeftOutSum::LAYOUT),
    (EventHead::C_NAME, size_of::<EventHead>(), EventHead::LAYOUT),
    (TcpEvent::C_NAME, size_of::<TcpEvent>(), TcpEvent::LAYOUT),
    (UdpEvent::C_NAME, size_of::<UdpEvent>(), UdpEvent::LAYOUT),
    (ExecEvent::C_NAME, size_of::<ExecEvent>(), ExecEvent::LAYOUT),
    (ForkEvent::C_NAME, size_of::<ForkEvent>(), ForkEvent::LAYOUT),
    (CgroupEvent::C_NAME, size_of::<CgroupEvent>(), CgroupEvent::LAYOUT),
];
