//! The activator's metrics, named as upstream names them.
//!
//! What is in flight is looked up when somebody scrapes, not kept. Requests are noted only where somebody can see it,
//! and on series that their thread has found before (see `cache`).

mod cache;
mod serve;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Method, StatusCode, Version};
use observe::{API_CALLS, Histogram, LATENCY_SECONDS, Registry};
use telemetry::otlp::registry::Instrument;

use self::cache::Cache;
pub(crate) use self::serve::serve;
use crate::{revisions::Revision, sink::Status, stats::Reporter};

const CONCURRENCY: &str = "kn_revision_request_concurrency";
const QUEUED: &str = "kn_revision_request_queued";
const ACTIVE: &str = "kn_revision_request_active";
const REACHABLE: &str = "kn_activator_stats_conn_reachable";
const ERRORS: &str = "kn_activator_stats_conn_errors_total";
const COLD_START: &str = "kn_activator_cold_start_duration_seconds";

const BYTES: &[f64] =
    &[0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0];

/// What OTLP says of them besides.
pub(crate) const INSTRUMENTS: &[Instrument] = &[
    Instrument { name: API_CALLS, unit: "{item}", additive: false },
    Instrument { name: REACHABLE, unit: "{reachable}", additive: false },
    Instrument { name: ERRORS, unit: "{error}", additive: false },
    Instrument { name: CONCURRENCY, unit: "{request}", additive: false },
    Instrument { name: QUEUED, unit: "{request}", additive: true },
    Instrument { name: ACTIVE, unit: "{request}", additive: true },
];

/// Who measured, as upstream's exporter says it with every series.
const OWN: [Label<'_>; 3] = [
    ("otel_scope_name", "knative.dev/serving/pkg/activator"),
    ("otel_scope_schema_url", ""),
    ("otel_scope_version", ""),
];
const HTTP: [Label<'_>; 3] = [
    ("otel_scope_name", "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"),
    ("otel_scope_schema_url", ""),
    ("otel_scope_version", "0.69.0"),
];

type Label<'a> = (&'static str, &'a str);

/// Where the activator notes what happened. Clones are the same.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Whether anybody can see them.
    exported: bool,
    series: Arc<Found>,
}

/// Series that were moved before.
struct Found {
    served: Cache<Served, [Histogram; 3]>,
    sent: Cache<Sent, [Histogram; 2]>,
}

/// What the labels of a request say.
#[derive(PartialEq, Eq, Hash)]
struct Served {
    revision: u64,
    method: &'static str,
    version: Version,
    status: StatusCode,
    tls: bool,
    host: u64,
}

/// What the labels of a request to a pod say.
#[derive(PartialEq, Eq, Hash)]
struct Sent {
    revision: u64,
    pod: SocketAddr,
    method: &'static str,
    version: Version,
    status: Option<StatusCode>,
    tls: bool,
}

/// The longest host that is one by its name; longer ones are no names.
const LONGEST_HOST: usize = 255;

/// A request, as its metrics see it.
pub(crate) struct Outcome {
    pub(crate) method: Method,
    pub(crate) version: Version,
    pub(crate) host: String,
    pub(crate) tls: bool,
    pub(crate) status: StatusCode,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) total: Duration,
}

/// A request on its way to a pod, as its metrics see it.
pub(crate) struct Exchange<'a> {
    pub(crate) revision: &'a Revision,
    pub(crate) method: &'a str,
    pub(crate) version: Version,
    pub(crate) pod: SocketAddr,
    pub(crate) tls: bool,
    /// None if there was no answer.
    pub(crate) status: Option<StatusCode>,
    pub(crate) bytes: u64,
    /// Until the head of the answer.
    pub(crate) duration: Duration,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Metrics that so many workers move.
    pub(crate) fn new(registry: Registry, exported: bool, workers: usize) -> Self {
        let series = Found { served: Cache::new(workers), sent: Cache::new(workers) };
        registry.describe_process();
        Self { registry, exported, series: Arc::new(series) }
    }

    /// Whether requests are to be noted one by one.
    pub(crate) fn exported(&self) -> bool {
        self.exported
    }

    /// A request has ended; `revision` is none if it named none.
    pub(crate) fn served(&self, revision: Option<&Revision>, outcome: &Outcome) {
        let host = if outcome.host.len() > LONGEST_HOST { "" } else { &outcome.host };
        let key = Served {
            revision: revision.map_or(u64::MAX, |revision| revision.id),
            method: known(outcome.method.as_str()),
            version: outcome.version,
            status: outcome.status,
            tls: outcome.tls,
            host: self.series.served.hash(host),
        };
        self.series.served.with(
            key,
            || self.find_served(revision, outcome, host),
            |[duration, request, response]| {
                duration.observe(outcome.total.as_secs_f64());
                request.observe(outcome.request_bytes as f64);
                response.observe(outcome.response_bytes as f64);
            },
        );
    }

    fn find_served(&self, revision: Option<&Revision>, outcome: &Outcome, host: &str) -> [Histogram; 3] {
        let (host, port) = host.rsplit_once(':').unwrap_or((host, ""));
        let (method, version) = (known(outcome.method.as_str()), protocol(outcome.version));
        let mut labels = vec![("http_request_method", method), ("http_response_status_code", outcome.status.as_str())];
        labels.extend(revision.into_iter().flat_map(all_labels));
        labels.extend([("network_protocol_name", "http"), ("network_protocol_version", version)]);
        labels.extend(HTTP);
        labels.push(("server_address", host));
        if !matches!(port, "" | "80" | "443") {
            labels.push(("server_port", port));
        }
        labels.push(("url_scheme", if outcome.tls { "https" } else { "http" }));
        [
            ("http_server_request_duration_seconds", "Duration of HTTP server requests.", LATENCY_SECONDS),
            ("http_server_request_body_size_bytes", "Size of HTTP server request bodies.", BYTES),
            ("http_server_response_body_size_bytes", "Size of HTTP server response bodies.", BYTES),
        ]
        .map(|(name, help, bounds)| self.registry.histogram(name, help, bounds, &labels))
    }

    /// A pod answered a request, or did not.
    pub(crate) fn sent(&self, exchange: &Exchange<'_>) {
        let Exchange { revision, pod, version, status, tls, .. } = *exchange;
        let key = Sent { revision: revision.id, pod, method: known(exchange.method), version, status, tls };
        self.series.sent.with(
            key,
            || self.find_sent(exchange),
            |[duration, request]| {
                duration.observe(exchange.duration.as_secs_f64());
                request.observe(exchange.bytes as f64);
            },
        );
    }

    fn find_sent(&self, exchange: &Exchange<'_>) -> [Histogram; 2] {
        let port = exchange.pod.port().to_string();
        let address = exchange.pod.ip().to_string();
        let mut labels = Vec::with_capacity(14);
        if exchange.status.is_none() {
            labels.push(("error_type", "*errors.errorString"));
        }
        labels.push(("http_request_method", known(exchange.method)));
        labels.extend(exchange.status.as_ref().map(|status| ("http_response_status_code", status.as_str())));
        labels.extend(all_labels(exchange.revision));
        labels.extend([("network_protocol_name", "http"), ("network_protocol_version", protocol(exchange.version))]);
        labels.extend(HTTP);
        labels.extend([("server_address", &*address), ("server_port", &*port)]);
        labels.push(("url_scheme", if exchange.tls { "https" } else { "http" }));
        [
            ("http_client_request_duration_seconds", "Duration of HTTP client requests.", LATENCY_SECONDS),
            ("http_client_request_body_size_bytes", "Size of HTTP client request bodies.", BYTES),
        ]
        .map(|(name, help, bounds)| self.registry.histogram(name, help, bounds, &labels))
    }

    /// Says whose metrics these are.
    pub(crate) fn identify(&self, labels: &[(&str, &str)]) {
        self.registry.gauge("target_info", "Target metadata", labels).set(1.0);
    }

    /// A request found its revision without pods and waited this long for one.
    pub(crate) fn cold_start(&self, revision: &Revision, waited: Duration) {
        let labels = labels(revision);
        let help = "Time a request waited for a revision that had no pods";
        self.registry.histogram(COLD_START, help, LATENCY_SECONDS, &labels).observe(waited.as_secs_f64());
    }

    /// Looks up what is current whenever somebody scrapes.
    pub(crate) fn collect(&self, reporter: Arc<Reporter>, autoscaler: Arc<Status>) {
        self.registry.on_render(move |registry| {
            let peer = [OWN[0], OWN[1], OWN[2], ("peer", "autoscaler")];
            let reachable = if autoscaler.connected() { 1.0 } else { 0.0 };
            registry
                .gauge(
                    REACHABLE,
                    "Whether a peer is reachable from the activator (1 = reachable, 0 = not reachable)",
                    &peer,
                )
                .set(reachable);
            let errors = registry.counter(ERRORS, "Number of connection errors from the activator", &peer);
            errors.add(autoscaler.errors().saturating_sub(errors.get()));

            for name in [CONCURRENCY, QUEUED, ACTIVE] {
                registry.clear(name);
            }
            for revision in reporter.active() {
                let labels = labels(&revision);
                let queued = revision.throttler.waiting() as f64;
                let concurrency = revision.concurrency() as f64;
                let mut all = all_labels(&revision).to_vec();
                all.extend(OWN);
                let help = "Concurrent requests that are routed to Activator";
                registry.gauge(CONCURRENCY, help, &all).set(concurrency);
                let help = "Number of requests currently queued in the activator waiting for capacity";
                registry.gauge(QUEUED, help, &labels).set(queued);
                let help = "Number of requests currently being proxied by the activator";
                registry.gauge(ACTIVE, help, &labels).set((concurrency - queued).max(0.0));
            }
        });
    }
}

/// Methods are chosen by clients; those that nobody defined count together.
fn known(method: &str) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("_OTHER")
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn labels(revision: &Revision) -> [Label<'_>; 5] {
    let (namespace, name) =
        (("k8s_namespace_name", &*revision.key.namespace), ("kn_revision_name", &*revision.key.name));
    [namespace, name, OWN[0], OWN[1], OWN[2]]
}

fn all_labels(revision: &Revision) -> [Label<'_>; 4] {
    [
        ("k8s_namespace_name", &revision.key.namespace),
        ("kn_configuration_name", &revision.configuration),
        ("kn_revision_name", &revision.key.name),
        ("kn_service_name", &revision.service),
    ]
}
