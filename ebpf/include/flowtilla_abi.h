/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * What crosses from the kernel to the agent. Kept equal to ebpf/abi/src/event.rs: a test compares the two by the
 * object's BTF. No hidden padding: every hole has a name and is zeroed, so no kernel octet leaks.
 * Addresses are 16 octets in network order, IPv4 as ::ffff:a.b.c.d. Ports are in host order.
 * Times are nanoseconds of CLOCK_BOOTTIME. */
#pragma once

enum event_kind {
	EVENT_OPENED = 1,     /* struct event_head: a socket entered the map; look it up */
	EVENT_TCP_SNAP = 2,   /* struct tcp_event: counters of a live socket */
	EVENT_TCP_ENDED = 3,  /* struct tcp_event: the socket reached CLOSE */
	EVENT_TCP_LATE = 4,   /* struct tcp_event: segments left after CLOSE (a reset); replaces the counters of ENDED */
	EVENT_UDP_ENDED = 5,  /* struct udp_event: the socket was released */
	EVENT_GONE = 6,       /* struct event_head: a snap found no such socket any more */
	EVENT_EXEC = 16,      /* struct exec_event */
	EVENT_FORK = 17,      /* struct fork_event */
	EVENT_CGROUP = 18,    /* struct cgroup_event */
	EVENT_CGROUP_GONE = 19, /* struct event_head, its cookie the id of a cgroup of `left_out` that was removed */
};

enum owner_kind {
	OWNER_NONE = 0,       /* not known (yet) */
	OWNER_EXACT = 1,      /* taken in the process's own context */
	OWNER_INHERITED = 2,  /* the listener's */
	OWNER_BACKFILLED = 3, /* found by a walk of open files */
	OWNER_KERNEL = 4,     /* a kernel thread, or a socket of the kernel itself */
};

enum tcp_role { ROLE_UNKNOWN = 0, ROLE_ACTIVE = 1, ROLE_PASSIVE = 2, ROLE_LISTENER = 3 };

enum tcp_phase {
	PHASE_OPEN = 0,
	PHASE_ENDED = 1,      /* CLOSE was seen and its event is in the ring */
	PHASE_UNSENT = 2,     /* CLOSE was seen, the ring was full: the agent's walk collects and deletes the entry */
};

enum tcp_flag {
	TCPF_DONE = 1,        /* a FIN was received (SOCK_DONE) */
	TCPF_TIMEWAIT = 2,    /* CLOSE came out of FIN_WAIT2 without a FIN: a mini-socket goes on */
	TCPF_DEAD = 4,        /* no process holds it (SOCK_DEAD) */
};

enum drop_reason {
	DROP_SOCKETS_FULL = 0,     /* a socket found no room in a socket map */
	DROP_FLOW_RING_FULL = 1,   /* an event found no room; entries wait as PHASE_UNSENT */
	DROP_NAME_RING_FULL = 2,   /* an exec, fork or cgroup event found no room */
	DROP_PEERS_FULL = 3,       /* a change of peer found no room: events */
	DROP_PEERS_FULL_PACKETS = 4,
	DROP_PEERS_FULL_OCTETS = 5,
	DROP_UDP_NO_ENTRY = 6,     /* a datagram of a socket that is not in the map: datagrams */
	DROP_UDP_NO_ENTRY_OCTETS = 7,
	DROP_UDP_PARSE = 8,        /* a UDP packet whose header could not be read */
	DROP_UDP_NO_PORT = 9,      /* a datagram whose sender has port 0: no peer that could be told from none */
	DROP_REASONS = 10,
};

struct owner {
	__u64 start_ns;       /* start of the process (group leader) */
	__u64 cgroup_id;      /* inode of its cgroup2 folder */
	__u32 tgid, ppid;     /* process and parent ids in the first pid namespace */
	__u32 uid, gid;
	__u8 kind;            /* enum owner_kind */
	__u8 pad[7];
	char comm[16];        /* the group leader's */
};

struct tuple {
	__u8 local[16], remote[16];
	__u16 local_port, remote_port;
	__u32 netns;          /* inode of the network namespace */
	__u8 family;          /* of the socket: 2 or 10 (AF_INET, AF_INET6) */
	__u8 pad[7];
};

struct tcp_counters {
	__u64 bytes_sent, bytes_retrans, bytes_received;
	__u32 segs_out, segs_in, retransmits;
	__u32 srtt_us, rttvar_us, rtt_min_us; /* 0: not measured; rtt_min_us 0xffffffff: none */
	__u32 send_queue;     /* octets written and not yet acknowledged */
	__u32 error;          /* sk_err: a positive errno, or 0 */
	__u16 header_octets;  /* tcp_header_len: 20 and the options of every segment */
	__u8 state;           /* TCP state number; at CLOSE the state it left */
	__u8 flags;           /* enum tcp_flag */
	__u32 pad;
};

struct tcp_entry {
	__u64 sock;           /* the kernel's pointer: only for snaps, never printed */
	__u64 start_ns;       /* SYN sent, child made, or first seen when backfilled */
	__u64 established_ns; /* 0: not (yet) */
	__u64 end_ns;         /* 0: open */
	struct owner owner;
	struct tuple tuple;
	struct tcp_counters counters; /* as of CLOSE, or of this snap */
	__u8 role, phase;     /* enum tcp_role, enum tcp_phase */
	__u8 backfilled;      /* 1: older than the agent; its first counters are a baseline */
	__u8 again;           /* 1: connected once more, its entry was there: counters begin at 0, another flow */
	__u8 pad[4];
};

struct udp_counters {
	__u64 first_ns, last_ns; /* of CLOCK_MONOTONIC_COARSE: a tick late at most, a tenth of the price */
	__u64 packets_out, packets_in;
	__u64 payload_out, payload_in; /* IP octets follow: 28 or 48 more a packet */
	__u8 first_in;        /* 1: the peer sent first */
	__u8 pad[7];
};

enum udp_left_out {
	UDP_TOLD = 0,
	UDP_LEFT_OUT = 1,     /* its cgroup came into left_out after the socket was made */
	UDP_HANDED_ON = 2,    /* made in a cgroup of left_out and held by a process outside: told for its life */
};

struct udp_entry {
	__u32 lock;           /* bpf_spin_lock in the kernel; reads as 0 */
	__u8 spilled;         /* 1: other peers of this socket are in udp_peers */
	__u8 backfilled;
	__u8 left_out;        /* enum udp_left_out */
	__u8 pad;
	__u64 created_ns;
	struct owner owner;
	struct tuple tuple;   /* of the socket's first peer, for its life; remote_port 0: none yet */
	struct udp_counters counters; /* of the first peer */
};

struct udp_peer_key {
	__u64 cookie;
	__u8 remote[16];
	__u16 remote_port;
	__u8 pad[6];
};

struct udp_peer_value {
	struct tuple tuple;
	struct udp_counters counters;
};

struct listener_key {
	__u8 local[16];       /* all zero: any address */
	__u32 netns;
	__u16 port;
	__u8 family;
	__u8 pad;
};

struct listener_value { __u64 cookie; struct owner owner; };

#define LEFT_OUT_MAX 4096
#define LEFT_OUT_DEPTHS 32 /* a cgroup deeper below the root has no place in left_out_depths */

/* What was left out because of one cgroup: TCP connections as they begin, their packets and IP octets when they end; datagrams
 * and their IP octets as they pass. */
struct left_out_sum { __u64 connections, packets, octets; };

struct event_head { __u32 kind; __u32 pad; __u64 cookie; __u64 at_ns; };
struct tcp_event { struct event_head head; struct tcp_entry entry; };
struct udp_event { struct event_head head; struct udp_entry entry; };

#define EXEC_PATH_MAX 256
#define EXEC_ARGS_MAX 512
#define CGROUP_PATH_MAX 256

struct exec_event {
	struct event_head head;   /* cookie 0 */
	struct owner owner;       /* of the process after exec */
	__u64 parent_start_ns;
	__u16 path_octets;        /* with its NUL; 0: unreadable */
	__u16 args_octets;        /* NUL between arguments; 0: unreadable or none */
	__u32 args_total;         /* before truncation */
	char path[EXEC_PATH_MAX];
	char args[EXEC_ARGS_MAX];
};

struct fork_event {
	struct event_head head;
	struct owner parent;
	__u64 child_start_ns;
	__u32 child_tgid;
	__u32 pad;
};

struct cgroup_event {
	struct event_head head;
	__u64 cgroup_id;
	__u32 path_octets;        /* with its NUL */
	__u32 pad;
	char path[CGROUP_PATH_MAX];
};
