//! Benchmarks and scenarios: `cargo xtask bench <scenario>`.
//!
//! Each scenario starts what it measures as a real process, drives it from outside, and prints a table that
//! `RESULTS.md` quotes with the command that gave it.

use anyhow::Result;
use clap::{Parser, Subcommand};

mod activator;
mod cold_start;
mod create;
mod figures;
mod footprint;
mod forwarder;
mod gateway_scale;
mod ingress_scale;
mod machine;
mod paced;
mod queue_proxy;
mod timeline;

/// As in the control plane, whose roles run in processes of this program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Parser)]
#[command(name = "benches", about = "Scenarios that give the figures of RESULTS.md")]
struct Args {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// The activator between a client and a sidecar, and when many revisions wake at once.
    Activator(activator::Options),
    /// Sleeping services are asked at once; where does the time go?
    ColdStart(cold_start::Options),
    /// Services are created at once; how long until they are Ready?
    Create(create::Options),
    /// Start to ready, and memory with sleeping services.
    Footprint(footprint::Options),
    /// The sidecar beside nginx, haproxy and other sidecars under the same load.
    QueueProxy(queue_proxy::Options),
    /// One gateway and many ingresses: what does a change cost?
    IngressScale(ingress_scale::Options),
    /// What does Envoy itself need for a change, with many ingresses?
    GatewayScale(gateway_scale::Options),
    /// The control plane of `ingress-scale`, as a process of its own.
    #[command(hide = true)]
    IngressRole(ingress_scale::role::Options),
    /// What `activator` compares with, as a process of its own.
    #[command(hide = true)]
    Forwarder(forwarder::Options),
}

fn main() -> Result<()> {
    let args = Args::parse();
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(args.scenario, Scenario::IngressRole(_)) && std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        // As `control-plane --roles ingress`.
        runtime.worker_threads(1);
    }
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async {
        match args.scenario {
            Scenario::Activator(options) => activator::run(options).await,
            Scenario::ColdStart(options) => cold_start::run(options).await,
            Scenario::Create(options) => create::run(options).await,
            Scenario::Footprint(options) => footprint::run(options).await,
            Scenario::QueueProxy(options) => queue_proxy::run(options).await,
            Scenario::GatewayScale(options) => gateway_scale::run(options).await,
            Scenario::IngressScale(options) => ingress_scale::run(options).await,
            Scenario::IngressRole(options) => ingress_scale::role::run(options).await,
            Scenario::Forwarder(options) => forwarder::run(&options),
        }
    })
}
