//! The loop that every Knative kind shares (upstream: the generated reconcilers of `knative.dev/pkg`).
//!
//! For a key: copy the object from the cache; if it is being deleted run the finalizer, if any; otherwise prepare the
//! copy (defaults in memory, initial conditions, `NewObservedGenFailure` for a new generation), reconcile, set
//! `observedGeneration`, keep the times of unchanged conditions, and PUT the status only if it differs. Errors become
//! `InternalError` events and retries with back-off; the status is written either way.

mod written;

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::{Conditioned, StatusFields};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use self::written::Written;
use crate::{Cache, Context, Error, Leadership, ObjectKey, Queue, Recorder, error, status};

/// How long one reconcile may take before it is given up and retried (`-reconciliation-timeout`).
pub const TIMEOUT: Duration = Duration::from_secs(30);
const STATUS_ATTEMPTS: usize = 5;

/// A kind that [`drive`] can drive.
pub trait Object:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Conditioned<Status: Send + Sync>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Conditioned<Status: Send + Sync>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The decisions and writes of one controller.
pub trait Reconcile: Send + Sync + 'static {
    type Kind: Object;

    /// The event source, for example `service-controller`.
    const NAME: &'static str;
    /// What upstream calls the controller's queue, in metrics and in the names of Leases.
    const QUEUE: &'static str;
    /// The finalizer this controller keeps on its objects.
    const FINALIZER: Option<&'static str> = None;
    /// Controllers that only act on their objects leave the status to its owner.
    const WRITES_STATUS: bool = true;

    /// Whether the object is this controller's (class annotations).
    fn selects(&self, _object: &Self::Kind) -> bool {
        true
    }

    /// Defaults in memory and initial conditions; must not depend on anything that changes on its own.
    fn prepare(&self, _object: &mut Self::Kind) {}

    /// Brings the world to the object's spec and puts what it saw into `object`'s status.
    fn reconcile(&self, object: &mut Self::Kind) -> impl Future<Output = Result<(), Error>> + Send;

    /// Before the object goes, if there is a [`Self::FINALIZER`].
    fn finalize(&self, _object: &Self::Kind) -> impl Future<Output = Result<(), Error>> + Send {
        async { Ok(()) }
    }

    /// After the object went.
    fn deleted(&self, _key: &ObjectKey) {}

    /// This status is written now. Whoever remembers it knows the change that the watch shows for it.
    fn writes(&self, _key: &ObjectKey, _status: &<Self::Kind as Conditioned>::Status) {}
}

/// Starts `workers` loops that reconcile what is in `queue`. Who fills the queue is the controller's business; see
/// [`enqueue_all`] for the usual part of it.
pub fn drive<R: Reconcile>(
    ctx: &Context,
    cache: &Cache<R::Kind>,
    queue: &Queue,
    reconciler: Arc<R>,
    recorder: &Recorder,
    workers: usize,
) {
    ctx.queues.add(R::QUEUE, queue);
    let leadership = ctx.leadership(R::QUEUE);
    let (promoted, all) = (queue.clone(), cache.clone());
    leadership.on_promotion(ctx, move || resync(&all, &promoted));
    let shell = Arc::new(Shell {
        client: ctx.client.clone(),
        cache: cache.clone(),
        recorder: recorder.clone(),
        reconciler,
        leadership,
        written: Written::default(),
    });
    queue.run(&ctx.tasks, R::NAME, workers, move |key| {
        let shell = shell.clone();
        async move {
            match tokio::time::timeout(TIMEOUT, shell.handle(&key)).await {
                Ok(result) => result,
                Err(_) => Err(Error::retry(format!("{} {key}: gave up after {TIMEOUT:?}", R::NAME))),
            }
        }
    });
}

/// Puts every object of `cache` into `queue` when it changes.
pub fn enqueue_all<K: crate::cache::Object>(cache: &Cache<K>, queue: &Queue) {
    let queue = queue.clone();
    cache.on_event(move |change| queue.add(ObjectKey::of(&**change.object())));
}

/// Puts the controlling `O` of every object of `cache` into `queue` when the object changes.
pub fn enqueue_controllers<K: crate::cache::Object, O: Resource<DynamicType = ()>>(cache: &Cache<K>, queue: &Queue) {
    let queue = queue.clone();
    cache.on_event(move |change| {
        if let Some(key) = ObjectKey::controller_of::<K, O>(change.object()) {
            queue.add(key);
        }
    });
}

/// Puts every object of `cache` into the slow lane of `queue`: after a change of a ConfigMap they all depend on.
pub fn resync<K: crate::cache::Object>(cache: &Cache<K>, queue: &Queue) {
    for key in cache.collect(|object| Some(ObjectKey::of(&*object))) {
        queue.add_slow(key);
    }
}

struct Shell<R: Reconcile> {
    client: kube::Client,
    cache: Cache<R::Kind>,
    recorder: Recorder,
    reconciler: Arc<R>,
    leadership: Leadership,
    written: Written<<R::Kind as Conditioned>::Status>,
}

// === impl Shell ===

impl<R: Reconcile> Shell<R> {
    async fn handle(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(original) = self.cache.get_key(key) else {
            self.reconciler.deleted(key);
            return Ok(());
        };
        if !self.leadership.leads(key) || !self.reconciler.selects(&original) {
            return Ok(());
        }
        let result = if original.meta().deletion_timestamp.is_some() {
            self.finalize(&original).await
        } else {
            self.reconcile(&original).await
        };
        if let Err(error) = &result {
            tracing::debug!(controller = R::NAME, %key, %error, "reconcile ended early");
            if error.is_reported() {
                self.recorder.warning(&*original, "InternalError", &error.to_string());
            }
        }
        result
    }

    async fn reconcile(&self, original: &R::Kind) -> Result<(), Error> {
        let finalized = match R::FINALIZER {
            Some(finalizer) => self.add_finalizer(original, finalizer).await?,
            None => None,
        };
        // What the API answered is newer than the cache: writing the status over it is no conflict.
        let original = finalized.as_ref().unwrap_or(original);
        let mut object = original.clone();
        if !R::WRITES_STATUS {
            return self.reconciler.reconcile(&mut object).await;
        }
        let version = original.meta().resource_version.as_deref();
        let before = self.written.over(&ObjectKey::of(original), version).unwrap_or_else(|| status_of(original));
        let generation = original.meta().generation.unwrap_or_default();
        object.status_mut().clone_from(&before);
        status::mark_new_generation(object.status_mut(), generation);
        self.reconciler.prepare(&mut object);

        let result = self.reconciler.reconcile(&mut object).await;

        let mut after = std::mem::take(object.status_mut());
        after.set_observed_generation(generation);
        status::groom(&before, &mut after, Timestamp::now());
        if !status::same(&before, &after)
            && let Err(error) = self.write_status(original, after).await
        {
            let message = format!("Failed to update status for {:?}: {error}", original.name_any());
            if !error::is_not_found(&error) {
                self.recorder.warning(original, "UpdateFailed", &message);
            }
            return Err(error.into());
        }
        result
    }

    /// PUT of the whole status, as upstream: on a conflict the newest object is read and only its status replaced.
    async fn write_status(
        &self,
        original: &R::Kind,
        status: <R::Kind as Conditioned>::Status,
    ) -> Result<(), kube::Error> {
        let api = self.api(original);
        let name = original.name_any();
        let mut target = original.clone();
        self.reconciler.writes(&ObjectKey::of(original), &status);
        for attempt in 1.. {
            target.status_mut().clone_from(&status);
            match self.put_status(&name, &target).await {
                Err(error) if error::is_conflict(&error) && attempt < STATUS_ATTEMPTS => {
                    target = api.get(&name).await?;
                    if status::same(&status_of(&target), &status) {
                        return Ok(());
                    }
                }
                result => {
                    result?;
                    let over = target.meta().resource_version.clone();
                    self.written.note(ObjectKey::of(original), over, status);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The answer is not read: the watch brings it.
    async fn put_status(&self, name: &str, target: &R::Kind) -> Result<(), kube::Error> {
        let body = serde_json::to_vec(target).map_err(kube::Error::SerdeError)?;
        let path = R::Kind::url_path(&(), target.meta().namespace.as_deref());
        let request = kube::core::Request::new(path)
            .replace_subresource("status", name, &PostParams::default(), body)
            .map_err(kube::Error::BuildRequest)?;
        self.client.request_text(request).await.map(drop)
    }

    /// The object with the finalizer, if it had to be added.
    async fn add_finalizer(&self, object: &R::Kind, finalizer: &str) -> Result<Option<R::Kind>, Error> {
        if object.finalizers().iter().any(|f| f == finalizer) {
            return Ok(None);
        }
        let mut finalizers = object.finalizers().to_vec();
        finalizers.push(finalizer.to_owned());
        self.write_finalizers(object, &finalizers).await
    }

    async fn finalize(&self, object: &R::Kind) -> Result<(), Error> {
        let Some(finalizer) = R::FINALIZER else { return Ok(()) };
        if !object.finalizers().iter().any(|f| f == finalizer) {
            return Ok(());
        }
        self.reconciler.finalize(object).await?;
        let mut finalizers: Vec<_> = object.finalizers().iter().filter(|f| *f != finalizer).cloned().collect();
        finalizers.sort();
        self.write_finalizers(object, &finalizers).await.map(drop)
    }

    async fn write_finalizers(&self, object: &R::Kind, finalizers: &[String]) -> Result<Option<R::Kind>, Error> {
        let name = object.name_any();
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": object.resource_version()}});
        match self.api(object).patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(written) => {
                self.recorder.normal(object, "FinalizerUpdate", &format!("Updated {name:?} finalizers"));
                Ok(Some(written))
            }
            Err(error) if error::is_not_found(&error) => Ok(None),
            Err(error) => {
                if !error::is_conflict(&error) {
                    let message = format!("Failed to update finalizers for {name:?}: {error}");
                    self.recorder.warning(object, "FinalizerUpdateFailed", &message);
                }
                Err(error.into())
            }
        }
    }

    fn api(&self, object: &R::Kind) -> Api<R::Kind> {
        Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default())
    }
}

fn status_of<K: Object>(object: &K) -> K::Status {
    object.status().cloned().unwrap_or_default()
}
