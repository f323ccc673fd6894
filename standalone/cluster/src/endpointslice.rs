//! EndpointSlices of Services with a selector.

mod pack;

use std::sync::Arc;

use controller::{Context, Error, ObjectKey, Queue};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};

use crate::backends::{self, Backend, HEADLESS, MANAGED_BY, SERVICE_NAME};
use crate::caches::{Caches, SERVICE};
use crate::error::told;
use crate::write;

pub(crate) use pack::{Groups, Owner, Write, pack};

const CONTROLLER: &str = "endpointslice-controller.k8s.io";

struct Controller {
    client: Client,
    caches: Caches,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, workers: usize) {
    let queue: Queue = Queue::new();
    backends::feed(caches, &queue);
    feed_back(caches, &queue, CONTROLLER);
    let controller = Arc::new(Controller { client: ctx.client.clone(), caches: caches.clone() });
    queue.run(&ctx.tasks, "endpointslice", workers, move |key| {
        let controller = controller.clone();
        async move { told("endpointslice", &key, controller.sync(&key).await) }
    });
}

/// Looks again at a Service when slices of it by this manager changed, our own writes included: what was decided on
/// an older state is decided again when that state is seen.
pub(crate) fn feed_back(caches: &Caches, queue: &Queue, manager: &'static str) {
    let changed = queue.clone();
    caches.slices.on_event(move |change| {
        let slice = change.object();
        let labels = slice.labels();
        if let Some(service) = labels.get(SERVICE_NAME).filter(|_| labels.get(MANAGED_BY).is_some_and(|m| m == manager))
        {
            changed.add(ObjectKey::new(slice.namespace().unwrap_or_default(), service));
        }
    });
}

/// The slices of a Service that this manager wrote.
pub(crate) fn slices_of(caches: &Caches, key: &ObjectKey, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let mut slices = caches.slices.by_index(SERVICE, &key.to_string());
    slices.retain(|slice| {
        slice.labels().get(MANAGED_BY).is_some_and(|by| by == manager) && slice.metadata.deletion_timestamp.is_none()
    });
    slices
}

pub(crate) async fn write_all(client: &Client, namespace: &str, writes: Vec<Write>) -> Result<(), Error> {
    let api = write::meta_api::<EndpointSlice>(client, namespace);
    for write in writes {
        let result = match write {
            Write::Create(slice) => {
                let full: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
                match full.create(&PostParams::default(), &slice).await {
                    // The name says whose it is, so this is ours and about to be seen.
                    Err(error) if controller::error::is_already_exists(&error) => {
                        return Err(Error::Conflict(error.to_string()));
                    }
                    other => other.map(drop),
                }
            }
            Write::Patch(name, patch) => {
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
            }
            Write::Delete(name) => api.delete(&name, &DeleteParams::background()).await.map(drop),
        };
        match result {
            Err(error) if !controller::error::is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

// === impl Controller ===

impl Controller {
    async fn sync(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(service) = self.caches.services.get_key(key) else { return Ok(()) };
        if !backends::is_selecting(&service) || service.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let Some(spec) = service.spec.as_ref() else { return Ok(()) };
        let pods = backends::pods(&self.caches, &key.namespace, spec);
        let mut labels = service.metadata.labels.clone().unwrap_or_default();
        labels.insert(MANAGED_BY.to_owned(), CONTROLLER.to_owned());
        labels.insert(SERVICE_NAME.to_owned(), key.name.clone());
        if backends::is_headless(spec) {
            labels.insert(HEADLESS.to_owned(), String::new());
        }
        let owner = Owner {
            service: key.clone(),
            reference: controller::owner_reference(&*service),
            labels,
            annotations: None,
        };
        let existing = slices_of(&self.caches, key, CONTROLLER);
        let writes = pack(&owner, &existing, groups(&service, &pods), true);
        write_all(&self.client, &key.namespace, writes).await
    }
}

fn groups(service: &Service, pods: &[Arc<Pod>]) -> Groups {
    let mut groups = Groups::new();
    let Some(spec) = service.spec.as_ref() else { return groups };
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    for pod in pods {
        let (Some(backend), Some(ports)) = (backends::backend(service, pod), backends::ports(spec, pod)) else {
            continue;
        };
        let family = if backend.ip.contains(':') { "IPv6" } else { "IPv4" };
        groups.entry((family, ports)).or_default().push(endpoint(backend, unready_too));
    }
    groups
}

/// A terminating pod is not ready but may still serve.
fn endpoint(backend: Backend, unready_too: bool) -> Endpoint {
    Endpoint {
        addresses: vec![backend.ip],
        conditions: Some(EndpointConditions {
            ready: Some(unready_too || (backend.ready && !backend.terminating)),
            serving: Some(backend.ready),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname,
        node_name: backend.node,
        target_ref: Some(backend.target),
        ..Endpoint::default()
    }
}
