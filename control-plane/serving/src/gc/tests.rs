use api::config::Gc;
use serde_json::json;

use super::*;

const HOUR: i64 = 3600;

/// Hours of creation and of last activity.
fn revision(name: &str, created: i64, active: i64, state: &str) -> Arc<Revision> {
    let at = |hour: i64| Timestamp::from_second(hour * HOUR).expect("in range").to_string();
    Arc::new(
        serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": name, "namespace": "default", "creationTimestamp": at(created),
                "labels": {"serving.knative.dev/routingState": state},
                "annotations": {"serving.knative.dev/routingStateModified": at(active)}},
            "spec": {"containers": []},
        }))
        .expect("a valid Revision"),
    )
}

fn configuration() -> Configuration {
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Configuration",
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": []}}},
        "status": {"latestReadyRevisionName": "latest"},
    }))
    .expect("a valid Configuration")
}

fn settings(min: i64, max: Option<i64>, create: Option<u64>, active: Option<u64>) -> Gc {
    Gc {
        retain_since_create_time: create.map(|hours| Duration::from_secs(hours * 3600)),
        retain_since_last_active_time: active.map(|hours| Duration::from_secs(hours * 3600)),
        min_non_active_revisions: min,
        max_non_active_revisions: max,
    }
}

fn run(settings: &Gc, revisions: &[Arc<Revision>], hour: i64) -> (Vec<String>, Option<u64>) {
    let now = Timestamp::from_second(hour * HOUR).expect("in range");
    let choice = choice::choose(settings, &configuration(), revisions, now);
    let names = choice.delete.iter().map(|revision| revision.name_any()).collect();
    (names, choice.next.map(|next| next.as_secs() / 3600))
}

#[test]
fn the_longest_unused_stale_ones_go_down_to_the_minimum() {
    let revisions = [
        revision("a", 0, 3, "reserve"),
        revision("b", 0, 1, "reserve"),
        revision("c", 0, 2, "reserve"),
        revision("d", 0, 0, "active"),
        revision("latest", 0, 0, "reserve"),
    ];
    assert_eq!(run(&settings(1, None, Some(48), Some(15)), &revisions, 100).0, ["b", "c"]);
    assert_eq!(run(&settings(3, None, Some(48), Some(15)), &revisions, 100).0, [""; 0]);
    assert_eq!(run(&settings(0, None, Some(48), Some(15)), &revisions, 47), (vec![], Some(1)), "too young");
}

#[test]
fn pinned_and_pending_ones_stay() {
    let mut pinned = (*revision("a", 0, 0, "reserve")).clone();
    pinned.annotations_mut().insert("serving.knative.dev/no-gc".into(), "True".into());
    let revisions = [Arc::new(pinned), revision("b", 0, 0, "pending")];
    assert_eq!(run(&settings(0, Some(0), Some(1), Some(1)), &revisions, 100).0, [""; 0]);
}

#[test]
fn the_maximum_counts_what_is_not_stale() {
    let revisions = [
        revision("a", 0, 1, "reserve"),
        revision("b", 0, 2, "reserve"),
        revision("c", 99, 99, "reserve"),
        revision("d", 98, 98, "reserve"),
        revision("e", 97, 97, "reserve"),
    ];
    assert_eq!(run(&settings(0, Some(2), Some(48), Some(15)), &revisions, 100).0, ["a", "b", "e"]);
    assert_eq!(run(&settings(0, Some(2), None, None), &revisions, 100).0, ["a", "b", "e"]);
    assert_eq!(run(&settings(0, None, None, None), &revisions, 100).0, [""; 0], "all disabled");
}
