//! The metrics as OTLP: cumulative, all series in one message, once per interval and when the process ends.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::Message;

use super::{DEPTH, DEPTH_HELP, DEPTH_UNIT, HTTP, Labels, Metrics, OWN, Scope};
use crate::otlp::wire::{
    self, CUMULATIVE, ExportMetrics, Gauge, Histogram, HistogramPoint, KeyValue, Metric, NumberPoint, Resource,
    ResourceMetrics, ScopeMetrics,
};

/// OpenTelemetry's own.
const INTERVAL: Duration = Duration::from_secs(60);

// === impl Metrics ===

impl Metrics {
    /// Exports as long as the metrics live; does nothing where they are not exported.
    pub(crate) fn export_every(self: &Arc<Self>, interval: Duration) {
        if self.exporter.is_some() {
            let interval = if interval.is_zero() { INTERVAL } else { interval };
            tokio::spawn(run(Arc::downgrade(self), interval));
        }
    }

    /// Exports now, if there is something and somewhere to.
    pub(crate) async fn export(&self) {
        let Some(exporter) = &self.exporter else { return };
        let Some(message) = self.message(SystemTime::now()) else { return };
        if let Err(error) = exporter.send(message.encode_to_vec()).await {
            // Nothing is lost: the next export has the same and more.
            tracing::warn!(%error, "request metrics were not exported");
        }
    }

    fn message(&self, now: SystemTime) -> Option<ExportMetrics> {
        let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let (start, time) = (nanos(self.started), nanos(now));
        let state = self.state.lock();
        let of = |wanted: &Scope| -> Vec<Metric> {
            let families = state.families.values().filter(|(family, _)| family.scope.name == wanted.name);
            families
                .map(|(family, all)| {
                    let point = |(labels, series): (&Labels, &super::Series)| HistogramPoint {
                        start,
                        time,
                        count: series.counts.iter().sum(),
                        sum: Some(series.sum),
                        counts: series.counts.clone(),
                        bounds: family.bounds.to_vec(),
                        attributes: attributes(labels),
                        min: Some(series.min),
                        max: Some(series.max),
                    };
                    Metric {
                        name: family.name.to_owned(),
                        description: family.help.to_owned(),
                        unit: family.unit.to_owned(),
                        histogram: Some(Histogram { points: all.iter().map(point).collect(), temporality: CUMULATIVE }),
                        ..Metric::default()
                    }
                })
                .collect()
        };
        let mut own = of(&OWN);
        if let Some(depth) = state.queue_depth {
            let integer = Some(i64::try_from(depth).unwrap_or(i64::MAX));
            own.push(Metric {
                name: DEPTH.to_owned(),
                description: DEPTH_HELP.to_owned(),
                unit: DEPTH_UNIT.to_owned(),
                gauge: Some(Gauge { points: vec![NumberPoint { start, time, integer, ..NumberPoint::default() }] }),
                ..Metric::default()
            });
        }
        let scopes = [(&HTTP, of(&HTTP)), (&OWN, own)];
        let scope_metrics: Vec<_> = scopes
            .into_iter()
            .filter(|(_, metrics)| !metrics.is_empty())
            .map(|(scope, metrics)| {
                let scope = wire::Scope { name: scope.name.to_owned(), version: scope.version.to_owned() };
                ScopeMetrics { scope: Some(scope), metrics }
            })
            .collect();
        if scope_metrics.is_empty() {
            return None;
        }
        let resource = self.resource.iter().map(|(name, value)| KeyValue::text(name, value)).collect();
        let resource = Some(Resource { attributes: resource });
        Some(ExportMetrics { resource_metrics: vec![ResourceMetrics { resource, scope_metrics }] })
    }
}

async fn run(metrics: Weak<Metrics>, interval: Duration) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(metrics) = metrics.upgrade() else { return };
        metrics.export().await;
    }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let one = |(name, value): &(&'static str, std::borrow::Cow<'static, str>)| match (*name, value.parse()) {
        ("http.response.status_code" | "server.port", Ok(number)) => KeyValue::number(name, number),
        _ => KeyValue::text(name, value),
    };
    labels.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Outcome;

    #[test]
    fn what_was_recorded_is_in_the_message() {
        let metrics = Metrics {
            state: parking_lot::Mutex::default(),
            resource: vec![("service.name".to_owned(), "hello".to_owned())],
            started: UNIX_EPOCH + Duration::from_secs(1),
            user_port: 8080,
            exporter: None,
        };
        let now = UNIX_EPOCH + Duration::from_secs(61);
        assert!(metrics.message(now).is_none(), "nothing to say");
        for (status, total) in [(200, 30), (200, 3000), (503, 1)] {
            metrics.record(&Outcome {
                method: &http::Method::GET,
                version: http::Version::HTTP_11,
                host: "hello.example.com:8012",
                tls: false,
                tag: "kn:disabled",
                status: http::StatusCode::from_u16(status).expect("valid"),
                app_status: http::StatusCode::from_u16(status).expect("valid"),
                answered: true,
                request_bytes: 0,
                response_bytes: 5,
                total: Duration::from_millis(total),
                program: (status == 200).then(|| Duration::from_millis(total)),
            });
        }
        metrics.dispatched(3);
        let message = ExportMetrics::decode(&*metrics.message(now).expect("something").encode_to_vec()).expect("sound");
        let [resource] = &message.resource_metrics[..] else { panic!("{message:?}") };
        assert_eq!(resource.resource.as_ref().expect("one").attributes, [KeyValue::text("service.name", "hello")]);
        let scopes: Vec<_> =
            resource.scope_metrics.iter().map(|scope| &*scope.scope.as_ref().expect("named").name).collect();
        assert_eq!(scopes, [HTTP.name, OWN.name]);
        let all = || resource.scope_metrics.iter().flat_map(|scope| &scope.metrics);
        let named = |name: &str| all().find(|metric| metric.name == name).expect("there");
        assert_eq!(all().count(), 7);
        let duration = named("kn.serving.invocation.duration");
        assert_eq!((&*duration.unit, &*duration.description), ("s", "The duration of task execution"));
        let histogram = duration.histogram.as_ref().expect("a histogram");
        let [point] = &histogram.points[..] else { panic!("{histogram:?}") };
        assert_eq!((histogram.temporality, point.count, point.sum), (2, 2, Some(3.03)));
        assert_eq!((point.min, point.max, point.counts.len()), (Some(0.03), Some(3.0), point.bounds.len() + 1));
        assert_eq!((point.start, point.time), (1_000_000_000, 61_000_000_000));
        assert_eq!(point.attributes, [KeyValue::number("http.response.status_code", 200)]);
        let server = named("http.server.request.duration").histogram.as_ref().expect("a histogram");
        assert_eq!(server.points.len(), 2);
        assert!(server.points[0].attributes.contains(&KeyValue::number("server.port", 8012)));
        let gauge = named("kn.serving.queue.depth").gauge.as_ref().expect("a gauge");
        assert_eq!(gauge.points[0].integer, Some(3));
    }
}
