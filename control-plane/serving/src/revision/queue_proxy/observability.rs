//! `config-observability` as the queue-proxy reads it from its environment: Go's field names, durations in nanoseconds, zero values
//! left out.

use std::time::Duration;

use api::config::Observability;
use serde::{Serialize, Serializer};

use super::probe::escape;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    tracing: Tracing<'a>,
    metrics: Exporter<'a>,
    runtime: Runtime,
    request_metrics: Exporter<'a>,
    #[serde(rename = "EnableVarLogCollection", skip_serializing_if = "is_false")]
    enable_var_log_collection: bool,
    #[serde(rename = "LoggingURLTemplate", skip_serializing_if = "str::is_empty")]
    logging_url_template: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    enable_request_log: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_log_template: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    enable_probe_request_log: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Tracing<'a> {
    protocol: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint: &'a str,
    #[serde(skip_serializing_if = "is_zero", serialize_with = "number")]
    sampling_rate: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Exporter<'a> {
    protocol: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint: &'a str,
    #[serde(skip_serializing_if = "Duration::is_zero", serialize_with = "nanos")]
    export_interval: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Runtime {
    profiling: &'static str,
    #[serde(skip_serializing_if = "Duration::is_zero", serialize_with = "nanos")]
    export_interval: Duration,
}

pub(super) fn json(config: &Observability) -> String {
    fn exporter(exporter: &api::config::Exporter) -> Exporter<'_> {
        Exporter { protocol: &exporter.protocol, endpoint: &exporter.endpoint, export_interval: exporter.interval }
    }
    let wire = Wire {
        tracing: Tracing {
            protocol: &config.tracing.protocol,
            endpoint: &config.tracing.endpoint,
            sampling_rate: config.tracing.sampling_rate,
        },
        metrics: exporter(&config.metrics),
        runtime: Runtime {
            profiling: if config.runtime_profiling { "enabled" } else { "disabled" },
            export_interval: config.runtime_export_interval,
        },
        request_metrics: exporter(&config.request_metrics),
        enable_var_log_collection: config.enable_var_log_collection,
        logging_url_template: &config.revision_url_template,
        enable_request_log: config.enable_request_log,
        request_log_template: &config.request_log_template,
        enable_probe_request_log: config.enable_probe_request_log,
    };
    escape(serde_json::to_string(&wire).expect("plain data is JSON"))
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// Whole numbers without a fraction, as Go prints them.
fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 { serializer.serialize_i64(*value as i64) } else { serializer.serialize_f64(*value) }
}

fn nanos<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(value.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use api::config::Observability;

    #[test]
    fn zero_values_are_left_out() {
        let data = [
            ("logging.enable-request-log", "true"),
            ("logging.request-log-template", "<{{.TraceID}}>"),
            ("logging.revision-url-template", "http://logs/${REVISION_UID}"),
            ("request-metrics-protocol", "prometheus"),
            ("request-metrics-export-interval", "30s"),
            ("tracing-protocol", "grpc"),
            ("tracing-endpoint", "otel:4317"),
            ("tracing-sampling-rate", "1"),
            ("runtime-profiling", "enabled"),
        ];
        let data: BTreeMap<_, _> = data.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let json = super::json(&Observability::parse(&data).unwrap());
        assert_eq!(
            json,
            concat!(
                r#"{"tracing":{"protocol":"grpc","endpoint":"otel:4317","samplingRate":1},"metrics":{"protocol":"none"},"#,
                r#""runtime":{"profiling":"enabled","exportInterval":15000000000},"#,
                r#""requestMetrics":{"protocol":"prometheus","exportInterval":30000000000},"#,
                r#""LoggingURLTemplate":"http://logs/${REVISION_UID}","enableRequestLog":true,"#,
                r#""requestLogTemplate":"\u003c{{.TraceID}}\u003e"}"#
            )
        );
    }
}
