use api::config::{Domain, Features, Network};
use api::serving::v1::{Configuration, Revision};
use serde_json::{Value, json};

use super::*;

fn route(traffic: Value) -> Route {
    serde_json::from_value(json!({
        "metadata": {"name": "split", "namespace": "default", "uid": "r1", "generation": 1,
            "labels": {"serving.knative.dev/service": "split"},
            "annotations": {"serving.knative.dev/creator": "me"}},
        "spec": {"traffic": traffic},
    }))
    .expect("a valid Route")
}

fn revision(name: &str, ready: &str) -> Arc<Revision> {
    let revision = json!({
        "metadata": {"name": name, "namespace": "default", "generation": 1,
            "labels": {"serving.knative.dev/service": "split", "serving.knative.dev/configuration": "split"}},
        "spec": {"containers": [{"image": "x"}]},
        "status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": ready}]},
    });
    Arc::new(serde_json::from_value(revision).expect("a valid Revision"))
}

fn resolve(route: &Route, latest: &str, revisions: &[Arc<Revision>]) -> Traffic {
    let configuration = json!({
        "metadata": {"name": "split", "namespace": "default", "generation": 1}, "spec": {},
        "status": {"observedGeneration": 1, "latestReadyRevisionName": latest},
    });
    let configuration: Arc<Configuration> = Arc::new(serde_json::from_value(configuration).expect("valid"));
    Traffic::resolve(
        route,
        &Lookup {
            configuration: &|name| (name == "split").then(|| configuration.clone()),
            revision: &|name| revisions.iter().find(|revision| revision.name_any() == name).cloned(),
        },
    )
}

fn network() -> Network {
    Network { ingress_class: keys::networking::KOURIER_INGRESS_CLASS.to_owned(), ..Network::default() }
}

fn domain() -> Domain {
    Domain::parse(&BTreeMap::from([("example.com".to_owned(), String::new())])).expect("valid")
}

fn hosts(route: &Route, traffic: &Traffic) -> Hosts {
    let (domain, network) = (domain(), network());
    let naming = Naming { domain: &domain, network: &network, cluster_domain: "cluster.local" };
    let host = |tag: &String| {
        let hostname = naming.hostname(route, tag).unwrap();
        let local = naming.domain_name(route, &hostname, Visibility::ClusterLocal).unwrap();
        let external = naming.domain_name(route, &hostname, Visibility::ExternalIp).ok();
        GroupHosts { local: naming.expand(&local), local_primary: local, external }
    };
    traffic.groups.keys().map(|tag| (tag.clone(), host(tag))).collect()
}

/// The Ingress that upstream makes of a three-way split with tags (fixtures, `split`).
#[test]
fn the_ingress_is_upstreams() {
    let route = route(json!([
        {"revisionName": "split-v1", "percent": 50, "tag": "current", "latestRevision": false},
        {"revisionName": "split-v2", "percent": 50, "tag": "candidate", "latestRevision": false},
        {"configurationName": "split", "percent": 0, "tag": "latest", "latestRevision": true},
    ]));
    let traffic = resolve(&route, "split-v2", &[revision("split-v1", "True"), revision("split-v2", "True")]);
    let (hosts, rollout) = (hosts(&route, &traffic), Rollout::goal(&traffic));
    let (network, features) = (network(), Features::default());
    let inputs = ingress::Inputs {
        route: &route,
        traffic: &traffic,
        hosts: &hosts,
        rollout: &rollout,
        tls: Vec::new(),
        network: &network,
        features: &features,
    };
    let ingress = serde_json::to_value(ingress::ingress(&inputs).unwrap()).unwrap();
    let annotations = &ingress["metadata"]["annotations"];
    assert_eq!(
        annotations["networking.internal.knative.dev/rollout"],
        r#"{"configurations":[{"configurationName":"split","tag":"latest","percent":100,"revisions":[{"revisionName":"split-v2","percent":100}],"stepParams":{}}]}"#
    );
    assert_eq!(
        annotations["networking.internal.knative.dev/tag-to-host"],
        r#"{"candidate":["candidate-split.default.svc.cluster.local","candidate-split.default.example.com"],"current":["current-split.default.svc.cluster.local","current-split.default.example.com"],"latest":["latest-split.default.svc.cluster.local","latest-split.default.example.com"]}"#
    );
    let rules = ingress["spec"]["rules"].as_array().unwrap();
    let summary: Vec<_> = rules
        .iter()
        .map(|rule| {
            let splits = rule["http"]["paths"][0]["splits"].as_array().unwrap();
            let splits: Vec<_> = splits.iter().map(|s| format!("{}:{}", s["serviceName"], s["percent"])).collect();
            format!("{} {} {}", rule["visibility"], rule["hosts"].as_array().unwrap().last().unwrap(), splits.join(","))
                .replace('"', "")
        })
        .collect();
    assert_eq!(
        summary,
        [
            "ClusterLocal split.default.svc.cluster.local split-v1:50,split-v2:50",
            "ExternalIP split.default.example.com split-v1:50,split-v2:50",
            "ClusterLocal candidate-split.default.svc.cluster.local split-v2:100",
            "ExternalIP candidate-split.default.example.com split-v2:100",
            "ClusterLocal current-split.default.svc.cluster.local split-v1:100",
            "ExternalIP current-split.default.example.com split-v1:100",
            "ClusterLocal latest-split.default.svc.cluster.local split-v2:100",
            "ExternalIP latest-split.default.example.com split-v2:100",
        ]
    );
    assert_eq!(rules[0]["hosts"], json!(["split.default", "split.default.svc", "split.default.svc.cluster.local"]));
    assert_eq!(
        rules[0]["http"]["paths"][0]["splits"][0],
        json!({"serviceName": "split-v1", "serviceNamespace": "default", "servicePort": 80, "percent": 50,
            "appendHeaders": {"Knative-Serving-Revision": "split-v1", "Knative-Serving-Namespace": "default"}})
    );
    assert_eq!(ingress["spec"]["httpOption"], "Enabled");
}

#[test]
fn problems_are_told_and_final_ones_win() {
    let traffic = json!([
        {"configurationName": "split", "percent": 50, "latestRevision": true},
        {"revisionName": "nobody", "percent": 50, "latestRevision": false},
    ]);
    let resolved = resolve(&route(traffic.clone()), "", &[]);
    let problem = resolved.problem.expect("two problems");
    assert!(problem.failed);
    assert_eq!(problem.reason, "RevisionMissing");
    assert_eq!(problem.message, "Revision \"nobody\" referenced in traffic not found.");
    assert!(resolved.references.contains(&("Revision", "nobody".to_owned())), "it may appear later");

    let waiting = resolve(&route(json!([traffic[0]])), "", &[]).problem.expect("one problem");
    assert!(!waiting.failed);
    assert_eq!(waiting.message, "Configuration \"split\" is waiting for a Revision to become ready.");

    let unready = json!([{"revisionName": "split-v1", "percent": 100, "latestRevision": false}]);
    let failed = resolve(&route(unready), "", &[revision("split-v1", "False")]).problem.expect("one problem");
    assert_eq!((failed.failed, failed.message.as_str()), (true, "Revision \"split-v1\" failed to become ready."));
}

#[test]
fn a_revision_of_another_service_is_refused() {
    let mut other = (*revision("split-v1", "True")).clone();
    other.labels_mut().insert(keys::serving::SERVICE.into(), "other".into());
    let traffic = json!([{"revisionName": "split-v1", "percent": 100, "latestRevision": false}]);
    let problem = resolve(&route(traffic), "", &[Arc::new(other)]).problem.expect("not ours");
    assert_eq!(problem.reason, "RevisionNotOwned");
}

#[test]
fn placeholders_follow_the_load_balancer() {
    let route = route(json!([]));
    let placeholder = services::placeholder(&route, "split", "split.default.example.com");
    let status = serde_json::from_value(json!({"privateLoadBalancer": {"ingress":
        [{"domainInternal": "kourier-internal.kourier-system.svc.cluster.local"}]}}))
    .unwrap();
    let (desired, endpoints) =
        services::from_load_balancer(&route, "split", &BTreeMap::new(), &status).expect("one address");
    assert!(endpoints.is_none());
    let services::Change::Update(updated) = services::change(&placeholder, &desired) else { panic!("an update") };
    let name = updated.spec.as_ref().unwrap().external_name.as_deref();
    assert_eq!(name, Some("kourier-internal.kourier-system.svc.cluster.local"));
    assert_eq!(services::change(&updated, &desired), services::Change::None);

    let status = serde_json::from_value(json!({"publicLoadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}})).unwrap();
    let (headless, endpoints) =
        services::from_load_balancer(&route, "split", &BTreeMap::new(), &status).expect("one address");
    assert_eq!(endpoints.expect("for the IP").subsets.unwrap()[0].addresses.as_ref().unwrap()[0].ip, "10.0.0.1");
    assert!(matches!(services::change(&updated, &headless), services::Change::Update(_)));
    assert!(matches!(services::change(&headless, &desired), services::Change::Replace(_)));
}
