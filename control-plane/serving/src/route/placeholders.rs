//! The core Service that stands for a Route (and one per tag) inside the cluster: it holds the name and points at the
//! gateway.

use std::collections::BTreeMap;

use api::keys::networking::{CLUSTER_LOCAL, VISIBILITY};
use api::keys::serving;
use api::networking::v1alpha1::{Ingress, LoadBalancerIngress};
use api::serving::v1::Route;
use controller::owner_reference;
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

const H2C: &str = "kubernetes.io/h2c";

/// What the load balancer's status makes of a placeholder.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    pub service: Service,
    /// Beside a Service without selector that stands for an address.
    pub endpoints: Option<Endpoints>,
}

/// How to bring an existing Service to the desired one.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Nothing,
    Update(Box<Service>),
    /// The type or cluster IP cannot be changed in place.
    Replace,
}

/// Before anything is known of the gateway.
pub fn initial(route: &Route, hostname: &str, external_name: String) -> Service {
    service(route, hostname, external_name_spec(external_name))
}

/// What the Ingress's status asks for, or why nothing can be made of it.
pub fn from_ingress(route: &Route, hostname: &str, existing: &Service, ingress: &Ingress) -> Result<Desired, String> {
    let status = ingress.status.clone().unwrap_or_default();
    let private = status.private_load_balancer.unwrap_or_default().ingress;
    let public = status.public_load_balancer.unwrap_or_default().ingress;
    let local = existing.labels().get(VISIBILITY).is_some_and(|v| v == CLUSTER_LOCAL);
    let balancers = if local || !private.is_empty() { private } else { public };
    let [balancer] = balancers.as_slice() else {
        return Err(match balancers.len() {
            0 => "the ingress has no load balancer yet".to_owned(),
            n => format!("the ingress has {n} load balancers where one is expected"),
        });
    };
    let mut endpoints = None;
    let spec = match balancer {
        LoadBalancerIngress { ip, .. } if !ip.is_empty() => {
            endpoints = Some(address(route, hostname, ip));
            ServiceSpec {
                type_: Some("ClusterIP".to_owned()),
                cluster_ip: Some("None".to_owned()),
                ports: Some(vec![gateway_port()]),
                ..ServiceSpec::default()
            }
        }
        LoadBalancerIngress { domain_internal, .. } if !domain_internal.is_empty() => {
            external_name_spec(domain_internal.clone())
        }
        LoadBalancerIngress { domain, .. } if !domain.is_empty() => external_name_spec(domain.clone()),
        LoadBalancerIngress { mesh_only: true, .. } => ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            ports: Some(vec![ServicePort { name: Some("http".to_owned()), port: 80, ..ServicePort::default() }]),
            ..ServiceSpec::default()
        },
        _ => return Err("the ingress's load balancer has neither address nor domain".to_owned()),
    };
    Ok(Desired { service: service(route, hostname, spec), endpoints })
}

fn service(route: &Route, hostname: &str, spec: ServiceSpec) -> Service {
    let mut labels = route.labels().clone();
    labels.remove(VISIBILITY);
    labels.insert(serving::ROUTE.to_owned(), route.name_any());
    Service {
        metadata: ObjectMeta {
            name: Some(hostname.to_owned()),
            namespace: route.namespace(),
            labels: Some(labels),
            annotations: Some(route.annotations().clone()),
            owner_references: Some(vec![owner_reference(route)]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn external_name_spec(name: String) -> ServiceSpec {
    ServiceSpec {
        type_: Some("ExternalName".to_owned()),
        external_name: Some(name),
        session_affinity: Some("None".to_owned()),
        ports: Some(vec![gateway_port()]),
        ..ServiceSpec::default()
    }
}

fn gateway_port() -> ServicePort {
    ServicePort {
        name: Some("http2".to_owned()),
        app_protocol: Some(H2C.to_owned()),
        port: 80,
        target_port: Some(IntOrString::Int(80)),
        ..ServicePort::default()
    }
}

fn address(route: &Route, hostname: &str, ip: &str) -> Endpoints {
    Endpoints {
        metadata: service(route, hostname, ServiceSpec::default()).metadata,
        subsets: Some(vec![EndpointSubset {
            addresses: Some(vec![EndpointAddress { ip: ip.to_owned(), ..EndpointAddress::default() }]),
            ports: Some(vec![EndpointPort {
                name: Some("http2".to_owned()),
                app_protocol: Some(H2C.to_owned()),
                port: 80,
                ..EndpointPort::default()
            }]),
            ..EndpointSubset::default()
        }]),
    }
}

/// Labels and annotations that others added stay.
pub fn change(existing: &Service, desired: &Service) -> Change {
    let empty = ServiceSpec::default();
    let (old, new) = (existing.spec.as_ref().unwrap_or(&empty), desired.spec.as_ref().unwrap_or(&empty));
    let mut new = new.clone();
    if is_cluster_ip(old) {
        let ip = |spec: &ServiceSpec| spec.cluster_ip.clone().unwrap_or_default();
        if !is_cluster_ip(&new) {
            return Change::Replace;
        }
        if ip(old) != ip(&new) {
            if ip(&new).is_empty() && ip(old) != "None" {
                new.cluster_ip = old.cluster_ip.clone();
            } else {
                return Change::Replace;
            }
        }
    }
    let metadata_kept =
        contains(existing.labels(), desired.labels()) && contains(existing.annotations(), desired.annotations());
    if metadata_kept && same_spec(old, &new) {
        return Change::Nothing;
    }
    let mut updated = existing.clone();
    updated.labels_mut().extend(desired.labels().clone());
    updated.annotations_mut().extend(desired.annotations().clone());
    updated.spec = Some(new);
    Change::Update(Box::new(updated))
}

fn is_cluster_ip(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref().unwrap_or("ClusterIP") == "ClusterIP"
}

fn contains(map: &BTreeMap<String, String>, part: &BTreeMap<String, String>) -> bool {
    part.iter().all(|(k, v)| map.get(k) == Some(v))
}

/// Equal in what we set; the rest is the API server's.
fn same_spec(existing: &ServiceSpec, desired: &ServiceSpec) -> bool {
    let ports = |spec: &ServiceSpec| -> Vec<ServicePort> {
        let mut ports = spec.ports.clone().unwrap_or_default();
        for port in &mut ports {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
            port.target_port.get_or_insert(IntOrString::Int(port.port));
        }
        ports
    };
    existing.type_.as_deref().unwrap_or("ClusterIP") == desired.type_.as_deref().unwrap_or("ClusterIP")
        && existing.external_name.as_deref().unwrap_or_default() == desired.external_name.as_deref().unwrap_or_default()
        && (desired.cluster_ip.is_none() || existing.cluster_ip == desired.cluster_ip)
        && (desired.session_affinity.is_none() || existing.session_affinity == desired.session_affinity)
        && ports(existing) == ports(desired)
}
