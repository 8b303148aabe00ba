//! What the agent does: captures in the kernel, meters, names, exports.

pub mod capture;
pub mod clock;
pub mod status;
