//! Several replicas: all serve gateways, one writes statuses, and asks those gateways that it does not see.

use std::{net::SocketAddr, time::Duration};

use api::{Conditioned, networking::v1alpha1::Ingress};
use controller::{Context, Tasks};
use ingress::{Admin, Bootstrap, Options};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Event};
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;

use super::{
    cluster::{CLASS, config_map, eventually, ingress, open, says, service, until},
    support::{Backend, Certificate, Request, envoy, free_ports, send, send_tls, spawn},
};

const LEASE: &str = "net-kourier-controller.knative.dev.net-kourier.pkg.reconciler.ingress.reconciler.00-of-01";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_that_writes_probes_gateways_that_are_connected_to_another() {
    let Some(program) = envoy() else { return };
    let server = open().await;
    let times = json!({"lease-duration": "60s", "renew-deadline": "40s", "retry-period": "1s"});
    config_map(&server, "config-leader-election", times);
    let [leader_xds, other_xds, external, internal, probe, tls, probe_tls, admin] = free_ports().await;
    let start = async |name: &str, xds| {
        let tasks = Tasks::new();
        let options = Options {
            xds_listen: xds,
            external_listen: vec![external],
            internal_listen: vec![internal],
            probe_listen: vec![probe],
            external_tls_listen: vec![tls],
            probe_tls_listen: vec![probe_tls],
            probe: Some(Duration::from_secs(1)),
            replica: Some(name.to_owned()),
            ..Options::default()
        };
        let handle = ingress::run(Context::new(server.client(), tasks.clone()), options).await.unwrap();
        (tasks, handle)
    };
    let leases: Api<Lease> = Api::namespaced(server.client(), "knative-serving");
    let holder = async || {
        let lease = leases.get_opt(LEASE).await.unwrap();
        lease.and_then(|lease| lease.spec?.holder_identity).unwrap_or_default()
    };
    let (leader, leading) = start("one", leader_xds).await;
    eventually("a leader", async || holder().await == "one").await;
    let (other, serving) = start("two", other_xds).await;

    let api: Api<Ingress> = Api::default_namespaced(server.client());
    let app = Backend::start("app").await;
    service(&server, "default", "app", &[app.address]);
    let create = PostParams::default();
    api.create(&create, &ingress("early", "early.example.com", CLASS)).await.unwrap();
    until(&api, "early", "without gateways", |i| says(i, "LoadBalancerReady", "Unknown", "Uninitialized")).await;
    let events: Api<Event> = Api::default_namespaced(server.client());
    eventually("an event that tells so", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.iter().any(|event| {
            event.reason.as_deref() == Some("InternalError")
                && event.message.as_deref() == Some("failed to probe Ingress: no gateway pods available")
        })
    })
    .await;

    let (gateway, _files) = spawn(&program, &Bootstrap::new(other_xds, Admin::Tcp(admin)));
    // Kubernetes finds it ready.
    let ready = Request { path: "/ready", ..Request::to("internalkourier") };
    eventually("the gateway", async || send(internal, &ready).await.is_ok_and(|answer| answer.status == 200)).await;
    service(&server, "kourier-system", "kourier-internal", &[internal]);
    until(&api, "early", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    assert_eq!(leading.xds.settled().borrow().gateways, 0, "the leader sees no gateway");
    assert_eq!(serving.xds.settled().borrow().gateways, 1);
    assert_eq!(send(external, &Request::to("early.example.com")).await.unwrap().status, 200);

    // A change is Ready when it is served, and not before.
    let before = api.get("early").await.unwrap();
    let mut changed = before.clone();
    changed.spec.rules[0].http.as_mut().unwrap().paths[0].append_headers =
        [("X-New".to_owned(), "yes".to_owned())].into();
    let generation = api.replace("early", &create, &changed).await.unwrap().metadata.generation.unwrap();
    let observed = |i: &Ingress| serde_json::to_value(&i.status).unwrap()["observedGeneration"] == generation;
    until(&api, "early", "ready again", |i| i.is_some_and(|i| i.is_ready() && observed(i))).await;
    let answer = send(external, &Request::to("early.example.com")).await.unwrap();
    assert_eq!(answer.header("x-new"), "yes");

    // With a certificate it is asked over TLS.
    let certificate = Certificate::new(&["tls.example.com"]);
    let data: serde_json::Map<String, serde_json::Value> =
        certificate.data().iter().map(|(name, pem)| ((*name).to_owned(), json!(pem))).collect();
    let metadata = json!({"name": "tls", "namespace": "default"});
    server.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})).unwrap();
    let mut secured = serde_json::to_value(ingress("tls", "tls.example.com", CLASS)).unwrap();
    secured["spec"]["tls"] = json!([{"hosts": ["tls.example.com"], "secretName": "tls", "secretNamespace": "default"}]);
    api.create(&create, &serde_json::from_value(secured).unwrap()).await.unwrap();
    until(&api, "tls", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    assert_eq!(send_tls(tls, &certificate, &Request::to("tls.example.com")).await.unwrap().status, 200);

    // What the gateway refuses only the other hears: it tells with an event, and the status stays as it is.
    let mut greedy = ingress("greedy", "greedy.example.com", CLASS);
    greedy.spec.rules[0].http.as_mut().unwrap().paths[0].append_headers =
        (0..1001).map(|n| (format!("x-{n}"), "y".to_owned())).collect();
    api.create(&create, &greedy).await.unwrap();
    eventually("an event about the refusal", async || {
        let events = events.list(&ListParams::default()).await.unwrap();
        events.iter().any(|event| {
            event.involved_object.name.as_deref() == Some("greedy") && event.reason.as_deref() == Some("GatewayRefused")
        })
    })
    .await;
    assert!(!api.get("greedy").await.unwrap().is_ready());
    assert_eq!(send(external, &Request::to("early.example.com")).await.unwrap().status, 200);

    // The other takes over at once, and sees the gateway itself.
    leader.shutdown().await;
    eventually("the other leader", async || holder().await == "two").await;
    api.create(&create, &ingress("late", "late.example.com", CLASS)).await.unwrap();
    until(&api, "late", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    assert_eq!(send(external, &Request::to("late.example.com")).await.unwrap().status, 200);

    drop(gateway);
    other.shutdown().await;
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_neither_acknowledges_nor_answers_is_waited_for_until_it_is_gone() {
    let Some(program) = envoy() else { return };
    let server = open().await;
    let [xds, external, internal, probe, admin] = free_ports().await;
    let tasks = Tasks::new();
    let options = Options {
        xds_listen: xds,
        external_listen: vec![external],
        internal_listen: vec![internal],
        probe_listen: vec![probe],
        probe: Some(Duration::from_secs(1)),
        ..Options::default()
    };
    let handle = ingress::run(Context::new(server.client(), tasks.clone()), options).await.unwrap();
    let (_gateway, _files) = spawn(&program, &Bootstrap::new(xds, Admin::Tcp(admin)));
    // One of them is connected, nobody is at the other's address.
    let dead = SocketAddr::from(([127, 0, 0, 2], internal.port()));
    service(&server, "kourier-system", "kourier-internal", &[internal, dead]);
    let app = Backend::start("app").await;
    service(&server, "default", "app", &[app.address]);
    let api: Api<Ingress> = Api::default_namespaced(server.client());
    api.create(&PostParams::default(), &ingress("one", "one.example.com", CLASS)).await.unwrap();
    eventually("the gateway that is there", async || {
        send(external, &Request::to("one.example.com")).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    until(&api, "one", "waiting", |i| says(i, "LoadBalancerReady", "Unknown", "Uninitialized")).await;
    let published = handle.xds.publish(Default::default());
    eventually("its acknowledgement", async || handle.xds.settled().borrow().revision >= published).await;
    assert!(!api.get("one").await.unwrap().is_ready(), "the other may be asked by somebody");
    service(&server, "kourier-system", "kourier-internal", &[internal]);
    until(&api, "one", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    // Once Ready, a gateway that comes later takes nothing back: it gets everything before it is asked anything.
    service(&server, "kourier-system", "kourier-internal", &[internal, dead]);
    api.create(&PostParams::default(), &ingress("two", "two.example.com", CLASS)).await.unwrap();
    until(&api, "two", "waiting", |i| says(i, "LoadBalancerReady", "Unknown", "Uninitialized")).await;
    assert!(api.get("one").await.unwrap().is_ready());
    tasks.shutdown().await;
    server.shutdown().await.unwrap();
}
