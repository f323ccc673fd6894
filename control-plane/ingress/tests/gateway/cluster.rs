//! The embedded API for tests of the whole role, and what such tests put into it and wait for.

use std::{net::SocketAddr, time::Duration};

use api::{Conditioned, networking::v1alpha1::Ingress};
use kube::api::Api;
use serde_json::{Value, json};

pub(crate) const CLASS: &str = "kourier.ingress.networking.knative.dev";
const DEFINITION: &str = include_str!("../../../../charts/crds/ingresses.networking.internal.knative.dev.yaml");
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn open() -> apiserver::Server {
    let server = apiserver::Server::open(apiserver::Options::default()).await.unwrap();
    server.apply_manifest(DEFINITION).unwrap();
    for namespace in ["knative-serving", "kourier-system"] {
        server.apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})).unwrap();
    }
    server
}

pub(crate) fn config_map(server: &apiserver::Server, name: &str, data: Value) {
    let metadata = json!({"name": name, "namespace": "knative-serving"});
    server.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})).unwrap();
}

/// An Ingress with one host of Service `app`.
pub(crate) fn ingress(name: &str, host: &str, class: &str) -> Ingress {
    with(name, host, json!({"annotations": {"networking.knative.dev/ingress.class": class}}), "ExternalIP")
}

/// With labels and annotations, and a visibility.
pub(crate) fn with(name: &str, host: &str, mut metadata: Value, visibility: &str) -> Ingress {
    let split = json!({"serviceNamespace": "default", "serviceName": "app", "servicePort": 80, "percent": 100});
    metadata["name"] = json!(name);
    metadata["namespace"] = json!("default");
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": metadata,
        "spec": {"rules": [{"hosts": [host], "visibility": visibility, "http": {"paths": [{"splits": [split]}]}}]},
    }))
    .unwrap()
}

/// Creates or changes a Service and its only EndpointSlice.
pub(crate) fn service(server: &apiserver::Server, namespace: &str, name: &str, addresses: &[SocketAddr]) {
    let port = addresses.first().map_or(1, SocketAddr::port);
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address.ip().to_string()], "conditions": {"ready": true}}))
        .collect();
    server
        .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80, "targetPort": port}]}}))
        .unwrap();
    server
        .apply(&json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-1"), "namespace": namespace,
                "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": port}], "endpoints": endpoints}))
        .unwrap();
}

pub(crate) async fn until(api: &Api<Ingress>, name: &str, what: &str, condition: impl Fn(Option<&Ingress>) -> bool) {
    let wait = async {
        while !condition(api.get_opt(name).await.unwrap().as_ref()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(DEADLINE, wait).await.is_err() {
        panic!("{name} never was {what}: {:#?}", api.get_opt(name).await.unwrap());
    }
}

/// Waits for something that has no name in the API.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

pub(crate) fn says(ingress: Option<&Ingress>, kind: &str, status: &str, reason: &str) -> bool {
    ingress
        .and_then(|i| i.condition(kind))
        .is_some_and(|condition| condition.status == status && condition.reason == reason)
}
