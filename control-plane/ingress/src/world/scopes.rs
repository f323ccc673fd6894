//! The same routes for gateways that take them by scope: one resource per Ingress and table, and a small one per host
//! that only says which. A changed route changes one resource; a scope never changes, so a host never waits for routes
//! that its gateway has not asked for yet.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use controller::ObjectKey;
use sha2::{Digest, Sha256};
use xds::{Change, Kind, Name, Resource, Version};

use super::{
    hosts::{Host, Hosts},
    small::{Set, Versions},
};
use crate::{
    envoy,
    model::{Table, VirtualHost},
    translate::Translation,
};

/// What is published for an Ingress.
#[derive(Debug, Default)]
pub(super) struct Scopes {
    scopes: Set<Name>,
    routes: Versions,
    /// Some host is a pattern, for which there is no scope.
    pub(super) wild: bool,
}

// === impl Scopes ===

impl Scopes {
    /// What differs from the old ones goes into the change.
    pub(super) fn publish(
        ingress: &ObjectKey,
        hosts: &Hosts<'_>,
        cluster: impl Fn(&str) -> Name + Copy,
        old: &Scopes,
        change: &mut Change,
    ) -> Self {
        let (mut scopes, mut routes, mut wild) = (Vec::new(), Vec::new(), false);
        for (table, own) in &hosts.tables {
            let name = format!("{}/{}/{}", table.name(), ingress.namespace, ingress.name);
            let known = old.routes.get(&name);
            let name: Name = known.map_or_else(|| name.into(), |(name, _)| name.clone());
            let versions: Vec<(&Name, Version)> = own.iter().map(|host| (&host.name, host.version)).collect();
            let version = Version::of(&versions);
            if known.is_none_or(|(_, known)| *known != version) {
                change.set.push(hosts.scoped(base(&name, version), own, cluster));
            }
            for host in own.iter().filter_map(|Host { model, .. }| model.domains.first()) {
                if host.contains('*') {
                    wild = true;
                    continue;
                }
                let key = key(*table, host);
                let scope = scope_name(&key);
                match old.scopes.get(&*scope) {
                    Some(known) => scopes.push(known.clone()),
                    None => {
                        change.set.push(resource(&scope, &key, &name));
                        scopes.push(scope);
                    }
                }
            }
            routes.push((name, version));
        }
        let new = Scopes { scopes: scopes.into_iter().collect(), routes: routes.into_iter().collect(), wild };
        let gone = old.scopes.iter().filter(|name| !new.scopes.contains(*name)).map(|name| (Kind::Scope, name.clone()));
        let routes = old.routes.names().filter(|name| !new.routes.contains(name));
        change.remove.extend(gone.chain(routes.map(|name| (Kind::ScopedRoute, name.clone()))));
        new
    }

    pub(super) fn contains(&self, name: &Name) -> bool {
        self.routes.contains(name) || self.scopes.contains(name)
    }
}

/// The host that tells the gateway's readiness.
pub(super) fn status(host: &VirtualHost, change: &mut Change) {
    let name: Name = format!("{}/-/{}", Table::Internal.name(), host.name).into();
    let key = key(Table::Internal, &host.name);
    change.set.push(resource(&scope_name(&key), &key, &name));
    let translation = Translation { hosts: [(Table::Internal, vec![host.clone()])].into(), ..Translation::default() };
    let hosts = Hosts::new(&translation, |_| None, |_| None);
    let own = &hosts.tables[0].1;
    change.set.push(hosts.resource(&own[0], |name| name.into()));
    change.set.push(hosts.scoped(base(&name, own[0].version), own, |name| name.into()));
}

fn key(table: Table, host: &str) -> String {
    format!("{}/{}", table.name(), host.to_lowercase())
}

/// As long as a string may be that Envoy need not allocate: it copies the names of all scopes whenever one comes or goes.
fn scope_name(key: &str) -> Name {
    URL_SAFE_NO_PAD.encode(&Sha256::digest(key)[..16]).into()
}

fn resource(name: &Name, key: &str, routes: &Name) -> Resource {
    let message = envoy::scope(name, key, routes);
    Resource::new(Kind::Scope, name.clone(), Version::of(&(key, routes)), &message)
        .requires(Kind::ScopedRoute, routes.clone())
}

/// Routes without hosts.
fn base(name: &Name, version: Version) -> Resource {
    Resource::encoded(Kind::ScopedRoute, name.clone(), version, envoy::scoped_routes(name))
}
