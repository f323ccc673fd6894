use api::serving::v1::{ConfigurationStatus, RouteStatus, TrafficTarget};
use serde_json::json;

use super::*;

fn service() -> Service {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "default", "uid": "u1", "generation": 1,
            "labels": {"team": "a"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}",
                "serving.knative.dev/rollout-duration": "10s", "serving.knative.dev/creator": "me"}},
        "spec": {"template": {"spec": {"containers": [{"image": "dev.local/hello"}], "futureField": {"a": 1}}},
            "traffic": [{"latestRevision": true, "percent": 80}, {"revisionName": "hello-00001", "percent": 20}]},
    }))
    .expect("a valid Service")
}

#[test]
fn children_carry_the_labels_annotations_and_traffic_of_the_contract() {
    let service = service();
    let configuration = children::configuration(&service, None);
    assert_eq!(configuration.labels()["serving.knative.dev/serviceUID"], "u1");
    assert_eq!(configuration.labels()["team"], "a");
    assert_eq!(
        serde_json::to_value(configuration.annotations()).unwrap(),
        json!({"serving.knative.dev/creator": "me", "serving.knative.dev/routes": "hello"})
    );
    let spec = serde_json::to_value(&configuration.spec).unwrap();
    assert_eq!(spec["template"]["spec"]["futureField"]["a"], 1, "unknown fields travel on");

    let route = children::route(&service);
    assert!(route.annotations().contains_key("serving.knative.dev/rollout-duration"));
    assert!(!route.annotations().contains_key("kubectl.kubernetes.io/last-applied-configuration"));
    assert_eq!(route.spec.traffic[0].configuration_name, "hello");
    assert_eq!(route.spec.traffic[1].configuration_name, "");
}

#[test]
fn routes_of_others_stay_on_the_configuration() {
    let service = service();
    let mut existing = children::configuration(&service, None);
    existing.annotations_mut().insert("serving.knative.dev/routes".into(), "other,hello".into());
    let desired = children::configuration(&service, Some(&existing));
    assert_eq!(desired.annotations()["serving.knative.dev/routes"], "hello,other");
}

fn target(tag: &str, revision: &str, configuration: &str, percent: i64) -> TrafficTarget {
    TrafficTarget {
        tag: tag.into(),
        revision_name: revision.into(),
        configuration_name: configuration.into(),
        percent: Some(percent),
        ..TrafficTarget::default()
    }
}

#[test]
fn ready_waits_for_the_traffic_to_be_on_the_latest_ready_revision() {
    let service = service();
    let mut configuration = children::configuration(&service, None);
    configuration.status =
        Some(ConfigurationStatus { latest_ready_revision_name: "hello-00002".into(), ..Default::default() });
    let mut route = children::route(&service);
    route.spec.traffic = vec![target("", "", "hello", 100)];
    let on = |name: &str| Some(RouteStatus { traffic: vec![target("", name, "", 100)], ..Default::default() });
    route.status = on("hello-00001");
    assert!(!is_migrated(&configuration, &route));
    route.status = on("hello-00002");
    assert!(is_migrated(&configuration, &route));
}

#[test]
fn a_pinned_name_is_taken_unless_the_revision_is_ours_and_the_same() {
    let mut service = service();
    service.spec.template.metadata.name = "hello-one".into();
    let mut configuration = children::configuration(&service, None);
    configuration.metadata.uid = Some("c1".into());
    configuration.metadata.generation = Some(2);
    let mut revision = Revision { spec: configuration.spec.template.spec.clone(), ..Revision::default() };
    assert!(is_taken(&revision, &configuration), "not owned");
    revision.metadata.owner_references = Some(vec![controller::owner_reference(&configuration)]);
    assert!(!is_taken(&revision, &configuration), "same spec");
    revision.spec.container_concurrency = Some(7);
    assert!(is_taken(&revision, &configuration), "other spec");
    revision.labels_mut().insert(keys::serving::CONFIGURATION_GENERATION.into(), "2".into());
    assert!(!is_taken(&revision, &configuration), "made for this generation");
}
