//! The controller: gives agents and operators their identities, keeps policies and collectors, and brings them to agents.

pub mod fleet;
pub mod grpc;
pub mod pace;
pub mod policy;
pub mod rollout;
pub mod store;
