// SPDX-License-Identifier: GPL-2.0 OR MIT
/* The agent's kernel programs, one object. Each program loads by itself: what a kernel refuses costs that program only.
 * TCP has no per-packet hook: the kernel counts per socket, and its counters are read when a socket changes state, or by
 * the snap program for the cookies that the agent finds due. Events never wake user space. */
#include "tcp.h"
#include "udp.h"
#include "names.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Keeps every shared structure in the object's BTF, for the test that compares them with the Rust side. */
struct {
	struct tcp_event tcp_event;
	struct udp_event udp_event;
	struct exec_event exec_event;
	struct fork_event fork_event;
	struct cgroup_event cgroup_event;
} *shared_structures __attribute__((unused));
