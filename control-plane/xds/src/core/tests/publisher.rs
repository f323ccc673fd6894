//! Publishes consistent changes, as the world of Ingresses does: a host together with its clusters, and a cluster goes
//! with its last host.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
};

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster,
    endpoint::v3::ClusterLoadAssignment,
    listener::v3::Listener,
    route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost},
};

use super::{super::*, client::Client};
use crate::resource::ALL;

pub(super) struct Publisher {
    pub(super) core: Core,
    hosts: BTreeMap<usize, Host>,
    clusters: BTreeMap<usize, Part>,
    published: BTreeMap<(Kind, String), Version>,
    /// The revision of what is published.
    revisions: BTreeMap<(Kind, String), u64>,
    /// And of what is not published any more.
    removals: BTreeMap<(Kind, String), u64>,
    /// What was settled last, and for how many streams ever opened and how many gateways.
    settled: Cell<(Settled, u64)>,
    clock: u64,
}

#[derive(Clone)]
struct Host {
    table: usize,
    clusters: BTreeSet<usize>,
    poison: bool,
    time: u64,
}

#[derive(Clone, Copy, Default)]
struct Part {
    poison: bool,
    time: u64,
    endpoints: u64,
}

impl Publisher {
    pub(super) fn new() -> Self {
        let mut publisher = Publisher {
            core: Core::default(),
            hosts: BTreeMap::new(),
            clusters: BTreeMap::new(),
            published: BTreeMap::new(),
            revisions: BTreeMap::new(),
            removals: BTreeMap::new(),
            settled: Cell::default(),
            clock: 0,
        };
        publisher.publish();
        publisher
    }

    pub(super) fn restart(&mut self) {
        self.core = Core::default();
        self.published.clear();
        self.revisions.clear();
        self.removals.clear();
        self.settled.take();
        self.publish();
    }

    pub(super) fn host(&mut self, host: usize, table: usize, clusters: &[usize], poison: bool) {
        self.clock += 1;
        let clusters = clusters.iter().copied().collect();
        self.hosts.insert(host, Host { table, clusters, poison, time: self.clock });
        self.publish();
    }

    pub(super) fn remove_host(&mut self, host: usize) {
        self.hosts.remove(&host);
        self.publish();
    }

    pub(super) fn cluster(&mut self, cluster: usize, poison: bool) {
        self.clock += 1;
        let part = self.clusters.entry(cluster).or_default();
        (part.poison, part.time) = (poison, self.clock);
        self.publish();
    }

    pub(super) fn endpoints(&mut self, cluster: usize) {
        self.clock += 1;
        self.clusters.entry(cluster).or_default().endpoints = self.clock;
        self.publish();
    }

    fn part(&self, cluster: usize) -> Part {
        self.clusters.get(&cluster).copied().unwrap_or_default()
    }

    fn is_good(&self, host: &Host) -> bool {
        !host.poison && host.clusters.iter().all(|cluster| !self.part(*cluster).poison)
    }

    fn desired(&self) -> Vec<Resource> {
        let mut out = Vec::new();
        for table in ["t0", "t1"] {
            let message = Listener { name: format!("l-{table}"), stat_prefix: table.into(), ..Default::default() };
            let listener = Resource::new(Kind::Listener, format!("l-{table}"), Version::of(&table), &message);
            let scoped = Resource::new(Kind::Listener, format!("l-{table}"), Version::of(&table), &message);
            out.push(listener.requires(Kind::Route, table).scoped(scoped.requires(Kind::Scope, ALL)));
            let message = RouteConfiguration { name: table.into(), ..Default::default() };
            out.push(Resource::new(Kind::Route, table, Version::of(&table), &message));
        }
        let used: BTreeSet<usize> = self.hosts.values().flat_map(|host| host.clusters.iter().copied()).collect();
        for cluster in used {
            let (name, part) = (format!("c{cluster}"), self.part(cluster));
            let alt_stat_name = if part.poison { "poison".into() } else { part.time.to_string() };
            let message = Cluster { name: name.clone(), alt_stat_name, ..Default::default() };
            let resource =
                Resource::new(Kind::Cluster, name.as_str(), Version::of(&(part.time, part.poison)), &message);
            out.push(resource.requires(Kind::Endpoints, name.as_str()));
            let message = ClusterLoadAssignment { cluster_name: name.clone(), ..Default::default() };
            out.push(Resource::new(Kind::Endpoints, name, Version::of(&part.endpoints), &message));
        }
        for (number, host) in &self.hosts {
            let domains: Vec<String> = host.clusters.iter().map(|cluster| format!("c{cluster}")).collect();
            let message = VirtualHost {
                name: format!("h{number}"),
                domains: domains.clone(),
                include_request_attempt_count: host.poison,
                ..Default::default()
            };
            let name = format!("t{}/h{number}", host.table);
            let mut resource = Resource::new(Kind::VirtualHost, name.as_str(), Version::of(&host.time), &message);
            resource.requires = domains.into_iter().map(|name| (Kind::Cluster, name.into())).collect();
            let routes = format!("{name}/routes");
            let configuration =
                RouteConfiguration { name: routes.clone(), virtual_hosts: vec![message], ..Default::default() };
            let mut scoped = Resource::new(Kind::ScopedRoute, routes.as_str(), Version::of(&host.time), &configuration);
            scoped.requires = resource.requires.clone();
            let scope = ScopedRouteConfiguration {
                name: name.clone(),
                route_configuration_name: routes.clone(),
                ..Default::default()
            };
            out.push(
                Resource::new(Kind::Scope, name, Version::of(&routes), &scope).requires(Kind::ScopedRoute, routes),
            );
            out.extend([resource, scoped]);
        }
        out
    }

    fn publish(&mut self) {
        let mut change = Change::default();
        let mut now = BTreeMap::new();
        for resource in self.desired() {
            let key = (resource.kind, resource.name.to_string());
            if self.published.get(&key) != Some(&resource.version) {
                change.set.push(resource.clone());
            }
            now.insert(key, resource.version);
        }
        for (kind, name) in self.published.keys().filter(|key| !now.contains_key(*key)) {
            change.remove.push((*kind, name.as_str().into()));
        }
        self.published = now;
        let changed: Vec<_> = change.set.iter().map(|one| (one.kind, one.name.to_string())).collect();
        let removed: Vec<_> = change.remove.iter().map(|(kind, name)| (*kind, name.to_string())).collect();
        let revision = self.core.publish(change);
        self.removals.extend(removed.into_iter().map(|key| (key, revision)));
        self.revisions.extend(changed.into_iter().map(|key| (key, revision)));
    }

    /// What is said to be settled is in force in every gateway.
    pub(super) fn check_settled<'a>(&self, clients: impl IntoIterator<Item = &'a Client>) {
        let settled = self.core.settled();
        let clients: Vec<&Client> = clients.into_iter().filter(|client| client.is_gateway()).collect();
        assert_eq!(settled.gateways, clients.len(), "{:?}", self.core.describe());
        let (before, opened) = self.settled.replace((settled, self.core.opened));
        let same = before.gateways == settled.gateways && opened == self.core.opened;
        assert!(!same || before.revision <= settled.revision, "{before:?} {settled:?} {:?}", self.core.describe());
        let is_settled = |kind: Kind, name: &str| self.revisions[&(kind, name.to_owned())] <= settled.revision;
        for client in clients {
            for (table, hosts) in &client.tables {
                for host in hosts.keys() {
                    let key = (Kind::VirtualHost, format!("{table}/{host}"));
                    let removed = self.removals.get(&key).filter(|_| !self.published.contains_key(&key));
                    assert!(
                        removed.is_none_or(|revision| *revision > settled.revision),
                        "{key:?} {settled:?}: {:?}",
                        self.core.describe()
                    );
                }
            }
            for (number, host) in &self.hosts {
                let clusters: Vec<String> = host.clusters.iter().map(|cluster| format!("c{cluster}")).collect();
                let parts = [Kind::Cluster, Kind::Endpoints];
                let all = clusters.iter().all(|name| parts.iter().all(|kind| is_settled(*kind, name)));
                if !self.is_good(host) || !all {
                    continue;
                }
                for cluster in &host.clusters {
                    let (name, part) = (format!("c{cluster}"), self.part(*cluster));
                    assert_eq!(client.clusters.get(&name), Some(&part.time.to_string()), "{name} {settled:?}");
                    let endpoints = Version::of(&part.endpoints).to_string();
                    assert_eq!(client.endpoints.get(&name), Some(&endpoints), "{name} {settled:?}");
                    assert!(!client.warming.contains(&name), "{name} {settled:?}");
                }
                if is_settled(Kind::VirtualHost, &format!("t{}/h{number}", host.table)) {
                    let table = client.tables.get(&format!("t{}", host.table));
                    let found = table.and_then(|table| table.get(&format!("h{number}")));
                    assert_eq!(found, Some(&clusters), "h{number} {settled:?}: {:?}", self.core.describe());
                }
            }
        }
    }

    /// What can be good is there in its newest version; what is gone is gone; nothing waits for endpoints.
    pub(super) fn check(&self, client: &Client) {
        let used: BTreeSet<usize> = self.hosts.values().flat_map(|host| host.clusters.iter().copied()).collect();
        for cluster in &used {
            let (name, part) = (format!("c{cluster}"), self.part(*cluster));
            if !part.poison {
                assert_eq!(client.clusters.get(&name).map(String::as_str), Some(&*part.time.to_string()), "{name}");
                let endpoints = Version::of(&part.endpoints).to_string();
                assert_eq!(client.endpoints.get(&name), Some(&endpoints), "{name}");
            }
        }
        for name in client.clusters.keys() {
            let mut wanted = used.iter().map(|cluster| format!("c{cluster}"));
            let mut in_use = client.tables.values().flat_map(|hosts| hosts.values()).flatten();
            // Next to a refused host that the client has from before, nothing is known to be unused.
            let all_good = self.hosts.values().all(|host| self.is_good(host));
            assert!(wanted.any(|c| c == *name) || in_use.any(|c| c == name) || !all_good, "{name} lingers");
        }
        // One that only a refused host needs gets no endpoints any more; Envoy goes on with those it had.
        let mut warming = used.iter().map(|cluster| format!("c{cluster}")).filter(|name| client.warming.contains(name));
        assert_eq!(warming.next(), None, "waits for endpoints");
        for (number, host) in &self.hosts {
            if self.is_good(host) {
                let clusters: Vec<String> = host.clusters.iter().map(|cluster| format!("c{cluster}")).collect();
                let table = &client.tables[&format!("t{}", host.table)];
                assert_eq!(table.get(&format!("h{number}")), Some(&clusters), "h{number} in {:?}", client.tables);
            }
        }
        for (table, hosts) in &client.tables {
            for name in hosts.keys() {
                let known = |(number, host): (&usize, &Host)| {
                    format!("h{number}") == *name && format!("t{}", host.table) == *table
                };
                assert!(self.hosts.iter().any(known), "{table}/{name} lingers");
            }
        }
    }
}
