//! The placeholder Services that carry a Route's cluster-local names (controllers.md 7.4; upstream
//! `pkg/reconciler/route/resources/service.go`).

use std::collections::BTreeMap;

use api::keys;
use api::networking::v1alpha1::{IngressStatus, LoadBalancerIngress};
use api::serving::v1::Route;
use controller::owner_reference;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

const H2C: &str = "kubernetes.io/h2c";

/// How one placeholder has to change.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    None,
    Update(Box<Service>),
    /// Between having a cluster IP and not having one a Service cannot be updated.
    Replace(Box<Service>),
}

/// The placeholder before the Ingress has an address: it points at its own external name.
pub fn placeholder(route: &Route, name: &str, domain: &str) -> Service {
    Service { metadata: metadata(route, name), spec: Some(external_name(domain)), status: None }
}

/// The placeholder once the Ingress's load balancer is known, and the Endpoints it needs (load balancers with an IP).
/// `None` if the status names no usable address.
pub fn from_load_balancer(
    route: &Route,
    name: &str,
    labels: &BTreeMap<String, String>,
    ingress: &IngressStatus,
) -> Option<(Service, Option<Endpoints>)> {
    let private = ingress.private_load_balancer.as_ref().filter(|balancer| !balancer.ingress.is_empty());
    let is_local = labels.get(keys::networking::VISIBILITY).is_some_and(|v| v == keys::networking::CLUSTER_LOCAL);
    let balancer = if is_local || private.is_some() { private } else { ingress.public_load_balancer.as_ref() };
    let [address] = balancer?.ingress.as_slice() else { return None };
    let (spec, endpoints) = spec_for(route, name, address)?;
    Some((Service { metadata: metadata(route, name), spec: Some(spec), status: None }, endpoints))
}

fn spec_for(route: &Route, name: &str, address: &LoadBalancerIngress) -> Option<(ServiceSpec, Option<Endpoints>)> {
    if !address.ip.is_empty() {
        let spec = ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some("None".to_owned()),
            ports: Some(vec![http2_port()]),
            ..ServiceSpec::default()
        };
        return Some((spec, Some(endpoints(route, name, &address.ip))));
    }
    for domain in [&address.domain_internal, &address.domain] {
        if !domain.is_empty() {
            return Some((external_name(domain), None));
        }
    }
    let mesh = ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        ports: Some(vec![ServicePort { name: Some("http".to_owned()), port: 80, ..ServicePort::default() }]),
        ..ServiceSpec::default()
    };
    address.mesh_only.then_some((mesh, None))
}

/// What to do about an existing placeholder.
pub fn change(existing: &Service, desired: &Service) -> Change {
    let (Some(old), Some(new)) = (&existing.spec, &desired.spec) else { return Change::None };
    let (old_type, new_type) = (kind(old), kind(new));
    let mut spec = new.clone();
    if old_type == "ClusterIP" {
        let (old_ip, new_ip) = (old.cluster_ip.as_deref(), new.cluster_ip.as_deref());
        let has_ip = old_ip.is_some_and(|ip| !ip.is_empty() && ip != "None");
        if new_type == "ClusterIP" && has_ip && new_ip.is_none_or(str::is_empty) {
            spec.cluster_ip.clone_from(&old.cluster_ip);
        } else if new_type != "ClusterIP" || old_ip != new_ip {
            return Change::Replace(Box::new(desired.clone()));
        }
    }
    let mut updated = existing.clone();
    updated.labels_mut().extend(desired.labels().clone());
    updated.annotations_mut().extend(desired.annotations().clone());
    let unchanged = updated.metadata == existing.metadata
        && old_type == new_type
        && old.external_name == spec.external_name
        && (spec.cluster_ip.is_none() || old.cluster_ip == spec.cluster_ip)
        && same_ports(old, &spec);
    if unchanged {
        return Change::None;
    }
    updated.spec = Some(spec);
    Change::Update(Box::new(updated))
}

fn kind(spec: &ServiceSpec) -> &str {
    spec.type_.as_deref().unwrap_or("ClusterIP")
}

fn same_ports(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    let ports = |spec: &ServiceSpec| -> Vec<_> {
        let ports = spec.ports.iter().flatten();
        ports.map(|port| (port.name.clone(), port.port, port.app_protocol.clone())).collect()
    };
    ports(old) == ports(new)
}

fn external_name(domain: &str) -> ServiceSpec {
    ServiceSpec {
        type_: Some("ExternalName".to_owned()),
        external_name: Some(domain.to_owned()),
        session_affinity: Some("None".to_owned()),
        ports: Some(vec![http2_port()]),
        ..ServiceSpec::default()
    }
}

fn http2_port() -> ServicePort {
    ServicePort {
        name: Some("http2".to_owned()),
        app_protocol: Some(H2C.to_owned()),
        port: 80,
        target_port: Some(IntOrString::Int(80)),
        ..ServicePort::default()
    }
}

fn endpoints(route: &Route, name: &str, ip: &str) -> Endpoints {
    Endpoints {
        metadata: metadata(route, name),
        subsets: Some(vec![EndpointSubset {
            addresses: Some(vec![EndpointAddress { ip: ip.to_owned(), ..EndpointAddress::default() }]),
            ports: Some(vec![EndpointPort {
                name: Some("http2".to_owned()),
                port: 80,
                app_protocol: Some(H2C.to_owned()),
                ..EndpointPort::default()
            }]),
            ..EndpointSubset::default()
        }]),
    }
}

fn metadata(route: &Route, name: &str) -> ObjectMeta {
    let mut labels = route.labels().clone();
    labels.remove(keys::networking::VISIBILITY);
    labels.insert(keys::serving::ROUTE.to_owned(), route.name_any());
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: route.namespace(),
        labels: Some(labels),
        annotations: Some(route.annotations().clone()),
        owner_references: Some(vec![owner_reference(route)]),
        ..ObjectMeta::default()
    }
}
