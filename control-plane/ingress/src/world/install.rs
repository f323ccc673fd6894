//! From a translation to what is published for an Ingress.

use std::collections::{BTreeSet, HashMap};

use controller::ObjectKey;
use xds::{Change, Kind, Name, Resource, Version};

use super::{
    Entry, Key, Objects, Pairs, State, Trust, Use, World, host_name,
    hosts::Hosts,
    scopes::Scopes,
    service_key,
    small::{Set, Versions},
};
use crate::{
    backend::{Backend, Reference},
    envoy,
    model::{Location, Table},
    translate::Translation,
};

/// What is published for an Ingress.
#[derive(Debug, Default)]
pub(super) struct Live {
    hosts: Versions,
    clusters: Set<Name>,
    domains: Set<Name>,
    certificates: BTreeSet<ObjectKey>,
    scopes: Scopes,
}

// === impl World ===

impl<O: Objects> World<O> {
    /// Replaces what is published for an Ingress, except for the hosts in `kept`, and returns the hosts it no longer has.
    pub(super) fn install(
        &mut self,
        key: &Key,
        translation: Translation,
        resolved: HashMap<Reference, Backend>,
        pairs: Pairs,
        unready: BTreeSet<ObjectKey>,
        kept: &BTreeSet<Name>,
    ) -> Vec<Name> {
        let old = std::mem::take(&mut self.entry(key).live);
        let mut change = Change::default();
        let mut live = Live { certificates: pairs.keys().cloned().collect(), ..Live::default() };
        live.clusters = self.use_backends(key, &translation, resolved, &mut change);
        let cluster =
            |name: &str| self.clusters.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone());
        let stays = |name: &Name| kept.contains(name).then(|| self.xds.resource(Kind::VirtualHost, name)).flatten();
        let known = |name: &str| old.hosts.get(name).map(|(name, _)| name.clone());
        let hosts = Hosts::new(&translation, known, stays);
        for host in hosts.tables.iter().flat_map(|(_, hosts)| hosts).filter(|host| host.kept.is_none()) {
            if old.hosts.version(&host.name) != Some(host.version) {
                change.set.push(hosts.resource(host, cluster));
            }
        }
        live.scopes = Scopes::publish(key, &hosts, cluster, &old.scopes, &mut change);
        live.hosts =
            hosts.tables.iter().flat_map(|(_, hosts)| hosts).map(|host| (host.name.clone(), host.version)).collect();
        let gone = old.hosts.names().filter(|name| !live.hosts.contains(name));
        change.remove.extend(gone.map(|name| (Kind::VirtualHost, name.clone())));

        let before = self.wild.is_empty();
        let _changed = match live.scopes.wild {
            true => self.wild.insert(ObjectKey::clone(key)),
            false => self.wild.remove(&**key),
        };
        let names = self.certificates.assign(key, &old.certificates, pairs, &mut change);
        if names || before != self.wild.is_empty() {
            self.update_listeners(&mut change);
        }
        for name in old.clusters.iter() {
            if !kept.is_empty() {
                // What is kept needs some of them.
                live.clusters.insert(name.clone());
            } else if !live.clusters.contains(name) {
                self.release(key, name, &mut change);
            }
        }
        let freed = self.own_domains(key, &old.domains, &translation.domains, &mut live);
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

    /// Publishes the clusters of a translation and notes who uses them.
    fn use_backends(
        &mut self,
        key: &Key,
        translation: &Translation,
        mut resolved: HashMap<Reference, Backend>,
        change: &mut Change,
    ) -> Set<Name> {
        let mut names = Vec::with_capacity(translation.backends.len());
        let secured = Some(self.trust == Trust::On);
        for reference in translation.backends.keys() {
            let backend = resolved.remove(reference).expect("resolved while translating");
            let known = self.clusters.get_key_value(backend.cluster.name.as_str()).map(|(name, _)| name.clone());
            let name: Name = known.unwrap_or_else(|| backend.cluster.name.as_str().into());
            let service = service_key(reference);
            match self.services.get_mut(&service) {
                Some(interest) => interest.clusters.insert(name.clone()),
                None => self.services.entry(service.into()).or_default().clusters.insert(name.clone()),
            }
            match self.clusters.get_mut(&name) {
                Some(used) => {
                    used.users.insert(key.clone());
                    if used.reference == *reference {
                        used.secured = secured;
                    }
                    if used.backend != backend {
                        publish_backend(change, &name, &backend, Some(&used.backend));
                        used.backend = backend;
                    }
                }
                None => {
                    publish_backend(change, &name, &backend, None);
                    let users = [key.clone()].into_iter().collect();
                    let used = Use { reference: reference.clone(), backend, secured, users };
                    self.clusters.insert(name.clone(), used.into());
                }
            }
            names.push(name);
        }
        names.into_iter().collect()
    }

    /// Replaces the hosts that no other Ingress may have. Returns those that are free now.
    fn own_domains(&mut self, key: &Key, old: &Set<Name>, new: &BTreeSet<String>, live: &mut Live) -> Vec<Name> {
        let known = |domain: &String| old.get(domain.as_str()).cloned().unwrap_or_else(|| domain.as_str().into());
        live.domains = new.iter().map(known).collect();
        let freed: Vec<Name> = old.iter().filter(|domain| !live.domains.contains(*domain)).cloned().collect();
        for domain in &freed {
            self.domains.remove(domain);
        }
        for domain in live.domains.iter().filter(|domain| !old.contains(*domain)) {
            self.domains.insert(domain.clone(), key.clone());
        }
        freed
    }

    /// An Ingress does not use a cluster any more.
    fn release(&mut self, key: &Key, name: &Name, change: &mut Change) {
        let Some(used) = self.clusters.get_mut(name) else { return };
        used.users.remove(key);
        if !used.users.is_empty() {
            return;
        }
        let used = self.clusters.remove(name).expect("just read");
        change.remove.push((Kind::Cluster, name.clone()));
        if used.backend.cluster.location == Location::Endpoints {
            change.remove.push((Kind::Endpoints, name.clone()));
        }
        let service = service_key(&used.reference);
        if let Some(interest) = self.services.get_mut(&service) {
            interest.clusters.remove(name);
            if interest.is_empty() {
                self.services.remove(&service);
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Make before break: a host that is served goes on as it is until its new backends have addresses. Leaves the rest
    /// of the translation as it is, without the clusters that nothing needs yet, and returns those hosts.
    pub(super) fn keep_what_works(
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
            if self.live.hosts.contains(&name) && host.clusters().any(|cluster| new.contains(cluster)) {
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

// === impl Live ===

impl Live {
    /// Whether a table has hosts of it.
    pub(super) fn is_in(&self, table: Table) -> bool {
        self.hosts.has_prefix(&host_name(table, ""))
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.hosts.contains(name)
            || self.scopes.contains(name)
            || self.clusters.contains(name)
            || self.certificates.iter().any(|secret| secret.to_string() == **name)
            || self.domains.contains(name)
    }
}

pub(super) fn publish_backend(change: &mut Change, name: &Name, backend: &Backend, old: Option<&Backend>) {
    let cluster = &backend.cluster;
    let by_endpoints = cluster.location == Location::Endpoints;
    if old.is_none_or(|old| old.cluster != *cluster) {
        let mut resource = Resource::new(Kind::Cluster, name.clone(), Version::of(cluster), &envoy::cluster(cluster));
        if cluster.tls.is_some() {
            resource = resource.requires(Kind::Secret, envoy::TRUST);
        }
        change.set.push(if by_endpoints { resource.requires(Kind::Endpoints, name.clone()) } else { resource });
    }
    if by_endpoints {
        let message = envoy::endpoints(name, &backend.endpoints);
        change.set.push(Resource::new(Kind::Endpoints, name.clone(), Version::of(&backend.endpoints), &message));
    } else if old.is_some_and(|old| old.cluster.location == Location::Endpoints) {
        change.remove.push((Kind::Endpoints, name.clone()));
    }
}
