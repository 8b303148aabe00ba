//! The wire form, from outside the crate: golden octets, rules a reader relies on, properties of any input.

#[path = "encode/golden.rs"]
mod golden;
#[path = "encode/properties.rs"]
mod properties;
#[path = "encode/rules.rs"]
mod rules;
#[path = "encode/sample.rs"]
mod sample;
