//! Request metrics, with the names and attributes of upstream's sidecar, for Prometheus or as OTLP.
//!
//! One lock for the few series there are: it is taken once per request, at its end, and only where metrics are on.

mod otlp;
mod prometheus;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use http::{Method, StatusCode, Version};
use parking_lot::Mutex;

use crate::{Config, otlp::Exporter, resource};

const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const BYTES: &[f64] =
    &[0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0];
/// Clients choose hosts and methods; beyond this many combinations they are counted together.
const MAX_SERIES: usize = 500;
const HTTP: Scope = Scope { name: "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp", version: "0.69.0" };
const OWN: Scope = Scope { name: "knative.dev/serving/pkg/queue", version: "" };

static CLIENT_BODY: Family = Family {
    name: "http.client.request.body.size",
    unit: "By",
    help: "Size of HTTP client request bodies.",
    bounds: BYTES,
    scope: &HTTP,
};
static CLIENT_DURATION: Family = Family {
    name: "http.client.request.duration",
    unit: "s",
    help: "Duration of HTTP client requests.",
    bounds: SECONDS,
    scope: &HTTP,
};
static SERVER_BODY: Family = Family {
    name: "http.server.request.body.size",
    unit: "By",
    help: "Size of HTTP server request bodies.",
    bounds: BYTES,
    scope: &HTTP,
};
static SERVER_DURATION: Family = Family {
    name: "http.server.request.duration",
    unit: "s",
    help: "Duration of HTTP server requests.",
    bounds: SECONDS,
    scope: &HTTP,
};
static SERVER_RESPONSE: Family = Family {
    name: "http.server.response.body.size",
    unit: "By",
    help: "Size of HTTP server response bodies.",
    bounds: BYTES,
    scope: &HTTP,
};
static INVOCATION: Family = Family {
    name: "kn.serving.invocation.duration",
    unit: "s",
    help: "The duration of task execution",
    bounds: SECONDS,
    scope: &OWN,
};
const DEPTH: &str = "kn.serving.queue.depth";
const DEPTH_UNIT: &str = "{request}";
const DEPTH_HELP: &str = "The number of current items in the queue proxy queue";

/// What is known of a request at its end.
pub(crate) struct Outcome<'a> {
    pub(crate) method: &'a Method,
    pub(crate) version: Version,
    pub(crate) host: &'a str,
    pub(crate) tls: bool,
    pub(crate) tag: &'a str,
    pub(crate) status: StatusCode,
    /// What the program is taken to have answered: 500 for what it broke off.
    pub(crate) app_status: StatusCode,
    /// The program answered.
    pub(crate) answered: bool,
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    pub(crate) total: Duration,
    /// Since the program got it; none if it never did.
    pub(crate) program: Option<Duration>,
}

pub(crate) struct Metrics {
    state: Mutex<State>,
    resource: Vec<(String, String)>,
    started: SystemTime,
    user_port: u16,
    exporter: Option<Exporter>,
}

#[derive(Default)]
struct State {
    families: BTreeMap<&'static str, (&'static Family, BTreeMap<Labels, Series>)>,
    queue_depth: Option<usize>,
}

/// A histogram, by the names OpenTelemetry gives things.
struct Family {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    bounds: &'static [f64],
    scope: &'static Scope,
}

/// What is said to measure.
struct Scope {
    name: &'static str,
    version: &'static str,
}

/// Attributes, sorted by name.
type Labels = Vec<(&'static str, Cow<'static, str>)>;

struct Series {
    counts: Vec<u64>,
    sum: f64,
    min: f64,
    max: f64,
}

// === impl Metrics ===

impl Metrics {
    pub(crate) fn new(config: &Config, exporter: Option<Exporter>) -> Self {
        Self {
            state: Mutex::default(),
            resource: resource::attributes(config),
            started: SystemTime::now(),
            user_port: config.user_port,
            exporter,
        }
    }

    /// Notes how many run or wait, when one is dispatched.
    pub(crate) fn dispatched(&self, in_flight: usize) {
        self.state.lock().queue_depth = Some(in_flight);
    }

    pub(crate) fn record(&self, outcome: &Outcome<'_>) {
        let (host, port) = outcome.host.rsplit_once(':').unwrap_or((outcome.host, ""));
        let status = |status: StatusCode| Cow::from(status.as_str().to_owned());
        let answered = ("http.response.status_code", status(outcome.status));
        let labels =
            |outcome_of: (&'static str, Cow<'static, str>), address: String, port: &str, scheme: &'static str| {
                let mut labels: Labels = vec![
                    ("http.request.method", method(outcome.method).into()),
                    outcome_of,
                    ("kn.route.tag", outcome.tag.to_owned().into()),
                    ("network.protocol.name", "http".into()),
                    ("network.protocol.version", version(outcome.version).into()),
                    ("server.address", address.into()),
                    ("url.scheme", scheme.into()),
                ];
                // A host without a port says nothing of one.
                if !port.is_empty() {
                    labels.push(("server.port", port.to_owned().into()));
                }
                labels.sort_unstable_by_key(|(name, _)| *name);
                labels
            };
        let server = labels(answered.clone(), host.to_owned(), port, if outcome.tls { "https" } else { "http" });
        let request_bytes = outcome.request_bytes as f64;
        let mut state = self.state.lock();
        state.observe(&SERVER_DURATION, &server, outcome.total.as_secs_f64());
        state.observe(&SERVER_BODY, &server, request_bytes);
        state.observe(&SERVER_RESPONSE, &server, outcome.response_bytes as f64);
        let Some(program) = outcome.program.map(|time| time.as_secs_f64()) else { return };
        let failed = ("error.type", "_OTHER".into());
        let of_program = if outcome.answered { answered } else { failed };
        let client = labels(of_program, "127.0.0.1".to_owned(), &self.user_port.to_string(), "http");
        state.observe(&CLIENT_DURATION, &client, program);
        state.observe(&CLIENT_BODY, &client, request_bytes);
        let own = vec![("http.response.status_code", status(outcome.app_status))];
        state.observe(&INVOCATION, &own, program);
    }
}

// === impl State ===

impl State {
    fn observe(&mut self, family: &'static Family, labels: &Labels, value: f64) {
        let (_, all) = self.families.entry(family.name).or_insert_with(|| (family, BTreeMap::new()));
        if !all.contains_key(labels) {
            let full = all.len() >= MAX_SERIES;
            let key = if full { vec![("otel.metric.overflow", "true".into())] } else { labels.clone() };
            all.entry(key.clone()).or_insert_with(|| Series::new(family.bounds)).observe(family.bounds, value);
            return;
        }
        if let Some(series) = all.get_mut(labels) {
            series.observe(family.bounds, value);
        }
    }
}

// === impl Series ===

impl Series {
    fn new(bounds: &[f64]) -> Self {
        Self { counts: vec![0; bounds.len() + 1], sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY }
    }

    fn observe(&mut self, bounds: &[f64], value: f64) {
        self.counts[bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum += value;
        (self.min, self.max) = (self.min.min(value), self.max.max(value));
    }
}

fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("_OTHER")
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    }
}
