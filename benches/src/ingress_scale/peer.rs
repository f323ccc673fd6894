//! Another control plane in our place: a program that takes upstream's environment and ports.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use serde_json::json;
use tokio::process::Command;

const SYSTEM: &str = "knative-serving";
const GATEWAYS: &str = "kourier-system";

/// Upstream's ports: where gateways connect, and the listeners for external, internal and probe requests.
pub(crate) const PORTS: [u16; 4] = [18000, 8080, 8081, 8090];

/// What an installation has beside its Ingresses: settings, and a gateway to be probed.
pub(crate) async fn install(client: &kube::Client) -> Result<()> {
    let new = PostParams::default();
    let maps = Api::<ConfigMap>::namespaced(client.clone(), SYSTEM);
    let off = json!({"enable-service-access-logging": "false"});
    let none = json!({});
    for (name, data) in [
        ("config-kourier", &off),
        ("config-network", &none),
        ("config-logging", &none),
        ("config-observability", &none),
        ("config-leader-election", &none),
    ] {
        let map = json!({"metadata": {"name": name, "namespace": SYSTEM}, "data": data});
        maps.create(&new, &serde_json::from_value(map)?).await?;
    }
    let metadata = json!({"name": "kourier-internal", "namespace": GATEWAYS,
        "labels": {"kubernetes.io/service-name": "kourier-internal"}});
    let ports = json!([{"name": "http2", "port": 80, "targetPort": 8081}]);
    let service = json!({"metadata": metadata, "spec": {"clusterIP": "None", "ports": ports}});
    Api::<Service>::namespaced(client.clone(), GATEWAYS).create(&new, &serde_json::from_value(service)?).await?;
    let slice = json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"name": "http2", "port": 8081}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
    Api::<EndpointSlice>::namespaced(client.clone(), GATEWAYS).create(&new, &serde_json::from_value(slice)?).await?;
    Ok(())
}

/// `program` may have arguments of its own.
pub(crate) fn command(program: &str, api: &str, folder: &Path) -> Result<Command> {
    let kubeconfig = folder.join("kubeconfig");
    let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": api}}], "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}]});
    std::fs::write(&kubeconfig, text.to_string())?;
    let mut words = program.split_whitespace();
    let mut command = Command::new(words.next().context("--peer needs a program")?);
    command
        .args(words)
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .env("KUBECONFIG", &kubeconfig)
        .env("SYSTEM_NAMESPACE", SYSTEM)
        .env("KOURIER_GATEWAY_NAMESPACE", GATEWAYS)
        .env("CLUSTER_DOMAIN", "cluster.local")
        .env("METRICS_DOMAIN", "knative.dev/samples")
        .env("POD_NAME", "bench")
        .env("KUBE_API_BURST", "200")
        .env("KUBE_API_QPS", "200");
    Ok(command)
}

/// The gateway's addresses with a peer.
pub(crate) fn addresses() -> [SocketAddr; 4] {
    PORTS.map(|port| ([127, 0, 0, 1], port).into())
}
