//! The doors: services that turn wire messages into calls of the cores, and their answers into wire messages. No decisions.

pub mod session;
