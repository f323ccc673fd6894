//! Start to ready, and memory with sleeping services.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::figures::ms;
use crate::machine::{Machine, cpu_ticks, resident};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Sleeping services while memory is read.
    #[arg(long, default_value_t = 10)]
    services: usize,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let machine = Machine::start().await?;
    println!("start to ready: {} ms", ms(machine.start));
    let fresh = resident(machine.pid()).unwrap_or_default();
    machine.configure("config-autoscaler", json!({"stable-window": "6s", "scale-to-zero-grace-period": "1s"})).await?;
    for n in 0..options.services {
        machine.create(&format!("idle-{n}")).await?;
    }
    let pods = Api::<Pod>::namespaced(machine.client.clone(), "default");
    let deadline = Instant::now() + Duration::from_secs(180);
    tokio::time::sleep(Duration::from_secs(5)).await;
    while !pods.list(&ListParams::default()).await?.items.is_empty() {
        ensure!(Instant::now() < deadline, "pods are still there; see {}", machine.log().display());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = cpu_ticks(machine.pid());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = cpu_ticks(machine.pid()).saturating_sub(before);
    let asleep = resident(machine.pid()).unwrap_or_default();
    let envoy = children(machine.pid()).iter().filter_map(|pid| resident(*pid)).fold(0.0, f64::max);
    println!("resident: {fresh:.1} MiB fresh, {asleep:.1} MiB with {} sleeping services", options.services);
    println!("Envoy beside it: {envoy:.1} MiB");
    println!("CPU while idle: {:.2} % of one core", idle as f64 / 10.0);
    machine.stop().await
}

fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
