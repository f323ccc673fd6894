//! ServerlessService -> public and private Services and the public Endpoints (controllers.md 10; upstream
//! `pkg/reconciler/serverlessservice`).
//!
//! The private Service selects the revision's pods; the public one has no selector, and its Endpoints are either those
//! pods or activators. Private Endpoints that do not exist yet count as none ready, which upstream answers with a retry.

use std::sync::Arc;

use api::networking::v1alpha1::ServerlessService;
use api::{Conditioned, keys};
use controller::key::is_controlled_by;
use controller::reconcile::{enqueue_all, resync};
use controller::{Cache, Change, Error, ObjectKey, Queue, Reconcile, cache, drive, error};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::Shared;

pub mod children;
pub mod endpoints;
#[cfg(test)]
mod tests;

const ENDPOINTS_POPULATED: &str = "EndpointsPopulated";
const ACTIVATOR_ENDPOINTS_POPULATED: &str = "ActivatorEndpointsPopulated";
const NOT_READY: &str = "K8s Service is not ready";
const ACTIVATOR_SERVICE: &str = "activator-service";

#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
}

/// Starts the controller.
pub fn start(shared: &Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    enqueue_all(&shared.serverless_services, &queue);
    enqueue_labelled(&shared.k8s_services, &queue);
    enqueue_labelled(&shared.endpoints, &queue);
    enqueue_all_for_activators(shared, &queue);
    let targets = queue.clone();
    shared.deployments.on_event(move |change| {
        // The selector of a scale target never changes; its coming is what somebody may wait for.
        if let Change::Applied { old: None, new } = change
            && let Some(revision) = new.labels().get(keys::serving::REVISION)
        {
            targets.add(ObjectKey::new(new.namespace().unwrap_or_default(), revision));
        }
    });
    let recorder = shared.recorder.named(Reconciler::NAME);
    let reconciler = Arc::new(Reconciler { shared: shared.clone() });
    drive(&shared.ctx, &shared.serverless_services, &queue, reconciler, &recorder, workers);
}

/// Children and the private Endpoints, which are not a child, name their ServerlessService in a label.
fn enqueue_labelled<K: cache::Object>(cache: &Cache<K>, queue: &Queue) {
    let queue = queue.clone();
    cache.on_event(move |change| {
        let object = change.object();
        if let Some(name) = object.labels().get(keys::networking::SERVERLESS_SERVICE) {
            queue.add(ObjectKey::new(object.namespace().unwrap_or_default(), name));
        }
    });
}

/// Activators that come or go concern every ServerlessService.
fn enqueue_all_for_activators(shared: &Arc<Shared>, queue: &Queue) {
    let (all, queue) = (shared.serverless_services.clone(), queue.clone());
    let namespace = shared.ctx.system_namespace.clone();
    shared.endpoints.on_event(move |change| {
        let endpoints = change.object();
        let same = matches!(change, Change::Applied { old: Some(old), new } if old.subsets == new.subsets);
        let key = (endpoints.metadata.namespace.as_deref(), endpoints.metadata.name.as_deref());
        if key == (Some(&namespace), Some(ACTIVATOR_SERVICE)) && !same {
            resync(&all, &queue);
        }
    });
}

/// What became of a child, for the conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    Unchanged,
    Created,
    Updated,
}

/// Why a child is not as it should be.
enum Failure {
    /// Its name, kind and owner: it exists and is somebody else's.
    NotOwned {
        kind: &'static str,
        name: String,
    },
    Other(Error),
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = ServerlessService;
    const NAME: &'static str = "serverlessservice-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.serverlessservice.reconciler";

    fn prepare(&self, sks: &mut ServerlessService) {
        sks.mark().init();
    }

    async fn reconcile(&self, sks: &mut ServerlessService) -> Result<(), Error> {
        let selector = self.selector(sks).await?;
        let backends = self.backends(sks)?;
        // Independent of each other: on the way to a new revision's first request, one write's time and not three.
        let (private, public, endpoints) = tokio::join!(
            self.service(sks, children::private_service(sks, &selector), "private"),
            self.service(sks, children::public_service(sks), "public"),
            self.endpoints(sks, &backends),
        );
        mark(sks, private, "CreatingPrivateService", "UpdatingPrivateService")?;
        sks.status_mut().private_service_name = children::private_name(sks);
        mark(sks, public, "CreatingPublicService", "UpdatingPublicService")?;
        sks.status_mut().service_name = sks.name_any();
        mark(sks, endpoints, "CreatingPublicEndpoints", "UpdatingPublicEndpoints")?;

        let mut conditions = sks.mark();
        if backends.private_ready > 0 {
            conditions.mark_true(ENDPOINTS_POPULATED);
        } else {
            conditions.mark_unknown(ENDPOINTS_POPULATED, "NoHealthyBackends", NOT_READY);
        }
        let (reason, message) = (ACTIVATOR_ENDPOINTS_POPULATED, "Revision is backed by Activator");
        if backends.private_ready == 0 || backends.proxy_wanted {
            conditions.mark_true_with(ACTIVATOR_ENDPOINTS_POPULATED, reason, message);
        } else {
            conditions.mark_false(ACTIVATOR_ENDPOINTS_POPULATED, reason, message);
        }
        Ok(())
    }
}

impl Reconciler {
    /// The pods of the scale target.
    async fn selector(&self, sks: &ServerlessService) -> Result<LabelSelector, Error> {
        let target = &sks.spec.object_ref;
        let namespace = sks.namespace().unwrap_or_default();
        if target.kind == "Deployment" && target.api_version == "apps/v1" {
            let cached = self.shared.deployments.get(&namespace, &target.name);
            if let Some(spec) = cached.as_ref().and_then(|deployment| deployment.spec.as_ref()) {
                return Ok(spec.selector.clone());
            }
        }
        // Another kind, or created so lately that the cache does not show it.
        let context = "error retrieving deployment selector spec";
        let types = TypeMeta { api_version: target.api_version.clone(), kind: target.kind.clone() };
        let kind = GroupVersionKind::try_from(&types).map_err(|e| Error::Permanent(format!("{context}: {e}")))?;
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.shared.ctx.client.clone(), &namespace, &ApiResource::from_gvk(&kind));
        let object = api.get(&target.name).await.map_err(|e| Error::from(e).context(context))?;
        let selector = object.data.pointer("/spec/selector").cloned().unwrap_or_default();
        serde_json::from_value(selector).map_err(|e| Error::retry(format!("{context}: {e}")))
    }

    /// Who answers behind the public Service now.
    fn backends(&self, sks: &ServerlessService) -> Result<endpoints::Backends, Error> {
        let system = &self.shared.ctx.system_namespace;
        let Some(activator) = self.shared.endpoints.get(system, ACTIVATOR_SERVICE) else {
            return Err(Error::retry(format!(
                "failed to get activator service endpoints: endpoints \"{ACTIVATOR_SERVICE}\" not found"
            )));
        };
        let private = children::private_name(sks);
        let private = self.shared.endpoints.get(&sks.namespace().unwrap_or_default(), &private);
        let private = private.as_ref().and_then(|endpoints| endpoints.subsets.as_deref()).unwrap_or_default();
        Ok(endpoints::choose(sks, private, activator.subsets.as_deref().unwrap_or_default()))
    }

    async fn service(&self, sks: &ServerlessService, desired: Service, which: &'static str) -> Result<Child, Failure> {
        let (namespace, name) = (sks.namespace().unwrap_or_default(), desired.name_any());
        let api: Api<Service> = Api::namespaced(self.shared.ctx.client.clone(), &namespace);
        let failed = |verb: &str, e: kube::Error| {
            Failure::Other(Error::from(e).context(format!("failed to {verb} {which} K8s Service")))
        };
        let existing = match self.shared.k8s_services.get(&namespace, &name) {
            Some(existing) => existing,
            None => match api.create(&PostParams::default(), &desired).await {
                Ok(_) => return Ok(Child::Created),
                Err(e) if error::is_already_exists(&e) => Arc::new(api.get(&name).await.map_err(|e| failed("get", e))?),
                Err(e) => return Err(failed("create", e)),
            },
        };
        owned(sks, &*existing)?;
        match children::corrected(&existing, &desired) {
            None => Ok(Child::Unchanged),
            Some(corrected) => {
                api.replace(&name, &PostParams::default(), &corrected).await.map_err(|e| failed("update", e))?;
                Ok(Child::Updated)
            }
        }
    }

    async fn endpoints(&self, sks: &ServerlessService, backends: &endpoints::Backends) -> Result<Child, Failure> {
        let (namespace, name) = (sks.namespace().unwrap_or_default(), sks.name_any());
        let api: Api<Endpoints> = Api::namespaced(self.shared.ctx.client.clone(), &namespace);
        let failed = |verb: &str, e: kube::Error| {
            Failure::Other(Error::from(e).context(format!("failed to {verb} public K8s Endpoints")))
        };
        let existing = match self.shared.endpoints.get(&namespace, &name) {
            Some(existing) => existing,
            None => {
                let desired = children::public_endpoints(sks, backends.subsets.clone());
                match api.create(&PostParams::default(), &desired).await {
                    Ok(_) => return Ok(Child::Created),
                    Err(e) if error::is_already_exists(&e) => {
                        Arc::new(api.get(&name).await.map_err(|e| failed("get", e))?)
                    }
                    Err(e) => return Err(failed("create", e)),
                }
            }
        };
        owned(sks, &*existing)?;
        if existing.subsets.as_deref().unwrap_or_default() == backends.subsets {
            return Ok(Child::Unchanged);
        }
        // The whole list at once: nothing of what was there before matters.
        let patch = Patch::Merge(json!({"subsets": backends.subsets}));
        api.patch(&name, &PatchParams::default(), &patch).await.map_err(|e| failed("update", e))?;
        Ok(Child::Updated)
    }
}

fn owned<K: Resource<DynamicType = ()>>(sks: &ServerlessService, child: &K) -> Result<(), Failure> {
    if is_controlled_by(child, sks) {
        return Ok(());
    }
    let kind = if K::kind(&()) == "Endpoints" { "Endpoints" } else { "Service" };
    Err(Failure::NotOwned { kind, name: child.name_any() })
}

fn mark(
    sks: &mut ServerlessService,
    result: Result<Child, Failure>,
    creating: &str,
    updating: &str,
) -> Result<(), Error> {
    match result {
        Ok(Child::Unchanged) => Ok(()),
        Ok(Child::Created) => {
            sks.mark().mark_unknown(ENDPOINTS_POPULATED, creating, NOT_READY);
            Ok(())
        }
        Ok(Child::Updated) => {
            // Other endpoints are no step back: only Services tell that they were corrected.
            if updating != "UpdatingPublicEndpoints" {
                sks.mark().mark_unknown(ENDPOINTS_POPULATED, updating, NOT_READY);
            }
            Ok(())
        }
        Err(Failure::NotOwned { kind, name }) => {
            let message = format!("Resource {name} of type {kind} is not owned by SKS");
            sks.mark().mark_false(ENDPOINTS_POPULATED, "NotOwned", &message);
            Err(Error::retry(format!("SKS: {} does not own {kind}: {name}", sks.name_any())))
        }
        Err(Failure::Other(error)) => Err(error),
    }
}
