//! The API: wire types, and the validated objects that are made from them by parsing only.
//!
//! [`wire`] is what travels. [`policy::Policy`], [`collector::Collector`] and [`hosts::HostGroup`] are what the rest of the project uses; a
//! value of these types has been checked whole, and there is no other way to make one than `TryFrom<wire::…>`. Parsing
//! reports every mistake at once ([`mistake::Mistakes`]).
//!
//! No IO here, no clock, no environment.

pub mod collector;
pub mod hosts;
pub mod ids;
pub mod labels;
pub mod loss;
pub mod mistake;
pub mod policy;
pub mod spiffe;
pub mod token;
pub mod wire;

mod reading;
mod top;
