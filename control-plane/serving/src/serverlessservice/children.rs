//! The Services and Endpoints that a ServerlessService asks for.

use std::collections::BTreeMap;

use api::keys::{self, networking, ports};
use api::networking::v1alpha1::ServerlessService;
use controller::owner_reference;
use k8s_openapi::api::core::v1::{EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

const H2C: &str = "kubernetes.io/h2c";

pub fn private_name(sks: &ServerlessService) -> String {
    api::child_name(&sks.name_any(), "-private")
}

/// Port name and backend port of the revision's protocol.
pub fn protocol(sks: &ServerlessService) -> (&'static str, u16) {
    if is_h2c(sks) { ("http2", ports::BACKEND_HTTP2) } else { ("http", ports::BACKEND_HTTP) }
}

/// Selects the pods; its Endpoints tell which of them are ready.
pub fn private_service(sks: &ServerlessService, selector: &LabelSelector) -> Service {
    let (name, backend) = protocol(sks);
    let named = |name: &str, number| port(name, number, IntOrString::String(name.to_owned()));
    let mut http = port(name, ports::SERVICE_HTTP, number(backend));
    http.app_protocol = is_h2c(sks).then(|| H2C.to_owned());
    let spec = ServiceSpec {
        ports: Some(vec![
            http,
            port("https", ports::SERVICE_HTTPS, number(ports::BACKEND_HTTPS)),
            named("http-autometric", ports::AUTOSCALING_METRICS),
            named("http-usermetric", ports::USER_METRICS),
            // Istio meshes want a Service port for every container port they talk to.
            port(&format!("{name}-istio"), backend, number(backend)),
        ]),
        selector: selector.match_labels.clone(),
        ..ServiceSpec::default()
    };
    service(sks, private_name(sks), networking::SERVICE_TYPE_PRIVATE, spec)
}

/// What the gateway routes to; without a selector, since its Endpoints are chosen here.
pub fn public_service(sks: &ServerlessService) -> Service {
    let (name, backend) = protocol(sks);
    let front = if is_h2c(sks) { ports::SERVICE_HTTP2 } else { ports::SERVICE_HTTP };
    let mut http = port(name, front, number(backend));
    http.app_protocol = is_h2c(sks).then(|| H2C.to_owned());
    let https = port("https", ports::SERVICE_HTTPS, number(ports::BACKEND_HTTPS));
    let spec = ServiceSpec { ports: Some(vec![http, https]), ..ServiceSpec::default() };
    service(sks, sks.name_any(), networking::SERVICE_TYPE_PUBLIC, spec)
}

pub fn public_endpoints(sks: &ServerlessService, subsets: Vec<EndpointSubset>) -> Endpoints {
    let metadata = metadata(sks, sks.name_any(), networking::SERVICE_TYPE_PUBLIC);
    Endpoints { metadata, subsets: (!subsets.is_empty()).then_some(subsets) }
}

/// `existing` with the ports and selector of `desired`, if it has others.
pub fn corrected(existing: &Service, desired: &Service) -> Option<Service> {
    let (there, wanted) = (existing.spec.as_ref()?, desired.spec.as_ref()?);
    let empty = BTreeMap::new();
    let same_selector = there.selector.as_ref().unwrap_or(&empty) == wanted.selector.as_ref().unwrap_or(&empty);
    if there.ports == wanted.ports && same_selector {
        return None;
    }
    let mut corrected = existing.clone();
    let spec = corrected.spec.as_mut()?;
    spec.ports.clone_from(&wanted.ports);
    spec.selector.clone_from(&wanted.selector);
    Some(corrected)
}

fn service(sks: &ServerlessService, name: String, type_: &str, spec: ServiceSpec) -> Service {
    Service { metadata: metadata(sks, name, type_), spec: Some(spec), status: None }
}

fn metadata(sks: &ServerlessService, name: String, type_: &str) -> ObjectMeta {
    let mut labels = sks.labels().clone();
    labels.insert(networking::SERVERLESS_SERVICE.to_owned(), sks.name_any());
    labels.insert(networking::SERVICE_TYPE.to_owned(), type_.to_owned());
    let mut annotations = sks.annotations().clone();
    annotations.remove(keys::LAST_APPLIED);
    ObjectMeta {
        name: Some(name),
        namespace: sks.namespace(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![owner_reference(sks)]),
        ..ObjectMeta::default()
    }
}

fn is_h2c(sks: &ServerlessService) -> bool {
    sks.spec.protocol_type == keys::PROTOCOL_H2C
}

fn port(name: &str, number: u16, target: IntOrString) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: i32::from(number),
        protocol: Some("TCP".to_owned()),
        target_port: Some(target),
        ..ServicePort::default()
    }
}

fn number(port: u16) -> IntOrString {
    IntOrString::Int(i32::from(port))
}
