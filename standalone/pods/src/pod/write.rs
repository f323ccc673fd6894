//! What a pod's task writes to the API.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::watch;

use super::{Shared, Update};
use crate::agent::Agent;
use crate::status;

/// Events about started containers wait this long for the pod to get ready, which is more urgent to write.
const NOTES_AFTER: Duration = Duration::from_secs(1);
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

/// Keeps the status in the API equal to what the containers do.
pub(super) async fn keep_status(
    agent: &Arc<Agent>,
    updates: watch::Receiver<Update>,
    shared: &Arc<Shared>,
) -> Infallible {
    let mut changes = shared.changes();
    let mut written: Option<PodStatus> = None;
    let mut wait = RETRY.0;
    loop {
        shared.settled().await;
        changes.mark_unchanged();
        let pod = updates.borrow().pod.clone();
        let status = build(agent, &pod, shared, written.as_ref());
        if written.as_ref() != Some(&status) {
            match patch(agent, &pod, &status).await {
                Ok(()) => {
                    shared.trace(&pod, if is_ready(&status) { "ready written" } else { "status written" }, "");
                    written = Some(status);
                    wait = RETRY.0;
                }
                Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => {
                    // Gone, or another pod of the same name: the watch will say so.
                    tracing::debug!(pod = pod.name_any(), %error, "status not written");
                    written = Some(status);
                }
                Err(error) => {
                    tracing::warn!(pod = pod.name_any(), %error, "status not written; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY.1);
                    continue;
                }
            }
        }
        let ready = written.as_ref().is_some_and(is_ready);
        if ready {
            tell(agent, &pod, shared);
        }
        let changed = changes.changed();
        if shared.has_notes() {
            if tokio::time::timeout(NOTES_AFTER, changed).await.is_err() {
                tell(agent, &pod, shared);
            }
        } else if changed.await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Writes the status once, after the containers have ended.
pub(super) async fn status(agent: &Arc<Agent>, pod: &Arc<Pod>, shared: &Arc<Shared>) {
    tell(agent, pod, shared);
    let status = build(agent, pod, shared, pod.status.as_ref());
    if let Err(error) = patch(agent, pod, &status).await {
        tracing::debug!(pod = pod.name_any(), %error, "last status not written");
    }
}

/// Removes the object: the agent's word that nothing of the pod runs any more.
pub(super) async fn delete(agent: &Arc<Agent>, pod: &Arc<Pod>) {
    let api = Api::<Pod>::namespaced(agent.ctx.client.clone(), &pod.namespace().unwrap_or_default());
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.uid(), resource_version: None }),
        ..DeleteParams::default()
    };
    let mut wait = RETRY.0;
    loop {
        match api.delete(&pod.name_any(), &params).await {
            Ok(_) => return,
            Err(kube::Error::Api(error)) if error.code == 404 || error.code == 409 => return,
            Err(error) => {
                tracing::warn!(pod = pod.name_any(), %error, "ended pod not deleted; trying again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

fn build(agent: &Arc<Agent>, pod: &Pod, shared: &Shared, previous: Option<&PodStatus>) -> PodStatus {
    status::build(pod, &shared.snapshot(), previous, agent.network.node_ip(), Timestamp::now())
}

async fn patch(agent: &Arc<Agent>, pod: &Pod, status: &PodStatus) -> Result<(), kube::Error> {
    let api = Api::<Pod>::namespaced(agent.ctx.client.clone(), &pod.namespace().unwrap_or_default());
    // The uid makes sure that a successor of the same name is not meant.
    let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
    api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

fn is_ready(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn tell(agent: &Arc<Agent>, pod: &Arc<Pod>, shared: &Shared) {
    for (name, image) in shared.take_notes() {
        let recorder = &agent.recorder;
        recorder.normal(pod.as_ref(), "Pulled", &format!("Container image {image:?} already present on machine"));
        recorder.normal(pod.as_ref(), "Created", &format!("Created container: {name}"));
        recorder.normal(pod.as_ref(), "Started", &format!("Started container {name}"));
    }
}
