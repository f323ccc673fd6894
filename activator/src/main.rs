//! Holds requests for revisions without ready pods, wakes them, and passes the requests on.

use std::collections::BTreeMap;

use activator::Options;
use anyhow::Context as _;
use clap::Parser;
use controller::{Context, Tasks};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};

/// The same flags as upstream's, where they mean something here.
#[derive(Parser)]
#[command(name = "activator", version, about)]
struct Args {
    /// Kubeconfig file; in a pod its service account is used without it.
    #[arg(long, env = "KUBECONFIG")]
    kubeconfig: Option<String>,
    /// Address of the Kubernetes API, instead of the kubeconfig's.
    #[arg(long, alias = "master")]
    server: Option<String>,
    /// Context of the kubeconfig to use.
    #[arg(long)]
    context: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    observe::logging("activator", env.get("LOG_LEVEL").map_or("info", String::as_str));
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed already"))?;

    let domain = env.get("CLUSTER_DOMAIN").cloned().unwrap_or_else(cluster_domain);
    let options = Options::from_env(&env, &domain)?;
    let mut ctx = Context::new(client(&args).await?, Tasks::new());
    ctx.cluster_domain = domain;
    ctx.system_namespace = env.get("SYSTEM_NAMESPACE").cloned().unwrap_or(ctx.system_namespace);

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

async fn client(args: &Args) -> anyhow::Result<kube::Client> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read kubeconfig {path}"))?;
            kube::Config::from_custom_kubeconfig(file, &options).await?
        }
        None => kube::Config::infer().await.context("found neither a kubeconfig nor a pod's service account")?,
    };
    if let Some(server) = &args.server {
        config.cluster_url = server.parse().with_context(|| format!("--server {server} is not a URL"))?;
    }
    Ok(kube::Client::try_from(config)?)
}

/// The suffix of cluster names, from the search list that the kubelet gives a pod.
fn cluster_domain() -> String {
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let search = file.lines().filter_map(|line| line.trim().strip_prefix("search"));
    let domain = search.flat_map(str::split_whitespace).find_map(|domain| domain.strip_prefix("svc."));
    domain.unwrap_or("cluster.local").trim_end_matches('.').to_owned()
}
