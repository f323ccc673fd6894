//! Assembly: the listeners of a sidecar, and its end.

mod answers;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use http::Request;
use net::{Breaker, Connections, Http, InFlight, Incoming, Limits, Pool, PoolOptions};
use parking_lot::Mutex;
use telemetry::{Lines, RequestLog, Revision, profiling};
use tokio::net::TcpListener;

use crate::{
    Config, Prober,
    chain::Chain,
    direct::Direct,
    drain::Drainer,
    metrics::Metrics,
    observed::{Observers, revision},
    otlp::{Exporter, Signal},
    pending::Pending,
    stats::Stats,
    tls::{self, Fixed, Tls},
    trace,
};

/// Waiting requests per slot.
const QUEUE_PER_SLOT: usize = 10;
/// How long upgraded connections may outlive the drain.
const TUNNELS: Duration = Duration::from_secs(60);
/// How long what was recorded may take to leave when the process ends.
const FLUSH: Duration = Duration::from_secs(10);
const METRICS_HEAD: Duration = Duration::from_secs(5);
const PROFILING_HEAD: Duration = Duration::from_secs(15);
const TIMEOUT_MESSAGE: &str = "request timeout";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Listen(#[from] io::Error),
}

/// A running sidecar.
pub struct Handle {
    chain: Arc<Chain>,
    servers: Vec<Server>,
    terminating: Arc<Mutex<bool>>,
    tls_address: Option<SocketAddr>,
    metrics_address: Option<SocketAddr>,
    profiling_address: Option<SocketAddr>,
}

/// One listener and its connections.
struct Server {
    address: SocketAddr,
    connections: Connections,
}

/// Binds all ports and starts to serve.
///
/// # Errors
/// A port that cannot be had, with the reason.
pub async fn start(config: Config) -> Result<Handle, Error> {
    let in_flight = InFlight::new();
    let concurrency = config.container_concurrency as usize;
    let user = SocketAddr::from((Ipv4Addr::LOCALHOST, config.user_port));
    let max_idle = if concurrency > 0 { concurrency } else { 1000 };
    let chain = Arc::new(Chain {
        drainer: Drainer::new(config.drain, in_flight.clone()),
        in_flight,
        prober: Prober::new(config.readiness_probes.clone(), config.http2_detection),
        stats: Stats::new(config.pod.clone(), Instant::now()),
        breaker: (concurrency > 0).then(|| Breaker::new(QUEUE_PER_SLOT * concurrency, concurrency)),
        pending: Pending::new(config.pending_bytes),
        limits: Limits {
            total: config.timeout,
            response_start: config.response_start_timeout,
            idle: config.idle_timeout,
            message: TIMEOUT_MESSAGE,
        },
        pool: Pool::new(user, PoolOptions { max_idle, ..PoolOptions::default() }),
        observers: Arc::new(Observers {
            metrics: metrics(&config),
            log: request_log(&config),
            log_probes: config.observability.enable_probe_request_log,
            server_timing: config.server_timing,
            tracer: trace::start(&config),
        }),
    });
    let terminating = Arc::new(Mutex::new(false));
    let serving = listen(&config, config.serving_port).await?;
    let admin = listen(&config, config.admin_port).await?;
    let autoscaling = listen(&config, config.autoscaling_port).await?;

    let mut servers = Vec::with_capacity(3);
    let mut add = |listener: &TcpListener| -> io::Result<Connections> {
        let server = Server { address: listener.local_addr()?, connections: Connections::new() };
        let connections = server.connections.clone();
        servers.push(server);
        Ok(connections)
    };

    let connections = add(&serving)?;
    let direct = Direct::new(chain.clone(), user, max_idle);
    tokio::spawn(net::accept(serving, connections.clone(), move |stream, peer| {
        direct.clone().serve(stream, peer, connections.clone())
    }));

    let connections = add(&admin)?;
    let (chain_of_admin, signalled) = (chain.clone(), terminating.clone());
    tokio::spawn(net::serve(admin, connections, move |request, _| {
        let (chain, terminating) = (chain_of_admin.clone(), signalled.clone());
        async move { answers::admin(&request, &chain, &terminating).await }
    }));

    let connections = add(&autoscaling)?;
    let scraped = chain.clone();
    tokio::spawn(net::serve(autoscaling, connections, move |request, _| {
        std::future::ready(answers::autoscaling(&request, &scraped))
    }));

    let mut metrics_address = None;
    if let Some(metrics) = chain.observers.metrics.clone().filter(|_| config.observability.prometheus()) {
        let scraped = &config.metrics;
        let tls = scraped.tls.as_ref().map(Fixed::acceptor).transpose()?;
        let listener = match &*scraped.host {
            "" => listen(&config, scraped.port).await?,
            _ => net::listen(scraped.address().await?).await?,
        };
        let connections = add(&listener)?;
        metrics_address = Some(listener.local_addr()?);
        let http = Http::with_head_time(METRICS_HEAD);
        let answer = move |request: Request<Incoming>, _| std::future::ready(answers::exposition(&request, &metrics));
        tokio::spawn(net::accept(listener, connections.clone(), move |stream, peer| {
            let (tls, http, connections, answer) = (tls.clone(), http.clone(), connections.clone(), answer.clone());
            async move {
                match tls {
                    None => http.serve(stream, peer, &connections, answer).await,
                    Some(acceptor) => {
                        let Some(stream) = tls::handshake(acceptor, stream, peer).await else { return };
                        http.serve(stream, peer, &connections, answer).await;
                    }
                }
            }
        }));
    }
    let mut profiling_address = None;
    if config.observability.profiling() {
        let listener = listen(&config, config.profiling_port).await?;
        let connections = add(&listener)?;
        profiling_address = Some(listener.local_addr()?);
        let http = Http::with_head_time(PROFILING_HEAD);
        tokio::spawn(net::accept(listener, connections.clone(), move |stream, peer| {
            let (http, connections) = (http.clone(), connections.clone());
            async move {
                let answer = |request: Request<Incoming>, _| profiling::answer::<crate::chain::Ticket>(request);
                http.serve(stream, peer, &connections, answer).await;
            }
        }));
    }
    let mut tls_address = None;
    if let Some(tls) = Tls::open(&config.certificates, &config.tls)? {
        let listener = listen(&config, config.serving_tls_port).await?;
        let connections = add(&listener)?;
        tls_address = Some(listener.local_addr()?);
        let (chain, http) = (chain.clone(), Http::new());
        tokio::spawn(net::accept(listener, connections.clone(), move |stream, peer| {
            let (acceptor, chain) = (tls.acceptor(), chain.clone());
            let (http, connections) = (http.clone(), connections.clone());
            async move {
                let Some(stream) = tls::handshake(acceptor, stream, peer).await else { return };
                let handler = move |request, peer| chain.clone().handle(request, peer, true);
                http.serve(stream, peer, &connections, handler).await;
            }
        }));
    }
    if let Some(metrics) = chain.observers.metrics.as_ref().filter(|_| !config.observability.prometheus()) {
        metrics.export_every(config.export_interval());
    }
    Ok(Handle { chain, servers, terminating, tls_address, metrics_address, profiling_address })
}

/// The request log, where it is on and can be made.
fn request_log(config: &Config) -> Option<(RequestLog, Revision)> {
    let settings = &config.observability;
    if settings.enable_request_log && settings.request_log_template.is_empty() {
        tracing::warn!("the request log is on and has no template: set logging.request-log-template; it stays off");
    }
    let log = RequestLog::new(settings.log_template()?, Lines::default());
    if !log.is_usable() {
        tracing::error!("Error setting up request logger. Request logs will be unavailable.");
        return None;
    }
    Some((log, revision(config)))
}

/// Where request metrics are on: to be scraped, or with a collector to send them to.
fn metrics(config: &Config) -> Option<Arc<Metrics>> {
    let settings = &config.observability.request_metrics;
    let exporter = match &*settings.protocol {
        "" | "none" => return None,
        "prometheus" => None,
        protocol => match Exporter::new(Signal::Metrics, protocol == "grpc", &settings.endpoint, &config.otel) {
            Ok(exporter) => Some(exporter),
            Err(error) => {
                tracing::error!(error, "request metrics cannot be exported; they stay off");
                return None;
            }
        },
    };
    Some(Arc::new(Metrics::new(config, exporter)))
}

/// All interfaces, as pods have a network of their own. A pod whose address is a loopback one shares the machine's
/// network with others, and then only that address is its own.
async fn listen(config: &Config, port: u16) -> io::Result<TcpListener> {
    if let Some(ip) = config.pod_ip.filter(IpAddr::is_loopback) {
        return net::listen((ip, port).into()).await;
    }
    match net::listen((Ipv6Addr::UNSPECIFIED, port).into()).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            net::listen((Ipv4Addr::UNSPECIFIED, port).into()).await
        }
        result => result,
    }
}

// === impl Handle ===

impl Handle {
    /// Where requests are served.
    pub fn serving_address(&self) -> SocketAddr {
        self.servers[0].address
    }

    /// Where `/wait-for-drain` is.
    pub fn admin_address(&self) -> SocketAddr {
        self.servers[1].address
    }

    /// Where the autoscaler scrapes.
    pub fn autoscaling_address(&self) -> SocketAddr {
        self.servers[2].address
    }

    /// Where requests are served over TLS, if there is a certificate.
    pub fn tls_address(&self) -> Option<SocketAddr> {
        self.tls_address
    }

    /// Where request metrics are, if they are on.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Where profiles are, if they are on.
    pub fn profiling_address(&self) -> Option<SocketAddr> {
        self.profiling_address
    }

    /// Requests in flight, upgraded connections included.
    pub fn in_flight(&self) -> usize {
        self.chain.in_flight.current()
    }

    /// Requests that run or wait for a slot, where concurrency is limited.
    pub fn queued(&self) -> usize {
        self.chain.breaker.as_ref().map_or(0, Breaker::in_flight)
    }

    /// Requests that have a slot, where concurrency is limited.
    pub fn running(&self) -> usize {
        self.chain.breaker.as_ref().map_or(0, Breaker::executing)
    }

    /// Bytes that requests waiting for a slot hold.
    pub fn pending_bytes(&self) -> usize {
        self.chain.pending.held()
    }

    /// What SIGTERM asks for: probes say no, requests are served until none comes any more, then connections close
    /// as they become idle. Tunnels get a minute; what was recorded leaves last.
    pub async fn terminate(&self) {
        *self.terminating.lock() = true;
        self.chain.drainer.drain().await;
        for server in &self.servers {
            server.connections.close();
        }
        for server in &self.servers {
            server.connections.closed().await;
        }
        if tokio::time::timeout(TUNNELS, self.chain.in_flight.idle()).await.is_err() {
            tracing::warn!(open = self.in_flight(), "connections were cut off after the drain");
        }
        if tokio::time::timeout(FLUSH, self.chain.observers.flush()).await.is_err() {
            tracing::warn!("metrics and spans of the last requests were not exported in time");
        }
    }
}
