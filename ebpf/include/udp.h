/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * UDP: a socket's entry counts its first peer for the socket's whole life, udp_peers every other one. Counters never move
 * and only grow, so a reader needs no lock and counts nothing twice. */
#pragma once
#include "tcp.h"

static const struct udp_slot no_slot;

struct datagram {
	__u8 local[16], remote[16];
	__u16 local_port, remote_port;
	__u32 packets;
	__u64 octets, payload, now;
	bool in, v6;
};

static __always_inline void copy16(__u8 *to, const __u8 *from)
{
	__u32 *a = (void *)to;
	const __u32 *b = (const void *)from;
	a[0] = b[0], a[1] = b[1], a[2] = b[2], a[3] = b[3];
}

static __always_inline bool same_peer(const struct tuple *t, const struct datagram *d)
{
	const __u64 *a = (const void *)t->remote, *b = (const void *)d->remote;
	return t->remote_port == d->remote_port && a[1] == b[1] && a[0] == b[0];
}

static __always_inline void count(struct udp_counters *c, const struct datagram *d)
{
	c->last_ns = d->now;
	if (d->in) {
		__sync_fetch_and_add(&c->packets_in, d->packets);
		__sync_fetch_and_add(&c->payload_in, d->payload);
	} else {
		__sync_fetch_and_add(&c->packets_out, d->packets);
		__sync_fetch_and_add(&c->payload_out, d->payload);
	}
}

static __always_inline void first(struct tuple *t, struct udp_counters *c, const struct datagram *d)
{
	copy16(t->local, d->local);
	copy16(t->remote, d->remote);
	t->local_port = d->local_port;
	if (!t->family)
		t->family = d->v6 ? AF_INET6 : AF_INET;
	c->first_ns = d->now;
	c->first_in = d->in;
	barrier();
	t->remote_port = d->remote_port; /* last: from here on the peer matches */
}

/* The peers of a socket after its first. */
static __noinline int meter_peer(__u64 cookie, const struct udp_slot *s, const struct datagram *d)
{
	struct udp_peer_key k = { .cookie = cookie, .remote_port = d->remote_port };
	copy16(k.remote, d->remote);
	struct udp_peer_value *v = bpf_map_lookup_elem(&udp_peers, &k);
	if (!v) {
		struct udp_peer_value fresh = { .tuple.netns = s->tuple.netns, .tuple.family = s->tuple.family };
		first(&fresh.tuple, &fresh.counters, d);
		bpf_map_update_elem(&udp_peers, &k, &fresh, BPF_NOEXIST);
		v = bpf_map_lookup_elem(&udp_peers, &k);
		if (!v) {
			drop(DROP_PEERS_FULL, 1);
			drop(DROP_PEERS_FULL_PACKETS, d->packets);
			drop(DROP_PEERS_FULL_OCTETS, d->octets);
			return 0;
		}
	}
	count(&v->counters, d);
	return 0;
}

/* sock_left_out of a datagram's socket: the kernel itself looks up from the socket to its cgroup's ancestors. */
static __always_inline struct left_out_sum *skb_left_out(struct __sk_buff *skb)
{
	__u32 depths = left_out_depths;
	for (__u32 depth = 0; depth < LEFT_OUT_DEPTHS && depths; depth++, depths >>= 1) {
		if (!(depths & 1))
			continue;
		__u64 id = bpf_skb_ancestor_cgroup_id(skb, depth);
		if (!id)
			return 0; /* deeper than it is */
		struct left_out_sum *sum = bpf_map_lookup_elem(&left_out, &id);
		if (sum)
			return sum;
	}
	return 0;
}

static __always_inline bool skb_in_scope(struct __sk_buff *skb)
{
	if (!scope_cgroups && !scope_netnses)
		return true;
	/* As a number, by way of memory: the verifier lets nobody look for the cgroup in what it knows to be a socket. */
	struct sock *known = (void *)skb->sk, *sk = 0;
	bpf_probe_read_kernel(&sk, sizeof(sk), &known);
	return sk && sock_in_scope(sk);
}

/* Whether the socket of a datagram is left out; the datagram is counted then. */
static __noinline int left_out_datagram(struct __sk_buff *skb)
{
	struct left_out_sum *sum = skb_left_out(skb);
	if (!sum || !skb_in_scope(skb))
		return 0;
	__u32 packets = 1, headers = 48;
	if (skb->gso_segs > 1) {
		void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
		packets = skb->gso_segs;
		if (skb->protocol == bpf_htons(0x0800) && data + 1 <= end)
			headers = (*(__u8 *)data & 15) * 4 + 8;
	}
	count_left_out(sum, 0, packets, (__u64)skb->len + (packets - 1) * headers);
	return 1;
}

static __always_inline void meter(struct udp_slot *s, __u64 cookie, const struct datagram *d)
{
	if (!s) {
		/* a socket of the kernel itself (VXLAN, WireGuard, NFS): no create hook saw it */
		if (scope_cgroups || scope_netnses)
			return;
		bpf_map_update_elem(&udp_sockets, &cookie, &no_slot, BPF_NOEXIST);
		s = bpf_map_lookup_elem(&udp_sockets, &cookie);
		if (!s) {
			drop(DROP_UDP_NO_ENTRY, d->packets);
			drop(DROP_UDP_NO_ENTRY_OCTETS, d->octets);
			return;
		}
		s->created_ns = d->now;
	}
	if (!s->tuple.remote_port) {
		bpf_spin_lock(&s->lock);
		if (!s->tuple.remote_port)
			first(&s->tuple, &s->counters, d);
		bpf_spin_unlock(&s->lock);
	}
	if (same_peer(&s->tuple, d)) {
		count(&s->counters, d);
		return;
	}
	s->spilled = 1;
	meter_peer(cookie, s, d);
}

struct ipv4 { __u8 ihl, tos; __be16 total, id, fragment; __u8 ttl, protocol; __be16 sum; __be32 source, destination; };
struct ipv6 { __be32 class; __be16 length; __u8 next, hops; __u8 source[16], destination[16]; };
struct ports { __be16 source, destination, length, sum; };

/* What every packet of the host pays: is it UDP? Apart from the rest, so that TCP packets pay for no register more. */
static __always_inline bool is_udp(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	if (data + sizeof(struct ipv4) > end)
		return false;
	if (skb->protocol == bpf_htons(0x0800))
		return ((struct ipv4 *)data)->protocol == IPPROTO_UDP;
	return ((struct ipv6 *)data)->next == IPPROTO_UDP && skb->protocol == bpf_htons(0x86dd);
}

static __always_inline int datagram(struct __sk_buff *skb, bool in)
{
	__u64 cookie = bpf_get_socket_cookie(skb);
	if (!cookie)
		return 1;
	struct udp_slot *s = bpf_map_lookup_elem(&udp_sockets, &cookie);
	if (!s || s->left_out == UDP_LEFT_OUT) {
		if (left_out_depths && left_out_datagram(skb))
			return 1;
		if (s)
			s->left_out = UDP_TOLD;
	}
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct datagram d;
	const struct ports *ports;
	__u32 ip;
	if (skb->protocol == bpf_htons(0x0800)) {
		const struct ipv4 *h = data;
		if ((void *)(h + 1) > end)
			goto unreadable;
		if (h->protocol != IPPROTO_UDP)
			return 1;
		if (h->fragment & bpf_htons(0x1fff))
			return 1; /* reassembled before the socket sees it: cgroup programs see whole datagrams */
		ip = (h->ihl & 15) * 4;
		mapped(d.local, in ? h->destination : h->source);
		mapped(d.remote, in ? h->source : h->destination);
		d.v6 = false;
		ports = data + ip;
	} else if (skb->protocol == bpf_htons(0x86dd)) {
		const struct ipv6 *h = data;
		if ((void *)(h + 1) > end)
			goto unreadable;
		if (h->next != IPPROTO_UDP)
			return 1;
		ip = 40;
		copy16(d.local, in ? h->destination : h->source);
		copy16(d.remote, in ? h->source : h->destination);
		d.v6 = true;
		ports = data + ip;
	} else {
		return 1;
	}
	if ((void *)(ports + 1) > end)
		goto unreadable;
	d.local_port = bpf_ntohs(in ? ports->destination : ports->source);
	d.remote_port = bpf_ntohs(in ? ports->source : ports->destination);
	d.in = in;
	d.packets = skb->gso_segs > 1 ? skb->gso_segs : 1;
	/* Port 0 means "no peer yet" in an entry, and no flow has it. Linux delivers it, so anybody could fill the map of peers. */
	if (!d.remote_port) {
		if (s || !(scope_cgroups || scope_netnses))
			drop(DROP_UDP_NO_PORT, d.packets);
		return 1;
	}
	d.octets = (__u64)skb->len + (d.packets - 1) * (ip + 8);
	d.payload = d.octets - d.packets * (ip + 8);
	d.now = bpf_ktime_get_coarse_ns();
	meter(s, cookie, &d);
	return 1;
unreadable:
	drop(DROP_UDP_PARSE, 1);
	return 1;
}

static __always_inline int sent(struct __sk_buff *skb) { return datagram(skb, false); }
static __always_inline int received(struct __sk_buff *skb) { return datagram(skb, true); }

SEC("cgroup_skb/egress")
int udp_out(struct __sk_buff *skb) { return is_udp(skb) ? sent(skb) : 1; }
SEC("cgroup_skb/ingress")
int udp_in(struct __sk_buff *skb) { return is_udp(skb) ? received(skb) : 1; }

SEC("cgroup/sock_create")
int udp_create(struct bpf_sock *ctx)
{
	if (ctx->protocol != IPPROTO_UDP || !task_in_scope() || current_left_out())
		return 1;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	if (bpf_map_update_elem(&udp_sockets, &cookie, &no_slot, BPF_NOEXIST)) {
		drop(DROP_SOCKETS_FULL, 1);
		return 1;
	}
	struct udp_slot *s = bpf_map_lookup_elem(&udp_sockets, &cookie);
	if (!s)
		return 1;
	s->created_ns = bpf_ktime_get_boot_ns();
	s->tuple.family = ctx->family;
	struct task_struct *task = (void *)bpf_get_current_task();
	s->tuple.netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	owner_is_current(&s->owner);
	return 1;
}

/* A released socket whose event found the ring full: its first peer goes to the peer map, where a walk finds it. */
static __always_inline void keep(__u64 cookie, const struct udp_slot *s)
{
	struct udp_peer_key k = { .cookie = cookie, .remote_port = s->tuple.remote_port };
	copy16(k.remote, s->tuple.remote);
	struct udp_peer_value v = { .tuple = s->tuple, .counters = s->counters };
	if (bpf_map_update_elem(&udp_peers, &k, &v, BPF_NOEXIST)) {
		drop(DROP_PEERS_FULL, 1);
		drop(DROP_PEERS_FULL_PACKETS, s->counters.packets_in + s->counters.packets_out);
	}
}

SEC("cgroup/sock_release")
int udp_release(struct bpf_sock *ctx)
{
	if (ctx->protocol != IPPROTO_UDP)
		return 1;
	__u64 cookie = bpf_get_socket_cookie(ctx);
	struct udp_slot *s = bpf_map_lookup_elem(&udp_sockets, &cookie);
	if (!s)
		return 1;
	if (s->counters.first_ns) {
		struct udp_event *e = bpf_ringbuf_reserve(&flow_events, sizeof(*e), 0);
		if (!e) {
			drop(DROP_FLOW_RING_FULL, 1);
			keep(cookie, s);
		} else {
			head(&e->head, EVENT_UDP_ENDED, cookie, bpf_ktime_get_boot_ns());
			e->entry.lock = 0;
			e->entry.spilled = s->spilled;
			e->entry.backfilled = s->backfilled;
			e->entry.left_out = s->left_out;
			e->entry.pad = 0;
			e->entry.created_ns = s->created_ns;
			e->entry.owner = s->owner;
			e->entry.tuple = s->tuple;
			e->entry.counters = s->counters;
			bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
		}
	}
	bpf_map_delete_elem(&udp_sockets, &cookie);
	return 1;
}
