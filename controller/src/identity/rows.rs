//! What the store's tables of identities hold: protobuf messages, written here because they travel nowhere.
//!
//! Field numbers are never used twice. A field that is absent has its type's zero: a row of an earlier version reads as
//! one in which nothing of what came later has happened.

use std::collections::BTreeMap;

use prost::Message;

use crate::store::StoreError;

/// `Roots`, by number (u64).
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RootRow {
    /// 1: prepared, 2: signs, 3: trusted until it is retired.
    #[prost(uint32, tag = "1")]
    pub(crate) state: u32,
    /// Certificate whose key signs SVIDs, DER.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) signer: Vec<u8>,
    /// Those between it and the root, itself included; empty when it is the root.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub(crate) between: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) root: Vec<u8>,
    /// The root's key, signed by the root before it; empty: none.
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) cross: Vec<u8>,
    #[prost(int64, tag = "6")]
    pub(crate) made_ms: i64,
    /// Whether the operator brought it.
    #[prost(bool, tag = "7")]
    pub(crate) brought: bool,
}

/// `Tokens`, by id (u64).
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TokenRow {
    /// SHA-256 of the secret.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) secret_hash: Vec<u8>,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) labels: BTreeMap<String, String>,
    /// Empty: for an agent.
    #[prost(string, tag = "3")]
    pub(crate) operator: String,
    #[prost(int64, tag = "4")]
    pub(crate) made_ms: i64,
    #[prost(int64, tag = "5")]
    pub(crate) expires_ms: i64,
    /// SPIFFE ID; empty: nobody.
    #[prost(string, tag = "6")]
    pub(crate) used_by: String,
    /// SHA-256 of the public key of whoever used it.
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) used_key_hash: Vec<u8>,
    #[prost(bool, tag = "8")]
    pub(crate) revoked: bool,
    /// SPIFFE ID of whoever made it; empty: a command on the controller's host.
    #[prost(string, tag = "9")]
    pub(crate) made_by: String,
    /// Number of the root that it pins; 0: it was made before this was noted.
    #[prost(uint64, tag = "10")]
    pub(crate) root: u64,
}

/// `Identities`, by SPIFFE ID.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct IdentityRow {
    #[prost(btree_map = "string, string", tag = "1")]
    pub(crate) labels: BTreeMap<String, String>,
    #[prost(int64, tag = "2")]
    pub(crate) enrolled_ms: i64,
    /// Of the newest SVID, seconds.
    #[prost(int64, tag = "3")]
    pub(crate) not_after: i64,
    /// Of the newest SVIDs, the newest last.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub(crate) serials: Vec<Vec<u8>>,
    /// Number of the root of the newest SVID.
    #[prost(uint64, tag = "5")]
    pub(crate) root: u64,
    /// 0: not revoked.
    #[prost(int64, tag = "6")]
    pub(crate) revoked_ms: i64,
    /// It asked for its identity back, too late.
    #[prost(bool, tag = "7")]
    pub(crate) awaiting: bool,
    /// An operator let it have its identity back, once.
    #[prost(bool, tag = "8")]
    pub(crate) approved: bool,
    #[prost(string, tag = "9")]
    pub(crate) host_name: String,
    /// SPIFFE ID of whoever made the token that it came with; empty: a command on the controller's host.
    #[prost(string, tag = "10")]
    pub(crate) admitted_by: String,
}

/// Reads a row. `what` names it in the error.
pub(crate) fn read<R: Message + Default>(what: &str, octets: &[u8]) -> Result<R, StoreError> {
    R::decode(octets)
        .map_err(|error| StoreError::Failed(format!("the store's {what} cannot be read: {error}")))
}
