//! What a change of one endpoint costs the activator, by how many pods the revision has, and by what lists them.

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{core::v1::Endpoints, discovery::v1::EndpointSlice};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Cluster, NAMESPACE, refusing, start};
use crate::queue_proxy::{Table, process::Running};

const CHANGES: usize = 300;
/// Pods that a slice lists at most.
const SLICE: usize = 100;

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
        for divided in [false, true] {
            // Others know only Endpoints.
            for sliced in [true, false].into_iter().filter(|sliced| is_own || !sliced) {
                let cpu = change(path, is_own, pod, count, sliced, divided).await?;
                let what = if sliced { "EndpointSlices" } else { "Endpoints" };
                let divided = if divided { ", containerConcurrency and two activators" } else { "" };
                table.add(name, &format!("{count} pods in {what}{divided}, one changes: CPU/change, us"), cpu);
            }
        }
    }
    Ok(())
}

/// Microseconds of CPU for a change of one of `count` pods.
async fn change(path: &Path, is_own: bool, pod: SocketAddr, count: usize, sliced: bool, divided: bool) -> Result<f64> {
    let mut cluster = Cluster::start(false).await?;
    cluster.grow(1, if divided { 10 } else { 0 }).await?;
    if divided {
        cluster.share(0).await?;
    }
    if !sliced && is_own {
        cluster.url = refusing::start(cluster.url.replace("http://", "")).await?;
    }
    cluster.wake(0, pod).await?;
    let activator = start(path, &cluster, is_own).await?;
    let all: Vec<_> = (1..count).map(|number| address(number, 0)).collect();
    if sliced {
        for (number, listed) in all.chunks(SLICE).enumerate() {
            cluster.slice(0, number + 1, listed, 8012).await?;
        }
    } else {
        list(&cluster, pod, &all).await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = threads(&activator)?;
    for number in 1..=CHANGES {
        let all: Vec<_> = (1..count).map(|pod| address(pod, number)).collect();
        match sliced {
            // All the others are as they were.
            true => cluster.slice(0, 1, all.chunks(SLICE).next().unwrap_or_default(), 8012).await?,
            false => list(&cluster, pod, &all).await?,
        }
        // Each is to be heard of on its own.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let spent = |(thread, cpu): (u32, u64)| cpu - before.get(&thread).copied().unwrap_or_default();
    let cpu: u64 = threads(&activator)?.into_iter().map(spent).sum();
    activator.stop().await?;
    Ok(cpu as f64 / 1e3 / CHANGES as f64)
}

/// Nanoseconds of CPU by thread: a process as a whole is counted in ticks of 10 ms.
fn threads(process: &Running) -> Result<BTreeMap<u32, u64>> {
    let mut threads = BTreeMap::new();
    for pid in process.pids() {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = thread?;
            let Some(id) = thread.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // It may have ended meanwhile.
            let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
            let cpu = text.split_whitespace().next().and_then(|text| text.parse().ok());
            threads.insert(id, cpu.with_context(|| format!("/proc/{pid}/task/{id}/schedstat has {text:?}"))?);
        }
    }
    Ok(threads)
}

/// The address of a pod; that of the first depends on `last`.
fn address(number: usize, last: usize) -> String {
    let number = if number == 1 { 60_000 + last % 256 } else { number };
    format!("127.1.{}.{}", number / 256, number % 256)
}

/// As long as what a cluster says of a pod.
fn target(ip: &str) -> Value {
    let name = format!("rev-0-deployment-5d9f8c7b6-{}", ip.replace('.', "-"));
    json!({"kind": "Pod", "namespace": NAMESPACE, "name": name, "uid": format!("6ba7b810-9dad-11d1-80b4-{:0>12}", ip.replace('.', ""))})
}

/// All pods at once, behind the one that answers.
async fn list(cluster: &Cluster, pod: SocketAddr, ips: &[String]) -> Result<()> {
    let others: Vec<_> =
        ips.iter().map(|ip| json!({"ip": ip, "nodeName": "node-1", "targetRef": target(ip)})).collect();
    let subsets = json!([
        {"addresses": [{"ip": pod.ip().to_string()}], "ports": [{"name": "http", "port": pod.port()}]},
        {"addresses": others, "ports": [{"name": "http", "port": 8012}]},
    ]);
    let patch = Patch::Merge(json!({"subsets": subsets}));
    let api = Api::<Endpoints>::namespaced(cluster.server.client(), NAMESPACE);
    api.patch("rev-0-private", &PatchParams::default(), &patch).await?;
    Ok(())
}

// === impl Cluster ===

impl Cluster {
    /// Another activator stands beside the one that is measured.
    async fn share(&self, revision: usize) -> Result<()> {
        let name = format!("rev-{revision}");
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {
                "networking.internal.knative.dev/serviceType": "Public", "serving.knative.dev/revision": name}},
            "subsets": [{"addresses": [{"ip": "127.0.0.1"}, {"ip": "127.0.0.2"}],
                "ports": [{"name": "http", "port": 8012}]}],
        }))?;
        let api = Api::<Endpoints>::namespaced(self.server.client(), NAMESPACE);
        api.create(&PostParams::default(), &endpoints).await?;
        Ok(())
    }

    /// Slice `number` of a revision's pods, whether it is there already or not.
    pub(super) async fn slice(&self, revision: usize, number: usize, ips: &[String], port: u16) -> Result<()> {
        let listed = ips.iter().map(|ip| {
            json!({"addresses": [ip], "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "node-1", "targetRef": target(ip)})
        });
        let name = format!("rev-{revision}-private-{number}");
        let endpoints = json!(listed.collect::<Vec<_>>());
        let api = Api::<EndpointSlice>::namespaced(self.server.client(), NAMESPACE);
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        match api.patch(&name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return Ok(other.map(drop)?),
        }
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {
                "kubernetes.io/service-name": format!("rev-{revision}-private"),
                "networking.internal.knative.dev/serviceType": "Private",
                "serving.knative.dev/revision": format!("rev-{revision}")}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": port}], "endpoints": endpoints,
        }))?;
        api.create(&PostParams::default(), &slice).await?;
        Ok(())
    }
}
