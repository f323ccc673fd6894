//! Services are created at once; how long until each is Ready?

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use api::Conditioned;
use api::serving::v1::Service;
use clap::Args;
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use kube::ResourceExt;
use kube::api::{ListParams, WatchEvent, WatchParams};

use crate::figures::{ms, quantile};
use crate::machine::Machine;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many are created at once; a row for each.
    #[arg(long, value_delimiter = ',', default_value = "1,50")]
    services: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

pub(crate) async fn run(options: Options) -> Result<()> {
    let machine = Machine::start().await?;
    println!("| created at once | median ms | slowest ms |\n|---|---|---|");
    for count in &options.services {
        let mut sample = Vec::new();
        for round in 0..options.rounds {
            let names: Vec<_> = (0..*count).map(|n| format!("new-{count}-{round}-{n}")).collect();
            sample.extend(create(&machine, &names).await?);
            for name in &names {
                machine.services().delete(name, &Default::default()).await?;
            }
            settle(&machine).await?;
        }
        println!("| {count} | {} | {} |", ms(quantile(&sample, 0.5)), ms(quantile(&sample, 1.0)));
    }
    machine.stop().await
}

async fn create(machine: &Machine, names: &[String]) -> Result<Vec<Duration>> {
    let services = machine.services();
    let version = services.list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let mut events = services.watch(&WatchParams::default(), &version).await?.boxed();
    let start = Instant::now();
    let created = try_join_all(names.iter().map(|name| machine.create(name)));
    let ready = async {
        let mut ready: HashMap<String, Duration> = HashMap::new();
        while ready.len() < names.len() {
            let event = events.try_next().await?.context("the watch ended")?;
            if let WatchEvent::Added(service) | WatchEvent::Modified(service) = event
                && Service::is_ready(&service)
            {
                ready.entry(service.name_any()).or_insert_with(|| start.elapsed());
            }
        }
        anyhow::Ok(ready.into_values().collect::<Vec<_>>())
    };
    let both = futures::future::try_join(created, ready);
    let (_, ready) = tokio::time::timeout(Duration::from_secs(120), both).await.with_context(|| {
        format!("not all of {} services became Ready; see {}", names.len(), machine.log().display())
    })??;
    Ok(ready)
}

/// Waits until what a round left is gone.
async fn settle(machine: &Machine) -> Result<()> {
    let pods = kube::Api::<k8s_openapi::api::core::v1::Pod>::namespaced(machine.client.clone(), "default");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !pods.list(&ListParams::default()).await?.items.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}
