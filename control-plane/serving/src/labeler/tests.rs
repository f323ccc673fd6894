use serde_json::json;

use super::*;

fn revision(state: &str, routes: Option<&str>) -> Revision {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": "hello-00001", "namespace": "default",
            "labels": {"serving.knative.dev/routingState": state},
            "annotations": routes.map_or(json!({}), |routes| json!({"serving.knative.dev/routes": routes}))},
        "spec": {"containers": []},
    }))
    .expect("a valid Revision")
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("in range")
}

const AT: &str = "2027-01-15T08:00:00Z";

#[test]
fn a_pending_revision_becomes_active_with_its_first_route() {
    let patch = marks::add_to_revision(&revision("pending", None), "hello", now());
    assert_eq!(
        patch,
        Some(json!({"metadata": {
            "labels": {"serving.knative.dev/routingState": "active"},
            "annotations": {"serving.knative.dev/routes": "hello", "serving.knative.dev/routingStateModified": AT},
        }}))
    );
}

#[test]
fn a_second_route_leaves_the_state_and_its_time() {
    let patch = marks::add_to_revision(&revision("active", Some("hello")), "also", now());
    assert_eq!(patch, Some(json!({"metadata": {"annotations": {"serving.knative.dev/routes": "also,hello"}}})));
    assert_eq!(marks::add_to_revision(&revision("active", Some("hello")), "hello", now()), None);
}

#[test]
fn the_last_route_leaves_a_reserve_behind() {
    let patch = marks::remove_from_revision(&revision("active", Some("hello")), "hello", now());
    assert_eq!(
        patch,
        Some(json!({"metadata": {
            "labels": {"serving.knative.dev/routingState": "reserve"},
            "annotations": {"serving.knative.dev/routes": null, "serving.knative.dev/routingStateModified": AT},
        }}))
    );
    let patch = marks::remove_from_revision(&revision("active", Some("also,hello")), "hello", now());
    assert_eq!(patch, Some(json!({"metadata": {"annotations": {"serving.knative.dev/routes": "also"}}})));
    assert_eq!(marks::remove_from_revision(&revision("active", Some("also")), "hello", now()), None);
}
