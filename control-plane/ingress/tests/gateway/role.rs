//! The whole role on the embedded API: status, finalizer, class and conflicts.

use api::{Conditioned, networking::v1alpha1::Ingress};
use controller::{Context, Tasks};
use ingress::{Admin, Bootstrap, Options};
use k8s_openapi::api::core::v1::Event;
use kube::{
    ResourceExt,
    api::{Api, DeleteParams, ListParams, PostParams},
};
use serde_json::json;

use super::{
    cluster::{CLASS, config_map, eventually, ingress, open, says, service, until},
    support::{Backend, Certificate, Request, envoy, free_ports, send, send_tls, spawn},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_is_ready_once_every_gateway_has_it() {
    let Some(program) = envoy() else { return };
    let server = open().await;
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
    service(&server, "default", "app", &[app.address]);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_labelled_secrets_only_the_one_certificate_still_needs_no_label() {
    let Some(program) = envoy() else { return };
    let server = open().await;
    config_map(&server, "config-kourier", json!({"listen-ip-addresses": "127.0.0.1"}));
    config_map(&server, "config-network", json!({}));
    let secret = |certificate: &Certificate| {
        let data: serde_json::Map<String, serde_json::Value> =
            certificate.data().iter().map(|(name, pem)| ((*name).to_owned(), json!(pem))).collect();
        let metadata = json!({"name": "wildcard", "namespace": "default"});
        server.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})).unwrap();
    };
    let first = Certificate::new(&["*.example.com"]);
    secret(&first);
    let tasks = Tasks::new();
    let [xds, external, internal, tls, admin] = free_ports().await;
    let mut options = Options {
        xds_listen: xds,
        external_listen: vec![external],
        internal_listen: vec![internal],
        probe_listen: Vec::new(),
        external_tls_listen: vec![tls],
        probe_tls_listen: Vec::new(),
        labelled_secrets: true,
        ..Options::default()
    };
    options.settings.certificate = Some(controller::ObjectKey::new("default", "wildcard"));
    ingress::run(Context::new(server.client(), tasks.clone()), options).await.unwrap();
    let app = Backend::start("app").await;
    service(&server, "default", "app", &[app.address]);
    let api: Api<Ingress> = Api::default_namespaced(server.client());
    api.create(&PostParams::default(), &ingress("one", "one.example.com", CLASS)).await.unwrap();
    let (_envoy, _files) = spawn(&program, &Bootstrap::new(xds, Admin::Tcp(admin)));
    until(&api, "one", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    let request = Request::to("one.example.com");
    let served = async |certificate: &Certificate| {
        send_tls(tls, certificate, &request).await.is_ok_and(|answer| answer.status == 200)
    };
    eventually("TLS", async || served(&first).await).await;
    let renewed = Certificate::new(&["*.example.com"]);
    secret(&renewed);
    eventually("the renewed certificate", async || served(&renewed).await).await;
    // One that settings name later.
    let other = Certificate::new(&["*.example.com"]);
    let data: serde_json::Map<String, serde_json::Value> =
        other.data().iter().map(|(name, pem)| ((*name).to_owned(), json!(pem))).collect();
    let metadata = json!({"name": "other", "namespace": "knative-serving"});
    server.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})).unwrap();
    let values = json!({"listen-ip-addresses": "127.0.0.1", "certs-secret-name": "other",
        "certs-secret-namespace": "knative-serving"});
    config_map(&server, "config-kourier", values);
    eventually("the other certificate", async || served(&other).await).await;
    tasks.shutdown().await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_concerns_everybody_is_shown_on_the_settings() {
    let Some(program) = envoy() else { return };
    let server = open().await;
    config_map(&server, "config-kourier", json!({"listen-ip-addresses": "127.0.0.1"}));
    config_map(&server, "config-network", json!({}));
    let tasks = Tasks::new();
    let [xds, external, internal, admin] = free_ports().await;
    let _taken = tokio::net::TcpListener::bind(external).await.unwrap();
    let options = Options {
        xds_listen: xds,
        external_listen: vec![external],
        internal_listen: vec![internal],
        probe_listen: Vec::new(),
        ..Options::default()
    };
    let handle = ingress::run(Context::new(server.client(), tasks.clone()), options).await.unwrap();
    let (_envoy, _files) = spawn(&program, &Bootstrap::new(xds, Admin::Tcp(admin)));
    let events: Api<Event> = Api::namespaced(server.client(), "knative-serving");
    eventually("the event", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.iter().any(|event| {
            let message = event.message.as_deref().unwrap_or_default();
            event.involved_object.name.as_deref() == Some("config-kourier")
                && event.reason.as_deref() == Some("GatewayRefused")
                && message.contains("3scale-kourier-gateway at 127.0.0.1 refused the listener listener_8080")
                && message.contains("ddress already in use")
        })
    })
    .await;
    assert_eq!(handle.fleets().next().unwrap().refused, 1);
    let ready = Request { path: "/ready", ..Request::to("internalkourier") };
    eventually("the other listener", async || send(internal, &ready).await.is_ok_and(|answer| answer.status == 200))
        .await;
    tasks.shutdown().await;
    server.shutdown().await.unwrap();
}
