//! What the endpoints controllers share: which pods stand behind a Service, on which ports, and how ready they are.

use std::sync::Arc;

use controller::{Change, ObjectKey, Queue};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodCondition, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::caches::{Caches, LABEL};
use crate::selector::{self, matches_map};

/// Label of an EndpointSlice: the Service it belongs to.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice: who writes it.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label that marks what belongs to a headless Service.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// A port as endpoints tell it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) port: i32,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
}

/// A pod as endpoints see it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Backend {
    pub(crate) ip: String,
    pub(crate) ready: bool,
    pub(crate) terminating: bool,
    pub(crate) node: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) target: ObjectReference,
}

/// Adds the keys of the Services that a change of a pod or Service concerns.
pub(crate) fn feed(caches: &Caches, queue: &Queue) {
    let services = caches.services.clone();
    let changed = queue.clone();
    caches.pods.on_event(move |change| {
        let (old, new) = match change {
            Change::Applied { old, new } => (old.map(|old| &**old), Some(&***new)),
            Change::Deleted(old) => (Some(&***old), None),
        };
        if let (Some(old), Some(new)) = (old, new)
            && visible(old) == visible(new)
        {
            return;
        }
        for pod in [old, new].into_iter().flatten() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            for (key, value) in pod.labels() {
                for service in services.by_index(LABEL, &selector::pair(namespace, key, value)) {
                    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                    if selector.is_some_and(|selector| matches_map(selector, pod.metadata.labels.as_ref())) {
                        changed.add(ObjectKey::of(&*service));
                    }
                }
            }
        }
    });
    let changed = queue.clone();
    caches.services.on_event(move |change| changed.add(ObjectKey::of(&**change.object())));
}

/// What of a pod can change the endpoints of a Service.
fn visible(pod: &Pod) -> impl PartialEq + '_ {
    let spec = pod.spec.as_ref();
    (
        &pod.metadata.labels,
        &pod.metadata.uid,
        pod.metadata.deletion_timestamp.is_some(),
        ip(pod),
        is_ready(pod),
        is_finished(pod),
        spec.and_then(|s| s.node_name.as_ref()),
    )
}

/// The pods the selector finds, in name order; none for a Service without a selector.
pub(crate) fn pods(caches: &Caches, namespace: &str, spec: &ServiceSpec) -> Vec<Arc<Pod>> {
    let Some(selector) = &spec.selector else { return Vec::new() };
    let Some((key, value)) = selector.first_key_value() else { return Vec::new() };
    let found = caches.pods.by_index(LABEL, &selector::pair(namespace, key, value));
    found.into_iter().filter(|pod| matches_map(selector, pod.metadata.labels.as_ref())).collect()
}

/// Whether the endpoints of the Service come from a selector.
pub(crate) fn is_selecting(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.selector.as_ref().is_some_and(|selector| !selector.is_empty())
            && spec.type_.as_deref() != Some("ExternalName")
    })
}

pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

/// The pod as an endpoint; none while it has no address or when it is finished.
pub(crate) fn backend(service: &Service, pod: &Pod) -> Option<Backend> {
    if is_finished(pod) {
        return None;
    }
    let spec = pod.spec.as_ref()?;
    let in_domain = spec.subdomain.as_deref() == service.metadata.name.as_deref();
    Some(Backend {
        ip: ip(pod)?.to_owned(),
        ready: is_ready(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        node: spec.node_name.clone(),
        hostname: spec.hostname.clone().filter(|_| in_domain),
        target: ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.uid(),
            ..ObjectReference::default()
        },
    })
}

/// The Service's ports as this pod serves them, named target ports resolved; none if it serves none of them.
pub(crate) fn ports(spec: &ServiceSpec, pod: &Pod) -> Option<Vec<Port>> {
    let declared = spec.ports.as_deref().unwrap_or_default();
    let ports: Vec<Port> = declared
        .iter()
        .filter_map(|declared| {
            Some(Port {
                name: declared.name.clone().unwrap_or_default(),
                port: target_port(declared, pod)?,
                protocol: declared.protocol.clone().unwrap_or_else(|| "TCP".into()),
                app_protocol: declared.app_protocol.clone(),
            })
        })
        .collect();
    (!ports.is_empty() || declared.is_empty()).then_some(ports)
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            if let Ok(number) = name.parse() {
                return Some(number);
            }
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
            let all = spec.containers.iter().chain(sidecars);
            all.flat_map(|container| container.ports.iter().flatten())
                .find(|p| {
                    p.name.as_deref() == Some(name.as_str()) && p.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|p| p.container_port)
        }
    }
}

pub(crate) fn ready_condition(pod: &Pod) -> Option<&PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    ready_condition(pod).is_some_and(|condition| condition.status == "True")
}

fn is_finished(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref().filter(|ip| !ip.is_empty())
}
