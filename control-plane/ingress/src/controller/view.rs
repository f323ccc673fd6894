//! A fleet of gateways at work: what it is told, what it has acknowledged, and who waits for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use api::networking::v1alpha1::{Ingress, LoadBalancerIngress};
use controller::{ObjectKey, Queue};
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use xds::{Event, Node, Xds};

use super::{
    FleetFigures,
    caches::{BY_SERVICE, Caches},
};
use crate::{
    fleets::{Fleet, Fleets, Part, Visibility},
    options::{Options, Settings},
    probe::{Ports, Prober},
    world::World,
};

/// Every fleet, in the order of [`Fleets`]. Cheap to clone.
#[derive(Clone)]
pub(super) struct Views(Arc<Shared>);

struct Shared {
    fleets: Fleets,
    views: Vec<Arc<View>>,
}

pub(super) struct View {
    fleet: Fleet,
    pub(super) world: Mutex<World<Caches>>,
    pub(super) xds: Xds,
    waiting: Waiting,
    caches: Caches,
    /// The Service whose endpoints are the gateways.
    internal: ObjectKey,
    external: ObjectKey,
    pub(super) ports: Ports,
    pub(super) prober: Option<Prober>,
}

/// Ingresses whose status waits for gateways, by revision.
#[derive(Default)]
struct Waiting(Mutex<BTreeMap<u64, BTreeSet<ObjectKey>>>);

// === impl Views ===

impl Views {
    pub(super) fn new(
        caches: &Caches,
        options: &Options,
        settings: &Settings,
    ) -> (Self, Vec<UnboundedReceiver<Event>>) {
        let fleets = options.fleets.clone();
        let (views, events) = fleets
            .iter()
            .map(|fleet| {
                let (view, events) = View::new(fleet.clone(), caches, options, settings);
                (Arc::new(view), events)
            })
            .unzip();
        (Views(Arc::new(Shared { fleets, views })), events)
    }

    pub(super) fn fleets(&self) -> &Fleets {
        &self.0.fleets
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<View>> {
        self.0.views.iter()
    }

    /// Of the gateways that no fleet names.
    pub(super) fn rest(&self) -> &View {
        &self.0.views[self.0.fleets.of_node(&Node::default())]
    }

    pub(super) fn each(&self, action: impl Fn(&View) -> BTreeSet<ObjectKey>) -> BTreeSet<ObjectKey> {
        self.iter().flat_map(|view| action(view)).collect()
    }

    /// The fleets that carry an Ingress, and what of it.
    pub(super) fn carrying(&self, ingress: &Ingress) -> Vec<(&View, Part)> {
        let parts = self.0.fleets.parts(ingress);
        self.iter().zip(parts).filter_map(|(view, part)| Some((&**view, part?))).collect()
    }

    /// What there is at the start.
    pub(super) fn prime(&self, keys: &[ObjectKey], ingress: impl Fn(&ObjectKey) -> Option<Arc<Ingress>>) {
        for (fleet, view) in self.iter().enumerate() {
            view.world.lock().together(|world| {
                for ingress in keys.iter().filter_map(&ingress) {
                    if let Some(part) = self.0.fleets.parts(&ingress)[fleet] {
                        // Whoever would go on because of it comes later anyway.
                        drop(world.apply_part(&ingress, part));
                    }
                }
            });
        }
    }

    pub(super) fn apply(&self, ingress: &Ingress) -> BTreeSet<ObjectKey> {
        let parts = self.0.fleets.parts(ingress);
        let key = ObjectKey::of(ingress);
        let mut again = BTreeSet::new();
        for (view, part) in self.iter().zip(parts) {
            let mut world = view.world.lock();
            again.extend(match part {
                Some(part) => world.apply_part(ingress, part),
                None => world.remove(&key),
            });
        }
        again
    }

    pub(super) fn remove(&self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        self.each(|view| view.world.lock().remove(key))
    }
}

impl xds::Views for Views {
    fn view(&self, node: &Node) -> Xds {
        self.0.views[self.0.fleets.of_node(node)].xds.clone()
    }
}

// === impl View ===

impl View {
    fn new(fleet: Fleet, caches: &Caches, options: &Options, settings: &Settings) -> (Self, UnboundedReceiver<Event>) {
        let mut options = options.clone();
        let port = |addresses: &[std::net::SocketAddr]| addresses.first().map_or(0, std::net::SocketAddr::port);
        let ports = Ports {
            external: port(&options.probe_listen),
            external_tls: port(&options.probe_tls_listen),
            local: port(&options.internal_listen),
            local_tls: port(&options.internal_tls_listen),
        };
        match fleet.visibility {
            None => {}
            // Kubernetes asks the cluster-local listener whether the gateway is ready.
            Some(Visibility::External) => options.internal_tls_listen.clear(),
            Some(Visibility::Local) => {
                options.external_listen.clear();
                options.external_tls_listen.clear();
                options.probe_listen.clear();
                options.probe_tls_listen.clear();
            }
        }
        let namespace = fleet.service_namespace.as_ref().unwrap_or(&options.gateway_namespace);
        let service = |own: &Option<String>, usual: &str| {
            ObjectKey::new(namespace.clone(), own.clone().unwrap_or_else(|| usual.to_owned()))
        };
        let internal = service(&fleet.internal_service, &options.internal_service);
        let external = service(&fleet.external_service, &options.external_service);
        let (xds, events) = Xds::new();
        let mut world = World::new(caches.clone(), xds.clone(), &options);
        // Nothing is there yet that could need another translation.
        drop(world.configure(settings.clone()));
        let (world, waiting, caches) = (Mutex::new(world), Waiting::default(), caches.clone());
        let prober = options.probe.map(Prober::new);
        (View { fleet, world, xds, waiting, caches, internal, external, ports, prober }, events)
    }

    pub(super) fn name(&self) -> &str {
        &self.fleet.name
    }

    pub(super) fn figures(&self) -> FleetFigures<'_> {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let (ingresses, refused) = self.world.lock().figures();
        let gateways = self.xds.settled().borrow().gateways;
        FleetFigures {
            name: self.name(),
            gateways: count(gateways),
            ingresses: count(ingresses),
            refused: count(refused),
        }
    }

    pub(super) fn public_address(&self, cluster_domain: &str) -> LoadBalancerIngress {
        address(&self.external, cluster_domain)
    }

    pub(super) fn private_address(&self, cluster_domain: &str) -> LoadBalancerIngress {
        address(&self.internal, cluster_domain)
    }

    pub(super) fn gateways_are_behind(&self, service: &ObjectKey) -> bool {
        self.internal == *service
    }

    /// The addresses of all ready gateways, whichever replica they are connected to.
    pub(super) fn gateways(&self) -> BTreeSet<IpAddr> {
        let slices = self.caches.slices.by_index(BY_SERVICE, &self.internal.to_string());
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        endpoints
            .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false))
            .flat_map(|endpoint| &endpoint.addresses)
            .filter_map(|address| address.parse().ok())
            .collect()
    }

    /// Those that are not connected here.
    pub(super) fn unseen(&self) -> BTreeSet<IpAddr> {
        let mut gateways = self.gateways();
        if !gateways.is_empty() {
            let connected = self.xds.peers();
            gateways.retain(|gateway| !connected.contains(&gateway.to_canonical()));
        }
        gateways
    }

    /// Looks at the Ingress again when the gateways have this revision, or when they are others; with the highest
    /// revision only then.
    pub(super) fn wait(&self, revision: u64, key: ObjectKey) {
        self.waiting.0.lock().entry(revision).or_default().insert(key);
    }

    pub(super) fn wake_all(&self, queue: &Queue) {
        self.waiting.up_to(u64::MAX).into_iter().for_each(|key| queue.add(key));
    }

    /// Puts those into the queue whose wait is over.
    pub(super) async fn wake(&self, queue: &Queue) {
        let mut settled = self.xds.settled();
        let mut gateways = 0;
        while settled.changed().await.is_ok() {
            let now = *settled.borrow_and_update();
            // One that left is connected to another replica now, maybe: it is time to ask it there.
            let moved = std::mem::replace(&mut gateways, now.gateways) != now.gateways;
            let due = self.waiting.up_to(if moved { u64::MAX } else { now.revision });
            due.into_iter().for_each(|key| queue.add(key));
        }
    }
}

fn address(service: &ObjectKey, cluster_domain: &str) -> LoadBalancerIngress {
    let domain_internal = format!("{}.{}.svc.{cluster_domain}", service.name, service.namespace);
    LoadBalancerIngress { domain_internal, ..Default::default() }
}

// === impl Waiting ===

impl Waiting {
    fn up_to(&self, revision: u64) -> BTreeSet<ObjectKey> {
        let mut waiting = self.0.lock();
        let later = match revision.checked_add(1) {
            Some(next) => waiting.split_off(&next),
            None => BTreeMap::new(),
        };
        std::mem::replace(&mut *waiting, later).into_values().flatten().collect()
    }
}
