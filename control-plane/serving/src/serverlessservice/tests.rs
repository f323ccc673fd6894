use k8s_openapi::api::core::v1::EndpointSubset;
use serde_json::{Value, json};

use super::*;

fn sks(mode: &str, protocol: &str, activators: i32) -> ServerlessService {
    serde_json::from_value(json!({
        "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ServerlessService",
        "metadata": {"name": "hello-00001", "namespace": "default", "uid": "u1", "generation": 1,
            "labels": {"app": "hello-00001"}, "annotations": {"serving.knative.dev/creator": "me"}},
        "spec": {"mode": mode, "numActivators": activators, "protocolType": protocol,
            "objectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"}},
    }))
    .expect("a valid ServerlessService")
}

fn subsets(value: Value) -> Vec<EndpointSubset> {
    serde_json::from_value(value).expect("valid subsets")
}

fn pods(ready: &[&str]) -> Vec<EndpointSubset> {
    let addresses: Vec<_> = ready.iter().map(|ip| json!({"ip": ip})).collect();
    subsets(json!([{"addresses": addresses, "ports": [
        {"name": "http-istio", "port": 8012, "protocol": "TCP"},
        {"name": "https", "port": 8112, "protocol": "TCP"},
        {"name": "http-autometric", "port": 9090, "protocol": "TCP"},
        {"name": "http", "port": 8012, "protocol": "TCP"},
    ]}]))
}

fn activators(ready: &[&str]) -> Vec<EndpointSubset> {
    let addresses: Vec<_> = ready.iter().map(|ip| json!({"ip": ip})).collect();
    subsets(json!([{"addresses": addresses, "ports": [
        {"name": "http-metrics", "port": 9090, "protocol": "TCP"},
        {"name": "http", "port": 8012, "protocol": "TCP"},
        {"name": "http2", "port": 8013, "protocol": "TCP"},
        {"name": "https", "port": 8112, "protocol": "TCP"},
    ]}]))
}

fn ips(backends: &endpoints::Backends) -> Vec<&str> {
    backends.subsets.iter().flat_map(|s| s.addresses.iter().flatten()).map(|a| a.ip.as_str()).collect()
}

#[test]
fn pods_answer_only_when_ready_and_wanted_or_when_nobody_else_does() {
    let cases = [
        ("Serve", &["p"][..], &["a"][..], vec!["p"]),
        ("Serve", &[], &["a"], vec!["a"]),
        ("Proxy", &["p"], &["a"], vec!["a"]),
        ("Proxy", &["p"], &[], vec!["p"]),
        ("", &["p"], &["a"], vec!["a"]),
        ("Proxy", &[], &[], vec![]),
    ];
    for (mode, private, activator, expected) in cases {
        let chosen = endpoints::choose(&sks(mode, "http1", 0), &pods(private), &activators(activator));
        assert_eq!(ips(&chosen), expected, "{mode} {private:?} {activator:?}");
    }
}

#[test]
fn the_ports_are_those_of_the_protocol_and_tls() {
    let ports = |protocol: &str, mode: &str| {
        let chosen = endpoints::choose(&sks(mode, protocol, 0), &pods(&["p"]), &activators(&["a"]));
        let ports = chosen.subsets[0].ports.clone().unwrap_or_default();
        ports.into_iter().map(|port| format!("{}:{}", port.name.unwrap(), port.port)).collect::<Vec<_>>()
    };
    assert_eq!(ports("http1", "Proxy"), ["http:8012", "https:8112"]);
    assert_eq!(ports("h2c", "Proxy"), ["http2:8013", "https:8112"]);
    assert_eq!(ports("http1", "Serve"), ["http:8012", "https:8112"]);
}

#[test]
fn activators_are_chosen_by_revision_in_their_order() {
    let all: Vec<String> = (0..20).map(|n| format!("10.0.0.{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let chosen = endpoints::choose(&sks("Proxy", "http1", 3), &[], &activators(&all));
    let order: Vec<_> = all.iter().copied().filter(|ip| ips(&chosen).contains(ip)).collect();
    assert_eq!((ips(&chosen).len(), ips(&chosen)), (3, order));
    let mut some_gone = activators(&["10.0.0.1"]);
    some_gone.extend(subsets(json!([{"notReadyAddresses": [{"ip": "10.0.0.9"}]}])));
    let chosen = endpoints::choose(&sks("Proxy", "http1", 3), &[], &some_gone);
    assert_eq!(chosen.subsets.len(), 1, "a subset without ready addresses is left out");
}

#[test]
fn services_as_upstream_makes_them() {
    let selector: LabelSelector =
        serde_json::from_value(json!({"matchLabels": {"serving.knative.dev/revisionUID": "r"}})).unwrap();
    let private = serde_json::to_value(children::private_service(&sks("Proxy", "http1", 0), &selector)).unwrap();
    let port = |name: &str, port: i32, target: Value| json!({"name": name, "port": port, "protocol": "TCP", "targetPort": target});
    assert_eq!(private["metadata"]["name"], "hello-00001-private");
    assert_eq!(
        private["metadata"]["labels"],
        json!({"app": "hello-00001", "networking.internal.knative.dev/serverlessservice": "hello-00001",
            "networking.internal.knative.dev/serviceType": "Private"})
    );
    assert_eq!(private["metadata"]["ownerReferences"][0]["kind"], "ServerlessService");
    assert_eq!(private["spec"]["selector"], json!({"serving.knative.dev/revisionUID": "r"}));
    assert_eq!(
        private["spec"]["ports"],
        json!([
            port("http", 80, json!(8012)),
            port("https", 443, json!(8112)),
            port("http-autometric", 9090, json!("http-autometric")),
            port("http-usermetric", 9091, json!("http-usermetric")),
            port("http-istio", 8012, json!(8012)),
        ])
    );
    let public = serde_json::to_value(children::public_service(&sks("Proxy", "h2c", 0))).unwrap();
    let mut http2 = port("http2", 81, json!(8013));
    http2["appProtocol"] = json!("kubernetes.io/h2c");
    assert_eq!(public["spec"], json!({"ports": [http2, port("https", 443, json!(8112))]}));
}

#[test]
fn a_drifted_service_keeps_all_but_its_ports_and_selector() {
    let desired = children::public_service(&sks("Proxy", "http1", 0));
    let mut existing = desired.clone();
    let spec = existing.spec.as_mut().unwrap();
    spec.cluster_ip = Some("10.96.0.7".into());
    assert_eq!(children::corrected(&existing, &desired), None);
    let spec = existing.spec.as_mut().unwrap();
    spec.selector = Some([("a".to_owned(), "b".to_owned())].into());
    let corrected = children::corrected(&existing, &desired).unwrap().spec.unwrap();
    assert_eq!((corrected.selector, corrected.cluster_ip.as_deref()), (None, Some("10.96.0.7")));
}

#[test]
fn a_child_of_somebody_else_is_told_and_left_alone() {
    let mut sks = sks("Proxy", "http1", 0);
    sks.mark().init();
    let not_owned = Failure::NotOwned { kind: "Service", name: "hello-00001".into() };
    let error = mark(&mut sks, Err(not_owned), "CreatingPublicService", "").unwrap_err();
    assert_eq!(error.to_string(), "SKS: hello-00001 does not own Service: hello-00001");
    let ready = sks.ready().unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "NotOwned"));
    assert_eq!(ready.message, "Resource hello-00001 of type Service is not owned by SKS");
}
