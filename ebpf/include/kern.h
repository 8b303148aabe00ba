/* SPDX-License-Identifier: GPL-2.0 OR MIT
 * Only the kernel fields that the programs read: this is the list of what we depend on. Names matter, order and size do
 * not: preserve_access_index makes every access a CO-RE relocation. No vmlinux.h. */
#pragma once
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
#define true 1
#define false 0
#define CORE __attribute__((preserve_access_index))

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1, BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_PERCPU_ARRAY = 6, BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_RB_NO_WAKEUP = 1 };
#define BPF_F_CURRENT_NETNS (-1L)

struct bpf_spin_lock { __u32 val; };

struct in6_addr { union { __u8 u6_addr8[16]; __be32 u6_addr32[4]; } in6_u; } CORE;
struct ns_common { unsigned int inum; } CORE;
struct net { struct ns_common ns; } CORE;
typedef struct { struct net *net; } possible_net_t;
typedef struct { __s64 counter; } atomic64_t;
struct sock_common {
	__be32 skc_daddr, skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr, skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
} CORE;

struct kernfs_node { __u64 id; } CORE;
struct cgroup_root { int hierarchy_id; } CORE;
struct cgroup { struct kernfs_node *kn; struct cgroup_root *root; int level; struct cgroup *ancestors[]; } CORE;
struct cgroup___ids { int level; __u64 ancestor_ids[]; } CORE;   /* before 6.1 */
struct sock_cgroup_data { struct cgroup *cgroup; } CORE;         /* since 5.16 */
struct sock_cgroup_data___old { __u64 val; } CORE;

struct socket;
struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	int sk_err;
	__u32 sk_max_ack_backlog;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
} CORE;
struct socket { struct sock *sk; } CORE;
struct inet_sock { struct sock sk; __be16 inet_sport; } CORE;
struct minmax_sample { __u32 t, v; } CORE;
struct minmax { struct minmax_sample s[3]; } CORE;
struct tcp_sock {
	struct inet_sock inet_conn_sock_is_first; /* never read by this name: tcp_sock begins with its inet_sock */
	__u16 tcp_header_len;
	__u64 bytes_sent, bytes_retrans, bytes_received;
	__u32 segs_out, segs_in, total_retrans, srtt_us, mdev_us, write_seq, snd_una;
	struct minmax rtt_min;
} CORE;

struct mm_struct { unsigned long arg_start, arg_end; } CORE;
typedef struct { __u32 val; } kuid_t;
typedef struct { __u32 val; } kgid_t;
struct cred { kuid_t uid; kgid_t gid; } CORE;
struct nsproxy { struct net *net_ns; } CORE;
struct css_set { struct cgroup *dfl_cgrp; } CORE;
struct task_struct {
	int pid, tgid;
	unsigned int flags;
	__u64 start_boottime;
	struct task_struct *group_leader, *real_parent;
	struct mm_struct *mm;
	const struct cred *cred;
	struct nsproxy *nsproxy;
	struct css_set *cgroups;
	char comm[16];
} CORE;
#define PF_KTHREAD 0x00200000

struct linux_binprm { const char *filename; } CORE;
struct file;
struct seq_file;
struct bpf_iter_meta { struct seq_file *seq; __u64 session_id, seq_num; } CORE;
struct bpf_iter__task_file { struct bpf_iter_meta *meta; struct task_struct *task; __u32 fd; struct file *file; } CORE;

/* UAPI contexts: fixed layout, no CO-RE */
struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4], src_port;
	__be16 dst_port, pad;
	__u32 dst_ip4, dst_ip6[4], state;
	__s32 rx_queue_mapping;
};
struct bpf_sock_addr {
	__u32 user_family, user_ip4, user_ip6[4], user_port, family, type, protocol, msg_src_ip4, msg_src_ip6[4];
	__u64 sk;
};
struct bpf_sock_tuple {
	union {
		struct { __be32 saddr, daddr; __be16 sport, dport; } ipv4;
		struct { __be32 saddr[4], daddr[4]; __be16 sport, dport; } ipv6;
	};
};
struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority, ingress_ifindex,
	      ifindex, tc_index, cb[5], hash, tc_classid, data, data_end, napi_id, family, remote_ip4, local_ip4,
	      remote_ip6[4], local_ip6[4], remote_port, local_port, data_meta;
	__u64 flow_keys, tstamp;
	__u32 wire_len, gso_segs;
	__u64 sk;
	__u32 gso_size;
};

enum {
	TCP_ESTABLISHED = 1, TCP_SYN_SENT = 2, TCP_SYN_RECV = 3, TCP_FIN_WAIT2 = 5, TCP_CLOSE = 7, TCP_LISTEN = 10
};
enum { AF_INET = 2, AF_INET6 = 10, IPPROTO_TCP = 6, IPPROTO_UDP = 17, SOCK_DEAD_BIT = 0, SOCK_DONE_BIT = 1 };

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
