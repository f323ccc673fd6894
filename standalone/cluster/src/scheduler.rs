//! The scheduler: which node a pod goes to, and why none.
//!
//! Pods of ReplicaSets get their node before they are created ([`Scheduler::reserve`]); every other pod is bound
//! through its binding subresource. A ledger of what each node has given away is kept by events, so that a decision
//! costs the same with one pod and with a thousand. Pods that do not fit are tried again when something is freed.

mod fit;
mod ledger;

use std::collections::BTreeSet;
use std::sync::Arc;

use controller::{Cache, Change, Context, Error, ObjectKey, Queue, Recorder};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;

use crate::caches::Caches;
use crate::error::told;
use crate::names;
use ledger::{Ledger, Requests};

const NAME: &str = "default-scheduler";

pub(crate) struct Scheduler {
    client: Client,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    events: Recorder,
    queue: Queue,
    ledger: Mutex<Ledger>,
    /// Pods that fitted nowhere.
    waiting: Mutex<BTreeSet<ObjectKey>>,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, workers: usize) -> Arc<Scheduler> {
    let scheduler = Arc::new(Scheduler {
        client: ctx.client.clone(),
        nodes: caches.nodes.clone(),
        pods: caches.pods.clone(),
        events: Recorder::new(ctx, NAME),
        queue: Queue::new(),
        ledger: Mutex::default(),
        waiting: Mutex::default(),
    });
    let on_pod = scheduler.clone();
    caches.pods.on_event(move |change| on_pod.on_pod(change));
    let on_node = scheduler.clone();
    caches.nodes.on_event(move |change| on_node.on_node(change));
    let queue = scheduler.queue.clone();
    let worker = scheduler.clone();
    queue.run(&ctx.tasks, "scheduler", workers, move |key| {
        let scheduler = worker.clone();
        async move { told("scheduler", &key, scheduler.schedule(&key).await) }
    });
    scheduler
}

// === impl Scheduler ===

impl Scheduler {
    /// The node for a pod that is about to be created, whose resources are its own from now on. A pod without one is
    /// created all the same and tells in its status why it waits.
    pub(crate) fn reserve(&self, key: &ObjectKey, pod: &Pod) -> Option<String> {
        let spec = pod.spec.as_ref()?;
        if !is_ours(pod) || spec.node_name.is_some() {
            return spec.node_name.clone();
        }
        let requests = Requests::of(spec);
        let mut ledger = self.ledger.lock();
        let node = fit::choose(&self.nodes.list(), &ledger, pod, &requests).ok()?;
        ledger.assign(key, &node, requests);
        Some(node)
    }

    /// The reserved pod was not created.
    pub(crate) fn release(&self, key: &ObjectKey) {
        if self.ledger.lock().release(key) {
            self.retry_waiting();
        }
    }

    /// Tells that the pod has its node.
    pub(crate) fn bound(&self, pod: &Pod, node: &str) {
        let name = ObjectKey::of(pod);
        self.events.normal(pod, "Scheduled", &format!("Successfully assigned {name} to {node}"));
    }

    fn on_pod(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let key = ObjectKey::of(&**pod);
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let finished = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        if change.is_deleted() || finished {
            self.waiting.lock().remove(&key);
            self.release(&key);
            return;
        }
        match (node, pod.spec.as_ref()) {
            (Some(node), Some(spec)) => self.ledger.lock().assign(&key, node, Requests::of(spec)),
            _ if is_ours(pod) && pod.metadata.deletion_timestamp.is_none() => {
                let waits = self.waiting.lock().contains(&key);
                // Our own status write on a waiting pod is no reason to try again; a change of its spec is.
                let changed = match change {
                    Change::Applied { old: Some(old), .. } => old.metadata.generation != pod.metadata.generation,
                    _ => true,
                };
                if !waits || changed {
                    self.queue.add(key);
                }
            }
            _ => {}
        }
    }

    fn on_node(&self, change: &Change<'_, Node>) {
        // The heartbeat of a node changes nothing that matters here.
        let changed = match change {
            Change::Applied { old: Some(old), new } => {
                let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
                old.spec != new.spec
                    || old.metadata.labels != new.metadata.labels
                    || allocatable(old) != allocatable(new)
            }
            _ => true,
        };
        if changed {
            self.retry_waiting();
        }
    }

    fn retry_waiting(&self) {
        for key in std::mem::take(&mut *self.waiting.lock()) {
            self.queue.add(key);
        }
    }

    async fn schedule(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(pod) = self.pods.get_key(key) else { return Ok(()) };
        let Some(spec) = pod.spec.as_ref() else { return Ok(()) };
        if spec.node_name.is_some() || pod.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let choice = {
            let mut ledger = self.ledger.lock();
            let requests = Requests::of(spec);
            let choice = fit::choose(&self.nodes.list(), &ledger, &pod, &requests);
            match &choice {
                Ok(node) => ledger.assign(key, node, requests),
                // Before the lock is released: what is freed from now on finds the pod waiting.
                Err(_) => {
                    self.waiting.lock().insert(key.clone());
                }
            }
            choice
        };
        match choice {
            Ok(node) => match self.bind(&pod, &node).await {
                Ok(()) => {
                    self.bound(&pod, &node);
                    Ok(())
                }
                Err(error) => {
                    self.release(key);
                    if controller::error::is_not_found(&error) { Ok(()) } else { Err(error.into()) }
                }
            },
            Err(reason) => self.unschedulable(&pod, &reason).await,
        }
    }

    async fn bind(&self, pod: &Pod, node: &str) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let binding = Binding {
            metadata: ObjectMeta {
                name: pod.metadata.name.clone(),
                namespace: pod.namespace(),
                uid: pod.uid(),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.into()),
                ..ObjectReference::default()
            },
        };
        let name = pod.name_any();
        api.create_subresource::<_, serde_json::Value>("binding", &name, &PostParams::default(), &binding).await?;
        Ok(())
    }

    async fn unschedulable(&self, pod: &Pod, message: &str) -> Result<(), Error> {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let current = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
        if current.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message)) {
            return Ok(());
        }
        self.events.warning(pod, "FailedScheduling", message);
        let kept = current.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let condition = PodCondition {
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("Unschedulable".into()),
            message: Some(message.into()),
            last_transition_time: kept.or_else(|| Some(names::now())),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        };
        let api = crate::write::meta_api::<Pod>(&self.client, &pod.namespace().unwrap_or_default());
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Err(error) if !controller::error::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn is_ours(pod: &Pod) -> bool {
    let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref());
    name.is_none_or(|name| name.is_empty() || name == NAME)
        && pod.spec.as_ref().is_none_or(|spec| spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty))
}
