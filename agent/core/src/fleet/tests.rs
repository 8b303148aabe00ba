//! The promises, each against a model of a collector that keeps totals as ntopng does.

mod rule;
mod stories;
mod wire;
mod world;
