//! Who calls, and who may call what. One table; the caller is whoever the connection's SVID says.
//!
//! Two questions are asked at each call: may such a caller ask this ([`may`]), and does this one stand well *now*
//! ([`Identities::check`])? A revoked identity's connections live for a moment longer.

use std::sync::Arc;

use flowtilla_proto::spiffe::{Role, SpiffeId};
use flowtilla_proto::wire::enrol;
use prost::Message as _;
use tonic::{Code, Request, Status};

use crate::clock::WallMs;
use crate::enrolment::Refusal;
use crate::identities::Identities;
use crate::identity::tls::connection::{Peer, PeerSvid};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody who has shown no SVID.
    Nobody,
    /// An agent.
    Agent(PeerSvid),
    /// An operator.
    Operator(PeerSvid),
    /// A controller.
    Controller(PeerSvid),
}

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `Enrolment.Enrol` and `Enrolment.Recover`.
    Enrol,
    /// `Enrolment.Renew`.
    Renew,
    /// `Session.Open`.
    Session,
    /// Everything of `Fleet`.
    Fleet,
}

/// The table.
#[must_use]
pub fn may(role: Option<Role>, call: Call) -> bool {
    match (call, role) {
        // Whoever holds a token or an SVID that has run out; whether the connection shows one does not matter.
        (Call::Enrol, _) => true,
        (Call::Renew, Some(Role::Agent | Role::Operator)) => true,
        (Call::Session, Some(Role::Agent)) => true,
        (Call::Fleet, Some(Role::Operator)) => true,
        (Call::Renew | Call::Session | Call::Fleet, _) => false,
    }
}

impl Caller {
    /// Who calls, by the connection that the request came on.
    #[must_use]
    pub fn of<T>(request: &Request<T>) -> Self {
        let peer = request.extensions().get::<Arc<Peer>>();
        let Some(svid) = peer.and_then(|peer| peer.svid.clone()) else {
            return Self::Nobody;
        };
        match svid.id.role {
            Role::Agent => Self::Agent(svid),
            Role::Operator => Self::Operator(svid),
            Role::Controller => Self::Controller(svid),
        }
    }

    /// What it has shown.
    #[must_use]
    pub fn svid(&self) -> Option<&PeerSvid> {
        match self {
            Self::Nobody => None,
            Self::Agent(svid) | Self::Operator(svid) | Self::Controller(svid) => Some(svid),
        }
    }
}

/// Lets a request in, or refuses it. Tells who calls.
///
/// # Errors
///
/// PERMISSION_DENIED with an encoded [`enrol::Refusal`] as details; UNAUTHENTICATED the same, without an SVID.
pub fn admit<T>(
    request: &Request<T>,
    call: Call,
    identities: &Identities,
    now: WallMs,
) -> Result<SpiffeId, Status> {
    let caller = Caller::of(request);
    let Some(svid) = caller.svid() else {
        let why = "this call needs an SVID, and none was shown: enrol first".to_owned();
        return Err(refusal(&Refusal::NotAllowed(why)).with_code(Code::Unauthenticated));
    };
    if !may(Some(svid.id.role), call) {
        let why = format!("{} may not call this", svid.id);
        return Err(refusal(&Refusal::NotAllowed(why)).into());
    }
    // One whose SVID has run out on a live connection may still renew it.
    let standing = match (identities.check(&svid.id, svid.not_after, now), call) {
        (Err(Refusal::NotAllowed(_)), Call::Renew) => Ok(()),
        (standing, _) => standing,
    };
    standing.map_err(|refused| Status::from(refusal(&refused)))?;
    Ok(svid.id.clone())
}

/// A refusal on its way to a status.
#[derive(Debug)]
pub struct Refused {
    code: Code,
    refusal: enrol::Refusal,
}

/// How a refusal is told.
#[must_use]
pub fn refusal(refusal: &Refusal) -> Refused {
    let code = match refusal {
        Refusal::TokenMalformed(_) | Refusal::Csr(_) => Code::InvalidArgument,
        Refusal::AwaitingApproval(_) => Code::FailedPrecondition,
        Refusal::Busy(_) => Code::ResourceExhausted,
        Refusal::TokenUnknown
        | Refusal::TokenUsed
        | Refusal::TokenExpired
        | Refusal::TokenRevoked
        | Refusal::ForeignSvid
        | Refusal::OtherKey
        | Refusal::OldKey
        | Refusal::Revoked(_)
        | Refusal::Unknown(_)
        | Refusal::NotAllowed(_) => Code::PermissionDenied,
    };
    Refused {
        code,
        refusal: enrol::Refusal {
            reason: refusal.reason().into(),
            message: refusal.to_string(),
        },
    }
}

impl Refused {
    fn with_code(mut self, code: Code) -> Status {
        self.code = code;
        self.into()
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let details = refused.refusal.encode_to_vec();
        Self::with_details(refused.code, refused.refusal.message, details.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_who_may_call_what() {
        let roles = [
            None,
            Some(Role::Agent),
            Some(Role::Operator),
            Some(Role::Controller),
        ];
        let row = |call| roles.map(|role| may(role, call));
        assert_eq!(row(Call::Enrol), [true, true, true, true]);
        assert_eq!(row(Call::Renew), [false, true, true, false]);
        assert_eq!(row(Call::Session), [false, true, false, false]);
        assert_eq!(row(Call::Fleet), [false, false, true, false]);
    }
}
