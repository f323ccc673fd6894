//! The sidecar of every revision's pod: counts, limits and reports requests.
//!
//! ```text
//! gateway or activator -> :8012 (or :8013) -> drain -> time limits -> breaker -> 127.0.0.1:USER_PORT
//! kubelet, activator   -> the same port, marked as probes -> readiness of the user's container
//! autoscaler           -> :9090/metrics, one `Stat`      user container's preStop -> :8022/wait-for-drain
//! ```
//!
//! It runs in every pod of every user, so it is small before anything else: one thread, no Kubernetes client, and
//! nothing that wakes it when no request is there.

mod chain;
mod config;
mod direct;
mod drain;
mod forwarded;
#[doc(hidden)]
pub mod fuzz;
mod log;
mod metrics;
mod observed;
mod pending;
mod probe;
mod process;
mod resource;
mod server;
mod stats;
mod tls;
mod trace;

pub use config::{Config, ConfigError, Observability};
pub use drain::DrainRule;
pub use log::init as init_logging;
pub use telemetry::{
    environment::{Environment, Scraped},
    otlp::Otel,
};

pub use probe::{Probe, Prober};
pub use process::{RunError, environment, run};
pub use server::{Error, Handle, start};
use telemetry::{call, otlp};
pub use tls::{ClientAuth, Fixed, Paths, TlsRange, TlsSettings};
