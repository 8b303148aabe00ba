//! The API's services: who calls, parse, ask, answer. Nothing is decided here.

pub mod enrol;
