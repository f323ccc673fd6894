//! One watch per kind, shared by every controller here, with the indexes that keep a change's work its own size.

use controller::{Cache, Context};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Resource, ResourceExt};

use crate::backends::SERVICE_NAME;
use crate::selector;

/// By the uid of the controlling owner.
pub(crate) const OWNER: &str = "owner";
/// By namespace, objects that nothing controls.
pub(crate) const ORPHAN: &str = "orphan";
/// Pods by each label pair; Services by the first pair of their selector.
pub(crate) const LABEL: &str = "label";
/// EndpointSlices by `namespace/service`.
pub(crate) const SERVICE: &str = "service";

#[derive(Clone)]
pub(crate) struct Caches {
    pub(crate) deployments: Cache<Deployment>,
    pub(crate) replica_sets: Cache<ReplicaSet>,
    pub(crate) pods: Cache<Pod>,
    pub(crate) services: Cache<Service>,
    pub(crate) endpoints: Cache<Endpoints>,
    pub(crate) slices: Cache<EndpointSlice>,
    pub(crate) nodes: Cache<Node>,
    pub(crate) namespaces: Cache<Namespace>,
}

// === impl Caches ===

impl Caches {
    /// Starts the watches and waits until each has its first complete list: acting on half a picture would create
    /// what exists already.
    pub(crate) async fn start(ctx: &Context) -> Self {
        let caches = Self {
            deployments: Cache::builder().start(ctx),
            replica_sets: Cache::builder().index(OWNER, owner_of).index(ORPHAN, orphan_of).start(ctx),
            pods: Cache::builder()
                .index(OWNER, owner_of)
                .index(ORPHAN, orphan_of)
                .index(LABEL, |pod: &Pod| {
                    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                    pod.labels().iter().map(|(key, value)| selector::pair(namespace, key, value)).collect()
                })
                .start(ctx),
            services: Cache::builder().index(LABEL, first_selector_pair).start(ctx),
            endpoints: Cache::builder().start(ctx),
            slices: Cache::builder().index(SERVICE, service_of).start(ctx),
            nodes: Cache::builder().start(ctx),
            namespaces: Cache::builder().start(ctx),
        };
        tokio::join!(
            caches.deployments.synced(),
            caches.replica_sets.synced(),
            caches.pods.synced(),
            caches.services.synced(),
            caches.endpoints.synced(),
            caches.slices.synced(),
            caches.nodes.synced(),
            caches.namespaces.synced(),
        );
        caches
    }

    /// Without watches, for tests.
    #[cfg(test)]
    pub(crate) fn detached() -> Self {
        Self {
            deployments: Cache::detached(Vec::new()),
            replica_sets: Cache::detached(vec![(OWNER, Box::new(owner_of)), (ORPHAN, Box::new(orphan_of))]),
            pods: Cache::detached(vec![(OWNER, Box::new(owner_of)), (ORPHAN, Box::new(orphan_of))]),
            services: Cache::detached(vec![(LABEL, Box::new(first_selector_pair))]),
            endpoints: Cache::detached(Vec::new()),
            slices: Cache::detached(vec![(SERVICE, Box::new(service_of))]),
            nodes: Cache::detached(Vec::new()),
            namespaces: Cache::detached(Vec::new()),
        }
    }
}

pub(crate) fn owner_of<K: Resource>(object: &K) -> Vec<String> {
    object.owner_references().iter().filter(|o| o.controller == Some(true)).map(|o| o.uid.clone()).collect()
}

pub(crate) fn orphan_of<K: Resource>(object: &K) -> Vec<String> {
    if object.owner_references().iter().any(|o| o.controller == Some(true)) { Vec::new() } else { namespace_of(object) }
}

fn namespace_of<K: Resource>(object: &K) -> Vec<String> {
    object.namespace().into_iter().collect()
}

fn first_selector_pair(service: &Service) -> Vec<String> {
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.and_then(|s| s.first_key_value()).map(|(k, v)| selector::pair(namespace, k, v)).into_iter().collect()
}

fn service_of(slice: &EndpointSlice) -> Vec<String> {
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    slice.labels().get(SERVICE_NAME).map(|service| format!("{namespace}/{service}")).into_iter().collect()
}
