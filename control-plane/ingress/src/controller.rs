//! The role around the [`World`]: events in, status out, and the xDS server.
//!
//! Translation happens in the event handlers, so every replica serves the same configuration without waiting for API
//! writes; the reconcile loop only adds the finalizer and writes the status. An Ingress is Ready when every connected
//! gateway has acknowledged its resources, which replaces upstream's probing over the network.

mod reconcile;

use futures::future::BoxFuture;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use api::{
    config::{self, LeaderElection, Network},
    networking::v1alpha1::Ingress,
};
use controller::{Cache, Change, Config, Context, Election, Leadership, ObjectKey, Queue, Recorder};
use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::ResourceExt;
use parking_lot::Mutex;
use xds::{Server, Xds};

use self::reconcile::{Reconciler, Waiting};
use crate::{
    options::{Options, Settings},
    settings::Values,
    world::{Objects, World, is_ours},
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Xds(#[from] xds::Error),
    #[error("Timed out waiting for configuration in ConfigMaps: {0}")]
    Config(controller::Error),
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
    secrets: Cache<Secret>,
    config_maps: Cache<ConfigMap>,
}

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const BY_SERVICE: &str = "service";
const TRUST_BUNDLE: &str = "networking.knative.dev/trust-bundle";
const CERTIFICATE_UID: &str = "networking.internal.knative.dev/certificate-uid";
const LEASE: &str = "net-kourier-controller.knative.dev.net-kourier.pkg.reconciler.ingress.reconciler";

/// Starts the role: waits for the caches, translates what there is, and only then opens the xDS port, so that a gateway
/// never gets less than it had.
///
/// Boxed, so that the code behind it is compiled with this crate and not again in every program that starts it.
pub fn run(ctx: Context, options: Options) -> BoxFuture<'static, Result<Handle, Error>> {
    Box::pin(start_all(ctx, options))
}

async fn start_all(ctx: Context, options: Options) -> Result<Handle, Error> {
    let mut options = options;
    options.system_namespace.clone_from(&ctx.system_namespace);
    let kourier = follow(&ctx, config::names::KOURIER, Values::parse, options.config_wait).await?;
    let network = follow(&ctx, config::names::NETWORK, Network::parse, options.config_wait).await?;
    let config_maps = ctx.config_maps().await;
    let (xds, mut events) = Xds::new(options.host_discovery);
    let ingresses = Cache::<Ingress>::builder().start(&ctx);
    let services = Cache::<Service>::builder().transform(strip_service).start(&ctx);
    let slices = Cache::<EndpointSlice>::builder()
        .label_selector(SERVICE_NAME)
        .index(BY_SERVICE, |slice| service_of(slice).map(|key| key.to_string()).into_iter().collect())
        .transform(strip_slice)
        .start(&ctx);
    let secrets = Cache::<Secret>::builder().transform(strip_secret);
    let secrets = if options.labelled_secrets { secrets.label_selector(CERTIFICATE_UID) } else { secrets };
    let secrets = secrets.start(&ctx);
    tokio::join!(ingresses.synced(), services.synced(), slices.synced(), secrets.synced());

    let caches = Caches {
        services: services.clone(),
        slices: slices.clone(),
        secrets: secrets.clone(),
        config_maps: config_maps.clone(),
    };
    let mut world = World::new(caches, xds.clone(), &options);
    world.configure(kourier.load().over(&options, &network.load()));
    let world: Shared = Arc::new(Mutex::new(world));
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

    let handler = role.clone();
    secrets.on_event(move |change| handler.secret(&ObjectKey::of(&**change.object())));
    let handler = role.clone();
    config_maps.on_event(move |change| handler.trust(change));
    let configure = {
        let (handler, kourier, network) = (role.clone(), kourier.clone(), network.clone());
        let options = options.clone();
        move || handler.configure(kourier.load().over(&options, &network.load()))
    };
    kourier.on_change(configure.clone());
    network.on_change(configure);

    let leadership = leadership(&ctx, options.replica.as_deref()).await?;
    let handler = role.clone();
    leadership.on_promotion(&ctx, move || controller::reconcile::resync(&handler.ingresses, &handler.queue));

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
    let reconciler = Arc::new(Reconciler::new(role.world, xds.clone(), waiting, leadership, &ctx, &options));
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
                    old.metadata.generation == new.metadata.generation
                        && old.annotations() == new.annotations()
                        && old.labels() == new.labels()
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

    fn secret(&self, secret: &ObjectKey) {
        let again = self.world.lock().secret(secret);
        self.translate_again(again);
    }

    fn trust(&self, change: &Change<'_, ConfigMap>) {
        let old = match change {
            Change::Applied { old, .. } => old.is_some_and(|old| is_trust_bundle(old)),
            Change::Deleted(_) => false,
        };
        if old || is_trust_bundle(change.object()) {
            let again = self.world.lock().trust_bundles();
            self.translate_again(again);
        }
    }

    fn configure(&self, settings: Settings) {
        tracing::info!("the configuration changed");
        let again = self.world.lock().configure(settings);
        self.translate_again(again);
    }

    fn translate_again(&self, mut keys: BTreeSet<ObjectKey>) {
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

    fn secret(&self, key: &ObjectKey) -> Option<Arc<Secret>> {
        self.secrets.get_key(key)
    }

    fn trust_bundles(&self) -> BTreeMap<String, String> {
        let bundles = self.config_maps.list().into_iter().filter(|map| is_trust_bundle(map));
        let values = bundles.flat_map(|map| {
            let name = map.name_any();
            let data = map.data.clone().unwrap_or_default();
            data.into_iter().map(move |(key, value)| (format!("{name}/{key}"), value))
        });
        values.collect()
    }
}

fn is_trust_bundle(map: &ConfigMap) -> bool {
    map.labels().contains_key(TRUST_BUNDLE)
}

/// A ConfigMap that must exist and parse after `wait`; without `wait` its defaults hold until it does.
async fn follow<T: Default + Send + Sync + 'static>(
    ctx: &Context,
    name: &'static str,
    parse: controller::config::Parse<T>,
    wait: Option<Duration>,
) -> Result<Config<T>, Error> {
    let started = tokio::time::Instant::now();
    loop {
        match Config::watch(ctx, name, parse).await {
            Ok(config) => return Ok(config),
            Err(error) => match wait {
                None => {
                    tracing::info!(%error, "the defaults hold");
                    return Ok(Config::fixed(T::default()));
                }
                Some(wait) if started.elapsed() >= wait => return Err(Error::Config(error)),
                Some(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            },
        }
    }
}

async fn leadership(ctx: &Context, replica: Option<&str>) -> Result<Leadership, Error> {
    let Some(identity) = replica else { return Ok(Leadership::alone()) };
    let config = follow(ctx, config::names::LEADER_ELECTION, LeaderElection::parse, None).await?;
    let election = Election { name: LEASE.to_owned(), identity: identity.to_owned(), config: (*config.load()).clone() };
    Ok(controller::elect(ctx, &election))
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

/// Other Secrets are none of our business: only that they exist is kept.
fn strip_secret(secret: &mut Secret) {
    secret.metadata.annotations = None;
    secret.metadata.owner_references = None;
    if let Some(data) = &mut secret.data {
        data.retain(|name, _| matches!(name.as_str(), "tls.crt" | "tls.key" | "ca.crt"));
    }
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
