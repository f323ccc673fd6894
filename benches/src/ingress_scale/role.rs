//! The ingress role as a process, on addresses that are free on this machine.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Result;
use clap::Args;
use controller::{Context, Tasks};

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[arg(long)]
    server: String,
    #[arg(long)]
    xds: SocketAddr,
    #[arg(long)]
    external: SocketAddr,
    #[arg(long)]
    internal: SocketAddr,
    #[arg(long)]
    probe: SocketAddr,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    observe::logging("ingress", "warn");
    let client = kube::Client::try_from(kube::Config::new(options.server.parse()?))?;
    let tasks = Tasks::new();
    let ctx = Context::new(client, tasks.clone());
    let mut role = ingress::Options {
        xds_listen: options.xds,
        external_listen: vec![options.external],
        internal_listen: vec![options.internal],
        probe_listen: vec![options.probe],
        ..ingress::Options::default()
    };
    role.settings.access_log = false;
    let handle = ingress::run(ctx, role).await?;
    println!("listening on {}", handle.xds_address);
    std::io::stdout().flush()?;
    tokio::signal::ctrl_c().await?;
    tasks.shutdown().await;
    Ok(())
}
