//! Stubs of the API's services, and the one way to call them: TLS 1.3 to a controller that proves to be one.
//!
//! A crate of its own, because the agent's core uses the API's messages and must not reach a network.
//! In: where the controller is, whom to trust, who one is. Out: a [`tonic::transport::Channel`]. Reads no files.
//! Beside it stands what all programs do the same way so that one change is one trace: [`telemetry`]. And [`cri`]: the API of
//! Kubernetes' runtimes, which is another's. [`causes`] tells an error whole.

pub mod causes;
pub mod channel;
pub mod codec;
pub mod cri;
pub mod proof;
pub mod svid;
pub mod telemetry;
pub mod trust;

/// Stubs of the enrolment service.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated: the .proto files hold the documentation"
)]
pub mod enrol {
    include!(concat!(env!("OUT_DIR"), "/flowtilla.enrol.v1.rs"));
}

/// Stubs of the agents' session.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated: the .proto files hold the documentation"
)]
pub mod session {
    include!(concat!(env!("OUT_DIR"), "/flowtilla.session.v1.rs"));
}

/// Stubs of the operators' service.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated: the .proto files hold the documentation"
)]
pub mod fleet {
    include!(concat!(env!("OUT_DIR"), "/flowtilla.fleet.v1.rs"));
}
