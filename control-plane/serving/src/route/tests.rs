//! Against what upstream emitted for the same Routes, Configurations and Revisions.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use api::config::{Domain, Network};
use api::serving::v1::{Configuration, Revision, Route};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::traffic::{Lookup, resolve};
use super::*;

struct World {
    configurations: Vec<Arc<Configuration>>,
    revisions: Vec<Arc<Revision>>,
    domain: Domain,
    network: Network,
}

impl Lookup for World {
    fn configuration(&self, _: &str, name: &str) -> Option<Arc<Configuration>> {
        self.configurations.iter().find(|c| c.name_any() == name).cloned()
    }

    fn revision(&self, _: &str, name: &str) -> Option<Arc<Revision>> {
        self.revisions.iter().find(|r| r.name_any() == name).cloned()
    }
}

fn objects<K: DeserializeOwned>(resource: &str) -> Vec<K> {
    let path = format!("{}/../../crates/api/tests/fixtures/objects/{resource}.yaml", env!("CARGO_MANIFEST_DIR"));
    let list: Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    serde_json::from_value(list["items"].clone()).unwrap()
}

fn world() -> World {
    let network = BTreeMap::from([("ingress-class".to_owned(), keys::networking::KOURIER_INGRESS_CLASS.to_owned())]);
    World {
        configurations: objects("configurations.serving.knative.dev").into_iter().map(Arc::new).collect(),
        revisions: objects("revisions.serving.knative.dev").into_iter().map(Arc::new).collect(),
        domain: Domain::parse(&BTreeMap::from([("example.com".to_owned(), String::new())])).unwrap(),
        network: Network::parse(&network).unwrap(),
    }
}

fn naming(world: &World) -> Naming<'_> {
    Naming { domain: &world.domain, network: &world.network, cluster_domain: "cluster.local" }
}

fn visibility(route: &Route, naming: Naming<'_>) -> BTreeMap<String, Visibility> {
    traffic::names(route)
        .into_iter()
        .map(|tag| {
            let hostname = naming.hostname(route, &tag).unwrap();
            (tag, naming.visibility(route, &hostname, |_| false))
        })
        .collect()
}

fn make_ingress(world: &World, route: &Route, traffic: &Traffic, rollout: &Rollout, by_header: bool) -> Ingress {
    let naming = naming(world);
    ingress::Input {
        route,
        naming,
        traffic,
        rollout,
        visibility: &visibility(route, naming),
        tls: Vec::new(),
        route_by_tag_header: by_header,
    }
    .ingress()
    .unwrap()
}

#[test]
fn routes_become_the_ingresses_and_status_that_upstream_made() {
    let world = world();
    let naming = naming(&world);
    let ingresses: Vec<Ingress> = objects("ingresses.networking.internal.knative.dev");
    let mut compared = 0;
    for route in objects::<Route>("routes.serving.knative.dev") {
        let name = route.name_any();
        let Ok(traffic) = resolve(&route, &world).traffic else { continue };
        let expected = ingresses.iter().find(|i| i.name_any() == name).unwrap();
        let made = make_ingress(&world, &route, &traffic, &Rollout::steady(&traffic), false);
        assert_eq!(made.spec, expected.spec, "{name}");
        assert_eq!(made.metadata.labels, expected.metadata.labels, "{name}");
        assert_eq!(made.metadata.annotations, expected.metadata.annotations, "{name}");
        assert_eq!(made.metadata.owner_references, expected.metadata.owner_references, "{name}");

        let status = route.status.as_ref().unwrap();
        let visibility = visibility(&route, naming);
        let assigned = status_traffic(&route, naming, &visibility, &traffic, &Rollout::default()).unwrap();
        assert_eq!(assigned, status.traffic, "{name}");
        let host = naming.domain_name(&route, &name, visibility[""]).unwrap();
        assert_eq!(Some(naming.url(&host)), status.url, "{name}");
        assert_eq!(Some(naming.address(&route)), status.address.as_ref().unwrap().url, "{name}");
        compared += 1;
    }
    assert!(compared >= 5, "only {compared} routes compared");
}

#[test]
fn placeholders_end_as_upstream_left_them() {
    let world = world();
    let naming = naming(&world);
    let ingresses: Vec<Ingress> = objects("ingresses.networking.internal.knative.dev");
    let services: Vec<Service> = objects("services.core");
    for route in objects::<Route>("routes.serving.knative.dev") {
        let Ok(traffic) = resolve(&route, &world).traffic else { continue };
        let ingress = ingresses.iter().find(|i| i.name_any() == route.name_any()).unwrap();
        for tag in traffic.groups.keys() {
            let hostname = naming.hostname(&route, tag).unwrap();
            let expected = services.iter().find(|s| s.name_any() == hostname).unwrap();
            let initial = placeholders::initial(&route, &hostname, naming.own_domain_name(&route, &hostname).unwrap());
            let desired = placeholders::from_ingress(&route, &hostname, &initial, ingress).unwrap();
            assert_eq!(desired.endpoints, None);
            let Change::Update(updated) = placeholders::change(&initial, &desired.service) else {
                panic!("{hostname}: the gateway's name is not the Route's")
            };
            assert_eq!(updated.metadata.labels, expected.metadata.labels);
            assert_eq!(updated.metadata.annotations, expected.metadata.annotations);
            assert_eq!(placeholders::change(expected, &desired.service), Change::Nothing, "{hostname}");
        }
    }
}

#[test]
fn bad_targets_are_told_as_upstream_told_them() {
    let world = world();
    let mut compared = 0;
    for mut route in objects::<Route>("routes.serving.knative.dev") {
        // What failed later has no latest ready revision either; only what upstream then saw is compared.
        let expected = route.condition(ALL_TRAFFIC_ASSIGNED).cloned().unwrap();
        if expected.is_true() || expected.is_unknown() {
            continue;
        }
        let bad = resolve(&route, &world).traffic.unwrap_err();
        route.status = None;
        route.mark().init();
        mark_bad_target(&mut route, &bad);
        let actual = route.condition(ALL_TRAFFIC_ASSIGNED).unwrap();
        assert!(actual.same(&expected), "{actual:?} is not {expected:?}");
        compared += 1;
    }
    assert!(compared > 0);
}

fn route(traffic: Value) -> Route {
    let mut route: Route = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Route",
        "metadata": {"name": "r", "namespace": "default", "uid": "u", "labels": {"serving.knative.dev/service": "split"}},
        "spec": {"traffic": traffic}
    }))
    .unwrap();
    api::defaults::route(&mut route);
    route
}

#[test]
fn a_failure_is_told_before_what_may_still_come() {
    let mut world = world();
    let mut waiting = (*world.configurations[0]).clone();
    waiting.metadata.name = Some("waiting".into());
    waiting.status = None;
    world.configurations.push(Arc::new(waiting));
    let resolution = resolve(
        &route(json!([
            {"configurationName": "waiting", "percent": 40},
            {"revisionName": "hello-00001", "percent": 30},
            {"revisionName": "none", "percent": 30}
        ])),
        &world,
    );
    let bad = resolution.traffic.unwrap_err();
    assert_eq!(bad.message, "Revision \"none\" referenced in traffic not found.");
    let names: Vec<_> = resolution.references.iter().map(|(kind, key)| format!("{kind} {}", key.name)).collect();
    assert_eq!(names, ["Configuration waiting", "Revision hello-00001", "Revision none"]);

    let bad = resolve(&route(json!([{"revisionName": "hello-00001", "percent": 100}])), &world).traffic.unwrap_err();
    assert_eq!(bad.reason, "RevisionNotOwned");
    assert_eq!(bad.message, "Revision \"hello-00001\" belongs to Service \"hello\", not Service \"split\".");

    let bad = resolve(&route(json!([{"configurationName": "waiting", "percent": 100}])), &world).traffic.unwrap_err();
    assert!(!bad.failed);
    assert_eq!(bad.message, "Configuration \"waiting\" is waiting for a Revision to become ready.");
}

#[test]
fn equal_targets_merge_and_a_rollout_spreads_the_latest() {
    let world = world();
    let route = route(json!([
        {"configurationName": "split", "percent": 60},
        {"revisionName": "split-v2", "percent": 10},
        {"revisionName": "split-v1", "percent": 30, "tag": "old"}
    ]));
    let traffic = resolve(&route, &world).traffic.unwrap();
    let shares = |targets: &[traffic::Target]| -> Vec<(String, i64)> {
        targets.iter().map(|t| (t.revision.clone(), t.percent)).collect()
    };
    assert_eq!(shares(&traffic.groups[""]), [("split-v2".to_owned(), 70), ("split-v1".to_owned(), 30)]);
    assert_eq!(shares(&traffic.groups["old"]), [("split-v1".to_owned(), 100)]);
    assert_eq!(traffic.targets.len(), 3, "the status keeps what differs in latestRevision");

    let mut rollout = Rollout::steady(&traffic);
    rollout.configurations[0].revisions = ["split-v1", "split-v2"]
        .map(|name| rollout::RevisionRollout { revision_name: name.into(), percent: 35 })
        .into();
    let ingress = make_ingress(&world, &route, &traffic, &rollout, true);
    let rule = &ingress.spec.rules[0].http.as_ref().unwrap();
    assert_eq!(rule.paths[0].headers["Knative-Serving-Tag"].exact, "old");
    assert_eq!(rule.paths[1].append_headers["Knative-Serving-Default-Route"], "true");
    let splits: Vec<_> = rule.paths[1].splits.iter().map(|s| (s.service_name.as_str(), s.percent)).collect();
    assert_eq!(splits, [("split-v1", 35), ("split-v2", 35), ("split-v1", 30)]);
}

#[test]
fn templates_labels_and_protocol_annotations_are_honoured() {
    let mut world = world();
    world.network = Network::parse(&BTreeMap::from([
        ("domain-template".to_owned(), "{{.Name}}-{{.Namespace}}.{{.Domain}}".to_owned()),
        ("tag-template".to_owned(), "{{.Name}}-{{.Tag}}".to_owned()),
        ("default-external-scheme".to_owned(), "https".to_owned()),
    ]))
    .unwrap();
    let naming = naming(&world);
    let mut route = route(json!([{"configurationName": "split", "percent": 100, "tag": "t"}]));
    let host = |v| naming.domain_name(&route, &naming.hostname(&route, "t").unwrap(), v).unwrap();
    assert_eq!(naming.url(&host(Visibility::ExternalIp)), "https://r-t-default.example.com");
    assert_eq!(naming.url(&host(Visibility::ClusterLocal)), "http://r-t.default.svc.cluster.local");
    assert_eq!(naming.visibility(&route, "r-t", |name| name == "r-t"), Visibility::ClusterLocal);

    let traffic = resolve(&route, &world).traffic.unwrap();
    let rollout = Rollout::steady(&traffic);
    route.annotations_mut().insert("networking.knative.dev/http-protocol".into(), "Redirected".into());
    assert_eq!(make_ingress(&world, &route, &traffic, &rollout, false).spec.http_option, "Redirected");
    route.labels_mut().insert("networking.knative.dev/visibility".into(), "cluster-local".into());
    let local = make_ingress(&world, &route, &traffic, &rollout, false);
    assert!(local.spec.rules.iter().all(|rule| rule.visibility == "ClusterLocal"));
    let long = "x".repeat(70);
    assert!(naming.domain_name(&route, &long, Visibility::ExternalIp).unwrap_err().starts_with("invalid domain name"));
}
