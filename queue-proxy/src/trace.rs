//! Spans of requests, exported as OTLP to the installation's collector, or written to standard output.
//!
//! Four spans a request, as upstream has them: `queue` (the request as received), `kn.queueproxy.proxy`,
//! `kn.queueproxy.wait` where concurrency is limited, and the request to the program, which is the parent that the
//! program sees. Spans wait in a bounded list and leave in batches; what does not fit is dropped, not waited for.

mod export;
mod sampler;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::sampler::Sampler;
use crate::{
    Config,
    observed::Seen,
    otlp::{
        Exporter, Signal,
        wire::{KeyValue, Span, Status},
    },
    resource,
};

/// Spans that wait; further ones are dropped.
const WAITING: usize = 2048;
const SCOPE: &str = "knative.dev/serving/pkg/queue";
const SERVER: i32 = 2;
const INTERNAL: i32 = 1;
const CLIENT: i32 = 3;
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The place of one request in its trace.
pub(crate) struct Context {
    trace: u128,
    parent: u64,
    server: u64,
    proxy: u64,
    client: u64,
    sampled: bool,
}

pub(crate) struct Tracer {
    sampler: Sampler,
    resource: Vec<(String, String)>,
    way: Way,
    waiting: Mutex<Vec<Span>>,
    filled: Notify,
}

/// Where spans go.
enum Way {
    Otlp(Exporter),
    Stdout,
}

// === impl Context ===

impl Context {
    /// Tells the program that the request to it is its parent.
    pub(crate) fn inject(&self, headers: &mut HeaderMap) {
        let flags = u8::from(self.sampled);
        let text = format!("00-{:032x}-{:016x}-{flags:02x}", self.trace, self.client);
        headers.insert(TRACEPARENT.clone(), HeaderValue::try_from(text).expect("hexadecimal digits"));
    }
}

/// Trace, parent and the sampled flag of a `traceparent`.
fn parse(text: &str) -> Option<(u128, u64, bool)> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || version == "ff" || trace.len() != 32 || parent.len() != 16 || flags.len() != 2 {
        return None;
    }
    let (trace, parent) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(parent, 16).ok()?);
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (trace != 0 && parent != 0).then_some((trace, parent, flags & 1 == 1))
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

// === impl Tracer ===

impl Tracer {
    /// Nothing if tracing is off, or has nowhere to go, which is logged.
    pub(crate) fn start(config: &Config) -> Option<Arc<Self>> {
        let tracing = &config.observability.tracing;
        let way = match &*tracing.protocol {
            "" | "none" => return None,
            "stdout" => Way::Stdout,
            protocol => match Exporter::new(Signal::Traces, protocol == "grpc", &tracing.endpoint, &config.otel) {
                Ok(exporter) => Way::Otlp(exporter),
                Err(error) => {
                    tracing::error!(error, "spans cannot be exported; tracing stays off");
                    return None;
                }
            },
        };
        let sampler = if matches!(way, Way::Stdout) {
            Sampler::ALWAYS
        } else {
            let configured = Sampler::of_rate(tracing.sampling_rate);
            Sampler::of_variables(&config.otel).unwrap_or(configured)
        };
        let tracer = Arc::new(Self {
            sampler,
            resource: resource::attributes(config),
            way,
            waiting: Mutex::default(),
            filled: Notify::new(),
        });
        tokio::spawn(export::run(Arc::downgrade(&tracer)));
        Some(tracer)
    }

    /// Continues the trace of `headers` or begins one; a parent's decision whether it is sampled stands.
    pub(crate) fn context(&self, headers: &HeaderMap) -> Context {
        let parent = headers.get(&TRACEPARENT).and_then(|value| parse(value.to_str().ok()?));
        let trace = parent.map_or_else(|| u128::from(random()) << 64 | u128::from(random()), |(trace, ..)| trace);
        let sampled = self.sampler.samples(trace, parent.map(|(.., sampled)| sampled));
        let parent = parent.map_or(0, |(_, parent, _)| parent);
        Context { trace, parent, server: random(), proxy: random(), client: random(), sampled }
    }

    /// Adds the spans of a request that has ended.
    pub(crate) fn record(&self, context: &Context, seen: &Seen, status: StatusCode) {
        if !context.sampled {
            return;
        }
        let now = Instant::now();
        let wall = SystemTime::now();
        let at = |instant: Instant| {
            let time = wall.checked_sub(now - instant).unwrap_or(wall);
            time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
        };
        let span = |name: &str, kind, id: u64, parent: u64, start: Instant, end: Instant| Span {
            trace_id: context.trace.to_be_bytes().to_vec(),
            span_id: id.to_be_bytes().to_vec(),
            parent_span_id: if parent == 0 { Vec::new() } else { parent.to_be_bytes().to_vec() },
            name: name.to_owned(),
            kind,
            start: at(start),
            end: at(end),
            attributes: vec![
                KeyValue::text("http.request.method", seen.method.as_str()),
                KeyValue::number("http.response.status_code", i64::from(status.as_u16())),
                KeyValue::text("kn.route.tag", seen.tag()),
                KeyValue::text("server.address", seen.host()),
                KeyValue::text("url.path", seen.uri.path()),
            ],
            status: status.is_server_error().then_some(Status { code: 2 }),
        };
        let mut spans = vec![
            span("queue", SERVER, context.server, context.parent, seen.started, now),
            span("kn.queueproxy.proxy", INTERNAL, context.proxy, context.server, seen.started, now),
        ];
        if let Some(program) = seen.program.get() {
            if let Some(waited) = seen.waited.get() {
                spans.push(span("kn.queueproxy.wait", INTERNAL, random(), context.proxy, *waited, *program));
            }
            let name = format!("HTTP {}", seen.method);
            spans.push(span(&name, CLIENT, context.client, context.proxy, *program, now));
        }
        let mut waiting = self.waiting.lock();
        if waiting.len() + spans.len() <= WAITING {
            waiting.append(&mut spans);
            self.filled.notify_one();
        }
    }
}

/// For the fuzz target: trace and parent of a `traceparent`.
pub(crate) fn try_parent(text: &str) -> Option<(u128, u64)> {
    parse(text).map(|(trace, parent, _)| (trace, parent))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_traceparent_is_read_or_ignored() {
        let valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(parse(valid), Some((0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7, true)));
        for bad in ["", "00", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "00-0-0-0"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse(&valid.replace("00f067aa0ba902b7", "0000000000000000")), None);
    }
}
