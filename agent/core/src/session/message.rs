//! What travels on the stream, read into types and written from them.

use std::time::Duration;

use flowtilla_proto::ids::SourceId;
use flowtilla_proto::wire::session as wire;

use super::assignment::Fault;
use super::judge::{Digest, Held};
use super::short::ShortIds;
use crate::top::wire::Question as TopQuestion;

/// Longest content of an offer, in octets.
///
/// A policy with every list full takes a quarter of it. Twice as much would be read whole for nothing; half of it would
/// cut off what the API's own bounds allow.
pub const CONTENT_OCTETS_MAX: usize = 1 << 20;
/// Roots of a trust domain at most: two overlap in a rotation.
pub const ROOTS_MAX: usize = 16;
/// Least and most time between heartbeats; what a controller asks is brought within.
const HEARTBEAT_MIN: Duration = Duration::from_millis(100);
const HEARTBEAT_MAX: Duration = Duration::from_secs(3600);

/// A policy for this agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Names the offer on this stream.
    pub nonce: u64,
    /// What it is to be.
    pub held: Held,
    /// An assignment, encoded.
    pub content: Vec<u8>,
    /// W3C trace context of the deploy that led here; empty: none.
    pub traceparent: String,
}

/// How a controller welcomes an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// SPIFFE ID of the agent, as the controller sees it. For logs.
    pub id: String,
    /// The source id it is to use; `None`: its own.
    pub source_id: Option<SourceId>,
    /// How often to send a heartbeat.
    pub heartbeat: Duration,
    /// Whether the controller keeps what an ack of this stream told of [`wire::Effective`].
    pub keeps_effective: bool,
}

/// Why a controller ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The identity is void.
    Revoked,
    /// The same agent has connected once more.
    Replaced,
    /// The controller stops.
    Stopping,
    /// This agent said something that it may not say.
    Protocol,
    /// This agent does not read.
    Slow,
    /// The SVID has run out.
    Expired,
    /// One that this version does not know.
    Other,
}

/// What a controller says.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// First.
    Welcome(Welcome),
    /// A policy.
    Offer(Offer),
    /// By which numbers collectors of header version 1 know this agent.
    ShortIds(ShortIds),
    /// The roots of the trust domain, DER.
    Roots(Vec<Vec<u8>>),
    /// It ends the stream.
    Ended {
        /// Why.
        reason: EndReason,
        /// One sentence.
        message: String,
    },
    /// For whoever counts flows of the fleet once; not read here.
    Peers(wire::to_agent::Body),
    /// Who does how much on this host?
    Top(TopQuestion),
}

/// What an agent says, but for what only its shell knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// First. With what is in force.
    Hello(Option<Held>),
    /// It lives. With what is in force.
    Heartbeat(Option<Held>),
    /// The offer is in force.
    Ack {
        /// Of the offer.
        nonce: u64,
        /// What is in force.
        held: Held,
        /// As it turned out; `None`: as told on this stream.
        effective: Option<wire::Effective>,
    },
    /// The offer is not in force.
    Nack {
        /// Of the offer.
        nonce: u64,
        /// What is in force.
        held: Option<Held>,
        /// Why.
        fault: Fault,
    },
    /// Who does how much on this host.
    Top(TopQuestion),
    /// It ends on purpose.
    Goodbye,
}

/// What a controller may not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Something else than a welcome came first.
    #[error("the controller spoke before it had welcomed this agent")]
    BeforeWelcome,
    /// A second welcome.
    #[error("the controller welcomed this agent twice")]
    WelcomeTwice,
    /// An offer without its digest, or too long.
    #[error("the controller sent an offer whose {0}")]
    Offer(&'static str),
    /// Roots that cannot be all of a trust domain's.
    #[error("the controller sent {0} roots of trust")]
    Roots(usize),
}

impl Incoming {
    /// Reads a message; `None`: this version does not know its kind, and does nothing.
    ///
    /// # Errors
    ///
    /// [`Violation`].
    pub fn parse(sent: wire::ToAgent) -> Result<Option<Self>, Violation> {
        use wire::to_agent::Body;
        let Some(body) = sent.body else { return Ok(None) };
        Ok(Some(match body {
            Body::Welcome(welcome) => Self::Welcome(Welcome {
                id: welcome.id,
                source_id: SourceId::new(welcome.source_id),
                heartbeat: Duration::from_millis(welcome.heartbeat_ms).clamp(HEARTBEAT_MIN, HEARTBEAT_MAX),
                keeps_effective: welcome.keeps_effective,
            }),
            Body::Offer(offer) => Self::Offer(parse_offer(offer)?),
            Body::Bundle(bundle) => match bundle.roots.len() {
                1..=ROOTS_MAX => Self::Roots(bundle.roots),
                n => return Err(Violation::Roots(n)),
            },
            Body::ShortSourceIds(ids) => Self::ShortIds(ShortIds::parse(&ids)),
            Body::Ended(ended) => Self::Ended {
                reason: EndReason::from(ended.reason()),
                message: ended.message,
            },
            body @ (Body::Members(_) | Body::Question(_) | Body::Answer(_)) => Self::Peers(body),
            // A view of a later version gets no answer, as from an agent of an earlier one.
            Body::Top(question) => return Ok(TopQuestion::parse(&question).map(Self::Top)),
        }))
    }
}

fn parse_offer(sent: wire::Offer) -> Result<Offer, Violation> {
    if sent.content.len() > CONTENT_OCTETS_MAX {
        return Err(Violation::Offer("content is longer than any assignment"));
    }
    let digest = sent.digest.as_slice().try_into();
    let digest = digest.map_err(|_| Violation::Offer("digest has not 32 octets"))?;
    Ok(Offer {
        nonce: sent.nonce,
        held: Held {
            version: super::judge::Version {
                epoch: sent.epoch,
                number: sent.version,
            },
            digest: Digest(digest),
        },
        content: sent.content,
        traceparent: sent.traceparent,
    })
}

impl From<wire::EndReason> for EndReason {
    fn from(reason: wire::EndReason) -> Self {
        match reason {
            wire::EndReason::Unspecified => Self::Other,
            wire::EndReason::Revoked => Self::Revoked,
            wire::EndReason::Replaced => Self::Replaced,
            wire::EndReason::Stopping => Self::Stopping,
            wire::EndReason::Protocol => Self::Protocol,
            wire::EndReason::Slow => Self::Slow,
            wire::EndReason::Expired => Self::Expired,
        }
    }
}

impl From<Fault> for wire::Nack {
    /// Without nonce and held.
    fn from(fault: Fault) -> Self {
        Self {
            section: wire::Section::from(fault.section).into(),
            path: fault.path,
            reason: fault.reason,
            ..Self::default()
        }
    }
}
