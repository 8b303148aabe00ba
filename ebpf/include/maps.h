/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * Every map: who writes, who reads, how large. Sizes marked (policy) are set by the agent before loading.
 * Hash maps touched by tracing programs are preallocated. */
#pragma once
#include "kern.h"
#include "flowtilla_abi.h"

/* TCP sockets by cookie. Writers: tcp programs, getpeername, the walk. Readers: snap, the agent. (policy) */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct tcp_entry);
} tcp_sockets SEC(".maps");

/* struct udp_entry with its lock: two processors may see the first datagram of one socket at once. */
struct udp_slot {
	struct bpf_spin_lock lock;
	__u8 spilled, backfilled, left_out, pad;
	__u64 created_ns;
	struct owner owner;
	struct tuple tuple;
	struct udp_counters counters;
};

/* UDP sockets by cookie. Writers: cgroup programs, the walk. Reader: the agent, in batches. (policy) */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct udp_slot);
} udp_sockets SEC(".maps");

/* Peers of UDP sockets after their first. Writer: cgroup_skb. Reader and deleter: the agent, in batches. (policy) */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct udp_peer_key);
	__type(value, struct udp_peer_value);
} udp_peers SEC(".maps");

/* Who listens where, for the owner of a child before somebody accepts it. Writers: tcp_state, the walk. Reader: tcp_state. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct listener_key);
	__type(value, struct listener_value);
} listeners SEC(".maps");

/* Socket events. 4 MiB hold 16,500 ends: 0.2 s of 80,000 sockets a second, and the agent comes sooner when it finds many.
 * An end that finds it full waits in the map. The agent's mapping counts twice in its memory. Reader: the agent, on a timer. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} flow_events SEC(".maps");

/* Exec, fork and cgroup events, apart so that a storm of execs costs no flow. 2 MiB hold 2,400 execs. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 21);
} name_events SEC(".maps");

/* Cookies the next snap reads. Writer: the agent. Reader: snap. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} due SEC(".maps");

/* Cgroups that the policy leaves out with all below them, by id. Writer of keys: the agent; of sums: all. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, LEFT_OUT_MAX);
	__type(key, __u64);
	__type(value, struct left_out_sum);
} left_out SEC(".maps");

/* Bit N: `left_out` has a cgroup N levels below the root. 0, and nothing is asked of anybody. Writer: the agent, while the
 * programs run; the only variable of .data. */
volatile __u32 left_out_depths SEC(".data") = 0;

struct port_key { __u32 netns; __u16 port, pad; };

/* Where sockets listen that were made in a cgroup of `left_out` and that a process outside has: what they accept is told.
 * Writers: tcp_state, accept, the walk. Reader: tcp_state, about connections that it would leave out. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct port_key);
	__type(value, __u8);
} handed_on SEC(".maps");

/* One counter a reason to give up. Writers: all. Reader: the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} drops SEC(".maps");

static __always_inline void drop(__u32 reason, __u64 n)
{
	__u64 *count = bpf_map_lookup_elem(&drops, &reason);
	if (count)
		*count += n;
}

/* Scope: 0 entries = the whole host. Set before loading. */
#define SCOPES_MAX 8
const volatile __u32 scope_cgroups = 0;
const volatile __u64 scope_cgroup_id[SCOPES_MAX] = {};
const volatile __u32 scope_cgroup_level[SCOPES_MAX] = {};
const volatile __u32 scope_netnses = 0;
const volatile __u32 scope_netns[SCOPES_MAX] = {};
