//! Values: what comes back, what is refused, what they cost.

mod cost;
mod golden;
mod properties;
mod rules;
mod sample;
