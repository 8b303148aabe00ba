//! `flowtilla-controller`.

fn main() {}
