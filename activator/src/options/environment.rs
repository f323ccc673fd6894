//! Upstream's environment.
//!
//! A variable is taken as upstream's programs take it: what they refuse is refused here before a port is bound, and
//! what they ignore is ignored. Numbers may be written in any of Go's bases.

use std::{str::FromStr, time::Duration};

use telemetry::{
    environment::{Environment, Mistake, TlsNames, integer, set, tls},
    otlp::Otel,
};

use super::{Bound, LoadBalancing, MAX_IDLE, Options, Policy};

/// An environment that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("required key {0} missing value: set it, as upstream's Deployment does")]
    Missing(&'static str),
    #[error(transparent)]
    Mistake(#[from] Mistake),
}

const ACTIVATOR_TLS: TlsNames = [
    "ACTIVATOR_TLS_MIN_VERSION",
    "ACTIVATOR_TLS_MAX_VERSION",
    "ACTIVATOR_TLS_CIPHER_SUITES",
    "ACTIVATOR_TLS_CURVE_PREFERENCES",
];

const PROFILING_PORT: u16 = 8008;
/// What Go's HTTP client keeps for a host if it is asked for none in particular.
const GO_IDLE_PER_HOST: usize = 2;
/// More than there can be.
const UNLIMITED: usize = u32::MAX as usize;

impl Options {
    /// The environment of upstream's Deployment, and `LOAD_BALANCING`, `SERVER_TIMING`, `ENDPOINT_SLICES` and
    /// `WORKER_THREADS`, which are ours.
    ///
    /// # Errors
    /// The first variable that is missing or makes no sense.
    pub fn from_env(env: &Environment, cluster_domain: &str) -> Result<Self, ParseError> {
        let required = |name| env.get(name).cloned().ok_or(ParseError::Missing(name));
        let system_namespace = set(env, "SYSTEM_NAMESPACE").ok_or(ParseError::Missing("SYSTEM_NAMESPACE"))?;
        // Nothing here happens at a frequency, but a value that makes no sense is a mistake all the same.
        duration(env, "PROBE_FREQUENCY")?;
        // They slow nobody down here.
        for name in ["KUBE_API_QPS", "KUBE_API_BURST"] {
            rate(env, name)?;
        }
        let profiling = parsed(env, "PROFILING_PORT", "a port from 0 to 65535")?.unwrap_or(PROFILING_PORT);
        let per_host = whole(env, "MAX_IDLE_PROXY_CONNS_PER_HOST")?.map(|count| match count {
            0 => GO_IDLE_PER_HOST,
            count => usize::try_from(count).unwrap_or(0),
        });
        let in_total = whole(env, "MAX_IDLE_PROXY_CONNS")?.map(|count| match count {
            0 => UNLIMITED,
            count => usize::try_from(count).unwrap_or(0),
        });
        Ok(Self {
            profiling: Some(([0, 0, 0, 0], profiling).into()),
            server_timing: switch(env, "SERVER_TIMING")?,
            // Whoever lists pods by hand writes what upstream reads, and mirrors it in no slice.
            endpoint_slices: switch(env, "ENDPOINT_SLICES")?,
            autoscaler_url: format!("ws://autoscaler.{system_namespace}.svc.{cluster_domain}:8080"),
            service_name: set(env, "OTEL_SERVICE_NAME").unwrap_or("activator").to_owned(),
            pod_name: required("POD_NAME")?,
            pod_ip: required("POD_IP")?,
            probe_limit: duration(env, "PROBE_TIMEOUT")?.unwrap_or(Duration::from_millis(300)),
            max_idle: Bound {
                each: per_host.unwrap_or(MAX_IDLE.each).min(UNLIMITED),
                total: in_total.unwrap_or(MAX_IDLE.total).min(UNLIMITED),
            },
            workers: parsed(env, "WORKER_THREADS", "a number of threads")?.unwrap_or(0),
            otel: Otel::of(env.clone()),
            load_balancing: load_balancing(env)?,
            tls: tls(env, ACTIVATOR_TLS)?,
            lame_duck: Duration::from_secs(45),
            drain_limit: Duration::from_secs(540),
            ..Self::default()
        })
    }
}

/// A variable that may be empty.
fn parsed<T: FromStr>(env: &Environment, name: &'static str, expected: &'static str) -> Result<Option<T>, Mistake> {
    set(env, name).map(|text| text.parse().map_err(|_| Mistake::invalid(name, text, expected))).transpose()
}

/// One that, if it is there, says something.
fn duration(env: &Environment, name: &'static str) -> Result<Option<Duration>, Mistake> {
    let parse = |text: &String| {
        let nanos = api::go::parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok());
        nanos.map(Duration::from_nanos).ok_or_else(|| Mistake::invalid(name, text, "a duration such as 300ms"))
    };
    env.get(name).map(parse).transpose()
}

/// The same.
fn whole(env: &Environment, name: &'static str) -> Result<Option<i64>, Mistake> {
    let parse = |text: &String| integer(text).ok_or_else(|| Mistake::invalid(name, text, "a whole number"));
    env.get(name).map(parse).transpose()
}

fn rate(env: &Environment, name: &'static str) -> Result<Option<f64>, Mistake> {
    const EXPECTED: &str = "a number from 0 on";
    let rate: Option<f64> = parsed(env, name, EXPECTED)?;
    match rate {
        Some(rate) if rate < 0.0 || rate > f64::from(f32::MAX) => {
            Err(Mistake::invalid(name, set(env, name).unwrap_or_default(), EXPECTED))
        }
        rate => Ok(rate),
    }
}

/// One of ours.
fn switch(env: &Environment, name: &'static str) -> Result<bool, Mistake> {
    Ok(parsed(env, name, "true or false")?.unwrap_or(false))
}

fn load_balancing(env: &Environment) -> Result<LoadBalancing, Mistake> {
    const NAME: &str = "LOAD_BALANCING";
    let policy = match set(env, NAME) {
        None | Some("least-of-two") => Policy::LeastOfTwo,
        Some("upstream") => return Ok(LoadBalancing::AsUpstream),
        Some("first-available") => Policy::FirstAvailable,
        Some("round-robin") => Policy::RoundRobin,
        Some("random") => Policy::Random,
        Some(other) => {
            let choices = "least-of-two, upstream, first-available, round-robin or random";
            return Err(Mistake::invalid(NAME, other, choices));
        }
    };
    Ok(LoadBalancing::Always(policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's Deployment, and this.
    fn with(variables: &[(&str, &str)]) -> Result<Options, ParseError> {
        let deployment = [("POD_NAME", "activator-1"), ("POD_IP", "10.0.0.1"), ("SYSTEM_NAMESPACE", "knative-serving")];
        let all = deployment.iter().chain(variables);
        let env = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Options::from_env(&env, "cluster.local")
    }

    #[test]
    fn upstreams_environment_is_understood() {
        let options = with(&[]).expect("complete");
        assert_eq!(options.autoscaler_url, "ws://autoscaler.knative-serving.svc.cluster.local:8080");
        assert_eq!((options.probe_limit.as_millis(), options.lame_duck.as_secs()), (300, 45));
        assert!(!options.endpoint_slices, "what upstream reads, unless it is asked for");
        assert_eq!(options.profiling.map(|address| address.port()), Some(8008));
        let options = with(&[("ENDPOINT_SLICES", "true"), ("LOAD_BALANCING", "upstream"), ("PROFILING_PORT", "8009")]);
        let options = options.expect("complete");
        assert!(options.endpoint_slices && options.load_balancing == LoadBalancing::AsUpstream);
        assert_eq!(options.profiling.map(|address| address.port()), Some(8009));
        let env = Environment::from([("SYSTEM_NAMESPACE".to_owned(), "a".to_owned())]);
        assert_eq!(Options::from_env(&env, "cluster.local").expect_err("missing"), ParseError::Missing("POD_NAME"));
    }

    #[test]
    fn what_upstream_ignores_is_ignored() {
        let empty = ["PROFILING_PORT", "KUBE_API_QPS", "KUBE_API_BURST", "ACTIVATOR_TLS_MIN_VERSION", "POD_IP"];
        let empty = empty.map(|name| (name, ""));
        assert_eq!(with(&empty).expect("complete").profiling.map(|address| address.port()), Some(8008));
        // There is nothing to slow down.
        with(&[("KUBE_API_QPS", "1e3"), ("KUBE_API_BURST", "10.5")]).expect("numbers");
        // Whether anybody scrapes is not known yet.
        with(&[("METRICS_PROMETHEUS_PORT", "80"), ("METRICS_PROMETHEUS_TLS_CERT", "/a")]).expect("not used");
    }

    #[test]
    fn what_upstream_refuses_is_refused_with_variable_and_value() {
        for (name, value) in [
            ("PROBE_TIMEOUT", "soon"),
            ("PROBE_FREQUENCY", ""),
            ("MAX_IDLE_PROXY_CONNS", ""),
            ("MAX_IDLE_PROXY_CONNS_PER_HOST", "ten"),
            ("PROFILING_PORT", "99999"),
            ("KUBE_API_QPS", "-1"),
            ("KUBE_API_BURST", "many"),
            ("ACTIVATOR_TLS_MIN_VERSION", "1.1"),
            ("LOAD_BALANCING", "fair"),
            ("SERVER_TIMING", "yes"),
            ("WORKER_THREADS", "-1"),
        ] {
            let error = with(&[(name, value)]).expect_err(name).to_string();
            assert!(
                error.starts_with(&format!("{name} has the value {value:?}")) && error.contains("correct it"),
                "{error}"
            );
        }
        assert_eq!(with(&[("SYSTEM_NAMESPACE", "")]).expect_err("empty"), ParseError::Missing("SYSTEM_NAMESPACE"));
    }

    #[test]
    fn idle_connections_are_counted_as_go_counts_them() {
        let idle = |total, each| {
            let variables = [("MAX_IDLE_PROXY_CONNS", total), ("MAX_IDLE_PROXY_CONNS_PER_HOST", each)];
            let bound = with(&variables).expect("numbers").max_idle;
            (bound.total, bound.each)
        };
        assert_eq!(idle("0x20", "020"), (32, 16));
        assert_eq!(idle("0", "0"), (UNLIMITED, GO_IDLE_PER_HOST));
        assert_eq!(idle("-1", "-1"), (0, 0));
        assert_eq!(idle("1_000", "+7"), (1000, 7));
    }
}
