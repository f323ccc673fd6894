//! Spans of requests, exported as OTLP to the installation's collector, or written to standard output.
//!
//! Which spans a request has is its proxy's business. Here they wait in a bounded list and leave in batches; what does
//! not fit is dropped, not waited for.

mod export;
mod sampler;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::Notify;

use self::sampler::Sampler;
use crate::otlp::{
    Exporter, Otel, Signal,
    wire::{KeyValue, Span, Status},
};

/// Spans that wait; further ones are dropped.
const WAITING: usize = 2048;
const SERVER: i32 = 2;
const INTERNAL: i32 = 1;
const CLIENT: i32 = 3;
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The place of one request in its trace.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    trace: u128,
    pub parent: u64,
    /// Spans of every request: as it was received, what the proxy does with it, and the request it makes.
    pub server: u64,
    pub proxy: u64,
    pub client: u64,
    sampled: bool,
}

/// What a span is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Server,
    Internal,
    Client,
}

/// A part of a request's way that has ended.
#[derive(Debug)]
pub struct Part<'a> {
    pub name: &'a str,
    pub kind: Kind,
    pub id: u64,
    pub parent: u64,
    pub start: Instant,
    pub end: Instant,
}

/// How spans are recorded and where they go.
#[derive(Debug)]
pub struct Settings<'a> {
    /// `none`, `stdout`, `http/protobuf` or `grpc`.
    pub protocol: &'a str,
    pub endpoint: &'a str,
    pub rate: f64,
    pub otel: &'a Otel,
    /// Whose spans they are.
    pub resource: Vec<(String, String)>,
    /// Who made them.
    pub scope: &'static str,
}

pub struct Tracer {
    sampler: Sampler,
    resource: Vec<(String, String)>,
    scope: &'static str,
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
    pub fn inject(&self, headers: &mut HeaderMap) {
        headers.insert(TRACEPARENT.clone(), HeaderValue::try_from(self.parent_of()).expect("hexadecimal digits"));
    }

    /// The same as the text of a `traceparent`.
    pub fn parent_of(&self) -> String {
        let flags = u8::from(self.sampled);
        format!("00-{:032x}-{:016x}-{flags:02x}", self.trace, self.client)
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

/// The number of a span.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish().max(1)
}

// === impl Tracer ===

impl Tracer {
    /// Nothing if tracing is off, or has nowhere to go, which is logged.
    pub fn start(settings: Settings<'_>) -> Option<Arc<Self>> {
        let Settings { protocol, endpoint, rate, otel, resource, scope } = settings;
        let way = match protocol {
            "" | "none" => return None,
            "stdout" => Way::Stdout,
            protocol => match Exporter::new(Signal::Traces, protocol == "grpc", endpoint, otel) {
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
            Sampler::of_variables(otel).unwrap_or(Sampler::of_rate(rate))
        };
        let (waiting, filled) = (Mutex::default(), Notify::new());
        let tracer = Arc::new(Self { sampler, resource, scope, way, waiting, filled });
        tokio::spawn(export::run(Arc::downgrade(&tracer)));
        Some(tracer)
    }

    /// Continues the trace of `headers` or begins one; a parent's decision whether it is sampled stands.
    pub fn context(&self, headers: &HeaderMap) -> Context {
        let parent = headers.get(&TRACEPARENT).and_then(|value| parse(value.to_str().ok()?));
        let trace = parent.map_or_else(|| u128::from(random()) << 64 | u128::from(random()), |(trace, ..)| trace);
        let sampled = self.sampler.samples(trace, parent.map(|(.., sampled)| sampled));
        let parent = parent.map_or(0, |(_, parent, _)| parent);
        Context { trace, parent, server: random(), proxy: random(), client: random(), sampled }
    }

    /// Adds the spans of a request that has ended, all with the same attributes.
    pub fn record(
        &self,
        context: &Context,
        parts: &[Part<'_>],
        texts: &[(&str, &str)],
        numbers: &[(&str, i64)],
        failed: bool,
    ) {
        if !context.sampled {
            return;
        }
        let now = Instant::now();
        let wall = SystemTime::now();
        let at = |instant: Instant| {
            let time = wall.checked_sub(now.saturating_duration_since(instant)).unwrap_or(wall);
            time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
        };
        let texts = texts.iter().map(|(name, text)| KeyValue::text(name, text));
        let numbers = numbers.iter().map(|(name, number)| KeyValue::number(name, *number));
        let mut attributes: Vec<_> = texts.chain(numbers).collect();
        attributes.sort_by(|one, other| one.key.cmp(&other.key));
        let span = |part: &Part<'_>| Span {
            trace_id: context.trace.to_be_bytes().to_vec(),
            span_id: part.id.to_be_bytes().to_vec(),
            parent_span_id: if part.parent == 0 { Vec::new() } else { part.parent.to_be_bytes().to_vec() },
            name: part.name.to_owned(),
            kind: match part.kind {
                Kind::Server => SERVER,
                Kind::Internal => INTERNAL,
                Kind::Client => CLIENT,
            },
            start: at(part.start),
            end: at(part.end),
            attributes: attributes.clone(),
            status: failed.then_some(Status { code: 2 }),
        };
        let mut waiting = self.waiting.lock();
        if waiting.len() + parts.len() <= WAITING {
            waiting.extend(parts.iter().map(span));
            self.filled.notify_one();
        }
    }
}

/// For the fuzz target: trace and parent of a `traceparent`.
#[doc(hidden)]
pub fn try_parent(text: &str) -> Option<(u128, u64)> {
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
