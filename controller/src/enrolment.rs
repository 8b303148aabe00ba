//! Decides who gets an identity, keeps it, or gets it back. Pure: rows and time in, verdicts out.
//!
//! | asks | with | is refused when |
//! |---|---|---|
//! | enrol | token, key | no such token, taken back, used with another key, too late |
//! | renew | live SVID | revoked, unknown |
//! | recover | SVID that ran out, its key | another key, an SVID before the last few, revoked, unknown, beyond `renewGrace` and not approved |
//!
//! Nobody approves an operator: beyond `renewGrace` it needs a token that is made on the controller's host.
//!
//! **After a restore** the rows are those of the backup: they know no SVID that was given after it, and to refuse those as replaced
//! would lock out every agent whose SVID has run out meanwhile. So one that no row knows is taken for the newest when it was
//! issued between the backup and the restore ([`Lost`]). Why that gives away no more than it must:
//!
//! - Our own signer has signed it (checked before), and chose its beginning, from which follows when it was issued; so it is no
//!   older than the backup, but for the minute in which an SVID may have been on its way to the disk.
//! - What is issued after the restore has a row again, so the span ends with it.
//! - One that lives is believed by TLS, and stands well though all that its row knows have run out ([`crate::identities`]).
//! - All else holds as ever: its own key, an id that the backup knows and does not have as revoked, `renewGrace`.
//! - Beside the newest it may be one that later ones had replaced before the restore: nobody knows that any more. Such a key comes
//!   back no longer than one of the last few always does, life and grace; with a backup a day there are no more of them than those.
//! - An identity that was revoked *after* the backup comes back, as it does with an SVID that the backup knows: the revocation
//!   itself is lost. `restore` says so, and the operator must repeat it.
//!
//! A token that was used may be shown again with the same key until it runs out: whoever asked may not have heard the answer.
//! It gives the same identity. In [`crate::identities`] each verdict is on the disk before it is told.

use std::collections::BTreeMap;
use std::time::Duration;

use flowtilla_grpc::svid::SvidFacts;
use flowtilla_proto::labels::Labels;
use flowtilla_proto::mistake::{Mistake, Mistakes};
use flowtilla_proto::spiffe::{MemberName, Role, SpiffeId};
use flowtilla_proto::token::{TokenError, TokenSecret};
use flowtilla_proto::wire::enrol::Reason;
use sha2::{Digest, Sha256};

use crate::clock::WallMs;
use crate::identity::csr::{CsrError, PublicKey};
use crate::identity::root::BACKDATED;
use crate::identity::rows::{IdentityRow, TokenRow};
use crate::store::counter::Lost;

/// How long after its SVID ran out an agent gets it back by itself.
///
/// A host that was off over a holiday. Half of it asks operators after each; double it, and a stolen disk is of use longer.
pub const RENEW_GRACE_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a token may be used when nobody says otherwise.
pub const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(3600);
/// Longest life of a token: one that is written into an image of hosts for a month of installation.
pub const TOKEN_LIFE_MAX: Duration = Duration::from_secs(31 * 24 * 3600);
/// Shortest life of a token.
pub const TOKEN_LIFE_MIN: Duration = Duration::from_secs(1);
/// How many of its newest SVIDs an agent may recover with, the one that it showed last among them. An answer to a renewal may be
/// lost some times in a row; an older key than that was left lying about.
pub(crate) const SERIALS_KEPT: usize = 4;

/// Why an identity is refused. Each is told as one of the API's reasons.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The text is no token.
    #[error("the join token {0}")]
    TokenMalformed(#[from] TokenError),
    /// No such token, or not its secret.
    #[error("the join token is not known here: ask the operator for another one")]
    TokenUnknown,
    /// Somebody has used it.
    #[error("the join token was used already: ask the operator for another one")]
    TokenUsed,
    /// It is too late.
    #[error("the join token has run out: ask the operator for another one")]
    TokenExpired,
    /// It was taken back.
    #[error("the join token was taken back: ask the operator for another one")]
    TokenRevoked,
    /// See there.
    #[error("{0}")]
    Csr(#[from] CsrError),
    /// It is not ours.
    #[error("the SVID was not signed in this trust domain")]
    ForeignSvid,
    /// The request's key is not that of the SVID.
    #[error("the certificate request's key is not that of the SVID")]
    OtherKey,
    /// A later key has taken its place.
    #[error("the SVID's key has been replaced by later ones: enrol with a new token")]
    OldKey,
    /// The identity was revoked.
    #[error("the identity {0} was revoked")]
    Revoked(SpiffeId),
    /// Too late to come back by itself.
    #[error("the SVID of {0} ran out too long ago: {remedy}", remedy = late_remedy(.0))]
    AwaitingApproval(SpiffeId),
    /// Nobody with such an identity is known.
    #[error("{0} is not known to this controller: enrol with a new token")]
    Unknown(SpiffeId),
    /// Whoever asks may not ask this.
    #[error("{0}")]
    NotAllowed(String),
    /// Too many ask, or too many are there.
    #[error("{0}")]
    Busy(&'static str),
}

/// What a good token gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenVerdict {
    /// An identity.
    Fresh,
    /// The identity that the same key was given before.
    Again(SpiffeId),
}

/// What is to be written about somebody who wants an identity back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Give it back.
    Granted,
    /// Note that an operator is to decide, and refuse.
    Awaits,
}

impl Refusal {
    /// The API's word for it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::TokenMalformed(_) => Reason::TokenMalformed,
            Self::TokenUnknown => Reason::TokenUnknown,
            Self::TokenUsed => Reason::TokenUsed,
            Self::TokenExpired => Reason::TokenExpired,
            Self::Csr(_) => Reason::Csr,
            Self::ForeignSvid => Reason::ForeignSvid,
            Self::OtherKey | Self::OldKey => Reason::OtherKey,
            Self::TokenRevoked | Self::Revoked(_) => Reason::Revoked,
            Self::AwaitingApproval(_) => Reason::AwaitingApproval,
            Self::Unknown(_) | Self::NotAllowed(_) => Reason::NotAllowed,
            Self::Busy(_) => Reason::Busy,
        }
    }
}

/// What a token's holder gets. `row`: the token of that id, when there is one.
pub(crate) fn judge_token(
    row: Option<&TokenRow>,
    secret: &TokenSecret,
    key: &PublicKey,
    now: WallMs,
) -> Result<TokenVerdict, Refusal> {
    let row = row.filter(|row| row.secret_hash == hash(secret));
    let row = row.ok_or(Refusal::TokenUnknown)?;
    if row.revoked {
        return Err(Refusal::TokenRevoked);
    }
    let expired = now.0 >= row.expires_ms;
    if row.used_by.is_empty() {
        return match expired {
            true => Err(Refusal::TokenExpired),
            false => Ok(TokenVerdict::Fresh),
        };
    }
    if row.used_key_hash != key.hash() || expired {
        return Err(Refusal::TokenUsed);
    }
    SpiffeId::parse(&row.used_by)
        .map(TokenVerdict::Again)
        .map_err(|_| Refusal::TokenUsed)
}

/// Whether somebody may have what only those with a good identity have.
pub(crate) fn judge_standing(id: &SpiffeId, row: Option<&IdentityRow>) -> Result<(), Refusal> {
    match row {
        None => Err(Refusal::Unknown(id.clone())),
        Some(row) if row.revoked_ms != 0 => Err(Refusal::Revoked(id.clone())),
        Some(_) => Ok(()),
    }
}

/// Whether the holder of an SVID that may have run out gets it back. The SVID is ours: its signature was checked. `lost`: the spans
/// of time whose SVIDs no row knows.
pub(crate) fn judge_recovery(
    row: Option<&IdentityRow>,
    svid: &SvidFacts,
    key: &PublicKey,
    lost: &[Lost],
    grace: Duration,
    now: WallMs,
) -> Result<Recovery, Refusal> {
    if svid.public_key != key.der() {
        return Err(Refusal::OtherKey);
    }
    judge_standing(&svid.id, row)?;
    let row = row.expect("judged above");
    if !row.serials.contains(&svid.serial) && !is_lost(svid, lost) {
        return Err(Refusal::OldKey);
    }
    let late = now.since(WallMs::from_seconds(svid.not_after)) > grace;
    match (late && !row.approved, svid.id.role) {
        (false, _) => Ok(Recovery::Granted),
        (true, Role::Operator) => Err(Refusal::AwaitingApproval(svid.id.clone())),
        (true, Role::Agent | Role::Controller) => Ok(Recovery::Awaits),
    }
}

/// Whether an SVID of ours was issued in a span that a restore has lost. Whole seconds, as certificates tell them.
fn is_lost(svid: &SvidFacts, lost: &[Lost]) -> bool {
    let issued = WallMs::from_seconds(svid.not_before).plus(BACKDATED).seconds();
    lost.iter()
        .any(|span| (WallMs(span.from_ms).seconds()..=WallMs(span.to_ms).seconds()).contains(&issued))
}

fn late_remedy(id: &SpiffeId) -> String {
    let name = &id.name;
    match id.role {
        // Nobody but itself may make a token for its name elsewhere.
        Role::Operator => {
            format!(
                "`flowtilla-controller token --operator {name}` on the controller's host makes a token for it"
            )
        }
        Role::Agent | Role::Controller => format!("an operator must run `agentctl approve {name}`"),
    }
}

/// SHA-256 of a token's secret: what is stored of it.
pub(crate) fn hash(secret: &TokenSecret) -> Vec<u8> {
    Sha256::digest(secret.0).to_vec()
}

/// What somebody wants a token for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenOrder {
    /// Labels of the agent that will use it.
    pub labels: BTreeMap<String, String>,
    /// How long it may be used; `None`: [`TOKEN_LIFE_DEFAULT`].
    pub life: Option<Duration>,
    /// Name of an operator; empty: the token is for an agent.
    pub operator: String,
}

/// A token order that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckedOrder {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) life: Duration,
    pub(crate) operator: Option<MemberName>,
}

impl TokenOrder {
    /// Checks it.
    ///
    /// # Errors
    ///
    /// All mistakes, under the names that the request's fields have.
    pub(crate) fn check(&self) -> Result<CheckedOrder, Mistakes> {
        let mut mistakes = Vec::new();
        let mut refuse = |path: String, value: &str, why: &str, remedy: String| {
            mistakes.push(Mistake {
                path,
                value: Some(value.to_owned()),
                why: why.to_owned(),
                remedy,
            });
        };
        let life = self.life.unwrap_or(TOKEN_LIFE_DEFAULT);
        if !(TOKEN_LIFE_MIN..=TOKEN_LIFE_MAX).contains(&life) {
            let remedy = format!(
                "choose from {} s to {} days",
                TOKEN_LIFE_MIN.as_secs(),
                TOKEN_LIFE_MAX.as_secs() / 86_400
            );
            refuse(
                "ttl".into(),
                &format!("{life:?}"),
                "is no life for a token",
                remedy,
            );
        }
        if !self.operator.is_empty() && !self.labels.is_empty() {
            let remedy = "leave the labels out, or the operator's name".to_owned();
            refuse(
                "operator".into(),
                &self.operator,
                "has labels: they are an agent's",
                remedy,
            );
        }
        let operator = (!self.operator.is_empty()).then(|| MemberName::parse(&self.operator));
        let operator = match operator.transpose() {
            Ok(operator) => operator,
            Err(wrong) => {
                mistakes.extend(wrong.under("operator"));
                None
            }
        };
        // What is let in here must be what the fleet reads.
        if let Err(wrong) = Labels::parse(&self.labels) {
            mistakes.extend(wrong.under("labels"));
        }
        match Mistakes::from_list(mistakes) {
            Some(mistakes) => Err(mistakes),
            None => Ok(CheckedOrder {
                labels: self.labels.clone(),
                life,
                operator,
            }),
        }
    }
}

#[cfg(test)]
mod tests;
