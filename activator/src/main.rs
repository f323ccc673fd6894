//! Holds requests for revisions without ready pods, wakes them, and passes the requests on.

mod flags;
mod kubernetes;

use std::sync::Arc;

use activator::{Options, Reach};
use anyhow::Context as _;
use api::config::{Level, Logging, MeshCompatibility, Network, Observability, names};
use controller::{Config, Context, Tasks};
use kube::{
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};
use observe::{ApiCalls, LogLevel, Registry};
use telemetry::environment::{Environment, METRICS_ENDPOINT, METRICS_PORT, Scraped, set};
use tokio::signal::unix::{SignalKind, signal};
use tower::layer::layer_fn;

use flags::Flags;

/// What is served has threads of its own.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::read();
    let env: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let level = set(&env, "LOG_LEVEL").unwrap_or("info");
    let level = observe::logging("activator", &flags.filter(level));
    net::raise_open_files();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;

    let domain = set(&env, "CLUSTER_DOMAIN").map_or_else(cluster_domain, str::to_owned);
    let mut options = Options::from_env(&env, &domain)?;
    options.listen_http = flags.listen_http.unwrap_or(options.listen_http);
    options.listen_h2c = flags.listen_h2c.unwrap_or(options.listen_h2c);
    options.listen_tls = flags.listen_tls.unwrap_or(options.listen_tls);
    options.profiling = flags.listen_profiling.or(options.profiling);
    let client = client(&flags, set(&env, "KUBECONFIG"), &options.registry).await?;
    kubernetes::check(&client, env.get("KUBERNETES_MIN_VERSION").map(String::as_str)).await?;
    let mut ctx = Context::new(client, Tasks::new());
    ctx.cluster_domain = domain;
    ctx.system_namespace = env.get("SYSTEM_NAMESPACE").cloned().unwrap_or(ctx.system_namespace);
    ctx.resource_label = set(&env, "SYSTEM_RESOURCE_LABEL").map(str::to_owned);

    follow_level(&ctx, &env, level, flags).await;
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
    if metrics.protocol == "prometheus" {
        let scraped = Scraped::of(&env, &metrics.endpoint, METRICS_ENDPOINT, METRICS_PORT)?;
        options.metrics = Some(scraped.address().await?);
        options.metrics_tls = scraped.tls;
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
async fn client(flags: &Flags, from_env: Option<&str>, registry: &Registry) -> anyhow::Result<kube::Client> {
    let options = KubeConfigOptions {
        context: flags.context().map(str::to_owned),
        cluster: flags.cluster().map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let server = match flags.server() {
        Some(server) => Some(server.parse::<http::Uri>().with_context(|| format!("--server {server} is not a URL"))?),
        None => None,
    };
    let mut config = match (flags.kubeconfig().or(from_env), &server) {
        (Some(path), _) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read kubeconfig {path}"))?;
            kube::Config::from_custom_kubeconfig(file, &options).await?
        }
        // As it is, without credentials: a proxy of kubectl, or an API that asks for none.
        (None, Some(server)) => kube::Config::new(server.clone()),
        (None, None) if options.context.is_some() || options.cluster.is_some() => {
            kube::Config::from_kubeconfig(&options)
                .await
                .context("found no kubeconfig with this context and cluster")?
        }
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

/// Logs as much as `config-logging` says, from now on. Without it, what the environment says holds.
async fn follow_level(ctx: &Context, env: &Environment, level: LogLevel, flags: Flags) {
    let name = map_name(env, "CONFIG_LOGGING_NAME", names::LOGGING);
    let Ok(config) = Config::watch(ctx, name, Logging::parse).await else { return };
    let followed = config.clone();
    let apply = move || {
        if let Some(wanted) = followed.load().level("activator") {
            level.set(&flags.filter(match wanted {
                Level::Debug => "debug,hyper=info,h2=info,tower=info,rustls=info,kube=info",
                Level::Info => "info",
                Level::Warn => "warn",
                Level::Error | Level::DPanic | Level::Panic | Level::Fatal => "error",
            }));
        }
    };
    apply();
    config.on_change(apply);
}

/// The name of a ConfigMap, which the environment may give.
fn map_name(env: &Environment, variable: &str, usual: &'static str) -> &'static str {
    // Once per process.
    set(env, variable).map_or(usual, |name| Box::leak(name.into()))
}

/// What a variable says, if it says anything.
/// `config-observability`, under the name that the environment gives it.
async fn observability(ctx: &Context, env: &Environment) -> Config<Observability> {
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
