//! `OBSERVABILITY_CONFIG`: what the installation wants to know of requests. Durations are integer nanoseconds.

use serde::Deserialize;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observability {
    pub request_metrics: Export,
    pub tracing: Export,
    pub runtime: Runtime,
    pub enable_request_log: bool,
    pub request_log_template: String,
    pub enable_probe_request_log: bool,
}

/// Where something goes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Export {
    /// Empty and `none` mean nowhere.
    pub protocol: String,
    pub endpoint: String,
    pub sampling_rate: f64,
    pub export_interval: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Runtime {
    pub profiling: String,
}

// === impl Observability ===

impl Observability {
    /// # Errors
    /// What in the JSON is not as it has to be.
    pub fn parse(json: &str) -> Result<Self, String> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        let parsed: Self = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let known = |what: &str, protocol: &str, all: &[&str]| {
            let known = protocol.is_empty() || all.contains(&protocol);
            if known { Ok(()) } else { Err(format!("{what} protocol {protocol:?} is none of {}", all.join(", "))) }
        };
        known("requestMetrics", &parsed.request_metrics.protocol, &["none", "prometheus", "http/protobuf", "grpc"])?;
        known("tracing", &parsed.tracing.protocol, &["none", "http/protobuf", "grpc", "stdout"])?;
        Ok(parsed)
    }

    /// The template, if requests are logged.
    pub(crate) fn log_template(&self) -> Option<&str> {
        (self.enable_request_log && !self.request_log_template.is_empty()).then_some(&*self.request_log_template)
    }

    pub(crate) fn prometheus(&self) -> bool {
        self.request_metrics.protocol == "prometheus"
    }

    /// Where Prometheus scrapes, if anything is said of it.
    pub(super) fn scraped(&self) -> &str {
        if self.prometheus() { &self.request_metrics.endpoint } else { "" }
    }

    pub(crate) fn profiling(&self) -> bool {
        self.runtime.profiling == "enabled"
    }
}
