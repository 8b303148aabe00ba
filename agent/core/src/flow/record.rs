//! A flow record: what one flow did since its last record, and who is behind both ends.
//!
//! Made by the flow table, completed by enrichment, read by encoders and screens; neutral of any wire form.
//! Source: RFC 7011 §2 (flow record), IPFIX information elements 1, 2, 136, 231, 232, 298, 299.

use crate::observe::{Cookie, Endpoint, NetNs, TcpState};
use crate::owner::Owner;
use crate::time::WallTime;

/// Identity of one run of the kernel: `/proc/sys/kernel/random/boot_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(pub [u8; 16]);

/// Identity of a record, for ever and everywhere: no two records have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    /// The run of the kernel.
    pub boot: BootId,
    /// The socket (of the initiator when two were joined).
    pub cookie: Cookie,
    /// Which of the socket's flows. TCP: 0, one more each time the socket went on after its flow had to end (a full table,
    /// a stop). UDP peers, and TCP sockets older than the agent of which nothing is kept: counted on from the start of
    /// the agent in ns of the boot clock, so that no other run of the agent gives the same.
    pub stream: u64,
    /// Which record of the flow, from 1.
    pub part: u32,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, 6.
    Tcp,
    /// UDP, 17.
    Udp,
}

impl Protocol {
    /// IANA's protocol number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// How counters are to be read by a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counting {
    /// Since the last record.
    Delta,
    /// Since the flow began.
    Total,
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// IP octets, headers included.
    pub octets: u64,
    /// IP packets.
    pub packets: u64,
    /// Payload octets, each counted once.
    pub payload: u64,
}

/// What went both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Traffic {
    /// Initiator to responder.
    pub forward: Counts,
    /// Responder to initiator.
    pub backward: Counts,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Party {
    /// Address and port.
    pub endpoint: Endpoint,
    /// Who is behind it.
    pub owner: Owner,
}

/// How well TCP ran. All times in µs; `None`: not measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpFigures {
    /// SYN to ESTABLISHED, at the initiator.
    pub handshake_us: Option<u32>,
    /// Smoothed round-trip time, at the end that was observed (the initiator's when both were).
    pub rtt_us: Option<u32>,
    /// Mean deviation of the round-trip time.
    pub rtt_variance_us: Option<u32>,
    /// Least round-trip time.
    pub rtt_min_us: Option<u32>,
    /// Segments retransmitted by the initiator since the last record (0 when that end was not observed).
    pub retransmits_forward: u32,
    /// Segments retransmitted by the responder since the last record.
    pub retransmits_backward: u32,
    /// TCP flags of the initiator, derived from states and counters: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub flags_forward: u8,
    /// TCP flags of the responder.
    pub flags_backward: u8,
    /// State when the record was made; in the last record the state before CLOSE.
    pub state: Option<TcpState>,
}

/// Why a flow ended. The first five are IPFIX 136 `flowEndReason`; the rest are attempts that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// 1: silent for the idle timeout.
    IdleTimeout,
    /// 2: still alive; a record in between.
    ActiveTimeout,
    /// 3: the connection or socket ended.
    EndOfFlow,
    /// 4: the agent stopped.
    ForcedEnd,
    /// 5: the table was full.
    LackOfResources,
    /// The peer answered the SYN with a reset.
    Refused,
    /// An established connection, or an attempt, was reset.
    Reset,
    /// Nobody answered.
    TimedOut,
    /// The network said that there is no way.
    Unreachable,
}

impl EndReason {
    /// Whether nobody answered, so that there is no process at the far end, even on this host.
    #[must_use]
    pub fn is_failed_attempt(self) -> bool {
        matches!(self, Self::Refused | Self::TimedOut | Self::Unreachable)
    }

    /// The name used in records and on screens.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IdleTimeout => "idle timeout",
            Self::ActiveTimeout => "active timeout",
            Self::EndOfFlow => "end of flow",
            Self::ForcedEnd => "forced end",
            Self::LackOfResources => "lack of resources",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::TimedOut => "timed out",
            Self::Unreachable => "unreachable",
        }
    }
}

impl EndReason {
    /// How a flow stands by its newest record, in one word: the state of TCP or `open` while it lives, then how it ended.
    #[must_use]
    pub fn state(self, tcp: Option<TcpState>) -> &'static str {
        match self {
            Self::ActiveTimeout => tcp.map_or("open", TcpState::word),
            Self::EndOfFlow => "closed",
            Self::IdleTimeout => "idle",
            Self::ForcedEnd => "cut-short",
            Self::LackOfResources => "no-room",
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::TimedOut => "timed-out",
            Self::Unreachable => "unreachable",
        }
    }
}

/// Position of a collector in the policy in force, < 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectorSlot(pub u8);

/// A set of [`CollectorSlot`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CollectorSet(u64);

impl CollectorSet {
    /// The set as a word: bit n is slot n.
    #[must_use]
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// The set that [`CollectorSet::bits`] describes.
    #[must_use]
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Adds a collector.
    pub fn insert(&mut self, slot: CollectorSlot) {
        self.0 |= 1 << (slot.0 & 63);
    }

    /// The collectors that are not in the set.
    #[must_use]
    pub fn others(self) -> Self {
        Self(!self.0)
    }

    /// Those of both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those that are in `other` too.
    #[must_use]
    pub fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether nobody is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it is in the set.
    #[must_use]
    pub fn contains(self, slot: CollectorSlot) -> bool {
        self.0 & (1 << (slot.0 & 63)) != 0
    }
}

/// One flow record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// Identity.
    pub id: RecordId,
    /// Whether it is the first of its flow.
    pub first: bool,
    /// Protocol.
    pub protocol: Protocol,
    /// Who spoke first.
    pub initiator: Party,
    /// Who was spoken to.
    pub responder: Party,
    /// Whether the beginning was seen; otherwise the initiator is inferred from roles and ports.
    pub initiator_seen: bool,
    /// Whether the observed socket is older than the agent.
    pub backfilled: bool,
    /// Network namespace of the observed socket (of the initiator's when two were joined).
    pub netns: NetNs,
    /// How a collector is to read the counters.
    pub counting: Counting,
    /// Since the last record.
    pub delta: Traffic,
    /// Since the flow began (since the agent found it, when `backfilled`).
    pub total: Traffic,
    /// First packet of the flow.
    pub start: WallTime,
    /// Begin of the span that `delta` covers; the flow's start in its first record.
    pub delta_start: WallTime,
    /// Newest packet known; of an open TCP connection that was silent, when it was last seen to be open.
    pub end: WallTime,
    /// How TCP ran; `None` for UDP.
    pub tcp: Option<TcpFigures>,
    /// Why this record was made. Everything but [`EndReason::ActiveTimeout`] ends the flow.
    pub reason: EndReason,
    /// Collectors that must not get it (another agent speaks for it).
    pub held_from: CollectorSet,
    /// From where a TCP flow counts, if not from its socket's first segment. Not for collectors: an agent that is started
    /// again goes on from it.
    pub baseline: Option<Box<Baseline>>,
}

/// What the kernel's counters of a TCP socket have that its flow's totals do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Baseline {
    /// What the socket had counted when the flow began.
    pub base: Traffic,
    /// Segments the observed socket had retransmitted, ever, when the record was made.
    pub retransmits: u32,
    /// SYNs known to have been sent again: the kernel does not tell them for ever.
    pub syns_again: u32,
    /// Whether the initiator sent the SYN, if the socket ever told who did.
    pub syn_forward: Option<bool>,
}
