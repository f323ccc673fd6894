//! The hosts of an Ingress as resources. Most of them route alike: what they share is encoded once and is in memory once,
//! whether it travels in tables or by scope.

use std::sync::{Arc, OnceLock};

use xds::{Kind, Name, Requires, Resource, Version};

use super::host_name;
use crate::{
    envoy,
    model::{Table, VirtualHost},
    translate::Translation,
};

/// A host in a table.
pub(super) struct Host<'a> {
    pub(super) name: Name,
    pub(super) version: Version,
    pub(super) model: &'a VirtualHost,
    /// It stays as it is published.
    pub(super) kept: Option<Arc<Resource>>,
    routes: usize,
}

/// All hosts of an Ingress, by table.
#[derive(Default)]
pub(super) struct Hosts<'a> {
    pub(super) tables: Vec<(Table, Vec<Host<'a>>)>,
    routes: Vec<Routes<'a>>,
}

/// What hosts share that route alike.
struct Routes<'a> {
    of: &'a VirtualHost,
    version: Version,
    /// Made when it is needed: most often nothing has changed, or all has.
    encoded: OnceLock<(Arc<[u8]>, Requires)>,
}

// === impl Hosts ===

impl<'a> Hosts<'a> {
    /// `known` gives the name and the resource of a host that is published, if it is to stay.
    pub(super) fn new(
        translation: &'a Translation,
        known: impl Fn(&str) -> Option<Name>,
        kept: impl Fn(&Name) -> Option<Arc<Resource>>,
    ) -> Self {
        let mut hosts = Hosts::default();
        for (table, models) in &translation.hosts {
            let mut own = Vec::with_capacity(models.len());
            for model in models {
                let name = host_name(*table, &model.name);
                let name = known(&name).unwrap_or(name);
                let kept = kept(&name);
                let routes = hosts.routes_of(model);
                let version = match &kept {
                    Some(kept) => kept.version,
                    None => Version::of(&(&model.name, &model.domains, hosts.routes[routes].version)),
                };
                own.push(Host { name, version, model, kept, routes });
            }
            hosts.tables.push((*table, own));
        }
        hosts
    }

    fn routes_of(&mut self, model: &'a VirtualHost) -> usize {
        let same = |known: &Routes<'_>| {
            let routes = Arc::ptr_eq(&known.of.routes, &model.routes) || known.of.routes == model.routes;
            routes && known.of.authorization == model.authorization
        };
        self.routes.iter().position(same).unwrap_or_else(|| {
            let version = Version::of(&(&model.routes, &model.authorization));
            self.routes.push(Routes { of: model, version, encoded: OnceLock::new() });
            self.routes.len() - 1
        })
    }

    /// `cluster` gives the name of a cluster as others have it, to be shared.
    pub(super) fn resource(&self, host: &Host<'_>, cluster: impl Fn(&str) -> Name) -> Resource {
        self.with_domains(host, &host.model.domains, host.name.clone(), host.version, cluster)
    }

    /// The routes that gateways get that take them by scope. Hosts that route alike are one virtual host: that is what makes
    /// a change small.
    pub(super) fn scoped(&self, base: Resource, hosts: &[Host<'_>], cluster: impl Fn(&str) -> Name + Copy) -> Resource {
        let mut merged: Vec<(usize, &Host<'_>, Vec<String>)> = Vec::new();
        for host in hosts.iter().filter(|host| host.kept.is_none()) {
            match merged.iter_mut().find(|(routes, ..)| *routes == host.routes) {
                Some((.., domains)) => domains.extend_from_slice(&host.model.domains),
                None => merged.push((host.routes, host, host.model.domains.clone())),
            }
        }
        let merged: Vec<Resource> = merged
            .iter()
            .map(|(_, host, domains)| self.with_domains(host, domains, host.name.clone(), host.version, cluster))
            .collect();
        base.with_hosts(merged.iter().chain(hosts.iter().filter_map(|host| host.kept.as_deref())))
    }

    fn with_domains(
        &self,
        host: &Host<'_>,
        domains: &[String],
        name: Name,
        version: Version,
        cluster: impl Fn(&str) -> Name,
    ) -> Resource {
        let routes = &self.routes[host.routes];
        let (encoded, requires) = routes.encoded.get_or_init(|| {
            let requires = routes.of.clusters().map(|name| (Kind::Cluster, cluster(name))).collect();
            (envoy::host_routes(routes.of).into(), requires)
        });
        let mut resource = Resource::host(name, version, &envoy::host_domains(&host.model.name, domains), encoded);
        resource.requires = requires.clone();
        resource
    }
}
