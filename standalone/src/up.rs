//! `postrider up`: what is started, in which order, and how it stops.
//!
//! ```text
//! folder, Envoy, ports checked -> network prepared -> API (store, definitions) -> installation
//!   -> controllers, node agent, autoscaler, activator, ingress -> Envoy -> ready
//! signal -> Envoy drained -> pods stopped -> roles stopped -> API closed -> network undone
//! ```
//!
//! Listeners of ours are bound before anything is started, so that a taken port ends the start with nothing to undo.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use controller::{Context, Tasks};
use tokio::signal::unix::{SignalKind, signal};

use crate::gateway::Gateway;
use crate::install::{self, Backend};
use crate::options::Options;
use crate::{admission, gateway, identity, preflight};

/// Definitions of the custom resources, one file each.
const DEFINITIONS: &[&str] = &[
    include_str!("../../charts/crds/certificates.networking.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/clusterdomainclaims.networking.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/configurations.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/domainmappings.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/images.caching.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/ingresses.networking.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/metrics.autoscaling.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/podautoscalers.autoscaling.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/revisions.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/routes.serving.knative.dev.yaml"),
    include_str!("../../charts/crds/serverlessservices.networking.internal.knative.dev.yaml"),
    include_str!("../../charts/crds/services.serving.knative.dev.yaml"),
];

/// Tells the person at the terminal; who closes the pipe does not end the programs.
macro_rules! say {
    ($($text:tt)*) => {
        drop(std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*))))
    };
}

/// How long programs may take to end when everything stops; then they are killed.
const POD_GRACE: Duration = Duration::from_secs(10);

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// One sentence that says what is in the way and what to do about it.
pub fn main(options: Options) -> Result<()> {
    init_logging(&options.log)?;
    net::raise_open_files();
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(up(options))
}

async fn up(options: Options) -> Result<()> {
    let started = Instant::now();
    // Signals count from the first moment: a start that is interrupted undoes itself as well.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let signalled = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    tokio::pin!(signalled);

    let traces = Traces::default();
    let machine = tokio::select! {
        machine = Machine::start(&options, &traces) => machine.map(Some),
        () = &mut signalled => Ok(None),
    };
    let machine = match machine {
        Ok(Some(machine)) => machine,
        unfinished => {
            traces.remove().await;
            return unfinished.map(drop);
        }
    };
    machine.greet(&options, started.elapsed());
    signalled.await;
    say!("stopping: requests in flight may finish (again Ctrl-C: at once)");
    let mut impatient = signal(SignalKind::interrupt())?;
    tokio::select! {
        () = machine.stop() => say!("stopped; `postrider up` on the same folder goes on from here"),
        _ = impatient.recv() => say!("stopped at once; the next start cleans up"),
    }
    Ok(())
}

/// What a start that does not come to its end has to undo.
#[derive(Default)]
struct Traces {
    tasks: Tasks,
    network: std::sync::OnceLock<pods::Network>,
}

/// Everything that runs.
struct Machine {
    data: preflight::DataDir,
    api: SocketAddr,
    server: apiserver::Server,
    tasks: Tasks,
    pods: pods::Handle,
    activator: activator::Handle,
    gateway: Gateway,
    namespaces: bool,
}

/// Where the parts of this process listen.
#[derive(Debug, Clone, Copy)]
struct Addresses {
    node: Ipv4Addr,
    activator_http: SocketAddr,
    activator_h2c: SocketAddr,
    stats: SocketAddr,
    internal: SocketAddr,
}

// === impl Addresses ===

impl Addresses {
    /// In loopback mode the node is 127.0.0.1, where the external gateway may have taken the usual ports; those of
    /// ours are looked up by others in Endpoints, so any will do.
    fn new(options: &Options, namespaces: bool) -> Self {
        let node = if namespaces { options.node_ip } else { Ipv4Addr::LOCALHOST };
        let stats = if namespaces { 8080 } else { 8089 };
        let at = |port: u16| SocketAddr::from((node, port));
        Self { node, activator_http: at(8012), activator_h2c: at(8013), stats: at(stats), internal: at(8081) }
    }

    fn backends(&self) -> Vec<Backend> {
        let system = "knative-serving";
        let activator = vec![("http", self.activator_http), ("http2", self.activator_h2c)];
        vec![
            Backend { namespace: system, service: "activator-service", ports: activator },
            Backend { namespace: system, service: "autoscaler", ports: vec![("http", self.stats)] },
            Backend { namespace: "kourier-system", service: "kourier-internal", ports: vec![("http2", self.internal)] },
        ]
    }
}

// === impl Traces ===

impl Traces {
    async fn remove(&self) {
        if tokio::time::timeout(POD_GRACE, self.tasks.shutdown()).await.is_err() {
            tracing::warn!("some parts did not end in time; the next start cleans up");
        }
        if let Some(network) = self.network.get() {
            network.remove().await;
        }
    }
}

// === impl Machine ===

impl Machine {
    async fn start(options: &Options, traces: &Traces) -> Result<Self> {
        let data = preflight::data_dir(&options.data)?;
        let envoy = preflight::envoy(options)?;
        let namespaces = preflight::namespaces(options)?;
        let listener = preflight::listen(options.api, "the Kubernetes API", "--api")?;
        preflight::is_free(options.xds, "gateway configuration", "--xds")?;
        for (addresses, flag) in [(&options.http, "--http"), (&options.https, "--https")] {
            for address in addresses {
                if namespaces {
                    preflight::leaves_room(*address, options.node_ip, flag)?;
                }
                // The node's address is there once the network is prepared.
                if !namespaces || address.ip() != options.node_ip {
                    preflight::is_free(*address, "the gateway", flag)?;
                }
            }
        }

        let agent = agent_options(options, &data.path, namespaces)?;
        let network = pods::network::prepare(&agent).await.context("cannot prepare the network for pods")?;
        let _ = traces.network.set(network);
        Self::assemble(options, data, envoy, listener, agent, namespaces, traces.tasks.clone()).await
    }

    /// Everything from the prepared network on.
    async fn assemble(
        options: &Options,
        data: preflight::DataDir,
        envoy: PathBuf,
        listener: std::net::TcpListener,
        agent: pods::Options,
        namespaces: bool,
        tasks: Tasks,
    ) -> Result<Self> {
        let api = listener.local_addr()?;
        let addresses = Addresses::new(options, namespaces);

        let identity = load_identity(&data.path, api, options)?;
        let hooks = admission::Knative::default();
        let server = apiserver::Server::open(apiserver::Options {
            data: (!options.in_memory).then(|| data.path.join("store")),
            admission: vec![Arc::new(hooks.clone())],
            service_cidr: options.service_cidr.to_string(),
            root_certificate: Some(identity.ca_pem.clone()),
            api: namespaces.then(|| apiserver::boot::ApiAddress { ip: addresses.node, port: api.port() }),
            ..apiserver::Options::default()
        })
        .await?;
        for definition in DEFINITIONS {
            server.apply_manifest(definition)?;
        }
        let ctx = Context::new(server.client(), tasks.clone());
        install::install(&ctx.client).await?;
        install::publish(&ctx.client, &addresses.backends()).await?;
        let (http, https) = (options.http.first().copied(), options.https.first().copied());
        let outside = install::Outside { http, https, node: addresses.node, loopback: !namespaces };
        install::expose(&ctx.client, outside).await?;
        hooks.follow(&ctx).await?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        server.serve(listener, Some(identity.tls.clone()), &identity.token);
        if namespaces && !api.ip().is_unspecified() {
            // Pods reach the API over the node's address, through Service default/kubernetes.
            let listener = preflight::listen((addresses.node, api.port()).into(), "the API for pods", "--node-ip")?;
            server.serve(tokio::net::TcpListener::from_std(listener)?, Some(identity.tls.clone()), &identity.token);
        }

        let cluster = cluster::Options {
            dns: namespaces.then(|| SocketAddr::from((agent.dns_ip, 53))),
            service_addresses: namespaces,
            ..cluster::Options::default()
        };
        cluster::run(ctx.clone(), cluster).await?;
        let pods = pods::run(ctx.clone(), agent).await?;
        server.set_logs(crate::logs::source(&pods));

        autoscaler::run(
            ctx.clone(),
            autoscaler::Options {
                listen: addresses.stats,
                pod_name: "autoscaler".to_owned(),
                pod_ip: addresses.node.to_string(),
                // Cluster names mean nothing to this process.
                service_lookup: autoscaler::ServiceLookup::Endpoints,
                ..autoscaler::Options::default()
            },
        )
        .await?;
        let activator = activator::run(
            ctx.clone(),
            activator::Options {
                listen_http: addresses.activator_http,
                listen_h2c: addresses.activator_h2c,
                autoscaler_url: format!("ws://{}", addresses.stats),
                pod_name: "activator".to_owned(),
                pod_ip: addresses.node.to_string(),
                ..activator::Options::default()
            },
        )
        .await?;
        serving::run(ctx.clone(), serving::Options::default()).await?;
        ingress::run(
            ctx.clone(),
            ingress::Options {
                xds_listen: options.xds,
                external_listen: options.http.clone(),
                internal_listen: vec![addresses.internal],
                probe_listen: Vec::new(),
                external_tls_listen: options.https.clone(),
                probe_tls_listen: Vec::new(),
                internal_tls_listen: Vec::new(),
                // Cluster names mean nothing to Envoy here.
                itself: Some(addresses.internal),
                settings: ingress::Settings { access_log: false, ..ingress::Settings::default() },
                ..ingress::Options::default()
            },
        )
        .await?;

        let folder = data.path.join("gateway");
        let bootstrap = ingress::Bootstrap::new(options.xds, ingress::Admin::Unix(gateway::Options::admin(&folder)));
        let gateway = Gateway::start(&gateway::Options { envoy, bootstrap: bootstrap.render(), folder }, &tasks)?;
        gateway.ready().await?;
        Ok(Self { data, api, server, tasks, pods, activator, gateway, namespaces })
    }

    fn greet(&self, options: &Options, took: Duration) {
        let kubeconfig = self.data.path.join("kubeconfig");
        let gateway = options.http.first().map(ToString::to_string).unwrap_or_default();
        say!("postrider is ready ({} ms): API https://{}, gateway http://{gateway}", took.as_millis(), self.api);
        if !self.namespaces {
            say!(
                "pods run on loopback addresses, each with a port of its own in $PORT: programs must listen there \
                 (run as root for a network namespace per pod)"
            );
        }
        say!("\nnext:\n  export KUBECONFIG={}", kubeconfig.display());
        say!("  kubectl apply -f examples/hello.yaml");
        say!("  kubectl wait --for=condition=Ready ksvc/hello");
        say!("  curl -H 'Host: hello.default.example.com' http://{gateway}/\n");
    }

    /// Make-before-break in reverse: no new requests, then no programs, then no control, then no traces.
    async fn stop(self) {
        self.gateway.stop().await;
        self.activator.drain().await;
        self.pods.drain(POD_GRACE).await;
        self.pods.stop().await;
        self.tasks.shutdown().await;
        if let Err(error) = self.server.shutdown().await {
            tracing::error!("the last writes may be lost: {error}");
        }
    }
}

fn agent_options(options: &Options, data: &Path, namespaces: bool) -> Result<pods::Options> {
    let own = std::env::current_exe().context("cannot find my own executable")?;
    let beside = |name: &str| own.with_file_name(name);
    let mut agent = pods::Options::new(data.join("pods"));
    agent.network = if namespaces { pods::NetworkMode::Namespaces } else { pods::NetworkMode::Loopback };
    agent.node_ip = options.node_ip;
    agent.pod_cidr = options.pod_cidr;
    agent.service_cidr = options.service_cidr;
    agent.instance = data.display().to_string();
    // Keys and the database are not for programs in pods.
    agent.hidden = vec![data.to_owned()];
    for name in ["queue-proxy", "hello"] {
        let path = beside(name);
        if path.is_file() {
            let mut binary = pods::Binary::new(path);
            if name == "queue-proxy" {
                // Here routing lets go of a pod before it is stopped: no need for upstream's 30 s of silence.
                binary.args = vec!["QUEUE_DRAIN_IDLE_PERIOD=500ms".to_owned()];
            }
            agent.binaries.insert(name.to_owned(), binary);
        }
    }
    anyhow::ensure!(
        agent.binaries.contains_key("queue-proxy"),
        "there is no queue-proxy beside {}: build it (cargo build --release -p queue-proxy) and start again",
        own.display()
    );
    for (name, path) in &options.binaries {
        let binary = pods::Binary { user: options.bin_user, ..pods::Binary::new(path) };
        agent.binaries.insert(name.clone(), binary);
    }
    Ok(agent)
}

/// The identity of the data folder, and the kubeconfig that goes with it.
fn load_identity(data: &Path, api: SocketAddr, options: &Options) -> Result<identity::Identity> {
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned);
    let virtual_ip = options.service_cidr.first_host();
    let addresses = [api.ip(), Ipv4Addr::LOCALHOST.into(), options.node_ip.into(), virtual_ip.into()];
    let identity = identity::load(data, &names, &addresses)?;
    identity::write_kubeconfig(&data.join("kubeconfig"), api, &identity)?;
    Ok(identity)
}

fn init_logging(filter: &str) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .with_context(|| format!("--log {filter} is no filter; write it as warn or xds=debug,info"))?;
    let format = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Colours are for people.
    let format = format.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    format.try_init().map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
