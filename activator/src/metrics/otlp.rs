//! The metrics as OTLP: the same series as in the text format, under OpenTelemetry's names, once per interval and when
//! the process ends.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use observe::{Kind, Registry, Value};
use prost::Message;
use telemetry::otlp::{
    Exporter,
    wire::{
        CUMULATIVE, ExportMetrics, Gauge, Histogram, HistogramPoint, KeyValue, Metric, NumberPoint, Resource,
        ResourceMetrics, Scope, ScopeMetrics, Sum,
    },
};

use super::{ACTIVE, CONCURRENCY, ERRORS, QUEUED, REACHABLE};

/// OpenTelemetry's own.
const INTERVAL: Duration = Duration::from_secs(60);
const SCOPE: &str = "otel_scope_name";
const VERSION: &str = "otel_scope_version";
const SCHEMA: &str = "otel_scope_schema_url";
/// Of the text format alone: the resource has what it says.
const TARGET: &str = "target_info";

/// Sends a process's metrics to a collector.
pub(crate) struct Export {
    registry: Registry,
    exporter: Exporter,
    resource: Vec<(String, String)>,
    started: SystemTime,
}

// === impl Export ===

impl Export {
    pub(crate) fn new(registry: Registry, exporter: Exporter, resource: Vec<(String, String)>) -> Arc<Self> {
        Arc::new(Self { registry, exporter, resource, started: SystemTime::now() })
    }

    /// Sends every `interval`; zero means OpenTelemetry's default.
    pub(crate) async fn run(self: Arc<Self>, interval: Duration) {
        let interval = if interval.is_zero() { INTERVAL } else { interval };
        loop {
            tokio::time::sleep(interval).await;
            self.send().await;
        }
    }

    /// Sends now.
    pub(crate) async fn send(&self) {
        let message = self.message(SystemTime::now());
        if let Err(error) = self.exporter.send(message.encode_to_vec()).await {
            // Nothing is lost: the next export has the same and more.
            tracing::warn!(%error, "metrics were not exported");
        }
    }

    fn message(&self, now: SystemTime) -> ExportMetrics {
        let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let (start, time) = (nanos(self.started), nanos(now));
        let mut scopes = BTreeMap::<(String, String), BTreeMap<&'static str, Metric>>::new();
        self.registry.visit(|family, labels, value| {
            if family.name == TARGET {
                return;
            }
            let text = |name: &str| {
                let found = labels.iter().find(|(label, _)| label == name);
                found.map_or_else(String::new, |(_, value)| value.clone())
            };
            let metrics = scopes.entry((text(SCOPE), text(VERSION))).or_default();
            let metric = metrics.entry(family.name).or_insert_with(|| empty(family.name, family.help, family.kind));
            let own = labels.iter().filter(|(name, _)| ![SCOPE, VERSION, SCHEMA].contains(&name.as_str()));
            let attributes = own.map(|(name, value)| attribute(name, value)).collect();
            add(metric, value, (start, time), attributes);
        });
        let scope_metrics = scopes.into_iter().map(|((name, version), metrics)| ScopeMetrics {
            scope: Some(Scope { name, version }),
            metrics: metrics.into_values().collect(),
        });
        let resource = self.resource.iter().map(|(name, value)| KeyValue::text(name, value)).collect();
        let resource = Some(Resource { attributes: resource });
        ExportMetrics { resource_metrics: vec![ResourceMetrics { resource, scope_metrics: scope_metrics.collect() }] }
    }
}

/// A family without points.
fn empty(name: &str, help: &str, kind: Kind) -> Metric {
    let (stem, suffix) = match (name.strip_suffix("_seconds"), name.strip_suffix("_bytes"), name.strip_suffix("_total"))
    {
        (Some(stem), ..) => (stem, "s"),
        (_, Some(stem), _) => (stem, "By"),
        (.., Some(stem)) => (stem, ""),
        _ => (name, ""),
    };
    let unit = match name {
        REACHABLE => "{reachable}",
        ERRORS => "{error}",
        CONCURRENCY | QUEUED | ACTIVE => "{request}",
        _ => suffix,
    };
    let points = Vec::new();
    let mut metric =
        Metric { name: dotted(stem), description: help.to_owned(), unit: unit.to_owned(), ..Metric::default() };
    match kind {
        Kind::Gauge if [QUEUED, ACTIVE].contains(&name) => {
            metric.sum = Some(Sum { points, temporality: CUMULATIVE, monotonic: false });
        }
        Kind::Counter => metric.sum = Some(Sum { points, temporality: CUMULATIVE, monotonic: true }),
        Kind::Gauge => metric.gauge = Some(Gauge { points }),
        Kind::Histogram => metric.histogram = Some(Histogram { points: Vec::new(), temporality: CUMULATIVE }),
    }
    metric
}

fn add(metric: &mut Metric, value: &Value<'_>, (start, time): (u64, u64), attributes: Vec<KeyValue>) {
    let number = |integer, double| NumberPoint { start, time, integer, double, attributes: attributes.clone() };
    match value {
        Value::Counter(count) => {
            let integer = Some(i64::try_from(*count).unwrap_or(i64::MAX));
            metric.sum.iter_mut().for_each(|sum| sum.points.push(number(integer, None)));
        }
        Value::Gauge(value) => {
            let integer = Some(*value as i64);
            metric.sum.iter_mut().for_each(|sum| sum.points.push(number(integer, None)));
            metric.gauge.iter_mut().for_each(|gauge| gauge.points.push(number(None, Some(*value))));
        }
        Value::Histogram { bounds, counts, sum } => {
            let point = HistogramPoint {
                start,
                time,
                count: counts.iter().sum(),
                sum: Some(*sum),
                counts: counts.clone(),
                bounds: bounds.to_vec(),
                attributes,
                min: None,
                max: None,
            };
            metric.histogram.iter_mut().for_each(|histogram| histogram.points.push(point.clone()));
        }
    }
}

/// `http_server_request_duration` is `http.server.request.duration`; few names have an underscore of their own.
fn dotted(name: &str) -> String {
    name.replace('_', ".").replace("status.code", "status_code").replace("cold.start", "cold_start")
}

fn attribute(name: &str, value: &str) -> KeyValue {
    let name = dotted(name);
    match (name.as_str(), value.parse()) {
        ("http.response.status_code" | "server.port", Ok(number)) => KeyValue::number(&name, number),
        _ => KeyValue::text(&name, value),
    }
}

#[cfg(test)]
mod tests {
    use observe::LATENCY_SECONDS;
    use telemetry::otlp::{Otel, Signal};

    use super::*;

    #[test]
    fn the_message_has_opentelemetrys_names_for_all_that_is_in_the_table() {
        let registry = Registry::new();
        let scope = [(SCOPE, "own"), (VERSION, "1"), (SCHEMA, "")];
        let labels = |more: &[(&'static str, &'static str)]| [&scope[..], more].concat();
        registry.gauge(TARGET, "Target metadata", &[("service_name", "activator")]).set(1.0);
        registry.gauge("kn_revision_request_queued", "Queued", &labels(&[("kn_revision_name", "a\"b")])).set(2.0);
        registry.counter("kn_activator_stats_conn_errors_total", "Errors", &labels(&[("peer", "autoscaler")])).add(3);
        let status = [("http_response_status_code", "200"), ("server_port", "8012"), ("url_scheme", "http")];
        let name = "http_server_request_duration_seconds";
        registry.histogram(name, "Duration", LATENCY_SECONDS, &labels(&status)).observe(0.03);

        let exporter = Exporter::new(Signal::Metrics, false, "http://collector", &Otel::default()).expect("valid");
        let export = Export::new(registry, exporter, vec![("service.name".to_owned(), "activator".to_owned())]);
        let message = export.message(export.started + Duration::from_secs(60));
        let message = ExportMetrics::decode(&*message.encode_to_vec()).expect("sound");
        let [resource] = &message.resource_metrics[..] else { panic!("{message:?}") };
        assert_eq!(resource.resource.as_ref().expect("one").attributes, [KeyValue::text("service.name", "activator")]);
        let [scope] = &resource.scope_metrics[..] else { panic!("{resource:?}") };
        assert_eq!(scope.scope, Some(Scope { name: "own".to_owned(), version: "1".to_owned() }));
        let [duration, errors, queued] = &scope.metrics[..] else { panic!("{scope:?}") };
        assert_eq!((&*duration.name, &*duration.unit), ("http.server.request.duration", "s"));
        let point = &duration.histogram.as_ref().expect("a histogram").points[0];
        assert_eq!((point.count, point.sum, point.counts.len()), (1, Some(0.03), LATENCY_SECONDS.len() + 1));
        assert_eq!(
            point.attributes,
            [
                KeyValue::number("http.response.status_code", 200),
                KeyValue::number("server.port", 8012),
                KeyValue::text("url.scheme", "http")
            ]
        );
        assert_eq!(&*errors.name, "kn.activator.stats.conn.errors");
        let sum = errors.sum.as_ref().expect("a sum");
        assert_eq!((sum.points[0].integer, sum.monotonic, sum.temporality), (Some(3), true, CUMULATIVE));
        assert_eq!(
            (&*errors.unit, &*queued.unit, &*queued.name),
            ("{error}", "{request}", "kn.revision.request.queued")
        );
        let queued = queued.sum.as_ref().expect("a sum");
        assert_eq!((queued.points[0].integer, queued.monotonic), (Some(2), false));
        assert_eq!(queued.points[0].attributes, [KeyValue::text("kn.revision.name", "a\"b")]);
    }
}
