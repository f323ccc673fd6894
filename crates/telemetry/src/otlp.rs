//! Export over OTLP: where to, how, and how often.
//!
//! Both forms of the protocol: `http/protobuf` is a POST of the message, `grpc` the same message in one frame over
//! HTTP/2. The messages are in `wire`. What OpenTelemetry's own variables say has precedence over the installation's
//! settings, as upstream.

#[cfg(feature = "registry")]
pub mod registry;
pub mod wire;

use std::{collections::BTreeMap, path::Path, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use http::{
    HeaderName, HeaderValue, Method, Request, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::BodyExt;
use net::RequestBody;

use crate::{call::Target, tls};

const HTTP_PORT: u16 = 4318;
const GRPC_PORT: u16 = 4317;
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    Traces,
    Metrics,
}

/// OpenTelemetry's variables of the process, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Otel(pub BTreeMap<String, String>);

/// The way to a collector.
pub struct Exporter {
    target: Target,
    path: PathAndQuery,
    headers: Vec<(HeaderName, HeaderValue)>,
    timeout: Duration,
}

/// Why the collector did not take something.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    message: String,
    /// It may take the same later.
    pub temporary: bool,
}

// === impl Signal ===

impl Signal {
    fn variable(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    fn http_path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    fn grpc_path(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }
}

// === impl Otel ===

impl Otel {
    /// Those of `environment` that are OpenTelemetry's.
    pub fn of(environment: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(environment.into_iter().filter(|(name, _)| name.starts_with("OTEL_")).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    /// A number of milliseconds.
    pub fn milliseconds(&self, name: &str) -> Option<Duration> {
        self.get(name)?.parse().ok().map(Duration::from_millis)
    }

    /// Of the exporter's variables the one for `signal`, or the one for all.
    fn exporter(&self, signal: Signal, what: &str) -> Option<&str> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.variable());
        self.get(&own).or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{what}")))
    }
}

// === impl Exporter ===

impl Exporter {
    /// # Errors
    /// What cannot be used, naming where it came from.
    pub fn new(signal: Signal, grpc: bool, configured: &str, otel: &Otel) -> Result<Self, String> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.variable());
        let (endpoint, is_base) = match (otel.get(&own), otel.get("OTEL_EXPORTER_OTLP_ENDPOINT")) {
            (Some(own), _) => (own, false),
            (None, Some(base)) => (base, true),
            (None, None) => (configured, false),
        };
        let (tls, host, port, path) = split(endpoint)?;
        let path = match (grpc, path) {
            (true, _) => signal.grpc_path().to_owned(),
            (false, "") => signal.http_path().to_owned(),
            (false, base) if is_base => format!("{}{}", base.trim_end_matches('/'), signal.http_path()),
            (false, path) => path.to_owned(),
        };
        let authorities = otel.exporter(signal, "CERTIFICATE").map(Path::new);
        let tls = tls.then(|| tls::client::config(authorities, grpc)).transpose().map_err(|error| error.to_string())?;
        let port = port.unwrap_or(if grpc { GRPC_PORT } else { HTTP_PORT });
        let timeout = otel.exporter(signal, "TIMEOUT").and_then(|text| text.parse().ok());
        Ok(Self {
            target: Target { host: host.to_owned(), port, tls, http2: grpc },
            path: path.parse().map_err(|error| format!("endpoint {endpoint:?}: {error}"))?,
            headers: otel.exporter(signal, "HEADERS").map(headers).unwrap_or_default(),
            timeout: timeout.map_or(TIMEOUT, Duration::from_millis),
        })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Why the collector has not taken it.
    pub async fn send(&self, message: Vec<u8>) -> Result<(), Refused> {
        let exchange =
            async { if self.target.http2 { self.grpc(&message).await } else { self.post(message.into()).await } };
        let answer = tokio::time::timeout(self.timeout, exchange).await;
        answer.unwrap_or_else(|_| Err(Refused::temporary(format!("no answer within {:?}", self.timeout))))
    }

    async fn post(&self, message: Bytes) -> Result<(), Refused> {
        let mut request = self.request(message, "application/x-protobuf");
        *request.uri_mut() = Uri::from(self.path.clone());
        if let Ok(host) = HeaderValue::try_from(self.target.authority()) {
            request.headers_mut().insert(header::HOST, host);
        }
        let response = self.target.send(request).await.map_err(Refused::temporary)?;
        let status = response.status();
        let _ = response.into_body().collect().await;
        if status.is_success() {
            return Ok(());
        }
        let temporary = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        Err(Refused { message: format!("the collector answered {status}"), temporary })
    }

    async fn grpc(&self, message: &[u8]) -> Result<(), Refused> {
        let mut frame = BytesMut::with_capacity(message.len() + 5);
        frame.put_u8(0);
        frame.put_u32(message.len() as u32);
        frame.put_slice(message);
        let mut request = self.request(frame.freeze(), "application/grpc");
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(if self.target.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Authority::try_from(self.target.authority()).ok();
        parts.path_and_query = Some(self.path.clone());
        *request.uri_mut() = Uri::from_parts(parts).map_err(|error| Refused::for_good(error.to_string()))?;

        let response = self.target.send(request).await.map_err(Refused::temporary)?;
        let status = |map: &http::HeaderMap| map.get("grpc-status").and_then(|value| value.to_str().ok()?.parse().ok());
        let early: Option<u32> = status(response.headers());
        let answered = response.status();
        let body = response.into_body().collect().await.map_err(|error| Refused::temporary(error.to_string()))?;
        match body.trailers().and_then(status).or(early) {
            Some(0) => Ok(()),
            // Cancelled, deadline, aborted, out of range, unavailable, data loss.
            Some(code @ (1 | 4 | 10 | 11 | 14 | 15)) => {
                Err(Refused::temporary(format!("the collector answered with gRPC status {code}")))
            }
            Some(code) => Err(Refused::for_good(format!("the collector answered with gRPC status {code}"))),
            None => Err(Refused::for_good(format!("the collector answered {answered} and no gRPC status"))),
        }
    }

    fn request(&self, message: Bytes, kind: &'static str) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::Full(message));
        *request.method_mut() = Method::POST;
        if self.target.http2 {
            *request.version_mut() = http::Version::HTTP_2;
        }
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
        request
    }
}

// === impl Refused ===

impl Refused {
    fn temporary(message: String) -> Self {
        Self { message, temporary: true }
    }

    fn for_good(message: String) -> Self {
        Self { message, temporary: false }
    }
}

/// Whether it is encrypted, host, port and path of a collector's URL; without a scheme it is `host:port`.
fn split(endpoint: &str) -> Result<(bool, &str, Option<u16>, &str), String> {
    let (tls, rest) = match endpoint.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        Some((scheme, _)) => return Err(format!("endpoint {endpoint:?}: {scheme:?} is neither http nor https")),
        None => (false, endpoint),
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let port = port.parse().map_err(|_| format!("endpoint {endpoint:?}: {port:?} is not a port"))?;
            (host, Some(port))
        }
        _ => (authority, None),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(format!("endpoint {endpoint:?} names no host"));
    }
    Ok((tls, host, port, path))
}

/// `name=value,name=value`; what is not of this form is left out.
fn headers(text: &str) -> Vec<(HeaderName, HeaderValue)> {
    let pairs = text.split(',').filter_map(|item| item.split_once('='));
    let read = |(name, value): (&str, &str)| {
        Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::try_from(value.trim()).ok()?))
    };
    pairs.filter_map(read).collect()
}

/// For the fuzz target: takes `text` apart as an endpoint and as headers.
pub fn try_endpoint(text: &str) {
    if let Ok((_, host, _, path)) = split(text) {
        assert!(!host.is_empty() && (path.is_empty() || path.starts_with('/')), "{text:?}");
    }
    let _ = headers(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter(grpc: bool, configured: &str, variables: &[(&str, &str)]) -> Exporter {
        let otel = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Exporter::new(Signal::Traces, grpc, configured, &Otel(otel)).expect("valid")
    }

    fn url(exporter: &Exporter) -> String {
        format!("{}{}", exporter.target.authority(), exporter.path)
    }

    #[test]
    fn an_endpoint_is_a_url_with_the_protocols_defaults() {
        let grpc = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        assert_eq!(url(&exporter(false, "http://collector.ns", &[])), "collector.ns:4318/v1/traces");
        assert_eq!(url(&exporter(false, "http://collector:99/", &[])), "collector:99/");
        assert_eq!(url(&exporter(false, "http://collector:99/own/path", &[])), "collector:99/own/path");
        assert_eq!(url(&exporter(true, "http://[::1]", &[])), format!("[::1]:4317{grpc}"));
        assert_eq!(url(&exporter(true, "collector:99", &[])), format!("collector:99{grpc}"));
        for bad in ["ftp://a", "http://", "http://a:b", ""] {
            assert!(Exporter::new(Signal::Traces, false, bad, &Otel::default()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn opentelemetrys_variables_have_precedence_and_the_signals_own_over_all() {
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:1/x/");
        assert_eq!(url(&exporter(false, "http://a", &[base])), "base:1/x/v1/traces");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:2/y");
        assert_eq!(url(&exporter(false, "http://a", &[base, own])), "own:2/y");
        let metrics = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://other:3");
        assert_eq!(url(&exporter(false, "http://a", &[metrics])), "a:4318/v1/traces");
        let with = exporter(
            false,
            "http://a",
            &[("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret, broken, x-b = 2"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "250")],
        );
        assert_eq!((with.headers.len(), with.timeout), (2, Duration::from_millis(250)));
    }
}
