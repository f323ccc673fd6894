//! Requests that somebody wants to read about: a line of the request log, spans.
//!
//! Where both are off nothing of this runs. The request log follows `config-observability` live; tracing is set once at the start, as upstream does it.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use api::config::Observability;
use arc_swap::ArcSwapOption;
use controller::Config;
use http::{Request, StatusCode};
use net::Incoming;
use telemetry::{
    Lines, Record, RequestLog,
    otlp::Otel,
    trace::{Context, Kind, Part, Settings, Tracer, random},
};

use crate::revisions::Revision;

const SCOPE: &str = "knative.dev/serving/pkg/activator";

/// What is on. One per process.
pub(crate) struct Observers {
    log: ArcSwapOption<RequestLog>,
    lines: Lines,
    tracer: Option<Arc<Tracer>>,
}

/// A request, described while it was whole.
pub(crate) struct Described {
    request: telemetry::Described,
    /// When it began to wait for a pod, and when it had one.
    pub(crate) waiting: OnceLock<Instant>,
    pub(crate) sent: OnceLock<Instant>,
    pub(crate) trace: Option<Context>,
}

// === impl Observers ===

impl Observers {
    /// Follows `config`; spans carry what identifies this process.
    pub(crate) fn follow(
        config: &Config<Observability>,
        lines: Lines,
        otel: &Otel,
        resource: Vec<(String, String)>,
    ) -> Arc<Self> {
        let tracing = config.load().tracing.clone();
        let tracer = Tracer::start(Settings {
            protocol: &tracing.protocol,
            endpoint: &tracing.endpoint,
            rate: tracing.sampling_rate,
            otel,
            resource,
            scope: SCOPE,
        });
        let observers = Arc::new(Self { log: ArcSwapOption::empty(), lines, tracer });
        observers.set_log(&config.load());
        let (following, source) = (observers.clone(), config.clone());
        config.on_change(move || following.set_log(&source.load()));
        observers
    }

    fn set_log(&self, config: &Observability) {
        let on = config.enable_request_log && !config.request_log_template.is_empty();
        self.log.store(on.then(|| Arc::new(RequestLog::new(&config.request_log_template, self.lines.clone()))));
    }

    pub(crate) fn any(&self) -> bool {
        self.tracer.is_some() || self.log.load().is_some()
    }

    /// Sends what is left of spans.
    pub(crate) async fn flush(&self) {
        if let Some(tracer) = &self.tracer {
            tracer.export().await;
        }
    }

    /// Describes a request, before anything is done with it.
    pub(crate) fn describe(&self, request: &Request<Incoming>, peer: SocketAddr, tls: bool) -> Arc<Described> {
        self.described(telemetry::Described::new(request, peer, tls))
    }

    /// The same of a plain request.
    pub(crate) fn describe_plain(&self, head: &wire::Head<'_>, peer: SocketAddr) -> Arc<Described> {
        let (method, target) = (head.method, head.path);
        self.described(telemetry::Described::plain(method, target, head.host, head.fields(), head.body, peer))
    }

    fn described(&self, request: telemetry::Described) -> Arc<Described> {
        let trace = self.tracer.as_ref().map(|tracer| tracer.context(&request.headers));
        Arc::new(Described { request, waiting: OnceLock::new(), sent: OnceLock::new(), trace })
    }

    /// A request for a revision that is not known has ended: a span, and no line.
    pub(crate) fn missed(&self, seen: &Described, status: StatusCode) {
        if let (Some(tracer), Some(context)) = (&self.tracer, &seen.trace) {
            seen.spans(tracer, context, None, status, Instant::now());
        }
    }

    /// A request has ended.
    pub(crate) fn record(&self, seen: &Described, revision: &Revision, status: StatusCode, bytes: u64) {
        let now = Instant::now();
        if let (Some(tracer), Some(context)) = (&self.tracer, &seen.trace) {
            seen.spans(tracer, context, Some(revision), status, now);
        }
        let Some(log) = self.log.load_full() else { return };
        log.write(&Record {
            request: &seen.request,
            status,
            bytes,
            latency: now - seen.request.started,
            // As upstream: no pod and no trace.
            revision: revision.logged.get_or_init(|| {
                Box::new(telemetry::Revision {
                    name: revision.key.name.clone(),
                    namespace: revision.key.namespace.clone(),
                    service: revision.service.to_string(),
                    configuration: revision.configuration.to_string(),
                    ..telemetry::Revision::default()
                })
            }),
            traced: false,
        });
    }
}

// === impl Described ===

impl Described {
    /// `handle` is the request as received, `throttler_try` its wait, `activator_proxy` the rest, and in that the
    /// request to the pod, which is the parent that the pod sees.
    fn spans(&self, tracer: &Tracer, context: &Context, revision: Option<&Revision>, status: StatusCode, now: Instant) {
        let part = |name, kind, id, parent, start, end| Part { name, kind, id, parent, start, end };
        let path = if self.request.path().is_empty() { "/" } else { self.request.path() };
        let request = format!("{} {path}", self.request.method);
        let mut parts = vec![part("handle", Kind::Server, context.server, context.parent, self.request.started, now)];
        if let Some(waiting) = self.waiting.get() {
            let until = self.sent.get().copied().unwrap_or(now);
            parts.push(part("throttler_try", Kind::Internal, random(), context.server, *waiting, until));
        }
        if let Some(sent) = self.sent.get() {
            parts.push(part("activator_proxy", Kind::Internal, context.proxy, context.server, *sent, now));
            parts.push(part(&request, Kind::Client, context.client, context.proxy, *sent, now));
        }
        let mut texts = vec![("http.request.method", self.request.method.as_str())];
        if let Some(revision) = revision {
            texts.extend([
                ("k8s.namespace.name", &*revision.key.namespace),
                ("kn.configuration.name", &revision.configuration),
                ("kn.revision.name", &revision.key.name),
                ("kn.service.name", &revision.service),
            ]);
        }
        texts.extend([("server.address", &*self.request.host), ("url.path", path)]);
        let numbers = [("http.response.status_code", i64::from(status.as_u16()))];
        tracer.record(context, &parts, &texts, &numbers, status.is_server_error());
    }
}
