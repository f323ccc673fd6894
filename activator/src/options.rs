//! What an activator needs to know, with upstream's environment as one way to say it.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use api::config::Observability;
use controller::Config;
use observe::Registry;
use telemetry::{
    Lines,
    otlp::Otel,
    tls::{ClientAuth, Paths, TlsSettings, Which},
};

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
    pub metrics_tls: Option<MetricsTls>,
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

/// Certificate and key of `/metrics`, what is offered, and whose certificates clients have to show.
pub type MetricsTls = (Paths, TlsSettings, Option<ClientAuth>);

const MAX_IDLE: Bound = Bound { each: 100, total: 1000 };

/// How one of several pods is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadBalancing {
    Always(Policy),
    /// By containerConcurrency: the less busy of two without it, the first that is free up to 3, in turn from 4.
    AsUpstream,
}

/// An environment that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("required key {0} missing value")]
    Missing(&'static str),
    #[error("{0} has the value {1:?}, which is not a duration such as 300ms")]
    Duration(&'static str, String),
    #[error("{0} has the value {1:?}, which is not a port")]
    Port(&'static str, String),
    #[error("{0} has the value {1:?}, which is not a number")]
    Number(&'static str, String),
    #[error("{0} has the value {1:?} instead of {2}")]
    Choice(&'static str, String, &'static str),
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

impl Options {
    /// The environment of upstream's Deployment, and `LOAD_BALANCING`, `SERVER_TIMING` and `ENDPOINT_SLICES`, which are ours.
    ///
    /// # Errors
    /// The first variable that is missing or makes no sense.
    pub fn from_env(env: &BTreeMap<String, String>, cluster_domain: &str) -> Result<Self, ParseError> {
        let required = |name| env.get(name).cloned().ok_or(ParseError::Missing(name));
        let system_namespace = required("SYSTEM_NAMESPACE")?;
        // Nothing here happens at a frequency, but a value that makes no sense is a mistake all the same.
        duration(env, "PROBE_FREQUENCY")?;
        Ok(Self {
            metrics: port(env, "METRICS_PROMETHEUS_PORT")?.map(|port| ([0, 0, 0, 0], port).into()),
            metrics_tls: metrics_tls(env)?,
            profiling: Some(([0, 0, 0, 0], port(env, "PROFILING_PORT")?.unwrap_or(8008)).into()),
            server_timing: env.get("SERVER_TIMING").is_some_and(|text| text == "true"),
            // Whoever lists pods by hand writes what upstream reads, and mirrors it in no slice.
            endpoint_slices: env.get("ENDPOINT_SLICES").is_some_and(|text| text == "true"),
            autoscaler_url: format!("ws://autoscaler.{system_namespace}.svc.{cluster_domain}:8080"),
            service_name: env.get("OTEL_SERVICE_NAME").map_or("activator", String::as_str).to_owned(),
            pod_name: required("POD_NAME")?,
            pod_ip: required("POD_IP")?,
            probe_limit: duration(env, "PROBE_TIMEOUT")?.unwrap_or(Duration::from_millis(300)),
            max_idle: Bound {
                each: number(env, "MAX_IDLE_PROXY_CONNS_PER_HOST")?.unwrap_or(MAX_IDLE.each),
                total: number(env, "MAX_IDLE_PROXY_CONNS")?.unwrap_or(MAX_IDLE.total),
            },
            workers: number(env, "WORKER_THREADS")?.unwrap_or(0),
            otel: Otel::of(env.clone()),
            load_balancing: load_balancing(env)?,
            tls: tls(env, ACTIVATOR_TLS)?,
            lame_duck: Duration::from_secs(45),
            drain_limit: Duration::from_secs(540),
            ..Self::default()
        })
    }
}

fn duration(env: &BTreeMap<String, String>, name: &'static str) -> Result<Option<Duration>, ParseError> {
    let parse = |text: &String| {
        let nanos = api::go::parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok());
        nanos.map(Duration::from_nanos).ok_or_else(|| ParseError::Duration(name, text.clone()))
    };
    env.get(name).map(parse).transpose()
}

fn port(env: &BTreeMap<String, String>, name: &'static str) -> Result<Option<u16>, ParseError> {
    let parse = |text: &String| text.parse().map_err(|_| ParseError::Port(name, text.clone()));
    env.get(name).map(parse).transpose()
}

fn number(env: &BTreeMap<String, String>, name: &'static str) -> Result<Option<usize>, ParseError> {
    let parse = |text: &String| text.parse().map_err(|_| ParseError::Number(name, text.clone()));
    env.get(name).map(parse).transpose()
}

fn load_balancing(env: &BTreeMap<String, String>) -> Result<LoadBalancing, ParseError> {
    const NAME: &str = "LOAD_BALANCING";
    let policy = match env.get(NAME).map(String::as_str) {
        None | Some("" | "least-of-two") => Policy::LeastOfTwo,
        Some("upstream") => return Ok(LoadBalancing::AsUpstream),
        Some("first-available") => Policy::FirstAvailable,
        Some("round-robin") => Policy::RoundRobin,
        Some("random") => Policy::Random,
        Some(other) => {
            let choices = "least-of-two, upstream, first-available, round-robin or random";
            return Err(ParseError::Choice(NAME, other.to_owned(), choices));
        }
    };
    Ok(LoadBalancing::Always(policy))
}

/// The four variables of a prefix, in the order of `TlsSettings::parse`.
type TlsNames = [&'static str; 4];

const ACTIVATOR_TLS: TlsNames = [
    "ACTIVATOR_TLS_MIN_VERSION",
    "ACTIVATOR_TLS_MAX_VERSION",
    "ACTIVATOR_TLS_CIPHER_SUITES",
    "ACTIVATOR_TLS_CURVE_PREFERENCES",
];
const METRICS_TLS: TlsNames = [
    "METRICS_PROMETHEUS_TLS_MIN_VERSION",
    "METRICS_PROMETHEUS_TLS_MAX_VERSION",
    "METRICS_PROMETHEUS_TLS_CIPHER_SUITES",
    "METRICS_PROMETHEUS_TLS_CURVE_PREFERENCES",
];

/// Certificate and key of `/metrics`, and who has to show one.
fn metrics_tls(env: &BTreeMap<String, String>) -> Result<Option<MetricsTls>, ParseError> {
    const CERTIFICATE: &str = "METRICS_PROMETHEUS_TLS_CERT";
    const KEY: &str = "METRICS_PROMETHEUS_TLS_KEY";
    const AUTH: &str = "METRICS_PROMETHEUS_TLS_CLIENT_AUTH";
    const AUTHORITIES: &str = "METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE";
    let path = |name| env.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let files = match (path(CERTIFICATE), path(KEY)) {
        (Some(certificate), Some(key)) => Paths { certificate, key },
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(ParseError::Missing(KEY)),
        (None, Some(_)) => return Err(ParseError::Missing(CERTIFICATE)),
    };
    let auth = match env.get(AUTH).map_or("", String::as_str) {
        "" | "none" => None,
        asked @ ("optional" | "require") => {
            let authorities = path(AUTHORITIES).ok_or(ParseError::Missing(AUTHORITIES))?;
            Some(ClientAuth { authorities, required: asked == "require" })
        }
        other => return Err(ParseError::Choice(AUTH, other.to_owned(), "none, optional or require")),
    };
    Ok(Some((files, tls(env, METRICS_TLS)?, auth)))
}

fn tls(env: &BTreeMap<String, String>, names: TlsNames) -> Result<TlsSettings, ParseError> {
    let values = names.map(|name| env.get(name).map_or("", String::as_str));
    TlsSettings::parse(values[0], values[1], values[2], values[3]).map_err(|mistake| {
        let index = match mistake.which {
            Which::Min => 0,
            Which::Max => 1,
            Which::Suites => 2,
            Which::Curves => 3,
        };
        ParseError::Choice(names[index], values[index].to_owned(), mistake.expected)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_environment_is_understood() {
        let mut env: BTreeMap<String, String> =
            [("POD_NAME", "activator-1"), ("POD_IP", "10.0.0.1"), ("SYSTEM_NAMESPACE", "knative-serving")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
        let options = Options::from_env(&env, "cluster.local").expect("complete");
        assert_eq!(options.autoscaler_url, "ws://autoscaler.knative-serving.svc.cluster.local:8080");
        assert_eq!((options.probe_limit.as_millis(), options.lame_duck.as_secs()), (300, 45));
        env.insert("PROBE_TIMEOUT".into(), "soon".into());
        assert!(matches!(Options::from_env(&env, "cluster.local"), Err(ParseError::Duration("PROBE_TIMEOUT", _))));
        env.remove("PROBE_TIMEOUT");
        for (name, value) in [("LOAD_BALANCING", "fair"), ("ACTIVATOR_TLS_MIN_VERSION", "1.1"), ("PROFILING_PORT", "x")]
        {
            env.insert(name.into(), value.into());
            let error = Options::from_env(&env, "cluster.local").expect_err(name).to_string();
            assert!(error.starts_with(name) && error.contains(value), "{error}");
            env.remove(name);
        }
        env.insert("METRICS_PROMETHEUS_TLS_CERT".into(), "/tls.crt".into());
        let error = Options::from_env(&env, "cluster.local").expect_err("no key");
        assert_eq!(error, ParseError::Missing("METRICS_PROMETHEUS_TLS_KEY"));
        env.insert("METRICS_PROMETHEUS_TLS_KEY".into(), "/tls.key".into());
        env.insert("METRICS_PROMETHEUS_TLS_CLIENT_AUTH".into(), "require".into());
        env.insert("METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE".into(), "/ca.crt".into());
        let (files, _, auth) =
            Options::from_env(&env, "cluster.local").expect("complete").metrics_tls.expect("asked for");
        assert_eq!((files.key, auth.map(|auth| auth.required)), (PathBuf::from("/tls.key"), Some(true)));
        env.insert("LOAD_BALANCING".into(), "upstream".into());
        assert!(
            !Options::from_env(&env, "cluster.local").expect("complete").endpoint_slices,
            "what upstream reads, unless it is asked for"
        );
        env.insert("ENDPOINT_SLICES".into(), "true".into());
        assert!(Options::from_env(&env, "cluster.local").expect("complete").endpoint_slices);
        let options = Options::from_env(&env, "cluster.local").expect("complete");
        assert_eq!(options.load_balancing, LoadBalancing::AsUpstream);
        env.remove("POD_NAME");
        assert_eq!(Options::from_env(&env, "cluster.local").expect_err("missing"), ParseError::Missing("POD_NAME"));
    }
}
