//! The built-in Kubernetes controllers the one-machine mode needs: workloads, endpoints, garbage collection, DNS,
//! service addresses.
//!
//! Each controller is a set of pure decisions over cached objects plus a thin shell that reads caches and writes what
//! differs. All of them share one watch per kind ([`caches`]), are driven by events alone, and do work in proportion
//! to the change: a scale from zero to one goes Deployment -> ReplicaSet -> Pod (created already bound to the node)
//! in two writes, with nothing in between that waits.
//!
//! ```text
//! Deployment -> deployment -> ReplicaSet -> replicaset (+ scheduler) -> Pod -> pods (node agent)
//! Pod, Service -> endpoints, endpointslice -> EndpointSlice -> xDS, vips, dns
//! Endpoints (by hand) -> mirroring -> EndpointSlice
//! deletionTimestamp, ownerReferences -> gc, namespace
//! ```

mod backends;
mod caches;
mod deployment;
mod dns;
mod endpoints;
mod endpointslice;
mod error;
mod gc;
mod mirroring;
mod names;
mod namespace;
mod quantity;
mod replicaset;
mod run;
mod scheduler;
mod selector;
mod vips;
mod write;

pub use error::Error;
pub use run::{Handle, Options, run};
