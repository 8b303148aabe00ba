//! Types generated from `proto/proto/**/*.proto`, by inclusion: the objects here, what travels beside them in [`enrol`],
//! [`session`] and [`fleet`].
//!
//! They travel, and they are parsed into the validated types of this crate; nothing else reads their fields.

pub use self::flowtilla::enrol::v1 as enrol;
pub use self::flowtilla::fleet::v1 as fleet;
pub use self::flowtilla::policy::v1::*;
pub use self::flowtilla::session::v1 as session;

/// Descriptors of the objects (`google.protobuf.FileDescriptorSet`, encoded), comments included.
pub const OBJECT_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/objects.descriptors"));

// Reached by the names above, and by the stubs of `flowtilla-grpc`.
#[doc(hidden)]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated: the .proto files hold the documentation"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}
#[doc(hidden)]
pub use self::generated::flowtilla;
