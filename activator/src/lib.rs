//! Holds requests for revisions without ready pods, wakes them, and passes the requests on.
//!
//! ```text
//! gateway -> :8012/:8013 -> lookup -> statistics -> time limits -> throttler (waits here) -> pod: queue-proxy
//!                              |          |                            ^
//!                        Revisions     WebSocket -> autoscaler     private Endpoints, direct probes of pods
//! ```
//!
//! Three things decide how long a cold start takes, and none of them waits for a clock here: the first request of a
//! revision is reported to the autoscaler the moment it arrives; a new pod's address is probed as soon as it is known,
//! with a request that the pod's sidecar holds until it is ready; and the pod's first success releases all waiters.

mod backends;
mod clock;
mod direct;
mod dispatch;
mod handler;
mod metrics;
mod observed;
mod options;
mod preempt;
mod probe;
mod revisions;
mod server;
#[cfg(test)]
mod simulation;
mod sink;
mod stats;
mod throttler;
mod tls;

pub use options::{Bound, LoadBalancing, Options, ParseError, Policy, Reach};
pub use server::{Error, Handle, run};
pub use tls::Error as TlsError;
