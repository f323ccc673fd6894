//! What a change of one endpoint costs the activator, by how many pods the revision has.

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::{Cluster, NAMESPACE, start};
use crate::queue_proxy::Table;

const CHANGES: usize = 300;

/// Measures with so many pods, of which one answers: that is how the activator knows that pods are reached.
pub(super) async fn measure(
    name: &str,
    path: &Path,
    is_own: bool,
    pod: SocketAddr,
    counts: &[usize],
    table: &mut Table,
) -> Result<()> {
    for &count in counts {
        ensure!(count > 1, "one pod that answers and one that changes are two pods at least");
        let mut cluster = Cluster::start().await?;
        cluster.grow(1, 0).await?;
        cluster.wake(0, pod).await?;
        let activator = start(path, &cluster, is_own).await?;
        let api = Api::<Endpoints>::namespaced(cluster.server.client(), NAMESPACE);
        let list = async |last: usize| {
            let patch = Patch::Merge(json!({"subsets": subsets(pod, count, last)}));
            api.patch("rev-0-private", &PatchParams::default(), &patch).await
        };
        list(0).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = activator.cpu();
        for number in 1..=CHANGES {
            list(number).await?;
            // Each is to be heard of on its own.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let cpu = (activator.cpu() - before).as_secs_f64() * 1e6 / CHANGES as f64;
        table.add(name, &format!("{count} pods, one changes: CPU/change, us"), cpu);
        activator.stop().await?;
    }
    Ok(())
}

/// `count` pods, one of them with an address that depends on `last`.
fn subsets(pod: SocketAddr, count: usize, last: usize) -> Value {
    let others = (1..count).map(|number| {
        let number = if number == 1 { 60_000 + last % 256 } else { number };
        let name = format!("rev-0-deployment-5d9f8c7b6-{number:05}");
        json!({"ip": format!("127.1.{}.{}", number / 256, number % 256), "nodeName": "node",
            "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": name, "uid": name}})
    });
    json!([
        {"addresses": [{"ip": pod.ip().to_string()}], "ports": [{"name": "http", "port": pod.port()}]},
        {"addresses": others.collect::<Vec<_>>(), "ports": [{"name": "http", "port": 8012}]},
    ])
}
