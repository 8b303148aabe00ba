//! What the agent does: captures in the kernel, meters, names, exports.

pub mod capture;
pub mod clock;
mod cost;
pub mod enrich;
pub mod export;
pub mod host;
mod meter;
pub mod peers;
pub mod replay;
pub mod run;
pub mod spool;
pub mod status;
