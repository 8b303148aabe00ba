//! The test command and the benchmark.
fn main() {}
