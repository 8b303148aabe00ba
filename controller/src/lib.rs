//! The controller: gives agents and operators their identities, keeps policies and collectors, and brings them to agents.

pub mod rollout;
pub mod store;
