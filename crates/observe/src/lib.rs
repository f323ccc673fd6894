//! Logging, metrics and the admin server of every process.
//!
//! Metrics are declared beside the code that moves them: a family once, a series per set of labels, an atomic each.
//! Everything is read only when somebody scrapes.

mod admin;
mod calls;
mod logging;
mod metrics;
mod process;

pub use admin::{AdminHandle, serve_admin};
pub use calls::{API_CALLS, ApiCalls};
pub use logging::{LogLevel, logging};
pub use metrics::{Counter, Described, Gauge, Histogram, Kind, LATENCY_SECONDS, Registry, Value};
