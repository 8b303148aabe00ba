//! The commands, one module each.

pub(crate) mod tap;
pub(crate) mod up;
