//! Requests that somebody wants to know about: metrics, a line of the request log, a `Server-Timing` header.
//!
//! Where none of it is on, nothing of this runs. Where it is, a request is described before it goes down the chain,
//! and recorded when the last byte of its response has gone out or its client has left.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use net::{Incoming, headers};
use telemetry::{
    Described, Record, RequestLog, Revision,
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
    pub(crate) request: Described,
    probe: bool,
    /// When it came to the breaker.
    pub(crate) waited: OnceLock<Instant>,
    pub(crate) trace: Option<Context>,
    /// When the program got it.
    pub(crate) program: OnceLock<Instant>,
    /// The program has answered.
    pub(crate) answered: AtomicBool,
    /// The answer was a tunnel.
    tunnel: AtomicBool,
}

/// Records a request at its drop, where no answer tells of its end: its client has left, or it became a tunnel.
pub(crate) struct Ending {
    observers: Arc<Observers>,
    seen: Arc<Seen>,
    tunnel: bool,
    /// Its answer tells of its end.
    disarmed: bool,
}

// === impl Observers ===

impl Observers {
    pub(crate) fn any(&self) -> bool {
        self.metrics.is_some() || self.log.is_some() || self.server_timing || self.tracer.is_some()
    }

    /// Describes a request, before anything is done with it.
    pub(crate) fn see(&self, request: &Request<Incoming>, peer: SocketAddr, tls: bool) -> Arc<Seen> {
        self.describe(Described::new(request, peer, tls), headers::is_probe(request.headers()))
    }

    /// The same of a plain request.
    pub(crate) fn see_plain(&self, head: &wire::Head<'_>, peer: SocketAddr) -> Arc<Seen> {
        let (method, target) = (head.method, head.path);
        self.describe(Described::plain(method, target, head.host, head.fields(), head.body, peer), false)
    }

    fn describe(&self, request: Described, probe: bool) -> Arc<Seen> {
        let trace = self.tracer.as_ref().filter(|_| !probe).map(|tracer| tracer.context(&request.headers));
        Arc::new(Seen {
            request,
            probe,
            waited: OnceLock::new(),
            trace,
            program: OnceLock::new(),
            answered: AtomicBool::new(false),
            tunnel: AtomicBool::new(false),
        })
    }

    /// Arranges for `response` to be recorded at its end.
    pub(crate) fn watch(self: &Arc<Self>, seen: Arc<Seen>, mut response: Response<Body>) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            seen.tunnel.store(true, Ordering::Release);
            return response;
        }
        if self.server_timing
            && !seen.probe
            && let Some(value) = seen.timing().and_then(|text| HeaderValue::try_from(text).ok())
        {
            response.headers_mut().append(SERVER_TIMING.clone(), value);
        }
        let observers = self.clone();
        let status = response.status();
        response.body_mut().on_end(Box::new(move |bytes, broken| {
            observers.record(&seen, status, bytes, broken);
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

    pub(crate) fn record(&self, seen: &Seen, status: StatusCode, bytes: u64, broken: bool) {
        let now = Instant::now();
        let app_status = if broken { StatusCode::INTERNAL_SERVER_ERROR } else { status };
        if let (Some(tracer), Some(context)) = (&self.tracer, &seen.trace) {
            trace::record(tracer, context, seen, app_status);
        }
        if let Some(metrics) = self.metrics.as_ref().filter(|_| !seen.probe) {
            metrics.record(&Outcome {
                method: &seen.request.method,
                version: seen.request.version,
                host: &seen.request.host,
                tls: seen.request.tls,
                tag: seen.tag(),
                status,
                app_status,
                answered: seen.answered.load(Ordering::Acquire),
                request_bytes: u64::try_from(seen.request.length).unwrap_or(0),
                response_bytes: bytes,
                total: now - seen.request.started,
                program: seen.program.get().map(|started| now - *started),
            });
        }
        if let Some((log, revision)) = self.log.as_ref().filter(|_| !seen.probe || self.log_probes) {
            log.write(&Record {
                request: &seen.request,
                status: app_status,
                bytes: if broken { 0 } else { bytes },
                latency: now - seen.request.started,
                revision,
                traced: true,
            });
        }
    }
}

// === impl Ending ===

impl Ending {
    pub(crate) fn new(observers: &Arc<Observers>, seen: &Arc<Seen>) -> Self {
        Self { observers: observers.clone(), seen: seen.clone(), tunnel: false, disarmed: false }
    }

    /// Of the tunnel, if the answer is one.
    pub(crate) fn of_tunnel(observers: &Arc<Observers>, seen: &Arc<Seen>) -> Self {
        let mut ending = Self::new(observers, seen);
        ending.tunnel = true;
        ending
    }

    pub(crate) fn disarm(mut self) {
        self.disarmed = true;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let due = if self.tunnel { self.seen.tunnel.load(Ordering::Acquire) } else { !self.disarmed };
        if due {
            // What upstream takes for the status of an answer that was never given.
            self.observers.record(&self.seen, StatusCode::OK, 0, false);
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
    /// `queue;dur=0.1, app;dur=2.5`, in milliseconds, at the moment the response starts.
    pub(crate) fn timing(&self) -> Option<String> {
        let program = self.program.get()?;
        let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
        Some(format!("queue;dur={:.3}, app;dur={:.3}", ms(*program - self.request.started), ms(program.elapsed())))
    }

    pub(crate) fn tag(&self) -> &str {
        let tag = headers::text(&self.request.headers, &headers::TAG);
        let default = headers::text(&self.request.headers, &headers::DEFAULT_ROUTE);
        match (tag, default) {
            ("", "") => "kn:disabled",
            ("", _) => "kn:default",
            (_, "true") => "kn:undefined",
            _ => tag,
        }
    }
}
