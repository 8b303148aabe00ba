//! What the agent does: captures in the kernel, meters, names, exports; and does what a controller says.

pub mod build;
pub mod capabilities;
pub mod capture;
pub mod clock;
pub mod config;
mod containers;
mod cost;
pub mod doctor;
pub mod enrich;
pub mod export;
mod files;
pub mod fleet;
pub mod held;
pub mod host;
pub mod identity;
mod meter;
pub mod metrics;
pub mod peers;
pub mod replay;
pub mod run;
pub mod session;
pub mod spool;
pub mod status;
pub mod top;
mod vitals;
