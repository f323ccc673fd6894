//! The activator between a client and a sidecar with a tiny program, all on loopback, against the embedded Kubernetes
//! API; nginx in the same place for comparison; with `--envoy` also behind a gateway. Then 10,000 held requests, and
//! many revisions that wake at once.
//!
//! Sleeping revisions wake when this program gives them endpoints, so what is measured is what the activator does:
//! take the requests, hold them, hear of the endpoints, and pass the requests on.

mod added;
mod changes;
mod gateway;
mod refusing;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures::{StreamExt, stream};
use k8s_openapi::api::{core::v1::Endpoints, discovery::v1::EndpointSlice};
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinSet,
};

use crate::{
    figures::{ms, quantile},
    queue_proxy::{
        Table,
        load::{self, Load, Protocol},
        process::{Kind, Running},
        program::{Program, SMALL},
    },
};

const NAMESPACE: &str = "default";
const BUSY: &str = "Knative-Serving-Namespace: default\r\nKnative-Serving-Revision: rev-0\r\n";

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The activator, or several to compare; by default the one beside this program.
    #[arg(long)]
    binary: Vec<PathBuf>,
    /// Another activator, started with the same environment and `--server`. It listens on port 8012.
    #[arg(long)]
    peer: Vec<PathBuf>,
    /// The sidecar; by default the one beside this program.
    #[arg(long)]
    queue_proxy: Option<PathBuf>,
    /// Envoy, to measure the whole path as well.
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Revisions that are known.
    #[arg(long, value_delimiter = ',', default_value = "1,100,5000")]
    revisions: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_value = "1,50,500")]
    connections: Vec<usize>,
    /// Requests per second at which added latency is measured.
    #[arg(long, value_delimiter = ',', default_value = "5000,15000")]
    rates: Vec<f64>,
    /// Requests at a time with which added latency is measured as well.
    #[arg(long, value_delimiter = ',', default_value = "1,2,5,6")]
    closed: Vec<usize>,
    /// Slices of time in which added latency is measured; each has a quarter of a second for each proxy.
    #[arg(long, default_value_t = 20)]
    slices: usize,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Requests held at once.
    #[arg(long, default_value_t = 10_000)]
    held: usize,
    /// Pods of a revision one of whose endpoints changes again and again.
    #[arg(long, value_delimiter = ',')]
    pods: Vec<usize>,
    /// Measure also with metrics and the request log on.
    #[arg(long)]
    observed: bool,
    /// Sleeping revisions that are asked at once, 10 requests each.
    #[arg(long, default_value_t = 500)]
    storm: usize,
}

/// An API with revisions.
struct Cluster {
    server: apiserver::Server,
    url: String,
    known: usize,
    /// Whether it asks for metrics and the request log.
    observed: bool,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let beside = |name: &str| anyhow::Ok(std::env::current_exe()?.with_file_name(name));
    let path = options.queue_proxy.clone().map_or_else(|| beside("queue-proxy"), Ok)?;
    let program = program()?;
    let sidecar = Kind::QueueProxy { name: "queue-proxy".into(), path };
    let sidecar = Running::start(&sidecar, &program, Protocol::Http1).await?;
    let own = if options.binary.is_empty() { vec![beside("activator")?] } else { options.binary.clone() };
    let one = own.len() == 1;
    let name = |n: usize| if one { "postrider".to_owned() } else { format!("postrider {}", n + 1) };
    let mut activators: Vec<_> = own.into_iter().enumerate().map(|(n, path)| (name(n), path, true)).collect();
    activators
        .extend(options.peer.iter().enumerate().map(|(n, path)| (format!("peer {}", n + 1), path.clone(), false)));

    let mut table = Table::default();
    for &revisions in &options.revisions {
        let mut clusters = Vec::new();
        for observed in [false, true].into_iter().filter(|observed| options.observed || !observed) {
            let mut cluster = Cluster::start(observed).await?;
            cluster.grow(revisions, 0).await?;
            cluster.wake(0, sidecar.address).await?;
            clusters.push(cluster);
        }
        let is_first = revisions == options.revisions[0];
        for _ in 0..options.rounds {
            for cluster in &clusters {
                for (name, path, is_own) in &activators {
                    let name = &format!("{name}{}", if cluster.observed { ", observed" } else { "" });
                    let activator = start(path, cluster, *is_own).await?;
                    measure(name, revisions, &activator, &options, &mut table).await?;
                    if is_first {
                        behind_envoy(name, &activator, &options, &mut table).await?;
                    }
                    activator.stop().await?;
                }
            }
            if is_first {
                let floor = forwarder(sidecar.address).await?;
                measure("forwarder", revisions, &floor, &options, &mut table).await?;
                floor.stop().await?;
            }
            if Kind::Nginx.is_installed() && is_first {
                let nginx = Running::start(&Kind::Nginx, &Program::at(sidecar.address), Protocol::Http1).await?;
                measure("nginx", revisions, &nginx, &options, &mut table).await?;
                behind_envoy("nginx", &nginx, &options, &mut table).await?;
                nginx.stop().await?;
            }
        }
        if is_first {
            let mut proxies: Vec<(String, Running)> = Vec::new();
            for cluster in &clusters {
                for (name, path, is_own) in &activators {
                    // Others all listen on the same port.
                    if !is_own && proxies.iter().any(|(other, _)| other.starts_with("peer")) {
                        continue;
                    }
                    let name = format!("{name}{}", if cluster.observed { ", observed" } else { "" });
                    proxies.push((name, start(path, cluster, *is_own).await?));
                }
            }
            proxies.push(("forwarder".to_owned(), forwarder(sidecar.address).await?));
            if Kind::Nginx.is_installed() {
                let nginx = Running::start(&Kind::Nginx, &Program::at(sidecar.address), Protocol::Http1).await?;
                proxies.push(("nginx".to_owned(), nginx));
            }
            // A thread of its own, which waits with the finest clock, while this one's others serve the API.
            tokio::task::block_in_place(|| added::measure(&proxies, sidecar.address, &options, &mut table))?;
            for (_, proxy) in proxies {
                proxy.stop().await?;
            }
        }
    }
    for (name, path, is_own) in &activators {
        changes::measure(name, path, *is_own, sidecar.address, &options.pods, &mut table).await?;
    }
    if options.held + options.storm == 0 {
        table.print();
        return sidecar.stop().await;
    }
    for (name, path, is_own) in &activators {
        waiting(name, path, *is_own, sidecar.address, &options, &mut table).await?;
    }
    table.print();
    sidecar.stop().await
}

async fn measure(name: &str, revisions: usize, proxy: &Running, options: &Options, table: &mut Table) -> Result<()> {
    let fresh = proxy.resident();
    table.add(name, &format!("{revisions} revisions: resident idle, MiB"), fresh);
    for &connections in &options.connections {
        let duration = Duration::from_secs_f64(options.seconds);
        let load = Load { protocol: Protocol::Http1, connections, body: SMALL, rate: None, duration, fields: BUSY };
        let before = proxy.cpu();
        let figures = load::run(load, proxy.address).await.with_context(|| name.to_owned())?;
        let cpu = (proxy.cpu() - before).as_secs_f64() * 1e6 / figures.requests as f64;
        let label = format!("{revisions} revisions, {connections} conn");
        table.add(name, &format!("{label}: CPU/request, us"), cpu);
        table.add(name, &format!("{label}: requests/s"), figures.rate);
        for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
            table.add(name, &format!("{label}: {what}, us"), figures.quantile(share) * 1e6);
        }
    }
    Ok(())
}

/// The program on a thread of its own, so that it is woken as a process of its own would be.
fn program() -> Result<Program> {
    let (started, start) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("program".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            started.send(Program::start().await?)?;
            std::future::pending::<Result<()>>().await
        })
    })?;
    start.recv().context("the program did not start")
}

/// What only passes bytes on, in the same place.
async fn forwarder(to: SocketAddr) -> Result<Running> {
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["forwarder", "--listen", &address.to_string(), "--to", &to.to_string()]).kill_on_drop(true);
    let before = Instant::now();
    let child = command.spawn().context("cannot start the forwarder")?;
    while TcpStream::connect(address).await.is_err() {
        ensure!(before.elapsed() < Duration::from_secs(10), "no answer on {address}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Running::adopt(child, address, before.elapsed())
}

/// The whole path of an installation.
async fn behind_envoy(name: &str, proxy: &Running, options: &Options, table: &mut Table) -> Result<()> {
    let Some(envoy) = &options.envoy else { return Ok(()) };
    let gateway = gateway::Gateway::start(envoy, proxy.address).await?;
    for connections in [1, 32] {
        let duration = Duration::from_secs_f64(options.seconds);
        let load = Load { protocol: Protocol::Http1, connections, body: SMALL, rate: None, duration, fields: "" };
        let before = proxy.cpu();
        let figures = load::run(load, gateway.address).await.with_context(|| name.to_owned())?;
        let cpu = (proxy.cpu() - before).as_secs_f64() * 1e6 / figures.requests as f64;
        let label = format!("behind Envoy, {connections} conn");
        table.add(name, &format!("{label}: CPU/request, us"), cpu);
        table.add(name, &format!("{label}: requests/s"), figures.rate);
        for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
            table.add(name, &format!("{label}: {what}, us"), figures.quantile(share) * 1e6);
        }
    }
    gateway.stop().await
}

/// Requests that wait: what they weigh, and how long they take once their revisions wake.
async fn waiting(
    name: &str,
    path: &Path,
    is_own: bool,
    sidecar: SocketAddr,
    options: &Options,
    table: &mut Table,
) -> Result<()> {
    let mut cluster = Cluster::start(false).await?;
    // So that the pod they share is not asked for more than a process may have open.
    cluster.grow(options.storm.max(1), 20).await?;
    for (what, revisions, requests) in
        [("held", options.storm.min(100), options.held), ("storm", options.storm, options.storm * 10)]
    {
        let activator = start(path, &cluster, is_own).await?;
        let before = activator.resident();
        let mut answers = JoinSet::new();
        for number in 0..requests {
            let stream = TcpStream::connect(activator.address).await?;
            answers.spawn(held(stream, number % revisions));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        ensure!(answers.try_join_next().is_none(), "a request was answered though its revision sleeps");
        table.add(name, &format!("{what}: {requests} requests wait, resident before, MiB"), before);
        table.add(name, &format!("{what}: {requests} requests wait, resident, MiB"), activator.resident());
        let woken = Instant::now();
        stream::iter(0..revisions).map(|n| cluster.wake(n, sidecar)).buffer_unordered(8).for_each(async |_| {}).await;
        let (mut taken, mut errors) = (Vec::new(), 0);
        while let Some(answer) = answers.join_next().await {
            match answer? {
                Ok(at) => taken.push(at - woken),
                Err(error) => {
                    errors += 1;
                    eprintln!("{name}: {error}");
                }
            }
        }
        let row = format!("{what}: {revisions} revisions wake");
        table.add(name, &format!("{row}, errors"), f64::from(errors));
        for (label, share) in [("median", 0.5), ("last", 1.0)] {
            println!("{name}: {row}, {label} answer after {} ms", ms(quantile(&taken, share)));
            table.add(name, &format!("{row}, {label} answer, ms"), quantile(&taken, share).as_secs_f64() * 1e3);
        }
        activator.stop().await?;
        for number in 0..revisions {
            cluster.sleep(number).await?;
        }
    }
    Ok(())
}

/// One request; when its answer came.
async fn held(mut stream: TcpStream, revision: usize) -> Result<Instant> {
    let request = format!(
        "GET /{SMALL} HTTP/1.1\r\nHost: rev.example.com\r\nKnative-Serving-Namespace: {NAMESPACE}\r\n\
         Knative-Serving-Revision: rev-{revision}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // All of it comes at once or nearly so.
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        ensure!(stream.read_buf(&mut answer).await? > 0, "the connection was closed instead of an answer");
    }
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "answered {:?}", String::from_utf8_lossy(&answer));
    Ok(Instant::now())
}

async fn start(path: &Path, cluster: &Cluster, is_own: bool) -> Result<Running> {
    let free = || async { anyhow::Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?) };
    let mut address = SocketAddr::from(([127, 0, 0, 1], 8012));
    let mut command = Command::new(path);
    command.args(["--server", &cluster.url]).env_clear().envs([
        ("POD_NAME", "activator-bench"),
        ("ENDPOINT_SLICES", "true"),
        ("POD_IP", "127.0.0.1"),
        ("SYSTEM_NAMESPACE", "knative-serving"),
        ("CLUSTER_DOMAIN", "cluster.local"),
        ("CONFIG_LOGGING_NAME", "config-logging"),
        ("CONFIG_OBSERVABILITY_NAME", "config-observability"),
        ("LOG_LEVEL", "error"),
        ("METRICS_PROMETHEUS_PORT", &free().await?.port().to_string()),
        ("PROFILING_PORT", &free().await?.port().to_string()),
    ]);
    if is_own {
        address = free().await?;
        command.args(["--listen-http", &address.to_string(), "--listen-h2c", &free().await?.to_string()]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let before = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {}", path.display()))?;
    while !answers(address, cluster.known).await {
        ensure!(before.elapsed() < Duration::from_secs(30), "no answer on {address}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The last of many revisions may still be on its way.
    tokio::time::sleep(Duration::from_secs(1)).await;
    Running::adopt(child, address, before.elapsed())
}

/// Whether something speaks HTTP there: a revision that does not exist is answered at once when the list is known.
async fn answers(address: SocketAddr, known: usize) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nKnative-Serving-Namespace: {NAMESPACE}\r\n\
             Knative-Serving-Revision: rev-{known}-unknown\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    ask.await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 404"))
}

// === impl Cluster ===

impl Cluster {
    async fn start(observed: bool) -> Result<Self> {
        let server = apiserver::Server::open(apiserver::Options::default()).await?;
        server.apply_manifest(include_str!("../../charts/crds/revisions.serving.knative.dev.yaml"))?;
        server.apply_manifest("{apiVersion: v1, kind: Namespace, metadata: {name: knative-serving}}")?;
        for name in ["config-logging", "config-observability", "config-network", "config-features"] {
            let mut map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": name, "namespace": "knative-serving"}, "data": {}});
            if observed && name == "config-observability" {
                map["data"] = json!({"metrics-protocol": "prometheus", "logging.enable-request-log": "true"});
            }
            server.apply_manifest(&map.to_string())?;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        server.serve(listener, None, "");
        Ok(Self { server, url, known: 0, observed })
    }

    /// Sleeping revisions.
    async fn grow(&mut self, count: usize, concurrency: i64) -> Result<()> {
        let api = Api::<api::serving::v1::Revision>::namespaced(self.server.client(), NAMESPACE);
        for number in self.known..count {
            let revision = serde_json::from_value(json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
                "metadata": {"name": format!("rev-{number}"), "labels": {
                    "serving.knative.dev/configuration": "bench", "serving.knative.dev/service": "bench"}},
                "spec": {"containerConcurrency": concurrency, "timeoutSeconds": 300, "containers": [{"image": "dev.local/hello"}]},
            }))?;
            api.create(&PostParams::default(), &revision).await?;
        }
        self.known = count;
        Ok(())
    }

    async fn wake(&self, number: usize, pod: SocketAddr) -> Result<()> {
        let name = format!("rev-{number}");
        let endpoints: Endpoints = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": format!("{name}-private"), "labels": {
                "networking.internal.knative.dev/serviceType": "Private",
                "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": name}},
            "subsets": [{"addresses": [{"ip": pod.ip().to_string()}],
                "ports": [{"name": "http", "port": pod.port()}]}],
        }))?;
        let api = Api::<Endpoints>::namespaced(self.server.client(), NAMESPACE);
        match api.create(&PostParams::default(), &endpoints).await {
            Ok(_) => self.slice(number, 0, &[pod.ip().to_string()], pod.port()).await,
            Err(error) => bail!("cannot wake {name}: {error}"),
        }
    }

    async fn sleep(&self, number: usize) -> Result<()> {
        let api = Api::<Endpoints>::namespaced(self.server.client(), NAMESPACE);
        api.delete(&format!("rev-{number}-private"), &DeleteParams::default()).await?;
        let api = Api::<EndpointSlice>::namespaced(self.server.client(), NAMESPACE);
        api.delete(&format!("rev-{number}-private-0"), &DeleteParams::default()).await?;
        Ok(())
    }
}
