//! Why a call failed, in one sentence with the remedy; of several mistakes in a request, a line each.
//!
//! In TLS 1.3 a controller that refuses the caller's SVID shows it at the first call only; the TLS library's error is then among
//! the causes of the status.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use flowtilla_grpc::causes;
use flowtilla_grpc::channel::ConnectError;
use flowtilla_proto::wire::enrol::{Reason, Refusal};
use flowtilla_proto::wire::fleet::{Mistake, Mistakes};
use prost::Message as _;
use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error as Tls};
use tonic::{Code, Status};

use crate::output::harmless;

/// What the TLS library says before the name of an alert that it was sent.
const ALERT: &str = "received fatal alert: ";

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The first identity, for a token.
    Enrol,
    /// The next identity.
    Renew,
    /// Anything else.
    Call,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failed {
    /// Of the answer; `None`: there was none.
    pub(crate) code: Option<Code>,
    /// What is wrong with the request.
    pub(crate) mistakes: Vec<Mistake>,
    sentence: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Error for Failed {}

impl Failed {
    /// No connection.
    pub(crate) fn connect(stage: Stage, error: &ConnectError) -> Self {
        let sentence = match cause(error) {
            Cause::Tls(tls) => format!("{error}: {}", explain_tls(stage, tls)),
            Cause::Io(io) => format!("{error}: {}", explain_io(io)),
            Cause::Other => chain(error),
        };
        Self::without_answer(sentence)
    }

    /// A call that was refused or broken off.
    pub(crate) fn status(stage: Stage, status: &Status) -> Self {
        if let Cause::Tls(tls) = cause(status) {
            return Self::without_answer(explain_tls(stage, tls));
        }
        let mistakes = match status.code() {
            Code::InvalidArgument => {
                Mistakes::decode(status.details()).map_or(Vec::new(), |told| told.mistakes)
            }
            _ => Vec::new(),
        };
        // HTTP/2 keeps of a TLS alert its text alone.
        let causes = status.source().map(chain).unwrap_or_default();
        if let Some((_, alert)) = causes.split_once(ALERT) {
            return Self::without_answer(explain_alert(alert));
        }
        let message = harmless(status.message());
        let refusal = match stage {
            Stage::Call => None,
            Stage::Enrol | Stage::Renew => Refusal::decode(status.details()).ok(),
        };
        let sentence = match refusal.filter(|refusal| refusal.reason() != Reason::Unspecified) {
            Some(refusal) => format!(
                "the controller refuses: {}; {}",
                harmless(&refusal.message),
                remedy(stage, refusal.reason())
            ),
            None => match status.code() {
                Code::InvalidArgument => complaint(status.message(), &mistakes),
                Code::NotFound | Code::FailedPrecondition => message,
                Code::PermissionDenied | Code::Unauthenticated => {
                    format!(
                        "the controller does not allow it: {message}; log in with a token from an operator who is in"
                    )
                }
                // Its own word, not that of a connection.
                Code::Unavailable if causes.is_empty() && !message.is_empty() => {
                    format!("the controller cannot do it now: {message}; try again then")
                }
                Code::Unavailable | Code::Unknown | Code::Cancelled => {
                    let causes = if causes.is_empty() { message } else { causes };
                    format!(
                        "the controller broke off ({causes}); try again, and see its log: when it refuses the SVID, log in again"
                    )
                }
                Code::Unimplemented => {
                    format!("the controller does not know this call ({message}); it is older")
                }
                code => format!("the controller failed: {message} ({code:?}); see its log"),
            },
        };
        Self {
            code: Some(status.code()),
            mistakes,
            sentence,
        }
    }

    /// A call without an answer in time.
    pub(crate) fn silent(waited: Duration) -> Self {
        let s = waited.as_secs();
        Self::without_answer(format!(
            "the controller did not answer within {s} s; see its log, and try again"
        ))
    }

    /// A stream that ended before what it tells of.
    pub(crate) fn broken() -> Self {
        Self::without_answer("the controller ended the stream before the rollout had ended".to_owned())
    }

    fn without_answer(sentence: String) -> Self {
        Self {
            code: None,
            mistakes: Vec::new(),
            sentence,
        }
    }
}

/// What is wrong with a request, a line each. Some refusals are nothing but their mistakes, which are told once.
fn complaint(message: &str, mistakes: &[Mistake]) -> String {
    let mut lines: Vec<String> = message.lines().map(harmless).collect();
    for told in mistakes {
        let mistake = flowtilla_proto::mistake::Mistake {
            path: told.path.clone(),
            value: told.value.clone(),
            why: told.why.clone(),
            remedy: told.remedy.clone(),
        };
        let text = harmless(&mistake.to_string());
        if !lines.contains(&text) {
            lines.push(format!("  {text}"));
        }
    }
    lines.join("\n")
}

/// Of an operator who is there, nobody but itself may make a token elsewhere than on the controller's host.
const SAME_NAME: &str = "log in again with a token that `flowtilla-controller token --operator NAME` makes on the controller's host; \
                         one from another operator needs another name";

fn remedy(stage: Stage, reason: Reason) -> &'static str {
    match reason {
        Reason::TokenMalformed | Reason::TokenUnknown | Reason::TokenUsed | Reason::TokenExpired => {
            "make another token: agentctl token create --operator NAME"
        }
        Reason::NotAllowed if stage == Stage::Enrol => SAME_NAME,
        Reason::ForeignSvid | Reason::OtherKey | Reason::AwaitingApproval => SAME_NAME,
        // Unknown here, the name is free; revoked, it is for nobody any more.
        Reason::NotAllowed => "log in again with a token from another operator",
        Reason::Revoked => "log in again under another name, with a token from another operator",
        Reason::Busy => "try again in a moment",
        Reason::Unspecified | Reason::Csr => "see the controller's log",
    }
}

fn explain_tls(stage: Stage, error: &Tls) -> String {
    match (error, stage) {
        // A root of the same name with another key.
        (Tls::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature), Stage::Enrol) => {
            "this is not the controller that made the token; check --controller, or make a token there".into()
        }
        (Tls::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature), _) => {
            "this is not the controller that this context logged in to, or its roots have changed meanwhile; check the \
             address, or log in again"
                .into()
        }
        (
            Tls::InvalidCertificate(
                Certificate::Expired
                | Certificate::ExpiredContext { .. }
                | Certificate::NotValidYet
                | Certificate::NotValidYetContext { .. },
            ),
            _,
        ) => format!("the controller's SVID does not count at this time ({error}); check the clocks of both hosts"),
        (Tls::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }), _) => {
            "what answers is no controller; check the address".into()
        }
        (
            Tls::AlertReceived(
                alert @ (Alert::CertificateExpired
                | Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateUnknown
                | Alert::AccessDenied
                | Alert::DecryptError),
            ),
            _,
        ) => explain_alert(&format!("{alert:?}")),
        (Tls::InvalidMessage(_), _) => "what answers does not speak TLS; check the port".into(),
        _ => format!("TLS failed ({error}); check that the address is a controller's"),
    }
}

fn explain_alert(alert: &str) -> String {
    match alert.contains("CertificateExpired") {
        true => "the controller refuses the SVID, which has run out; check the clocks of both hosts, or log in again".into(),
        false => format!("the controller refuses the SVID ({alert}); log in again"),
    }
}

fn explain_io(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "nobody listens there; start flowtilla-controller run, or check the port".into()
        }
        io::ErrorKind::TimedOut => format!("{error}; check the address, and firewalls between"),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("{error}; check the address and the network")
        }
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            "what answers there broke off; check the port, and the controller's log".into()
        }
        _ => format!("{error}; check the address"),
    }
}

enum Cause<'a> {
    Tls(&'a Tls),
    Io(&'a io::Error),
    Other,
}

/// The TLS library's error among the causes, or else the system's.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Cause<'a> {
    let tls = causes::all(error).find_map(|cause| cause.downcast_ref::<Tls>());
    let io = || {
        causes::all(error)
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .last()
    };
    tls.map(Cause::Tls)
        .or_else(|| io().map(Cause::Io))
        .unwrap_or(Cause::Other)
}

/// An error with its causes, made harmless for a terminal.
fn chain(error: &(dyn Error + 'static)) -> String {
    harmless(&causes::chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_who_cannot_renew_is_told_of_a_token_that_can_be_made() {
        let told = |stage, reason: Reason| {
            let refusal = Refusal {
                reason: reason.into(),
                message: "no".to_owned(),
            };
            let details = refusal.encode_to_vec().into();
            Failed::status(
                stage,
                &Status::with_details(Code::PermissionDenied, "no", details),
            )
            .to_string()
        };
        for reason in [Reason::AwaitingApproval, Reason::OtherKey, Reason::ForeignSvid] {
            let told = told(Stage::Renew, reason);
            assert!(
                told.contains("`flowtilla-controller token --operator NAME`"),
                "{told}"
            );
        }
        // The name is free: another operator can help.
        let unknown = told(Stage::Renew, Reason::NotAllowed);
        assert!(unknown.ends_with("a token from another operator"), "{unknown}");
        let taken = told(Stage::Enrol, Reason::NotAllowed);
        assert!(taken.ends_with("needs another name"), "{taken}");
        let revoked = told(Stage::Renew, Reason::Revoked);
        assert!(revoked.contains("another name"), "{revoked}");
    }
}
