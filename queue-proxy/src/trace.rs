//! The spans of a request, as upstream's sidecar has them: `queue` (the request as received), `kn.queueproxy.proxy`,
//! `kn.queueproxy.wait` where concurrency is limited, and the request to the program, which is the parent that the
//! program sees.

use std::{sync::Arc, time::Instant};

use http::StatusCode;
use telemetry::trace::{Context, Kind, Part, Settings, Tracer, random};

use crate::{Config, observed::Seen, resource};

const SCOPE: &str = "knative.dev/serving/pkg/queue";

/// Nothing if tracing is off, or has nowhere to go, which is logged.
pub(crate) fn start(config: &Config) -> Option<Arc<Tracer>> {
    let tracing = &config.observability.tracing;
    Tracer::start(Settings {
        protocol: &tracing.protocol,
        endpoint: &tracing.endpoint,
        rate: tracing.sampling_rate,
        otel: &config.otel,
        resource: resource::attributes(config),
        scope: SCOPE,
    })
}

/// Adds the spans of a request that has ended.
pub(crate) fn record(tracer: &Tracer, context: &Context, seen: &Seen, status: StatusCode) {
    let now = Instant::now();
    let part = |name, kind, id, parent, start, end| Part { name, kind, id, parent, start, end };
    let mut parts = vec![
        part("queue", Kind::Server, context.server, context.parent, seen.request.started, now),
        part("kn.queueproxy.proxy", Kind::Internal, context.proxy, context.server, seen.request.started, now),
    ];
    let name = format!("HTTP {}", seen.request.method);
    if let Some(program) = seen.program.get() {
        if let Some(waited) = seen.waited.get() {
            parts.push(part("kn.queueproxy.wait", Kind::Internal, random(), context.proxy, *waited, *program));
        }
        parts.push(part(&name, Kind::Client, context.client, context.proxy, *program, now));
    }
    let texts = [
        ("http.request.method", seen.request.method.as_str()),
        ("kn.route.tag", seen.tag()),
        ("server.address", &seen.request.host),
        ("url.path", seen.request.path()),
    ];
    let numbers = [("http.response.status_code", i64::from(status.as_u16()))];
    tracer.record(context, &parts, &texts, &numbers, status.is_server_error());
}
