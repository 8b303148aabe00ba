//! What the agent decides, without any input or output.
//!
//! Observations and time come in, records and frames come out; nothing here opens a socket or a file, reads a clock or
//! starts a task. The crate's manifest keeps it so, and a test checks the dependency tree.

pub mod backoff;
pub mod collector;
pub mod cost;
pub mod encode;
pub mod enrich;
pub mod filter;
pub mod fleet;
pub mod flow;
pub mod ledger;
pub mod loss;
pub mod observe;
pub mod owner;
pub mod policy;
pub mod session;
pub mod spool;
pub mod time;
pub mod top;
pub mod zmtp;
