//! Which Ingress contributes which resources, and who uses which Service: the state that makes the work for an event
//! proportional to what the event changes.
//!
//! Every method publishes what follows from its event, in one revision. Objects are looked up through [`Objects`], so
//! the whole of it runs in tests without an API.

mod certificates;
mod configure;
mod listeners;
mod scopes;
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
use self::{certificates::Certificates, configure::Trust, listeners::Listeners, scopes::Scopes};
use crate::{
    backend::{self, Backend, Reference},
    certificate::{self, Pair},
    envoy,
    fleets::Part,
    model::{Location, Table, VirtualHost},
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
    ingresses: HashMap<ObjectKey, Entry>,
    /// The owner of each host.
    domains: HashMap<String, ObjectKey>,
    clusters: HashMap<String, Use>,
    /// The clusters of a Service, and the Ingresses that wait for it or name it.
    services: HashMap<ObjectKey, Interest>,
    /// Owner of each published host, for refusals.
    hosts: HashMap<Name, ObjectKey>,
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
    services: BTreeSet<ObjectKey>,
    /// Secrets it names.
    secrets: BTreeSet<ObjectKey>,
}

#[derive(Debug, Default)]
struct Live {
    hosts: BTreeMap<Name, Version>,
    clusters: BTreeSet<String>,
    domains: BTreeSet<String>,
    certificates: BTreeSet<ObjectKey>,
    scopes: Scopes,
}

type Pairs = BTreeMap<ObjectKey, (Pair, ServerNames)>;

/// A published cluster.
#[derive(Debug)]
struct Use {
    reference: Reference,
    backend: Backend,
    users: BTreeSet<ObjectKey>,
}

#[derive(Debug, Default)]
struct Interest {
    clusters: BTreeSet<String>,
    ingresses: BTreeSet<ObjectKey>,
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
            hosts: HashMap::new(),
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
                let backend = cache.entry(reference.clone()).or_insert_with(|| self.resolve(reference));
                backend.cluster.name.clone()
            })
        };
        let entry = self.ingresses.entry(key.clone()).or_default();
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
            let owner = self.domains.get(domain)?;
            (*owner != key).then(|| (domain.clone(), owner.clone()))
        });
        if let Some((domain, owner)) = taken {
            tracing::info!(ingress = %key, %domain, %owner, "the host belongs to another Ingress");
            self.blocked.entry(domain).or_default().insert(key.clone());
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
        let nothing = Translation::default();
        let freed = self.install(key, nothing, HashMap::new(), Pairs::new(), BTreeSet::new(), &BTreeSet::new());
        self.watch_services(key, &Translation::default());
        let secrets = std::mem::take(&mut self.entry(key).secrets);
        self.certificates.watch(key, &secrets, &BTreeSet::new());
        if let Some(Entry { state: State::Conflict { .. }, .. }) = self.ingresses.remove(key) {
            self.blocked.retain(|_, waiting| {
                waiting.remove(key);
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
        for name in &interest.clusters {
            let used = &self.clusters[name];
            let backend = self.resolve(&used.reference);
            if backend.cluster.name != *name {
                // The Service's ports changed so that the cluster is another one now.
                again.extend(used.users.iter().cloned());
                continue;
            }
            if backend.ready != used.backend.ready {
                again.extend(used.users.iter().filter(|user| self.ingresses[*user].state.awaits(service)).cloned());
            }
            if backend != used.backend {
                publish_backend(&mut change, &backend, Some(&used.backend));
                self.clusters.get_mut(name).expect("just read").backend = backend;
            }
        }
        let waiting = interest.ingresses.iter().filter(|user| self.ingresses[*user].state.awaits(service));
        again.extend(waiting.cloned());
        if !change.set.is_empty() || !change.remove.is_empty() {
            self.xds.publish(change);
        }
        again
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
    fn pairs(&mut self, key: &ObjectKey, translation: &Translation) -> Result<Pairs, String> {
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

    fn entry(&mut self, key: &ObjectKey) -> &mut Entry {
        self.ingresses.entry(key.clone()).or_default()
    }

    /// Replaces what is published for an Ingress, except for the hosts in `kept`, and returns the hosts it no longer has.
    fn install(
        &mut self,
        key: &ObjectKey,
        translation: Translation,
        mut resolved: HashMap<Reference, Backend>,
        pairs: Pairs,
        unready: BTreeSet<ObjectKey>,
        kept: &BTreeSet<Name>,
    ) -> BTreeSet<String> {
        let old = std::mem::take(&mut self.entry(key).live);
        let mut live =
            Live { domains: translation.domains, certificates: pairs.keys().cloned().collect(), ..Live::default() };
        let mut change = Change::default();
        let stays = |table: Table, host: &VirtualHost| {
            let name = Some(host_name(table, &host.name)).filter(|name| kept.contains(name))?;
            self.xds.resource(Kind::VirtualHost, &name)
        };
        live.scopes = Scopes::publish(key, &translation.hosts, stays, &old.scopes, &mut change);
        let before = self.wild.is_empty();
        let _changed = if live.scopes.wild { self.wild.insert(key.clone()) } else { self.wild.remove(key) };
        let names = self.certificates.assign(key, &old.certificates, pairs, &mut change);
        if names || before != self.wild.is_empty() {
            self.update_listeners(&mut change);
        }
        for name in old.scopes.routes() {
            self.hosts.remove(name);
        }
        for name in live.scopes.routes() {
            self.hosts.insert(name.clone(), key.clone());
        }
        for reference in translation.backends.into_keys() {
            let backend = resolved.remove(&reference).expect("resolved while translating");
            let name = backend.cluster.name.clone();
            let interest = self.services.entry(service_key(&reference)).or_default();
            interest.clusters.insert(name.clone());
            live.clusters.insert(name.clone());
            match self.clusters.get_mut(&name) {
                Some(used) => {
                    used.users.insert(key.clone());
                    if used.backend != backend {
                        publish_backend(&mut change, &backend, Some(&used.backend));
                        used.backend = backend;
                    }
                }
                None => {
                    publish_backend(&mut change, &backend, None);
                    self.clusters.insert(name, Use { reference, backend, users: [key.clone()].into() });
                }
            }
        }
        for (table, hosts) in &translation.hosts {
            for host in hosts {
                let name = host_name(*table, &host.name);
                if let Some(version) = old.hosts.get(&name).filter(|_| kept.contains(&name)) {
                    live.hosts.insert(name, *version);
                    continue;
                }
                let version = Version::of(host);
                if old.hosts.get(&name) != Some(&version) {
                    let mut resource = Resource::new(Kind::VirtualHost, name.clone(), version, &envoy::host(host));
                    resource.requires = host.clusters().map(|cluster| (Kind::Cluster, cluster.into())).collect();
                    change.set.push(resource);
                }
                self.hosts.insert(name.clone(), key.clone());
                live.hosts.insert(name, version);
            }
        }
        for name in old.hosts.into_keys().filter(|name| !live.hosts.contains_key(name)) {
            self.hosts.remove(&name);
            change.remove.push((Kind::VirtualHost, name));
        }
        if kept.is_empty() {
            for name in old.clusters.difference(&live.clusters) {
                self.release(key, name, &mut change);
            }
        } else {
            // What is kept needs some of them.
            live.clusters.extend(old.clusters);
        }
        let freed: BTreeSet<String> = old.domains.difference(&live.domains).cloned().collect();
        for domain in &freed {
            self.domains.remove(domain);
        }
        for domain in &live.domains {
            self.domains.insert(domain.clone(), key.clone());
        }
        let changed: BTreeSet<Name> = change.set.iter().map(|resource| resource.name.clone()).collect();
        if !self.refused.is_empty() {
            let gone = change.remove.iter().cloned();
            let new = change.set.iter().map(|resource| (resource.kind, resource.name.clone()));
            let settled: BTreeSet<(Kind, Name)> = gone.chain(new).collect();
            self.refused.retain(|key, _| !settled.contains(key));
        }
        let revision = self.xds.publish(change);
        let entry = self.entry(key);
        entry.refused.retain(|(_, name), _| !changed.contains(name) && live.contains(name));
        entry.live = live;
        entry.state = match unready.is_empty() {
            true => State::Published { revision },
            false => State::Waiting { services: unready, revision: Some(revision) },
        };
        freed
    }

    /// An Ingress does not use a cluster any more.
    fn release(&mut self, key: &ObjectKey, name: &str, change: &mut Change) {
        let Some(used) = self.clusters.get_mut(name) else { return };
        used.users.remove(key);
        if !used.users.is_empty() {
            return;
        }
        let used = self.clusters.remove(name).expect("just read");
        change.remove.push((Kind::Cluster, name.into()));
        if used.backend.cluster.location == Location::Endpoints {
            change.remove.push((Kind::Endpoints, name.into()));
        }
        let service = service_key(&used.reference);
        if let Some(interest) = self.services.get_mut(&service) {
            interest.clusters.remove(name);
            if interest.is_empty() {
                self.services.remove(&service);
            }
        }
    }

    fn watch_services(&mut self, key: &ObjectKey, translation: &Translation) {
        let new: BTreeSet<ObjectKey> = translation.backends.keys().map(service_key).collect();
        let old = std::mem::replace(&mut self.entry(key).services, new.clone());
        for service in &new {
            self.services.entry(service.clone()).or_default().ingresses.insert(key.clone());
        }
        for service in old.difference(&new) {
            if let Some(interest) = self.services.get_mut(service) {
                interest.ingresses.remove(key);
                if interest.is_empty() {
                    self.services.remove(service);
                }
            }
        }
    }

    /// Ingresses that were refused because of a host that is free now.
    fn unblocked(&mut self, freed: &BTreeSet<String>) -> BTreeSet<ObjectKey> {
        let waiting: BTreeSet<ObjectKey> =
            freed.iter().filter_map(|host| self.blocked.remove(host)).flatten().collect();
        let blocked = |key: &ObjectKey| {
            self.ingresses.get(key).is_some_and(|entry| matches!(entry.state, State::Conflict { .. }))
        };
        waiting.into_iter().filter(blocked).collect()
    }
}

impl Entry {
    /// Make before break: a host that is served goes on as it is until its new backends have addresses. Leaves the rest
    /// of the translation as it is, without the clusters that nothing needs yet, and returns those hosts.
    fn keep_what_works(
        &self,
        translation: &mut Translation,
        resolved: &HashMap<Reference, Backend>,
        unready: &BTreeSet<ObjectKey>,
    ) -> BTreeSet<Name> {
        let new: BTreeSet<&str> = translation
            .backends
            .iter()
            .filter(|(reference, used)| **used && unready.contains(&service_key(reference)))
            .map(|(reference, _)| resolved[reference].cluster.name.as_str())
            .filter(|cluster| !self.live.clusters.contains(*cluster))
            .collect();
        let (mut kept, mut needed) = (BTreeSet::new(), BTreeSet::new());
        if new.is_empty() {
            return kept;
        }
        for (table, host) in translation.hosts.iter().flat_map(|(table, hosts)| hosts.iter().map(|host| (*table, host)))
        {
            let name = host_name(table, &host.name);
            if self.live.hosts.contains_key(&name) && host.clusters().any(|cluster| new.contains(cluster)) {
                kept.insert(name);
            } else {
                needed.extend(host.clusters().map(str::to_owned));
            }
        }
        translation.backends.retain(|reference, _| {
            let cluster = &resolved[reference].cluster.name;
            !new.contains(cluster.as_str()) || needed.contains(cluster)
        });
        kept
    }
}

impl Live {
    /// Whether a table has hosts of it.
    fn is_in(&self, table: Table) -> bool {
        let prefix = host_name(table, "");
        self.hosts.range(prefix.clone()..).next().is_some_and(|(name, _)| name.starts_with(&*prefix))
    }

    fn contains(&self, name: &Name) -> bool {
        self.hosts.contains_key(name)
            || self.scopes.contains(name)
            || self.clusters.contains(&**name)
            || self.certificates.iter().any(|secret| secret.to_string() == **name)
            || self.domains.contains(&**name)
    }
}

impl Interest {
    fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.ingresses.is_empty()
    }
}

fn publish_backend(change: &mut Change, backend: &Backend, old: Option<&Backend>) {
    let cluster = &backend.cluster;
    let name: Name = cluster.name.as_str().into();
    let by_endpoints = cluster.location == Location::Endpoints;
    if old.is_none_or(|old| old.cluster != *cluster) {
        let mut resource = Resource::new(Kind::Cluster, name.clone(), Version::of(cluster), &envoy::cluster(cluster));
        if cluster.tls.is_some() {
            resource = resource.requires(Kind::Secret, envoy::TRUST);
        }
        change.set.push(if by_endpoints { resource.requires(Kind::Endpoints, name.clone()) } else { resource });
    }
    if by_endpoints {
        let message = envoy::endpoints(&name, &backend.endpoints);
        change.set.push(Resource::new(Kind::Endpoints, name, Version::of(&backend.endpoints), &message));
    } else if old.is_some_and(|old| old.cluster.location == Location::Endpoints) {
        change.remove.push((Kind::Endpoints, name));
    }
}

fn service_key(reference: &Reference) -> ObjectKey {
    ObjectKey::new(reference.namespace.clone(), reference.name.clone())
}

fn host_name(table: Table, host: &str) -> Name {
    format!("{}/{host}", table.name()).into()
}
