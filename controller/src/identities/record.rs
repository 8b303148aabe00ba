//! What is told of identities and tokens: rows without their secrets.

use std::collections::BTreeMap;

use flowtilla_proto::token::TokenId;

use crate::clock::WallMs;
use crate::identity::rows::{IdentityRow, TokenRow};

/// What is known of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRecord {
    /// Labels of the token that it was enrolled with.
    pub labels: BTreeMap<String, String>,
    /// When it was enrolled.
    pub enrolled: WallMs,
    /// When its newest SVID runs out.
    pub not_after: WallMs,
    /// Serial numbers of its newest SVIDs, the newest last.
    pub serials: Vec<Vec<u8>>,
    /// When it was revoked; `None`: it was not.
    pub revoked: Option<WallMs>,
    /// It wants its identity back, and an operator is to decide.
    pub awaiting: bool,
    /// The host's name, as it told it when it enrolled; empty for an operator.
    pub host_name: String,
    /// SPIFFE ID of whoever made the token that it came with; empty: a command on the controller's host.
    pub admitted_by: String,
}

/// A token, for people: without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFacts {
    /// Its name.
    pub id: TokenId,
    /// Labels of the agent that will use it.
    pub labels: BTreeMap<String, String>,
    /// Name of the operator that it is for; empty: for an agent.
    pub operator: String,
    /// When it was made.
    pub made: WallMs,
    /// When it runs out.
    pub expires: WallMs,
    /// SPIFFE ID of whoever used it; empty: nobody.
    pub used_by: String,
    /// Whether it was taken back.
    pub revoked: bool,
    /// SPIFFE ID of whoever made it; empty: a command on the controller's host.
    pub made_by: String,
}

impl IdentityRecord {
    pub(super) fn of(row: &IdentityRow) -> Self {
        Self {
            labels: row.labels.clone(),
            enrolled: WallMs(row.enrolled_ms),
            not_after: WallMs::from_seconds(row.not_after),
            serials: row.serials.clone(),
            revoked: (row.revoked_ms != 0).then_some(WallMs(row.revoked_ms)),
            awaiting: row.awaiting && !row.approved,
            host_name: row.host_name.clone(),
            admitted_by: row.admitted_by.clone(),
        }
    }
}

impl TokenFacts {
    pub(super) fn of(id: TokenId, row: &TokenRow) -> Self {
        Self {
            id,
            labels: row.labels.clone(),
            operator: row.operator.clone(),
            made: WallMs(row.made_ms),
            expires: WallMs(row.expires_ms),
            used_by: row.used_by.clone(),
            revoked: row.revoked,
            made_by: row.made_by.clone(),
        }
    }
}
