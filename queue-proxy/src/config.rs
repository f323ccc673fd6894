//! The environment contract: what the revision's Deployment tells its sidecar.
//!
//! Parsing works on any map, never on the process environment, so that it can be tested. Names and fatal errors are
//! upstream's. Variables that only we know are listed at the end of `names`.

mod observability;
mod values;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use telemetry::environment::{self, Environment, Mistake, Scraped, TlsNames};

pub use self::observability::Observability;
use crate::{DrainRule, Probe, otlp::Otel, tls::TlsSettings};

/// Names of the environment variables.
mod names {
    pub(super) const CONCURRENCY: &str = "CONTAINER_CONCURRENCY";
    pub(super) const SERVING_PORT: &str = "QUEUE_SERVING_PORT";
    pub(super) const SERVING_TLS_PORT: &str = "QUEUE_SERVING_TLS_PORT";
    pub(super) const USER_PORT: &str = "USER_PORT";
    pub(super) const TIMEOUT: &str = "REVISION_TIMEOUT_SECONDS";
    pub(super) const RESPONSE_START_TIMEOUT: &str = "REVISION_RESPONSE_START_TIMEOUT_SECONDS";
    pub(super) const IDLE_TIMEOUT: &str = "REVISION_IDLE_TIMEOUT_SECONDS";
    pub(super) const READINESS_PROBE: &str = "SERVING_READINESS_PROBE";
    pub(super) const HTTP2_DETECTION: &str = "ENABLE_HTTP2_AUTO_DETECTION";
    pub(super) const FULL_DUPLEX: &str = "ENABLE_HTTP_FULL_DUPLEX";
    pub(super) const MULTI_PROBES: &str = "ENABLE_MULTI_CONTAINER_PROBES";
    pub(super) const LOGGING_CONFIG: &str = "SERVING_LOGGING_CONFIG";
    pub(super) const LOGGING_LEVEL: &str = "SERVING_LOGGING_LEVEL";
    pub(super) const NAMESPACE: &str = "SERVING_NAMESPACE";
    pub(super) const SERVICE: &str = "SERVING_SERVICE";
    pub(super) const CONFIGURATION: &str = "SERVING_CONFIGURATION";
    pub(super) const REVISION: &str = "SERVING_REVISION";
    pub(super) const POD: &str = "SERVING_POD";
    pub(super) const POD_IP: &str = "SERVING_POD_IP";
    pub(super) const OBSERVABILITY: &str = "OBSERVABILITY_CONFIG";

    pub(super) const PROFILING_PORT: &str = "PROFILING_PORT";

    /// Ours: answer with a `Server-Timing` header.
    pub(super) const SERVER_TIMING: &str = "QUEUE_SERVER_TIMING";
    /// Ours: how long nothing may be in flight before a drain is over, without waiting for upstream's quiet period.
    /// For installations that take a pod out of routing before they delete it. Unset: upstream's rule alone.
    pub(super) const DRAIN_IDLE: &str = "QUEUE_DRAIN_IDLE_PERIOD";
    /// Ours: the quiet period itself.
    pub(super) const DRAIN_QUIET: &str = "QUEUE_DRAIN_QUIET_PERIOD";
    /// Ours: how many bytes the requests that wait for a slot may hold together.
    pub(super) const PENDING_BYTES: &str = "QUEUE_MAX_PENDING_BYTES";
    /// Ours: worker threads; 1 unless set.
    pub(super) const THREADS: &str = "QUEUE_PROXY_THREADS";
}

/// Where the kubelet's hook asks for the drain.
pub(crate) const ADMIN_PORT: u16 = 8022;
/// Where the autoscaler scrapes.
pub(crate) const AUTOSCALING_PORT: u16 = 9090;
/// Where Prometheus scrapes.
pub(crate) const METRICS_PORT: u16 = 9091;
const CERTIFICATES: &str = "/var/lib/knative/certs";
/// Well below the memory that upstream's resource defaults give a sidecar, and far above what requests without large
/// heads can hold while they wait.
const PENDING_BYTES: usize = 64 << 20;

const TLS: TlsNames = [
    "QUEUE_PROXY_TLS_MIN_VERSION",
    "QUEUE_PROXY_TLS_MAX_VERSION",
    "QUEUE_PROXY_TLS_CIPHER_SUITES",
    "QUEUE_PROXY_TLS_CURVE_PREFERENCES",
];

#[derive(Debug, Clone)]
pub struct Config {
    pub container_concurrency: u32,
    pub serving_port: u16,
    pub serving_tls_port: u16,
    pub admin_port: u16,
    pub autoscaling_port: u16,
    pub user_port: u16,
    pub timeout: Duration,
    pub response_start_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    /// All of them have to pass; none: always ready.
    pub readiness_probes: Vec<Probe>,
    /// Find out for every probe whether the program speaks HTTP/2.
    pub http2_detection: bool,
    pub log_level: String,
    pub namespace: String,
    pub service: String,
    pub configuration: String,
    pub revision: String,
    pub pod: String,
    pub pod_ip: Option<IpAddr>,
    pub drain: DrainRule,
    pub threads: usize,
    /// Where `tls.crt` and `tls.key` are, if there are any.
    pub certificates: PathBuf,
    pub tls: TlsSettings,
    pub observability: Observability,
    /// Where Prometheus scrapes request metrics.
    pub metrics: Scraped,
    pub profiling_port: u16,
    pub otel: Otel,
    pub server_timing: bool,
    /// What the requests that wait for a slot may hold together.
    pub pending_bytes: usize,
}

/// The environment is not what it has to be; the process ends with this text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("required key {0} missing value")]
    Missing(&'static str),
    #[error(transparent)]
    Mistake(#[from] Mistake),
    #[error("{0} cannot be parsed: {1}")]
    Json(&'static str, String),
}

// === impl Config ===

impl Config {
    /// # Errors
    /// The first variable that is missing or makes no sense.
    pub fn parse(env: &Environment) -> Result<Self, ConfigError> {
        use names as n;
        let vars = values::Variables(env);
        for required in [n::LOGGING_CONFIG, n::CONFIGURATION] {
            vars.required(required)?;
        }
        // Requests and responses always stream both ways, and a list of probes says itself that there are several.
        for without_effect in [n::FULL_DUPLEX, n::MULTI_PROBES] {
            vars.boolean(without_effect)?;
        }
        let observability = Observability::parse(vars.text(n::OBSERVABILITY).unwrap_or(""))
            .map_err(|error| ConfigError::Json(n::OBSERVABILITY, error))?;
        let concurrency = vars.integer(n::CONCURRENCY)?.ok_or(ConfigError::Missing(n::CONCURRENCY))?;
        let timeout = vars.integer(n::TIMEOUT)?.ok_or(ConfigError::Missing(n::TIMEOUT))?;
        let seconds =
            |value: Option<i64>| value.filter(|value| *value > 0).map(|value| Duration::from_secs(value as u64));
        let user_port = vars.port(n::USER_PORT)?;
        Ok(Self {
            container_concurrency: u32::try_from(concurrency).unwrap_or(0),
            serving_port: vars.port(n::SERVING_PORT)?,
            serving_tls_port: vars.port(n::SERVING_TLS_PORT)?,
            admin_port: ADMIN_PORT,
            autoscaling_port: AUTOSCALING_PORT,
            user_port,
            timeout: Duration::from_secs(u64::try_from(timeout).unwrap_or(0)),
            response_start_timeout: seconds(vars.integer(n::RESPONSE_START_TIMEOUT)?),
            idle_timeout: seconds(vars.integer(n::IDLE_TIMEOUT)?),
            readiness_probes: Probe::parse(vars.text(n::READINESS_PROBE).unwrap_or(""), user_port)
                .map_err(|error| ConfigError::Json(n::READINESS_PROBE, error))?,
            http2_detection: vars.boolean(n::HTTP2_DETECTION)?.unwrap_or(false),
            log_level: vars.required(n::LOGGING_LEVEL)?.to_owned(),
            namespace: vars.required(n::NAMESPACE)?.to_owned(),
            service: vars.text(n::SERVICE).unwrap_or("").to_owned(),
            configuration: vars.required(n::CONFIGURATION)?.to_owned(),
            revision: vars.required(n::REVISION)?.to_owned(),
            pod: vars.required(n::POD)?.to_owned(),
            pod_ip: vars.required(n::POD_IP)?.parse().ok(),
            drain: DrainRule {
                quiet: vars.duration(n::DRAIN_QUIET)?.unwrap_or_else(|| DrainRule::default().quiet),
                idle: vars.duration(n::DRAIN_IDLE)?,
            },
            threads: vars.integer(n::THREADS)?.map_or(1, |threads| threads.clamp(1, 64) as usize),
            certificates: CERTIFICATES.into(),
            tls: environment::tls(env, TLS)?,
            metrics: Scraped::of(env, observability.scraped(), n::OBSERVABILITY, METRICS_PORT)?,
            observability,
            profiling_port: vars.optional_port(n::PROFILING_PORT)?.unwrap_or(telemetry::profiling::PORT),
            otel: Otel(
                env.range("OTEL_".to_owned()..).take_while(|(name, _)| name.starts_with("OTEL_")).map(owned).collect(),
            ),
            server_timing: vars.boolean(n::SERVER_TIMING)?.unwrap_or(false),
            pending_bytes: vars
                .integer(n::PENDING_BYTES)?
                .map_or(PENDING_BYTES, |bytes| usize::try_from(bytes).unwrap_or(0)),
        })
    }

    /// How often request metrics are sent; zero: OpenTelemetry's default.
    pub(crate) fn export_interval(&self) -> Duration {
        let configured = Duration::from_nanos(self.observability.request_metrics.export_interval);
        self.otel.milliseconds("OTEL_METRIC_EXPORT_INTERVAL").unwrap_or(configured)
    }
}

fn owned((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(changes: &[(&str, Option<&str>)]) -> Environment {
        let mut env: Environment = [
            ("CONTAINER_CONCURRENCY", "0"),
            ("QUEUE_SERVING_PORT", "8012"),
            ("QUEUE_SERVING_TLS_PORT", "8112"),
            ("USER_PORT", "8080"),
            ("REVISION_TIMEOUT_SECONDS", "300"),
            ("SERVING_LOGGING_CONFIG", ""),
            ("SERVING_LOGGING_LEVEL", ""),
            ("SERVING_NAMESPACE", "default"),
            ("SERVING_CONFIGURATION", "hello"),
            ("SERVING_REVISION", "hello-00001"),
            ("SERVING_POD", "hello-00001-deployment-x"),
            ("SERVING_POD_IP", "10.244.0.7"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        for (name, value) in changes {
            match value {
                Some(value) => env.insert((*name).to_owned(), (*value).to_owned()),
                None => env.remove(*name),
            };
        }
        env
    }

    #[test]
    fn the_least_environment_gives_the_defaults() {
        let config = Config::parse(&env(&[])).expect("complete");
        assert_eq!((config.container_concurrency, config.timeout.as_secs()), (0, 300));
        assert_eq!((config.response_start_timeout, config.idle_timeout), (None, None));
        assert_eq!((config.drain.quiet.as_secs(), config.drain.idle, config.threads), (30, None, 1));
        assert!(config.readiness_probes.is_empty());
    }

    #[test]
    fn numbers_may_be_hexadecimal_and_must_be_numbers() {
        let config = Config::parse(&env(&[("CONTAINER_CONCURRENCY", Some("0x10"))])).expect("16");
        assert_eq!(config.container_concurrency, 16);
        for bad in ["", "ten", "1.5"] {
            let error = Config::parse(&env(&[("CONTAINER_CONCURRENCY", Some(bad))])).expect_err(bad);
            assert!(
                matches!(error, ConfigError::Mistake(Mistake::Invalid { name: "CONTAINER_CONCURRENCY", .. })),
                "{error}"
            );
        }
        let error = Config::parse(&env(&[("ENABLE_HTTP2_AUTO_DETECTION", Some(""))])).expect_err("set but empty");
        assert!(matches!(error, ConfigError::Mistake(Mistake::Invalid { .. })));
    }

    #[test]
    fn what_is_required_may_be_empty_but_not_absent() {
        let error = Config::parse(&env(&[("SERVING_POD", None)])).expect_err("missing");
        assert_eq!(error, ConfigError::Missing("SERVING_POD"));
        assert!(Config::parse(&env(&[("SERVING_POD_IP", Some(""))])).is_ok());
    }

    #[test]
    fn broken_json_is_fatal() {
        for name in ["SERVING_READINESS_PROBE", "OBSERVABILITY_CONFIG"] {
            assert!(matches!(Config::parse(&env(&[(name, Some("{"))])), Err(ConfigError::Json(..))), "{name}");
        }
    }

    #[test]
    fn observability_and_tls_are_read() {
        let json = r#"{"requestMetrics":{"protocol":"prometheus","exportInterval":1000},"enableRequestLog":true,
            "requestLogTemplate":"x","EnableVarLogCollection":true,"runtime":{"profiling":"enabled"}}"#;
        let config = Config::parse(&env(&[
            ("OBSERVABILITY_CONFIG", Some(json)),
            ("QUEUE_PROXY_TLS_MIN_VERSION", Some("1.2")),
            ("QUEUE_PROXY_TLS_MAX_VERSION", Some("")),
        ]))
        .expect("valid");
        assert_eq!(config.tls, TlsSettings::parse("1.2", "", "", "").expect("valid"));
        assert_eq!(config.observability.log_template(), Some("x"));
        assert!(config.observability.prometheus() && config.observability.profiling());
        for (name, value) in [
            ("QUEUE_PROXY_TLS_MIN_VERSION", "1.1"),
            ("QUEUE_PROXY_TLS_MAX_VERSION", "1.2"),
            ("QUEUE_PROXY_TLS_CIPHER_SUITES", "none"),
            ("QUEUE_PROXY_TLS_CURVE_PREFERENCES", "none"),
        ] {
            let error = Config::parse(&env(&[(name, Some(value))])).expect_err(name);
            assert!(
                matches!(error, ConfigError::Mistake(Mistake::Invalid { name: named, .. }) if named == name),
                "{error}"
            );
        }
        for json in [r#"{"requestMetrics":{"protocol":"statsd"}}"#, r#"{"tracing":{"protocol":"zipkin"}}"#] {
            assert!(Config::parse(&env(&[("OBSERVABILITY_CONFIG", Some(json))])).is_err(), "{json}");
        }
    }

    #[test]
    fn where_prometheus_scrapes_can_be_chosen() {
        let listener = |changes: &[(&str, Option<&str>)]| {
            let json = r#"{"requestMetrics":{"protocol":"prometheus","endpoint":"127.0.0.1:9999"}}"#;
            let changes: Vec<_> =
                [("OBSERVABILITY_CONFIG", Some(json))].into_iter().chain(changes.iter().copied()).collect();
            Config::parse(&env(&changes)).map(|config| config.metrics)
        };
        let plain = listener(&[]).expect("valid");
        assert_eq!((&*plain.host, plain.port, plain.tls), ("127.0.0.1", 9999, None));
        let other = listener(&[("METRICS_PROMETHEUS_HOST", Some("")), ("METRICS_PROMETHEUS_PORT", Some("1024"))]);
        let other = other.expect("valid");
        assert_eq!((&*other.host, other.port), ("127.0.0.1", 1024));
        let pushed = r#"{"requestMetrics":{"protocol":"grpc","endpoint":"http://c:4317"}}"#;
        let pushed = Config::parse(&env(&[("OBSERVABILITY_CONFIG", Some(pushed))])).expect("valid").metrics;
        assert_eq!((&*pushed.host, pushed.port), ("", METRICS_PORT));
        let files = [("METRICS_PROMETHEUS_TLS_CERT", Some("c")), ("METRICS_PROMETHEUS_TLS_KEY", Some("k"))];
        assert!(listener(&files).expect("valid").tls.is_some());
        for bad in [&[("METRICS_PROMETHEUS_PORT", Some("80"))][..], &files[..1]] {
            assert!(listener(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn opentelemetrys_variables_are_kept_and_the_interval_is_theirs_first() {
        let json = r#"{"requestMetrics":{"protocol":"grpc","endpoint":"http://c","exportInterval":5000000000}}"#;
        let config = Config::parse(&env(&[("OBSERVABILITY_CONFIG", Some(json)), ("OTEL_SERVICE_NAME", Some("mine"))]));
        let config = config.expect("valid");
        assert_eq!((config.otel.get("OTEL_SERVICE_NAME"), config.export_interval().as_secs()), (Some("mine"), 5));
        let sooner = [("OBSERVABILITY_CONFIG", Some(json)), ("OTEL_METRIC_EXPORT_INTERVAL", Some("250"))];
        let config = Config::parse(&env(&sooner)).expect("valid");
        assert_eq!(config.export_interval().as_millis(), 250);
    }

    #[test]
    fn our_own_drain_rule_is_read_as_a_duration() {
        let config = Config::parse(&env(&[("QUEUE_DRAIN_IDLE_PERIOD", Some("250ms"))])).expect("valid");
        assert_eq!(config.drain.idle, Some(Duration::from_millis(250)));
    }
}
