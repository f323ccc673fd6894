//! One process, any of the control-plane roles: arguments and assembly only.

fn main() {}
