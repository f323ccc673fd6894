//! One gateway and N ingresses: what does a change cost?
//!
//! The API is embedded in this process, in memory; the ingress role and Envoy are processes of their own, so that
//! their memory and CPU time are theirs. CPU time comes from the scheduler's per-thread counters, xDS bytes from
//! Envoy's count of what it read from its control plane.

mod client;
mod measure;
mod objects;
mod peer;
pub(crate) mod process;
mod rig;
pub(crate) mod role;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use self::{
    measure::{Kind, Row},
    rig::Rig,
};
use crate::figures::{ms, quantile};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many ingresses there are; a run for each.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000")]
    ingresses: Vec<usize>,
    /// Changes of each kind.
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// How routes travel; a run for each.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "scopes,world")]
    routes: Vec<Routes>,
    /// The gateway.
    #[arg(long, env = "ENVOY", default_value = "envoy")]
    envoy: PathBuf,
    /// Another control plane as well (with its arguments): it takes upstream's environment, `--kubeconfig` and ports, so
    /// run this where these ports are free.
    #[arg(long)]
    peer: Option<String>,
    /// Afterwards, as many Ingresses come and go this often: what does the control plane keep?
    #[arg(long, default_value_t = 0)]
    churn: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Routes {
    /// Upstream's bootstrap: state of the world.
    World,
    /// Delta, whole route tables.
    Tables,
    /// Our bootstrap: delta, routes by scope.
    Scopes,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let own = options.routes.iter().map(|routes| (*routes, None));
    for (routes, peer) in own.chain(options.peer.as_deref().map(|peer| (Routes::World, Some(peer)))) {
        match peer {
            None => println!("\n### routes: {routes:?}\n"),
            Some(peer) => println!("\n### {peer}\n"),
        }
        println!(
            "| N | control plane listens s | all serve s | all Ready s | CPU: control plane s | Envoy s | xDS MiB | \
             control plane MiB (peak) | Envoy MiB |\n|---|---|---|---|---|---|---|---|---|"
        );
        let mut changes = String::new();
        for count in &options.ingresses {
            let mut rig = Rig::start(&options.envoy, routes, *count, peer).await?;
            println!("{}", rig.cold_start().await?);
            for kind in [Kind::Endpoints, Kind::Route, Kind::Ingress] {
                let row = measure::run(&mut rig, kind, options.changes).await?;
                changes.push_str(&line(*count, kind, &row));
            }
            changes.push_str(&format!("| {count} | afterwards: {} |\n", rig.memory()));
            for round in 1..=options.churn {
                measure::churn(&rig, *count).await?;
                changes.push_str(&format!("| {count} | {count} came and went {round} times: {} |\n", rig.memory()));
            }
            rig.stop().await?;
        }
        println!(
            "\n| N | change | median ms | 90 % ms | control-plane CPU ms: until shown | in all | Envoy main thread ms | Envoy CPU ms | xDS KiB down | \
             up | failed of bystander requests |\n|---|---|---|---|---|---|---|---|---|---|---|"
        );
        print!("{changes}");
    }
    Ok(())
}

fn line(count: usize, kind: Kind, row: &Row) -> String {
    format!(
        "| {count} | {kind:?} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} of {} |\n",
        ms(quantile(&row.latencies, 0.5)),
        ms(quantile(&row.latencies, 0.9)),
        row.control_shown,
        row.control_cpu,
        row.envoy_main,
        row.envoy_cpu,
        row.down,
        row.up,
        row.failed,
        row.asked,
    )
}
