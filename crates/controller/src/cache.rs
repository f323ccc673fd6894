//! A shared reflector: the watched objects of one kind in memory, with indexes and change handlers.
//!
//! One watch per kind feeds everything that needs the kind. Indexes make "all revisions of this configuration" a
//! lookup, so that the work for one event does not grow with the number of objects. Handlers are called in event
//! order, from the watching task, after the cache shows the change; a handler that is added later first sees every
//! present object as [`Change::Applied`], so start-up and steady state are the same code.

mod objects;
mod pauses;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

pub use self::objects::Old;
use self::objects::{Objects, Packing, Stored};
pub use self::pauses::pauses;
use crate::{Context, ObjectKey};

/// What a [`Cache`] can hold.
pub trait Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static> Object for K {}

/// One change that the cache already shows.
#[derive(Debug)]
pub enum Change<'a, K> {
    Applied { old: Option<&'a Old<K>>, new: &'a Arc<K> },
    Deleted(&'a Arc<K>),
}

type IndexFn<K> = Box<dyn Fn(&K) -> Vec<String> + Send + Sync>;
type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;
type Transform<K> = Box<dyn Fn(&mut K) + Send + Sync>;

/// The objects of one kind, as last seen. Clones share the same watch.
pub struct Cache<K> {
    inner: Arc<Inner<K>>,
}

struct Inner<K> {
    indexers: Vec<(&'static str, IndexFn<K>)>,
    transform: Option<Transform<K>>,
    packing: Option<Packing<K>>,
    objects: RwLock<Objects<K>>,
    /// Held while a change is applied and delivered: handlers see changes in order, and adding one misses nothing.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// Configures a [`Cache`] before its watch starts.
pub struct Builder<K> {
    api: Box<dyn FnOnce(Client) -> Api<K> + Send>,
    config: watcher::Config,
    indexers: Vec<(&'static str, IndexFn<K>)>,
    transform: Option<Transform<K>>,
    packing: Option<Packing<K>>,
    handlers: Vec<Handler<K>>,
}

// === impl Change ===

impl<K> Change<'_, K> {
    /// The object as it is now, or as it last was.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted(object) => object,
        }
    }

    pub fn is_deleted(&self) -> bool {
        matches!(self, Change::Deleted(_))
    }
}

// === impl Builder ===

impl<K: Object> Builder<K> {
    /// Only this namespace; all of them by default.
    pub fn namespace(mut self, namespace: &str) -> Self
    where
        K: Resource<Scope = NamespaceResourceScope>,
    {
        let namespace = namespace.to_owned();
        self.api = Box::new(move |client| Api::namespaced(client, &namespace));
        self
    }

    pub fn label_selector(mut self, selector: &str) -> Self {
        self.config = self.config.labels(selector);
        self
    }

    pub fn field_selector(mut self, selector: &str) -> Self {
        self.config = self.config.fields(selector);
        self
    }

    /// Adds a lookup by the strings that `keys` derives from an object; see [`Cache::by_index`].
    pub fn index(mut self, name: &'static str, keys: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.indexers.push((name, Box::new(keys)));
        self
    }

    /// Drops what is not used before an object is kept.
    pub fn transform(mut self, transform: impl Fn(&mut K) + Send + Sync + 'static) -> Self {
        self.transform = Some(Box::new(transform));
        self
    }

    /// Keeps objects as JSON and reads them again for everyone who asks: for kinds of which there are many, each looked at
    /// rarely. Handlers are shown the object itself.
    pub fn packed(mut self) -> Self
    where
        K: Serialize,
    {
        self.packing = Some(Packing::json());
        self
    }

    /// See [`Cache::on_event`].
    pub fn on_event(mut self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) -> Self {
        self.handlers.push(Box::new(handler));
        self
    }

    /// Starts the watch on the context's task group.
    pub fn start(self, ctx: &Context) -> Cache<K> {
        let api = (self.api)(ctx.client.clone());
        let cache = Cache {
            inner: Arc::new(Inner {
                objects: RwLock::new(Objects::new(&self.indexers, self.packing)),
                indexers: self.indexers,
                transform: self.transform,
                packing: self.packing,
                handlers: Mutex::new(self.handlers),
                synced: watch::Sender::new(false),
            }),
        };
        let watching = cache.clone();
        let config = self.config;
        ctx.tasks.spawn("watch", async move { watching.watch(api, config).await });
        cache
    }
}

// === impl Cache ===

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K> Debug for Cache<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("objects", &self.inner.objects.read().len()).finish_non_exhaustive()
    }
}

impl<K: Object> Cache<K> {
    pub fn builder() -> Builder<K> {
        Builder {
            api: Box::new(Api::all),
            config: watcher::Config::default(),
            indexers: Vec::new(),
            transform: None,
            packing: None,
            handlers: Vec::new(),
        }
    }

    /// A cache without a watch, fed by [`Cache::apply`] and [`Cache::remove`]: for tests of reconcilers.
    pub fn detached(indexers: Vec<(&'static str, IndexFn<K>)>) -> Self {
        Self {
            inner: Arc::new(Inner {
                objects: RwLock::new(Objects::new(&indexers, None)),
                indexers,
                transform: None,
                packing: None,
                handlers: Mutex::default(),
                synced: watch::Sender::new(true),
            }),
        }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get_key(&ObjectKey::new(namespace, name))
    }

    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.inner.objects.read().get(key)
    }

    /// Every object, in key order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.inner.objects.read().iter().collect()
    }

    /// What `pick` makes of every object, in key order. Unlike with [`Cache::list`], only one object is there at a time if
    /// the cache is packed. `pick` must be quick and must not use this cache.
    pub fn collect<T>(&self, pick: impl FnMut(Arc<K>) -> Option<T>) -> Vec<T> {
        self.inner.objects.read().iter().filter_map(pick).collect()
    }

    /// The objects of one namespace, in name order.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.inner.objects.read().in_namespace(namespace).collect()
    }

    /// The objects whose index function gave `key`, in key order.
    ///
    /// # Panics
    /// If the cache was built without this index: a programming error that the first test finds.
    pub fn by_index(&self, index: &str, key: &str) -> Vec<Arc<K>> {
        self.inner.objects.read().by_index(index, key)
    }

    /// Waits until the first complete list has been applied and delivered. Cancel safe.
    pub async fn synced(&self) {
        // The sender lives in `inner`, which `self` keeps alive.
        let _ = self.inner.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Calls `handler` for every present object (as `Applied`) and then for every change, in order. It runs on the
    /// watching task: it must be quick, must not block, and must not add handlers to the same cache.
    pub fn on_event(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.inner.handlers.lock();
        let keys: Vec<ObjectKey> = self.inner.objects.read().keys().cloned().collect();
        for object in keys.iter().filter_map(|key| self.get_key(key)) {
            handler(&Change::Applied { old: None, new: &object });
        }
        handlers.push(Box::new(handler));
    }

    /// Feeds one object in, as the watch does.
    pub fn apply(&self, object: K) {
        self.insert(Arc::new(self.trimmed(object)));
    }

    fn trimmed(&self, mut object: K) -> K {
        object.meta_mut().managed_fields = None;
        if let Some(transform) = &self.inner.transform {
            transform(&mut object);
        }
        object
    }

    fn insert(&self, new: Arc<K>) {
        let key = ObjectKey::of(&*new);
        let handlers = self.inner.handlers.lock();
        let old = self.inner.objects.write().insert(&self.inner.indexers, &key, &new);
        for handler in handlers.iter() {
            handler(&Change::Applied { old: old.as_ref(), new: &new });
        }
    }

    /// Takes one object out, as the watch does.
    pub fn remove(&self, key: &ObjectKey) {
        let handlers = self.inner.handlers.lock();
        let Some(old) = self.inner.objects.write().remove(&self.inner.indexers, key) else { return };
        for handler in handlers.iter() {
            handler(&Change::Deleted(&old));
        }
    }

    async fn watch(self, api: Api<K>, config: watcher::Config) {
        let mut events = std::pin::pin!(watcher(api, config).backoff(pauses()));
        let packing = self.inner.packing;
        let mut listed: Option<BTreeMap<ObjectKey, Stored<K>>> = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => self.apply(object),
                Ok(watcher::Event::Delete(object)) => self.remove(&ObjectKey::of(&object)),
                Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
                Ok(watcher::Event::InitApply(object)) => {
                    let key = ObjectKey::of(&object);
                    let stored = Packing::store(packing, Arc::new(self.trimmed(object)));
                    listed.get_or_insert_default().insert(key, stored);
                }
                Ok(watcher::Event::InitDone) => {
                    self.replace(listed.take().unwrap_or_default());
                    self.inner.synced.send_replace(true);
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "watch failed; it starts again after a pause");
                }
            }
        }
    }

    /// A complete list: what is missing from it was deleted, what has the same version did not change.
    fn replace(&self, listed: BTreeMap<ObjectKey, Stored<K>>) {
        let gone: Vec<_> = {
            let objects = self.inner.objects.read();
            objects.keys().filter(|key| !listed.contains_key(*key)).cloned().collect()
        };
        for key in gone {
            self.remove(&key);
        }
        for (key, stored) in listed {
            let object = Packing::load(self.inner.packing, &stored);
            drop(stored);
            if !self.inner.objects.read().is_version(&key, object.resource_version().as_deref()) {
                self.insert(object);
            }
        }
    }
}
