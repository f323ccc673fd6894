//! Service -> Configuration and Route (controllers.md 4; upstream `pkg/reconciler/service`).
//!
//! Both children take the Service's name. A pinned revision name that is already taken stops before the Route, so that
//! traffic stays where it is.

use std::sync::Arc;

use api::conditions::Condition;
use api::serving::v1::{Configuration, Revision, Route, Service};
use api::{Conditioned, keys};
use controller::key::is_controlled_by;
use controller::reconcile::{enqueue_all, enqueue_controllers};
use controller::{Error, Queue, Reconcile, Recorder, drive};
use kube::ResourceExt;
use kube::api::{Api, PostParams};

use crate::Shared;

pub mod children;
#[cfg(test)]
mod tests;

const CONFIGURATIONS_READY: &str = "ConfigurationsReady";
const ROUTES_READY: &str = "RoutesReady";

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    recorder: Recorder,
}

/// Starts the controller.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    enqueue_all(&shared.services, &queue);
    enqueue_controllers::<_, Service>(&shared.configurations, &queue);
    enqueue_controllers::<_, Service>(&shared.routes, &queue);
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler = Arc::new(Reconciler { shared: shared.clone(), recorder: recorder.clone() });
    drive(&shared.ctx, &shared.services, &queue, reconciler, &recorder, workers);
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = Service;
    const NAME: &'static str = "service-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.service.Reconciler";

    fn prepare(&self, service: &mut Service) {
        service.mark().init();
    }

    async fn reconcile(&self, service: &mut Service) -> Result<(), Error> {
        let configuration = self.configuration(service).await?;
        let pinned = &service.spec.template.metadata.name;
        if configuration.observed() {
            mirror_configuration(service, &configuration);
        } else {
            let pinned = !pinned.is_empty();
            service.mark().mark_unknown(
                CONFIGURATIONS_READY,
                "OutOfDate",
                "The Configuration is still working to reflect the latest desired specification.",
            );
            if pinned {
                return Ok(());
            }
        }
        if let Some(name) = self.taken_name(service, &configuration) {
            let message = format!(
                "The revision name {name:?} is taken by a conflicting Revision, so traffic will not be migrated"
            );
            service.mark().mark_false(ROUTES_READY, "RevisionNameTaken", &message);
            return Ok(());
        }
        let route = self.route(service).await?;
        mirror_route(service, &configuration, &route);
        Ok(())
    }
}

impl Reconciler {
    async fn configuration(&self, service: &mut Service) -> Result<Arc<Configuration>, Error> {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let api = Api::<Configuration>::namespaced(self.shared.ctx.client.clone(), &namespace);
        let Some(existing) = self.shared.configurations.get(&namespace, &name) else {
            let desired = children::configuration(service, None);
            return match api.create(&PostParams::default(), &desired).await {
                Ok(created) => {
                    self.recorder.normal(service, "Created", &format!("Created Configuration {name:?}"));
                    Ok(Arc::new(created))
                }
                Err(error) => {
                    let error = Error::from(error);
                    if error.is_reported() {
                        let message = format!("Failed to create Configuration {name:?}: {error}");
                        self.recorder.warning(service, "CreationFailed", &message);
                    }
                    Err(error.context("failed to create Configuration"))
                }
            };
        };
        if !is_controlled_by(&*existing, service) {
            let message = format!("There is an existing Configuration {name:?} that we do not own.");
            service.mark().mark_false(CONFIGURATIONS_READY, "NotOwned", &message);
            return Err(Error::retry(format!("service: {name:?} does not own configuration: {name:?}")));
        }
        let desired = children::configuration(service, Some(&existing));
        if !children::differs(&*existing, &existing.spec, &desired, &desired.spec) {
            return Ok(existing);
        }
        let updated = api.replace(&name, &PostParams::default(), &children::onto(&*existing, desired)).await;
        updated.map(Arc::new).map_err(|error| Error::from(error).context("failed to reconcile Configuration"))
    }

    async fn route(&self, service: &mut Service) -> Result<Arc<Route>, Error> {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let api = Api::<Route>::namespaced(self.shared.ctx.client.clone(), &namespace);
        let desired = children::route(service);
        let Some(existing) = self.shared.routes.get(&namespace, &name) else {
            return match api.create(&PostParams::default(), &desired).await {
                Ok(created) => {
                    self.recorder.normal(service, "Created", &format!("Created Route {name:?}"));
                    Ok(Arc::new(created))
                }
                Err(error) => {
                    let error = Error::from(error);
                    if error.is_reported() {
                        let message = format!("Failed to create Route {name:?}: {error}");
                        self.recorder.warning(service, "CreationFailed", &message);
                    }
                    Err(error.context("failed to create Route"))
                }
            };
        };
        if !is_controlled_by(&*existing, service) {
            let message = format!("There is an existing Route {name:?} that we do not own.");
            service.mark().mark_false(ROUTES_READY, "NotOwned", &message);
            return Err(Error::retry(format!("service: {name:?} does not own route: {name:?}")));
        }
        if !children::differs(&*existing, &existing.spec, &desired, &desired.spec) {
            return Ok(existing);
        }
        let updated = api.replace(&name, &PostParams::default(), &children::onto(&*existing, desired)).await;
        updated.map(Arc::new).map_err(|error| Error::from(error).context("failed to reconcile Route"))
    }

    /// The template's revision name if another Revision has it.
    fn taken_name(&self, service: &Service, configuration: &Configuration) -> Option<String> {
        let name = &service.spec.template.metadata.name;
        if name.is_empty() {
            return None;
        }
        let revision = self.shared.revisions.get(&service.namespace().unwrap_or_default(), name)?;
        is_taken(&revision, configuration).then(|| name.clone())
    }
}

/// Whether `revision` is not what `configuration`, which pins its name, would make.
fn is_taken(revision: &Revision, configuration: &Configuration) -> bool {
    let generation = configuration.metadata.generation.unwrap_or_default().to_string();
    let same_generation = revision.labels().get(keys::serving::CONFIGURATION_GENERATION) == Some(&generation);
    let same_spec = || children::same(&revision.spec, &configuration.spec.template.spec);
    !is_controlled_by(revision, configuration) || !(same_generation || same_spec())
}

fn mirror_configuration(service: &mut Service, configuration: &Configuration) {
    let from = configuration.status.clone().unwrap_or_default();
    let status = service.status_mut();
    status.latest_created_revision_name = from.latest_created_revision_name;
    status.latest_ready_revision_name = from.latest_ready_revision_name;
    service.mark().mirror(CONFIGURATIONS_READY, configuration.ready());
}

fn mirror_route(service: &mut Service, configuration: &Configuration, route: &Route) {
    if !route.observed() {
        service.mark().mark_unknown(
            ROUTES_READY,
            "OutOfDate",
            "The Route is still working to reflect the latest desired specification.",
        );
        return;
    }
    let from = route.status.clone().unwrap_or_default();
    let status = service.status_mut();
    status.url = from.url;
    status.address = from.address;
    status.traffic = from.traffic;
    service.mark().mirror(ROUTES_READY, route.ready());
    if service.condition(ROUTES_READY).is_some_and(Condition::is_true) && !is_migrated(configuration, route) {
        let message = "Traffic is not yet migrated to the latest revision.";
        service.mark().mark_unknown(ROUTES_READY, "TrafficNotMigrated", message);
    }
}

/// Whether the Route's status shows what its spec asks for, the configuration standing for its latest ready revision.
fn is_migrated(configuration: &Configuration, route: &Route) -> bool {
    let latest = configuration.status.as_ref().map_or("", |s| s.latest_ready_revision_name.as_str());
    let actual = route.status.as_ref().map_or(&[][..], |s| &s.traffic);
    let wanted = &route.spec.traffic;
    wanted.len() == actual.len()
        && wanted.iter().zip(actual).all(|(wanted, actual)| {
            let by_configuration = wanted.configuration_name == configuration.name_any();
            let revision = if by_configuration { latest } else { &wanted.revision_name };
            wanted.tag == actual.tag
                && revision == actual.revision_name
                && wanted.percent.unwrap_or_default() == actual.percent.unwrap_or_default()
        })
}
