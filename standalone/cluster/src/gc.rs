//! Garbage collection: objects whose owners are gone, and the finalizers of foreground and orphaning deletion.
//!
//! Every kind the API serves is in one graph by uid ([`graph`]): the kinds the controllers here watch anyway come
//! from their caches, the rest, custom resources included, from metadata watches that follow discovery
//! ([`resources`]). The graph decides; an owner it does not know is asked for once before anything is deleted.

mod act;
mod graph;
mod resources;

use std::collections::BTreeSet;
use std::sync::Arc;

use controller::{Cache, Change, Context, Queue, cache};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::caches::Caches;
use crate::error::told;
use graph::Graph;
pub(crate) use resources::{Resource, Resources};

/// The collector and what others may ask it.
pub(crate) struct Gc {
    client: Client,
    graph: Mutex<Graph>,
    queue: Queue<String>,
    pub(crate) resources: Resources,
    rediscover: Notify,
    /// Told the namespace of each object that went.
    on_gone: Mutex<Vec<GoneHandler>>,
    /// Objects with owners of kinds that discovery does not know yet.
    unresolved: Mutex<Vec<String>>,
    /// Objects with owners that had to be asked for: the owner's watch may start too late to see it go.
    unobserved: Mutex<BTreeSet<String>>,
}

type GoneHandler = Box<dyn Fn(&str) + Send>;

pub(crate) fn start(ctx: &Context, caches: &Caches, workers: usize) -> Arc<Gc> {
    let gc = Arc::new(Gc {
        client: ctx.client.clone(),
        graph: Mutex::default(),
        queue: Queue::new(),
        resources: Resources::default(),
        rediscover: Notify::new(),
        on_gone: Mutex::default(),
        unresolved: Mutex::default(),
        unobserved: Mutex::default(),
    });
    follow(&gc, &caches.deployments);
    follow(&gc, &caches.replica_sets);
    follow(&gc, &caches.pods);
    follow(&gc, &caches.services);
    follow(&gc, &caches.endpoints);
    follow(&gc, &caches.slices);
    follow(&gc, &caches.nodes);
    follow(&gc, &caches.namespaces);
    resources::start(ctx, &gc);
    let collector = gc.clone();
    gc.queue.run(&ctx.tasks, "gc", workers, move |uid| {
        let gc = collector.clone();
        async move { told("gc", &uid, gc.attempt(&uid).await) }
    });
    gc
}

/// Feeds the graph from a cache that is there anyway.
fn follow<K: cache::Object>(gc: &Arc<Gc>, cache: &Cache<K>) {
    let resource = Arc::new(Resource::of::<K>());
    let gc = gc.clone();
    cache.on_event(move |change| match change {
        Change::Applied { old, new } => {
            if let Some(old) = old
                && old.meta().uid != new.meta().uid
            {
                gc.gone(old.meta().uid.as_deref().unwrap_or_default());
            }
            gc.seen(&resource, new.meta());
        }
        Change::Deleted(object) => gc.gone(object.meta().uid.as_deref().unwrap_or_default()),
    });
}

// === impl Gc ===

impl Gc {
    /// Calls `handler` with the namespace of every object that goes.
    pub(crate) fn on_gone(&self, handler: impl Fn(&str) + Send + 'static) {
        self.on_gone.lock().push(Box::new(handler));
    }

    fn seen(&self, resource: &Arc<Resource>, meta: &ObjectMeta) {
        let concerned = self.graph.lock().apply(resource, meta);
        for uid in concerned {
            self.queue.add(uid);
        }
    }

    /// A watch has its complete list: owners that were only asked for are either in the graph now or asked for again.
    fn listed(&self) {
        for uid in std::mem::take(&mut *self.unobserved.lock()) {
            self.queue.add(uid);
        }
    }

    fn gone(&self, uid: &str) {
        let Some((namespace, concerned)) = self.graph.lock().remove(uid) else { return };
        self.unobserved.lock().remove(uid);
        for uid in concerned {
            self.queue.add(uid);
        }
        if !namespace.is_empty() {
            for handler in self.on_gone.lock().iter() {
                handler(&namespace);
            }
        }
    }
}
