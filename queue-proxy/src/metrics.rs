//! Request metrics, with the names and labels of upstream's sidecar, in the Prometheus text format.
//!
//! One lock for the few series there are: it is taken once per request, at its end, and only where metrics are on.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use http::{Method, StatusCode, Version};
use parking_lot::Mutex;

use crate::Config;

const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const BYTES: &[f64] =
    &[0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0];
/// Clients choose hosts and methods; beyond this many combinations they are counted together.
const MAX_SERIES: usize = 500;
const HTTP_SCOPE: &str = "otel_scope_name=\"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp\",\
     otel_scope_schema_url=\"\",otel_scope_version=\"0.69.0\"";
const OWN_SCOPE: &str =
    "otel_scope_name=\"knative.dev/serving/pkg/queue\",otel_scope_schema_url=\"\",otel_scope_version=\"\"";

/// What is known of a request at its end.
pub(crate) struct Outcome<'a> {
    pub(crate) method: &'a Method,
    pub(crate) version: Version,
    pub(crate) host: &'a str,
    pub(crate) tls: bool,
    pub(crate) tag: &'a str,
    pub(crate) status: StatusCode,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) total: Duration,
    /// Since the program got it; none if it never did.
    pub(crate) program: Option<Duration>,
}

pub(crate) struct Metrics {
    state: Mutex<State>,
    resource: String,
    port: u16,
    user_port: u16,
}

#[derive(Default)]
struct State {
    families: BTreeMap<&'static str, Family>,
    queue_depth: Option<usize>,
}

struct Family {
    help: &'static str,
    bounds: &'static [f64],
    /// By rendered labels.
    series: BTreeMap<String, Series>,
}

struct Series {
    counts: Vec<u64>,
    sum: f64,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new(config: &Config) -> Self {
        let first = [&config.service, &config.configuration, &config.revision, &config.pod];
        let name = config.otel_service_name.as_ref().or_else(|| first.into_iter().find(|name| !name.is_empty()));
        let mut resource = String::new();
        for (key, value) in [
            ("container_name", "queue-proxy"),
            ("k8s_namespace_name", &config.namespace),
            ("k8s_pod_name", &config.pod),
            ("kn_configuration_name", &config.configuration),
            ("kn_revision_name", &config.revision),
            ("kn_service_name", &config.service),
            ("service_instance_id", &config.pod),
            ("service_name", name.map_or("", |name| name)),
            ("service_version", env!("CARGO_PKG_VERSION")),
            ("telemetry_sdk_language", "rust"),
        ] {
            label(&mut resource, key, value);
        }
        Self { state: Mutex::default(), resource, port: config.serving_port, user_port: config.user_port }
    }

    /// Notes how many run or wait, when one is dispatched.
    pub(crate) fn dispatched(&self, in_flight: usize) {
        self.state.lock().queue_depth = Some(in_flight);
    }

    pub(crate) fn record(&self, outcome: &Outcome<'_>) {
        let (host, port) = outcome.host.rsplit_once(':').unwrap_or((outcome.host, ""));
        let port = if port.is_empty() { self.port.to_string() } else { port.to_owned() };
        let method = match outcome.method.as_str() {
            known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "CONNECT" | "OPTIONS" | "TRACE") => known,
            _ => "_OTHER",
        };
        let labels = |address: &str, port: &str, scheme: &str| {
            let mut labels = String::new();
            label(&mut labels, "http_request_method", method);
            label(&mut labels, "http_response_status_code", outcome.status.as_str());
            label(&mut labels, "kn_route_tag", outcome.tag);
            label(&mut labels, "network_protocol_name", "http");
            label(&mut labels, "network_protocol_version", version(outcome.version));
            labels.push(',');
            labels.push_str(HTTP_SCOPE);
            label(&mut labels, "server_address", address);
            label(&mut labels, "server_port", port);
            label(&mut labels, "url_scheme", scheme);
            labels
        };
        let server = labels(host, &port, if outcome.tls { "https" } else { "http" });
        let seconds = outcome.total.as_secs_f64();
        let mut state = self.state.lock();
        state.observe(
            "http_server_request_duration_seconds",
            "Duration of HTTP server requests.",
            SECONDS,
            &server,
            seconds,
        );
        state.observe(
            "http_server_request_body_size_bytes",
            "Size of HTTP server request bodies.",
            BYTES,
            &server,
            outcome.request_bytes as f64,
        );
        state.observe(
            "http_server_response_body_size_bytes",
            "Size of HTTP server response bodies.",
            BYTES,
            &server,
            outcome.response_bytes as f64,
        );
        let Some(program) = outcome.program else { return };
        let client = labels("127.0.0.1", &self.user_port.to_string(), "http");
        state.observe(
            "http_client_request_duration_seconds",
            "Duration of HTTP client requests.",
            SECONDS,
            &client,
            program.as_secs_f64(),
        );
        state.observe(
            "http_client_request_body_size_bytes",
            "Size of HTTP client request bodies.",
            BYTES,
            &client,
            outcome.request_bytes as f64,
        );
        let mut own = String::new();
        let status = if outcome.status == StatusCode::SWITCHING_PROTOCOLS { StatusCode::OK } else { outcome.status };
        label(&mut own, "http_response_status_code", status.as_str());
        own.push(',');
        own.push_str(OWN_SCOPE);
        let help = "The duration of task execution";
        state.observe("kn_serving_invocation_duration_seconds", help, SECONDS, &own, program.as_secs_f64());
    }

    pub(crate) fn render(&self) -> String {
        let mut out = String::new();
        let state = self.state.lock();
        for (name, family) in &state.families {
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} histogram", family.help);
            for (labels, series) in &family.series {
                let mut total = 0;
                for (index, count) in series.counts.iter().enumerate() {
                    total += count;
                    let bound = family.bounds.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
                }
                let _ = writeln!(out, "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {total}", series.sum);
            }
        }
        if let Some(depth) = state.queue_depth {
            let _ = writeln!(
                out,
                "# HELP kn_serving_queue_depth The number of current items in the queue proxy queue\n\
                 # TYPE kn_serving_queue_depth gauge\nkn_serving_queue_depth{{{OWN_SCOPE}}} {depth}"
            );
        }
        drop(state);
        process(&mut out);
        let _ = writeln!(
            out,
            "# HELP target_info Target metadata\n# TYPE target_info gauge\ntarget_info{{{}}} 1",
            self.resource
        );
        out
    }
}

// === impl State ===

impl State {
    fn observe(&mut self, name: &'static str, help: &'static str, bounds: &'static [f64], labels: &str, value: f64) {
        let family = self.families.entry(name).or_insert_with(|| Family { help, bounds, series: BTreeMap::new() });
        let key = if family.series.len() >= MAX_SERIES && !family.series.contains_key(labels) {
            "otel_metric_overflow=\"true\""
        } else {
            labels
        };
        // Looked up before it is inserted, so that a known series costs no allocation.
        if !family.series.contains_key(key) {
            family.series.insert(key.to_owned(), Series { counts: vec![0; bounds.len() + 1], sum: 0.0 });
        }
        if let Some(series) = family.series.get_mut(key) {
            series.counts[bounds.partition_point(|bound| *bound < value)] += 1;
            series.sum += value;
        }
    }
}

/// What the kernel knows of the process.
fn process(out: &mut String) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let stat = read("/proc/self/stat");
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    for (name, kind, help, value) in [
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            (field(11) + field(12)) / 100.0,
        ),
        ("process_open_fds", "gauge", "Number of open file descriptors.", open as f64),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", field(21) * 4096.0),
        ("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", field(20)),
    ] {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}

fn label(out: &mut String, name: &str, value: &str) {
    if !out.is_empty() {
        out.push(',');
    }
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let _ = write!(out, "{name}=\"{value}\"");
}
