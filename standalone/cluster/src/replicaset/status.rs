//! A ReplicaSet's status from its pods.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Failure, is_active, is_finished};
use crate::backends::{is_ready, ready_condition};

const REPLICA_FAILURE: &str = "ReplicaFailure";

pub(super) fn status(set: &ReplicaSet, pods: &[Arc<Pod>], failure: Option<&Failure>, now: &Time) -> ReplicaSetStatus {
    let labels = set.spec.as_ref().and_then(|s| s.template.as_ref()?.metadata.as_ref()?.labels.clone());
    let labels = labels.unwrap_or_default();
    let active: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_active(pod)).collect();
    let count = |test: &dyn Fn(&Pod) -> bool| {
        let count = active.iter().filter(|pod| test(pod)).count();
        (count > 0).then(|| clamp(count))
    };
    let labelled = |pod: &Pod| {
        let own = pod.metadata.labels.as_ref();
        labels.iter().all(|(key, value)| own.and_then(|own| own.get(key)) == Some(value))
    };
    let terminating = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some() && !is_finished(pod)).count();
    let old = set.status.as_ref();
    ReplicaSetStatus {
        replicas: clamp(active.len()),
        fully_labeled_replicas: count(&labelled),
        ready_replicas: count(&is_ready),
        available_replicas: count(&|pod| available_in(set, pod, now) == Some(0)),
        terminating_replicas: Some(clamp(terminating)),
        observed_generation: set.metadata.generation,
        conditions: conditions(old.and_then(|old| old.conditions.clone()).unwrap_or_default(), failure, now),
    }
}

/// When a pod that is ready will have been so for `minReadySeconds`.
pub(super) fn until_available(set: &ReplicaSet, pods: &[Arc<Pod>], now: &Time) -> Option<Duration> {
    let active = pods.iter().filter(|pod| is_active(pod));
    let seconds = active.filter_map(|pod| available_in(set, pod, now)).filter(|left| *left > 0).min()?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Seconds until the pod counts as available; none if it is not ready.
fn available_in(set: &ReplicaSet, pod: &Pod, now: &Time) -> Option<i64> {
    if !is_ready(pod) {
        return None;
    }
    let wanted = i64::from(set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0));
    if wanted == 0 {
        return Some(0);
    }
    let since = ready_condition(pod)?.last_transition_time.as_ref()?;
    Some((since.0.as_second() + wanted - now.0.as_second()).max(0))
}

fn conditions(
    mut conditions: Vec<ReplicaSetCondition>,
    failure: Option<&Failure>,
    now: &Time,
) -> Option<Vec<ReplicaSetCondition>> {
    let known = conditions.iter().any(|condition| condition.type_ == REPLICA_FAILURE);
    match failure {
        None => conditions.retain(|condition| condition.type_ != REPLICA_FAILURE),
        Some(failure) if !known => {
            let (reason, error) = match failure {
                Failure::Create(error) => ("FailedCreate", error),
                Failure::Delete(error) => ("FailedDelete", error),
            };
            conditions.push(ReplicaSetCondition {
                type_: REPLICA_FAILURE.to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(error.to_string()),
                last_transition_time: Some(now.clone()),
            });
        }
        Some(_) => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

fn clamp(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
