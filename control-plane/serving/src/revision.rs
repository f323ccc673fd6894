//! Revision -> Deployment, PodAutoscaler, Images (controllers.md 6; upstream `pkg/reconciler/revision`).
//!
//! The children of a new revision are written side by side: none needs another to be there, and what they say comes back as events.
//!
//! Left for later: the certificate of `system-internal-tls` (before the Deployment) and registry credentials from pull secrets (`digest::registry`).

use std::sync::Arc;

use api::Conditioned;
use api::autoscaling::v1alpha1::PodAutoscaler;
use api::caching::v1alpha1::Image;
use api::keys::serving;
use api::serving::v1::Revision;
use controller::key::is_controlled_by;
use controller::reconcile::{enqueue_all, enqueue_controllers, resync};
use controller::{Cache, Change, Error, ObjectKey, Queue, Reconcile, Recorder, drive};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::Value;

use crate::Shared;
use digest::{Digests, Https, Progress};
use settled::Settled;
use status::{HEALTHY, RESOURCES};

pub mod deployment;
pub mod digest;
pub mod images;
pub mod meta;
pub mod pod;
pub mod pod_autoscaler;
mod queue_proxy;
mod settled;
pub mod status;
#[cfg(test)]
mod tests;

const BY_REVISION: &str = "revision";

pub struct Reconciler {
    shared: Arc<Shared>,
    recorder: Recorder,
    images: Cache<Image>,
    pods: Cache<Pod>,
    digests: Arc<Digests>,
    settled: Arc<Settled>,
}

/// Starts the controller.
pub async fn start(shared: &Arc<Shared>, workers: usize) {
    let queue = Queue::new();
    let images = Cache::<Image>::builder().label_selector(serving::REVISION_UID).start(&shared.ctx);
    let pods = watch_pods(shared, &queue);
    tokio::join!(images.synced(), pods.synced());

    enqueue_all(&shared.revisions, &queue);
    enqueue_controllers::<_, Revision>(&shared.deployments, &queue);
    enqueue_controllers::<_, Revision>(&shared.pod_autoscalers, &queue);
    let settled = Arc::<Settled>::default();
    let changed = |settled: &Arc<Settled>| {
        let settled = settled.clone();
        move || settled.config_changed()
    };
    shared.autoscaler.on_change(changed(&settled));
    shared.defaults.on_change(changed(&settled));
    shared.deployment.on_change(changed(&settled));
    shared.features.on_change(changed(&settled));
    shared.logging.on_change(changed(&settled));
    shared.observability.on_change(changed(&settled));
    let all = {
        let (revisions, queue) = (shared.revisions.clone(), queue.clone());
        move || resync(&revisions, &queue)
    };
    shared.deployment.on_change(all.clone());
    shared.network.on_change(all.clone());
    shared.observability.on_change(all);

    let recorder = shared.recorder.named(Reconciler::NAME);
    let digests = Digests::new(Arc::new(Https::new()), shared.ctx.tasks.clone(), queue.clone());
    let reconciler = Reconciler { shared: shared.clone(), recorder: recorder.clone(), images, pods, digests, settled };
    drive(&shared.ctx, &shared.revisions, &queue, Arc::new(reconciler), &recorder, workers);
}

/// Pods of revisions, without what is not looked at. Only what can explain a failure leads to a reconcile.
fn watch_pods(shared: &Shared, queue: &Queue) -> Cache<Pod> {
    let queue = queue.clone();
    Cache::<Pod>::builder()
        .label_selector(serving::REVISION_UID)
        .transform(|pod| {
            pod.spec = None;
            pod.metadata.annotations = None;
        })
        .index(BY_REVISION, |pod| revision_of(pod).map(|key| key.to_string()).into_iter().collect())
        .on_event(move |change| {
            if let Change::Applied { old: Some(old), new } = change
                && status::tells_news(old, new)
                && let Some(key) = revision_of(new)
            {
                queue.add(key);
            }
        })
        .start(&shared.ctx)
}

fn revision_of(pod: &Pod) -> Option<ObjectKey> {
    Some(ObjectKey::new(pod.namespace()?, pod.labels().get(serving::REVISION)?))
}

// === impl Reconciler ===

impl Reconcile for Reconciler {
    type Kind = Revision;
    const NAME: &'static str = "revision-controller";
    const QUEUE: &'static str = "knative.dev.serving.pkg.reconciler.revision.Reconciler";

    fn prepare(&self, revision: &mut Revision) {
        revision.mark().init();
    }

    async fn reconcile(&self, revision: &mut Revision) -> Result<(), Error> {
        let was_ready = self.shared.revisions.get_key(&ObjectKey::of(revision)).is_some_and(|before| before.is_ready());
        self.log_url(revision);
        if !self.resolve_digests(revision)? {
            return Ok(());
        }
        self.children(revision).await?;
        if !was_ready && revision.ready().is_some_and(|ready| ready.is_true()) {
            self.recorder.normal(revision, "RevisionReady", "Revision becomes ready upon all resources being ready");
        }
        Ok(())
    }

    fn deleted(&self, key: &ObjectKey) {
        self.digests.forget(key);
        self.settled.forget(key);
    }
}

impl Reconciler {
    fn log_url(&self, revision: &mut Revision) {
        let template = &self.shared.observability.load().revision_url_template;
        let uid = revision.uid().unwrap_or_default();
        revision.status_mut().log_url = template.replace("${REVISION_UID}", &uid);
    }

    /// False while they are under way.
    fn resolve_digests(&self, revision: &mut Revision) -> Result<bool, Error> {
        if digest::is_done(revision) {
            return Ok(true);
        }
        let config = self.shared.deployment.load();
        match self.digests.resolve(&ObjectKey::of(revision), revision, &config) {
            Progress::Resolved { containers, init_containers } => {
                let status = revision.status_mut();
                status.container_statuses = containers;
                status.init_container_statuses = init_containers;
                // What a failed attempt said before.
                let mut conditions = revision.mark();
                if conditions.get(HEALTHY).is_some_and(|condition| condition.reason == "ContainerMissing") {
                    conditions.mark_unknown(HEALTHY, "", "");
                }
                Ok(true)
            }
            Progress::Resolving => {
                revision.mark().mark_unknown(RESOURCES, "ResolvingDigests", "");
                Ok(false)
            }
            Progress::Failed(failure) => {
                let message = failure.to_string();
                revision.mark().mark_false(HEALTHY, "ContainerMissing", &message);
                Err(Error::Retry(message))
            }
        }
    }

    async fn children(&self, revision: &mut Revision) -> Result<(), Error> {
        let namespace = revision.namespace().unwrap_or_default();
        let current = self.shared.deployments.get(&namespace, &deployment::name(revision));
        let config = self.shared.deployment.load();
        match &current {
            None => status::deploying(revision),
            Some(deployment) if !is_controlled_by(&**deployment, revision) => {
                return Err(not_owned(revision, "Deployment", &deployment.name_any()));
            }
            Some(deployment) => {
                let pod = self.a_pod(revision);
                status::from_deployment(revision, deployment, || pod, config.pod_is_always_schedulable);
            }
        }

        let autoscaler = self.shared.pod_autoscalers.get_key(&ObjectKey::of(revision));
        match &autoscaler {
            Some(autoscaler) if !is_controlled_by(&**autoscaler, revision) => {
                return Err(not_owned(revision, "PodAutoscaler", &autoscaler.name_any()));
            }
            Some(autoscaler) => status::from_autoscaler(revision, autoscaler),
            None => status::from_autoscaler(revision, &PodAutoscaler::default()),
        }

        let class = &self.shared.autoscaler.load().pod_autoscaler_class;
        let (deployed, scaled, cached) = tokio::join!(
            self.write_deployment(revision, current.as_deref()),
            self.write_autoscaler(revision, current.as_deref(), autoscaler.as_deref(), class),
            self.write_images(revision),
        );
        deployed.and(scaled).and(cached)
    }

    fn desired_deployment(&self, revision: &Revision) -> Result<Value, Error> {
        let shared = &self.shared;
        let settings = deployment::Settings {
            autoscaler: &shared.autoscaler.load(),
            defaults: &shared.defaults.load(),
            deployment: &shared.deployment.load(),
            features: &shared.features.load(),
            logging: &shared.logging.load(),
            observability: &shared.observability.load(),
            system_namespace: &shared.ctx.system_namespace,
        };
        deployment::desired(revision, &settings)
            .map_err(|error| Error::Permanent(format!("failed to make deployment: {error}")))
    }

    async fn write_deployment(&self, revision: &Revision, current: Option<&Deployment>) -> Result<(), Error> {
        let key = ObjectKey::of(revision);
        let inputs = current.map(|current| self.settled.inputs(revision, current));
        if inputs.is_some_and(|inputs| self.settled.is_known(&key, inputs)) {
            return Ok(());
        }
        let wanted = self.desired_deployment(revision)?;
        let name = deployment::name(revision);
        let api = Api::<DynamicObject>::namespaced_with(
            self.shared.ctx.client.clone(),
            &revision.namespace().unwrap_or_default(),
            &ApiResource::erase::<Deployment>(&()),
        );
        let (verb, result) = match current {
            None => ("create", api.create(&PostParams::default(), &object(wanted)?).await),
            Some(current) => match deployment::update(current, &wanted) {
                None => {
                    if let Some(inputs) = inputs {
                        self.settled.note(key, inputs);
                    }
                    return Ok(());
                }
                Some(update) => ("update", api.replace(&name, &PostParams::default(), &object(update)?).await),
            },
        };
        result.map(drop).map_err(|error| failed(verb, "deployment", &name, error))
    }

    async fn write_autoscaler(
        &self,
        revision: &Revision,
        deployment: Option<&Deployment>,
        current: Option<&PodAutoscaler>,
        class: &str,
    ) -> Result<(), Error> {
        let wanted = pod_autoscaler::desired(revision, deployment, class);
        let api = self.api::<PodAutoscaler>(revision);
        let name = revision.name_any();
        let (verb, result) = match current {
            None => ("create", api.create(&PostParams::default(), &wanted).await),
            Some(current) => match pod_autoscaler::update(current, &wanted) {
                None => return Ok(()),
                Some(update) => ("update", api.replace(&name, &PostParams::default(), &update).await),
            },
        };
        result.map(drop).map_err(|error| failed(verb, "PA", &name, error))
    }

    async fn write_images(&self, revision: &Revision) -> Result<(), Error> {
        let api = self.api::<Image>(revision);
        let parameters = PostParams::default();
        let missing =
            images::desired(revision).into_iter().filter(|image| self.images.get_key(&ObjectKey::of(image)).is_none());
        let writes = missing.map(|image| {
            let (api, parameters) = (&api, &parameters);
            async move {
                match api.create(parameters, &image).await {
                    Err(error) if !controller::error::is_already_exists(&error) => {
                        Err(failed("create", "image cache", &image.name_any(), error))
                    }
                    _ => Ok(()),
                }
            }
        });
        futures::future::try_join_all(writes).await.map(drop)
    }

    /// Some pod of the revision, the first by name.
    fn a_pod(&self, revision: &Revision) -> Option<Arc<Pod>> {
        let pods = self.pods.by_index(BY_REVISION, &ObjectKey::of(revision).to_string());
        pods.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    fn api<K>(&self, revision: &Revision) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.shared.ctx.client.clone(), &revision.namespace().unwrap_or_default())
    }
}

fn object(value: Value) -> Result<DynamicObject, Error> {
    serde_json::from_value(value).map_err(|error| Error::Permanent(format!("failed to make deployment: {error}")))
}

/// What the cache has not seen yet exists already: the event of its arrival leads here again.
fn failed(verb: &str, what: &str, name: &str, error: kube::Error) -> Error {
    let context = format!("failed to {verb} {what} {name:?}");
    if controller::error::is_already_exists(&error) {
        return Error::Conflict(format!("{context}: {error}"));
    }
    Error::from(error).context(context)
}

fn not_owned(revision: &mut Revision, kind: &str, name: &str) -> Error {
    let message = format!("There is an existing {kind} {name:?} that we do not own.");
    revision.mark().mark_false(RESOURCES, "NotOwned", &message);
    Error::Retry(format!("revision: {:?} does not own {kind}: {name:?}", revision.name_any()))
}
