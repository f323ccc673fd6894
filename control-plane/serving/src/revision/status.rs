//! A Revision's conditions, from its Deployment, one of its pods and its PodAutoscaler (controllers.md 6.5 and 6.6).
//!
//! Beyond upstream: pods are watched, so that a program that exits is told when it happens and not at the Deployment's deadline, and
//! what a container waits for is shown (as Unknown) before that deadline makes it a failure.

use std::sync::Arc;

use api::Conditioned;
use api::autoscaling::v1alpha1::PodAutoscaler;
use api::serving::v1::Revision;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition};
use k8s_openapi::api::core::v1::{ContainerState, Pod};

pub const RESOURCES: &str = "ResourcesAvailable";
pub const HEALTHY: &str = "ContainerHealthy";
pub const ACTIVE: &str = "Active";
pub const DEPLOYING: &str = "Deploying";
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
const QUEUE_PROXY: &str = "queue-proxy";

pub fn deploying(revision: &mut Revision) {
    revision.mark().mark_unknown(RESOURCES, DEPLOYING, "");
    revision.mark().mark_unknown(HEALTHY, DEPLOYING, "");
}

/// Takes over what the Deployment says, and looks into `pod` if none is available.
pub fn from_deployment(
    revision: &mut Revision,
    deployment: &Deployment,
    pod: impl FnOnce() -> Option<Arc<Pod>>,
    always_schedulable: bool,
) {
    let empty = Vec::new();
    let status = deployment.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref()).unwrap_or(&empty);
    available(revision, conditions);

    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let is_available = status.and_then(|status| status.available_replicas).unwrap_or_default() > 0;
    if wanted > 0
        && !is_available
        && let Some(pod) = pod()
    {
        from_pod(revision, &pod, deadline_exceeded(conditions), always_schedulable);
    }
    if status.and_then(|status| status.ready_replicas).unwrap_or_default() > 0 {
        revision.mark().mark_true(HEALTHY);
    }
}

fn available(revision: &mut Revision, conditions: &[DeploymentCondition]) {
    let of = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    // A failure to make replicas is the more precise of two failures.
    let failing = of("ReplicaFailure").filter(|condition| condition.status == "True");
    let progressing = of("Progressing");
    match (failing, progressing) {
        (Some(failure), _) => revision.mark().mark_false(RESOURCES, &text(&failure.reason), &text(&failure.message)),
        (None, None) => revision.mark().mark_unknown(RESOURCES, DEPLOYING, ""),
        (None, Some(progress)) => match progress.status.as_str() {
            "True" => revision.mark().mark_true(RESOURCES),
            "False" => revision.mark().mark_false(RESOURCES, &text(&progress.reason), &text(&progress.message)),
            _ => revision.mark().mark_unknown(RESOURCES, &text(&progress.reason), &text(&progress.message)),
        },
    }
}

fn deadline_exceeded(conditions: &[DeploymentCondition]) -> bool {
    conditions.iter().any(|condition| {
        condition.type_ == "Progressing"
            && condition.status == "False"
            && condition.reason.as_deref() == Some(DEADLINE_EXCEEDED)
    })
}

fn from_pod(revision: &mut Revision, pod: &Pod, deadline_exceeded: bool, always_schedulable: bool) {
    let Some(status) = &pod.status else { return };
    let unscheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled.filter(|_| !always_schedulable) {
        let (reason, message) = (condition.reason.as_deref(), condition.message.as_deref());
        revision.mark().mark_false(RESOURCES, reason.unwrap_or_default(), message.unwrap_or_default());
    }
    for container in status.container_statuses.iter().flatten().filter(|container| container.name != QUEUE_PROXY) {
        if let Some(ContainerState { terminated: Some(end), .. }) = &container.last_state {
            let message = match end.message.as_deref().unwrap_or_default() {
                "" if end.exit_code == 0 => "container exited with no error",
                message => message,
            };
            let message = format!("Container failed with: {message}");
            revision.mark().mark_false(HEALTHY, &format!("ExitCode{}", end.exit_code), &message);
            return;
        }
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        let Some(waiting) = waiting else { continue };
        let (reason, message) = (waiting.reason.as_deref(), waiting.message.as_deref());
        let (reason, message) = (reason.unwrap_or_default(), message.unwrap_or_default());
        if deadline_exceeded {
            revision.mark().mark_false(RESOURCES, reason, message);
            return;
        }
        if !is_ordinary(reason) && !revision.mark().is_false(RESOURCES) {
            revision.mark().mark_unknown(RESOURCES, reason, message);
            return;
        }
    }
}

/// What every container waits for while it starts.
fn is_ordinary(reason: &str) -> bool {
    matches!(reason, "" | "ContainerCreating" | "PodInitializing")
}

/// Whether a change of a pod can change its revision's conditions.
pub fn tells_news(old: &Pod, new: &Pod) -> bool {
    let seen = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let unscheduled =
            status.conditions.into_iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
        let containers =
            status.container_statuses.into_iter().flatten().filter(|container| container.name != QUEUE_PROXY);
        let states: Vec<_> = containers
            .map(|container| {
                let waiting = container
                    .state
                    .and_then(|state| state.waiting)
                    .filter(|waiting| !is_ordinary(waiting.reason.as_deref().unwrap_or_default()));
                let ended = container.last_state.and_then(|state| state.terminated);
                (waiting, ended.map(|end| (end.exit_code, end.message)))
            })
            .collect();
        (unscheduled, states)
    };
    seen(old) != seen(new)
}

/// Takes over what the PodAutoscaler says.
pub fn from_autoscaler(revision: &mut Revision, autoscaler: &PodAutoscaler) {
    let empty = Default::default();
    let status = autoscaler.status.as_ref().unwrap_or(&empty);
    let known = |scale: Option<i32>| scale.filter(|scale| *scale >= 0);
    revision.status_mut().actual_replicas = known(status.actual_scale);
    revision.status_mut().desired_replicas = known(status.desired_scale);

    let mut conditions = revision.mark();
    let unavailable = conditions.is_false(RESOURCES) || conditions.is_false(HEALTHY);
    let Some(ready) = autoscaler.ready() else {
        conditions.mark_unknown(ACTIVE, DEPLOYING, "");
        if !unavailable {
            conditions.mark_unknown(RESOURCES, DEPLOYING, "");
        }
        return;
    };
    let initialized = autoscaler.condition("ScaleTargetInitialized").is_some_and(|condition| condition.is_true());
    if initialized && !unavailable {
        conditions.mark_true(RESOURCES);
        conditions.mark_true(HEALTHY);
    }
    if conditions.is_true(RESOURCES) && (status.service_name.is_empty() || !initialized) {
        conditions.mark_unknown(RESOURCES, DEPLOYING, "");
    }
    if ready.is_true() {
        conditions.mark_true(ACTIVE);
    } else if ready.is_false() {
        if !initialized && !unavailable && !status.service_name.is_empty() {
            conditions.mark_false(RESOURCES, DEADLINE_EXCEEDED, "Initial scale was never achieved");
        }
        conditions.mark_false(ACTIVE, &ready.reason, &ready.message);
    } else {
        conditions.mark_unknown(ACTIVE, &ready.reason, &ready.message);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn revision() -> Revision {
        let mut revision = Revision::default();
        revision.mark().init();
        revision
    }

    fn deployment(replicas: i32, status: Value) -> Deployment {
        let spec = json!({"replicas": replicas, "selector": {}, "template": {}});
        serde_json::from_value(json!({"spec": spec, "status": status})).unwrap()
    }

    fn pod(container: Value, conditions: Value) -> Arc<Pod> {
        let mut container = container;
        container["name"] = json!("user-container");
        for (key, value) in
            [("image", json!("")), ("imageID", json!("")), ("ready", json!(false)), ("restartCount", json!(1))]
        {
            container[key] = value;
        }
        let sidecar = json!({"name": "queue-proxy", "image": "", "imageID": "", "ready": false, "restartCount": 1,
            "lastState": {"terminated": {"exitCode": 77}}});
        let status = json!({"conditions": conditions, "containerStatuses": [sidecar, container]});
        Arc::new(serde_json::from_value(json!({"status": status})).unwrap())
    }

    fn said(revision: &Revision, kind: &str) -> (String, String, String) {
        let condition = revision.condition(kind).unwrap();
        (condition.status.clone(), condition.reason.clone(), condition.message.clone())
    }

    fn is(status: &str, reason: &str, message: &str) -> (String, String, String) {
        (status.to_owned(), reason.to_owned(), message.to_owned())
    }

    fn progressing(status: &str, reason: &str) -> Value {
        json!({"conditions": [{"type": "Progressing", "status": status, "reason": reason, "message": "m"}]})
    }

    #[test]
    fn deployment_conditions() {
        let see = |status: Value| {
            let mut revision = revision();
            from_deployment(&mut revision, &deployment(1, status), || None, false);
            said(&revision, RESOURCES)
        };
        assert_eq!(see(json!({})), is("Unknown", "Deploying", ""));
        assert_eq!(see(progressing("True", "NewReplicaSetAvailable")), is("True", "", ""));
        assert_eq!(see(progressing("Unknown", "DeploymentPaused")), is("Unknown", "DeploymentPaused", "m"));
        assert_eq!(see(progressing("False", DEADLINE_EXCEEDED)), is("False", DEADLINE_EXCEEDED, "m"));
        let quota = json!({"conditions": [
            {"type": "Progressing", "status": "True"},
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}]});
        assert_eq!(see(quota), is("False", "FailedCreate", "quota"));
    }

    #[test]
    fn pods_tell_why_none_is_available() {
        let see = |deployment: &Deployment, pod: Arc<Pod>| {
            let mut revision = revision();
            from_deployment(&mut revision, deployment, || Some(pod), false);
            revision
        };
        let starting = deployment(1, progressing("True", "ReplicaSetUpdated"));
        let late = deployment(1, progressing("False", DEADLINE_EXCEEDED));
        let ended = |code: i32, message: &str| {
            pod(json!({"lastState": {"terminated": {"exitCode": code, "message": message}}}), json!([]))
        };
        let healthy = |pod| said(&see(&starting, pod), HEALTHY);
        assert_eq!(healthy(ended(5, "boom 100%")), is("False", "ExitCode5", "Container failed with: boom 100%"));
        assert_eq!(
            healthy(ended(0, "")),
            is("False", "ExitCode0", "Container failed with: container exited with no error")
        );

        let waiting = |reason: &str| pod(json!({"state": {"waiting": {"reason": reason, "message": "w"}}}), json!([]));
        assert_eq!(said(&see(&late, waiting("ImagePullBackOff")), RESOURCES), is("False", "ImagePullBackOff", "w"));
        assert_eq!(said(&see(&starting, waiting("ErrImagePull")), RESOURCES), is("Unknown", "ErrImagePull", "w"));
        assert_eq!(said(&see(&starting, waiting("ContainerCreating")), RESOURCES), is("True", "", ""));

        let unscheduled =
            json!([{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}]);
        let revision = see(&starting, pod(json!({}), unscheduled));
        assert_eq!(said(&revision, RESOURCES), is("False", "Unschedulable", "no cpu"));
        assert_eq!(said(&revision, "Ready"), is("False", "Unschedulable", "no cpu"));

        let mut recovered = see(&starting, ended(1, "x"));
        let ready = deployment(1, json!({"readyReplicas": 1, "availableReplicas": 1}));
        from_deployment(&mut recovered, &ready, || unreachable!("a pod is available"), false);
        assert_eq!(said(&recovered, HEALTHY), is("True", "", ""));
    }

    #[test]
    fn only_failures_of_pods_are_news() {
        let waiting = |reason: &str| pod(json!({"state": {"waiting": {"reason": reason}}}), json!([]));
        assert!(!tells_news(&waiting("ContainerCreating"), &pod(json!({"state": {"running": {}}}), json!([]))));
        assert!(tells_news(&waiting("ContainerCreating"), &waiting("ErrImagePull")));
        assert!(tells_news(
            &pod(json!({}), json!([])),
            &pod(json!({"lastState": {"terminated": {"exitCode": 1}}}), json!([]))
        ));
    }

    fn autoscaler(status: Value) -> PodAutoscaler {
        serde_json::from_value(json!({"metadata": {}, "spec": {}, "status": status})).unwrap()
    }

    #[test]
    fn a_nominal_life() {
        let mut revision = revision();
        deploying(&mut revision);
        from_autoscaler(&mut revision, &PodAutoscaler::default());
        assert_eq!(said(&revision, ACTIVE), is("Unknown", "Deploying", ""));
        assert_eq!(said(&revision, "Ready"), is("Unknown", "Deploying", ""));

        let queued = json!({"actualScale": 0, "desiredScale": -1, "serviceName": "", "conditions": [
            {"type": "Ready", "status": "Unknown", "reason": "Queued", "message": "q"},
            {"type": "ScaleTargetInitialized", "status": "Unknown"}]});
        from_deployment(&mut revision, &deployment(1, progressing("True", "NewReplicaSetCreated")), || None, false);
        from_autoscaler(&mut revision, &autoscaler(queued));
        assert_eq!(said(&revision, ACTIVE), is("Unknown", "Queued", "q"));
        assert_eq!(said(&revision, RESOURCES), is("Unknown", "Deploying", ""));
        assert_eq!(revision.status.as_ref().unwrap().desired_replicas, None);

        let ready = json!({"actualScale": 1, "desiredScale": 1, "serviceName": "r", "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "ScaleTargetInitialized", "status": "True"}]});
        from_autoscaler(&mut revision, &autoscaler(ready));
        assert_eq!(said(&revision, "Ready"), is("True", "", ""));
        assert_eq!(said(&revision, ACTIVE), is("True", "", ""));

        let idle = json!({"actualScale": 0, "desiredScale": 0, "serviceName": "r", "conditions": [
            {"type": "Ready", "status": "False", "reason": "NoTraffic", "message": "n"},
            {"type": "ScaleTargetInitialized", "status": "True"}]});
        from_deployment(&mut revision, &deployment(0, progressing("True", "NewReplicaSetAvailable")), || None, false);
        from_autoscaler(&mut revision, &autoscaler(idle));
        assert_eq!(said(&revision, ACTIVE), is("False", "NoTraffic", "n"));
        assert_eq!(said(&revision, "Ready"), is("True", "", ""), "a sleeping revision is ready");
    }

    #[test]
    fn an_initial_scale_that_was_never_reached_is_a_failure() {
        let mut revision = revision();
        let timed_out = json!({"serviceName": "r", "conditions": [
            {"type": "Ready", "status": "False", "reason": "TimedOut", "message": "t"},
            {"type": "ScaleTargetInitialized", "status": "Unknown"}]});
        from_autoscaler(&mut revision, &autoscaler(timed_out));
        assert_eq!(said(&revision, "Ready"), is("False", DEADLINE_EXCEEDED, "Initial scale was never achieved"));
    }
}
