/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * Names: what a process is called is copied while it executes, so that those which live 5 ms keep theirs; and the walk of
 * open files, which finds the holders of sockets older than the agent. */
#pragma once
#include "udp.h"

SEC("tp_btf/sched_process_exec")
int BPF_PROG(name_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct exec_event *e = bpf_ringbuf_reserve(&name_events, sizeof(*e), 0);
	if (!e) {
		drop(DROP_NAME_RING_FULL, 1);
		return 0;
	}
	head(&e->head, EVENT_EXEC, 0, bpf_ktime_get_boot_ns());
	owner_of_trusted(&e->owner, task, OWNER_EXACT);
	e->parent_start_ns = BPF_CORE_READ(task, group_leader, real_parent, group_leader, start_boottime); /* a thread may have forked */
	const char *name = BPF_CORE_READ(bprm, filename);
	long n = bpf_probe_read_kernel_str(e->path, sizeof(e->path), name);
	e->path_octets = n > 0 ? n : 0;
	unsigned long start = BPF_CORE_READ(task, mm, arg_start), end = BPF_CORE_READ(task, mm, arg_end);
	__u32 total = end > start ? end - start : 0;
	__u32 want = total < EXEC_ARGS_MAX ? total : EXEC_ARGS_MAX - 1;
	e->args_total = total;
	e->args_octets = 0;
	want &= EXEC_ARGS_MAX - 1; /* what the verifier understands */
	if (!bpf_probe_read_user(e->args, want, (void *)start))
		e->args_octets = want;
	/* What was not written keeps octets of the ring: earlier events of ours, read by us alone. */
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(name_fork, struct task_struct *parent, struct task_struct *child)
{
	if (child->pid != child->tgid)
		return 0; /* a thread */
	struct fork_event *e = bpf_ringbuf_reserve(&name_events, sizeof(*e), 0);
	if (!e) {
		drop(DROP_NAME_RING_FULL, 1);
		return 0;
	}
	head(&e->head, EVENT_FORK, 0, bpf_ktime_get_boot_ns());
	owner_of_trusted(&e->parent, parent, OWNER_EXACT);
	e->child_start_ns = child->start_boottime;
	e->child_tgid = child->tgid;
	e->pad = 0;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

/* The events come from every hierarchy, and each counts its ids by itself: only those of cgroup2, the hierarchy 0, are ours. */
static __always_inline bool of_cgroup2(struct cgroup *cg) { return BPF_CORE_READ(cg, root, hierarchy_id) == 0; }

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(name_cgroup, struct cgroup *cg, const char *path)
{
	if (!of_cgroup2(cg))
		return 0;
	struct cgroup_event *e = bpf_ringbuf_reserve(&name_events, sizeof(*e), 0);
	if (!e) {
		drop(DROP_NAME_RING_FULL, 1);
		return 0;
	}
	head(&e->head, EVENT_CGROUP, 0, bpf_ktime_get_boot_ns());
	e->cgroup_id = BPF_CORE_READ(cg, kn, id);
	long n = bpf_probe_read_kernel_str(e->path, sizeof(e->path), path);
	e->path_octets = n > 0 ? n : 0;
	e->pad = 0;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(name_cgroup_gone, struct cgroup *cg, const char *path)
{
	if (!left_out_depths || !of_cgroup2(cg))
		return 0;
	__u64 id = BPF_CORE_READ(cg, kn, id);
	if (!bpf_map_lookup_elem(&left_out, &id))
		return 0;
	struct event_head *e = bpf_ringbuf_reserve(&name_events, sizeof(*e), 0);
	if (!e) {
		drop(DROP_NAME_RING_FULL, 1);
		return 0;
	}
	head(e, EVENT_CGROUP_GONE, id, bpf_ktime_get_boot_ns());
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return 0;
}

static const struct listener_value no_listener;

/* Whoever was the first to listen: what it accepts is the holder's, until an acceptor is known. */
static __noinline int listener_handed_on(const struct tuple *t, struct task_struct *task, __u64 cookie)
{
	struct listener_key k;
	listen_key(&k, t);
	struct listener_value *v = bpf_map_lookup_elem(&listeners, &k);
	if (!v) {
		bpf_map_update_elem(&listeners, &k, &no_listener, BPF_NOEXIST);
		v = bpf_map_lookup_elem(&listeners, &k);
	}
	if (v) {
		v->cookie = cookie;
		owner_of(&v->owner, task, OWNER_BACKFILLED);
	}
	set_handed_on(t);
	return 0;
}

static __always_inline void backfill_tcp(struct sock *sk, struct task_struct *task, __u64 cookie, __u64 now)
{
	struct tcp_entry *e = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	if (e) {
		/* nobody asked for the peer's address: the holder is better than the listener */
		if (e->owner.kind == OWNER_NONE || (e->owner.kind == OWNER_INHERITED && e->role == ROLE_PASSIVE))
			owner_of(&e->owner, task, OWNER_BACKFILLED);
		if (e->role == ROLE_LISTENER && sock_left_out(sk) && !task_left_out(task))
			listener_handed_on(&e->tuple, task, cookie);
		return;
	}
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_CLOSE || !sock_in_scope(sk))
		return;
	struct left_out_sum *sum = sock_left_out(sk);
	if (sum && task_left_out(task))
		return;
	struct tcp_entry old;
	begin(&old, sk, now, state == TCP_LISTEN ? ROLE_LISTENER : ROLE_UNKNOWN);
	old.backfilled = 1;
	read_tuple(&old.tuple, sk);
	owner_of(&old.owner, task, OWNER_BACKFILLED);
	/* the baseline: what the socket did before the agent is never counted, what it does from here on is */
	read_counters(&old.counters, sk, state);
	old.counters.flags &= ~TCPF_TIMEWAIT;
	if (state == TCP_LISTEN) {
		tell_listener(&old, cookie);
		if (sum)
			set_handed_on(&old.tuple);
	}
	bool entered = enter(&old, cookie, now);
	/* what was left out until a process outside had it: the baseline */
	if (sum && entered && state != TCP_LISTEN)
		count_moved(sum, &old.counters, ip_header(sk));
	tell_tcp(EVENT_TCP_SNAP, cookie, now, &old);
}

static __always_inline void backfill_udp(struct sock *sk, struct task_struct *task, __u64 cookie, __u64 now)
{
	struct udp_slot *s = bpf_map_lookup_elem(&udp_sockets, &cookie);
	bool made_inside = sock_left_out(sk), inside = made_inside && task_left_out(task);
	if (!s) {
		if (!sock_in_scope(sk) || inside)
			return;
		bpf_map_update_elem(&udp_sockets, &cookie, &no_slot, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&udp_sockets, &cookie);
		if (!s)
			return drop(DROP_SOCKETS_FULL, 1);
		s->created_ns = now;
		s->backfilled = 1;
	}
	/* it was there before its cgroup was left out: counted no further, and over for the agent after its idle timeout */
	if (made_inside && !inside)
		s->left_out = UDP_HANDED_ON;
	else if (s->left_out != UDP_HANDED_ON)
		s->left_out = inside ? UDP_LEFT_OUT : UDP_TOLD;
	if (!s->tuple.netns)
		s->tuple.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (s->owner.kind == OWNER_NONE)
		owner_of(&s->owner, task, OWNER_BACKFILLED);
}

SEC("iter/task_file")
int walk_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	if (!task || !file)
		return 0;
	struct socket *socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	struct sock *sk = socket->sk;
	if (!sk)
		return 0;
	__u16 family = sk->__sk_common.skc_family, protocol = sk->sk_protocol;
	if (family != AF_INET && family != AF_INET6)
		return 0;
	__u64 now = bpf_ktime_get_boot_ns(), cookie = bpf_get_socket_cookie(sk);
	if (protocol == IPPROTO_TCP)
		backfill_tcp(sk, task, cookie, now);
	else if (protocol == IPPROTO_UDP)
		backfill_udp(sk, task, cookie, now);
	return 0;
}
