//! Build, fetch Envoy, run, check.

fn main() {}
