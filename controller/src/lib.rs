//! The controller: gives agents and operators their identities, keeps policies and collectors, and brings them to agents.

pub mod authz;
pub mod backup;
pub mod clock;
pub mod command;
pub mod config;
pub mod enrolment;
pub mod fleet;
pub mod grpc;
pub mod identities;
pub mod identity;
pub mod local;
pub mod metrics;
pub mod pace;
pub mod policy;
pub mod rollout;
pub mod run;
pub mod setup;
pub mod state;
pub mod store;
