//! One process, any of the control-plane roles: arguments and assembly only.
//!
//! `--roles controller,autoscaler,ingress` chooses what an upstream process of that name does; the roles are libraries
//! that do not know who started them. The webhook and HPA roles are not part of this build yet: asking for them is an
//! error, not a silent gap.

mod admin;
mod client;
mod environment;
mod figures;
mod metrics;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use controller::{Context, Replica, Tasks};
use observe::{LogLevel, Registry};
use telemetry::tls::Fixed;

pub use crate::environment::arguments;

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
    #[arg(long, env = "ROLES", value_enum, value_delimiter = ',', required = true)]
    pub roles: Vec<Role>,

    /// Kubeconfig file; without it KUBECONFIG, then the pod's service account.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Address of the Kubernetes API, instead of the kubeconfig's, or without one.
    #[arg(long, alias = "master", value_name = "URL")]
    pub server: Option<String>,

    /// Which cluster of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,

    /// Accepted and not used: the API server limits its clients by itself.
    #[arg(long, env = "KUBE_API_QPS", hide = true)]
    pub kube_api_qps: Option<String>,
    #[arg(long, env = "KUBE_API_BURST", hide = true)]
    pub kube_api_burst: Option<String>,

    /// Namespace of Knative's ConfigMaps.
    #[arg(long, env = "SYSTEM_NAMESPACE", default_value = "knative-serving")]
    pub system_namespace: String,

    /// DNS suffix of the cluster; without it, what the search list of `/etc/resolv.conf` says.
    #[arg(long, env = "CLUSTER_DOMAIN")]
    pub cluster_domain: Option<String>,

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

    /// Where Kubernetes asks whether the process is well (controller role).
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub health_address: SocketAddr,

    /// Write without leader election: for a single replica.
    #[arg(long)]
    pub disable_ha: bool,

    /// What to log, as in RUST_LOG.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

// === impl Role ===

impl Role {
    /// The name of upstream's process, in `config-logging` for instance.
    fn component(self) -> &'static str {
        match self {
            Role::Controller => "controller",
            Role::Autoscaler => "autoscaler",
            Role::Ingress => "net-kourier-controller",
        }
    }
}

/// Runs the roles until SIGTERM or SIGINT.
///
/// # Errors
/// If the API cannot be reached, a role cannot start, or an option is missing for a chosen role.
pub async fn run(options: Options, level: LogLevel) -> Result<()> {
    let registry = Registry::new();
    let client = client::connect(&options, &registry).await?;
    let environment = |name: &str| std::env::var(name).ok();
    client::check_version(&client, environment("KUBERNETES_MIN_VERSION").as_deref()).await?;
    let tasks = Tasks::new();
    let mut ctx = Context::new(client, tasks.clone());
    ctx.system_namespace.clone_from(&options.system_namespace);
    ctx.resource_label = environment("SYSTEM_RESOURCE_LABEL").filter(|label| !label.is_empty());
    let usual = api::config::names::LEADER_ELECTION;
    ctx.leader_election = admin::map_name(environment, "CONFIG_LEADERELECTION_NAME", usual);
    ctx.cluster_domain = options.cluster_domain.clone().filter(|domain| !domain.is_empty()).unwrap_or_else(|| {
        environment::cluster_domain(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    });

    let roles: BTreeSet<Role> = options.roles.iter().copied().collect();
    let component = roles.first().map_or("control-plane", |role| role.component());
    let service = environment("OTEL_SERVICE_NAME").filter(|name| !name.is_empty()).unwrap_or(component.to_owned());
    let version = env!("CARGO_PKG_VERSION");

    figures::describe_process(
        &registry,
        &[
            ("k8s_namespace_name", &ctx.system_namespace),
            ("k8s_pod_name", &options.pod_name),
            ("service_name", &service),
            ("service_version", version),
        ],
    );
    figures::describe_queues(&registry, &ctx);
    let (mut _metrics, mut export) = (None, None);
    if let Some(config) = admin::observability(&ctx, environment).await {
        if let Some(scraped) = admin::scraped(&config.load(), &std::env::vars().collect())? {
            let address = scraped.address().await?;
            let acceptor = scraped.tls.as_ref().map(Fixed::acceptor).transpose();
            match acceptor.context("metrics cannot be served over TLS: correct METRICS_PROMETHEUS_TLS_*")? {
                None => _metrics = Some(admin::serve(address, &registry, &tasks).await?),
                Some(acceptor) => {
                    let listener = net::listen(address).await.context("metrics cannot be served")?;
                    metrics::serve(listener, acceptor, &registry, &tasks);
                }
            }
        }
        let resource = [
            ("k8s.namespace.name", &*ctx.system_namespace),
            ("k8s.pod.name", &options.pod_name),
            ("service.instance.id", &options.pod_name),
            ("service.name", &service),
            ("service.version", version),
        ];
        export = metrics::export(&config.load().metrics, figures::INSTRUMENTS, &resource, &registry, &tasks);
        admin::profile(&ctx, &config, environment)?;
    }
    admin::follow_level(&ctx, environment, component, level).await;
    // Gateways and activators ask the other roles on their own ports.
    let _health = match roles.contains(&Role::Controller) && !roles.contains(&Role::Autoscaler) {
        true => Some(admin::serve(options.health_address, &registry, &tasks).await?),
        false => None,
    };
    let ended = run_roles(roles, &ctx, &options, &registry).await;
    if let Some(export) = export {
        export.send().await;
    }
    tasks.shutdown().await;
    ended
}

/// Starts the roles; returns when a signal says that the process has to end.
async fn run_roles(roles: BTreeSet<Role>, ctx: &Context, options: &Options, registry: &Registry) -> Result<()> {
    // One for all of it: a signal that comes between two of them would be lost.
    let mut signal = std::pin::pin!(wait_for_signal());
    for role in roles {
        // A signal ends a start that waits for something as well. It is looked at first, so that it is known of from now on.
        tokio::select! {
            biased;
            signal = &mut signal => return signal,
            started = start(role, ctx, options, registry) => {
                started.with_context(|| format!("role {role:?} cannot start"))?;
            }
        }
        tracing::info!(?role, "started");
    }
    signal.await
}

async fn start(role: Role, ctx: &Context, options: &Options, registry: &Registry) -> Result<()> {
    match role {
        Role::Controller => {
            let mut ctx = ctx.clone();
            if !options.disable_ha {
                ctx.replica = Some(Replica::new(&ctx, role.component(), identity(options)).await);
            }
            serving::run(ctx, serving::Options::default()).await?;
        }
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
            let handle = ingress::run(ctx.clone(), role).await?;
            figures::describe_gateways(registry, handle);
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

async fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
