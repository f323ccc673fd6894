//! The request log: one line per request, made by a template that the installation gives.

mod template;

use std::{net::SocketAddr, time::Duration};

use http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use net::headers;

use self::template::{Template, Value};

/// Makes lines of requests.
pub struct RequestLog {
    template: Result<Template, String>,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Record<'a> {
    pub method: &'a Method,
    pub uri: &'a Uri,
    pub version: Version,
    pub headers: &'a HeaderMap,
    pub peer: SocketAddr,
    pub tls: bool,
    /// −1 if it is not known.
    pub length: i64,
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

// === impl Record ===

impl Record<'_> {
    fn host(&self) -> &str {
        self.uri.authority().map_or_else(|| headers::text(self.headers, &header::HOST), |host| host.as_str())
    }
}

// === impl RequestLog ===

impl RequestLog {
    /// A template that makes no sense is logged, and every line says so.
    pub fn new(template: &str) -> Self {
        let template = Template::parse(template);
        if let Err(error) = &template {
            tracing::error!(error, "the request log template cannot be used");
        }
        Self { template }
    }

    /// With the newline at its end.
    pub fn line(&self, seen: &Record<'_>) -> String {
        let lookup = |path: &[String]| field(path, seen);
        let made = match &self.template {
            Ok(template) => template.render(&lookup),
            Err(error) => Err(error.clone()),
        };
        let mut line = made.unwrap_or_else(|_| {
            format!(
                "Invalid request log template: method: {}, response code: {}, latency: {}, url: {}",
                seen.method,
                seen.status.as_u16(),
                template::float(seen.latency.as_secs_f64()),
                seen.uri
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
        ["Request", "Method"] => text(seen.method.as_str()),
        ["Request", "RequestURI"] => text(&target(seen)),
        ["Request", "URL"] => text(seen.uri.path_and_query().map_or("/", |path| path.as_str())),
        ["Request", "URL", "Path"] => text(seen.uri.path()),
        ["Request", "URL", "RawQuery"] => text(seen.uri.query().unwrap_or("")),
        ["Request", "ContentLength"] => Some(Value::Integer(seen.length)),
        ["Request", "UserAgent"] => text(headers::text(seen.headers, &header::USER_AGENT)),
        ["Request", "Referer"] => text(headers::text(seen.headers, &header::REFERER)),
        ["Request", "RemoteAddr"] => {
            text(&std::net::SocketAddr::new(seen.peer.ip().to_canonical(), seen.peer.port()).to_string())
        }
        ["Request", "Host"] => text(seen.host()),
        ["Request", "Proto"] => text(match seen.version {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2.0",
            _ => "HTTP/1.1",
        }),
        ["Request", "TLS"] => Some(if seen.tls { Value::Text("{true}".into()) } else { Value::Nil }),
        ["Request", "Header"] => Some(Value::Headers(seen.headers.clone())),
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
    if seen.version == Version::HTTP_2 {
        seen.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
    } else {
        seen.uri.to_string()
    }
}

fn values(seen: &Record<'_>, name: &str) -> Value {
    let all = seen.headers.get_all(name).iter();
    Value::List(all.map(|value| Value::Text(String::from_utf8_lossy(value.as_bytes()).into_owned())).collect())
}

fn trace<'a>(seen: &Record<'a>) -> &'a str {
    let text = |name: &str| seen.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    match text("traceparent").split('-').nth(1) {
        Some(id) if !id.is_empty() => id,
        _ => text("x-b3-traceid"),
    }
}
