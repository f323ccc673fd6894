//! The whole role on the embedded API: status, finalizer, class and conflicts.

use std::time::Duration;

use api::{Conditioned, networking::v1alpha1::Ingress};
use controller::{Context, Tasks};
use ingress::{Admin, Bootstrap, Options};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Client, ResourceExt,
    api::{Api, DeleteParams, PostParams},
};
use serde_json::{Value, json};

use super::support::{Backend, Request, envoy, free_ports, send, spawn};

const CLASS: &str = "kourier.ingress.networking.knative.dev";

fn ingress(name: &str, host: &str, class: &str) -> Ingress {
    let split = json!({"serviceNamespace": "default", "serviceName": "app", "servicePort": 80, "percent": 100});
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
        "metadata": {"name": name, "namespace": "default",
            "annotations": {"networking.knative.dev/ingress.class": class}},
        "spec": {"rules": [{"hosts": [host], "visibility": "ExternalIP",
            "http": {"paths": [{"splits": [split]}]}}]},
    }))
    .unwrap()
}

async fn until(api: &Api<Ingress>, name: &str, what: &str, condition: impl Fn(Option<&Ingress>) -> bool) {
    let wait = async {
        while !condition(api.get_opt(name).await.unwrap().as_ref()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), wait).await.is_err() {
        panic!("{name} never was {what}: {:#?}", api.get_opt(name).await.unwrap());
    }
}

fn says(ingress: Option<&Ingress>, kind: &str, status: &str, reason: &str) -> bool {
    ingress
        .and_then(|i| i.condition(kind))
        .is_some_and(|condition| condition.status == status && condition.reason == reason)
}

async fn backend(client: &Client, backend: &Backend) {
    let service: Service = object(json!({"metadata": {"name": "app", "namespace": "default"},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80, "targetPort": backend.address.port()}]}}));
    let slice: EndpointSlice = object(json!({
        "metadata": {"name": "app-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "app"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": backend.address.port()}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]}));
    Api::default_namespaced(client.clone()).create(&PostParams::default(), &service).await.unwrap();
    Api::default_namespaced(client.clone()).create(&PostParams::default(), &slice).await.unwrap();
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_is_ready_once_every_gateway_has_it() {
    let Some(program) = envoy() else { return };
    let server = apiserver::Server::open(apiserver::Options::default()).await.unwrap();
    server
        .apply_manifest(include_str!("../../../../charts/crds/ingresses.networking.internal.knative.dev.yaml"))
        .unwrap();
    let tasks = Tasks::new();
    let ctx = Context::new(server.client(), tasks.clone());
    let [xds, external, internal, probe, admin] = free_ports().await;
    let options = Options {
        xds_listen: xds,
        external_listen: vec![external],
        internal_listen: vec![internal],
        probe_listen: vec![probe],
        ..Options::default()
    };
    let handle = ingress::run(ctx, options).await.unwrap();
    assert_eq!(handle.xds_address, xds);
    let api: Api<Ingress> = Api::default_namespaced(server.client());
    let app = Backend::start("app").await;
    backend(&server.client(), &app).await;
    let create = PostParams::default();
    api.create(&create, &ingress("one", "one.example.com", CLASS)).await.unwrap();
    api.create(&create, &ingress("foreign", "two.example.com", "istio.ingress.networking.knative.dev")).await.unwrap();

    until(&api, "one", "waiting for gateways", |i| says(i, "LoadBalancerReady", "Unknown", "Uninitialized")).await;
    let (_envoy, _files) = spawn(&program, &Bootstrap::new(xds, Admin::Tcp(admin)));
    until(&api, "one", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    let one = api.get("one").await.unwrap();
    assert_eq!(one.finalizers(), ["ingresses.networking.internal.knative.dev"]);
    let status = serde_json::to_value(&one.status).unwrap();
    let address = |service: &str| json!({"ingress": [{"domainInternal": service}]});
    assert_eq!(status["publicLoadBalancer"], address("kourier.kourier-system.svc.cluster.local"));
    assert_eq!(status["privateLoadBalancer"], address("kourier-internal.kourier-system.svc.cluster.local"));
    assert_eq!(send(external, &Request::to("one.example.com")).await.unwrap().status, 200);

    let started = std::time::Instant::now();
    api.create(&create, &ingress("three", "three.example.com", CLASS)).await.unwrap();
    until(&api, "three", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    println!("created to ready in {:?}", started.elapsed());
    assert_eq!(send(external, &Request::to("three.example.com")).await.unwrap().status, 200);

    api.create(&create, &ingress("thief", "one.example.com", CLASS)).await.unwrap();
    until(&api, "thief", "refused", |i| says(i, "LoadBalancerReady", "False", "DomainConflict")).await;
    assert_eq!(send(external, &Request::to("one.example.com")).await.unwrap().status, 200);
    api.delete("one", &DeleteParams::default()).await.unwrap();
    until(&api, "one", "gone", |i| i.is_none()).await;
    until(&api, "thief", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    assert_eq!(send(external, &Request::to("one.example.com")).await.unwrap().status, 200);

    let foreign = api.get("foreign").await.unwrap();
    assert!(foreign.status.is_none() && foreign.finalizers().is_empty());
    tasks.shutdown().await;
    server.shutdown().await.unwrap();
}
