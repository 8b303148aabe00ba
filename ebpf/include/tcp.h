/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * TCP: owner at SYN_SENT, LISTEN and accept; counters at CLOSE, at destruction, and by snap. */
#pragma once
#include "owner.h"

/* Counters by probe reads: good for trusted pointers (tp_btf) and for the snap's remembered ones alike. */
static __always_inline void read_counters(struct tcp_counters *c, struct sock *sk, __u8 state)
{
	struct tcp_sock *tp = (void *)sk;
	c->bytes_sent = BPF_CORE_READ(tp, bytes_sent);
	c->bytes_retrans = BPF_CORE_READ(tp, bytes_retrans);
	c->bytes_received = BPF_CORE_READ(tp, bytes_received);
	c->segs_out = BPF_CORE_READ(tp, segs_out);
	c->segs_in = BPF_CORE_READ(tp, segs_in);
	c->retransmits = BPF_CORE_READ(tp, total_retrans);
	c->srtt_us = BPF_CORE_READ(tp, srtt_us) >> 3;
	c->rttvar_us = BPF_CORE_READ(tp, mdev_us) >> 2;
	c->rtt_min_us = BPF_CORE_READ(tp, rtt_min.s[0].v);
	c->send_queue = BPF_CORE_READ(tp, write_seq) - BPF_CORE_READ(tp, snd_una);
	c->error = BPF_CORE_READ(sk, sk_err);
	c->header_octets = BPF_CORE_READ(tp, tcp_header_len);
	c->state = state;
	unsigned long flags = BPF_CORE_READ(sk, __sk_common.skc_flags);
	bool done = flags >> SOCK_DONE_BIT & 1;
	c->flags = (done ? TCPF_DONE : 0) | (flags >> SOCK_DEAD_BIT & 1 ? TCPF_DEAD : 0) |
		   (state == TCP_FIN_WAIT2 && !done ? TCPF_TIMEWAIT : 0);
	c->pad = 0;
}

/* The same from a pointer the verifier trusts: plain loads. */
static __always_inline void load_counters(struct tcp_counters *c, struct sock *sk, struct tcp_sock *tp, __u8 state)
{
	c->bytes_sent = tp->bytes_sent;
	c->bytes_retrans = tp->bytes_retrans;
	c->bytes_received = tp->bytes_received;
	c->segs_out = tp->segs_out;
	c->segs_in = tp->segs_in;
	c->retransmits = tp->total_retrans;
	c->srtt_us = tp->srtt_us >> 3;
	c->rttvar_us = tp->mdev_us >> 2;
	c->rtt_min_us = tp->rtt_min.s[0].v;
	c->send_queue = tp->write_seq - tp->snd_una;
	c->error = sk->sk_err;
	c->header_octets = tp->tcp_header_len;
	c->state = state;
	unsigned long flags = sk->__sk_common.skc_flags;
	bool done = flags >> SOCK_DONE_BIT & 1;
	c->flags = (done ? TCPF_DONE : 0) | (flags >> SOCK_DEAD_BIT & 1 ? TCPF_DEAD : 0) |
		   (state == TCP_FIN_WAIT2 && !done ? TCPF_TIMEWAIT : 0);
	c->pad = 0;
}

static __always_inline void read_tuple(struct tuple *t, struct sock *sk)
{
	t->family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (t->family == AF_INET6) {
		bpf_probe_read_kernel(t->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(t->remote, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		mapped(t->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		mapped(t->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	}
	/* skc_num is 0 before the port is bound and after CLOSE: inet_sport survives */
	t->local_port = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	t->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	t->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	__builtin_memset(t->pad, 0, sizeof(t->pad));
}

/* The same from a socket the verifier trusts. */
static __always_inline void load_tuple(struct tuple *t, struct sock *sk)
{
	t->family = sk->__sk_common.skc_family;
	if (t->family == AF_INET6) {
		bpf_probe_read_kernel(t->local, 16, &sk->__sk_common.skc_v6_rcv_saddr);
		bpf_probe_read_kernel(t->remote, 16, &sk->__sk_common.skc_v6_daddr);
	} else {
		mapped(t->local, sk->__sk_common.skc_rcv_saddr);
		mapped(t->remote, sk->__sk_common.skc_daddr);
	}
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	t->local_port = tp ? bpf_ntohs(((struct inet_sock *)tp)->inet_sport) : 0;
	t->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	t->netns = sk->__sk_common.skc_net.net->ns.inum;
	__builtin_memset(t->pad, 0, sizeof(t->pad));
}

static __always_inline void head(struct event_head *h, __u32 kind, __u64 cookie, __u64 now)
{
	h->kind = kind;
	h->pad = 0;
	h->cookie = cookie;
	h->at_ns = now;
}

static __always_inline void tell_opened(__u64 cookie, __u64 now)
{
	struct event_head *h = bpf_ringbuf_reserve(&flow_events, sizeof(*h), 0);
	if (!h)
		return drop(DROP_FLOW_RING_FULL, 1);
	head(h, EVENT_OPENED, cookie, now);
	bpf_ringbuf_submit(h, BPF_RB_NO_WAKEUP);
}

/* false: the ring is full */
static __always_inline bool tell_tcp(__u32 kind, __u64 cookie, __u64 now, const struct tcp_entry *entry)
{
	struct tcp_event *e = bpf_ringbuf_reserve(&flow_events, sizeof(*e), 0);
	if (!e) {
		drop(DROP_FLOW_RING_FULL, 1);
		return false;
	}
	head(&e->head, kind, cookie, now);
	e->entry = *entry;
	e->entry.sock = 0;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return true;
}

static __always_inline void begin(struct tcp_entry *e, struct sock *sk, __u64 now, __u8 role)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->sock = (__u64)sk;
	e->start_ns = now;
	e->role = role;
}

/* false: there is no room */
static __always_inline bool enter(const struct tcp_entry *e, __u64 cookie, __u64 now)
{
	if (bpf_map_update_elem(&tcp_sockets, &cookie, e, BPF_ANY)) {
		drop(DROP_SOCKETS_FULL, 1);
		return false;
	}
	tell_opened(cookie, now);
	return true;
}

static __always_inline void listen_key(struct listener_key *k, const struct tuple *t)
{
	__builtin_memcpy(k->local, t->local, 16);
	k->netns = t->netns;
	k->port = t->local_port;
	k->family = t->family;
	k->pad = 0;
	__u32 *word = (void *)k->local;
	if (!word[3] && !word[0] && !word[1]) /* 0.0.0.0 as ::ffff:0.0.0.0, and :: */
		word[2] = 0;
}

static __always_inline void inherit(struct tcp_entry *e)
{
	struct listener_key k;
	listen_key(&k, &e->tuple);
	struct listener_value *v = bpf_map_lookup_elem(&listeners, &k);
	if (!v) {
		__builtin_memset(k.local, 0, 16);
		v = bpf_map_lookup_elem(&listeners, &k);
	}
	if (!v && k.family == AF_INET) { /* a dual-stack listener gives AF_INET6 children, but be safe */
		k.family = AF_INET6;
		v = bpf_map_lookup_elem(&listeners, &k);
	}
	if (v) {
		e->owner = v->owner;
		if (e->owner.kind == OWNER_EXACT || e->owner.kind == OWNER_BACKFILLED)
			e->owner.kind = OWNER_INHERITED;
	}
}

static __always_inline void tell_listener(const struct tcp_entry *e, __u64 cookie)
{
	struct listener_key k;
	listen_key(&k, &e->tuple);
	struct listener_value v = { .cookie = cookie, .owner = e->owner };
	bpf_map_update_elem(&listeners, &k, &v, BPF_ANY);
}

static __always_inline bool is_handed_on(const struct tuple *t)
{
	struct port_key k = { .netns = t->netns, .port = t->local_port };
	return bpf_map_lookup_elem(&handed_on, &k);
}

/* For good, or until 1,024 others were: what accepts there is told too much rather than too little. */
static __always_inline void set_handed_on(const struct tuple *t)
{
	struct port_key k = { .netns = t->netns, .port = t->local_port };
	__u8 yes = 1;
	bpf_map_update_elem(&handed_on, &k, &yes, BPF_ANY);
}

/* IPv4 in IPv6 is IPv4 on the wire. */
static __always_inline __u32 ip_header(struct sock *sk)
{
	if (BPF_CORE_READ(sk, __sk_common.skc_family) != AF_INET6)
		return 20;
	__u32 to[4] = {};
	bpf_probe_read_kernel(to, sizeof(to), &sk->__sk_common.skc_v6_daddr);
	return to[0] || to[1] || to[2] != bpf_htonl(0xffff) ? 40 : 20;
}

/* A connection that is left out begins. Of a passive one the SYN-ACK was the listener's: no counter of its own has it. */
static __noinline int left_out_begins(struct sock *sk, struct left_out_sum *sum, bool passive)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	count_left_out(sum, 1, passive, passive && tp ? ip_header(sk) + tp->tcp_header_len : 0);
	return 0;
}

/* What it moved, reckoned as the agent does for others (agent/core/src/flow/counters.rs). */
static __always_inline void count_moved(struct left_out_sum *sum, const struct tcp_counters *c, __u32 ip)
{
	__u32 done = c->flags & TCPF_DONE ? 1 : 0, tw = c->flags & TCPF_TIMEWAIT ? 1 : 0, hl = c->header_octets;
	__u32 syn = hl > 20 ? 8 : 12;
	__u64 out = (__u64)c->segs_out + tw, in = (__u64)c->segs_in + tw;
	__u64 octets = c->bytes_sent + c->bytes_received - done + out * (ip + hl);
	if (c->state == TCP_SYN_SENT)
		octets += out * syn + in * (ip + 20);
	else
		octets += in * (ip + hl) + 2 * syn;
	count_left_out(sum, 0, out + in, octets);
}

/* It ends. */
static __noinline int left_out_ends(struct sock *sk, struct left_out_sum *sum, int left)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	__u32 ip = ip_header(sk);
	struct tcp_counters c;
	load_counters(&c, sk, tp, left);
	count_moved(sum, &c, ip);
	return 0;
}

/* Left out is a socket that was made in such a cgroup and that a process in one uses: sockets are handed on. */
static __always_inline int on_listen(struct sock *sk, __u64 now)
{
	if (!sock_in_scope(sk))
		return 0;
	__u64 cookie = bpf_get_socket_cookie(sk);
	bool made_inside = sock_left_out(sk);
	if (made_inside && current_left_out())
		return 0;
	struct tcp_entry e;
	begin(&e, sk, now, ROLE_LISTENER);
	load_tuple(&e.tuple, sk);
	if (made_inside)
		set_handed_on(&e.tuple);
	owner_of_trusted(&e.owner, bpf_get_current_task_btf(), OWNER_EXACT);
	e.counters.state = TCP_LISTEN;
	tell_listener(&e, cookie);
	enter(&e, cookie, now);
	return 0;
}

static __always_inline int on_connect(struct sock *sk, __u64 now)
{
	if (!sock_in_scope(sk))
		return 0;
	struct left_out_sum *sum = sock_left_out(sk);
	if (sum && current_left_out())
		return left_out_begins(sk, sum, false);
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct tcp_entry e;
	begin(&e, sk, now, ROLE_ACTIVE);
	/* a connect that failed, was dissolved or follows a listen: the socket is the same, its counters are zeroed */
	e.again = bpf_map_lookup_elem(&tcp_sockets, &cookie) != 0;
	owner_of_trusted(&e.owner, bpf_get_current_task_btf(), OWNER_EXACT);
	enter(&e, cookie, now);
	return 0;
}

/* Softirq, or on loopback the peer's process: never an owner from here. A child is left out where its listener was made,
 * unless that is known to have been handed on, or its acceptor turns out to be outside (accepted_outside). A peer may answer a
 * SYN with a SYN: whoever connected then comes by way of SYN_RECV, and stays who it is. */
static __always_inline int on_established(struct sock *sk, __u64 now, bool passive)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct tcp_entry *known = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	if (passive && !(known && known->role == ROLE_ACTIVE && known->phase == PHASE_OPEN)) {
		if (!sock_in_scope(sk))
			return 0;
		struct left_out_sum *sum = sock_left_out(sk);
		struct tcp_entry e;
		begin(&e, sk, now, ROLE_PASSIVE);
		load_tuple(&e.tuple, sk);
		if (sum && !is_handed_on(&e.tuple))
			return left_out_begins(sk, sum, true);
		inherit(&e);
		e.established_ns = now;
		enter(&e, cookie, now);
		return 0;
	}
	if (!known)
		return 0;
	load_tuple(&known->tuple, sk);
	known->established_ns = now;
	return 0;
}

static __always_inline int on_close(struct sock *sk, int left, __u64 now)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct tcp_entry *e = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	if (!e) {
		if (!left_out_depths || left == TCP_LISTEN || left == TCP_SYN_RECV || !sock_in_scope(sk))
			return 0;
		struct left_out_sum *sum = sock_left_out(sk);
		return sum ? left_out_ends(sk, sum, left) : 0;
	}
	if (e->phase != PHASE_OPEN)
		return 0;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	if (tp)
		load_counters(&e->counters, sk, tp, left);
	if (!e->tuple.family)
		load_tuple(&e->tuple, sk);
	e->end_ns = now;
	e->phase = tell_tcp(EVENT_TCP_ENDED, cookie, now, e) ? PHASE_ENDED : PHASE_UNSENT;
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int left, int entered)
{
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (entered == TCP_ESTABLISHED) {
		if (left == TCP_SYN_RECV || left == TCP_SYN_SENT)
			return on_established(sk, bpf_ktime_get_boot_ns(), left == TCP_SYN_RECV);
		return 0;
	}
	if (entered == TCP_CLOSE)
		return on_close(sk, left, bpf_ktime_get_boot_ns());
	if (entered == TCP_SYN_SENT)
		return on_connect(sk, bpf_ktime_get_boot_ns());
	if (entered == TCP_LISTEN)
		return on_listen(sk, bpf_ktime_get_boot_ns());
	return 0;
}

/* The end of every TCP socket: catches a CLOSE that was skipped, and a reset sent after CLOSE. tcp_disconnect zeroes the
 * counters of a child nobody accepted, so they only ever grow here. */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy, struct sock *sk)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct tcp_entry *e = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	if (!e)
		return 0;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 now = bpf_ktime_get_boot_ns();
	if (tp && tp->segs_out > e->counters.segs_out && e->phase != PHASE_OPEN) {
		__u8 left = e->counters.state, flags = e->counters.flags;
		load_counters(&e->counters, sk, tp, left);
		e->counters.flags = flags | (e->counters.flags & TCPF_DEAD);
		if (e->phase == PHASE_ENDED && !tell_tcp(EVENT_TCP_LATE, cookie, now, e))
			e->phase = PHASE_UNSENT;
	} else if (e->phase == PHASE_OPEN) {
		if (tp)
			load_counters(&e->counters, sk, tp, sk->__sk_common.skc_state);
		if (!e->tuple.family)
			load_tuple(&e->tuple, sk);
		e->end_ns = now;
		e->phase = tell_tcp(EVENT_TCP_ENDED, cookie, now, e) ? PHASE_ENDED : PHASE_UNSENT;
	}
	if (e->phase != PHASE_UNSENT)
		bpf_map_delete_elem(&tcp_sockets, &cookie);
	return 0;
}

/* Does somebody listen at this local end? Of no peer at all, so that no connection is found. */
static __always_inline bool is_listened_on(struct bpf_sock_addr *ctx, const struct tuple *t)
{
	struct bpf_sock_tuple at = {};
	__u32 octets;
	const __be32 *local = (const void *)t->local;
	if (!local[0] && !local[1] && local[2] == bpf_htonl(0xffff)) {
		at.ipv4.daddr = local[3];
		at.ipv4.dport = bpf_htons(t->local_port);
		octets = sizeof(at.ipv4);
	} else {
		__builtin_memcpy(at.ipv6.daddr, local, 16);
		at.ipv6.dport = bpf_htons(t->local_port);
		octets = sizeof(at.ipv6);
	}
	struct bpf_sock *listener = bpf_skc_lookup_tcp(ctx, &at, octets, BPF_F_CURRENT_NETNS, 0);
	if (!listener)
		return false;
	bpf_sk_release(listener);
	return true;
}

/* Which end this is of a connection that nobody saw begin. A child is a copy of its listener, length of the queue included;
 * whoever connects has none. A listener may have asked for none: its child is one while somebody listens there. */
static __always_inline __u8 role_of(struct bpf_sock_addr *ctx, struct sock *sk, const struct tuple *t)
{
	return BPF_CORE_READ(sk, sk_max_ack_backlog) || is_listened_on(ctx, t) ? ROLE_PASSIVE : ROLE_ACTIVE;
}

/* Was this connection left out because of where its socket or its listener was made, and does a process outside have it that
 * asks for the peer's address, as in accept? Then it is told, from its beginning, and so are those after it at its listener. One
 * that has ended already stays left out. */
static __noinline int accepted_outside(struct bpf_sock_addr *ctx, __u64 cookie)
{
	/* As a number, by way of memory: the verifier lets nobody look for the cgroup in what it knows to be a socket. */
	struct sock *known = (void *)ctx->sk, *sk = 0;
	bpf_probe_read_kernel(&sk, sizeof(sk), &known);
	if (ctx->protocol != IPPROTO_TCP || !sk || current_left_out() || !sock_in_scope(sk))
		return 0;
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state == TCP_CLOSE || state == TCP_SYN_SENT || !sock_left_out(sk))
		return 0;
	__u64 now = bpf_ktime_get_boot_ns();
	struct tcp_entry e;
	begin(&e, sk, now, ROLE_UNKNOWN);
	e.established_ns = now;
	read_tuple(&e.tuple, sk);
	e.role = role_of(ctx, sk, &e.tuple);
	owner_is_current(&e.owner);
	if (e.role == ROLE_PASSIVE)
		set_handed_on(&e.tuple);
	enter(&e, cookie, now);
	return 0;
}

/* Fires in accept when the application asks for the peer's address, in the acceptor's context; and in getpeername, for both ends. */
static __always_inline int accepted(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct tcp_entry *e = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	if (!e && left_out_depths)
		accepted_outside(ctx, cookie);
	if (e && e->role == ROLE_PASSIVE && (e->owner.kind == OWNER_INHERITED || e->owner.kind == OWNER_NONE))
		owner_is_current(&e->owner);
	return 1;
}
SEC("cgroup/getpeername4")
int accept_peer4(struct bpf_sock_addr *ctx) { return accepted(ctx); }
SEC("cgroup/getpeername6")
int accept_peer6(struct bpf_sock_addr *ctx) { return accepted(ctx); }

/* Reads the counters of the sockets whose cookies stand in `due`; attached nowhere, run by the agent
 * (BPF_PROG_TEST_RUN) with the number of cookies as its first argument. */
struct snap_run { __u32 count; __u32 pad; __u64 now; };

static long snap_one(void *map, __u32 *index, __u64 *key, struct snap_run *run)
{
	if (*index >= run->count)
		return 1;
	__u64 cookie = *key;
	struct tcp_entry *e = bpf_map_lookup_elem(&tcp_sockets, &cookie);
	struct sock *sk = e ? (void *)e->sock : 0;
	if (!e || (e->phase == PHASE_OPEN && BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) != (__s64)cookie)) {
		struct event_head *h = bpf_ringbuf_reserve(&flow_events, sizeof(*h), 0);
		if (!h) {
			drop(DROP_FLOW_RING_FULL, 1);
			return 0;
		}
		head(h, EVENT_GONE, cookie, run->now);
		bpf_ringbuf_submit(h, BPF_RB_NO_WAKEUP);
		return 0;
	}
	if (e->phase != PHASE_OPEN)
		return 0; /* its end is told already, or by the next walk */
	struct tcp_event *out = bpf_ringbuf_reserve(&flow_events, sizeof(*out), 0);
	if (!out) {
		drop(DROP_FLOW_RING_FULL, 1);
		return 0;
	}
	head(&out->head, EVENT_TCP_SNAP, cookie, run->now);
	out->entry = *e;
	out->entry.sock = 0;
	if (!out->entry.tuple.family || out->entry.backfilled)
		read_tuple(&out->entry.tuple, sk);
	read_counters(&out->entry.counters, sk, BPF_CORE_READ(sk, __sk_common.skc_state));
	out->entry.counters.flags &= ~TCPF_TIMEWAIT;
	/* the socket may have been freed and used again between the check and the reads */
	if (BPF_CORE_READ(sk, __sk_common.skc_cookie.counter) != (__s64)cookie) {
		bpf_ringbuf_discard(out, BPF_RB_NO_WAKEUP);
		return 0;
	}
	bpf_ringbuf_submit(out, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("raw_tp/sched_process_fork")
int tcp_snap(__u64 *ctx)
{
	struct snap_run run = { .count = ctx[0], .now = bpf_ktime_get_boot_ns() };
	bpf_for_each_map_elem(&due, snap_one, &run, 0);
	return 0;
}
