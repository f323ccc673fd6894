//! Configuration -> Revisions (controllers.md 5; upstream `pkg/reconciler/configuration`).
//!
//! Each generation has one Revision. The latest ready one never moves below the one that is ready now, but may move to
//! an intermediate generation while the newest is not ready.

use std::sync::Arc;

use api::conditions::READY;
use api::serving::v1::{Configuration, Revision};
use api::{Conditioned, keys};
use controller::key::is_controlled_by;
use controller::reconcile::{enqueue_all, enqueue_controllers};
use controller::{Error, Queue, Reconcile, Recorder, drive, error};
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, PostParams};

use crate::Shared;
use crate::service::children::same;

mod latest;
pub mod resources;
#[cfg(test)]
mod tests;

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    recorder: Recorder,
}

/// Starts the controller.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    enqueue_all(&shared.configurations, &queue);
    enqueue_controllers::<_, Configuration>(&shared.revisions, &queue);
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler = Arc::new(Reconciler { shared: shared.clone(), recorder: recorder.clone() });
    drive(&shared.ctx, &shared.configurations, &queue, reconciler, &recorder, workers);
}

/// What stands for this generation.
enum Latest {
    Exists(Arc<Revision>),
    Missing,
    /// The pinned name belongs to another Revision.
    Taken(String),
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = Configuration;
    const NAME: &'static str = "configuration-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.configuration.Reconciler";

    fn prepare(&self, configuration: &mut Configuration) {
        configuration.mark().init();
    }

    async fn reconcile(&self, configuration: &mut Configuration) -> Result<(), Error> {
        let revision = match self.latest_created(configuration) {
            Latest::Exists(revision) => revision,
            Latest::Missing => self.create(configuration).await?,
            Latest::Taken(name) => {
                let message = format!(
                    "Revision creation failed with message: revisions.serving.knative.dev {name:?} already exists."
                );
                configuration.mark().mark_false(READY, "RevisionFailed", &message);
                return Ok(());
            }
        };
        self.observe_created(configuration, &revision)?;
        self.choose_ready(configuration, &revision);
        Ok(())
    }
}

impl Reconciler {
    fn latest_created(&self, configuration: &Configuration) -> Latest {
        let generation = configuration.metadata.generation.unwrap_or_default().to_string();
        let of_generation =
            |revision: &Revision| revision.labels().get(keys::serving::CONFIGURATION_GENERATION) == Some(&generation);
        let pinned = &configuration.spec.template.metadata.name;
        if pinned.is_empty() {
            let found = self.shared.revisions_of(configuration).into_iter().find(|revision| of_generation(revision));
            return found.map_or(Latest::Missing, Latest::Exists);
        }
        match self.shared.revisions.get(&configuration.namespace().unwrap_or_default(), pinned) {
            None => Latest::Missing,
            Some(revision)
                if is_controlled_by(&*revision, configuration)
                    && (of_generation(&revision) || same(&revision.spec, &configuration.spec.template.spec)) =>
            {
                Latest::Exists(revision)
            }
            Some(_) => Latest::Taken(pinned.clone()),
        }
    }

    async fn create(&self, configuration: &mut Configuration) -> Result<Arc<Revision>, Error> {
        let desired = resources::revision(configuration, Timestamp::now());
        let api =
            Api::<Revision>::namespaced(self.shared.ctx.client.clone(), &configuration.namespace().unwrap_or_default());
        match api.create(&PostParams::default(), &desired).await {
            Ok(created) => {
                let message = format!("Created Revision {:?}", created.name_any());
                self.recorder.normal(configuration, "Created", &message);
                Ok(Arc::new(created))
            }
            // The cache has not seen it yet, or somebody else took the name: the next look decides.
            Err(failure) if error::is_already_exists(&failure) => {
                Err(Error::from(failure).context("failed to create Revision"))
            }
            Err(failure) => {
                let failure = Error::from(failure);
                let message = format!("Failed to create Revision: {failure}");
                self.recorder.warning(configuration, "CreationFailed", &message);
                let message = format!("Revision creation failed with message: {failure}.");
                configuration.mark().mark_false(READY, "RevisionFailed", &message);
                Err(failure.context("failed to create Revision"))
            }
        }
    }

    fn observe_created(&self, configuration: &mut Configuration, revision: &Revision) -> Result<(), Error> {
        let name = revision.name_any();
        let status = configuration.status_mut();
        status.latest_created_revision_name.clone_from(&name);
        let latest_ready = status.latest_ready_revision_name.clone();
        if name != latest_ready {
            configuration.mark().mark_unknown(READY, "", "");
        }
        let ready = revision.ready();
        match ready.map_or("Unknown", |condition| condition.status.as_str()) {
            "Unknown" => Ok(()),
            "True" => {
                if latest_ready.is_empty() {
                    self.recorder.normal(configuration, "ConfigurationReady", "Configuration becomes ready");
                }
                Ok(())
            }
            "False" => {
                let cause = ready.map_or("", |condition| condition.message.as_str());
                let message = format!("Revision {name:?} failed with message: {cause}.");
                let before = configuration.ready().cloned();
                configuration.mark().mark_false(READY, "RevisionFailed", &message);
                if !before.zip(configuration.ready()).is_some_and(|(before, after)| before.same(after)) {
                    let (reason, kind) = if name == latest_ready {
                        ("LatestReadyFailed", "ready")
                    } else {
                        ("LatestCreatedFailed", "created")
                    };
                    let message = format!("Latest {kind} revision {name:?} has failed");
                    self.recorder.warning(configuration, reason, &message);
                }
                Ok(())
            }
            other => Err(Error::retry(format!("unrecognized condition status: {other}"))),
        }
    }

    fn choose_ready(&self, configuration: &mut Configuration, created: &Revision) {
        let revisions = self.shared.revisions_of(configuration);
        let Some(ready) = latest::ready(configuration, created, &revisions) else { return };
        let status = configuration.status_mut();
        let changed = status.latest_ready_revision_name != ready;
        status.latest_ready_revision_name.clone_from(&ready);
        if ready == status.latest_created_revision_name {
            configuration.mark().mark_true(READY);
        }
        if changed {
            let message = format!("LatestReadyRevisionName updated to {ready:?}");
            self.recorder.normal(configuration, "LatestReadyUpdate", &message);
        }
    }
}
