//! Assembly: watches, reports, listeners, and the end of them.

use futures::future::BoxFuture;
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use controller::Context;
use http::{Request, StatusCode};
use net::{Connections, IdleLimits, InFlight, Incoming, Stay, Workers};
use telemetry::{
    otlp::registry::{Export, Wanted},
    tls::Fixed,
};
use tokio::{
    runtime::Handle as Runtime,
    time::{sleep, timeout},
};

use crate::{
    Options,
    direct::Direct,
    handler::Handler,
    metrics::{self, Metrics},
    observed::Observers,
    probe::Probes,
    revisions::{Manner, Revisions},
    sink,
    stats::Reporter,
    throttler::QueueLimit,
    tls::{self, Tls},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Listen(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] tls::Error),
}

/// A running activator. It stops, in good order, when the context's tasks are cancelled.
#[derive(Clone)]
pub struct Handle {
    http: SocketAddr,
    h2c: SocketAddr,
    tls: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    export: Option<Arc<Export>>,
    profiling: Option<SocketAddr>,
    handler: Arc<Handler>,
    connections: Connections,
    lame_duck: Duration,
    drain_limit: Duration,
    /// They end with the last handle.
    _workers: Workers,
}

/// How long what was noted last may take to leave.
const FLUSH: Duration = Duration::from_secs(10);
/// How long an idle connection to a pod is kept.
const IDLE: Duration = Duration::from_secs(90);

/// Binds the ports and starts to serve. The watches may still be on their way then: requests wait for them.
///
/// # Errors
/// A port that cannot be had, with the reason.
///
/// Boxed, so that the code behind it is compiled with this crate and not again in every program that starts it.
pub fn run(ctx: Context, options: Options) -> BoxFuture<'static, Result<Handle, Error>> {
    Box::pin(start_all(ctx, options))
}

async fn start_all(ctx: Context, options: Options) -> Result<Handle, Error> {
    let http = net::listen(options.listen_http).await?;
    let h2c = net::listen(options.listen_h2c).await?;

    let tls = match options.encrypt {
        true => Some((net::listen(options.listen_tls).await?, Tls::watch(&ctx, options.tls.clone()).await?)),
        false => None,
    };

    let workers = Workers::start(match options.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    })?;
    let prober = Probes {
        tasks: ctx.tasks.clone(),
        runtime: Runtime::current(),
        client: ctx.client.clone(),
        limit: options.probe_limit,
        admin_port: options.sidecar_admin_port,
    };
    let limit = QueueLimit::new(options.max_waiting, options.max_waiting_bytes);
    let manner = Manner {
        own: options.pod_ip.parse().ok(),
        reach: options.reach,
        passthrough: options.passthrough,
        load_balancing: options.load_balancing,
        tls: tls.as_ref().map(|(_, tls)| tls.clone()),
        idle: IdleLimits::new(options.max_idle.each, options.max_idle.total, IDLE, workers.count()),
    };
    let revisions = Revisions::new(limit, Arc::new(prober), manner);
    let watches = revisions.watch(&ctx, options.endpoint_slices).await;
    let (sink, connection) = sink::new(&options.autoscaler_url);
    let reporter = Reporter::new(options.pod_name.clone(), sink.clone());
    let observability = options.observability.load();
    let wanted = &observability.metrics;
    let wanted = Wanted { protocol: &wanted.protocol, endpoint: &wanted.endpoint, interval: wanted.interval };
    let exports = matches!(wanted.protocol, "grpc" | "http/protobuf");
    let exported = options.metrics.is_some() || exports;
    let metrics = Metrics::new(options.registry.clone(), exported, workers.count());
    metrics.identify(&[
        ("k8s_namespace_name", &ctx.system_namespace),
        ("k8s_pod_name", &options.pod_name),
        ("service_name", &options.service_name),
        ("service_version", env!("CARGO_PKG_VERSION")),
    ]);
    metrics.collect(reporter.clone(), sink.status().clone());
    let resource = [
        ("k8s.namespace.name", &*ctx.system_namespace),
        ("k8s.pod.name", &options.pod_name),
        ("service.instance.id", &options.pod_name),
        ("service.name", &options.service_name),
        ("service.version", env!("CARGO_PKG_VERSION")),
    ];
    let resource: Vec<_> = resource.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let export = Export::new(metrics.registry(), metrics::INSTRUMENTS, wanted, &options.otel, Vec::clone(&resource));
    let observers = Observers::follow(&options.observability, options.request_log, &options.otel, resource);
    let handler = Arc::new(Handler {
        metrics: metrics.clone(),
        observers,
        revisions,
        watches,
        reporter: reporter.clone(),
        autoscaler: sink.status().clone(),
        in_flight: InFlight::new(),
        draining: AtomicBool::new(false),
        started: Instant::now(),
        cluster_domain: ctx.cluster_domain.clone(),
        encrypts: options.encrypt,
        server_timing: options.server_timing,
    });
    let connections = Connections::new();
    let mut handle = Handle {
        metrics: None,
        export: None,
        profiling: None,
        tls: tls.as_ref().map(|(listener, _)| listener.local_addr()).transpose()?,
        http: http.local_addr()?,
        h2c: h2c.local_addr()?,
        handler: handler.clone(),
        connections: connections.clone(),
        lame_duck: options.lame_duck,
        drain_limit: options.drain_limit,
        _workers: workers.clone(),
    };

    let snapshots = reporter.clone();
    ctx.tasks.spawn("autoscaler connection", connection.run(move || snapshots.snapshot()));
    ctx.tasks.spawn("request reports", async move { reporter.run().await });

    let direct = Direct::new(handler.clone());
    for listener in [http, h2c] {
        let (direct, members) = (direct.clone(), connections.clone());
        let serve = workers.accept(listener, connections.clone(), Stay::Movable, move |stream, peer, seat| {
            direct.clone().serve(stream, peer, seat, members.clone())
        })?;
        ctx.tasks.spawn_graceful("activator", serve);
    }
    if let Some((listener, tls)) = tls {
        ctx.tasks
            .spawn_graceful("activator over TLS", tls.serve(&workers, listener, connections.clone(), handler.clone())?);
    }
    if let Some(address) = options.profiling {
        let listener = net::listen(address).await?;
        handle.profiling = Some(listener.local_addr()?);
        let observability = options.observability.clone();
        // Not a member of the drained ones: who looks at a process that ends is no reason to go on.
        let answer = move |request: Request<Incoming>, _| {
            let on = observability.load().runtime_profiling;
            async move {
                if on {
                    telemetry::profiling::answer::<()>(request).await
                } else {
                    net::http_error(StatusCode::NOT_FOUND, "404 page not found")
                }
            }
        };
        ctx.tasks.spawn("profiling", net::serve(listener, Connections::new(), answer));
    }
    if let Some(address) = options.metrics {
        let tls = options.metrics_tls.as_ref().map(Fixed::acceptor).transpose()?;
        let listener = net::listen(address).await?;
        handle.metrics = Some(listener.local_addr()?);
        ctx.tasks.spawn("metrics", metrics::serve(listener, tls, metrics.registry().clone()));
    }
    if let Some(export) = export {
        ctx.tasks.spawn("metrics", export.clone().run());
        handle.export = Some(export);
    }
    let drain = handle.clone();
    let token = ctx.tasks.token().clone();
    ctx.tasks.spawn_graceful("activator drain", async move {
        token.cancelled().await;
        // Without the watches no pod will come for those who wait.
        drain.handler.revisions.close();
        drain.end().await;
    });
    Ok(handle)
}

// === impl Handle ===

impl Handle {
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    pub fn h2c_address(&self) -> SocketAddr {
        self.h2c
    }

    /// Where encrypted requests come in, if the installation encrypts.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls
    }

    /// Where `/metrics` is, if it was asked for.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// Where profiles are, if they were asked for.
    pub fn profiling_address(&self) -> Option<SocketAddr> {
        self.profiling
    }

    /// Whether reports reach the autoscaler at the moment.
    pub fn autoscaler_connected(&self) -> bool {
        self.handler.autoscaler.connected()
    }

    /// Requests in flight, those that wait and upgraded connections included.
    pub fn in_flight(&self) -> usize {
        self.handler.in_flight.current()
    }

    /// What SIGTERM asks for: health checks fail, requests are served as before for the lame-duck time, then
    /// connections close as they become idle. To be called before the context's tasks are cancelled, since requests
    /// that wait need the watches.
    pub async fn drain(&self) {
        self.handler.draining.store(true, Ordering::Release);
        sleep(self.lame_duck).await;
        self.end().await;
    }

    async fn end(&self) {
        self.handler.draining.store(true, Ordering::Release);
        self.connections.close();
        let finished = async {
            self.connections.closed().await;
            self.handler.in_flight.idle().await;
        };
        if timeout(self.drain_limit, finished).await.is_err() {
            tracing::warn!(open = self.in_flight(), "requests were cut off at the end of the drain");
        }
        let told = async {
            self.handler.observers.flush().await;
            if let Some(export) = &self.export {
                export.send().await;
            }
        };
        if timeout(FLUSH, told).await.is_err() {
            tracing::warn!("metrics and spans of the last requests were not exported in time");
        }
    }

    /// Whether requests for this revision are taken.
    pub fn knows(&self, namespace: &str, name: &str) -> bool {
        self.handler.revisions.get(namespace, name).is_some()
    }

    /// Completes when all revisions and endpoints that existed at the start are known.
    pub async fn synced(&self) {
        self.handler.watches.synced().await;
    }
}
