//! The role around the [`World`]: events in, status out, and the xDS server.
//!
//! Translation happens in the event handlers, so every replica serves the same configuration without waiting for API
//! writes; the reconcile loop only adds the finalizer and writes the status. An Ingress is Ready when every connected
//! gateway has acknowledged its resources, which replaces upstream's probing over the network.

mod reconcile;

use std::{net::SocketAddr, sync::Arc};

use api::networking::v1alpha1::Ingress;
use controller::{Cache, Change, Context, ObjectKey, Queue, Recorder};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::ResourceExt;
use parking_lot::Mutex;
use xds::{Server, Xds};

use self::reconcile::{Reconciler, Waiting};
use crate::{
    options::Options,
    world::{Objects, World, is_ours},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Xds(#[from] xds::Error),
}

/// The running role. It stops with the task group it was started in.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Where gateways connect.
    pub xds_address: SocketAddr,
    /// What gateways have in force.
    pub xds: Xds,
}

type Shared = Arc<Mutex<World<Caches>>>;

struct Caches {
    services: Cache<Service>,
    slices: Cache<EndpointSlice>,
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "service";

/// Starts the role: waits for the caches, translates what there is, and only then opens the xDS port, so that a gateway
/// never gets less than it had.
pub async fn run(ctx: Context, options: Options) -> Result<Handle, Error> {
    let (xds, mut events) = Xds::new(options.host_discovery);
    let ingresses = Cache::<Ingress>::builder().start(&ctx);
    let services = Cache::<Service>::builder().transform(strip_service).start(&ctx);
    let slices = Cache::<EndpointSlice>::builder()
        .label_selector(SERVICE_NAME)
        .index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect())
        .transform(strip_slice)
        .start(&ctx);
    tokio::join!(ingresses.synced(), services.synced(), slices.synced());

    let caches = Caches { services: services.clone(), slices: slices.clone() };
    let world: Shared = Arc::new(Mutex::new(World::new(caches, xds.clone(), &options)));
    let queue = Queue::new();
    let role = Role { world, ingresses: ingresses.clone(), queue: queue.clone() };
    role.prime();
    let handler = role.clone();
    ingresses.on_event(move |change| handler.ingress(change));
    let handler = role.clone();
    services.on_event(move |change| handler.service(&ObjectKey::of(&**change.object())));
    let handler = role.clone();
    slices.on_event(move |change| {
        if let Some(service) = service_of(change.object()) {
            handler.service(&service);
        }
    });

    let server = Server::bind(options.xds_listen).await?;
    let xds_address = server.address();
    tracing::info!(address = %xds_address, "serving gateways");
    let (serving, token) = (xds.clone(), ctx.tasks.token().clone());
    ctx.tasks.spawn("xds", async move {
        if let Err(error) = server.run(serving, token.cancelled()).await {
            tracing::error!(%error, "gateways keep their configuration but get no changes");
        }
    });
    let noting = role.clone();
    ctx.tasks.spawn("refusals", async move {
        while let Some(event) = events.recv().await {
            tracing::warn!(?event, "a gateway answered");
            let owners = noting.world.lock().note(&event);
            owners.into_iter().for_each(|owner| noting.queue.add(owner));
        }
    });
    let waiting = Waiting::default();
    let (mut settled, wake, wait) = (xds.settled(), queue.clone(), waiting.clone());
    ctx.tasks.spawn("acknowledged", async move {
        while settled.changed().await.is_ok() {
            let revision = settled.borrow_and_update().revision;
            wait.up_to(revision).into_iter().for_each(|key| wake.add(key));
        }
    });
    let recorder = Recorder::new(&ctx, <Reconciler as controller::Reconcile>::NAME);
    let reconciler = Arc::new(Reconciler::new(role.world, xds.clone(), waiting, &ctx, &options));
    controller::drive(&ctx, &ingresses, &queue, reconciler, &recorder, options.workers);
    Ok(Handle { xds_address, xds })
}

/// What the event handlers share.
#[derive(Clone)]
struct Role {
    world: Shared,
    ingresses: Cache<Ingress>,
    queue: Queue,
}

// === impl Role ===

impl Role {
    /// Older Ingresses first: they keep their hosts when two claim the same.
    fn prime(&self) {
        let mut all: Vec<Arc<Ingress>> =
            self.ingresses.list().into_iter().filter(|ingress| is_served(ingress)).collect();
        all.sort_by_key(|ingress| (ingress.creation_timestamp(), ObjectKey::of(&**ingress)));
        tracing::info!("Priming the config with {} ingresses", all.len());
        let mut world = self.world.lock();
        for ingress in all {
            world.apply(&ingress);
        }
    }

    fn ingress(&self, change: &Change<'_, Ingress>) {
        let key = ObjectKey::of(&**change.object());
        let again = match change {
            Change::Applied { old, new } if is_served(new) => {
                let same = old.is_some_and(|old| {
                    old.metadata.generation == new.metadata.generation && old.annotations() == new.annotations()
                });
                if same { Default::default() } else { self.world.lock().apply(new) }
            }
            // It is served until it is gone.
            Change::Applied { new, .. } if is_ours(new) => Default::default(),
            Change::Applied { .. } | Change::Deleted(_) => self.world.lock().remove(&key),
        };
        self.queue.add(key);
        self.translate_again(again);
    }

    fn service(&self, service: &ObjectKey) {
        let again = self.world.lock().refresh(service);
        self.translate_again(again);
    }

    fn translate_again(&self, mut keys: std::collections::BTreeSet<ObjectKey>) {
        while let Some(key) = keys.pop_first() {
            if let Some(ingress) = self.ingresses.get_key(&key).filter(|ingress| is_served(ingress)) {
                keys.extend(self.world.lock().apply(&ingress));
            }
            self.queue.add(key);
        }
    }
}

impl Objects for Caches {
    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>> {
        self.services.get_key(key)
    }

    fn slices(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        self.slices.by_index(BY_SERVICE, &service.to_string())
    }
}

fn is_served(ingress: &Ingress) -> bool {
    is_ours(ingress) && ingress.metadata.deletion_timestamp.is_none()
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.labels().get(SERVICE_NAME)?;
    Some(ObjectKey::new(slice.namespace().unwrap_or_default(), name.clone()))
}

/// Only what [`crate::backend`] reads is kept in memory.
fn strip_service(service: &mut Service) {
    service.metadata.annotations = None;
    service.metadata.labels = None;
    service.metadata.owner_references = None;
    service.status = None;
}

fn strip_slice(slice: &mut EndpointSlice) {
    slice.metadata.annotations = None;
    slice.metadata.owner_references = None;
    if let Some(labels) = &mut slice.metadata.labels {
        labels.retain(|name, _| name == SERVICE_NAME);
    }
    for endpoint in &mut slice.endpoints {
        endpoint.target_ref = None;
        endpoint.node_name = None;
        endpoint.hints = None;
    }
}
