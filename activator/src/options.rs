//! What an activator needs to know, with upstream's environment as one way to say it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

pub use crate::throttler::Bound;

/// How an activator runs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where HTTP/1.1 comes in; HTTP/2 with prior knowledge is understood as well.
    pub listen_http: SocketAddr,
    /// Where HTTP/2 comes in; HTTP/1.1 is understood as well.
    pub listen_h2c: SocketAddr,
    /// Where `/metrics` is served, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Answer with a `Server-Timing` header: how long a request waited, and how long its pod took.
    pub server_timing: bool,
    /// Where reports go: `ws://host:port`.
    pub autoscaler_url: String,
    /// Name in the reports.
    pub pod_name: String,
    /// This activator's address among others.
    pub pod_ip: String,
    /// How long one probe of a pod may take before it is repeated on a new connection.
    pub probe_limit: Duration,
    /// Requests that may wait.
    pub max_waiting: Bound,
    /// Bytes that waiting requests may hold (their headers, and what is received of their bodies).
    pub max_waiting_bytes: Bound,
    /// How long to go on after probes have begun to fail, until nobody sends requests any more.
    pub lame_duck: Duration,
    /// How long requests in flight may take after that.
    pub drain_limit: Duration,
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
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            listen_http: ([0, 0, 0, 0], 8012).into(),
            listen_h2c: ([0, 0, 0, 0], 8013).into(),
            metrics: None,
            server_timing: false,
            autoscaler_url: "ws://autoscaler.knative-serving.svc.cluster.local:8080".to_owned(),
            pod_name: "activator".to_owned(),
            pod_ip: "127.0.0.1".to_owned(),
            probe_limit: Duration::from_secs(1),
            max_waiting: Bound { per_revision: 20_000, total: 50_000 },
            max_waiting_bytes: Bound { per_revision: 64 << 20, total: 160 << 20 },
            lame_duck: Duration::ZERO,
            drain_limit: Duration::from_secs(10),
        }
    }
}

impl Options {
    /// The environment of upstream's Deployment.
    ///
    /// # Errors
    /// The first variable that is missing or makes no sense.
    pub fn from_env(env: &BTreeMap<String, String>, cluster_domain: &str) -> Result<Self, ParseError> {
        let required = |name| env.get(name).cloned().ok_or(ParseError::Missing(name));
        let system_namespace = required("SYSTEM_NAMESPACE")?;
        let probe_limit = match env.get("PROBE_TIMEOUT") {
            Some(text) => api::go::parse_duration(text)
                .ok()
                .and_then(|nanos| u64::try_from(nanos).ok())
                .map(Duration::from_nanos)
                .ok_or_else(|| ParseError::Duration("PROBE_TIMEOUT", text.clone()))?,
            None => Duration::from_millis(300),
        };
        Ok(Self {
            metrics: env
                .get("METRICS_PROMETHEUS_PORT")
                .map(|text| text.parse::<u16>().map_err(|_| ParseError::Port("METRICS_PROMETHEUS_PORT", text.clone())))
                .transpose()?
                .map(|port| ([0, 0, 0, 0], port).into()),
            server_timing: env.get("SERVER_TIMING").is_some_and(|text| text == "true"),
            autoscaler_url: format!("ws://autoscaler.{system_namespace}.svc.{cluster_domain}:8080"),
            pod_name: required("POD_NAME")?,
            pod_ip: required("POD_IP")?,
            probe_limit,
            lame_duck: Duration::from_secs(45),
            drain_limit: Duration::from_secs(540),
            ..Self::default()
        })
    }
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
        env.remove("POD_NAME");
        assert_eq!(Options::from_env(&env, "cluster.local").expect_err("missing"), ParseError::Missing("POD_NAME"));
    }
}
