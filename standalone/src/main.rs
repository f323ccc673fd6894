//! The one-machine mode: embedded API, controllers, gateway, activator and node agent in one command.

fn main() {}
