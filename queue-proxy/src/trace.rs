//! Spans of requests, exported as OTLP over HTTP (`http/protobuf`) to the installation's collector.
//!
//! Four spans a request, as upstream has them: `queue` (the request as received), `kn.queueproxy.proxy`,
//! `kn.queueproxy.wait` where concurrency is limited, and the request to the program, which is the parent that the
//! program sees. Spans wait in a bounded list and leave in batches; what does not fit is dropped, not waited for.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::BodyExt;
use net::{Pool, PoolOptions, RequestBody};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;

use crate::{Config, observed::Seen};

const BATCH: usize = 512;
const WAITING: usize = 2048;
const DELAY: Duration = Duration::from_secs(5);
const EXPORT_TIME: Duration = Duration::from_secs(10);
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
    rate: f64,
    attributes: Vec<KeyValue>,
    waiting: Mutex<Vec<Span>>,
    filled: Notify,
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
    /// Nothing if tracing is off, or set to something that is not supported, which is logged.
    pub(crate) fn start(config: &Config) -> Option<Arc<Self>> {
        let tracing = &config.observability.tracing;
        match &*tracing.protocol {
            "" | "none" => return None,
            "http/protobuf" => {}
            other => {
                tracing::error!(protocol = other, "spans are only exported over http/protobuf; tracing stays off");
                return None;
            }
        }
        let endpoint: Uri = match tracing.endpoint.parse() {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::error!(endpoint = tracing.endpoint, %error, "the tracing endpoint is not a URL; tracing stays off");
                return None;
            }
        };
        let attributes = [
            ("service.name", &config.service),
            ("service.instance.id", &config.pod),
            ("k8s.namespace.name", &config.namespace),
            ("k8s.pod.name", &config.pod),
            ("kn.service.name", &config.service),
            ("kn.configuration.name", &config.configuration),
            ("kn.revision.name", &config.revision),
        ]
        .map(|(key, value)| KeyValue::text(key, value))
        .into();
        let tracer = Arc::new(Self {
            rate: tracing.sampling_rate,
            attributes,
            waiting: Mutex::default(),
            filled: Notify::new(),
        });
        tokio::spawn(export(Arc::downgrade(&tracer), endpoint));
        Some(tracer)
    }

    /// Continues the trace of `headers` or begins one; a parent's decision whether it is sampled stands.
    pub(crate) fn context(&self, headers: &HeaderMap) -> Context {
        let parent = headers.get(&TRACEPARENT).and_then(|value| parse(value.to_str().ok()?));
        let trace = parent.map_or_else(|| u128::from(random()) << 64 | u128::from(random()), |(trace, ..)| trace);
        // As OpenTelemetry decides it: by the lower half of the trace's number, less its top bit.
        let chosen = self.rate >= 1.0 || ((trace as u64 >> 1) as f64) < self.rate * (1_u64 << 63) as f64;
        let sampled = if self.rate >= 1.0 {
            true
        } else if self.rate <= 0.0 {
            false
        } else {
            parent.map_or(chosen, |(.., sampled)| sampled)
        };
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

/// Sends what is there, a while after the first span of a batch; sleeps when there is none.
async fn export(tracer: std::sync::Weak<Tracer>, endpoint: Uri) {
    loop {
        let Some(current) = tracer.upgrade() else { return };
        if current.waiting.lock().is_empty() {
            current.filled.notified().await;
        }
        if current.waiting.lock().len() < BATCH {
            drop(current);
            tokio::time::sleep(DELAY.min(Duration::from_millis(500))).await;
        }
        let Some(current) = tracer.upgrade() else { return };
        let spans = std::mem::take(&mut *current.waiting.lock());
        let count = spans.len();
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource { attributes: current.attributes.clone() }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(Scope { name: "knative.dev/serving/pkg/queue".into() }),
                    spans,
                }],
            }],
        };
        drop(current);
        let sent = tokio::time::timeout(EXPORT_TIME, post(&endpoint, request.encode_to_vec().into())).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%endpoint, error, count, "spans were not exported"),
            Err(_) => tracing::warn!(%endpoint, count, "spans were not exported in time"),
        }
    }
}

async fn post(endpoint: &Uri, body: Bytes) -> Result<(), String> {
    let host = endpoint.host().ok_or("the endpoint has no host")?;
    let port = endpoint.port_u16().unwrap_or(4318);
    let mut addresses = tokio::net::lookup_host((host, port)).await.map_err(|error| error.to_string())?;
    let address: SocketAddr = addresses.next().ok_or("the endpoint's host has no address")?;
    let path = if endpoint.path() == "/" { "/v1/traces" } else { endpoint.path() };
    let mut request = Request::new(RequestBody::Full(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|_| "the endpoint's path cannot be used".to_owned())?;
    let headers = request.headers_mut();
    headers.insert(header::HOST, HeaderValue::try_from(format!("{host}:{port}")).map_err(|error| error.to_string())?);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    let pool = Pool::new(address, PoolOptions { max_idle: 0, ..PoolOptions::default() });
    let response = pool.send(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    response.into_body().collect().await.map_err(|error| error.to_string())?;
    if status.is_success() { Ok(()) } else { Err(format!("the collector answered {status}")) }
}

#[derive(Clone, PartialEq, Message)]
struct ExportRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

// === impl KeyValue ===

impl KeyValue {
    fn text(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: Some(AnyValue { text: Some(value.to_owned()), number: None }) }
    }

    fn number(key: &str, value: i64) -> Self {
        Self { key: key.to_owned(), value: Some(AnyValue { text: None, number: Some(value) }) }
    }
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
