//! The commands, one module each.

pub(crate) mod buffer;
pub(crate) mod doctor;
pub(crate) mod fleet;
mod left_out;
pub(crate) mod loss;
mod spooled;
pub(crate) mod tap;
pub(crate) mod up;
