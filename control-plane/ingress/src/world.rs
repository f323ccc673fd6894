//! Which Ingress contributes which resources, and who uses which Service: the state that makes the work for an event
//! proportional to what the event changes.
//!
//! Every method publishes what follows from its event, in one revision. Objects are looked up through [`Objects`], so
//! the whole of it runs in tests without an API.

mod certificates;
mod configure;
mod hosts;
mod install;
mod listeners;
mod scopes;
mod small;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use api::networking::v1alpha1::Ingress;
use controller::ObjectKey;
use k8s_openapi::api::{
    core::v1::{Secret, Service},
    discovery::v1::EndpointSlice,
};
use xds::{Change, Kind, Name, Resource, Version, Xds};

pub(crate) use self::configure::ROUTING_CERTIFICATES;
pub use self::status::{Pending, State};
use self::{
    certificates::Certificates,
    configure::Trust,
    install::{Live, publish_backend},
    listeners::Listeners,
    small::Set,
};
use crate::{
    backend::{self, Backend, Reference},
    certificate::{self, Pair},
    envoy,
    fleets::Part,
    model::{Location, Table},
    options::{Options, Settings},
    translate::{self, Context, ServerNames, Translation},
};

/// Where objects other than Ingresses are looked up.
pub trait Objects: Send + Sync {
    fn service(&self, key: &ObjectKey) -> Option<Arc<Service>>;
    fn slices(&self, service: &ObjectKey) -> Vec<Arc<EndpointSlice>>;

    fn secret(&self, _key: &ObjectKey) -> Option<Arc<Secret>> {
        None
    }

    /// PEM texts of ConfigMaps with certificates to trust, by where they come from.
    fn trust_bundles(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

pub struct World<O> {
    objects: O,
    xds: Xds,
    options: Options,
    /// As asked for, and what of it can be used: a certificate may be missing.
    settings: Settings,
    usable: Settings,
    context: Context,
    trust: Trust,
    listeners: Listeners,
    certificates: Certificates,
    one_certificates: BTreeMap<ObjectKey, Pair>,
    ingresses: HashMap<Key, Box<Entry>>,
    /// The owner of each host.
    domains: HashMap<Name, Key>,
    clusters: HashMap<Name, Box<Use>>,
    /// The clusters of a Service, and the Ingresses that wait for it or name it.
    services: HashMap<Key, Interest>,
    /// Resources of which a gateway refused the newest version, with its message.
    refused: BTreeMap<(Kind, Name), String>,
    /// Those with a host that is a pattern. While there are any, nobody gets routes by scope.
    wild: BTreeSet<ObjectKey>,
    /// Those that wait for a host of another, by host.
    blocked: HashMap<String, BTreeSet<ObjectKey>>,
    /// Listeners are made later, for many Ingresses at once.
    postponed: Option<Postponed>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Postponed {
    Nothing,
    Listeners,
}

/// The same object is in many places: it is in memory once.
type Key = Arc<ObjectKey>;

/// One Ingress.
#[derive(Debug, Default)]
struct Entry {
    generation: i64,
    /// What is published for it.
    live: Live,
    state: State,
    /// Refused resources, with the gateway's message.
    refused: BTreeMap<(Kind, Name), String>,
    /// Services it names.
    services: Set<Key>,
    /// Secrets it names.
    secrets: BTreeSet<ObjectKey>,
}

type Pairs = BTreeMap<ObjectKey, (Pair, ServerNames)>;

/// A published cluster.
#[derive(Debug)]
struct Use {
    reference: Reference,
    backend: Backend,
    /// Whether backends spoke TLS when this was looked up; `None` if it must be looked up again.
    secured: Option<bool>,
    users: Set<Key>,
}

#[derive(Debug, Default)]
struct Interest {
    clusters: Set<Name>,
    ingresses: Set<Key>,
}

// === impl World ===

impl<O: Objects> World<O> {
    /// Publishes what exists without any Ingress: listeners, tables and the status host.
    pub fn new(objects: O, xds: Xds, options: &Options) -> Self {
        let mut change = Change::default();
        for table in Table::ALL {
            let version = Version::of(&table);
            change.set.push(Resource::new(Kind::Route, table.name(), version, &envoy::table(table)));
        }
        xds.publish(change);
        let mut world = World {
            objects,
            xds,
            options: options.clone(),
            settings: options.settings.clone(),
            usable: options.settings.clone(),
            context: Context::default(),
            trust: Trust::default(),
            listeners: Listeners::default(),
            certificates: Certificates::new(options.certificates_on_demand),
            one_certificates: BTreeMap::new(),
            ingresses: HashMap::new(),
            domains: HashMap::new(),
            clusters: HashMap::new(),
            services: HashMap::new(),
            refused: BTreeMap::new(),
            wild: BTreeSet::new(),
            blocked: HashMap::new(),
            postponed: None,
        };
        world.reconfigure();
        world
    }

    /// Many changes at once, as at the start: listeners, which have a part for every certificate, are made once, after
    /// all the rest.
    pub fn together<T>(&mut self, changes: impl FnOnce(&mut Self) -> T) -> T {
        self.postponed = Some(Postponed::Nothing);
        let result = changes(self);
        if self.postponed.take() == Some(Postponed::Listeners) {
            let mut change = Change::default();
            self.update_listeners(&mut change);
            self.xds.publish(change);
        }
        result
    }

    fn update_listeners(&mut self, change: &mut Change) {
        if let Some(postponed) = &mut self.postponed {
            *postponed = Postponed::Listeners;
            return;
        }
        self.listeners.update(&self.options, &self.usable, &self.certificates, self.wild.is_empty(), change);
    }

    /// An Ingress appeared or changed. Returns others that may go on because of it.
    pub fn apply(&mut self, ingress: &Ingress) -> BTreeSet<ObjectKey> {
        self.apply_part(ingress, Part::All)
    }

    /// The same for some of its rules. All its hosts count as its own all the same.
    pub fn apply_part(&mut self, ingress: &Ingress, part: Part) -> BTreeSet<ObjectKey> {
        let context = Context { part, ..self.context };
        let key = ObjectKey::of(ingress);
        let generation = ingress.metadata.generation.unwrap_or_default();
        let mut resolved: HashMap<Reference, Backend> = HashMap::new();
        let translation = {
            let cache = std::cell::RefCell::new(&mut resolved);
            translate::translate(ingress, context, |reference| {
                let mut cache = cache.borrow_mut();
                let backend = cache
                    .entry(reference.clone())
                    .or_insert_with(|| self.known(reference).unwrap_or_else(|| self.resolve(reference)));
                backend.cluster.name.clone()
            })
        };
        let key = self.key(&key);
        let entry = self.entry(&key);
        entry.generation = generation;
        let mut translation = match translation {
            Ok(translation) => translation,
            Err(message) => {
                entry.state = State::Invalid(message);
                return BTreeSet::new();
            }
        };
        self.watch_services(&key, &translation);
        let pairs = match self.pairs(&key, &translation) {
            Ok(pairs) => pairs,
            Err(message) => {
                self.entry(&key).state = State::Invalid(message);
                return BTreeSet::new();
            }
        };
        let taken = translation.domains.iter().find_map(|domain| {
            let owner = self.domains.get(domain.as_str())?;
            (*owner != key).then(|| (domain.clone(), ObjectKey::clone(owner)))
        });
        if let Some((domain, owner)) = taken {
            tracing::info!(ingress = %key, %domain, %owner, "the host belongs to another Ingress");
            self.blocked.entry(domain).or_default().insert(ObjectKey::clone(&key));
            self.entry(&key).state = State::Conflict { owner };
            return BTreeSet::new();
        }
        let unready: BTreeSet<ObjectKey> = translation
            .backends
            .iter()
            .filter(|(reference, used)| **used && !resolved[*reference].ready)
            .map(|(reference, _)| service_key(reference))
            .collect();
        let kept = self.entry(&key).keep_what_works(&mut translation, &resolved, &unready);
        let freed = self.install(&key, translation, resolved, pairs, unready, &kept);
        self.unblocked(&freed)
    }

    /// An Ingress is gone, or is another controller's now. Returns others that may go on because of it.
    pub fn remove(&mut self, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        if !self.ingresses.contains_key(key) {
            return BTreeSet::new();
        }
        let key = self.key(key);
        let nothing = Translation::default();
        let freed = self.install(&key, nothing, HashMap::new(), Pairs::new(), BTreeSet::new(), &BTreeSet::new());
        self.watch_services(&key, &Translation::default());
        let secrets = std::mem::take(&mut self.entry(&key).secrets);
        self.certificates.watch(&key, &secrets, &BTreeSet::new());
        if let Some(State::Conflict { .. }) = self.ingresses.remove(&key).map(|entry| entry.state) {
            self.blocked.retain(|_, waiting| {
                waiting.remove(&*key);
                !waiting.is_empty()
            });
        }
        self.unblocked(&freed)
    }

    /// A Service or one of its EndpointSlices changed. Returns the Ingresses that must be translated again; when only
    /// addresses changed there are none.
    pub fn refresh(&mut self, service: &ObjectKey) -> BTreeSet<ObjectKey> {
        let Some(interest) = self.services.get(service) else { return BTreeSet::new() };
        let mut again = BTreeSet::new();
        let mut change = Change::default();
        for name in interest.clusters.iter() {
            let used = &self.clusters[name];
            let backend = self.resolve(&used.reference);
            if *backend.cluster.name != **name {
                // The Service's ports changed so that the cluster is another one now.
                again.extend(used.users.iter().map(|user| ObjectKey::clone(user)));
                self.clusters.get_mut(name).expect("just read").secured = None;
                continue;
            }
            if backend.ready != used.backend.ready {
                again.extend(self.awaiting(&used.users, service));
            }
            if backend != used.backend {
                publish_backend(&mut change, name, &backend, Some(&used.backend));
                self.clusters.get_mut(name).expect("just read").backend = backend;
            }
        }
        again.extend(self.awaiting(&interest.ingresses, service));
        if !change.set.is_empty() || !change.remove.is_empty() {
            self.xds.publish(change);
        }
        again
    }

    fn awaiting(&self, users: &Set<Key>, service: &ObjectKey) -> impl Iterator<Item = ObjectKey> {
        let waiting = users.iter().filter(|user| self.ingresses[&***user].state.awaits(service));
        waiting.map(|user| ObjectKey::clone(user))
    }

    /// A backend that is in use: every event about it has been heard.
    fn known(&self, reference: &Reference) -> Option<Backend> {
        let interest = self.services.get(&service_key(reference))?;
        let mut used = interest.clusters.iter().filter_map(|name| self.clusters.get(name));
        let secured = Some(self.trust == Trust::On);
        let used = used.find(|used| used.reference == *reference && used.secured == secured)?;
        Some(used.backend.clone())
    }

    fn resolve(&self, reference: &Reference) -> Backend {
        let key = service_key(reference);
        let service = self.objects.service(&key);
        let slices = self.objects.slices(&key);
        let mut backend = backend::resolve(reference, service.as_deref(), &slices, self.trust == Trust::On);
        if let (Some(itself), Location::Dns { host, port }) = (self.options.itself, &mut backend.cluster.location)
            && self.options.is_internal_name(host)
        {
            (*host, *port) = (itself.ip().to_string(), itself.port());
        }
        backend
    }

    /// The certificates that a translation needs, and from now on news about them.
    fn pairs(&mut self, key: &Key, translation: &Translation) -> Result<Pairs, String> {
        if let Trust::Nobody(message) = &self.trust {
            return Err(message.clone());
        }
        let new: BTreeSet<ObjectKey> = translation.certificates.keys().cloned().collect();
        let old = std::mem::replace(&mut self.entry(key).secrets, new.clone());
        self.certificates.watch(key, &old, &new);
        let mut pairs = Pairs::new();
        for (secret, names) in &translation.certificates {
            let failed = "failed to translate ingress: failed to translate ingressTLS:";
            let found = self.objects.secret(secret).ok_or_else(|| {
                format!("{failed} failed to fetch secret: secret {:?} not found in {}", secret.name, secret.namespace)
            })?;
            let pair = certificate::pair(&found)
                .map_err(|error| format!("{failed} invalid secret is specified: {secret}: {error}"))?;
            pairs.insert(secret.clone(), (pair, names.clone()));
        }
        Ok(pairs)
    }

    fn key(&self, key: &ObjectKey) -> Key {
        self.ingresses.get_key_value(key).map_or_else(|| Arc::new(key.clone()), |(key, _)| key.clone())
    }

    fn entry(&mut self, key: &Key) -> &mut Entry {
        self.ingresses.entry(key.clone()).or_default()
    }

    fn watch_services(&mut self, key: &Key, translation: &Translation) {
        let new: BTreeSet<ObjectKey> = translation.backends.keys().map(service_key).collect();
        let old = std::mem::take(&mut self.entry(key).services);
        let mut services = Vec::with_capacity(new.len());
        for service in new {
            let known = self.services.get_key_value(&service).map(|(service, _)| service.clone());
            let service = known.unwrap_or_else(|| Arc::new(service));
            self.services.entry(service.clone()).or_default().ingresses.insert(key.clone());
            services.push(service);
        }
        let new: Set<Key> = services.into_iter().collect();
        for service in old.iter().filter(|service| !new.contains(*service)) {
            if let Some(interest) = self.services.get_mut(service) {
                interest.ingresses.remove(key);
                if interest.is_empty() {
                    self.services.remove(service);
                }
            }
        }
        self.entry(key).services = new;
    }

    /// Ingresses that were refused because of a host that is free now.
    fn unblocked(&mut self, freed: &[Name]) -> BTreeSet<ObjectKey> {
        let waiting: BTreeSet<ObjectKey> =
            freed.iter().filter_map(|host| self.blocked.remove(&**host)).flatten().collect();
        let blocked = |key: &ObjectKey| {
            self.ingresses.get(key).is_some_and(|entry| matches!(entry.state, State::Conflict { .. }))
        };
        waiting.into_iter().filter(blocked).collect()
    }
}

impl Interest {
    fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.ingresses.is_empty()
    }
}

fn service_key(reference: &Reference) -> ObjectKey {
    ObjectKey::new(reference.namespace.clone(), reference.name.clone())
}

fn host_name(table: Table, host: &str) -> Name {
    format!("{}/{host}", table.name()).into()
}
