//! The controllers against the real API in memory. The node agent is played by the tests.

#[path = "system/collection.rs"]
mod collection;
#[path = "system/harness.rs"]
mod harness;
#[path = "system/network.rs"]
mod network;
#[path = "system/workloads.rs"]
mod workloads;
