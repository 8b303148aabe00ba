//! What the fleet keeps in the store: rows, as protobuf messages. Numbers of fields are never used twice.
//!
//! | table | key | value |
//! |---|---|---|
//! | `Meta` | `fleet` | [`MetaRow`] |
//! | `Revisions` | number, 8 octets big-endian | [`RevisionRow`], never changed |
//! | `Contents` | SHA-256 of the value | a `session.Assignment` |
//! | `Agents` | agent id | [`AgentRow`] |
//! | `Holdings` | [`bucket`] of agent ids | [`HoldingsRow`] |
//! | `SourceIds` | number, 4 octets big-endian | agent id |
//! | `ShortSourceIds` | endpoint of the collector, 0, number | agent id; when it has no use for it: and 0, since when, 8 octets big-endian |
//! | `Rollouts` | number, 8 octets big-endian | [`RolloutRow`] |
//! | `Rollouts` | number, 0, [`bucket`] of agent ids | [`crate::rollout::Member`]s by agent id as JSON, while the rollout goes on |
//!
//! What a change of policy changes of ten thousand agents at once is in few rows: a row of sled costs the same whether it is
//! about one agent or about forty. Earlier versions had what an agent holds in its own row, and rollouts' members under number
//! and agent id: both are read.

use std::collections::BTreeMap;

use flowtilla_proto::wire::fleet::{Object, RolloutEvent};
use flowtilla_proto::wire::session::{Effective, Held, Hello, Nack};

/// Key of [`MetaRow`].
pub(super) const META_KEY: &[u8] = b"fleet";

/// What there is one of. Numbers that are given once are [`crate::store::counter`]'s.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct MetaRow {
    /// The revision of record; 0: none was made.
    #[prost(uint64, tag = "1")]
    pub(super) revision: u64,
    /// The last revision that every agent was to have: what a rollout goes back to.
    #[prost(uint64, tag = "2")]
    pub(super) settled: u64,
    /// W3C trace context of the deploy that made the revision of record.
    #[prost(string, tag = "3")]
    pub(super) traceparent: String,
}

/// One revision.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RevisionRow {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// Milliseconds since the epoch.
    #[prost(int64, tag = "2")]
    pub made_ms: i64,
    /// SPIFFE ID of who made it; empty: the controller by itself.
    #[prost(string, tag = "3")]
    pub by: String,
    /// Why.
    #[prost(string, tag = "4")]
    pub message: String,
    /// The one whose objects this one has again; 0: none.
    #[prost(uint64, tag = "5")]
    pub rollback_to: u64,
    /// All of them.
    #[prost(message, repeated, tag = "6")]
    pub objects: Vec<Object>,
    /// The revision that was of record before.
    #[prost(uint64, tag = "7")]
    pub before: u64,
}

/// One agent.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct AgentRow {
    /// Labels of the enrolment.
    #[prost(btree_map = "string, string", tag = "1")]
    pub(super) labels: BTreeMap<String, String>,
    /// The last hello, addresses, labels and held taken out.
    #[prost(message, optional, tag = "2")]
    pub(super) hello: Option<Hello>,
    /// Labels of the last hello.
    #[prost(btree_map = "string, string", tag = "3")]
    pub(super) host_labels: BTreeMap<String, String>,
    /// Of an earlier version, as are the next three: [`Holding`] has them.
    #[prost(message, optional, tag = "4")]
    pub(super) wanted: Option<Held>,
    #[prost(message, optional, tag = "5")]
    pub(super) held: Option<Held>,
    #[prost(uint64, tag = "6")]
    pub(super) floor_epoch: u64,
    #[prost(uint64, tag = "7")]
    pub(super) floor_version: u64,
    #[prost(int64, tag = "8")]
    pub(super) enrolled_ms: i64,
    #[prost(int64, tag = "9")]
    pub(super) seen_ms: i64,
    #[prost(bool, tag = "10")]
    pub(super) revoked: bool,
    #[prost(message, optional, tag = "11")]
    pub(super) effective: Option<Effective>,
    /// The refusal of what is wanted.
    #[prost(message, optional, tag = "12")]
    pub(super) nack: Option<Nack>,
    #[prost(uint64, tag = "13")]
    pub(super) nacked_epoch: u64,
    #[prost(uint64, tag = "14")]
    pub(super) nacked_version: u64,
    #[prost(bool, tag = "15")]
    pub(super) drain: bool,
    /// Not what an earlier version wrote, which offered agents what they misread.
    #[prost(bool, tag = "16")]
    pub(super) gated: bool,
}

/// What the agents of one bucket are to have and have.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HoldingsRow {
    #[prost(message, repeated, tag = "1")]
    pub(super) agents: Vec<Holding>,
}

/// What an agent is to have and has.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Holding {
    #[prost(string, tag = "1")]
    pub(super) agent: String,
    #[prost(message, optional, tag = "2")]
    pub(super) wanted: Option<Held>,
    #[prost(message, optional, tag = "3")]
    pub(super) held: Option<Held>,
    /// The highest epoch and version that it said to hold.
    #[prost(uint64, tag = "4")]
    pub(super) floor_epoch: u64,
    #[prost(uint64, tag = "5")]
    pub(super) floor_version: u64,
}

/// The row that an agent shares with others: FNV-1a of its id, folded. Never changed: an agent must not be in two rows.
///
/// 256 of them: with 10,000 agents a row is one of sled's values.
pub(super) fn bucket(agent: &str) -> u8 {
    let hash = (agent.bytes()).fold(0x811c_9dc5_u32, |hash, octet| {
        (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193)
    });
    hash.to_be_bytes().into_iter().fold(0, |all, octet| all ^ octet)
}

/// What of a rollout is not about one agent. Its key is the number; the agents' parts, while it goes on, have a bucket
/// behind it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RolloutRow {
    /// A [`crate::rollout::Head`] as JSON, while the rollout goes on.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) head: Vec<u8>,
    /// As it ended.
    #[prost(message, optional, tag = "2")]
    pub(super) ended: Option<RolloutEvent>,
}
