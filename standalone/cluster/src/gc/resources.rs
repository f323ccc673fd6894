//! What the API serves, followed as it changes, and a metadata watch for each of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use controller::{Context, Tasks, cache};
use futures::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::discovery::{ApiResource, Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource as _};
use parking_lot::RwLock;

use super::Gc;

/// Kinds that own nothing, are owned by nothing and change all the time.
const IGNORED: [(&str, &str); 3] = [("", "Event"), ("events.k8s.io", "Event"), ("coordination.k8s.io", "Lease")];
/// Kinds that feed the graph from caches.
const CACHED: [(&str, &str); 8] = [
    ("apps", "Deployment"),
    ("apps", "ReplicaSet"),
    ("", "Pod"),
    ("", "Service"),
    ("", "Endpoints"),
    ("discovery.k8s.io", "EndpointSlice"),
    ("", "Node"),
    ("", "Namespace"),
];
const CRD: (&str, &str) = ("apiextensions.k8s.io", "CustomResourceDefinition");

/// A kind the API serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    pub(crate) api: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Verbs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Verbs {
    pub(crate) watch: bool,
    pub(crate) list: bool,
    pub(crate) delete: bool,
    pub(crate) delete_collection: bool,
}

/// All of them, as discovery told last.
#[derive(Default)]
pub(crate) struct Resources {
    all: RwLock<Arc<Vec<Arc<Resource>>>>,
}

pub(super) fn start(ctx: &Context, gc: &Arc<Gc>) {
    let (ctx, gc) = (ctx.clone(), gc.clone());
    ctx.tasks.clone().spawn("gc-discovery", async move {
        let mut watches: HashMap<Arc<Resource>, Tasks> = HashMap::new();
        let mut pause = std::time::Duration::from_millis(50);
        loop {
            match discover(&ctx.client).await {
                Ok(found) => {
                    adopt(&ctx, &gc, &mut watches, found);
                    pause = std::time::Duration::from_millis(50);
                    gc.rediscover.notified().await;
                }
                Err(error) => {
                    tracing::warn!(%error, "garbage collection cannot list the API's resources; it tries again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(std::time::Duration::from_secs(30));
                }
            }
        }
    });
}

async fn discover(client: &Client) -> Result<Vec<Arc<Resource>>, kube::Error> {
    let discovery = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => discovery,
        Err(_) => Discovery::new(client.clone()).run().await?,
    };
    let mut found = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (api, capabilities) in group.resources_by_stability() {
            let has = |verb| capabilities.supports_operation(verb);
            found.push(Arc::new(Resource {
                api,
                namespaced: capabilities.scope == Scope::Namespaced,
                verbs: Verbs {
                    watch: has(verbs::WATCH),
                    list: has(verbs::LIST),
                    delete: has(verbs::DELETE),
                    delete_collection: has(verbs::DELETE_COLLECTION),
                },
            }));
        }
    }
    Ok(found)
}

/// Starts watches for what is new, ends those of what is gone.
fn adopt(ctx: &Context, gc: &Arc<Gc>, watches: &mut HashMap<Arc<Resource>, Tasks>, found: Vec<Arc<Resource>>) {
    let wanted: HashSet<Arc<Resource>> = found.iter().filter(|resource| resource.is_watched()).cloned().collect();
    *gc.resources.all.write() = Arc::new(found);
    watches.retain(|resource, tasks| {
        let stays = wanted.contains(resource);
        if !stays {
            tasks.token().cancel();
            let left = gc.graph.lock().of_resource(resource);
            for uid in left {
                gc.gone(&uid);
            }
        }
        stays
    });
    for resource in wanted {
        watches.entry(resource.clone()).or_insert_with(|| {
            let tasks = ctx.tasks.child();
            let gc = gc.clone();
            tasks.spawn("gc-watch", async move { watch(&gc, &resource).await });
            tasks
        });
    }
    for uid in std::mem::take(&mut *gc.unresolved.lock()) {
        gc.queue.add(uid);
    }
}

async fn watch(gc: &Gc, resource: &Arc<Resource>) {
    let api: Api<PartialObjectMeta> = Api::all_with(gc.client.clone(), &resource.api);
    let is_crd = resource.is(CRD);
    let events = watcher::watcher(api, watcher::Config::default()).backoff(cache::pauses());
    let mut events = std::pin::pin!(events);
    let mut known: HashSet<String> = HashSet::new();
    let mut listed: Option<HashSet<String>> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed = Some(HashSet::new()),
            Ok(watcher::Event::InitApply(object)) => {
                gc.seen(resource, object.meta());
                let uid = object.metadata.uid.unwrap_or_default();
                if let Some(listed) = &mut listed {
                    listed.insert(uid.clone());
                }
                known.insert(uid);
            }
            Ok(watcher::Event::InitDone) => {
                let listed = listed.take().unwrap_or_default();
                for uid in known.difference(&listed) {
                    gc.gone(uid);
                }
                known = listed;
                gc.listed();
            }
            Ok(watcher::Event::Apply(object)) => {
                gc.seen(resource, object.meta());
                known.insert(object.metadata.uid.unwrap_or_default());
            }
            Ok(watcher::Event::Delete(object)) => {
                let uid = object.metadata.uid.unwrap_or_default();
                known.remove(&uid);
                gc.gone(&uid);
            }
            Err(error) => {
                tracing::debug!(kind = resource.api.kind, %error, "watch for garbage collection failed; it starts again");
                continue;
            }
        }
        if is_crd && listed.is_none() {
            gc.rediscover.notify_one();
        }
    }
}

// === impl Resource ===

impl Resource {
    /// The resource of a type known at compile time.
    pub(crate) fn of<K: kube::Resource<DynamicType = ()>>() -> Self {
        let api = ApiResource::erase::<K>(&());
        let namespaced = !matches!(api.kind.as_str(), "Node" | "Namespace");
        let verbs = Verbs { watch: true, list: true, delete: true, delete_collection: true };
        Self { api, namespaced, verbs }
    }

    pub(crate) fn kind(&self) -> &str {
        &self.api.kind
    }

    pub(crate) fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.api)
        } else {
            Api::all_with(client.clone(), &self.api)
        }
    }

    fn is(&self, (group, kind): (&str, &str)) -> bool {
        self.api.group == group && self.api.kind == kind
    }

    fn is_watched(&self) -> bool {
        let elsewhere = IGNORED.iter().chain(&CACHED).any(|kind| self.is(*kind));
        self.verbs.watch && self.verbs.list && self.verbs.delete && !elsewhere
    }
}

// === impl Resources ===

impl Resources {
    pub(crate) fn all(&self) -> Arc<Vec<Arc<Resource>>> {
        self.all.read().clone()
    }

    /// By kind and group; another served version of the group will do.
    pub(crate) fn find(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        self.all.read().iter().find(|resource| resource.is((group, kind))).cloned()
    }
}
