//! The sidecar of every revision's pod: counts, limits and reports requests.

fn main() {}
