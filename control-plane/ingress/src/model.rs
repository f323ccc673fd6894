//! Our own form of what a gateway is told. Versions are hashes of these, so everything here is ordered.

use std::{collections::BTreeMap, sync::Arc};

/// Header names and values to set on a request.
pub type Headers = BTreeMap<String, String>;

/// The route tables, by the names that upstream's listeners ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    External,
    ExternalTls,
    Internal,
    InternalTls,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct VirtualHost {
    pub name: String,
    pub domains: Vec<String>,
    /// In the order in which they are tried. Hosts of one rule share them.
    pub routes: Arc<Vec<Route>>,
    pub authorization: Access,
}

/// What external authorization, if there is any, does with requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Access {
    /// Nothing is configured: nothing to say.
    #[default]
    Unsaid,
    /// Not asked.
    Open,
    /// Asked, with these words about the request.
    Asked(Headers),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    pub name: String,
    pub prefix: String,
    /// Exact values; an empty value asks for presence.
    pub headers: Headers,
    pub set_headers: Headers,
    pub action: Action,
    /// External authorization is not asked.
    pub open: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Action {
    Split {
        backends: Vec<Weighted>,
        rewrite_host: Option<String>,
    },
    /// To the same URL with https.
    RedirectToHttps,
    /// The gateway's own admin interface.
    Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Weighted {
    pub cluster: String,
    pub weight: u32,
    pub set_headers: Headers,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Cluster {
    pub name: String,
    pub http2: bool,
    pub location: Location,
    /// Its pods speak TLS.
    pub tls: Option<Identity>,
}

/// Who may answer over TLS: any of these names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    pub names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Location {
    /// Addresses come as endpoints of the same name.
    Endpoints,
    Dns {
        host: String,
        port: u16,
    },
}

/// Ready addresses, sorted and without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Endpoints {
    pub addresses: Vec<(String, u16)>,
}

// === impl Table ===

impl Table {
    pub const ALL: [Table; 4] = [Table::External, Table::ExternalTls, Table::Internal, Table::InternalTls];

    pub fn name(self) -> &'static str {
        match self {
            Table::External => "external_services",
            Table::ExternalTls => "external_tls_services",
            Table::Internal => "internal_services",
            Table::InternalTls => "internal_tls_services",
        }
    }
}

// === impl VirtualHost ===

impl VirtualHost {
    /// The clusters it refers to, each once.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        let backends = self.routes.iter().flat_map(|route| match &route.action {
            Action::Split { backends, .. } => backends.as_slice(),
            Action::RedirectToHttps | Action::Status => &[],
        });
        backends.map(|backend| backend.cluster.as_str()).collect::<std::collections::BTreeSet<_>>().into_iter()
    }
}
