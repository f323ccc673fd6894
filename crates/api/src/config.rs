//! The ConfigMaps of the system namespace, typed.
//!
//! Each type parses from the `data` of its ConfigMap with upstream's keys, aliases, defaults, checks and error texts. The same parser
//! serves the watching processes and the admission of ConfigMaps. Unknown keys, `_example` among them, are ignored.

mod autoscaler;
mod certmanager;
mod data;
mod defaults;
mod deployment;
mod domain;
mod features;
mod gc;
mod kourier;
mod leader_election;
mod logging;
mod network;
mod observability;

pub use autoscaler::Autoscaler;
pub use certmanager::{CertManager, IssuerRef};
pub use defaults::{Defaults, EnableServiceLinks};
pub use deployment::{AffinityType, Deployment};
pub use domain::{Domain, DomainEntry};
pub use features::{Features, Flag, SecurePodDefaults};
pub use gc::Gc;
pub use kourier::{ExternalAuthz, Kourier, KourierTracing, TracingProtocol};
pub use leader_election::LeaderElection;
pub use logging::{Level, Logging};
pub use network::{HttpProtocol, MeshCompatibility, Network};
pub use observability::{Exporter, Observability, Tracing};

/// Names of the ConfigMaps.
pub mod names {
    pub const AUTOSCALER: &str = "config-autoscaler";
    pub const CERT_MANAGER: &str = "config-certmanager";
    pub const DEFAULTS: &str = "config-defaults";
    pub const DEPLOYMENT: &str = "config-deployment";
    pub const DOMAIN: &str = "config-domain";
    pub const FEATURES: &str = "config-features";
    pub const GC: &str = "config-gc";
    pub const KOURIER: &str = "config-kourier";
    pub const LEADER_ELECTION: &str = "config-leader-election";
    pub const LOGGING: &str = "config-logging";
    pub const NETWORK: &str = "config-network";
    pub const OBSERVABILITY: &str = "config-observability";
}
