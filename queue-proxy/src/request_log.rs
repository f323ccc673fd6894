//! The request log: one line per request, made by a template that the installation gives.

mod template;

use std::time::Duration;

use http::{StatusCode, Version, header};
use net::headers;

use self::template::{Template, Value};
use crate::{Config, observed::Seen};

pub(crate) struct RequestLog {
    template: Result<Template, String>,
    revision: Revision,
}

/// What `.Revision` has.
struct Revision {
    name: String,
    namespace: String,
    service: String,
    configuration: String,
    pod: String,
    pod_ip: String,
}

// === impl RequestLog ===

impl RequestLog {
    pub(crate) fn new(template: &str, config: &Config) -> Self {
        let template = Template::parse(template);
        if let Err(error) = &template {
            tracing::error!(error, "the request log template cannot be used");
        }
        let revision = Revision {
            name: config.revision.clone(),
            namespace: config.namespace.clone(),
            service: config.service.clone(),
            configuration: config.configuration.clone(),
            pod: config.pod.clone(),
            pod_ip: config.pod_ip.map_or_else(String::new, |ip| ip.to_string()),
        };
        Self { template, revision }
    }

    /// With the newline at its end.
    pub(crate) fn line(&self, seen: &Seen, status: StatusCode, bytes: u64, latency: Duration) -> String {
        let lookup = |path: &[String]| self.field(path, seen, status, bytes, latency);
        let made = match &self.template {
            Ok(template) => template.render(&lookup),
            Err(error) => Err(error.clone()),
        };
        let mut line = made.unwrap_or_else(|_| {
            format!(
                "Invalid request log template: method: {}, response code: {}, latency: {}, url: {}",
                seen.method,
                status.as_u16(),
                template::float(latency.as_secs_f64()),
                seen.uri
            )
        });
        if !line.ends_with('\n') {
            line.push('\n');
        }
        line
    }

    fn field(&self, path: &[String], seen: &Seen, status: StatusCode, bytes: u64, latency: Duration) -> Option<Value> {
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        let text = |text: &str| Some(Value::Text(text.to_owned()));
        let revision = &self.revision;
        match path[..] {
            ["Request", "Method"] => text(seen.method.as_str()),
            ["Request", "RequestURI"] => text(&target(seen)),
            ["Request", "URL"] => text(seen.uri.path_and_query().map_or("/", |path| path.as_str())),
            ["Request", "URL", "Path"] => text(seen.uri.path()),
            ["Request", "URL", "RawQuery"] => text(seen.uri.query().unwrap_or("")),
            ["Request", "ContentLength"] => Some(Value::Integer(seen.length)),
            ["Request", "UserAgent"] => text(headers::text(&seen.headers, &header::USER_AGENT)),
            ["Request", "Referer"] => text(headers::text(&seen.headers, &header::REFERER)),
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
            ["Response", "Code"] => Some(Value::Integer(i64::from(status.as_u16()))),
            ["Response", "Size"] => Some(Value::Integer(i64::try_from(bytes).unwrap_or(i64::MAX))),
            ["Response", "Latency"] => Some(Value::Float(latency.as_secs_f64())),
            ["Revision", "Name"] => text(&revision.name),
            ["Revision", "Namespace"] => text(&revision.namespace),
            ["Revision", "Service"] => text(&revision.service),
            ["Revision", "Configuration"] => text(&revision.configuration),
            ["Revision", "PodName"] => text(&revision.pod),
            ["Revision", "PodIP"] => text(&revision.pod_ip),
            ["TraceID"] => text(trace(seen)),
            _ => None,
        }
    }
}

/// For the fuzz target: parses `text` and renders it with fields that all have a value.
pub(crate) fn try_template(text: &str) {
    if let Ok(template) = Template::parse(text) {
        let _ = template.render(&|path| Some(Value::Text(path.join("."))));
    }
}

fn target(seen: &Seen) -> String {
    if seen.version == Version::HTTP_2 {
        seen.uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string)
    } else {
        seen.uri.to_string()
    }
}

fn values(seen: &Seen, name: &str) -> Value {
    let all = seen.headers.get_all(name).iter();
    Value::List(all.map(|value| Value::Text(String::from_utf8_lossy(value.as_bytes()).into_owned())).collect())
}

fn trace(seen: &Seen) -> &str {
    let text = |name: &str| seen.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    match text("traceparent").split('-').nth(1) {
        Some(id) if !id.is_empty() => id,
        _ => text("x-b3-traceid"),
    }
}
