//! Windows, decider, scaler and the stat server of the Knative pod autoscaler.
//!
//! ```text
//! activators --WebSocket--> stat_server --+
//! queue-proxies <--GET :9090-- scraper ---+--> collector (windows) --> decider --> kpa --> scale of the Deployment
//! ```
//!
//! Pure: `window`, `decider`, `settings`, `kpa::scale`. The rest is the shell that feeds them, see `multiscaler` for when.
//! Time is passed in everywhere but in `clock`.

mod clock;
mod collector;
mod decider;
mod kpa;
mod metric;
mod multiscaler;
mod pods;
mod run;
mod scraper;
mod settings;
mod stat_server;
mod window;

pub use decider::{Decider, Decision, Inputs, Observed, ScalingMetric};
pub use kpa::ServiceLookup;
pub use run::{Handle, Options, run};
pub use window::{Average, SlidingMax, Window};
