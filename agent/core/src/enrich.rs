//! Enrichment.
pub mod cgroup;
pub mod redact;
