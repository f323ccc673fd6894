//! What travels over xDS. A resource is encoded once, when it is made, and shared by every stream; its version comes
//! from an ordered hash of the model it was made from, never from the encoded bytes (protobuf maps have no order),
//! so that two control planes, or one before and after a restart, give the same content the same version.

mod body;

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

pub use self::body::Body;
use crate::wire;

/// Part of every version: raise it when the same model is encoded differently than before.
const ENCODING: u32 = 1;

pub type Name = Arc<str>;

/// The resource types, in the order in which additions are delivered (make before break).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Cluster,
    Endpoints,
    Secret,
    Listener,
    /// Which routes requests for a host take, for gateways that take routes by scope.
    Scope,
    /// The routes of scopes. Of the same type as a route table; its name has a slash, which theirs do not.
    ScopedRoute,
    /// A route table, for the other gateways.
    Route,
    /// A part of a route table, named `<table>/<host>`.
    VirtualHost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(u64);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    pub kind: Kind,
    pub name: Name,
    pub version: Version,
    /// The encoded message, without its `Any` envelope. That of a virtual host is a field of its table.
    pub body: Body,
    /// What a gateway asks for once it has this (the endpoints of a cluster, the table of a listener), or must have
    /// before (the clusters of a host).
    pub requires: Requires,
    /// What a gateway gets instead that takes routes by scope.
    pub scoped: Option<Arc<Resource>>,
}

/// Resources that refer to the same others may share the list.
pub type Requires = Arc<[(Kind, Name)]>;

/// In [`Resource::requires`]: everything of a kind.
pub const ALL: &str = "*";

// === impl Kind ===

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Cluster,
        Kind::Endpoints,
        Kind::Secret,
        Kind::Listener,
        Kind::Scope,
        Kind::ScopedRoute,
        Kind::Route,
        Kind::VirtualHost,
    ];

    pub fn type_url(self) -> &'static str {
        match self {
            Kind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Kind::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Kind::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Kind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Kind::Scope => "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration",
            Kind::Route | Kind::ScopedRoute => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Kind::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
        }
    }

    /// What is asked for by this type. Route tables stand for all route configurations, see [`Kind::ScopedRoute`];
    /// virtual hosts travel inside them only.
    pub fn from_type_url(url: &str) -> Option<Kind> {
        let asked = |kind: &Kind| !matches!(kind, Kind::ScopedRoute | Kind::VirtualHost);
        Kind::ALL.into_iter().filter(asked).find(|kind| kind.type_url() == url)
    }

    /// Types whose state-of-the-world response is always the whole set, and whose first request may mean "all".
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Kind::Cluster | Kind::Listener | Kind::Scope)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Cluster => "cluster",
            Kind::Endpoints => "endpoints",
            Kind::Secret => "secret",
            Kind::Listener => "listener",
            Kind::Scope => "scope",
            Kind::ScopedRoute => "routes",
            Kind::Route => "route table",
            Kind::VirtualHost => "virtual host",
        })
    }
}

// === impl Version ===

impl Version {
    /// The version of a model. `Hash` of the model must not depend on any map order: use sorted collections.
    pub fn of(model: &impl Hash) -> Self {
        // `DefaultHasher::new` has fixed keys, so equal models agree across processes of one build.
        let mut hasher = DefaultHasher::new();
        ENCODING.hash(&mut hasher);
        model.hash(&mut hasher);
        Version(hasher.finish())
    }

    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok().map(Version)).flatten()
    }

    /// The version of a set: independent of the order in which its members are added.
    pub(crate) fn join(self, name: &str, member: Version) -> Self {
        Version(self.0.wrapping_add(Version::of(&(name, member)).0))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

// === impl Resource ===

impl Resource {
    pub fn new(kind: Kind, name: impl Into<Name>, version: Version, message: &impl prost::Message) -> Self {
        Resource::encoded(kind, name, version, message.encode_to_vec())
    }

    pub fn encoded(kind: Kind, name: impl Into<Name>, version: Version, message: Vec<u8>) -> Self {
        let body = match kind {
            Kind::VirtualHost => wire::host(&message, &[]).into(),
            _ => message.into(),
        };
        Resource { kind, name: name.into(), version, body, requires: Requires::default(), scoped: None }
    }

    /// A virtual host in two parts: what is its own, and what it shares with others, each encoded as a message.
    pub fn host(name: impl Into<Name>, version: Version, own: &[u8], shared: &Arc<[u8]>) -> Self {
        let body = [wire::host(own, shared).into(), shared.clone()].into_iter().collect();
        let (kind, requires) = (Kind::VirtualHost, Requires::default());
        Resource { kind, name: name.into(), version, body, requires, scoped: None }
    }

    pub fn requires(mut self, kind: Kind, name: impl Into<Name>) -> Self {
        self.requires = self.requires.iter().cloned().chain([(kind, name.into())]).collect();
        self
    }

    /// Of a route configuration: with these virtual hosts as well.
    pub fn with_hosts<'a>(mut self, hosts: impl Iterator<Item = &'a Resource> + Clone) -> Self {
        self.body = self.body_with(hosts.clone());
        let mut requires = self.requires.to_vec();
        for needed in hosts.flat_map(|host| host.requires.iter()) {
            if !requires.contains(needed) {
                requires.push(needed.clone());
            }
        }
        if requires.len() > self.requires.len() {
            self.requires = requires.into();
        }
        self
    }

    pub(crate) fn body_with<'a>(&self, hosts: impl Iterator<Item = &'a Resource>) -> Body {
        self.body.parts().iter().chain(hosts.flat_map(|host| host.body.parts())).cloned().collect()
    }

    /// Another form of the same model: name and version are those of this one.
    pub fn scoped(mut self, form: Resource) -> Self {
        self.scoped = Some(Arc::new(Resource { name: self.name.clone(), version: self.version, ..form }));
        self
    }
}

/// The table of a virtual host's name, `None` for the name of a table.
pub(crate) fn table_of(name: &str) -> Option<&str> {
    name.split_once('/').map(|(table, _)| table)
}
