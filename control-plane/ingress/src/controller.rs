//! The role around the [`World`]: events in, status out, and the xDS server.
//!
//! Translation happens in the event handlers, so every replica serves the same configuration without waiting for API
//! writes; the reconcile loop only adds the finalizer and writes the status. An Ingress is Ready when every connected
//! gateway has acknowledged its resources; gateways that are connected to another replica are probed.
//!
//! Every fleet of gateways has a [`World`] of its own, with what it carries; see [`crate::fleets`].

mod caches;
mod reconcile;
mod view;
mod written;

use futures::future::BoxFuture;
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use api::{
    config::{self, Network},
    networking::v1alpha1::Ingress,
};
use controller::{Cache, Change, Config, Context, Leadership, ObjectKey, Queue, Recorder, Replica};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use parking_lot::Mutex;
use xds::{Event, Kind, Server, Xds};

use self::{
    caches::{Caches, is_trust_bundle, service_of},
    reconcile::Reconciler,
    view::{View, Views},
    written::Written,
};
use crate::{
    options::{Options, Settings},
    settings::Values,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Xds(#[from] xds::Error),
    #[error("Timed out waiting for configuration in ConfigMaps: {0}")]
    Config(controller::Error),
}

/// The running role. It stops with the task group it was started in.
#[derive(Clone)]
pub struct Handle {
    /// Where gateways connect.
    pub xds_address: SocketAddr,
    /// What gateways have in force: those that no fleet of [`Options::fleets`] names.
    pub xds: Xds,
    views: Views,
}

/// How a fleet of gateways is.
#[derive(Debug, Clone, Copy)]
pub struct FleetFigures<'a> {
    pub name: &'a str,
    /// Connected to this replica.
    pub gateways: u64,
    pub ingresses: u64,
    /// Resources of which a gateway refused the newest version.
    pub refused: u64,
}

// === impl Handle ===

impl Handle {
    pub fn fleets(&self) -> impl Iterator<Item = FleetFigures<'_>> {
        self.views.iter().map(|view| view.figures())
    }
}

/// Reason of the event about something that a gateway does not take.
const REFUSED: &str = "GatewayRefused";
/// Upstream's name of this process.
const COMPONENT: &str = "net-kourier-controller";

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
    let ingresses = Cache::<Ingress>::builder().transform(caches::strip_ingress).packed().start(&ctx);
    let caches = Caches::start(&ctx, &options, config_maps.clone());
    let settings = kourier.load().over(&options, &network.load());
    caches.follow(&ctx, &options, &settings);
    tokio::join!(ingresses.synced(), caches.synced());

    let (views, events) = Views::new(&caches, &options, &settings);
    let queue = Queue::new();
    let recorder = Recorder::new(&ctx, <Reconciler as controller::Reconcile>::NAME);
    let written = Written::default();
    let role = Role {
        views: views.clone(),
        written: written.clone(),
        ingresses: ingresses.clone(),
        queue: queue.clone(),
        caches: caches.clone(),
        settings: config_maps.get(&ctx.system_namespace, config::names::KOURIER),
        recorder: recorder.clone(),
    };
    let primed = Mutex::new(role.prime());
    let handler = role.clone();
    ingresses.on_event(move |change| {
        // What was translated a moment ago is shown once more.
        let mut primed = primed.lock();
        let seen = primed.remove(&ObjectKey::of(&**change.object()));
        if primed.is_empty() {
            primed.shrink_to_fit();
        }
        drop(primed);
        handler.ingress(change, seen.is_some() && seen == change.object().resource_version());
    });
    let handler = role.clone();
    caches.services.on_event(move |change| handler.service(&ObjectKey::of(&**change.object())));
    let handler = role.clone();
    caches.slices.on_event(move |change| {
        if let Some(service) = service_of(change.object()) {
            handler.service(&service);
        }
    });
    let handler = role.clone();
    caches.on_secret(move |secret| handler.secret(secret));
    let handler = role.clone();
    config_maps.on_event(move |change| handler.trust(change));
    let configure = {
        let (handler, kourier, network) = (role.clone(), kourier.clone(), network.clone());
        let (ctx, options) = (ctx.clone(), options.clone());
        move || {
            let settings = kourier.load().over(&options, &network.load());
            handler.caches.follow(&ctx, &options, &settings);
            handler.configure(&settings);
        }
    };
    kourier.on_change(configure.clone());
    network.on_change(configure);

    let leadership = leadership(&ctx, options.replica.clone()).await;
    let handler = role.clone();
    leadership.on_promotion(&ctx, move || controller::reconcile::resync(&handler.ingresses, &handler.queue));

    let server = Server::bind(options.xds_listen).await?;
    let xds_address = server.address();
    tracing::info!(address = %xds_address, "serving gateways");
    let (serving, token) = (views.clone(), ctx.tasks.token().clone());
    ctx.tasks.spawn("xds", async move {
        if let Err(error) = server.run(serving, token.cancelled()).await {
            tracing::error!(%error, "gateways keep their configuration but get no changes");
        }
    });
    for (view, mut events) in views.iter().cloned().zip(events) {
        let (noting, noted, leading) = (role.clone(), view.clone(), leadership.clone());
        ctx.tasks.spawn("refusals", async move {
            while let Some(event) = events.recv().await {
                noting.refusal(&noted, &event, &leading);
            }
        });
        if let Some(prober) = view.prober.clone() {
            let queue = queue.clone();
            ctx.tasks.spawn("prober", prober.run(move |key| queue.add(key)));
        }
        let queue = queue.clone();
        ctx.tasks.spawn("acknowledged", async move { view.wake(&queue).await });
    }
    let xds = views.rest().xds.clone();
    let reconciler = Arc::new(Reconciler::new(views.clone(), leadership, written, &ctx));
    controller::drive(&ctx, &ingresses, &queue, reconciler, &recorder, options.workers);
    Ok(Handle { xds_address, xds, views })
}

/// What the event handlers share.
#[derive(Clone)]
struct Role {
    views: Views,
    ingresses: Cache<Ingress>,
    queue: Queue,
    caches: Caches,
    written: Written,
    /// Shows what goes wrong for all Ingresses together.
    settings: Option<Arc<ConfigMap>>,
    recorder: Recorder,
}

// === impl Role ===

impl Role {
    /// Translates what there is. Returns what was seen, in which version.
    fn prime(&self) -> HashMap<ObjectKey, String> {
        let mut seen = HashMap::new();
        let all = by_age(self.ingresses.collect(|ingress| {
            let age = self.is_served(&ingress).then(|| age(&ingress))?;
            seen.extend(ingress.resource_version().map(|version| (age.1.clone(), version)));
            Some(age)
        }));
        tracing::info!("Priming the config with {} ingresses", all.len());
        self.views.prime(&all, |key| self.ingresses.get_key(key));
        seen
    }

    fn is_served(&self, ingress: &Ingress) -> bool {
        self.views.fleets().serve(ingress) && ingress.metadata.deletion_timestamp.is_none()
    }

    fn ingress(&self, change: &Change<'_, Ingress>, seen: bool) {
        let key = ObjectKey::of(&**change.object());
        let again = match change {
            Change::Applied { .. } if seen => BTreeSet::new(),
            Change::Applied { old, new } if self.is_served(new) => match old.filter(|old| is_same(old, new)) {
                Some(old) if self.written.knows(old, new) => return,
                Some(_) => BTreeSet::new(),
                None => self.views.apply(new),
            },
            // It is served until it is gone.
            Change::Applied { new, .. } if self.views.fleets().serve(new) => Default::default(),
            Change::Applied { .. } | Change::Deleted(_) => self.views.remove(&key),
        };
        self.queue.add(key);
        self.translate_again(again);
    }

    fn service(&self, service: &ObjectKey) {
        let again = self.views.each(|view| view.world.lock().refresh(service));
        self.translate_again(again);
        for view in self.views.iter().filter(|view| view.gateways_are_behind(service)) {
            view.wake_all(&self.queue);
        }
    }

    fn secret(&self, secret: &ObjectKey) {
        let again = self.views.each(|view| view.world.lock().secret(secret));
        self.translate_again(again);
    }

    fn trust(&self, change: &Change<'_, ConfigMap>) {
        let old = match change {
            Change::Applied { old, .. } => old.is_some_and(|old| is_trust_bundle(old)),
            Change::Deleted(_) => false,
        };
        if old || is_trust_bundle(change.object()) {
            let again = self.views.each(|view| view.world.lock().trust_bundles());
            self.translate_again(again);
        }
    }

    fn configure(&self, settings: &Settings) {
        tracing::info!("the configuration changed");
        let again = self.views.each(|view| view.world.lock().configure(settings.clone()));
        self.translate_again(again);
    }

    /// A refusal is shown in the status of the Ingresses that caused it. It is an event where this replica writes no
    /// statuses, and on the settings if it concerns what all Ingresses share.
    fn refusal(&self, view: &View, event: &Event, leadership: &Leadership) {
        tracing::warn!(fleet = view.name(), ?event, "a gateway answered");
        let owners = view.world.lock().note(event);
        if let Event::Rejected { kind, name, node, message, .. } = event {
            let text = format!("gateway {node} refused the {kind} {name} and keeps the last good one: {message}");
            let shared = owners.is_empty() || *kind == Kind::Listener;
            let elsewhere = owners.iter().filter(|owner| !shared && !leadership.leads(owner));
            for ingress in elsewhere.filter_map(|owner| self.ingresses.get_key(owner)) {
                self.recorder.warning(&*ingress, REFUSED, &text);
            }
            if let (Some(settings), true) = (&self.settings, shared) {
                self.recorder.warning(&**settings, REFUSED, &text);
            }
        }
        owners.into_iter().for_each(|owner| self.queue.add(owner));
    }

    fn translate_again(&self, mut keys: BTreeSet<ObjectKey>) {
        while !keys.is_empty() {
            let present = keys.iter().filter_map(|key| self.ingresses.get_key(key));
            let again =
                by_age(present.filter(|ingress| self.is_served(ingress)).map(|ingress| age(&ingress)).collect());
            let again = again.iter().filter_map(|key| self.ingresses.get_key(key));
            let next = again.flat_map(|ingress| self.views.apply(&ingress)).collect();
            std::mem::replace(&mut keys, next).into_iter().for_each(|key| self.queue.add(key));
        }
    }
}

/// Whether gateways are told the same about both.
fn is_same(old: &Ingress, new: &Ingress) -> bool {
    old.metadata.generation == new.metadata.generation
        && old.annotations() == new.annotations()
        && old.labels() == new.labels()
}

/// Older Ingresses first: they get the hosts that several claim, on every replica and after every start.
fn by_age(mut ingresses: Vec<Age>) -> Vec<ObjectKey> {
    ingresses.sort();
    ingresses.into_iter().map(|(_, key)| key).collect()
}

type Age = (Option<Time>, ObjectKey);

fn age(ingress: &Ingress) -> Age {
    (ingress.creation_timestamp(), ObjectKey::of(ingress))
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

async fn leadership(ctx: &Context, replica: Option<String>) -> Leadership {
    let Some(identity) = replica else { return Leadership::alone() };
    controller::elect(ctx, &Replica::new(ctx, COMPONENT, identity).await, reconcile::QUEUE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_comes_first() {
        let created = |name: &str, created: &str| {
            let metadata = serde_json::json!({"name": name, "namespace": "default", "creationTimestamp": created});
            let kind = serde_json::json!({"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
                "metadata": metadata, "spec": {}});
            age(&serde_json::from_value(kind).unwrap())
        };
        let all = vec![
            created("a", "2026-11-20T10:00:02Z"),
            created("c", "2026-11-20T10:00:01Z"),
            created("b", "2026-11-20T10:00:01Z"),
        ];
        let names: Vec<String> = by_age(all).into_iter().map(|key| key.name).collect();
        assert_eq!(names, ["b", "c", "a"]);
    }
}
