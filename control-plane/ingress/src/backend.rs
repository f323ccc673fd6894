//! A Service as a cluster and its endpoints.
//!
//! The port is resolved from the EndpointSlices, so named target ports work. A cluster is named `namespace/name`, as
//! in upstream's traces and metrics; a second port of the same Service, or a variant without HTTP/2, has its own name
//! instead of fighting over one.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::model::{Cluster, Endpoints, Identity, Location};

/// What a split refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    pub namespace: String,
    pub name: String,
    pub port: Port,
    /// The Ingress forbids HTTP/2 upstream.
    pub http1_only: bool,
    /// The host is rewritten: another gateway answers, which does not speak the backends' TLS.
    pub rewritten: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    Number(i32),
    Name(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub cluster: Cluster,
    pub endpoints: Endpoints,
    /// Requests can be answered: there is an address, or a name to resolve.
    pub ready: bool,
}

/// Where requests go when the Service has no port that matches, as upstream.
const DEFAULT_PORT: i32 = 80;

// === impl Port ===

impl From<&IntOrString> for Port {
    fn from(port: &IntOrString) -> Self {
        match port {
            IntOrString::Int(number) => Port::Number(*number),
            IntOrString::String(name) => Port::Name(name.clone()),
        }
    }
}

/// `slices` are those of this Service. A Service that does not exist has a cluster without endpoints. With `tls` the
/// backends must prove who they are.
pub fn resolve(reference: &Reference, service: Option<&Service>, slices: &[Arc<EndpointSlice>], tls: bool) -> Backend {
    let spec = service.and_then(|service| service.spec.as_ref());
    let ports = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let (index, port) = find_port(ports, &reference.port);
    let speaks_http2 = ports.iter().any(|port| matches!(port.name.as_deref(), Some("http2" | "h2c")))
        || port.is_some_and(|port| port.app_protocol.as_deref() == Some("kubernetes.io/h2c"));
    let http2 = speaks_http2 && !reference.http1_only;

    let mut name = format!("{}/{}", reference.namespace, reference.name);
    if index > 0 {
        name.push_str(&format!(":{}", ports[index].port));
    }
    if speaks_http2 && !http2 {
        name.push_str(";http1");
    }
    if tls && reference.rewritten {
        name.push_str(";plain");
    }
    let tls = (tls && !reference.rewritten).then(|| Identity {
        // The activator, and the queue-proxies of the namespace.
        names: vec!["kn-routing".to_owned(), format!("kn-user-{}", reference.namespace.to_lowercase())],
    });

    if let Some(spec) = spec.filter(|spec| spec.type_.as_deref() == Some("ExternalName")) {
        let host = spec.external_name.clone().unwrap_or_default();
        let port = port.map_or(DEFAULT_PORT, |port| port.port);
        let location = Location::Dns { host, port: port_number(port) };
        let ready = true;
        return Backend { cluster: Cluster { name, http2, location, tls }, endpoints: Endpoints::default(), ready };
    }
    let endpoints = if service.is_some() { ready_addresses(port, slices) } else { Endpoints::default() };
    let ready = !endpoints.addresses.is_empty();
    Backend { cluster: Cluster { name, http2, location: Location::Endpoints, tls }, endpoints, ready }
}

/// The last match wins, as upstream; the index tells whether it is the Service's first port.
fn find_port<'a>(ports: &'a [ServicePort], wanted: &Port) -> (usize, Option<&'a ServicePort>) {
    let matches = |port: &ServicePort| match wanted {
        Port::Number(number) => port.port == *number,
        Port::Name(name) => port.name.as_deref().unwrap_or_default() == name,
    };
    let found = ports.iter().enumerate().rfind(|(_, port)| matches(port));
    found.map_or((0, None), |(index, port)| (index, Some(port)))
}

fn ready_addresses(port: Option<&ServicePort>, slices: &[Arc<EndpointSlice>]) -> Endpoints {
    let mut addresses = BTreeSet::new();
    for slice in slices.iter().filter(|slice| matches!(slice.address_type.as_str(), "IPv4" | "IPv6")) {
        let Some(number) = slice_port(port, slice) else { continue };
        for endpoint in &slice.endpoints {
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false) {
                addresses.extend(endpoint.addresses.iter().map(|address| (address.clone(), number)));
            }
        }
    }
    Endpoints { addresses: addresses.into_iter().collect() }
}

/// The slice knows best (it has resolved a named target port for its pods); then a numeric target port.
fn slice_port(port: Option<&ServicePort>, slice: &EndpointSlice) -> Option<u16> {
    let Some(port) = port else { return Some(port_number(DEFAULT_PORT)) };
    let name = port.name.as_deref().unwrap_or_default();
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|p| p.name.as_deref().unwrap_or_default() == name).and_then(|p| p.port);
    let target = match &port.target_port {
        Some(IntOrString::Int(number)) if *number > 0 => Some(*number),
        Some(IntOrString::String(_)) => None,
        _ => Some(port.port),
    };
    named.or(target).map(port_number)
}

fn port_number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or_default()
}
