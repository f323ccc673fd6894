//! Holds requests for revisions without ready pods, wakes them, and passes the requests on.

mod kubernetes;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use activator::{Options, Reach};
use anyhow::Context as _;
use api::config::{Level, Logging, MeshCompatibility, Network, Observability, names};
use clap::Parser;
use controller::{Config, Context, Tasks};
use kube::{
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use observe::{ApiCalls, LogLevel, Registry};
use tokio::signal::unix::{SignalKind, signal};
use tower::layer::layer_fn;

/// The same flags as upstream's, where they mean something here.
#[derive(Parser)]
#[command(name = "activator", version, about)]
struct Args {
    /// Kubeconfig file; in a pod its service account is used without it.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<String>,
    /// Address of the Kubernetes API, instead of the kubeconfig's, or without one.
    #[arg(long, alias = "master")]
    server: Option<String>,
    /// Context of the kubeconfig to use.
    #[arg(long)]
    context: Option<String>,
    /// Cluster of the kubeconfig to use, instead of its context's.
    #[arg(long)]
    cluster: Option<String>,
    /// Accepted for upstream's sake: there are no requests here that would need to be slowed down.
    #[arg(long, env = "KUBE_API_QPS")]
    kube_api_qps: Option<f64>,
    /// As `--kube-api-qps`.
    #[arg(long, env = "KUBE_API_BURST")]
    kube_api_burst: Option<i64>,
    /// Where HTTP/1.1 comes in, instead of port 8012.
    #[arg(long)]
    listen_http: Option<SocketAddr>,
    /// Where HTTP/2 comes in, instead of port 8013.
    #[arg(long)]
    listen_h2c: Option<SocketAddr>,
    /// Where encrypted requests come in, instead of port 8112.
    #[arg(long)]
    listen_tls: Option<SocketAddr>,
    /// Where profiles are served, instead of port 8008.
    #[arg(long)]
    listen_profiling: Option<SocketAddr>,
}

/// What is served has threads of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse_from(std::env::args().map(with_two_dashes));
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let level = observe::logging("activator", env.get("LOG_LEVEL").map_or("info", String::as_str));
    net::raise_open_files();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;

    let domain = env.get("CLUSTER_DOMAIN").cloned().unwrap_or_else(cluster_domain);
    let mut options = Options::from_env(&env, &domain)?;
    options.listen_http = args.listen_http.unwrap_or(options.listen_http);
    options.listen_h2c = args.listen_h2c.unwrap_or(options.listen_h2c);
    options.listen_tls = args.listen_tls.unwrap_or(options.listen_tls);
    options.profiling = args.listen_profiling.or(options.profiling);
    let client = client(&args, &options.registry).await?;
    kubernetes::check(&client, env.get("KUBERNETES_MIN_VERSION").map(String::as_str)).await?;
    let mut ctx = Context::new(client, Tasks::new());
    ctx.cluster_domain = domain;
    ctx.system_namespace = env.get("SYSTEM_NAMESPACE").cloned().unwrap_or(ctx.system_namespace);
    ctx.resource_label = env.get("SYSTEM_RESOURCE_LABEL").filter(|label| !label.is_empty()).cloned();

    follow_level(&ctx, &env, level).await;
    let network = network(&ctx).await;
    options.passthrough = network.enable_mesh_pod_addressability;
    options.encrypt = network.system_internal_tls;
    options.reach = match network.mesh_compatibility_mode {
        // Whoever makes pods addressable in a mesh says that they can be reached.
        _ if options.passthrough => Reach::Pods,
        MeshCompatibility::Auto => Reach::Either,
        MeshCompatibility::Enabled => Reach::Service,
        MeshCompatibility::Disabled => Reach::Pods,
    };
    let observability = observability(&ctx, &env).await;
    let metrics = observability.load().metrics.clone();
    let asked = options.metrics.take();
    if metrics.protocol == "prometheus" {
        // `:9090` is how Go says any address.
        let (host, port) = metrics.endpoint.rsplit_once(':').unwrap_or((&metrics.endpoint, ""));
        let host = env.get("METRICS_PROMETHEUS_HOST").map_or(host, String::as_str);
        let port = asked.map_or_else(|| port.to_owned(), |asked| asked.port().to_string());
        let host = match host {
            "" => "0.0.0.0",
            "localhost" => "127.0.0.1",
            host => host,
        };
        let text = format!("{host}:{}", if port.is_empty() { "9090" } else { &port });
        options.metrics = Some(text.parse().with_context(|| format!("metrics-endpoint {text} is not an address"))?);
    }

    options.observability = observability;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let tasks = ctx.tasks.clone();
    let handle = activator::run(ctx, options).await?;
    tracing::info!(http = %handle.http_address(), h2c = %handle.h2c_address(), "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let end = async {
        handle.drain().await;
        tasks.shutdown().await;
    };
    tokio::select! {
        () = end => Ok(()),
        _ = terminate.recv() => anyhow::bail!("a second signal cut the drain short"),
        _ = interrupt.recv() => anyhow::bail!("a second signal cut the drain short"),
    }
}

/// Its requests are noted in `registry`.
async fn client(args: &Args, registry: &Registry) -> anyhow::Result<kube::Client> {
    let options = KubeConfigOptions {
        context: args.context.clone(),
        cluster: args.cluster.clone(),
        ..KubeConfigOptions::default()
    };
    let server = match &args.server {
        Some(server) => Some(server.parse::<http::Uri>().with_context(|| format!("--server {server} is not a URL"))?),
        None => None,
    };
    let mut config = match (&args.kubeconfig, &server) {
        (Some(path), _) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read kubeconfig {path}"))?;
            kube::Config::from_custom_kubeconfig(file, &options).await?
        }
        // As it is, without credentials: a proxy of kubectl, or an API that asks for none.
        (None, Some(server)) => kube::Config::new(server.clone()),
        (None, None) => {
            kube::Config::infer().await.context("found neither a kubeconfig nor a pod's service account")?
        }
    };
    if let Some(server) = server {
        config.cluster_url = server;
    }
    let calls = ApiCalls::new(registry, &config.cluster_url);
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer_fn(|inner| calls.of(inner))).build())
}

/// `config-network`, which is read once.
async fn network(ctx: &Context) -> Arc<Network> {
    let network = Config::watch(ctx, "config-network", Network::parse).await;
    network.map_or_else(
        |error| {
            tracing::warn!("{error}; the defaults apply");
            Arc::default()
        },
        |network| network.load(),
    )
}

/// Go's programs take `-kubeconfig` for `--kubeconfig`.
fn with_two_dashes(argument: String) -> String {
    let is_long = argument.len() > 2 && argument.starts_with('-') && !argument.starts_with("--");
    if is_long { format!("-{argument}") } else { argument }
}

/// Logs as much as `config-logging` says, from now on. Without it, what the environment says holds.
async fn follow_level(ctx: &Context, env: &BTreeMap<String, String>, level: LogLevel) {
    let name = map_name(env, "CONFIG_LOGGING_NAME", names::LOGGING);
    let Ok(config) = Config::watch(ctx, name, Logging::parse).await else { return };
    let followed = config.clone();
    let apply = move || {
        if let Some(wanted) = followed.load().level("activator") {
            level.set(match wanted {
                Level::Debug => "debug,hyper=info,h2=info,tower=info,rustls=info,kube=info",
                Level::Info => "info",
                Level::Warn => "warn",
                Level::Error | Level::DPanic | Level::Panic | Level::Fatal => "error",
            });
        }
    };
    apply();
    config.on_change(apply);
}

/// The name of a ConfigMap, which the environment may give.
fn map_name(env: &BTreeMap<String, String>, variable: &str, usual: &'static str) -> &'static str {
    // Once per process.
    env.get(variable).filter(|name| !name.is_empty()).map_or(usual, |name| Box::leak(name.clone().into_boxed_str()))
}

/// `config-observability`, under the name that the environment gives it.
async fn observability(ctx: &Context, env: &BTreeMap<String, String>) -> Config<Observability> {
    let name = map_name(env, "CONFIG_OBSERVABILITY_NAME", names::OBSERVABILITY);
    Config::watch(ctx, name, Observability::parse).await.unwrap_or_else(|error| {
        tracing::warn!("{error}; the defaults apply until then");
        Config::fixed(Observability::default())
    })
}

/// The suffix of cluster names, from the search list that the kubelet gives a pod.
fn cluster_domain() -> String {
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let search = file.lines().filter_map(|line| line.trim().strip_prefix("search"));
    let domain = search.flat_map(str::split_whitespace).find_map(|domain| domain.strip_prefix("svc."));
    domain.unwrap_or("cluster.local").trim_end_matches('.').to_owned()
}
