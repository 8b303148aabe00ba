/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * Who runs now, and whether a socket lies in the agent's scope. */
#pragma once
#include "maps.h"

/* By probe reads: for any task, in any program type. */
static __always_inline void owner_of(struct owner *o, struct task_struct *task, __u8 kind)
{
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	o->start_ns = BPF_CORE_READ(leader, start_boottime);
	o->cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	o->tgid = BPF_CORE_READ(task, tgid);
	o->ppid = BPF_CORE_READ(leader, real_parent, tgid);
	const struct cred *cred = BPF_CORE_READ(task, cred);
	o->uid = BPF_CORE_READ(cred, uid.val);
	o->gid = BPF_CORE_READ(cred, gid.val);
	o->kind = (BPF_CORE_READ(task, flags) & PF_KTHREAD) ? OWNER_KERNEL : kind;
	__builtin_memset(o->pad, 0, sizeof(o->pad));
	bpf_probe_read_kernel(o->comm, sizeof(o->comm), &leader->comm);
}

static __always_inline void owner_is_current(struct owner *o)
{
	owner_of(o, (struct task_struct *)bpf_get_current_task(), OWNER_EXACT);
}

/* The same from a task the verifier trusts, by plain loads: a quarter of the time. Tracing programs only. */
static __always_inline void owner_of_trusted(struct owner *o, struct task_struct *task, __u8 kind)
{
	struct task_struct *leader = task->group_leader;
	o->start_ns = leader->start_boottime;
	o->cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	o->tgid = task->tgid;
	o->ppid = leader->real_parent->tgid;
	o->uid = task->cred->uid.val;
	o->gid = task->cred->gid.val;
	o->kind = (task->flags & PF_KTHREAD) ? OWNER_KERNEL : kind;
	__builtin_memset(o->pad, 0, sizeof(o->pad));
	bpf_probe_read_kernel(o->comm, sizeof(o->comm), &leader->comm);
}

/* Two functions that are not inlined, so that no compiler moves the field of another kernel before the branch. */
static __noinline __u64 ancestor(struct cgroup *cg, __u32 level)
{
	struct cgroup *up = 0;
	bpf_probe_read_kernel(&up, sizeof(up), (void *)__builtin_preserve_access_index(&cg->ancestors) + level * sizeof(up));
	return BPF_CORE_READ(up, kn, id);
}

static __noinline __u64 ancestor_id(struct cgroup *cg, __u32 level)
{
	struct cgroup___ids *old = (void *)cg;
	__u64 id = 0;
	bpf_probe_read_kernel(&id, sizeof(id), (void *)__builtin_preserve_access_index(&old->ancestor_ids) + level * sizeof(id));
	return id;
}

/* The ancestor of `cg` at `level` has this id. */
static __always_inline bool below(struct cgroup *cg, __u64 id, __u32 level)
{
	if (BPF_CORE_READ(cg, level) < (int)level)
		return false;
	return (bpf_core_field_exists(cg->ancestors) ? ancestor(cg, level) : ancestor_id(cg, level)) == id;
}

static __always_inline bool in_scope(struct cgroup *cg, __u32 netns)
{
	if (!scope_cgroups && !scope_netnses)
		return true;
	for (__u32 i = 0; i < SCOPES_MAX && i < scope_netnses; i++)
		if (scope_netns[i] == netns)
			return true;
	for (__u32 i = 0; i < SCOPES_MAX && i < scope_cgroups; i++)
		if (cg && below(cg, scope_cgroup_id[i], scope_cgroup_level[i]))
			return true;
	return false;
}

static __noinline struct cgroup *sock_cgroup(struct sock *sk) { return BPF_CORE_READ(sk, sk_cgrp_data.cgroup); }

static __noinline struct cgroup *sock_cgroup_5_15(struct sock *sk)
{
	struct sock_cgroup_data___old *old = (void *)&sk->sk_cgrp_data;
	return (void *)(BPF_CORE_READ(old, val) & ~3ULL);
}

static __always_inline struct cgroup *cgroup_of_sock(struct sock *sk)
{
	return bpf_core_field_exists(sk->sk_cgrp_data.cgroup) ? sock_cgroup(sk) : sock_cgroup_5_15(sk);
}

static __always_inline bool sock_in_scope(struct sock *sk)
{
	if (!scope_cgroups && !scope_netnses)
		return true;
	return in_scope(cgroup_of_sock(sk), BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum));
}

static __always_inline bool task_in_scope(void)
{
	if (!scope_cgroups && !scope_netnses)
		return true;
	struct task_struct *task = (void *)bpf_get_current_task();
	return in_scope(BPF_CORE_READ(task, cgroups, dfl_cgrp), BPF_CORE_READ(task, nsproxy, net_ns, ns.inum));
}

/* The id of the cgroup in `left_out` that is `cg` or above it; 0: it is not left out. Not static, so that the verifier looks
 * at it once and not at each call: such a function takes and returns numbers only. */
__noinline __u64 left_out_above(__u64 cg, __u32 depths)
{
	struct cgroup *at = (void *)cg;
	__u32 level = BPF_CORE_READ(at, level);
	for (__u32 depth = 0; depth < LEFT_OUT_DEPTHS && depth <= level && depths; depth++, depths >>= 1) {
		if (!(depths & 1))
			continue;
		__u64 id = bpf_core_field_exists(at->ancestors) ? ancestor(at, depth) : ancestor_id(at, depth);
		if (bpf_map_lookup_elem(&left_out, &id))
			return id;
	}
	return 0;
}

/* The sum of the cgroup in `left_out` that the socket was made in or below; 0: it was made outside. */
static __always_inline struct left_out_sum *sock_left_out(struct sock *sk)
{
	__u32 depths = left_out_depths;
	__u64 id = depths ? left_out_above((__u64)cgroup_of_sock(sk), depths) : 0;
	return id ? bpf_map_lookup_elem(&left_out, &id) : 0;
}

static __always_inline bool task_left_out(struct task_struct *task)
{
	__u32 depths = left_out_depths;
	return depths && left_out_above((__u64)BPF_CORE_READ(task, cgroups, dfl_cgrp), depths);
}

static __always_inline bool current_left_out(void)
{
	return left_out_depths && task_left_out((void *)bpf_get_current_task());
}

static __always_inline void count_left_out(struct left_out_sum *sum, __u64 connections, __u64 packets, __u64 octets)
{
	if (connections)
		__sync_fetch_and_add(&sum->connections, connections);
	__sync_fetch_and_add(&sum->packets, packets);
	__sync_fetch_and_add(&sum->octets, octets);
}

static __always_inline void mapped(__u8 to[16], __be32 v4)
{
	__u32 *word = (void *)to;
	word[0] = word[1] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = v4;
}
