//! From a flow to its record.

use super::FlowTable;
use super::entry::{Flow, Kind, Twin};
use super::flows::Handle;
use super::record::{CollectorSet, Counting, EndReason, FlowRecord, Party, RecordId};
use crate::owner::{Owner, Unknown};
use crate::time::{KernelTime, WallTime};

impl FlowTable {
    /// Makes a record of what a flow did since the last one.
    pub(super) fn report(&mut self, handle: Handle, now: KernelTime, reason: EndReason) {
        let Some(flow) = self.flows.get(handle) else {
            return;
        };
        let local_initiates = flow
            .local_initiates
            .or_else(|| flow.initiates())
            .unwrap_or_else(|| self.infer_initiates(flow));
        let owner = match flow.kind {
            Kind::Udp(_) => self
                .udp
                .by_cookie
                .get(&flow.key.cookie)
                .map(|socket| &socket.owner),
            Kind::Tcp(_) => None,
        };
        let local = Party {
            endpoint: flow.tuple.local,
            owner: Owner::clone(owner.unwrap_or(&flow.owner)),
        };
        let remote = Party {
            endpoint: flow.tuple.remote,
            owner: remote_owner(flow),
        };
        let (initiator, responder) = if local_initiates {
            (local, remote)
        } else {
            (remote, local)
        };
        let delta = flow.unreported();
        let end = end_of_span(flow, delta.is_zero(), reason);
        self.made += 1;
        self.records.push_back(FlowRecord {
            id: RecordId {
                boot: self.options.boot,
                cookie: flow.key.cookie,
                stream: flow.key.stream,
                part: flow.part.saturating_add(1),
            },
            first: flow.part == 0,
            protocol: flow.protocol(),
            initiator,
            responder,
            initiator_seen: !flow.backfilled && flow.initiates().is_some(),
            backfilled: flow.backfilled,
            netns: flow.tuple.netns,
            counting: Counting::Delta,
            delta: delta.oriented(local_initiates),
            total: flow.seen.minus(flow.base()).oriented(local_initiates),
            start: unturned(flow.start),
            delta_start: unturned(flow.reported_until),
            end: unturned(end),
            tcp: flow.figures(local_initiates),
            reason,
            held_from: CollectorSet::default(),
            baseline: flow.baseline(local_initiates),
        });
        self.ledger.report(delta);
        if let Some(flow) = self.flows.get_mut(handle) {
            flow.local_initiates = Some(local_initiates);
            flow.mark_reported(now, end);
            if flow.twin == Twin::Open {
                flow.twin = Twin::Alone;
            }
        }
    }

    /// Who began a connection older than the agent: not the end that listens, else the one with the higher port.
    pub(super) fn infer_initiates(&self, flow: &Flow) -> bool {
        let tuple = &flow.tuple;
        !self.listeners.listens(tuple.netns, tuple.local.port) && tuple.local.port >= tuple.remote.port
    }
}

/// A time of the kernel in a record that was not polled yet.
fn unturned(time: KernelTime) -> WallTime {
    WallTime(time.0)
}

/// End of the span that a record covers. An open TCP socket that was read and had nothing to tell is alive until then.
fn end_of_span(flow: &Flow, silent: bool, reason: EndReason) -> KernelTime {
    let end = match (flow.kind, flow.ended) {
        (Kind::Tcp(_), Some(ended)) => ended.at,
        (Kind::Tcp(_), None) if silent && reason == EndReason::ActiveTimeout => flow.read_at,
        (Kind::Tcp(_) | Kind::Udp(_), _) => flow.newest,
    };
    end.max(flow.newest).max(flow.reported_until)
}

/// Who is at the end that this flow's socket is not.
fn remote_owner(flow: &Flow) -> Owner {
    let remote = flow.tuple.remote.address;
    match &flow.peer {
        Some(peer) => Owner::clone(&peer.owner),
        None if remote.is_loopback() || remote == flow.tuple.local.address => {
            Owner::unknown(Unknown::NotSeen)
        }
        None => Owner::unknown(Unknown::Remote),
    }
}
