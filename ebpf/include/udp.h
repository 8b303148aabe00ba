/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * UDP: one entry a socket with the counters of its current peer; a change of peer adds them to udp_peers. What a reader
 * sums (udp_peers first, then the entry) never counts a datagram twice, and what it misses it finds the next time. */
#pragma once
#include "tcp.h"

static const struct udp_slot no_slot;
static const struct udp_peer_value no_peer;

struct datagram {
	__u8 local[16], remote[16];
	__u16 local_port, remote_port;
	__u32 packets;
	__u64 octets, payload, now;
	bool in, v6;
};

static __always_inline bool same_peer(const struct tuple *t, const struct datagram *d)
{
	const __u64 *a = (const void *)t->remote, *b = (const void *)d->remote;
	return t->remote_port == d->remote_port && a[0] == b[0] && a[1] == b[1];
}

static __always_inline void count(struct udp_counters *c, const struct datagram *d)
{
	if (!c->first_ns) {
		c->first_ns = d->now;
		c->first_in = d->in;
	}
	c->last_ns = d->now;
	if (d->in) {
		c->packets_in += d->packets;
		c->octets_in += d->octets;
		c->payload_in += d->payload;
	} else {
		c->packets_out += d->packets;
		c->octets_out += d->octets;
		c->payload_out += d->payload;
	}
}

static __noinline int spill(__u64 cookie, struct tuple *t, struct udp_counters *c)
{
	if (!t || !c)
		return 0;
	struct udp_peer_key k = { .cookie = cookie, .remote_port = t->remote_port };
	__builtin_memcpy(k.remote, t->remote, 16);
	struct udp_peer_value *v = bpf_map_lookup_elem(&udp_peers, &k);
	if (!v) {
		bpf_map_update_elem(&udp_peers, &k, &no_peer, BPF_NOEXIST);
		v = bpf_map_lookup_elem(&udp_peers, &k);
	}
	if (!v) {
		drop(DROP_PEERS_FULL, 1);
		drop(DROP_PEERS_FULL_PACKETS, c->packets_in + c->packets_out);
		drop(DROP_PEERS_FULL_OCTETS, c->octets_in + c->octets_out);
		return 0;
	}
	if (!v->counters.first_ns) {
		v->tuple = *t;
		v->counters.first_ns = c->first_ns;
		v->counters.first_in = c->first_in;
	}
	v->counters.last_ns = c->last_ns;
	__sync_fetch_and_add(&v->counters.packets_in, c->packets_in);
	__sync_fetch_and_add(&v->counters.packets_out, c->packets_out);
	__sync_fetch_and_add(&v->counters.octets_in, c->octets_in);
	__sync_fetch_and_add(&v->counters.octets_out, c->octets_out);
	__sync_fetch_and_add(&v->counters.payload_in, c->payload_in);
	__sync_fetch_and_add(&v->counters.payload_out, c->payload_out);
	return 0;
}

static __always_inline void meter(__u64 cookie, const struct datagram *d)
{
	struct udp_slot *s = bpf_map_lookup_elem(&udp_sockets, &cookie);
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
		s->owner.kind = OWNER_NONE;
	}
	bpf_spin_lock(&s->lock);
	if (same_peer(&s->tuple, d)) {
		count(&s->counters, d);
		bpf_spin_unlock(&s->lock);
		return;
	}
	struct tuple old = s->tuple;
	struct udp_counters before = s->counters;
	__builtin_memcpy(s->tuple.local, d->local, 16);
	__builtin_memcpy(s->tuple.remote, d->remote, 16);
	s->tuple.local_port = d->local_port;
	s->tuple.remote_port = d->remote_port;
	if (!s->tuple.family)
		s->tuple.family = d->v6 ? AF_INET6 : AF_INET;
	__builtin_memset(&s->counters, 0, sizeof(s->counters));
	count(&s->counters, d);
	if (before.first_ns)
		s->spilled = 1;
	bpf_spin_unlock(&s->lock);
	if (before.first_ns)
		spill(cookie, &old, &before);
}

static __always_inline int datagram(struct __sk_buff *skb, bool in)
{
	struct datagram d = { .in = in };
	__u32 ip;
	__u8 proto = 0;
	if (skb->protocol == bpf_htons(0x0800)) {
		struct { __u8 ihl, tos; __u16 len, id, frag; __u8 ttl, proto; __u16 sum; __be32 src, dst; } h;
		if (bpf_skb_load_bytes(skb, 9, &proto, 1) || proto != IPPROTO_UDP)
			return 1;
		if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
			goto unreadable;
		ip = (h.ihl & 15) * 4;
		mapped(in ? d.local : d.remote, h.dst);
		mapped(in ? d.remote : d.local, h.src);
	} else if (skb->protocol == bpf_htons(0x86dd)) {
		if (bpf_skb_load_bytes(skb, 6, &proto, 1) || proto != IPPROTO_UDP)
			return 1;
		if (bpf_skb_load_bytes(skb, 8, in ? d.remote : d.local, 16) ||
		    bpf_skb_load_bytes(skb, 24, in ? d.local : d.remote, 16))
			goto unreadable;
		d.v6 = true;
		ip = 40;
	} else {
		return 1;
	}
	__be16 port[2];
	if (bpf_skb_load_bytes(skb, ip, port, 4))
		goto unreadable;
	d.local_port = bpf_ntohs(in ? port[1] : port[0]);
	d.remote_port = bpf_ntohs(in ? port[0] : port[1]);
	d.packets = skb->gso_segs > 1 ? skb->gso_segs : 1;
	d.octets = (__u64)skb->len + (d.packets - 1) * (ip + 8);
	d.payload = d.octets - d.packets * (ip + 8);
	d.now = bpf_ktime_get_boot_ns();
	__u64 cookie = bpf_get_socket_cookie(skb);
	if (cookie)
		meter(cookie, &d);
	return 1;
unreadable:
	drop(DROP_UDP_PARSE, 1);
	return 1;
}

SEC("cgroup_skb/egress")
int udp_out(struct __sk_buff *skb) { return datagram(skb, false); }
SEC("cgroup_skb/ingress")
int udp_in(struct __sk_buff *skb) { return datagram(skb, true); }

SEC("cgroup/sock_create")
int udp_create(struct bpf_sock *ctx)
{
	if (ctx->protocol != IPPROTO_UDP || !task_in_scope())
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
			/* the agent's walk collects what stays: first the peer map, so nothing is lost */
			drop(DROP_FLOW_RING_FULL, 1);
			spill(cookie, &s->tuple, &s->counters);
		} else {
			head(&e->head, EVENT_UDP_ENDED, cookie, bpf_ktime_get_boot_ns());
			e->entry.lock = 0;
			e->entry.spilled = s->spilled;
			e->entry.backfilled = s->backfilled;
			e->entry.pad[0] = e->entry.pad[1] = 0;
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
