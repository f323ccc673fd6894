//! Windows, decider, scaler and the stat server of the Knative pod autoscaler.
//!
//! ```text
//! activators --WebSocket--> stat_server --+
//! queue-proxies <--GET :9090-- scraper ---+--> collector (windows) --> decider --> kpa --> scale of the Deployment
//! ```
//!
//! Pure: `window`, `decider`, `settings`, `kpa::scale`. The rest is the shell that feeds them, see `multiscaler` for when.
//! Time is passed in everywhere but in `clock`.

pub mod clock;
pub mod collector;
pub mod decider;
pub mod kpa;
pub mod metric;
pub mod multiscaler;
pub mod pods;
mod run;
pub mod scraper;
pub mod settings;
pub mod stat_server;
pub mod window;

pub use decider::{Decider, Decision, Inputs, Observed, ScalingMetric};
pub use kpa::ServiceLookup;
pub use run::{Handle, Options, run};
pub use window::{Average, SlidingMax, Window};
