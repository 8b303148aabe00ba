//! The wire form, from outside the crate: golden octets, rules a reader relies on, properties of any input.

#[cfg(test)]
#[path = "encode/golden.rs"]
mod golden;
#[cfg(test)]
#[path = "encode/nested.rs"]
mod nested;
#[cfg(test)]
#[path = "encode/properties.rs"]
mod properties;
#[cfg(test)]
#[path = "encode/rules.rs"]
mod rules;
#[cfg(test)]
#[path = "encode/sample.rs"]
mod sample;
