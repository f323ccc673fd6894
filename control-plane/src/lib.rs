//! One process, any of the control-plane roles: arguments and assembly only.
//!
//! `--roles controller,autoscaler,ingress` chooses what an upstream process of that name does; the roles are libraries
//! that do not know who started them. The webhook and HPA roles are not part of this build yet: asking for them is an
//! error, not a silent gap.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use controller::{Context, Tasks};
use kube::config::{KubeConfigOptions, Kubeconfig};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Service, Configuration, Revision, Route, ServerlessService, labeler, garbage collection.
    Controller,
    /// PodAutoscaler and Metric, and the server that activators report to.
    Autoscaler,
    /// Ingresses to Envoy (Kourier).
    Ingress,
}

#[derive(Debug, Clone, Parser)]
#[command(name = "control-plane", version, about = "The Knative Serving and Kourier control plane")]
pub struct Options {
    /// What this process does.
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    pub roles: Vec<Role>,

    /// Kubeconfig file; without it KUBECONFIG, then the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Address of the Kubernetes API, instead of the kubeconfig's.
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,

    /// Namespace of Knative's ConfigMaps.
    #[arg(long, env = "SYSTEM_NAMESPACE", default_value = "knative-serving")]
    pub system_namespace: String,

    /// DNS suffix of the cluster.
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Name and address of this pod, for the autoscaler.
    #[arg(long, env = "POD_NAME", default_value = "")]
    pub pod_name: String,
    #[arg(long, env = "POD_IP", default_value = "")]
    pub pod_ip: String,

    /// Where activators report (autoscaler role).
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub stat_address: SocketAddr,

    /// Where gateways ask for their configuration (ingress role).
    #[arg(long, default_value = "0.0.0.0:18000")]
    pub xds_address: SocketAddr,

    /// Write without leader election: for a single replica.
    #[arg(long)]
    pub disable_ha: bool,

    /// What to log, as in RUST_LOG.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

/// Runs the roles until SIGTERM or SIGINT.
///
/// # Errors
/// If the API cannot be reached, a role cannot start, or an option is missing for a chosen role.
pub async fn run(options: Options) -> Result<()> {
    let client = client(&options).await?;
    let tasks = Tasks::new();
    let mut ctx = Context::new(client, tasks.clone());
    ctx.system_namespace.clone_from(&options.system_namespace);
    ctx.cluster_domain.clone_from(&options.cluster_domain);
    let roles: BTreeSet<Role> = options.roles.iter().copied().collect();
    for role in roles {
        start(role, &ctx, &options).await.with_context(|| format!("role {role:?} cannot start"))?;
        tracing::info!(?role, "started");
    }
    wait_for_signal().await?;
    tasks.shutdown().await;
    Ok(())
}

async fn start(role: Role, ctx: &Context, options: &Options) -> Result<()> {
    match role {
        Role::Controller => serving::run(ctx.clone(), serving::Options::default()).await?,
        Role::Autoscaler => {
            anyhow::ensure!(
                !options.pod_name.is_empty() && !options.pod_ip.is_empty(),
                "the autoscaler needs POD_NAME and POD_IP in its environment"
            );
            let role = autoscaler::Options {
                listen: options.stat_address,
                pod_name: options.pod_name.clone(),
                pod_ip: options.pod_ip.clone(),
                ..autoscaler::Options::default()
            };
            drop(autoscaler::run(ctx.clone(), role).await?);
        }
        Role::Ingress => {
            let environment = |name: &str| std::env::var(name).ok();
            let mut role = ingress::Options::from_environment(environment).map_err(anyhow::Error::msg)?;
            role.xds_listen = options.xds_address;
            role.replica = (!options.disable_ha).then(|| identity(options));
            drop(ingress::run(ctx.clone(), role).await?);
        }
    }
    Ok(())
}

/// The name in Leases: the pod's, and something that no other process has.
fn identity(options: &Options) -> String {
    let host = [options.pod_name.clone(), std::env::var("HOSTNAME").unwrap_or_default()];
    let host = host.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| "control-plane".to_owned());
    format!("{host}_{}", uuid::Uuid::new_v4())
}

async fn client(options: &Options) -> Result<kube::Client> {
    let mut config = match &options.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?
        }
        None => kube::Config::infer()
            .await
            .context("no kubeconfig and not in a cluster: name a kubeconfig with --kubeconfig or KUBECONFIG")?,
    };
    if let Some(server) = &options.server {
        config.cluster_url = server.parse().with_context(|| format!("--server {server} is no URL"))?;
    }
    Ok(kube::Client::try_from(config)?)
}

async fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
