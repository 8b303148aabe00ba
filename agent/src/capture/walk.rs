//! Reading the kernel's maps from user space: UDP sockets with their peers, and ends that found the ring full.
//!
//! A socket's entry counts its first peer for the socket's whole life, the peer map every other one: no counter ever
//! moves, so each is read once a walk and is monotone.

use std::collections::HashMap;

use aya::Ebpf;
use flowtilla_abi as abi;
use flowtilla_abi::{TcpEntry, UdpEntry, UdpEvent, UdpPeerKey, UdpPeerValue};
use flowtilla_agent_core::observe::{self, Cookie, Observation, TcpSight};
use flowtilla_agent_core::time::KernelTime;
use zerocopy::IntoBytes as _;

use super::{CaptureError, batch, maps};
use crate::clock;

/// Every UDP socket, then every peer after a socket's first.
pub(super) fn udp(ebpf: &Ebpf, mut each: impl FnMut(Observation)) -> Result<(), CaptureError> {
    let (now, slept) = (clock::kernel_now().0, clock::slept());
    batch::each(
        maps::map_fd(ebpf, "udp_sockets")?,
        batch::F_LOCK,
        |cookie: &u64, entry: &UdpEntry| {
            each(observe::udp(*cookie, now, entry, false, slept));
        },
    )?;
    batch::each(
        maps::map_fd(ebpf, "udp_peers")?,
        0,
        |key: &UdpPeerKey, value: &UdpPeerValue| {
            each(observe::udp_peer(key.cookie, now, value, slept));
        },
    )
}

/// Ends of UDP sockets that had more than one peer: first the sockets, which tell whose the peers are, then what the peer
/// map has of them, then the ends.
pub(super) fn udp_ended(
    ebpf: &Ebpf,
    ended: &[UdpEvent],
    mut each: impl FnMut(Observation),
) -> Result<(), CaptureError> {
    let slept = clock::slept();
    let tell = |ended: &[UdpEvent], over: bool, each: &mut dyn FnMut(Observation)| {
        for event in ended {
            each(observe::udp(
                event.head.cookie,
                event.head.at_ns,
                &event.entry,
                over,
                slept,
            ));
        }
    };
    tell(ended, false, &mut each);
    // Either may be 65,536: what is looked at is the peer map once, however many ended.
    let by_cookie: HashMap<u64, &UdpEvent> = ended.iter().map(|event| (event.head.cookie, event)).collect();
    let outcome = batch::each(
        maps::map_fd(ebpf, "udp_peers")?,
        0,
        |key: &UdpPeerKey, value: &UdpPeerValue| {
            if let Some(event) = by_cookie.get(&key.cookie) {
                each(observe::udp_peer(key.cookie, event.head.at_ns, value, slept));
            }
        },
    );
    tell(ended, true, &mut each);
    outcome
}

/// What found the ring full: ends, taken and deleted; and of every live socket that it is there, since it is not known
/// whose beginning or first counters were lost.
pub(super) fn unsent(ebpf: &Ebpf, mut each: impl FnMut(Observation)) -> Result<(), CaptureError> {
    let map = maps::map_fd(ebpf, "tcp_sockets")?;
    let mut found = Vec::new();
    batch::each(map, 0, |cookie: &u64, entry: &TcpEntry| {
        if entry.phase == abi::tcp_phase::UNSENT {
            found.push(*cookie);
            each(observe::tcp(*cookie, entry.end_ns, TcpSight::Ended, entry));
        } else if entry.phase == abi::tcp_phase::OPEN {
            each(opened(*cookie, entry));
        }
    })?;
    found
        .iter()
        .try_for_each(|cookie| batch::delete(map, cookie.as_bytes(), "deleting an ended socket"))
}

fn opened(cookie: u64, entry: &TcpEntry) -> Observation {
    Observation::Opened {
        cookie: Cookie(cookie),
        at: KernelTime(entry.start_ns),
    }
}

/// Every live TCP socket of the map, as if it had just been opened.
pub(super) fn tcp(ebpf: &Ebpf, mut each: impl FnMut(Observation)) -> Result<(), CaptureError> {
    batch::each(
        maps::map_fd(ebpf, "tcp_sockets")?,
        0,
        |cookie: &u64, entry: &TcpEntry| {
            if entry.phase == abi::tcp_phase::OPEN {
                each(opened(*cookie, entry));
            }
        },
    )
}

/// How many sockets in the maps are older than the agent.
pub(super) fn backfilled(ebpf: &Ebpf) -> Result<u64, CaptureError> {
    let mut found = 0;
    batch::each(
        maps::map_fd(ebpf, "tcp_sockets")?,
        0,
        |_: &u64, entry: &TcpEntry| {
            found += u64::from(entry.backfilled);
        },
    )?;
    batch::each(
        maps::map_fd(ebpf, "udp_sockets")?,
        batch::F_LOCK,
        |_: &u64, entry: &UdpEntry| {
            found += u64::from(entry.backfilled);
        },
    )?;
    Ok(found)
}
