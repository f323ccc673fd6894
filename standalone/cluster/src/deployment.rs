//! Deployments: one ReplicaSet per template, sizes that roll from the old ones to the new.
//!
//! [`plan`] says everything that should be written for a Deployment and its ReplicaSets as they are; the shell here
//! writes it. Names are derived from the template, so a plan made on a cache that lags behind our own writes comes
//! out as writes that change nothing.

mod conditions;
mod plan;
mod rolling;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use controller::{Change, Context, Error, ObjectKey, Queue, Recorder};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::caches::{Caches, ORPHAN, OWNER};
use crate::error::told;
use crate::{names, selector, write};

use plan::{Plan, plan};

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HASH_LABEL: &str = "pod-template-hash";

pub(crate) struct Controller {
    client: Client,
    caches: Caches,
    events: Recorder,
    queue: Queue,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, workers: usize) {
    let queue = Queue::new();
    let controller = Arc::new(Controller {
        client: ctx.client.clone(),
        caches: caches.clone(),
        events: Recorder::new(ctx, "deployment-controller"),
        queue: queue.clone(),
    });
    let changed = queue.clone();
    caches.deployments.on_event(move |change| changed.add(ObjectKey::of(&**change.object())));
    let changed = queue.clone();
    caches.replica_sets.on_event(move |change: &Change<'_, ReplicaSet>| {
        let old = match change {
            Change::Applied { old, .. } => old.map(|old| &**old),
            Change::Deleted(_) => None,
        };
        for set in old.into_iter().chain([&**change.object()]) {
            if let Some(key) = ObjectKey::controller_of::<_, Deployment>(set) {
                changed.add(key);
            }
        }
    });
    queue.run(&ctx.tasks, "deployment", workers, move |key| {
        let controller = controller.clone();
        async move { told("deployment", &key, controller.sync(&key).await) }
    });
}

// === impl Controller ===

impl Controller {
    async fn sync(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(deployment) = self.caches.deployments.get_key(key) else { return Ok(()) };
        let sets = self.replica_sets(&deployment).await?;
        let mut plan = plan(&deployment, &sets, &names::now());
        let moves = plan.create.is_some() || !plan.edits.is_empty() || sets.iter().any(|set| is_changing(set));
        if let Err(error) = self.write(&deployment, &mut plan).await {
            // What failed shows in the conditions; the failure itself is retried.
            self.write_status(&deployment, &plan.status).await?;
            return Err(error);
        }
        let collisions = |status: Option<&DeploymentStatus>| status.and_then(|status| status.collision_count);
        if moves && collisions(Some(&plan.status)) == collisions(deployment.status.as_ref()) {
            // The ReplicaSets that change bring us back, and then the status says it all in one write.
            return Ok(());
        }
        if !self.write_status(&deployment, &plan.status).await?
            && let Some(after) = plan.recheck
        {
            self.queue.add_after(key.clone(), after);
        }
        Ok(())
    }

    /// The ReplicaSets it controls, after adopting the ones its selector matches and nobody controls.
    async fn replica_sets(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let uid = deployment.uid().unwrap_or_default();
        let mut sets = self.caches.replica_sets.by_index(OWNER, &uid);
        if deployment.metadata.deletion_timestamp.is_some() {
            return Ok(sets);
        }
        let Some(spec) = &deployment.spec else { return Ok(sets) };
        let namespace = deployment.namespace().unwrap_or_default();
        for orphan in self.caches.replica_sets.by_index(ORPHAN, &namespace) {
            let ours = orphan.metadata.deletion_timestamp.is_none()
                && selector::matches(&spec.selector, orphan.metadata.labels.as_ref());
            if ours {
                let patch = adoption(deployment, &*orphan);
                let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
                let set = api.patch(&orphan.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
                sets.push(Arc::new(set));
            }
        }
        Ok(sets)
    }

    async fn write(&self, deployment: &Deployment, plan: &mut Plan) -> Result<(), Error> {
        let namespace = deployment.namespace().unwrap_or_default();
        if let Some(set) = plan.create.take() {
            self.create(deployment, set, &mut plan.status).await?;
        }
        let api = write::meta_api::<ReplicaSet>(&self.client, &namespace);
        for edit in &plan.edits {
            api.patch(&edit.name, &PatchParams::default(), &Patch::Merge(&edit.patch())).await?;
        }
        if let Some(revision) = &plan.revision {
            let patch = json!({"metadata": {"annotations": {REVISION: revision}}});
            let api = write::meta_api::<Deployment>(&self.client, &namespace);
            api.patch(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        for message in &plan.events {
            self.events.normal(deployment, "ScalingReplicaSet", message);
        }
        for (name, uid) in &plan.delete {
            let uid = Preconditions { uid: Some(uid.clone()), resource_version: None };
            let delete = DeleteParams { preconditions: Some(uid), ..DeleteParams::background() };
            match api.delete(name, &delete).await {
                Err(error) if !controller::error::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        deployment: &Deployment,
        set: ReplicaSet,
        status: &mut DeploymentStatus,
    ) -> Result<(), Error> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default());
        let error = match api.create(&PostParams::default(), &set).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if controller::error::is_already_exists(&error) {
            let Some(existing) = api.get_opt(&set.name_any()).await? else {
                return Err(Error::retry(format!("ReplicaSet {} came and went", set.name_any())));
            };
            let wanted = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            let there = existing.spec.as_ref().and_then(|spec| spec.template.as_ref());
            let same = controller::key::is_controlled_by(&existing, deployment)
                && wanted.zip(there).is_some_and(|(a, b)| template::same(a, b));
            if !same {
                // The name is taken by another template: the status carries the count that makes the next name.
                status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            }
            return Ok(());
        }
        let error = Error::from(error);
        if !matches!(error, Error::Conflict(_)) {
            conditions::creation_failed(deployment, &set.name_any(), &error, status, &names::now());
        }
        Err(error)
    }

    async fn write_status(&self, deployment: &Deployment, status: &DeploymentStatus) -> Result<bool, Error> {
        let api = write::meta_api::<Deployment>(&self.client, &deployment.namespace().unwrap_or_default());
        let old = deployment.status.clone().unwrap_or_default();
        match write::status(&api, &deployment.name_any(), &old, status).await {
            Err(error) if controller::error::is_not_found(&error) => Ok(true),
            other => Ok(other?),
        }
    }
}

/// Its controller has not told yet what became of the last change, and will.
fn is_changing(set: &ReplicaSet) -> bool {
    set.status.as_ref().and_then(|status| status.observed_generation) != set.metadata.generation
        && set.metadata.deletion_timestamp.is_none()
}

/// The merge patch that makes `owner` the controller of `object`, unless the object changed meanwhile.
pub(crate) fn adoption<O, K>(owner: &O, object: &K) -> Value
where
    O: Resource<DynamicType = ()>,
    K: Resource,
{
    let mut owners = object.owner_references().to_vec();
    owners.push(controller::owner_reference(owner));
    json!({"metadata": {
        "ownerReferences": owners,
        "uid": object.meta().uid,
        "resourceVersion": object.meta().resource_version,
    }})
}

/// Until `deadline` has passed for certain: condition times are whole seconds.
fn after_deadline(left: Duration) -> Duration {
    left + Duration::from_secs(1)
}
