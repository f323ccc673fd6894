//! Benchmarks and scenarios.

fn main() {}
