use api::serving::v1::ConfigurationStatus;
use serde_json::json;

use super::*;

fn configuration(generation: i64, latest_ready: &str) -> Configuration {
    let mut configuration: Configuration = serde_json::from_value(json!({
        "metadata": {"name": "hello", "namespace": "default", "uid": "c1", "generation": generation,
            "labels": {"serving.knative.dev/service": "hello"},
            "annotations": {"serving.knative.dev/routes": "hello", "serving.knative.dev/lastModifier": "me"}},
        "spec": {"template": {"metadata": {"annotations": {"a": "b"}}, "spec": {"containers": [{"image": "x"}]}}},
    }))
    .expect("a valid Configuration");
    configuration.status =
        Some(ConfigurationStatus { latest_ready_revision_name: latest_ready.into(), ..Default::default() });
    configuration
}

fn revision(generation: i64, ready: bool) -> Arc<Revision> {
    let mut revision = resources::revision(&configuration(generation, ""), Timestamp::UNIX_EPOCH);
    revision.metadata.generation = Some(1);
    revision.status_mut().observed_generation = 1;
    if ready {
        revision.mark().mark_true("ResourcesAvailable");
        revision.mark().mark_true("ContainerHealthy");
    }
    Arc::new(revision)
}

#[test]
fn the_revision_of_a_routed_configuration_is_active_from_birth() {
    let revision = resources::revision(&configuration(12, ""), Timestamp::UNIX_EPOCH);
    assert_eq!(revision.name_any(), "hello-00012");
    assert_eq!(revision.labels()[keys::serving::ROUTING_STATE], "active");
    assert_eq!(revision.labels()[keys::serving::CONFIGURATION_GENERATION], "12");
    assert_eq!(
        serde_json::to_value(revision.annotations()).unwrap(),
        json!({"a": "b", "serving.knative.dev/creator": "me", "serving.knative.dev/routes": "hello",
            "serving.knative.dev/routingStateModified": "1970-01-01T00:00:00Z"})
    );
}

#[test]
fn the_newest_ready_generation_wins_but_never_goes_below_the_present_one() {
    let revisions = [revision(1, true), revision(2, true), revision(3, false)];
    let now = configuration(3, "hello-00001");
    assert_eq!(latest::ready(&now, &revisions[2], &revisions).as_deref(), Some("hello-00002"));
    let revisions = [revision(1, true), revision(2, false), revision(3, false)];
    let now = configuration(3, "hello-00002");
    assert_eq!(latest::ready(&now, &revisions[2], &revisions), None);
    let now = configuration(3, "hello-00009");
    assert_eq!(
        latest::ready(&now, &revisions[2], &revisions).as_deref(),
        Some("hello-00001"),
        "the present one is gone"
    );
}
