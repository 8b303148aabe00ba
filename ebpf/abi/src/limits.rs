//! Sizes and numbers both sides agree on.

/// Longest executable path copied at exec, in octets with its NUL.
pub const EXEC_PATH_MAX: usize = 256;
/// Longest argument block copied at exec, in octets.
///
/// Half of it cuts typical Java and container command lines before anything telling; double it, and a storm of execs
/// fills the name ring twice as fast.
pub const EXEC_ARGS_MAX: usize = 512;
/// Longest cgroup path copied when a cgroup is made, in octets with its NUL.
pub const CGROUP_PATH_MAX: usize = 256;
/// Most sockets that one run of the snap program reads.
///
/// One run cannot be interrupted: at about 1 µs a socket this keeps it near 1 ms.
pub const SNAP_KEYS_MAX: usize = 1024;
/// Most entries of a scope list (`cgroup` or `netns`).
pub const SCOPES_MAX: usize = 8;

/// Most cgroups that the kernel side leaves out.
///
/// A large host has some hundreds of containers; the map takes some 0.4 MiB. What finds it full is left out by the agent.
pub const LEFT_OUT_MAX: usize = 4096;
/// Levels below the root at which the kernel side can leave a cgroup out. Those of containers are at some six.
pub const LEFT_OUT_DEPTHS: u32 = 32;

/// Kinds of [`EventHead::kind`](crate::EventHead).
pub mod kind {
    /// A socket entered the map.
    pub const OPENED: u32 = 1;
    /// Counters of a live TCP socket.
    pub const TCP_SNAP: u32 = 2;
    /// A TCP socket reached CLOSE.
    pub const TCP_ENDED: u32 = 3;
    /// Segments left after CLOSE: replaces the counters of `TCP_ENDED`.
    pub const TCP_LATE: u32 = 4;
    /// A UDP socket was released.
    pub const UDP_ENDED: u32 = 5;
    /// A snap found no such socket any more.
    pub const GONE: u32 = 6;
    /// A process executed a program.
    pub const EXEC: u32 = 16;
    /// A process forked.
    pub const FORK: u32 = 17;
    /// A cgroup was made.
    pub const CGROUP: u32 = 18;
    /// A cgroup that is left out was removed; the cookie of the head is its id.
    pub const CGROUP_GONE: u32 = 19;
}

/// Values of [`Owner::kind`](crate::Owner).
pub mod owner_kind {
    /// Not known (yet).
    pub const NONE: u8 = 0;
    /// Taken in the process's own context.
    pub const EXACT: u8 = 1;
    /// The listener's.
    pub const INHERITED: u8 = 2;
    /// Found by a walk of open files.
    pub const BACKFILLED: u8 = 3;
    /// A kernel thread, or a socket of the kernel itself.
    pub const KERNEL: u8 = 4;
}

/// Values of [`TcpEntry::role`](crate::TcpEntry).
pub mod tcp_role {
    /// Older than the agent: who opened it is not known.
    pub const UNKNOWN: u8 = 0;
    /// It sent the SYN.
    pub const ACTIVE: u8 = 1;
    /// It was accepted.
    pub const PASSIVE: u8 = 2;
    /// It listens.
    pub const LISTENER: u8 = 3;
}

/// Values of [`TcpEntry::phase`](crate::TcpEntry).
pub mod tcp_phase {
    /// Open.
    pub const OPEN: u8 = 0;
    /// Ended, told by an event.
    pub const ENDED: u8 = 1;
    /// Ended, but the ring was full: a walk collects it.
    pub const UNSENT: u8 = 2;
}

/// Bits of [`TcpCounters::flags`](crate::TcpCounters).
pub mod tcp_flag {
    /// A FIN was received.
    pub const DONE: u8 = 1;
    /// CLOSE came out of FIN_WAIT2 without a FIN: a mini-socket goes on.
    pub const TIMEWAIT: u8 = 2;
    /// No process holds the socket.
    pub const DEAD: u8 = 4;
}

/// Indexes of the kernel side's loss counters.
pub mod drop_reason {
    /// Sockets that found no room in a socket map.
    pub const SOCKETS_FULL: u32 = 0;
    /// Events that found no room; ended entries wait in the map.
    pub const FLOW_RING_FULL: u32 = 1;
    /// Exec, fork and cgroup events that found no room.
    pub const NAME_RING_FULL: u32 = 2;
    /// Changes of a UDP peer that found no room.
    pub const PEERS_FULL: u32 = 3;
    /// Packets lost by `PEERS_FULL`.
    pub const PEERS_FULL_PACKETS: u32 = 4;
    /// IP octets lost by `PEERS_FULL`.
    pub const PEERS_FULL_OCTETS: u32 = 5;
    /// Datagrams of sockets that are not in the map.
    pub const UDP_NO_ENTRY: u32 = 6;
    /// IP octets of these datagrams.
    pub const UDP_NO_ENTRY_OCTETS: u32 = 7;
    /// UDP packets whose header could not be read.
    pub const UDP_PARSE: u32 = 8;
    /// Datagrams whose sender has port 0.
    pub const UDP_NO_PORT: u32 = 9;
    /// How many counters there are.
    pub const COUNT: u32 = 10;
}
