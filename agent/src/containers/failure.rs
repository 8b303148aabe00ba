//! Why a runtime has not answered, and how long and how much it may answer.

use std::error::Error;
use std::io;
use std::time::Duration;

use flowtilla_agent_core::encode::text;
use flowtilla_grpc::causes;
use hyper::StatusCode;
use tonic::{Code, Status};

/// How long an answer may take, from connecting to its last octet.
///
/// Docker lists 200 containers in some 50 ms. Half of it gives up a daemon that is busy; double it, and one that hangs is
/// noticed after names were missed for twice as long.
pub(super) const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// Longest answer but the lists'. An inspection takes some 10 KiB.
pub(super) const ANSWER_OCTETS_MAX: usize = 1 << 20;
/// Longest list that is read: some 4,000 containers of 2 KiB.
pub(super) const LIST_OCTETS_MAX: usize = 8 << 20;
/// Most of a runtime's own words in a log, in octets.
const WORDS_OCTETS_MAX: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody listens.
    #[error("connecting")]
    Connect(#[source] io::Error),
    /// The socket is there, and not for us.
    #[error(
        "it may not be used by this agent's user; give that write access to it (Docker: SupplementaryGroups=docker in the \
         agent's unit)"
    )]
    Denied,
    /// It hangs, or is very slow.
    #[error("no answer within {} s", REQUEST_WAIT.as_secs())]
    Late,
    /// The connection broke, or what came is no HTTP.
    #[error("the connection")]
    Connection(#[source] hyper::Error),
    /// It refuses.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// More than is read.
    #[error("an answer of more than {max} octets")]
    TooLong {
        /// Octets that would be read.
        max: usize,
    },
    /// No JSON, or not what the API says.
    #[error("an answer that cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// No more events.
    #[error("it ended the stream of events")]
    Ended,
    /// The connection for gRPC broke, or what came is no HTTP/2.
    #[error("the connection")]
    Channel(#[source] tonic::transport::Error),
    /// The connection broke during a call.
    #[error("the connection")]
    Call(#[source] Box<dyn Error + Send + Sync>),
    /// It answers a call, and not with what was asked for.
    #[error("it answers {code:?}: {message}")]
    Refused {
        /// Which kind of refusal.
        code: Code,
        /// Its words, harmless and short.
        message: String,
    },
}

impl Failure {
    /// Why nobody could be connected to.
    pub(super) fn connect(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Connect(error),
        }
    }

    /// What a call ended with. A status without a cause is what the other side said; with one, it could not be asked.
    pub(super) fn call(status: &Status, octets_max: usize) -> Self {
        let cause = causes::all(status).skip(1).last();
        match (status.code(), cause) {
            (_, Some(cause)) => Self::Call(text::label(&cause.to_string(), WORDS_OCTETS_MAX).into()),
            (Code::OutOfRange, None) => Self::TooLong { max: octets_max },
            (code, None) => Self::Refused {
                code,
                message: text::label(status.message(), WORDS_OCTETS_MAX),
            },
        }
    }

    /// Whether another API may be what the other side speaks.
    pub(super) fn may_be_another_api(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Denied | Self::Late => false,
            Self::Connection(_)
            | Self::Status(_)
            | Self::TooLong { .. }
            | Self::Malformed(_)
            | Self::Ended
            | Self::Channel(_)
            | Self::Call(_)
            | Self::Refused { .. } => true,
        }
    }

    /// Whether it knows no CRI v1: a containerd whose plugin for it is off, or one before 1.6.
    pub(super) fn is_unspoken(&self) -> bool {
        matches!(
            self,
            Self::Refused {
                code: Code::Unimplemented,
                ..
            }
        )
    }

    /// Whether it answered about this one thing, and may be asked about others.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            Self::Status(_) | Self::TooLong { .. } | Self::Malformed(_) => true,
            Self::Refused { code, .. } => !matches!(code, Code::Unavailable | Code::Cancelled),
            _ => false,
        }
    }

    /// Whether nobody is there, rather than somebody who does not answer.
    pub(super) fn is_absence(&self) -> bool {
        let absent = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            )
        };
        matches!(self, Self::Connect(error) if absent(error))
    }

    /// The failure with its causes, on one line.
    pub(super) fn chain(&self) -> String {
        text::label(&causes::chain(self), 2 * WORDS_OCTETS_MAX)
    }
}
