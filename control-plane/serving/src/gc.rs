//! Configuration -> fewer old Revisions (controllers.md 9; upstream `pkg/reconciler/gc`).
//!
//! Only Revisions that no Route refers to are looked at. Upstream looks when something changes, or after ten hours;
//! here the moment the next one becomes stale is known and waited for.

use std::sync::Arc;
use std::time::Duration;

use api::serving::v1::{Configuration, Revision};
use controller::reconcile::{enqueue_all, enqueue_controllers, resync};
use controller::{Error, Queue, Reconcile, drive};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};

use crate::Shared;

mod choice;
#[cfg(test)]
mod tests;

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
}

/// Starts the controller.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    enqueue_all(&shared.configurations, &queue);
    enqueue_controllers::<_, Configuration>(&shared.revisions, &queue);
    let (all, again) = (shared.configurations.clone(), queue.clone());
    shared.gc.on_change(move || resync(&all, &again));
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler = Arc::new(Reconciler { shared: shared.clone() });
    drive(&shared.ctx, &shared.configurations, &queue, reconciler, &recorder, workers);
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = Configuration;
    const NAME: &'static str = "revision-gc-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.gc.reconciler";
    const WRITES_STATUS: bool = false;

    async fn reconcile(&self, configuration: &mut Configuration) -> Result<(), Error> {
        let settings = self.shared.gc.load();
        let revisions = self.shared.revisions_of(configuration);
        let choice = choice::choose(&settings, configuration, &revisions, Timestamp::now());
        for revision in choice.delete {
            self.delete(&revision).await;
        }
        match choice.next {
            Some(next) => Err(Error::RequeueAfter(next.max(Duration::from_secs(1)))),
            None => Ok(()),
        }
    }
}

impl Reconciler {
    /// A failure is logged and left for the next time.
    async fn delete(&self, revision: &Revision) {
        let namespace = revision.namespace().unwrap_or_default();
        let api: Api<Revision> = Api::namespaced(self.shared.ctx.client.clone(), &namespace);
        let uid = Preconditions { uid: revision.uid(), resource_version: None };
        let name = revision.name_any();
        tracing::info!(revision = %format!("{namespace}/{name}"), "deleting a revision nobody routes to");
        match api.delete(&name, &DeleteParams::default().preconditions(uid)).await {
            Err(error) if !controller::error::is_not_found(&error) => {
                tracing::warn!(revision = %format!("{namespace}/{name}"), %error, "cannot delete a stale revision");
            }
            _ => {}
        }
    }
}
