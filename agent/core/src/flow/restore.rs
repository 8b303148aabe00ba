//! What is left of the agent before: flows that go on where their newest record ended.
//!
//! In: a [`Checkpoint`] and the records kept after it, in their order. Out: for each TCP socket that the start-up walk
//! shows, what was reported of it, once. What no walk shows ended while no agent ran.
//!
//! Rules:
//! - a record of a socket that is newer (by stream and part) replaces what is known; older ones change nothing;
//! - a record that ends a flow with its socket takes it out; one that ends a flow whose socket lives on (a stop, a full
//!   table) leaves the totals, from which the socket's next flow counts;
//! - a socket of which no record tells, whose twin's records do, is silent: its octets are told.
//!
//! Bounded by [`SOCKETS_MAX`] sockets.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use super::FlowTable;
use super::checkpoint::{Checkpoint, End, RETRANSMITS_UNKNOWN, SOCKETS_MAX, Socket, State, ends};
use super::counters;
use super::entry::{Flow, Kind, Peer, TcpFacts, Twin};
use super::key::FlowKey;
use super::past::PastTcp;
use super::record::{BootId, EndReason, FlowRecord, Party, Protocol, Traffic};
use super::sides::Sides;
use crate::observe::{TcpObservation, TcpRole, Tuple};
use crate::time::{KernelTime, WallOffset};

/// What was reported of sockets that may live on; see [`FlowTable::with_restore`].
#[derive(Debug)]
pub struct Restore {
    boot: BootId,
    offset: WallOffset,
    sockets: HashMap<u64, Socket, FixedState>,
    /// Sockets by both ends, the lesser first.
    pairs: HashMap<[End; 2], Vec<u64>, FixedState>,
}

impl Restore {
    /// Nothing, for this run of the kernel. `offset` turns the wall times of records into the kernel's.
    #[must_use]
    pub fn new(boot: BootId, offset: WallOffset) -> Self {
        Self {
            boot,
            offset,
            sockets: HashMap::default(),
            pairs: HashMap::default(),
        }
    }

    /// Begins with a checkpoint; one of another run of the kernel is void.
    #[must_use]
    pub fn from_checkpoint(boot: BootId, offset: WallOffset, checkpoint: Checkpoint) -> Self {
        let mut restore = Self::new(boot, offset);
        if checkpoint.boot == boot {
            for socket in checkpoint.sockets {
                restore.insert(socket);
            }
        }
        restore
    }

    /// Takes in a record that was kept, the oldest first. Those the checkpoint has change nothing.
    pub fn replay(&mut self, record: &FlowRecord) {
        if record.id.boot != self.boot || record.protocol != Protocol::Tcp {
            return;
        }
        let cookie = record.id.cookie.0;
        let held = self.sockets.get(&cookie);
        if held.is_some_and(|held| (record.id.stream, record.id.part) <= (held.stream, held.part)) {
            return;
        }
        self.hush_twins(record);
        let socket = match record.reason {
            EndReason::ActiveTimeout => State::Open,
            EndReason::ForcedEnd | EndReason::LackOfResources => State::Left,
            EndReason::IdleTimeout
            | EndReason::EndOfFlow
            | EndReason::Refused
            | EndReason::Reset
            | EndReason::TimedOut
            | EndReason::Unreachable => {
                self.take(cookie);
                return;
            }
        };
        let goes_on = |held: &&Socket| held.stream == record.id.stream;
        let next = match self.sockets.get(&cookie).filter(goes_on) {
            Some(held) => self.later(held, record, socket),
            None => self.first(record, socket),
        };
        self.take(cookie);
        if let Some(next) = next {
            self.insert(next);
        }
    }

    /// How many sockets it has.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    pub(super) fn unseen(&self) -> impl Iterator<Item = Socket> + '_ {
        self.sockets.values().cloned()
    }

    /// What a record says of a flow that was known before.
    fn later(&self, held: &Socket, record: &FlowRecord, state: State) -> Option<Socket> {
        let ends = [end(&record.initiator), end(&record.responder)];
        let mut next = held.clone();
        if held.ends != Some(ends) {
            next.turn();
        }
        if next.ends != Some(ends) {
            // Its port was bound after the checkpoint.
            return self.first(record, state);
        }
        next.part = record.id.part;
        next.state = state;
        next.told = true;
        next.reported = plus(next.base, record.total);
        if let Some(tcp) = &record.tcp {
            next.retransmits[0] = next.retransmits[0].saturating_add(tcp.retransmits_forward);
            next.retransmits[1] = next.retransmits[1].saturating_add(tcp.retransmits_backward);
        }
        if let Some(baseline) = &record.baseline {
            next.syns_again = baseline.syns_again;
        }
        let length = record.end.0.saturating_sub(record.start.0);
        next.until = held.start.saturating_add(length).max(held.until);
        Some(next)
    }

    /// What a record says of a flow that is not known: `None` when that is not enough to go on.
    fn first(&self, record: &FlowRecord, state: State) -> Option<Socket> {
        let baseline = record.baseline.as_deref();
        if baseline.is_none() && (record.backfilled || record.id.stream > 0) {
            return None;
        }
        let tcp = record.tcp.as_ref()?;
        let known = baseline.copied().unwrap_or_default();
        let retransmits = match baseline {
            Some(baseline) => [baseline.retransmits; 2],
            None if record.id.part == 1 => [tcp.retransmits_forward, tcp.retransmits_backward],
            None => [RETRANSMITS_UNKNOWN; 2],
        };
        let start = kernel(record.start.0, self.offset);
        let established = tcp
            .handshake_us
            .map_or(0, |us| start.saturating_add(u64::from(us) * 1000));
        Some(Socket {
            cookie: record.id.cookie.0,
            stream: record.id.stream,
            part: record.id.part,
            state,
            ends: Some([end(&record.initiator), end(&record.responder)]),
            netns: record.netns.0,
            local: None,
            syn: known.syn_forward.or(record.initiator_seen.then_some(true)),
            told: true,
            backfilled: record.backfilled,
            reported: plus(known.base, record.total),
            base: known.base,
            retransmits,
            peer: false,
            syns_again: known.syns_again,
            start,
            until: start.saturating_add(record.end.0.saturating_sub(record.start.0)),
            established,
        })
    }

    /// Keeps sockets silent that no record tells of, at the other end of a connection that this record tells of.
    fn hush_twins(&mut self, record: &FlowRecord) {
        let cookie = record.id.cookie.0;
        let ends = [end(&record.initiator), end(&record.responder)];
        let Some(others) = self.pairs.get(&ordered(ends)) else {
            return;
        };
        let own = self.sockets.get(&cookie).and_then(Socket::own_end);
        let alive_until = kernel(record.end.0, self.offset);
        for other in others.iter().filter(|&&other| other != cookie) {
            let Some(other) = self.sockets.get_mut(other) else {
                continue;
            };
            let opposite = own.is_none() || other.own_end() != own;
            if other.part == 0 && other.state == State::Open && opposite && other.start <= alive_until {
                other.state = State::Silent;
            }
        }
    }

    fn insert(&mut self, socket: Socket) {
        if !self.sockets.contains_key(&socket.cookie) {
            if self.sockets.len() >= SOCKETS_MAX {
                return;
            }
            if let Some(ends) = socket.ends {
                self.pairs.entry(ordered(ends)).or_default().push(socket.cookie);
            }
        }
        self.sockets.insert(socket.cookie, socket);
    }

    fn take(&mut self, cookie: u64) -> Option<Socket> {
        let socket = self.sockets.remove(&cookie)?;
        if let Some(ends) = socket.ends.map(ordered)
            && let Some(held) = self.pairs.get_mut(&ends)
        {
            held.retain(|&held| held != cookie);
            if held.is_empty() {
                self.pairs.remove(&ends);
            }
        }
        Some(socket)
    }

    /// Whether records tell of the socket at the other end of this one's connection, which was not seen yet.
    fn twin_is_told(&self, seen: &TcpObservation) -> bool {
        let tuple = &seen.tuple;
        let pair = ordered(ends(tuple, true));
        let local_only = tuple.local.address.is_loopback() || tuple.remote.address.is_loopback();
        let cookies = self.pairs.get(&pair).into_iter().flatten();
        cookies
            .filter(|&&cookie| cookie != seen.cookie.0)
            .filter_map(|cookie| self.sockets.get(cookie))
            .any(|other| {
                let same_host = !local_only || other.netns == tuple.netns.0;
                let opposite = other
                    .own_end()
                    .is_none_or(|own| own == (tuple.remote.address, tuple.remote.port));
                other.part > 0 && other.state == State::Open && same_host && opposite
            })
    }
}

impl Socket {
    /// Names the ends the other way round.
    fn turn(&mut self) {
        let swap = |traffic: &mut Traffic| std::mem::swap(&mut traffic.forward, &mut traffic.backward);
        if let Some(ends) = &mut self.ends {
            ends.swap(0, 1);
        }
        swap(&mut self.reported);
        swap(&mut self.base);
        self.retransmits.swap(0, 1);
        self.local = self.local.map(|local| !local);
        self.syn = self.syn.map(|syn| !syn);
    }

    fn own_end(&self) -> Option<End> {
        let [a, b] = self.ends?;
        self.local.map(|local| if local { a } else { b })
    }

    /// Whether `a` is the end that this tuple calls local.
    fn is_local(&self, tuple: &Tuple) -> Option<bool> {
        let [own, far] = ends(tuple, true);
        let [a, b] = self.ends.unwrap_or([own, far]);
        self.local.or_else(|| {
            if (a, b) == (own, far) {
                Some(true)
            } else {
                ((a, b) == (far, own)).then_some(false)
            }
        })
    }
}

impl FlowTable {
    /// A table that goes on from what was reported before, until [`FlowTable::end_restore`].
    #[must_use]
    pub fn with_restore(options: super::TableOptions, restore: Restore) -> Self {
        let mut table = Self::new(options);
        if restore.boot == options.boot {
            table.restore = restore;
        }
        table
    }

    /// The walk has shown all there is: what it did not show ended while no agent ran, and is forgotten.
    pub fn end_restore(&mut self) {
        let gone = self.restore.sockets.values();
        let gone = gone.filter(|socket| socket.state == State::Open).count();
        self.ended_unseen += gone as u64;
        self.restore = Restore::new(self.options.boot, self.restore.offset);
    }

    /// Flows of the agent before whose sockets ended while none ran: what they did after their newest record is not
    /// known.
    #[must_use]
    pub fn ended_unseen(&self) -> u64 {
        self.ended_unseen
    }

    /// What was reported of a socket that is seen for the first time: its flow, or the totals from which its next one
    /// counts. `None`: nothing is known.
    pub(super) fn restored(&mut self, seen: &TcpObservation) -> Option<Restored> {
        if self.restore.sockets.is_empty() {
            return None;
        }
        let silent = seen.backfilled && self.restore.twin_is_told(seen);
        let taken = self.restore.take(seen.cookie.0);
        let socket = taken.and_then(|socket| socket.is_local(&seen.tuple).map(|local| (socket, local)));
        let Some((socket, local)) = socket else {
            return silent.then(|| self.silent(seen, None));
        };
        let role = match socket.syn {
            Some(syn) if syn == local => TcpRole::Active,
            Some(_) => TcpRole::Passive,
            None => TcpRole::Unknown,
        };
        match socket.state {
            State::Left | State::LeftSilent => Some(Restored::Past(PastTcp {
                stream: socket.stream,
                opened: KernelTime(socket.start),
                seen: Sides::of(socket.reported, local),
                retransmits: match socket.retransmits[usize::from(!local)] {
                    RETRANSMITS_UNKNOWN => seen.counters.retransmits,
                    known => known,
                },
                silent: socket.state == State::LeftSilent,
                role,
                syns_again: socket.syns_again,
            })),
            State::Silent => Some(self.silent(seen, Some(&socket))),
            State::Open if silent && socket.part == 0 => Some(self.silent(seen, Some(&socket))),
            State::Open => Some(self.gone_on(seen, &socket, local, role)),
        }
    }

    /// A flow that goes on.
    fn gone_on(&mut self, seen: &TcpObservation, socket: &Socket, local: bool, role: TcpRole) -> Restored {
        let retransmits = |own: bool| match socket.retransmits[usize::from(own != local)] {
            RETRANSMITS_UNKNOWN => seen.counters.retransmits,
            known => known,
        };
        let start = KernelTime(socket.start);
        let facts = TcpFacts {
            established: KernelTime(socket.established),
            retransmits: retransmits(true),
            retransmits_reported: retransmits(true),
            syns_again: socket.syns_again,
            role,
            ..TcpFacts::new(seen)
        };
        let key = FlowKey {
            cookie: seen.cookie,
            stream: socket.stream,
        };
        let owner = self.owners.share(&seen.owner);
        let base = Sides::of(socket.base, local);
        let times = (start, seen.at);
        let mut flow = Flow::new(
            key,
            seen.tuple,
            Kind::Tcp(facts),
            owner,
            times,
            base,
            &self.options,
        );
        flow.backfilled = socket.backfilled;
        flow.part = socket.part;
        flow.local_initiates = socket.told.then_some(local);
        flow.reported = Sides::of(socket.reported, local).max(base);
        flow.seen = flow.reported;
        if socket.part > 0 {
            let until = KernelTime(socket.until);
            flow.twin = Twin::Alone;
            flow.newest = until;
            flow.recorded_at = until;
            flow.reported_until = until;
            flow.record_at = flow.record_at.max(until.after(self.options.active_timeout));
            if socket.peer {
                flow.peer = Some(Peer {
                    owner: self.owners.nobody(),
                    retransmits: retransmits(false),
                    retransmits_reported: retransmits(false),
                    flags_sent: 0,
                });
            }
        }
        Restored::Flow(Box::new(flow))
    }

    /// A flow whose octets another one tells, or told.
    fn silent(&mut self, seen: &TcpObservation, socket: Option<&Socket>) -> Restored {
        let key = FlowKey {
            cookie: seen.cookie,
            stream: socket.map_or(self.options.started.0, |socket| socket.stream),
        };
        let owner = self.owners.share(&seen.owner);
        let base = counters::tcp(seen, 0, Sides::default());
        let facts = Kind::Tcp(TcpFacts::new(seen));
        let times = (seen.start, seen.at);
        let mut flow = Flow::new(key, seen.tuple, facts, owner, times, base, &self.options);
        flow.backfilled = true;
        flow.blind = true;
        flow.twin = Twin::Orphan(seen.at);
        Restored::Flow(Box::new(flow))
    }
}

/// What becomes of a socket that an earlier agent knew.
pub(super) enum Restored {
    Flow(Box<Flow>),
    Past(PastTcp),
}

fn end(party: &Party) -> End {
    (party.endpoint.address, party.endpoint.port)
}

fn ordered([a, b]: [End; 2]) -> [End; 2] {
    if a <= b { [a, b] } else { [b, a] }
}

fn plus(a: Traffic, b: Traffic) -> Traffic {
    Sides::of(a, true).plus(Sides::of(b, true)).oriented(true)
}

/// A time of the wall as the kernel's.
fn kernel(wall: u64, offset: WallOffset) -> u64 {
    wall.checked_add_signed(offset.0.saturating_neg()).unwrap_or(0)
}
