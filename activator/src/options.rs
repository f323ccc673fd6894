//! What an activator needs to know; upstream's environment is one way to say it.

mod environment;

use std::{net::SocketAddr, time::Duration};

use api::config::Observability;
use controller::Config;
use observe::Registry;
use telemetry::{
    Lines,
    otlp::Otel,
    tls::{Fixed, TlsSettings},
};

pub use self::environment::ParseError;
pub use crate::{
    backends::Reach,
    throttler::{Bound, Policy},
};

/// How an activator runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where HTTP/1.1 comes in; HTTP/2 with prior knowledge is understood as well.
    pub listen_http: SocketAddr,
    /// Where HTTP/2 comes in; HTTP/1.1 is understood as well.
    pub listen_h2c: SocketAddr,
    /// Where encrypted requests come in, if the installation encrypts.
    pub listen_tls: SocketAddr,
    /// Whether the installation encrypts what its parts say to each other (`system-internal-tls`).
    pub encrypt: bool,
    /// What the encrypted port offers.
    pub tls: TlsSettings,
    /// Which addresses lead to pods.
    pub reach: Reach,
    /// Whether a mesh wants pods addressed by their Service's name (`enable-mesh-pod-addressability`).
    pub passthrough: bool,
    pub load_balancing: LoadBalancing,
    /// Idle connections to keep, for each pod and for all together.
    pub max_idle: Bound,
    /// Threads that serve requests; 0: as many as there are processors to use.
    pub workers: usize,
    /// Request log, tracing and whether profiles are served: `config-observability`, which is followed.
    pub observability: Config<Observability>,
    /// Where the request log goes.
    pub request_log: Lines,
    /// OpenTelemetry's own variables.
    pub otel: Otel,
    /// Where profiles are served, if anywhere.
    pub profiling: Option<SocketAddr>,
    /// Where `/metrics` is served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Where metrics are kept, those of whoever runs it as well.
    pub registry: Registry,
    /// How `/metrics` is encrypted, if it is.
    pub metrics_tls: Option<Fixed>,
    /// Answer with a `Server-Timing` header: how long a request waited, and how long its pod took.
    pub server_timing: bool,
    /// Whether pods are learned from EndpointSlices, where these may be listed.
    pub endpoint_slices: bool,
    /// Where reports go: `ws://host:port`.
    pub autoscaler_url: String,
    /// What metrics and spans call this process (`OTEL_SERVICE_NAME`).
    pub service_name: String,
    /// Name in the reports.
    pub pod_name: String,
    /// This activator's address among others.
    pub pod_ip: String,
    /// How long one probe of a pod may take before it is repeated on a new connection.
    pub probe_limit: Duration,
    /// The port of sidecars where they tell that they are ready.
    pub sidecar_admin_port: u16,
    /// Requests that may wait.
    pub max_waiting: Bound,
    /// Bytes that waiting requests may hold (their headers, and what is received of their bodies).
    pub max_waiting_bytes: Bound,
    /// How long to go on after probes have begun to fail, until nobody sends requests any more.
    pub lame_duck: Duration,
    /// How long requests in flight may take after that.
    pub drain_limit: Duration,
}

const MAX_IDLE: Bound = Bound { each: 100, total: 1000 };

/// How one of several pods is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancing {
    Always(Policy),
    /// By containerConcurrency: the less busy of two without it, the first that is free up to 3, in turn from 4.
    AsUpstream,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            listen_http: ([0, 0, 0, 0], 8012).into(),
            listen_h2c: ([0, 0, 0, 0], 8013).into(),
            listen_tls: ([0, 0, 0, 0], 8112).into(),
            encrypt: false,
            tls: TlsSettings::default(),
            reach: Reach::Pods,
            passthrough: false,
            load_balancing: LoadBalancing::Always(Policy::default()),
            max_idle: MAX_IDLE,
            workers: 0,
            observability: Config::fixed(Observability::default()),
            request_log: Lines::default(),
            otel: Otel::default(),
            profiling: None,
            metrics: None,
            metrics_tls: None,
            registry: Registry::default(),
            server_timing: false,
            endpoint_slices: true,
            autoscaler_url: "ws://autoscaler.knative-serving.svc.cluster.local:8080".to_owned(),
            service_name: "activator".to_owned(),
            pod_name: "activator".to_owned(),
            pod_ip: "127.0.0.1".to_owned(),
            probe_limit: Duration::from_secs(1),
            sidecar_admin_port: 8022,
            max_waiting: Bound { each: 20_000, total: 50_000 },
            max_waiting_bytes: Bound { each: 64 << 20, total: 160 << 20 },
            lame_duck: Duration::ZERO,
            drain_limit: Duration::from_secs(10),
        }
    }
}
