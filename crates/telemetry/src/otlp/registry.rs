//! A table of metrics as OTLP: the same series as in the text format, under OpenTelemetry's names, once per interval and
//! when the process ends.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use observe::{Described, Kind, Registry, Value};
use prost::Message;

use super::{
    Exporter, Otel, Signal,
    wire::{
        CUMULATIVE, ExportMetrics, Gauge, Histogram, HistogramPoint, KeyValue, Metric, NumberPoint, Resource,
        ResourceMetrics, Scope, ScopeMetrics, Sum,
    },
};

/// OpenTelemetry's own.
const INTERVAL: Duration = Duration::from_secs(60);
const SCOPE: &str = "otel_scope_name";
const VERSION: &str = "otel_scope_version";
const SCHEMA: &str = "otel_scope_schema_url";
/// Of the text format alone: the resource has what it says.
const TARGET: &str = "target_info";

/// Sends a process's metrics to a collector.
pub struct Export {
    registry: Registry,
    exporter: Exporter,
    interval: Duration,
    resource: Vec<(String, String)>,
    instruments: &'static [Instrument],
    started: SystemTime,
}

/// What the text format does not say of a family.
#[derive(Debug)]
pub struct Instrument {
    /// In the text format.
    pub name: &'static str,
    pub unit: &'static str,
    /// A gauge whose series add up: an up-down counter.
    pub additive: bool,
}

/// Where and how often an installation wants metrics to be sent.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// `grpc` or `http/protobuf`; nothing is exported with any other.
    pub protocol: &'a str,
    pub endpoint: &'a str,
    /// Zero means OpenTelemetry's default.
    pub interval: Duration,
}

// === impl Export ===

impl Export {
    /// Nothing, unless metrics are wanted over OTLP. What cannot be used is logged, for it must not end the process.
    pub fn new(
        registry: &Registry,
        instruments: &'static [Instrument],
        wanted: Wanted<'_>,
        otel: &Otel,
        resource: Vec<(String, String)>,
    ) -> Option<Arc<Self>> {
        let grpc = match wanted.protocol {
            "grpc" => true,
            "http/protobuf" => false,
            _ => return None,
        };
        let exporter = Exporter::new(Signal::Metrics, grpc, wanted.endpoint, otel)
            .inspect_err(|error| tracing::error!(error, "metrics cannot be exported; correct config-observability"))
            .ok()?;
        let interval = otel.milliseconds("OTEL_METRIC_EXPORT_INTERVAL").unwrap_or(wanted.interval);
        let interval = if interval.is_zero() { INTERVAL } else { interval };
        let (registry, started) = (registry.clone(), SystemTime::now());
        Some(Arc::new(Self { registry, exporter, interval, resource, instruments, started }))
    }

    /// Sends once per interval, for ever.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.interval).await;
            self.send().await;
        }
    }

    /// Sends now.
    pub async fn send(&self) {
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
            let metric = metrics.entry(family.name).or_insert_with(|| self.empty(family));
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

    /// A family without points.
    fn empty(&self, family: Described) -> Metric {
        let name = family.name;
        let known = self.instruments.iter().find(|instrument| instrument.name == name);
        let suffixes = [("_seconds", "s"), ("_bytes", "By"), ("_total", "")];
        let found = suffixes.iter().find_map(|(suffix, unit)| Some((name.strip_suffix(suffix)?, *unit)));
        let (stem, unit) = found.unwrap_or((name, ""));
        let unit = known.map_or(unit, |known| known.unit).to_owned();
        let mut metric = Metric { name: dotted(stem), description: family.help.to_owned(), unit, ..Metric::default() };
        let sum = |monotonic| Some(Sum { points: Vec::new(), temporality: CUMULATIVE, monotonic });
        match family.kind {
            Kind::Counter => metric.sum = sum(true),
            Kind::Gauge if known.is_some_and(|known| known.additive) => metric.sum = sum(false),
            Kind::Gauge => metric.gauge = Some(Gauge { points: Vec::new() }),
            Kind::Histogram => metric.histogram = Some(Histogram { points: Vec::new(), temporality: CUMULATIVE }),
        }
        metric
    }
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

    use super::*;

    const KNOWN: &[Instrument] = &[
        Instrument { name: "kn_activator_stats_conn_errors_total", unit: "{error}", additive: false },
        Instrument { name: "kn_revision_request_queued", unit: "{request}", additive: true },
    ];

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

        let wanted = |protocol| Wanted { protocol, endpoint: "http://collector", interval: Duration::ZERO };
        let resource = vec![("service.name".to_owned(), "activator".to_owned())];
        let make = |protocol| Export::new(&registry, KNOWN, wanted(protocol), &Otel::default(), resource.clone());
        assert!(make("prometheus").is_none());
        let export = make("http/protobuf").expect("valid");
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
