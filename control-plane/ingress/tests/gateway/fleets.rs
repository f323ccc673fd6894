//! Several fleets of gateways on one control plane, and gateways of both protocols in one fleet.

use std::net::SocketAddr;

use api::{Conditioned, networking::v1alpha1::Ingress};
use controller::{Context, Tasks};
use ingress::{Admin, Bootstrap, Fleets, Options};
use kube::api::{Api, PostParams};
use serde_json::json;

use super::{
    cluster::{CLASS, eventually, ingress, open, service, until, with},
    support::{Backend, Request, envoy, free_ports, send, spawn, spawn_text},
};

fn addresses(ingress: &Ingress, which: &str) -> Vec<String> {
    let status = serde_json::to_value(&ingress.status).unwrap();
    let list = status[which]["ingress"].as_array().unwrap().clone();
    list.iter().map(|address| address["domainInternal"].as_str().unwrap().to_owned()).collect()
}

async fn admin(address: SocketAddr, path: &str) -> String {
    send(address, &Request { path, ..Request::to("admin") }).await.unwrap().body().to_owned()
}

/// The hosts that a gateway has routes for.
async fn knows(address: SocketAddr, host: &str) -> bool {
    let answer = send(address, &Request { path: "/config_dump", ..Request::to("admin") }).await.unwrap();
    answer.raw().contains(host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inside_outside_and_a_tenant_are_separate_fleets() {
    let Some(program) = envoy() else { return };
    let server = open().await;
    let tasks = Tasks::new();
    let [xds, external, internal, probe, outside, inside, tenant] = free_ports().await;
    let fleets = "
- name: inside
  node: {id: inside-gateway}
  visibility: ClusterLocal
  labels: {team: red}
  internalService: kourier-inside
- name: blue
  node: {metadata: {tenant: blue}}
  class: blue.example.com
  serviceNamespace: blue
";
    let options = Options {
        xds_listen: xds,
        external_listen: vec![external],
        internal_listen: vec![internal],
        probe_listen: vec![probe],
        fleets: Fleets::parse(fleets).unwrap(),
        ..Options::default()
    };
    let handle = ingress::run(Context::new(server.client(), tasks.clone()), options).await.unwrap();
    let app = Backend::start("app").await;
    service(&server, "default", "app", &[app.address]);
    let api: Api<Ingress> = Api::default_namespaced(server.client());
    let create = PostParams::default();
    let class = |class: &str| {
        json!({"labels": {"team": "red"},
        "annotations": {"networking.knative.dev/ingress.class": class}})
    };
    let mut both = with("both", "red.example.com", class(CLASS), "ExternalIP");
    let local = with("x", "red.default.svc", class(CLASS), "ClusterLocal").spec.rules.remove(0);
    both.spec.rules.push(local);
    api.create(&create, &both).await.unwrap();
    api.create(&create, &with("blue", "blue.example.com", class("blue.example.com"), "ExternalIP")).await.unwrap();
    let foreign = with("foreign", "foreign.example.com", class("istio.example.com"), "ExternalIP");
    api.create(&create, &foreign).await.unwrap();

    // The whole of an Ingress is Ready once every fleet that carries a part of it has it.
    let bootstrap = |admin| Bootstrap::new(xds, Admin::Tcp(admin));
    let _outside = spawn(&program, &bootstrap(outside));
    eventually("the gateway outside", async || {
        send(external, &Request::to("red.example.com")).await.is_ok_and(|answer| answer.status == 200)
    })
    .await;
    assert!(!api.get("both").await.unwrap().is_ready(), "nobody serves the part inside");
    let _inside = spawn(&program, &Bootstrap { node_id: "inside-gateway".to_owned(), ..bootstrap(inside) });
    until(&api, "both", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    let node_metadata = [("tenant".to_owned(), "blue".to_owned())].into();
    let _tenant = spawn(&program, &Bootstrap { node_metadata, ..bootstrap(tenant) });
    until(&api, "blue", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;

    // Their listeners have the same ports on this machine, so who has what is asked of each.
    for (host, who) in [("red.example.com", outside), ("red.default.svc", inside), ("blue.example.com", tenant)] {
        for gateway in [outside, inside, tenant] {
            assert_eq!(knows(gateway, host).await, gateway == who, "{host}");
        }
    }
    let listeners = admin(inside, "/listeners").await;
    assert!(listeners.contains("listener_8081") && !listeners.contains("listener_8080"), "{listeners}");
    let both = api.get("both").await.unwrap();
    assert_eq!(addresses(&both, "publicLoadBalancer"), ["kourier.kourier-system.svc.cluster.local"]);
    assert_eq!(addresses(&both, "privateLoadBalancer"), ["kourier-inside.kourier-system.svc.cluster.local"]);
    let blue = api.get("blue").await.unwrap();
    assert_eq!(addresses(&blue, "publicLoadBalancer"), ["kourier.blue.svc.cluster.local"]);
    assert!(api.get("foreign").await.unwrap().status.is_none());
    let figures: Vec<(String, u64, u64)> =
        handle.fleets().map(|fleet| (fleet.name.to_owned(), fleet.gateways, fleet.ingresses)).collect();
    let expected = [("inside", 1, 1), ("blue", 1, 1), ("default", 1, 1)];
    assert_eq!(figures, expected.map(|(name, gateways, ingresses)| (name.to_owned(), gateways, ingresses)));

    // It moves to another fleet with its class.
    let mut moved = api.get("both").await.unwrap();
    moved.metadata.annotations =
        Some([("networking.knative.dev/ingress.class".to_owned(), "blue.example.com".to_owned())].into());
    api.replace("both", &create, &moved).await.unwrap();
    eventually("the move", async || knows(tenant, "red.example.com").await && !knows(outside, "red.example.com").await)
        .await;
    tasks.shutdown().await;
    server.shutdown().await.unwrap();
}

/// The bootstrap that upstream ships, from the chart: other addresses, because this is one machine, and its protocol.
fn upstream_bootstrap(xds: SocketAddr, admin: SocketAddr, stats: SocketAddr) -> String {
    let template = include_str!("../../../../charts/kourier/templates/bootstrap.yaml");
    let text = template.split_once("envoy-bootstrap.yaml: |\n").unwrap().1;
    text.replace("{{ .Values.gateway.xdsProtocol }}", "GRPC")
        .replace("{{ .Values.gateway.nodeId }}", "3scale-kourier-gateway")
        .replace("        set_node_on_first_message_only: true\n", "")
        .replace(r#"{address: "::", port_value: 9000, ipv4_compat: true}"#, "{address: 127.0.0.1, port_value: 9000}")
        .replace(
            "net-kourier-controller.{{ .Values.systemNamespace }}, port_value: 18000",
            &format!("127.0.0.1, port_value: {}", xds.port()),
        )
        .replace("9901", &admin.port().to_string())
        .replace("9000", &stats.port().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_of_both_protocols_are_served_at_once() {
    let Some(program) = envoy() else { return };
    let server = open().await;
    let tasks = Tasks::new();
    let [xds, external, internal, probe, old, new, stats] = free_ports().await;
    let options = Options {
        xds_listen: xds,
        external_listen: vec![external],
        internal_listen: vec![internal],
        probe_listen: vec![probe],
        ..Options::default()
    };
    let handle = ingress::run(Context::new(server.client(), tasks.clone()), options).await.unwrap();
    let app = Backend::start("app").await;
    service(&server, "default", "app", &[app.address]);
    let api: Api<Ingress> = Api::default_namespaced(server.client());
    let create = PostParams::default();
    api.create(&create, &ingress("one", "one.example.com", CLASS)).await.unwrap();

    let text = upstream_bootstrap(xds, old, stats);
    assert!(text.contains("api_type: GRPC") && text.contains("id: 3scale-kourier-gateway"), "{text}");
    let (_old, _old_files) = spawn_text(&program, &Bootstrap::new(xds, Admin::Tcp(old)), &text);
    let (_new, _new_files) = spawn(&program, &Bootstrap::new(xds, Admin::Tcp(new)));
    eventually("both gateways", async || handle.xds.settled().borrow().gateways == 2).await;
    until(&api, "one", "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
    for n in 0..5 {
        let (name, host) = (format!("more-{n}"), format!("more-{n}.example.com"));
        api.create(&create, &ingress(&name, &host, CLASS)).await.unwrap();
        until(&api, &name, "ready", |i| i.is_some_and(Conditioned::is_ready)).await;
        // The kernel spreads connections over both.
        for _ in 0..40 {
            assert_eq!(send(external, &Request::to(&host)).await.unwrap().status, 200, "{host}");
        }
    }
    for gateway in [old, new] {
        let counted = admin(gateway, "/stats?filter=ingress_http.downstream_rq_2xx").await;
        let counter = counted.lines().find_map(|line| line.strip_prefix("http.ingress_http.downstream_rq_2xx: "));
        let requests: u64 = counter.unwrap().parse().unwrap();
        assert!(requests > 0, "{counted}");
        let refused = admin(gateway, "/stats?filter=update_rejected").await;
        assert!(refused.lines().all(|line| line.ends_with(" 0")), "{refused}");
    }
    assert_eq!(send(stats, &Request { path: "/ready", ..Request::to("stats") }).await.unwrap().status, 200);
    tasks.shutdown().await;
    server.shutdown().await.unwrap();
}
