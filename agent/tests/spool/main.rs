//! The spool on real disks: what goes in comes out, or is told as lost with its reason.
//!
//! Tests that mount need root and loop devices; without them each prints why it was skipped.

#![expect(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod bounds;
mod crash;
mod damage;
mod keep;
mod refusal;
mod support;
mod survey;
