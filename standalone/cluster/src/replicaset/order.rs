//! Which pods go first when there are too many.

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::backends::{is_ready, ready_condition};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods that are worth least: unassigned, pending, not ready, cheap by annotation, ready for a shorter
/// time, restarted more often, newer.
pub(crate) fn first_to_go(mut pods: Vec<&Arc<Pod>>, count: usize) -> Vec<Arc<Pod>> {
    pods.sort_by(|a, b| worth(a).cmp(&worth(b)).then_with(|| a.name_any().cmp(&b.name_any())));
    pods.into_iter().take(count).cloned().collect()
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    ready_since: Oldest,
    restarts: Reverse<i32>,
    created: Oldest,
}

/// Later is less; unknown is least.
#[derive(PartialEq, Eq)]
struct Oldest(Option<Time>);

impl Ord for Oldest {
    fn cmp(&self, other: &Self) -> Ordering {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => b.cmp(a),
            (a, b) => a.is_some().cmp(&b.is_some()),
        }
    }
}

impl PartialOrd for Oldest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

fn worth(pod: &Pod) -> Worth {
    let status = pod.status.as_ref();
    let ready = is_ready(pod);
    let restarts = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    Worth {
        assigned: pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some()),
        phase: match status.and_then(|s| s.phase.as_deref()) {
            Some("Running") => 2,
            Some("Unknown") => 1,
            _ => 0,
        },
        ready,
        cost: pod.annotations().get(DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0),
        ready_since: Oldest(ready.then(|| ready_condition(pod).and_then(|c| c.last_transition_time.clone())).flatten()),
        restarts: Reverse(restarts.map(|container| container.restart_count).max().unwrap_or(0)),
        created: Oldest(pod.metadata.creation_timestamp.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, node: Option<&str>, phase: &str, ready: Option<&str>, cost: &str, created: &str) -> Arc<Pod> {
        let conditions = ready.map(|at| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at}]));
        let pod = json!({
            "metadata": {"name": name, "creationTimestamp": created, "annotations": {DELETION_COST: cost}},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "conditions": conditions.unwrap_or_else(|| json!([]))},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_order_of_deletion() {
        let (t1, t2) = ("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z");
        let expected = [
            pod("unassigned", None, "Pending", None, "9", t1),
            pod("pending", Some("n"), "Pending", None, "9", t1),
            pod("not-ready", Some("n"), "Running", None, "9", t1),
            pod("cheap", Some("n"), "Running", Some(t1), "-1", t1),
            pod("just-ready", Some("n"), "Running", Some(t2), "0", t1),
            pod("newer", Some("n"), "Running", Some(t1), "0", t2),
            pod("older", Some("n"), "Running", Some(t1), "0", t1),
        ];
        let shuffled: Vec<_> = expected.iter().rev().collect();
        let got: Vec<_> = first_to_go(shuffled, 9).iter().map(|pod| pod.name_any()).collect();
        let want: Vec<_> = expected.iter().map(|pod| pod.name_any()).collect();
        assert_eq!(got, want);
    }
}
