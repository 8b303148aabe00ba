//! Types generated from `proto/proto/**/*.proto`, by inclusion.
//!
//! They travel, and they are parsed into the validated types of this crate; nothing else reads their fields.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    reason = "generated: the .proto files hold the documentation"
)]

include!(concat!(env!("OUT_DIR"), "/flowtilla.policy.v1.rs"));
