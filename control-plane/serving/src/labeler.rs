//! Route -> marks on the Revisions and Configurations it refers to (controllers.md 8; upstream `pkg/reconciler/labeler`).
//!
//! The mark is the annotation `routes`; a Revision's label `routingState` follows from it. Marks are added as soon as
//! a Route names something and taken away only once the Route has settled, so that what still gets requests keeps its
//! mark.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Conditioned;
use api::serving::v1::{Configuration, Revision, Route};
use controller::key::controller_of;
use controller::reconcile::enqueue_all;
use controller::{Error, ObjectKey, Queue, Reconcile, Tracker, drive};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::Value;

use crate::Shared;
use crate::shared::BY_MARK;

pub mod marks;
#[cfg(test)]
mod tests;

const REVISION: &str = "Revision";
const CONFIGURATION: &str = "Configuration";

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    tracker: Tracker,
}

/// What a Route refers to, by name.
#[derive(Debug, Default)]
struct Targets {
    revisions: BTreeMap<String, Arc<Revision>>,
    configurations: BTreeMap<String, Arc<Configuration>>,
}

/// Starts the controller.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    let tracker = Tracker::new();
    enqueue_all(&shared.routes, &queue);
    tracker.feed(REVISION, &shared.revisions, &queue);
    tracker.feed(CONFIGURATION, &shared.configurations, &queue);
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler = Arc::new(Reconciler { shared: shared.clone(), tracker });
    drive(&shared.ctx, &shared.routes, &queue, reconciler, &recorder, workers);
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = Route;
    const NAME: &'static str = "labeler-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.labeler.Reconciler";
    const FINALIZER: Option<&'static str> = Some("routes.serving.knative.dev");
    const WRITES_STATUS: bool = false;

    async fn reconcile(&self, route: &mut Route) -> Result<(), Error> {
        let targets = self.targets(route);
        if route.is_ready() || route.is_failed() {
            self.remove(route, &targets).await?;
        }
        let name = route.name_any();
        for revision in targets.revisions.values() {
            if let Some(patch) = marks::add_to_revision(revision, &name, Timestamp::now()) {
                self.patch::<Revision>(revision, &patch).await.map_err(|e| context(e, "add", &**revision))?;
            }
        }
        for configuration in targets.configurations.values() {
            if let Some(patch) = marks::add(configuration.annotations(), &name) {
                let patched = self.patch::<Configuration>(configuration, &patch).await;
                patched.map_err(|e| context(e, "add", &**configuration))?;
            }
        }
        Ok(())
    }

    async fn finalize(&self, route: &Route) -> Result<(), Error> {
        self.remove(route, &Targets::default()).await
    }

    fn deleted(&self, key: &ObjectKey) {
        self.tracker.forget(key);
    }
}

impl Reconciler {
    /// What status and spec name and the caches have; what they do not have yet brings us back when it comes.
    fn targets(&self, route: &Route) -> Targets {
        let namespace = route.namespace().unwrap_or_default();
        let mut targets = Targets::default();
        let mut references = Vec::new();
        let status = route.status.iter().flat_map(|status| &status.traffic);
        for target in status.chain(&route.spec.traffic) {
            if !target.revision_name.is_empty() {
                references.push((REVISION, ObjectKey::new(&namespace, &target.revision_name)));
                if let Some(revision) = self.shared.revisions.get(&namespace, &target.revision_name) {
                    let owner = controller_of::<_, Configuration>(&*revision).map(|owner| owner.name.clone());
                    let owner = owner.and_then(|owner| self.shared.configurations.get(&namespace, &owner));
                    targets.configurations.extend(owner.map(|owner| (owner.name_any(), owner)));
                    targets.revisions.insert(revision.name_any(), revision);
                }
            }
            if !target.configuration_name.is_empty() {
                references.push((CONFIGURATION, ObjectKey::new(&namespace, &target.configuration_name)));
                let Some(configuration) = self.shared.configurations.get(&namespace, &target.configuration_name) else {
                    continue;
                };
                let created = configuration.status.as_ref().map(|s| s.latest_created_revision_name.clone());
                let created = created.filter(|name| target.latest_revision == Some(true) && !name.is_empty());
                if let Some(name) = created {
                    // Marked before traffic reaches it, so that it scales up as an active one.
                    references.push((REVISION, ObjectKey::new(&namespace, &name)));
                    let revision = self.shared.revisions.get(&namespace, &name);
                    targets.revisions.extend(revision.map(|revision| (name, revision)));
                }
                targets.configurations.insert(configuration.name_any(), configuration);
            }
        }
        self.tracker.set(&ObjectKey::of(route), references);
        targets
    }

    /// Takes the Route's mark from everything that has it and is not among `kept`.
    async fn remove(&self, route: &Route, kept: &Targets) -> Result<(), Error> {
        let (key, name) = (ObjectKey::of(route).to_string(), route.name_any());
        for revision in self.shared.revisions.by_index(BY_MARK, &key) {
            if kept.revisions.contains_key(&revision.name_any()) {
                continue;
            }
            if let Some(patch) = marks::remove_from_revision(&revision, &name, Timestamp::now()) {
                self.patch::<Revision>(&revision, &patch).await.map_err(|e| context(e, "remove", &*revision))?;
            }
        }
        for configuration in self.shared.configurations.by_index(BY_MARK, &key) {
            if kept.configurations.contains_key(&configuration.name_any()) {
                continue;
            }
            if let Some(patch) = marks::remove(configuration.annotations(), &name) {
                let patched = self.patch::<Configuration>(&configuration, &patch).await;
                patched.map_err(|e| context(e, "remove", &*configuration))?;
            }
        }
        Ok(())
    }

    async fn patch<K>(&self, object: &K, patch: &Value) -> Result<(), Error>
    where
        K: controller::reconcile::Object,
    {
        let api: Api<K> = Api::namespaced(self.shared.ctx.client.clone(), &object.namespace().unwrap_or_default());
        match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            // Gone meanwhile: nothing to mark.
            Err(e) if controller::error::is_not_found(&e) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

fn context<K: ResourceExt>(error: Error, verb: &str, object: &K) -> Error {
    let namespace = object.namespace().unwrap_or_default();
    // "remove ... to" is how upstream says it.
    error.context(format!("failed to {verb} route annotation to Namespace={namespace} Name={:?}", object.name_any()))
}
