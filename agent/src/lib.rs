//! What the agent does: captures in the kernel, meters, names, exports.

pub mod enrich;
pub mod status;
