//! A Deployment's status: counts, and the three conditions that Serving maps to a Revision's.

use std::time::Duration;

use controller::Error;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::after_deadline;
use super::rolling::{Bounds, replicas};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const COMPLETE: &str = "NewReplicaSetAvailable";
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Counts and the Available condition.
pub(super) fn counts(
    deployment: &Deployment,
    all: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    now: &Time,
) -> DeploymentStatus {
    let old = deployment.status.clone().unwrap_or_default();
    let bounds = Bounds::of(deployment);
    let sum = |count: fn(&ReplicaSet) -> i32| all.iter().map(|set| count(set)).sum::<i32>();
    let available = sum(|set| set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: positive(sum(actual)),
        updated_replicas: positive(new.map_or(0, actual)),
        ready_replicas: positive(sum(|set| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: positive(available),
        unavailable_replicas: positive((sum(replicas) - available).max(0)),
        terminating_replicas: Some(sum(|set| set.status.as_ref().and_then(|s| s.terminating_replicas).unwrap_or(0))),
        collision_count: old.collision_count,
        conditions: old.conditions,
    };
    if available >= bounds.replicas - bounds.max_unavailable {
        let message = "Deployment has minimum availability.";
        set(&mut status, AVAILABLE, "True", "MinimumReplicasAvailable", message, now);
    } else {
        let message = "Deployment does not have minimum availability.";
        set(&mut status, AVAILABLE, "False", "MinimumReplicasUnavailable", message, now);
    }
    status
}

/// A ReplicaSet for the current template was just made, or found again.
pub(super) fn introduced(
    deployment: &Deployment,
    name: &str,
    created: bool,
    status: &mut DeploymentStatus,
    now: &Time,
) {
    if deadline(deployment).is_none() || (!created && find(status, PROGRESSING).is_some()) {
        return;
    }
    let (reason, message) = if created {
        ("NewReplicaSetCreated", format!("Created new replica set \"{name}\""))
    } else {
        ("FoundNewReplicaSet", format!("Found new replica set \"{name}\""))
    };
    set(status, PROGRESSING, "True", reason, &message, now);
}

pub(super) fn creation_failed(
    deployment: &Deployment,
    name: &str,
    error: &Error,
    status: &mut DeploymentStatus,
    now: &Time,
) {
    if deadline(deployment).is_some() {
        let message = format!("Failed to create new replica set \"{name}\": {error}");
        set(status, PROGRESSING, "False", "ReplicaSetCreateError", &message, now);
    }
}

/// The Progressing condition while a rollout goes on, and how long until its deadline should be looked at again.
pub(super) fn progress(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    status: &mut DeploymentStatus,
    now: &Time,
) -> Option<Duration> {
    let Some(deadline) = deadline(deployment) else {
        remove(status, PROGRESSING);
        return None;
    };
    let subject = new.map_or_else(
        || format!("Deployment \"{}\"", deployment.name_any()),
        |set| format!("ReplicaSet \"{}\"", set.name_any()),
    );
    let current = find(status, PROGRESSING).cloned();
    let reason = current.as_ref().and_then(|c| c.reason.clone()).unwrap_or_default();
    let settled = status.replicas == status.updated_replicas && reason == COMPLETE;
    if !settled {
        if complete(deployment, status) {
            set(status, PROGRESSING, "True", COMPLETE, &format!("{subject} has successfully progressed."), now);
        } else if progressed(deployment, status) {
            // A fresh update time starts the deadline again; the transition time stays with an unchanged status.
            let kept = current.as_ref().filter(|c| c.status == "True").and_then(|c| c.last_transition_time.clone());
            remove(status, PROGRESSING);
            set(status, PROGRESSING, "True", "ReplicaSetUpdated", &format!("{subject} is progressing."), now);
            if let (Some(kept), Some(condition)) = (kept, find_mut(status, PROGRESSING)) {
                condition.last_transition_time = Some(kept);
            }
        } else if left(current.as_ref(), deadline, now).is_some_and(|left| left.is_zero()) {
            set(status, PROGRESSING, "False", DEADLINE_EXCEEDED, &format!("{subject} has timed out progressing."), now);
        }
    }
    if complete(deployment, status) {
        return None;
    }
    left(find(status, PROGRESSING), deadline, now).filter(|left| !left.is_zero()).map(after_deadline)
}

/// Whether the Progressing condition tells of a pause that began or ended.
pub(super) fn pause(deployment: &Deployment, status: &mut DeploymentStatus, now: &Time) {
    if deadline(deployment).is_none() {
        return;
    }
    let reason = find(status, PROGRESSING).and_then(|c| c.reason.clone()).unwrap_or_default();
    let paused = deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true));
    if reason == DEADLINE_EXCEEDED {
        return;
    }
    if paused && reason != PAUSED {
        set(status, PROGRESSING, "Unknown", PAUSED, "Deployment is paused", now);
    } else if !paused && reason == PAUSED {
        set(status, PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed", now);
    }
}

/// Pods that cannot be created or deleted: the new ReplicaSet's trouble first, then any other's.
pub(super) fn replica_failure(all: &[&ReplicaSet], new: Option<&ReplicaSet>, status: &mut DeploymentStatus) {
    let failure = new.into_iter().chain(all.iter().copied()).find_map(|set| {
        set.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == REPLICA_FAILURE)
    });
    remove(status, REPLICA_FAILURE);
    if let Some(failure) = failure {
        status.conditions.get_or_insert_default().push(DeploymentCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: failure.status.clone(),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            last_transition_time: failure.last_transition_time.clone(),
            last_update_time: failure.last_transition_time.clone(),
        });
    }
}

/// Every wanted pod is of the current template and available, and no other is left.
pub(super) fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = positive(Bounds::of(deployment).replicas);
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn progressed(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let default = DeploymentStatus::default();
    let old = deployment.status.as_ref().unwrap_or(&default);
    let n = |value: Option<i32>| value.unwrap_or(0);
    let stale = |status: &DeploymentStatus| n(status.replicas) - n(status.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || stale(new) < stale(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn deadline(deployment: &Deployment) -> Option<Duration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Until the deadline; zero once it has passed, none if nothing is under way.
fn left(condition: Option<&DeploymentCondition>, deadline: Duration, now: &Time) -> Option<Duration> {
    let condition = condition?;
    match condition.reason.as_deref() {
        Some(COMPLETE) => return None,
        Some(DEADLINE_EXCEEDED) => return Some(Duration::ZERO),
        _ => {}
    }
    let since = condition.last_update_time.as_ref()?;
    let passed = now.0.as_second() - since.0.as_second();
    let passed = Duration::from_secs(u64::try_from(passed).unwrap_or(0));
    // "Passed" and not "reached": the times are whole seconds.
    Some(if passed > deadline { Duration::ZERO } else { (deadline - passed).max(Duration::from_millis(1)) })
}

fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// Zero counts are left out on the wire.
fn positive(count: i32) -> Option<i32> {
    (count > 0).then_some(count)
}

fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

fn find_mut<'a>(status: &'a mut DeploymentStatus, type_: &str) -> Option<&'a mut DeploymentCondition> {
    status.conditions.as_mut()?.iter_mut().find(|condition| condition.type_ == type_)
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

/// A condition with the same status and reason is left as it is.
fn set(status: &mut DeploymentStatus, type_: &str, value: &str, reason: &str, message: &str, now: &Time) {
    let current = find(status, type_);
    if current.is_some_and(|c| c.status == value && c.reason.as_deref() == Some(reason)) {
        return;
    }
    let kept = current.filter(|c| c.status == value).and_then(|c| c.last_transition_time.clone());
    remove(status, type_);
    status.conditions.get_or_insert_default().push(DeploymentCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: kept.or_else(|| Some(now.clone())),
        last_update_time: Some(now.clone()),
    });
}
