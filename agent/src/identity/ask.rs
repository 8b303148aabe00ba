//! Asks a controller for an identity: enrol, renew, recover. What goes out is a certificate request, a token, an SVID.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use flowtilla_grpc::causes;
use flowtilla_grpc::channel::{self, Address, ConnectError};
use flowtilla_grpc::enrol::enrolment_client::EnrolmentClient;
use flowtilla_grpc::trust;
use flowtilla_proto::token::JoinToken;
use flowtilla_proto::wire::enrol as wire;
use prost::Message as _;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::pki_types::CertificateDer;
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::{Identity, IdentityError, WallClock, new_key};

/// How long an answer may take. A controller signs in less than a millisecond, and 10,000 agents may stand in line.
pub const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Longest message for a person that is kept of a controller's refusal, in characters.
const MESSAGE_MAX: usize = 400;

/// Why a controller gave no identity.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It said no.
    #[error("the controller refuses: {message}")]
    Refused {
        /// Why.
        reason: wire::Reason,
        /// One sentence.
        message: String,
    },
    /// It was not reached, or did not answer.
    #[error("{0}")]
    Unreached(String),
    /// What it gave is no identity of this agent.
    #[error("what the controller gave is no identity")]
    Answer(#[from] IdentityError),
    /// The roots that are kept.
    #[error(transparent)]
    Bundle(#[from] trust::BundleError),
}

/// What a failed try leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Try again.
    Again,
    /// An operator has to approve; try again.
    AwaitsApproval,
    /// The same question has the same answer for ever.
    Never,
}

impl AskError {
    /// What to do.
    #[must_use]
    pub fn asked(&self) -> Asked {
        use wire::Reason;
        match self {
            Self::Unreached(_) => Asked::Again,
            Self::Answer(_) | Self::Bundle(_) => Asked::Never,
            Self::Refused { reason, .. } => match reason {
                Reason::Unspecified | Reason::Busy => Asked::Again,
                Reason::AwaitingApproval => Asked::AwaitsApproval,
                Reason::TokenMalformed
                | Reason::TokenUnknown
                | Reason::TokenUsed
                | Reason::TokenExpired
                | Reason::Csr
                | Reason::ForeignSvid
                | Reason::OtherKey
                | Reason::Revoked
                | Reason::NotAllowed => Asked::Never,
            },
        }
    }
}

/// For a join token, an identity for this key.
///
/// # Errors
/// [`AskError`].
pub async fn enrol(
    controller: &Address,
    token: &JoinToken,
    key: KeyPair,
    host_name: &str,
    clock: &WallClock,
) -> Result<Identity, AskError> {
    let channel = reach(controller, clock.govern(trust::with_pin(token.pin.0))).await?;
    let request = wire::EnrolRequest {
        token: token.expose(),
        csr: request_for(&key),
        host_name: host_name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut client = EnrolmentClient::new(channel);
    answer(key, client.enrol(request)).await
}

/// For the SVID that the channel was made with, the next one, for a new key.
///
/// # Errors
/// [`AskError`].
pub async fn renew(channel: Channel) -> Result<Identity, AskError> {
    let key = new_key();
    let request = wire::RenewRequest {
        csr: request_for(&key),
    };
    let mut client = EnrolmentClient::new(channel);
    answer(key, client.renew(request)).await
}

/// For an SVID that has run out, the next one, for the same key.
///
/// # Errors
/// [`AskError`].
pub async fn recover(
    controller: &Address,
    expired: &Identity,
    clock: &WallClock,
) -> Result<Identity, AskError> {
    let tls = trust::with_bundle(expired.bundle(), None)?;
    let channel = reach(controller, clock.govern(tls)).await?;
    let key = KeyPair::from_pem(&expired.key_pem()).map_err(|_| IdentityError::Key)?;
    let request = wire::RecoverRequest {
        svid: expired.chain()[0].to_vec(),
        csr: request_for(&key),
    };
    let mut client = EnrolmentClient::new(channel);
    answer(key, client.recover(request)).await
}

async fn reach(controller: &Address, tls: Arc<rustls::ClientConfig>) -> Result<Channel, AskError> {
    channel::connect(controller, tls)
        .await
        .map_err(|error| AskError::Unreached(explain_connect(&error)))
}

/// A certificate request that names nobody: the controller decides every name.
fn request_for(key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params
        .serialize_request(key)
        .expect("a key signs what it is given");
    request.der().to_vec()
}

async fn answer(
    key: KeyPair,
    asking: impl Future<Output = Result<Response<wire::Identity>, Status>>,
) -> Result<Identity, AskError> {
    let answered = tokio::time::timeout(ANSWER_WAIT, asking)
        .await
        .map_err(|_| AskError::Unreached(format!("no answer within {} s", ANSWER_WAIT.as_secs())))?;
    let given = answered.map_err(|status| refused(&status))?.into_inner();
    let certificates =
        |list: Vec<Vec<u8>>| -> Vec<_> { list.into_iter().map(CertificateDer::from).collect() };
    let (chain, bundle) = (certificates(given.chain), certificates(given.bundle));
    Ok(Identity::assemble(key, chain, bundle)?)
}

fn refused(status: &Status) -> AskError {
    match wire::Refusal::decode(status.details()) {
        Ok(refusal) if refusal.reason() != wire::Reason::Unspecified => AskError::Refused {
            reason: refusal.reason(),
            message: shown(&refusal.message),
        },
        _ => AskError::Unreached(explain_status(status)),
    }
}

/// Text of a controller, fit for a log.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .take(MESSAGE_MAX)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Why there is no connection, in words for a person.
pub(crate) fn explain_connect(error: &ConnectError) -> String {
    match tls_error(error) {
        Some(tls) => format!("{error}: {}", explain_tls(tls)),
        None => causes::chain(error),
    }
}

/// What a call's failure says. In TLS 1.3 a controller that refuses the caller's SVID shows it here only.
pub(crate) fn explain_status(status: &Status) -> String {
    if let Some(tls) = tls_error(status) {
        return explain_tls(tls);
    }
    if let Some(alert) = alert(status) {
        return explain_alert(&alert);
    }
    let message = shown(status.message());
    match status.source().map(causes::chain) {
        Some(causes) if causes.contains(BROKEN_OFF) => {
            "the connection broke off: the controller ended without a word, or the line was cut".into()
        }
        Some(causes) => format!("{message}: {causes}"),
        None => format!("{message} ({:?})", status.code()),
    }
}

/// Whether the controller refuses this agent's SVID because it has run out, by the controller's clock.
pub(crate) fn is_expired(error: &(dyn Error + 'static)) -> bool {
    match tls_error(error) {
        Some(tls) => matches!(
            tls,
            rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired)
        ),
        None => alert(error).is_some_and(|alert| alert.starts_with(EXPIRED)),
    }
}

/// Whether a call was refused for good: the same call has the same answer for ever.
pub(crate) fn is_refused(status: &Status) -> bool {
    refused(status).asked() == Asked::Never
}

/// Whether the controller is none that this agent believes.
pub(crate) fn is_stranger(error: &ConnectError) -> bool {
    use rustls::{CertificateError as Certificate, Error as Tls};
    matches!(
        tls_error(error),
        Some(Tls::InvalidCertificate(
            Certificate::UnknownIssuer | Certificate::BadSignature
        ))
    )
}

/// What the TLS library says before an alert's name, and the name of the one for an SVID that has run out.
const ALERT: &str = "received fatal alert: ";
const EXPIRED: &str = "CertificateExpired";
/// What TLS says of a connection that ended without its goodbye. HTTP/2 keeps of it its text alone.
const BROKEN_OFF: &str = "peer closed connection without sending TLS close_notify";

/// The alert that the controller sent. HTTP/2 keeps of it its text alone.
fn alert(error: &(dyn Error + 'static)) -> Option<String> {
    let said = causes::chain(error);
    said.split_once(ALERT).map(|(_, alert)| shown(alert))
}

fn explain_alert(alert: &str) -> String {
    match alert.starts_with(EXPIRED) {
        true => {
            "the controller refuses this agent's SVID: it has run out by the controller's clock; check the clocks of both".into()
        }
        false => format!("the controller refuses this agent's SVID ({alert}); see its log"),
    }
}

fn explain_tls(error: &rustls::Error) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error as Tls};
    match error {
        // A root of the same name with another key.
        Tls::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature) => {
            "the controller's certificate does not end in a root that this agent believes: it is another controller, or the \
             roots have changed while this agent was away (then give it a new token with --token-file)"
                .into()
        }
        Tls::InvalidCertificate(
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. },
        ) => format!("the controller's certificate does not count at this time ({error}); check the clocks of both"),
        Tls::AlertReceived(Alert::CertificateExpired) => explain_alert(EXPIRED),
        Tls::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::AccessDenied
            | Alert::DecryptError,
        ) => format!("the controller refuses this agent's SVID ({error})"),
        _ => error.to_string(),
    }
}

/// The TLS library's error among the causes.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    causes::all(error).find_map(|cause| cause.downcast_ref())
}
