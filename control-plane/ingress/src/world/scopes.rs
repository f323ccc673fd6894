//! The same routes for gateways that take them by scope: one resource per Ingress and table, and a small one per host
//! that only says which. A changed route changes one resource; a scope never changes, so a host never waits for routes
//! that its gateway has not asked for yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use controller::ObjectKey;
use xds::{Change, Kind, Name, Resource, Version};

use crate::{
    envoy,
    model::{Table, VirtualHost},
};

/// What is published for an Ingress.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    scopes: BTreeSet<Name>,
    routes: BTreeMap<Name, Version>,
    /// Some host is a pattern, for which there is no scope.
    pub(super) wild: bool,
}

// === impl Scopes ===

impl Scopes {
    /// What differs from the old ones goes into the change. `kept` has hosts that stay as they are for now.
    pub(super) fn publish(
        ingress: &ObjectKey,
        hosts: &BTreeMap<Table, Vec<VirtualHost>>,
        kept: impl Fn(Table, &VirtualHost) -> Option<Arc<Resource>>,
        old: &Scopes,
        change: &mut Change,
    ) -> Self {
        let mut new = Scopes::default();
        for (table, hosts) in hosts {
            let name: Name = format!("{}/{}/{}", table.name(), ingress.namespace, ingress.name).into();
            let mut stay = Vec::new();
            let fresh: Vec<&VirtualHost> =
                hosts.iter().filter(|host| kept(*table, host).map(|kept| stay.push(kept)).is_none()).collect();
            let stays: Vec<(&Name, Version)> = stay.iter().map(|host| (&host.name, host.version)).collect();
            let version = Version::of(&(&fresh, stays));
            if old.routes.get(&name) != Some(&version) {
                change.set.push(routes(&name, version, &fresh).with_hosts(&stay));
            }
            for host in hosts.iter().filter_map(|host| host.domains.first()) {
                if host.contains('*') {
                    new.wild = true;
                    continue;
                }
                let key = key(*table, host);
                if !old.scopes.contains(&key) {
                    change.set.push(scope(&key, &name));
                }
                new.scopes.insert(key);
            }
            new.routes.insert(name, version);
        }
        let scopes = old.scopes.difference(&new.scopes).map(|name| (Kind::Scope, name.clone()));
        let routes = old.routes.keys().filter(|name| !new.routes.contains_key(*name));
        change.remove.extend(scopes.chain(routes.map(|name| (Kind::ScopedRoute, name.clone()))));
        new
    }

    pub(super) fn routes(&self) -> impl Iterator<Item = &Name> {
        self.routes.keys()
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.routes.contains_key(name) || self.scopes.contains(name)
    }
}

/// The host that tells the gateway's readiness.
pub(super) fn status(host: &VirtualHost, change: &mut Change) {
    let name: Name = format!("{}/-/{}", Table::Internal.name(), host.name).into();
    change.set.push(scope(&key(Table::Internal, &host.name), &name));
    change.set.push(routes(&name, Version::of(host), &[host]));
}

fn key(table: Table, host: &str) -> Name {
    format!("{}/{}", table.name(), host.to_lowercase()).into()
}

fn scope(key: &Name, routes: &Name) -> Resource {
    let message = envoy::scope(key, routes);
    Resource::new(Kind::Scope, key.clone(), Version::of(&(key, routes)), &message)
        .requires(Kind::ScopedRoute, routes.clone())
}

fn routes(name: &Name, version: Version, hosts: &[&VirtualHost]) -> Resource {
    let mut resource = Resource::new(Kind::ScopedRoute, name.clone(), version, &envoy::scoped_routes(name, hosts));
    let clusters: BTreeSet<&str> = hosts.iter().flat_map(|host| host.clusters()).collect();
    resource.requires = clusters.into_iter().map(|cluster| (Kind::Cluster, cluster.into())).collect();
    resource
}
