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

use self::template::{Template, Value};
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
        let lookup = |path: &[String]| field(path, seen);
        let made = match &self.template {
            Ok(template) => template.render(&lookup),
            Err(error) => Err(error.clone()),
        };
        let mut line = made.unwrap_or_else(|_| {
            format!(
                "Invalid request log template: method: {}, response code: {}, latency: {}, url: {}",
                seen.request.method,
                seen.status.as_u16(),
                template::float(seen.latency.as_secs_f64()),
                seen.request.uri
            )
        });
        if !line.ends_with('\n') {
            line.push('\n');
        }
        line
    }
}

fn field(path: &[String], seen: &Record<'_>) -> Option<Value> {
    let path: Vec<_> = path.iter().map(String::as_str).collect();
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    let revision = seen.revision;
    match path[..] {
        ["Request", "Method"] => text(seen.request.method.as_str()),
        ["Request", "RequestURI"] => text(&target(seen)),
        ["Request", "URL"] => text(seen.request.uri.path_and_query().map_or("/", |path| path.as_str())),
        ["Request", "URL", "Path"] => text(seen.request.uri.path()),
        ["Request", "URL", "RawQuery"] => text(seen.request.uri.query().unwrap_or("")),
        ["Request", "ContentLength"] => Some(Value::Integer(seen.request.length)),
        ["Request", "UserAgent"] => text(headers::text(&seen.request.headers, &header::USER_AGENT)),
        ["Request", "Referer"] => text(headers::text(&seen.request.headers, &header::REFERER)),
        ["Request", "RemoteAddr"] => text(
            &std::net::SocketAddr::new(seen.request.peer.ip().to_canonical(), seen.request.peer.port()).to_string(),
        ),
        ["Request", "Host"] => text(seen.request.host()),
        ["Request", "Proto"] => text(match seen.request.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        }),
        ["Request", "TLS"] => Some(if seen.request.tls { Value::Text("{true}".into()) } else { Value::Nil }),
        ["Request", "Header"] => Some(Value::Headers(seen.request.headers.clone())),
        ["Request", "Header", name] => Some(values(seen, name)),
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
        let _ = template.render(&|path| Some(Value::Text(path.join("."))));
    }
}

fn target(seen: &Record<'_>) -> String {
    if seen.request.version == Version::HTTP_2 {
        seen.request.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
    } else {
        seen.request.uri.to_string()
    }
}

fn values(seen: &Record<'_>, name: &str) -> Value {
    let all = seen.request.headers.get_all(name).iter();
    Value::List(all.map(|value| Value::Text(String::from_utf8_lossy(value.as_bytes()).into_owned())).collect())
}

fn trace<'a>(seen: &Record<'a>) -> &'a str {
    let text = |name: &str| seen.request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    match text("traceparent").split('-').nth(1) {
        Some(id) if !id.is_empty() => id,
        _ => text("x-b3-traceid"),
    }
}
