//! One flow in the table: what is known of it, what was reported, and what it waits for.
//!
//! Knows its own deadlines as a function of its state ([`Flow::next_deadline`], [`Flow::step`]); the table keeps the
//! order among flows and moves the figures of the law.

use std::sync::Arc;

use super::counters::{self, FlagFacts};
use super::flows::Handle;
use super::key::FlowKey;
use super::ledger::Ledger;
use super::pair::Hanging;
use super::sides::Sides;
use super::{FIRST_RECORD_SOONEST, SETTLE, SILENT_RECORD_AFTER, SNAP_ANSWER, SNAP_LEAD, TableOptions};
use crate::flow::record::{Baseline, EndReason, Protocol, TcpFigures};
use crate::observe::{TcpObservation, TcpRole, TcpState, Tuple};
use crate::owner::{Confidence, Owner, Unknown};
use crate::time::KernelTime;

/// What is known about the socket at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twin {
    /// Not yet: the first record waits for it.
    Open,
    /// Ruled out, or gone: this flow speaks for itself.
    Alone,
    /// Found; this flow speaks for both.
    Leads(Handle),
    /// Found; the other one speaks, and all octets counted here count as joined.
    Follows(Handle),
    /// The one that spoke for both ended then; still silent.
    Orphan(KernelTime),
}

/// How a flow ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) at: KernelTime,
    /// When nothing more is expected of the socket.
    pub(super) settled: KernelTime,
    pub(super) reason: EndReason,
}

/// What the leading flow tells about the other end.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) owner: Arc<Owner>,
    pub(super) retransmits: u32,
    pub(super) retransmits_reported: u32,
    pub(super) flags_sent: u8,
}

/// Counters that a flow does not start at or reach by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Origin {
    /// Where `total` begins: the baseline of a backfilled socket, or what earlier flows of the socket reported.
    pub(super) base: Sides,
    /// What the kernel had counted when it began to count anew.
    pub(super) carry: Sides,
}

/// What only TCP has.
#[derive(Clone, Copy, Debug)]
pub(super) struct TcpFacts {
    /// When its connection began, as the kernel side says: before the flow's start if it is not the connection's first.
    pub(super) opened: KernelTime,
    /// 0: not.
    pub(super) established: KernelTime,
    pub(super) rtt_us: u32,
    pub(super) rtt_variance_us: u32,
    pub(super) rtt_min_us: u32,
    pub(super) retransmits: u32,
    pub(super) retransmits_reported: u32,
    pub(super) syns_again: u32,
    pub(super) role: TcpRole,
    pub(super) state: TcpState,
    pub(super) kernel_flags: u8,
    pub(super) late: bool,
}

/// What only UDP has.
#[derive(Clone, Copy, Debug)]
pub(super) struct UdpFacts {
    /// First datagram of the kernel's counters: tells one counting from the next.
    pub(super) generation: KernelTime,
    pub(super) first_in: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Tcp(TcpFacts),
    Udp(UdpFacts),
}

/// What a flow wants when its deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing: something was seen meanwhile.
    Wait,
    /// Have the kernel's counters read.
    Snap,
    /// The counters were read a moment ago.
    Fresh,
    /// A record in between is due.
    Record,
    /// The last record is due.
    End,
}

#[derive(Debug)]
pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) tuple: Tuple,
    /// Where it hangs in the table's pairs.
    pub(super) hanging: Hanging,
    pub(super) twin: Twin,
    pub(super) kind: Kind,
    pub(super) owner: Arc<Owner>,
    pub(super) peer: Option<Peer>,
    /// Cumulative, each counter the greatest ever seen.
    pub(super) seen: Sides,
    /// As of the newest record; begins at the base. Equal to `seen` while silent.
    pub(super) reported: Sides,
    pub(super) origin: Option<Box<Origin>>,
    pub(super) start: KernelTime,
    /// Newest packet known.
    pub(super) newest: KernelTime,
    /// Newest sight.
    pub(super) read_at: KernelTime,
    /// The deadline that holds among those in the table's order; `None`: none does.
    pub(super) deadline: Option<KernelTime>,
    /// When the next record is considered.
    pub(super) record_at: KernelTime,
    /// When the newest record was made.
    pub(super) recorded_at: KernelTime,
    /// End of the span the newest record covers.
    pub(super) reported_until: KernelTime,
    pub(super) ended: Option<Ended>,
    /// Records made.
    pub(super) part: u32,
    /// Whether this end began, once a record said so.
    pub(super) local_initiates: Option<bool>,
    pub(super) backfilled: bool,
    /// Whether it counts from its first sight only, whatever the socket did before.
    pub(super) blind: bool,
    /// Whether the kernel was asked for the next record's counters.
    pub(super) asked: bool,
}

impl Flow {
    /// A flow without a place among the pairs that begins at `base` of the socket's counters, first seen at `at`.
    pub(super) fn new(
        key: FlowKey,
        tuple: Tuple,
        kind: Kind,
        owner: Arc<Owner>,
        times: (KernelTime, KernelTime),
        base: Sides,
        options: &TableOptions,
    ) -> Self {
        let (start, at) = times;
        Self {
            key,
            tuple,
            hanging: Hanging::default(),
            twin: Twin::Open,
            kind,
            owner,
            peer: None,
            seen: base,
            reported: base,
            origin: (!base.is_zero()).then(|| {
                Box::new(Origin {
                    base,
                    carry: Sides::default(),
                })
            }),
            start,
            newest: start,
            read_at: KernelTime(0),
            deadline: None,
            record_at: start.after(options.first_record_after).max(at.after(SETTLE)),
            recorded_at: start,
            reported_until: start,
            ended: None,
            part: 0,
            local_initiates: None,
            backfilled: false,
            blind: false,
            asked: false,
        }
    }

    pub(super) fn protocol(&self) -> Protocol {
        match self.kind {
            Kind::Tcp(_) => Protocol::Tcp,
            Kind::Udp(_) => Protocol::Udp,
        }
    }

    /// Whether another flow speaks, or spoke, for this one.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.twin, Twin::Follows(_) | Twin::Orphan(_))
    }

    pub(super) fn base(&self) -> Sides {
        self.origin.as_ref().map_or_else(Sides::default, |o| o.base)
    }

    pub(super) fn carry(&self) -> Sides {
        self.origin.as_ref().map_or_else(Sides::default, |o| o.carry)
    }

    pub(super) fn set_carry(&mut self, carry: Sides) {
        if carry != self.carry() {
            self.origin.get_or_insert_default().carry = carry;
        }
    }

    /// What an agent that is started again cannot tell from the records of a flow.
    pub(super) fn baseline(&self, local_initiates: bool) -> Option<Box<Baseline>> {
        let Kind::Tcp(tcp) = self.kind else { return None };
        let plain = !self.backfilled && self.key.stream == 0 && tcp.syns_again == 0;
        (!plain).then(|| {
            Box::new(Baseline {
                base: self.base().oriented(local_initiates),
                retransmits: tcp.retransmits,
                syns_again: tcp.syns_again,
                syn_forward: self.initiates().map(|local| local == local_initiates),
            })
        })
    }

    /// What no record has yet.
    pub(super) fn unreported(&self) -> Sides {
        self.seen.minus(self.reported)
    }

    /// Takes cumulative counters in and moves what they grew by; tells whether they grew.
    pub(super) fn grow(&mut self, counters: Sides, ledger: &mut Ledger) -> bool {
        let seen = self.seen.max(counters);
        let grown = seen.minus(self.seen);
        self.seen = seen;
        ledger.observe(grown);
        if self.is_silent() {
            ledger.join(grown);
            self.reported = seen;
        }
        !grown.is_zero()
    }

    /// Whether both lives overlap: a port may be used again as soon as a connection was reset. A TCP socket whose
    /// twin has ended can have no other.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let end = |flow: &Self| match (flow.kind, flow.twin) {
            (Kind::Tcp(_), Twin::Orphan(end)) => Some(end),
            _ => flow.ended.map(|ended| ended.at),
        };
        let ends_before = |a: &Self, b: &Self| end(a).is_some_and(|end| end < b.start);
        !ends_before(self, other) && !ends_before(other, self)
    }

    /// Whether this end began, as far as the socket itself can tell.
    pub(super) fn initiates(&self) -> Option<bool> {
        match self.kind {
            Kind::Tcp(tcp) => match tcp.role {
                TcpRole::Active => Some(true),
                TcpRole::Passive => Some(false),
                TcpRole::Unknown | TcpRole::Listener => None,
            },
            Kind::Udp(udp) => Some(!udp.first_in),
        }
    }

    /// Takes a better owner: one of higher confidence, or a newer one of the same.
    pub(super) fn prefers(&self, owner: &Owner, at: KernelTime) -> bool {
        let (held, offered) = (rank(self.owner.confidence), rank(owner.confidence));
        offered > held || (offered == held && at >= self.read_at)
    }

    /// Lets the first record leave as soon as the owners and the twin are known.
    pub(super) fn hurry(&mut self) {
        if self.part == 0 && self.is_complete() {
            self.record_at = self.record_at.min(self.start.after(FIRST_RECORD_SOONEST));
        }
    }

    fn is_complete(&self) -> bool {
        let known = |owner: &Owner| {
            !matches!(
                owner.confidence,
                Confidence::Inherited | Confidence::Unknown(Unknown::NotSeen | Unknown::Remote)
            )
        };
        matches!(self.twin, Twin::Leads(_))
            && known(&self.owner)
            && self.peer.as_ref().is_some_and(|peer| known(&peer.owner))
    }

    /// Takes the end in; the first one told stays.
    pub(super) fn end(&mut self, at: KernelTime, seen_at: KernelTime, reason: EndReason) {
        if self.ended.is_none() {
            self.ended = Some(Ended {
                at,
                settled: at.max(seen_at).after(SETTLE),
                reason,
            });
        }
    }

    /// When to look at this flow again.
    pub(super) fn next_deadline(&self, options: &TableOptions) -> KernelTime {
        if let Some(ended) = self.ended {
            let waits_for_twin = self.part == 0 && !self.is_silent() && !self.is_complete();
            return if waits_for_twin {
                ended.settled.max(self.record_at)
            } else {
                ended.settled
            };
        }
        match self.kind {
            Kind::Udp(_) => {
                let idle = self.newest.after(options.idle_timeout);
                if self.is_silent() {
                    idle
                } else {
                    idle.min(self.record_at)
                }
            }
            Kind::Tcp(_) if self.asked => self.record_at,
            Kind::Tcp(_) => KernelTime(self.record_at.0.saturating_sub(nanos(SNAP_LEAD))),
        }
    }

    /// What is due at `now`.
    pub(super) fn step(&self, now: KernelTime, options: &TableOptions) -> Step {
        if now < self.next_deadline(options) {
            return Step::Wait;
        }
        if self.ended.is_some() {
            return Step::End;
        }
        match self.kind {
            Kind::Udp(_) if now >= self.newest.after(options.idle_timeout) => Step::End,
            Kind::Tcp(_) if !self.asked && self.read_at.after(SNAP_LEAD) < self.record_at => Step::Snap,
            Kind::Tcp(_) if !self.asked => Step::Fresh,
            Kind::Tcp(_) | Kind::Udp(_) => Step::Record,
        }
    }

    /// Notes that the counters are being read for the next record.
    pub(super) fn mark_asked(&mut self, now: KernelTime) {
        self.asked = true;
        if self.part > 0 || self.is_silent() {
            self.record_at = self.record_at.max(now.after(SNAP_ANSWER));
        }
    }

    /// Whether a record at `now` says anything a collector needs.
    pub(super) fn is_worth_a_record(&self, now: KernelTime, options: &TableOptions) -> bool {
        let next = now.after(options.active_timeout);
        !self.is_silent()
            && (self.part == 0
                || !self.unreported().is_zero()
                || next > self.recorded_at.after(SILENT_RECORD_AFTER))
    }

    /// Plans the next record in between.
    pub(super) fn schedule(&mut self, now: KernelTime, options: &TableOptions) {
        self.record_at = now.after(options.active_timeout);
        self.asked = false;
    }

    /// Notes a record that covers everything seen, until `end`.
    pub(super) fn mark_reported(&mut self, now: KernelTime, end: KernelTime) {
        self.reported = self.seen;
        self.reported_until = end;
        self.recorded_at = now;
        self.part = self.part.saturating_add(1);
        if let Kind::Tcp(tcp) = &mut self.kind {
            tcp.retransmits_reported = tcp.retransmits;
        }
        if let Some(peer) = &mut self.peer {
            peer.retransmits_reported = peer.retransmits;
        }
    }

    /// TCP flags this end sent and received.
    pub(super) fn flags(&self) -> (u8, u8) {
        let Kind::Tcp(tcp) = self.kind else { return (0, 0) };
        counters::flags(&FlagFacts {
            role: tcp.role,
            state: tcp.state,
            kernel_flags: tcp.kernel_flags,
            late: tcp.late,
            ended: self.ended.map(|ended| ended.reason),
            seen: self.seen,
        })
    }

    /// How TCP ran since the last record; `None` for UDP.
    pub(super) fn figures(&self, local_initiates: bool) -> Option<TcpFigures> {
        let Kind::Tcp(tcp) = self.kind else { return None };
        let (sent, received) = self.flags();
        let received = received | self.peer.as_ref().map_or(0, |peer| peer.flags_sent);
        let local = tcp.retransmits.saturating_sub(tcp.retransmits_reported);
        let remote = self.peer.as_ref().map_or(0, |peer| {
            peer.retransmits.saturating_sub(peer.retransmits_reported)
        });
        let orient = |local, remote| {
            if local_initiates {
                (local, remote)
            } else {
                (remote, local)
            }
        };
        let (retransmits_forward, retransmits_backward) = orient(local, remote);
        let (flags_forward, flags_backward) = if local_initiates {
            (sent, received)
        } else {
            (received, sent)
        };
        let measured = |us: u32| (us != 0 && us != u32::MAX).then_some(us);
        let stands = tcp.role == TcpRole::Active && tcp.established >= self.start;
        Some(TcpFigures {
            handshake_us: stands
                .then(|| u32::try_from(tcp.established.since(self.start).as_micros()).unwrap_or(u32::MAX)),
            rtt_us: measured(tcp.rtt_us),
            rtt_variance_us: measured(tcp.rtt_variance_us),
            rtt_min_us: measured(tcp.rtt_min_us),
            retransmits_forward,
            retransmits_backward,
            flags_forward,
            flags_backward,
            state: Some(tcp.state),
        })
    }
}

impl TcpFacts {
    /// What `seen` shows of a socket not seen before.
    pub(super) fn new(seen: &TcpObservation) -> Self {
        Self {
            opened: seen.start,
            established: KernelTime(0),
            rtt_us: 0,
            rtt_variance_us: 0,
            rtt_min_us: 0,
            retransmits: 0,
            retransmits_reported: 0,
            syns_again: 0,
            role: seen.role,
            state: seen.state,
            kernel_flags: 0,
            late: false,
        }
    }

    /// Takes a sight in; `newer`: not older than what was seen before.
    pub(super) fn merge(&mut self, seen: &TcpObservation, newer: bool) {
        let counters = &seen.counters;
        if let Some(established) = seen.established {
            self.established = established;
        }
        if self.role == TcpRole::Unknown {
            self.role = seen.role;
        }
        self.retransmits = self.retransmits.max(counters.retransmits);
        self.kernel_flags |= counters.flags;
        if let Some(syns) = counters::syns_again(seen) {
            self.syns_again = self.syns_again.max(syns);
        }
        if newer {
            self.state = seen.state;
            // `tcp_disconnect` clears the figures before the last sight: what was measured stays.
            for (held, offered) in [
                (&mut self.rtt_us, counters.srtt_us),
                (&mut self.rtt_variance_us, counters.rttvar_us),
                (&mut self.rtt_min_us, counters.rtt_min_us),
            ] {
                if offered != 0 && offered != u32::MAX {
                    *held = offered;
                }
            }
        }
    }
}

/// How much one confidence is worth against another.
pub(super) fn rank(confidence: Confidence) -> u8 {
    match confidence {
        // No socket of this host has an owner of another host.
        Confidence::Told | Confidence::Unknown(Unknown::NotSeen | Unknown::Remote) => 0,
        Confidence::Unknown(Unknown::Kernel) => 1,
        Confidence::Inherited => 2,
        Confidence::Backfilled => 3,
        Confidence::Exact => 4,
    }
}

fn nanos(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
