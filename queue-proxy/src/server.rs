//! Assembly: the listeners of a sidecar, and its end.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Response, StatusCode, header};
use net::{Breaker, Connections, Http, InFlight, Limits, Pool, PoolOptions, ResponseBody};
use parking_lot::Mutex;
use proto::Message;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::{
    Config, Prober,
    chain::Chain,
    direct::Direct,
    drain::Drainer,
    metrics::Metrics,
    observed::Observers,
    profiling,
    request_log::RequestLog,
    stats::Stats,
    tls::{self, Tls},
    trace::Tracer,
};

/// Waiting requests per slot.
const QUEUE_PER_SLOT: usize = 10;
/// How long upgraded connections may outlive the drain.
const TUNNELS: Duration = Duration::from_secs(60);
/// A drain asked for by the user's container alone is taken back after this long.
const HOOK_ALONE: Duration = Duration::from_secs(1);
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
    let protocol = &*config.observability.request_metrics.protocol;
    if !matches!(protocol, "" | "none" | "prometheus") {
        tracing::error!(protocol, "request metrics are only served to Prometheus; they stay off");
    }
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
        limits: Limits {
            total: config.timeout,
            response_start: config.response_start_timeout,
            idle: config.idle_timeout,
            message: TIMEOUT_MESSAGE,
        },
        pool: Pool::new(user, PoolOptions { max_idle, ..PoolOptions::default() }),
        observers: Arc::new(Observers {
            metrics: config.observability.prometheus().then(|| Arc::new(Metrics::new(&config))),
            log: config.observability.log_template().map(|template| RequestLog::new(template, &config)),
            log_probes: config.observability.enable_probe_request_log,
            server_timing: config.server_timing,
            tracer: Tracer::start(&config),
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
    let (drained, signalled) = (chain.clone(), terminating.clone());
    tokio::spawn(net::serve(admin, connections, move |request, _| {
        let (chain, terminating) = (drained.clone(), signalled.clone());
        async move {
            if request.uri().path() != "/wait-for-drain" {
                return not_found();
            }
            wait_for_drain(&chain, &terminating).await;
            net::empty(StatusCode::OK)
        }
    }));

    let connections = add(&autoscaling)?;
    let scraped = chain.clone();
    tokio::spawn(net::serve(autoscaling, connections, move |request, _| {
        let response = if request.uri().path() == "/metrics" { stat(&scraped) } else { not_found() };
        std::future::ready(response)
    }));

    let mut metrics_address = None;
    if let Some(metrics) = chain.observers.metrics.clone() {
        let listener = listen(&config, config.metrics_port).await?;
        let connections = add(&listener)?;
        metrics_address = Some(listener.local_addr()?);
        tokio::spawn(net::serve(listener, connections, move |request, _| {
            let response = if request.uri().path() == "/metrics" { exposition(&metrics) } else { not_found() };
            std::future::ready(response)
        }));
    }
    if config.observability.profiling() {
        let listener = listen(&config, config.profiling_port).await?;
        let connections = add(&listener)?;
        tokio::spawn(net::serve(listener, connections, |request, _| {
            std::future::ready(profiling::answer(request.uri().path()))
        }));
    }
    let mut tls_address = None;
    if let Some(tls) = Tls::open(&config.certificates, config.tls)? {
        let listener = listen(&config, config.serving_tls_port).await?;
        let connections = add(&listener)?;
        tls_address = Some(listener.local_addr()?);
        let (chain, http) = (chain.clone(), Http::new());
        tokio::spawn(net::accept(listener, connections.clone(), move |stream, peer| {
            secure(tls.acceptor(), stream, peer, connections.clone(), chain.clone(), http.clone())
        }));
    }
    Ok(Handle { chain, servers, terminating, tls_address, metrics_address })
}

/// Serves one connection of the TLS port.
async fn secure(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    connections: Connections,
    chain: Arc<Chain>,
    http: Http,
) {
    match tokio::time::timeout(tls::HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let handler = move |request, peer| chain.clone().handle(request, peer, true);
            http.serve(stream, peer, &connections, handler).await;
        }
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

fn exposition(metrics: &Metrics) -> Response<ResponseBody> {
    let mut response = net::text(StatusCode::OK, metrics.render());
    let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The hook of the user's container: drains until done. If nobody tells the sidecar itself to stop, only that
/// container is being restarted, and the drain is taken back.
async fn wait_for_drain(chain: &Chain, terminating: &Mutex<bool>) {
    let drain = chain.drainer.drain();
    let alone = async {
        tokio::time::sleep(HOOK_ALONE).await;
        if !*terminating.lock() {
            chain.drainer.reset();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = drain => {}
        () = alone => {}
    }
}

fn stat(chain: &Chain) -> Response<ResponseBody> {
    let mut response = net::text(StatusCode::OK, chain.stats.stat(Instant::now()).encode_to_vec());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(proto::CONTENT_TYPE));
    response
}

fn not_found() -> Response<ResponseBody> {
    net::http_error(StatusCode::NOT_FOUND, "404 page not found")
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

    /// Requests in flight, upgraded connections included.
    pub fn in_flight(&self) -> usize {
        self.chain.in_flight.current()
    }

    /// Requests that run or wait for a slot, where concurrency is limited.
    pub fn queued(&self) -> usize {
        self.chain.breaker.as_ref().map_or(0, Breaker::in_flight)
    }

    /// What SIGTERM asks for: probes say no, requests are served until none comes any more, then connections close
    /// as they become idle. Tunnels get a minute.
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
    }
}
