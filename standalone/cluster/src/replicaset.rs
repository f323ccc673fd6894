//! ReplicaSets: as many active pods as wanted.
//!
//! Pods get their name and their node here, before they are created: one write makes a bound pod, and since the name
//! is known beforehand, a creation that the cache does not show yet is counted by name instead of being waited for.

mod order;
mod pending;
mod status;

use std::sync::Arc;
use std::time::Duration;

use controller::{Change, Context, Error, ObjectKey, Queue, Recorder};
use futures::future::join_all;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};

use crate::caches::{Caches, ORPHAN, OWNER};
use crate::deployment::adoption;
use crate::error::told;
use crate::scheduler::Scheduler;
use crate::{names, selector, write};
use pending::Pending;

/// Pods created or deleted in one go at most; the rest follows when these are seen.
const BURST: usize = 500;

struct Controller {
    client: Client,
    caches: Caches,
    events: Recorder,
    scheduler: Arc<Scheduler>,
    pending: Pending,
    queue: Queue,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, scheduler: &Arc<Scheduler>, workers: usize) {
    let controller = Arc::new(Controller {
        client: ctx.client.clone(),
        caches: caches.clone(),
        events: Recorder::new(ctx, "replicaset-controller"),
        scheduler: scheduler.clone(),
        pending: Pending::default(),
        queue: Queue::new(),
    });
    let queue = controller.queue.clone();
    let sets = controller.clone();
    caches.replica_sets.on_event(move |change| {
        let key = ObjectKey::of(&**change.object());
        if change.is_deleted() {
            sets.pending.forget(&key);
        }
        sets.queue.add(key);
    });
    let pods = controller.clone();
    caches.pods.on_event(move |change| pods.on_pod(change));
    queue.run(&ctx.tasks, "replicaset", workers, move |key| {
        let controller = controller.clone();
        async move { told("replicaset", &key, controller.sync(&key).await) }
    });
}

/// Neither finished nor on its way out.
fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !is_finished(pod)
}

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

// === impl Controller ===

impl Controller {
    fn on_pod(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let owner = ObjectKey::controller_of::<_, ReplicaSet>(&**pod);
        if let Change::Applied { old: Some(old), .. } = change
            && let Some(before) = ObjectKey::controller_of::<_, ReplicaSet>(&***old)
            && Some(&before) != owner.as_ref()
        {
            self.queue.add(before);
        }
        match owner {
            Some(owner) => {
                if change.is_deleted() {
                    self.pending.gone(&owner, pod);
                }
                self.queue.add(owner);
            }
            // Nobody's: whoever selects it may adopt it.
            None if is_active(pod) => {
                let namespace = pod.namespace().unwrap_or_default();
                for set in self.caches.replica_sets.in_namespace(&namespace) {
                    if set.spec.as_ref().is_some_and(|s| selector::matches(&s.selector, pod.metadata.labels.as_ref())) {
                        self.queue.add(ObjectKey::of(&*set));
                    }
                }
            }
            None => {}
        }
    }

    async fn sync(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(set) = self.caches.replica_sets.get_key(key) else { return Ok(()) };
        let pods = self.pods(&set).await?;
        let result =
            if set.metadata.deletion_timestamp.is_none() { self.scale(key, &set, &pods).await } else { Ok(false) };
        if matches!(result, Ok(true)) {
            // The pods that come or go bring us back, and then the status says it all in one write.
            return Ok(());
        }
        let now = names::now();
        let new = status::status(&set, &pods, result.as_ref().err(), &now);
        let api = write::meta_api::<ReplicaSet>(&self.client, &key.namespace);
        let old = set.status.clone().unwrap_or_default();
        match write::status(&api, &key.name, &old, &new).await {
            Err(error) if controller::error::is_not_found(&error) => return Ok(()),
            other => other?,
        };
        if let Some(after) = status::until_available(&set, &pods, &now) {
            self.queue.add_after(key.clone(), after);
        }
        result.map(drop).map_err(Failure::into_error)
    }

    /// Its pods, after adopting the ones its selector matches and nobody controls, and letting go of the others.
    async fn pods(&self, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, Error> {
        let mut pods = self.caches.pods.by_index(OWNER, &set.uid().unwrap_or_default());
        let Some(spec) = set.spec.as_ref().filter(|_| set.metadata.deletion_timestamp.is_none()) else {
            return Ok(pods);
        };
        let namespace = set.namespace().unwrap_or_default();
        for orphan in self.caches.pods.by_index(ORPHAN, &namespace) {
            if is_active(&orphan) && selector::matches(&spec.selector, orphan.metadata.labels.as_ref()) {
                let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
                let patch = Patch::Merge(adoption(set, &*orphan));
                pods.push(Arc::new(api.patch(&orphan.name_any(), &PatchParams::default(), &patch).await?));
            }
        }
        let (ours, others): (Vec<_>, Vec<_>) = pods
            .into_iter()
            .partition(|pod| !is_active(pod) || selector::matches(&spec.selector, pod.metadata.labels.as_ref()));
        for pod in others {
            let owners: Vec<_> = pod.owner_references().iter().filter(|o| o.controller != Some(true)).collect();
            let patch = serde_json::json!({"metadata": {
                "ownerReferences": owners, "uid": pod.uid(), "resourceVersion": pod.resource_version(),
            }});
            let api = write::meta_api::<Pod>(&self.client, &namespace);
            api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        Ok(ours)
    }

    /// True if pods were created or deleted.
    async fn scale(&self, key: &ObjectKey, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<bool, Failure> {
        let active: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_active(pod)).collect();
        let counts = self.pending.observe(key, pods, &active);
        let wanted = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        if let Some(after) = counts.recheck {
            self.queue.add_after(key.clone(), after);
        }
        if counts.effective < wanted {
            return self.create(key, set, (wanted - counts.effective).min(BURST)).await.map(|()| true);
        }
        let surplus = counts.effective - wanted;
        if surplus > 0 {
            let candidates: Vec<_> = active.into_iter().filter(|pod| !counts.deleting.contains(&pod.uid())).collect();
            let victims = order::first_to_go(candidates, surplus.min(BURST));
            return self.delete(key, set, &victims).await.map(|()| true);
        }
        Ok(false)
    }

    /// Creates in batches of 1, 2, 4...: what the API refuses is asked for once and not a hundred times.
    async fn create(&self, key: &ObjectKey, set: &ReplicaSet, count: usize) -> Result<(), Failure> {
        let Some(template) = set.spec.as_ref().and_then(|spec| spec.template.as_ref()) else { return Ok(()) };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut left = count;
        let mut batch = 1;
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.create_one(&api, key, set, template))).await;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                self.events.warning(set, "FailedCreate", &format!("Error creating: {error}"));
                return Err(Failure::Create(error));
            }
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(
        &self,
        api: &Api<Pod>,
        key: &ObjectKey,
        set: &ReplicaSet,
        template: &PodTemplateSpec,
    ) -> Result<(), Error> {
        loop {
            let mut pod = pod(set, template);
            let pod_key = ObjectKey::of(&pod);
            let node = self.scheduler.reserve(&pod_key, &pod);
            if let Some(spec) = &mut pod.spec {
                spec.node_name.clone_from(&node);
            }
            self.pending.creating(key, &pod_key.name);
            match api.create(&PostParams::default(), &pod).await {
                Ok(created) => {
                    self.events.normal(set, "SuccessfulCreate", &format!("Created pod: {}", pod_key.name));
                    if let Some(node) = &node {
                        self.scheduler.bound(&created, node);
                    }
                    return Ok(());
                }
                Err(error) => {
                    self.pending.not_created(key, &pod_key.name);
                    self.scheduler.release(&pod_key);
                    if !controller::error::is_already_exists(&error) {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    async fn delete(&self, key: &ObjectKey, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), Failure> {
        let api = write::meta_api::<Pod>(&self.client, &key.namespace);
        let delete_one = async |pod: &Arc<Pod>| {
            self.pending.deleting(key, pod);
            let uid = Preconditions { uid: pod.uid(), resource_version: None };
            let params = DeleteParams { preconditions: Some(uid), ..DeleteParams::default() };
            match api.delete(&pod.name_any(), &params).await {
                Ok(_) => {
                    let message = format!("Deleted pod: {}", pod.name_any());
                    self.events.normal(set, "SuccessfulDelete", &message);
                    Ok(())
                }
                Err(error) if controller::error::is_not_found(&error) => Ok(()),
                Err(error) => {
                    self.pending.gone(key, pod);
                    Err(Error::from(error))
                }
            }
        };
        let results = join_all(pods.iter().map(delete_one)).await;
        match results.into_iter().find_map(Result::err) {
            None => Ok(()),
            Some(error) => {
                self.events.warning(set, "FailedDelete", &format!("Error deleting: {error}"));
                Err(Failure::Delete(error))
            }
        }
    }
}

/// Why the number of pods is not what it should be.
enum Failure {
    Create(Error),
    Delete(Error),
}

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Failure::Create(error) | Failure::Delete(error) => error,
        }
    }
}

/// A new pod of the template, with its name.
fn pod(set: &ReplicaSet, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let base = format!("{}-", set.name_any());
    Pod {
        metadata: ObjectMeta {
            name: Some(names::generate(&base)),
            generate_name: Some(base),
            namespace: set.namespace(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller::owner_reference(set)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Look again if a creation or deletion is still not seen after this long.
const UNSEEN: Duration = Duration::from_secs(30);
