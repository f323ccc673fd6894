//! The request log: one line per request, made by a template that the installation gives.

mod template;

use std::{
    fmt,
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use http::{StatusCode, Version, header};
use net::headers;
use parking_lot::Mutex;

use self::template::{Map, Template, Value, float};
use crate::Described;

/// Makes lines of requests.
pub struct RequestLog {
    template: Result<Template, String>,
    lines: Lines,
}

/// Where the lines go.
#[derive(Clone)]
pub struct Lines(Arc<Mutex<dyn Write + Send>>);

/// A request that has ended.
#[derive(Debug)]
pub struct Record<'a> {
    pub request: &'a Described,
    pub status: StatusCode,
    pub bytes: u64,
    pub latency: Duration,
    pub revision: &'a Revision,
    /// Whether `.TraceID` has a value.
    pub traced: bool,
}

/// What `.Revision` has.
#[derive(Debug, Clone, Default)]
pub struct Revision {
    pub name: String,
    pub namespace: String,
    pub service: String,
    pub configuration: String,
    pub pod: String,
    pub pod_ip: String,
}

// === impl Lines ===

impl Lines {
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(out)))
    }
}

impl Default for Lines {
    /// Standard output.
    fn default() -> Self {
        Self::to(io::stdout())
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lines")
    }
}

// === impl RequestLog ===

impl RequestLog {
    /// A template that makes no sense is logged, and every line says so.
    pub fn new(template: &str, lines: Lines) -> Self {
        let template = Template::parse(template);
        if let Err(error) = &template {
            tracing::error!(error, "the request log template cannot be used");
        }
        Self { template, lines }
    }

    /// Writes a request's line. One write, so that lines do not mix.
    pub fn write(&self, seen: &Record<'_>) {
        let _ = self.lines.0.lock().write_all(self.line(seen).as_bytes());
    }

    /// False if its template makes no sense.
    pub fn is_usable(&self) -> bool {
        self.template.is_ok()
    }

    /// With the newline at its end.
    fn line(&self, seen: &Record<'_>) -> String {
        let lookup = |path: &[String], arguments: &[Value]| field(path, arguments, seen);
        let made = match &self.template {
            Ok(template) => template.render(&lookup),
            Err(error) => Err(error.clone()),
        };
        let mut line = made.unwrap_or_else(|_| {
            format!(
                "Invalid request log template: method: {}, response code: {}, latency: {}, url: {}",
                seen.request.method,
                seen.status.as_u16(),
                float(seen.latency.as_secs_f64()),
                seen.request.target
            )
        });
        if !line.ends_with('\n') {
            line.push('\n');
        }
        line
    }
}

/// What templates have, by the names of Go's `http.Request` and `url.URL`.
fn field(path: &[String], arguments: &[Value], seen: &Record<'_>) -> Option<Value> {
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    let object = |text: String| Some(Value::Object(path.iter().map(|part| (*part).to_owned()).collect(), text));
    let (request, revision) = (seen.request, seen.revision);
    if !arguments.is_empty() {
        return match (&path[..], arguments) {
            (["Request", "FormValue"], [Value::Text(_)]) => form_value(request, arguments),
            (["Request", "ProtoAtLeast"], [Value::Integer(major), Value::Integer(minor)]) => {
                Some(Value::Bool(version(request.version) >= (*major, *minor)))
            }
            _ => None,
        };
    }
    match path[..] {
        ["Request"] => object(format!("{} {}", request.method, request.target)),
        ["Response"] => object(format!("{{{} {} {}}}", seen.status.as_u16(), seen.bytes, latency(seen))),
        ["Revision"] => object(format!("{{{} {}}}", revision.namespace, revision.name)),
        ["Request", "Method"] => text(request.method.as_str()),
        ["Request", "RequestURI"] => text(&request.target),
        ["Request", "URL"] => object(request.target.clone()),
        ["Request", "URL", "String"] => text(&request.target),
        ["Request", "URL", "RequestURI"] => text(&request.target),
        ["Request", "URL", "Path"] => text(&decoded(request.path())),
        ["Request", "URL", "EscapedPath"] => text(request.path()),
        ["Request", "URL", "RawQuery"] => text(request.query()),
        ["Request", "URL", "Query"] => Some(Value::Map(query(request))),
        // A server's requests have them empty, unless they name a proxy's target.
        [
            "Request",
            "URL",
            "Scheme" | "Host" | "Fragment" | "Opaque" | "RawFragment" | "RawPath" | "Hostname" | "Port",
        ] => text(""),
        ["Request", "Form" | "PostForm" | "Trailer"] => Some(Value::Map(Map::new(std::iter::empty(), false))),
        ["Request", "TransferEncoding"] => {
            let chunked = request.length < 0 && request.version != Version::HTTP_2;
            Some(Value::List(chunked.then(|| Value::Text("chunked".to_owned())).into_iter().collect()))
        }
        ["Request", "Close"] => Some(Value::Bool(headers::lists(&request.headers, &header::CONNECTION, "close"))),
        ["Request", "ContentLength"] => Some(Value::Integer(request.length)),
        ["Request", "UserAgent"] => text(headers::text(&request.headers, &header::USER_AGENT)),
        ["Request", "Referer"] => text(headers::text(&request.headers, &header::REFERER)),
        ["Request", "RemoteAddr"] => {
            text(&std::net::SocketAddr::new(request.peer.ip().to_canonical(), request.peer.port()).to_string())
        }
        ["Request", "Host"] => text(&request.host),
        ["Request", "Proto"] => {
            let (major, minor) = version(request.version);
            text(&format!("HTTP/{major}.{minor}"))
        }
        ["Request", "ProtoMajor"] => Some(Value::Integer(version(request.version).0)),
        ["Request", "ProtoMinor"] => Some(Value::Integer(version(request.version).1)),
        ["Request", "TLS"] if request.tls => object("{true}".to_owned()),
        ["Request", "TLS"] => Some(Value::Nil),
        ["Request", "TLS", "HandshakeComplete"] => Some(Value::Bool(true)),
        ["Request", "Header"] => Some(Value::Map(header_map(request))),
        ["Response", "Code"] => Some(Value::Integer(i64::from(seen.status.as_u16()))),
        ["Response", "Size"] => Some(Value::Integer(i64::try_from(seen.bytes).unwrap_or(i64::MAX))),
        ["Response", "Latency"] => Some(Value::Float(seen.latency.as_secs_f64())),
        ["Revision", "Name"] => text(&revision.name),
        ["Revision", "Namespace"] => text(&revision.namespace),
        ["Revision", "Service"] => text(&revision.service),
        ["Revision", "Configuration"] => text(&revision.configuration),
        ["Revision", "PodName"] => text(&revision.pod),
        ["Revision", "PodIP"] => text(&revision.pod_ip),
        ["TraceID"] => text(if seen.traced { trace(seen) } else { "" }),
        _ => None,
    }
}

/// For the fuzz target: parses `text` and renders it with fields that all have a value.
pub fn try_template(text: &str) {
    if let Ok(template) = Template::parse(text) {
        let _ = template.render(&|path, _| match path {
            [name] => Some(Value::Object(vec![name.clone()], name.clone())),
            [_, name] if name == "Header" => {
                let pairs = [("a", "1"), ("b", "2")].into_iter().cycle().take(4);
                Some(Value::Map(Map::new(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())), true)))
            }
            [_, name] if name == "Code" => Some(Value::Integer(200)),
            path => Some(Value::Text(path.join("."))),
        });
    }
}

fn latency(seen: &Record<'_>) -> String {
    float(seen.latency.as_secs_f64())
}

fn version(version: Version) -> (i64, i64) {
    match version {
        Version::HTTP_10 => (1, 0),
        Version::HTTP_2 => (2, 0),
        _ => (1, 1),
    }
}

/// All but the host, which has a field of its own.
fn header_map(request: &Described) -> Map {
    let others = request.headers.iter().filter(|(name, _)| **name != header::HOST);
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Map::new(others.map(|(name, value)| (name.as_str().to_owned(), text(value))), true)
}

/// The parameters of the query; those that are not well-formed are left out.
fn query(request: &Described) -> Map {
    let parts = request.query().split('&').filter(|part| !part.is_empty() && !part.contains(';'));
    let pairs = parts.map(|part| part.split_once('=').unwrap_or((part, "")));
    Map::new(pairs.map(|(name, value)| (decoded(&name.replace('+', " ")), decoded(&value.replace('+', " ")))), false)
}

fn form_value(request: &Described, arguments: &[Value]) -> Option<Value> {
    Value::Map(query(request)).field("Get", arguments, &|_, _| None).ok()
}

/// With what `%` stands for.
fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|byte| (*byte as char).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn trace<'a>(seen: &Record<'a>) -> &'a str {
    let text = |name: &str| seen.request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    match text("traceparent").split('-').nth(1) {
        Some(id) if !id.is_empty() => id,
        _ => text("x-b3-traceid"),
    }
}
