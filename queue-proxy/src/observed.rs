//! Requests that somebody wants to know about: metrics, a line of the request log, a `Server-Timing` header.
//!
//! Where none of it is on, nothing of this runs. Where it is, a request is described before it goes down the chain,
//! and recorded when the last byte of its response has gone out or its client has left.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::{Body as _, Incoming};
use net::headers;
use telemetry::{
    Record, RequestLog, Revision,
    trace::{Context, Tracer},
};

use crate::{
    Config,
    chain::Body,
    metrics::{Metrics, Outcome},
    trace,
};

static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What is on. One per process.
pub(crate) struct Observers {
    pub(crate) metrics: Option<Arc<Metrics>>,
    pub(crate) log: Option<(RequestLog, Revision)>,
    pub(crate) log_probes: bool,
    pub(crate) server_timing: bool,
    pub(crate) tracer: Option<Arc<Tracer>>,
}

/// A request, described while it was whole.
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) peer: SocketAddr,
    pub(crate) tls: bool,
    /// −1 if it is not known.
    pub(crate) length: i64,
    probe: bool,
    pub(crate) started: Instant,
    /// When it came to the breaker.
    pub(crate) waited: OnceLock<Instant>,
    pub(crate) trace: Option<Context>,
    /// When the program got it.
    pub(crate) program: OnceLock<Instant>,
}

// === impl Observers ===

impl Observers {
    pub(crate) fn any(&self) -> bool {
        self.metrics.is_some() || self.log.is_some() || self.server_timing || self.tracer.is_some()
    }

    /// Describes a request, before anything is done with it.
    pub(crate) fn see(&self, request: &Request<Incoming>, peer: SocketAddr, tls: bool) -> Arc<Seen> {
        let mut seen = Seen::new(request, peer, tls);
        seen.trace = self.tracer.as_ref().filter(|_| !seen.probe).map(|tracer| tracer.context(&seen.headers));
        Arc::new(seen)
    }

    /// Arranges for `response` to be recorded at its end.
    pub(crate) fn watch(self: &Arc<Self>, seen: Arc<Seen>, mut response: Response<Body>) -> Response<Body> {
        if self.server_timing
            && !seen.probe
            && let Some(value) = seen.timing()
        {
            response.headers_mut().append(SERVER_TIMING.clone(), value);
        }
        let observers = self.clone();
        let status = response.status();
        response.body_mut().on_end(Box::new(move |bytes, broken| {
            let status = if broken { StatusCode::INTERNAL_SERVER_ERROR } else { status };
            observers.record(&seen, status, if broken { 0 } else { bytes });
        }));
        response
    }

    /// Sends what was recorded and has not left.
    pub(crate) async fn flush(&self) {
        if let Some(tracer) = &self.tracer {
            tracer.export().await;
        }
        if let Some(metrics) = &self.metrics {
            metrics.export().await;
        }
    }

    fn record(&self, seen: &Seen, status: StatusCode, bytes: u64) {
        let now = Instant::now();
        if let (Some(tracer), Some(context)) = (&self.tracer, &seen.trace) {
            trace::record(tracer, context, seen, status);
        }
        if let Some(metrics) = self.metrics.as_ref().filter(|_| !seen.probe) {
            metrics.record(&Outcome {
                method: &seen.method,
                version: seen.version,
                host: seen.host(),
                tls: seen.tls,
                tag: seen.tag(),
                status,
                request_bytes: u64::try_from(seen.length).unwrap_or(0),
                response_bytes: bytes,
                total: now - seen.started,
                program: seen.program.get().map(|started| now - *started),
            });
        }
        if let Some((log, revision)) = self.log.as_ref().filter(|_| !seen.probe || self.log_probes) {
            let line = log.line(&Record {
                method: &seen.method,
                uri: &seen.uri,
                version: seen.version,
                headers: &seen.headers,
                peer: seen.peer,
                tls: seen.tls,
                length: seen.length,
                status,
                bytes,
                latency: now - seen.started,
                revision,
                traced: true,
            });
            // One write, so that lines do not mix.
            let _ = std::io::stdout().lock().write_all(line.as_bytes());
        }
    }
}

/// What the request log says of the revision.
pub(crate) fn revision(config: &Config) -> Revision {
    Revision {
        name: config.revision.clone(),
        namespace: config.namespace.clone(),
        service: config.service.clone(),
        configuration: config.configuration.clone(),
        pod: config.pod.clone(),
        pod_ip: config.pod_ip.map_or_else(String::new, |ip| ip.to_string()),
    }
}

// === impl Seen ===

impl Seen {
    fn new(request: &Request<Incoming>, peer: SocketAddr, tls: bool) -> Self {
        let length = if request.body().is_end_stream() {
            0
        } else {
            request.body().size_hint().exact().map_or(-1, |length| i64::try_from(length).unwrap_or(-1))
        };
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            peer,
            tls,
            length,
            probe: headers::is_probe(request.headers()),
            started: Instant::now(),
            waited: OnceLock::new(),
            trace: None,
            program: OnceLock::new(),
        }
    }

    pub(crate) fn host(&self) -> &str {
        self.uri.authority().map_or_else(|| headers::text(&self.headers, &header::HOST), |host| host.as_str())
    }

    /// `queue;dur=0.1, app;dur=2.5`, in milliseconds, at the moment the response starts.
    fn timing(&self) -> Option<HeaderValue> {
        let program = self.program.get()?;
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        let text = format!("queue;dur={:.3}, app;dur={:.3}", ms(*program - self.started), ms(program.elapsed()));
        HeaderValue::try_from(text).ok()
    }

    pub(crate) fn tag(&self) -> &str {
        let tag = headers::text(&self.headers, &headers::TAG);
        let default = headers::text(&self.headers, &headers::DEFAULT_ROUTE);
        match (tag, default) {
            ("", "") => "kn:disabled",
            ("", _) => "kn:default",
            (_, "true") => "kn:undefined",
            _ => tag,
        }
    }
}
