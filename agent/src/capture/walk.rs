//! Reading the kernel's maps from user space: UDP sockets with their peers, and ends that found the ring full.
//!
//! Order matters: the peer map is read before the sockets, because counters only ever move from a socket's entry to the
//! peer map. So a sum of both never counts a datagram twice, and what it misses the next walk finds.

use std::collections::HashMap;

use aya::Ebpf;
use flowtilla_abi as abi;
use flowtilla_abi::{TcpEntry, UdpEntry, UdpEvent, UdpPeerKey, UdpPeerValue};
use flowtilla_agent_core::observe::{self, Observation, TcpSight};
use zerocopy::IntoBytes as _;

use super::{CaptureError, attach, batch};
use crate::clock;

type Peer = (u64, [u8; 16], u16);

/// Buffers that walks use again.
#[derive(Default)]
pub(super) struct Walk {
    peers: HashMap<Peer, UdpPeerValue>,
}

impl Walk {
    fn read_peers(&mut self, ebpf: &Ebpf) -> Result<(), CaptureError> {
        self.peers.clear();
        let peers = &mut self.peers;
        batch::each(attach::map_fd(ebpf, "udp_peers")?, 0, |key: &UdpPeerKey, value: &UdpPeerValue| {
            peers.insert((key.cookie, key.remote, key.remote_port), *value);
        })
    }

    /// Every UDP socket and every peer.
    pub(super) fn udp(&mut self, ebpf: &Ebpf, mut each: impl FnMut(Observation)) -> Result<(), CaptureError> {
        self.read_peers(ebpf)?;
        let now = clock::kernel_now().0;
        let peers = &mut self.peers;
        batch::each(attach::map_fd(ebpf, "udp_sockets")?, batch::F_LOCK, |cookie: &u64, entry: &UdpEntry| {
            let mut entry = *entry;
            add_peer(&mut entry, *cookie, peers);
            each(observe::udp(*cookie, now, &entry, false));
        })?;
        for ((cookie, ..), value) in self.peers.drain() {
            each(observe::udp_peer(cookie, now, &value));
        }
        Ok(())
    }

    /// Ends of UDP sockets that had more than one peer: the peers first, then the ends.
    pub(super) fn udp_ended(
        &mut self,
        ebpf: &Ebpf,
        ended: &mut Vec<UdpEvent>,
        mut each: impl FnMut(Observation),
    ) -> Result<(), CaptureError> {
        let outcome = self.read_peers(ebpf);
        for event in ended.iter_mut() {
            add_peer(&mut event.entry, event.head.cookie, &mut self.peers);
        }
        for ((cookie, ..), value) in self.peers.drain() {
            if let Some(event) = ended.iter().find(|event| event.head.cookie == cookie) {
                each(observe::udp_peer(cookie, event.head.at_ns, &value));
            }
        }
        for event in ended.drain(..) {
            each(observe::udp(event.head.cookie, event.head.at_ns, &event.entry, true));
        }
        outcome
    }

    /// TCP sockets whose end found the ring full: taken and deleted.
    pub(super) fn unsent(&mut self, ebpf: &Ebpf, mut each: impl FnMut(Observation)) -> Result<(), CaptureError> {
        let map = attach::map_fd(ebpf, "tcp_sockets")?;
        let mut found = Vec::new();
        batch::each(map, 0, |cookie: &u64, entry: &TcpEntry| {
            if entry.phase == abi::tcp_phase::UNSENT {
                found.push(*cookie);
                each(observe::tcp(*cookie, entry.end_ns, TcpSight::Ended, entry));
            }
        })?;
        found.iter().try_for_each(|cookie| batch::delete(map, cookie.as_bytes(), "deleting an ended socket"))
    }
}

/// Adds what the peer map has for the entry's current peer, and takes it out of `peers`.
fn add_peer(entry: &mut UdpEntry, cookie: u64, peers: &mut HashMap<Peer, UdpPeerValue>) {
    let Some(value) = peers.remove(&(cookie, entry.tuple.remote, entry.tuple.remote_port)) else { return };
    let (sum, earlier) = (&mut entry.counters, &value.counters);
    sum.packets_out += earlier.packets_out;
    sum.packets_in += earlier.packets_in;
    sum.octets_out += earlier.octets_out;
    sum.octets_in += earlier.octets_in;
    sum.payload_out += earlier.payload_out;
    sum.payload_in += earlier.payload_in;
    if earlier.first_ns > 0 {
        sum.first_ns = earlier.first_ns;
        sum.first_in = earlier.first_in;
    }
    sum.last_ns = sum.last_ns.max(earlier.last_ns);
}
