//! A gateway as Envoy behaves: clusters and listeners as wildcards, endpoints by cluster, tables by listener; a cluster
//! serves once it got endpoints, a table that refers to an unknown cluster is refused.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster,
    listener::v3::Listener,
    route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost},
};
use prost::Message;

use std::sync::Arc;

use super::super::*;

type Hosts = BTreeMap<String, Vec<String>>;

pub(super) struct Client {
    protocol: Protocol,
    names_culprits: bool,
    stream: Option<StreamId>,
    outbox: VecDeque<Request>,
    started: BTreeSet<Kind>,
    /// Types for which a request has arrived at the server.
    asked: BTreeSet<Kind>,
    nonces: BTreeMap<Kind, String>,
    versions: BTreeMap<(Kind, String), String>,
    pub(super) received: usize,
    pub(super) clusters: BTreeMap<String, String>,
    pub(super) endpoints: BTreeMap<String, String>,
    pub(super) warming: BTreeSet<String>,
    listeners: BTreeMap<String, String>,
    pub(super) tables: BTreeMap<String, Hosts>,
    /// Takes routes by scope: then the tables are made from these two.
    scoped: bool,
    scopes: BTreeMap<String, String>,
    routes: BTreeMap<String, VirtualHost>,
    routes_asked: BTreeSet<String>,
    /// A state-of-the-world server cannot know what the client has from before, so it cannot keep it for a while.
    may_lose_clusters: bool,
}

enum Request {
    Delta(DeltaRequest),
    World(WorldRequest),
}

impl Client {
    pub(super) fn new(protocol: Protocol, names_culprits: bool) -> Self {
        Client {
            protocol,
            names_culprits,
            stream: None,
            outbox: VecDeque::new(),
            started: BTreeSet::new(),
            asked: BTreeSet::new(),
            nonces: BTreeMap::new(),
            versions: BTreeMap::new(),
            received: 0,
            clusters: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            warming: BTreeSet::new(),
            listeners: BTreeMap::new(),
            tables: BTreeMap::new(),
            scoped: false,
            scopes: BTreeMap::new(),
            routes: BTreeMap::new(),
            routes_asked: BTreeSet::new(),
            may_lose_clusters: false,
        }
    }

    pub(super) fn scoped(names_culprits: bool) -> Self {
        Client { scoped: true, ..Client::new(Protocol::Delta, names_culprits) }
    }

    fn is_delta(&self) -> bool {
        self.protocol == Protocol::Delta
    }

    pub(super) fn connect(&mut self, core: &mut Core) {
        let stream = core.open(self.protocol);
        self.stream = Some(stream);
        if self.scoped {
            core.set_scoped(stream);
        }
        self.subscribe(Kind::Cluster, &[]);
        let clusters: Vec<String> = self.clusters.keys().cloned().collect();
        if !clusters.is_empty() {
            self.subscribe(Kind::Endpoints, &clusters);
        }
        // Envoy asks for listeners once its clusters are warm; here at once, which is harder.
        self.subscribe(Kind::Listener, &[]);
        if self.scoped {
            if !self.listeners.is_empty() {
                self.subscribe(Kind::Scope, &[]);
            }
            let routes: BTreeSet<String> = self.scopes.values().cloned().collect();
            if !routes.is_empty() {
                self.subscribe(Kind::ScopedRoute, &routes.into_iter().collect::<Vec<_>>());
            }
            return;
        }
        let tables: Vec<String> = self.listeners.values().cloned().collect();
        if !tables.is_empty() {
            self.subscribe(Kind::Route, &tables);
        }
    }

    /// The first requests of a stream in another order: which one, of those that are left, goes next.
    pub(super) fn reorder(&mut self, order: &[usize]) {
        let mut ordered = VecDeque::new();
        for choice in order {
            if !self.outbox.is_empty() {
                let next = self.outbox.remove(choice % self.outbox.len());
                ordered.extend(next);
            }
        }
        ordered.append(&mut self.outbox);
        self.outbox = ordered;
    }

    /// As the control plane counts gateways.
    pub(super) fn is_gateway(&self) -> bool {
        self.asked.contains(&Kind::Cluster) && self.asked.contains(&Kind::Listener)
    }

    pub(super) fn requests(&self) -> usize {
        self.outbox.len()
    }

    pub(super) fn disconnect(&mut self, core: &mut Core) {
        core.close(self.stream.expect("connected"));
        self.forget_stream();
    }

    pub(super) fn forget_stream(&mut self) {
        self.may_lose_clusters = !self.is_delta();
        // A cluster that waited for its endpoints to be sent again takes those it had (Envoy keeps them for this).
        self.warming.retain(|cluster| !self.endpoints.contains_key(cluster));
        self.stream = None;
        self.outbox.clear();
        self.started.clear();
        self.routes_asked.clear();
        self.asked.clear();
        self.nonces.clear();
    }

    /// Delivers one message, requests first. False when there is none.
    pub(super) fn exchange(&mut self, core: &mut Core) -> bool {
        let id = self.stream.expect("connected");
        if let Some(request) = self.outbox.pop_front() {
            match request {
                Request::Delta(request) => {
                    self.asked.insert(request.kind);
                    core.delta(id, request);
                }
                Request::World(request) => {
                    self.asked.insert(request.kind);
                    core.world(id, request);
                }
            }
            return true;
        }
        self.hear(core)
    }

    /// Takes one response, although requests are still on their way. False when there is none.
    pub(super) fn hear(&mut self, core: &mut Core) -> bool {
        let Some(response) = core.next(self.stream.expect("connected")) else { return false };
        self.receive(&response);
        true
    }

    fn subscribe(&mut self, kind: Kind, names: &[String]) {
        let first = self.started.insert(kind);
        if kind == Kind::ScopedRoute {
            self.routes_asked.extend(names.iter().cloned());
        }
        let nonce = self.nonces.get(&kind).cloned().unwrap_or_default();
        let initial = |versions: &BTreeMap<(Kind, String), String>| {
            let of_kind = versions.iter().filter(|((k, _), _)| first && *k == kind);
            of_kind.map(|((_, name), version)| (name.clone(), version.clone())).collect()
        };
        self.outbox.push_back(match self.protocol {
            Protocol::Delta => Request::Delta(DeltaRequest {
                kind: asked_as(kind),
                subscribe: names.to_vec(),
                unsubscribe: Vec::new(),
                initial: initial(&self.versions),
                nonce: String::new(),
                error: None,
            }),
            Protocol::World => Request::World(WorldRequest { kind, names: self.names(kind), nonce, error: None }),
        });
    }

    fn unsubscribe(&mut self, kind: Kind, names: Vec<String>) {
        for name in &names {
            self.versions.remove(&(kind, name.clone()));
            if kind == Kind::ScopedRoute {
                self.routes_asked.remove(name);
            }
        }
        match self.protocol {
            Protocol::Delta => self.outbox.push_back(Request::Delta(DeltaRequest {
                kind: asked_as(kind),
                subscribe: Vec::new(),
                unsubscribe: names,
                initial: BTreeMap::new(),
                nonce: String::new(),
                error: None,
            })),
            Protocol::World => self.subscribe(kind, &[]),
        }
    }

    fn names(&self, kind: Kind) -> Vec<String> {
        match kind {
            Kind::Endpoints => self.clusters.keys().cloned().collect(),
            Kind::Route => self.listeners.values().cloned().collect(),
            _ => Vec::new(),
        }
    }

    fn receive(&mut self, response: &Response) {
        self.received += response.resources.len();
        let nonce = response.nonce.to_string();
        self.nonces.insert(response.kind, nonce.clone());
        let error = self.fault(response).map(|culprit| match self.names_culprits {
            true => format!("refused {culprit}: bad"),
            false => "bad".to_owned(),
        });
        if error.is_none() {
            self.take(response);
        }
        let kind = response.kind;
        self.outbox.push_back(match self.protocol {
            Protocol::Delta => Request::Delta(DeltaRequest {
                kind: asked_as(kind),
                subscribe: Vec::new(),
                unsubscribe: Vec::new(),
                initial: BTreeMap::new(),
                nonce,
                error,
            }),
            Protocol::World => Request::World(WorldRequest { kind, names: self.names(kind), nonce, error }),
        });
    }

    fn hosts_of(resource: &Resource) -> Vec<VirtualHost> {
        match resource.kind {
            Kind::Route | Kind::ScopedRoute => {
                RouteConfiguration::decode(&*resource.body.to_vec()).unwrap().virtual_hosts
            }
            _ => Vec::new(),
        }
    }

    fn fault(&self, response: &Response) -> Option<String> {
        for resource in &response.resources {
            if resource.kind == Kind::Cluster
                && Cluster::decode(&*resource.body.to_vec()).unwrap().alt_stat_name == "poison"
            {
                return Some(resource.name.to_string());
            }
            for host in Self::hosts_of(resource) {
                if host.include_request_attempt_count || host.domains.iter().any(|c| !self.clusters.contains_key(c)) {
                    return Some(host.name);
                }
            }
        }
        None
    }

    fn take(&mut self, response: &Response) {
        let kind = response.kind;
        let world = self.protocol == Protocol::World;
        for resource in &response.resources {
            self.versions.insert((kind, resource.name.to_string()), resource.version.to_string());
        }
        for name in &response.removed {
            self.versions.remove(&(kind, name.to_string()));
        }
        let name_of = |resource: &Arc<Resource>| resource.name.to_string();
        let sent: BTreeSet<String> = response.resources.iter().map(name_of).collect();
        let gone = |have: Vec<String>| -> Vec<String> {
            let missing = |name: &String| world && kind.is_whole() && !sent.contains(name);
            have.into_iter().filter(|n| missing(n) || response.removed.iter().any(|r| **r == **n)).collect()
        };
        match kind {
            Kind::Cluster => self.take_clusters(response, gone(self.clusters.keys().cloned().collect())),
            Kind::Endpoints => {
                for resource in &response.resources {
                    self.endpoints.insert(resource.name.to_string(), resource.version.to_string());
                    self.warming.remove(&*resource.name);
                }
                for name in &response.removed {
                    self.warming.remove(&**name);
                }
            }
            Kind::Listener => {
                let mut new = Vec::new();
                for resource in &response.resources {
                    let table = Listener::decode(&*resource.body.to_vec()).unwrap().stat_prefix;
                    if self.listeners.insert(resource.name.to_string(), table.clone()).is_none() {
                        new.push(table);
                    }
                }
                if self.scoped && !new.is_empty() && !self.started.contains(&Kind::Scope) {
                    self.subscribe(Kind::Scope, &[]);
                } else if !self.scoped && !new.is_empty() {
                    self.subscribe(Kind::Route, &new);
                }
            }
            Kind::Route => {
                for resource in &response.resources {
                    let message = RouteConfiguration::decode(&*resource.body.to_vec()).unwrap();
                    let hosts = message.virtual_hosts.into_iter().map(|host| (host.name, host.domains)).collect();
                    self.tables.insert(message.name, hosts);
                }
            }
            Kind::Scope => self.take_scopes(response),
            Kind::ScopedRoute => {
                assert_eq!(response.removed, Vec::<Name>::new(), "Envoy cannot remove routes that scopes refer to");
                for resource in &response.resources {
                    let [host] = <[_; 1]>::try_from(Self::hosts_of(resource)).unwrap();
                    self.routes.insert(resource.name.to_string(), host);
                }
            }
            Kind::VirtualHost => unreachable!("they travel in tables"),
            Kind::Secret => unreachable!("none are published"),
        }
        if self.scoped {
            self.tables = [("t0".to_owned(), Hosts::new()), ("t1".to_owned(), Hosts::new())].into();
            for (scope, routes) in &self.scopes {
                let (table, _) = scope.split_once('/').unwrap();
                let host = self.routes.get(routes).cloned();
                self.tables.get_mut(table).unwrap().extend(host.map(|host| (host.name, host.domains)));
            }
        }
        for host in response.resources.iter().flat_map(|resource| Self::hosts_of(resource)) {
            for cluster in &host.domains {
                assert!(self.endpoints.contains_key(cluster), "{} was sent before {cluster} could serve", host.name);
            }
        }
    }

    fn take_scopes(&mut self, response: &Response) {
        for name in &response.removed {
            self.scopes.remove(&**name);
        }
        for resource in &response.resources {
            let scope = ScopedRouteConfiguration::decode(&*resource.body.to_vec()).unwrap();
            self.scopes.insert(scope.name, scope.route_configuration_name);
        }
        let used: BTreeSet<&String> = self.scopes.values().collect();
        let asked = self.routes_asked.iter();
        let unused: Vec<String> = asked.filter(|name| !used.contains(name)).cloned().collect();
        let new: Vec<String> = used
            .into_iter()
            .filter(|name| response.resources.iter().any(|r| **name == format!("{}/routes", r.name)))
            .filter(|name| !self.routes_asked.contains(*name))
            .cloned()
            .collect();
        self.routes.retain(|name, _| !unused.contains(name));
        if !unused.is_empty() {
            self.unsubscribe(Kind::ScopedRoute, unused);
        }
        if !new.is_empty() {
            self.subscribe(Kind::ScopedRoute, &new);
        }
    }

    fn take_clusters(&mut self, response: &Response, gone: Vec<String>) {
        let mut new = Vec::new();
        for resource in &response.resources {
            let message = Cluster::decode(&*resource.body.to_vec()).unwrap();
            let old = self.clusters.insert(message.name.clone(), message.alt_stat_name.clone());
            if old.as_ref() != Some(&message.alt_stat_name) {
                self.warming.insert(message.name.clone());
            }
            if old.is_none() {
                new.push(message.name);
            }
        }
        for name in &gone {
            let user = self.tables.values().flatten().find(|(_, clusters)| clusters.contains(name));
            assert!(user.is_none() || self.may_lose_clusters, "{name} was removed under {user:?}");
            self.clusters.remove(name);
            self.endpoints.remove(name);
            self.warming.remove(name);
        }
        if !gone.is_empty() {
            self.unsubscribe(Kind::Endpoints, gone);
        }
        if !new.is_empty() {
            self.subscribe(Kind::Endpoints, &new);
        }
    }
}

/// Routes of scopes and tables have one type.
fn asked_as(kind: Kind) -> Kind {
    if kind == Kind::ScopedRoute { Kind::Route } else { kind }
}
