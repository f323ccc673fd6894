//! `config-observability`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::data::{Data, SECOND, duration};
use crate::go::{format_duration, quote};

#[derive(Clone, Debug, PartialEq)]
pub struct Observability {
    pub enable_var_log_collection: bool,
    /// `${REVISION_UID}` is replaced.
    pub revision_url_template: String,
    pub request_log_template: String,
    pub enable_request_log: bool,
    pub enable_probe_request_log: bool,
    pub metrics: Exporter,
    pub request_metrics: Exporter,
    pub runtime_profiling: bool,
    pub runtime_export_interval: Duration,
    pub tracing: Tracing,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exporter {
    /// `grpc`, `http/protobuf`, `prometheus` or `none`.
    pub protocol: String,
    pub endpoint: String,
    /// Zero: the exporter's default.
    pub interval: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tracing {
    /// `grpc`, `http/protobuf`, `none` or `stdout`.
    pub protocol: String,
    pub endpoint: String,
    pub sampling_rate: f64,
}

/// What a request is logged as when no template is given.
const REQUEST_LOG_TEMPLATE: &str = r#"{"httpRequest": {"requestMethod": "{{.Request.Method}}", "requestUrl": "{{js .Request.RequestURI}}", "requestSize": "{{.Request.ContentLength}}", "status": {{.Response.Code}}, "responseSize": "{{.Response.Size}}", "userAgent": "{{js .Request.UserAgent}}", "remoteIp": "{{js .Request.RemoteAddr}}", "serverIp": "{{.Revision.PodIP}}", "referer": "{{js .Request.Referer}}", "latency": "{{.Response.Latency}}s", "protocol": "{{.Request.Proto}}"}, "traceId": "{{.TraceID}}"}"#;

// === impl Observability ===

impl Default for Observability {
    fn default() -> Self {
        let none = || Exporter { protocol: "none".to_owned(), ..Exporter::default() };
        Self {
            enable_var_log_collection: false,
            revision_url_template: String::new(),
            request_log_template: REQUEST_LOG_TEMPLATE.to_owned(),
            enable_request_log: false,
            enable_probe_request_log: false,
            metrics: none(),
            request_metrics: none(),
            runtime_profiling: false,
            runtime_export_interval: Duration::from_secs(15),
            tracing: Tracing { protocol: "none".to_owned(), endpoint: String::new(), sampling_rate: 0.0 },
        }
    }
}

impl Observability {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let data = Data(data);
        let mut config = Self::default();
        data.bool(&["logging.enable-var-log-collection"], &mut config.enable_var_log_collection)?;
        data.string(&["logging.revision-url-template"], &mut config.revision_url_template);
        data.string(&["logging.request-log-template"], &mut config.request_log_template);
        data.bool(&["logging.enable-request-log"], &mut config.enable_request_log)?;
        data.bool(&["logging.enable-probe-request-log"], &mut config.enable_probe_request_log)?;
        if config.enable_request_log && config.request_log_template.is_empty() {
            return Err(
                "\"logging.enable-request-log\" was set to true, but no \"logging.request-log-template\" was specified"
                    .to_owned(),
            );
        }
        config.metrics = exporter(&data, "")?;
        config.request_metrics = exporter(&data, "request-")?;
        config.read_runtime(&data)?;
        config.read_tracing(&data)?;
        Ok(config)
    }

    fn read_runtime(&mut self, data: &Data<'_>) -> Result<(), String> {
        match data.text(&["runtime-profiling"]) {
            None | Some("disabled") => {}
            Some("enabled") => self.runtime_profiling = true,
            Some(text) => return Err(format!("unsupported profile setting {}", quote(text))),
        }
        let mut interval = 15 * SECOND;
        data.nanos(&["runtime-export-interval"], &mut interval)?;
        self.runtime_export_interval = positive(interval)?;
        Ok(())
    }

    fn read_tracing(&mut self, data: &Data<'_>) -> Result<(), String> {
        let tracing = &mut self.tracing;
        data.string(&["tracing-protocol"], &mut tracing.protocol);
        data.string(&["tracing-endpoint"], &mut tracing.endpoint);
        data.f64(&["tracing-sampling-rate"], &mut tracing.sampling_rate)?;
        match tracing.protocol.as_str() {
            "grpc" | "http/protobuf" if tracing.endpoint.is_empty() => {
                return Err(format!("endpoint should be set for protocol {}", quote(&tracing.protocol)));
            }
            "grpc" | "http/protobuf" => {}
            "none" | "stdout" if !tracing.endpoint.is_empty() => {
                return Err("endpoint should not be set when protocol is 'none'".to_owned());
            }
            "none" | "stdout" => {}
            other => return Err(format!("unsupported protocol {}", quote(other))),
        }
        if tracing.sampling_rate < 0.0 {
            return Err(format!("sampling rate {:.6} should be greater or equal to zero", tracing.sampling_rate));
        }
        if tracing.sampling_rate > 1.0 {
            return Err(format!("sampling rate {:.6} should be less than or equal to one", tracing.sampling_rate));
        }
        Ok(())
    }
}

fn exporter(data: &Data<'_>, prefix: &str) -> Result<Exporter, String> {
    let mut exporter = Exporter { protocol: "none".to_owned(), ..Exporter::default() };
    let mut interval = 0;
    data.string(&[&format!("{prefix}metrics-protocol")], &mut exporter.protocol);
    data.string(&[&format!("{prefix}metrics-endpoint")], &mut exporter.endpoint);
    data.nanos(&[&format!("{prefix}metrics-export-interval")], &mut interval)?;
    match exporter.protocol.as_str() {
        "grpc" | "http/protobuf" if exporter.endpoint.is_empty() => {
            return Err(format!("endpoint should be set when protocol is {}", quote(&exporter.protocol)));
        }
        "none" if !exporter.endpoint.is_empty() => {
            return Err("endpoint should not be set when protocol is \"none\"".to_owned());
        }
        "grpc" | "http/protobuf" | "prometheus" | "none" => {}
        other => return Err(format!("unsupported protocol {}", quote(other))),
    }
    exporter.interval = positive(interval)?;
    Ok(exporter)
}

fn positive(interval: i64) -> Result<Duration, String> {
    if interval < 0 {
        return Err(format!("export interval {} should be greater than zero", quote(&format_duration(interval))));
    }
    Ok(duration(interval))
}
