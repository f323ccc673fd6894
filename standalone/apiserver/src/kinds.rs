//! The kinds that are compiled in: what Kubernetes knows without any custom resource definition, reduced to what is served here.
//!
//! One entry per kind, in the order of discovery: core comes first, so `services` means Kubernetes Services and not Knative's. Rules live in
//! one module per family; they work on JSON values, so that fields nobody here knows survive.

mod access;
mod autoscaling;
mod cluster;
mod config;
mod edit;
mod events;
mod network;
mod pod_spec;
mod pod_spec_check;
mod pods;
mod quantity;
mod reviews;
mod service;
mod shape;
mod workloads;

use std::sync::Arc;

use k8s_openapi::api::{
    admissionregistration::v1 as registration, apps::v1 as apps, autoscaling::v2 as scaling,
    coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events_v1,
    rbac::v1 as rbac,
};
use serde_json::Value;

pub use events::{EVENT_TTL, event_expired};
pub use service::Range;

use crate::boot::ApiAddress;
use crate::names::NameFormat;
use crate::registry::{Name, ScalePaths};
use crate::{Conversion, FieldError, FieldLabel, Kind, Scope, Strategy, Subresource, strategic, tables};

/// What the rules of the built-in kinds depend on.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where cluster addresses of Services come from.
    pub service_range: Range,
    /// Ports of Services of type NodePort and LoadBalancer.
    pub node_ports: std::ops::RangeInclusive<u16>,
    /// PEM, for ConfigMap `kube-root-ca.crt` of every namespace.
    pub root_certificate: Option<String>,
    /// Where Service `default/kubernetes` leads. None: the API has no listener that pods could reach.
    pub api: Option<ApiAddress>,
}

impl Default for Options {
    fn default() -> Self {
        Self { service_range: Range::default(), node_ports: 30000..=32767, root_certificate: None, api: None }
    }
}

/// Why a pod with this spec would be refused, after what the API fills in.
pub fn pod_errors(mut spec: Value) -> Vec<FieldError> {
    pod_spec::default(&mut spec);
    pod_spec::default_pod(&mut spec);
    pod_spec_check::check(&spec, "spec")
}

/// How a kind's `metadata.name` is formed.
pub fn name_format(kind: &Kind) -> NameFormat {
    match (&*kind.group, &*kind.kind) {
        ("", "Namespace") => NameFormat::Label,
        ("", "Service") => NameFormat::Label1035,
        ("rbac.authorization.k8s.io", _) => NameFormat::PathSegment,
        _ => NameFormat::Subdomain,
    }
}

/// All of them, except CustomResourceDefinition, which adds to the table itself.
pub fn builtin(options: &Options) -> Vec<Kind> {
    let mut kinds = core_kinds(options);
    kinds.extend(group_kinds());
    kinds.extend(reviews::kinds());
    kinds.iter_mut().for_each(tables::builtin::install);
    kinds
}

fn core_kinds(options: &Options) -> Vec<Kind> {
    let namespaced = |kind, plural| Builder::namespaced("", "v1", kind, plural);
    vec![
        namespaced("ConfigMap", "configmaps").short(&["cm"]).shape::<core::ConfigMap>().rules(config::ConfigMap).kind,
        namespaced("Endpoints", "endpoints").short(&["ep"]).shape::<core::Endpoints>().rules(network::Endpoints).kind,
        Kind {
            storage: "events".into(),
            ..namespaced("Event", "events")
                .short(&["ev"])
                .shape::<core::Event>()
                .fields(events::labels(false))
                .rules(events::Event)
                .kind
        },
        Builder::cluster("", "v1", "Namespace", "namespaces")
            .short(&["ns"])
            .status()
            .sub("finalize", "", "v1", "Namespace", &["update"])
            .shape::<core::Namespace>()
            .fields(vec![FieldLabel::dotted("status.phase")])
            .rules(cluster::Namespace)
            .without("deletecollection")
            .kind,
        Builder::cluster("", "v1", "Node", "nodes")
            .short(&["no"])
            .status()
            .shape::<core::Node>()
            .fields(vec![boolean("spec.unschedulable")])
            .rules(cluster::Node)
            .kind,
        namespaced("Pod", "pods")
            .short(&["po"])
            .category("all")
            .generation()
            .status()
            .sub("binding", "", "v1", "Binding", &["create"])
            .sub("eviction", "policy", "v1", "Eviction", &["create"])
            .sub("log", "", "v1", "Pod", &["get"])
            .shape::<core::Pod>()
            .fields(pods::labels())
            .rules(pods::Pod)
            .kind,
        namespaced("Secret", "secrets")
            .shape::<core::Secret>()
            .fields(vec![FieldLabel::dotted("type")])
            .rules(config::Secret)
            .kind,
        namespaced("ServiceAccount", "serviceaccounts")
            .short(&["sa"])
            .sub("token", "authentication.k8s.io", "v1", "TokenRequest", &["create"])
            .shape::<core::ServiceAccount>()
            .kind,
        namespaced("Service", "services")
            .short(&["svc"])
            .category("all")
            .status()
            .shape::<core::Service>()
            .fields(vec![FieldLabel::dotted("spec.clusterIP"), FieldLabel::dotted("spec.type")])
            .rules(service::Service::new(options.service_range, options.node_ports.clone()))
            .kind,
    ]
}

fn group_kinds() -> Vec<Kind> {
    const ADMISSION: &str = "admissionregistration.k8s.io";
    const RBAC: &str = "rbac.authorization.k8s.io";
    let replicas = || vec![FieldLabel { default: "0".into(), ..FieldLabel::dotted("status.replicas") }];
    vec![
        Builder::namespaced("apps", "v1", "Deployment", "deployments")
            .short(&["deploy"])
            .category("all")
            .generation()
            .status()
            .scale()
            .shape::<apps::Deployment>()
            .rules(workloads::Deployment)
            .kind,
        Builder::namespaced("apps", "v1", "ReplicaSet", "replicasets")
            .short(&["rs"])
            .category("all")
            .generation()
            .status()
            .scale()
            .shape::<apps::ReplicaSet>()
            .fields(replicas())
            .rules(workloads::ReplicaSet)
            .kind,
        Kind {
            storage: "events".into(),
            convert: Some(Conversion { to_stored: events::to_core, from_stored: events::from_core }),
            ..Builder::namespaced("events.k8s.io", "v1", "Event", "events")
                .short(&["ev"])
                .shape::<events_v1::Event>()
                .fields(events::labels(true))
                .rules(events::Event)
                .kind
        },
        Builder::namespaced("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            .short(&["hpa"])
            .category("all")
            .status()
            .shape::<scaling::HorizontalPodAutoscaler>()
            .rules(autoscaling::HorizontalPodAutoscaler)
            .kind,
        Builder::namespaced(RBAC, "v1", "RoleBinding", "rolebindings")
            .shape::<rbac::RoleBinding>()
            .rules(access::Binding)
            .kind,
        Builder::namespaced(RBAC, "v1", "Role", "roles").shape::<rbac::Role>().rules(access::Role).kind,
        Builder::cluster(RBAC, "v1", "ClusterRoleBinding", "clusterrolebindings")
            .shape::<rbac::ClusterRoleBinding>()
            .rules(access::Binding)
            .kind,
        Builder::cluster(RBAC, "v1", "ClusterRole", "clusterroles")
            .shape::<rbac::ClusterRole>()
            .rules(access::Role)
            .kind,
        Builder::cluster(ADMISSION, "v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations")
            .category("api-extensions")
            .generation()
            .shape::<registration::MutatingWebhookConfiguration>()
            .rules(access::Webhooks)
            .kind,
        Builder::cluster(ADMISSION, "v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations")
            .category("api-extensions")
            .generation()
            .shape::<registration::ValidatingWebhookConfiguration>()
            .rules(access::Webhooks)
            .kind,
        Builder::namespaced("coordination.k8s.io", "v1", "Lease", "leases")
            .shape::<coordination::Lease>()
            .rules(cluster::Lease)
            .kind,
        Builder::namespaced("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
            .generation()
            .shape::<discovery::EndpointSlice>()
            .rules(network::EndpointSlice)
            .kind,
    ]
}

/// A field label of a boolean, false when absent.
fn boolean(label: &'static str) -> FieldLabel {
    FieldLabel { default: "false".into(), ..FieldLabel::dotted(label) }
}

/// Reads like the table it builds.
struct Builder {
    kind: Kind,
}

// === impl Builder ===

impl Builder {
    fn new(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str, scope: Scope) -> Self {
        let kind = Kind::new(group, version, kind, plural, scope);
        Self { kind: Kind { strategic: Some(strategic::builtin_lists), ..kind } }
    }

    fn namespaced(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self::new(group, version, kind, plural, Scope::Namespaced)
    }

    fn cluster(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Self {
        Self::new(group, version, kind, plural, Scope::Cluster)
    }

    fn short(mut self, names: &[&'static str]) -> Self {
        self.kind.short_names = names.iter().map(|&name| name.into()).collect();
        self
    }

    fn category(mut self, name: &'static str) -> Self {
        self.kind.categories.push(name.into());
        self
    }

    fn generation(mut self) -> Self {
        self.kind.has_generation = true;
        self
    }

    fn status(mut self) -> Self {
        self.kind.has_status = true;
        self
    }

    fn scale(mut self) -> Self {
        self.kind.scale = Some(ScalePaths {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: Some("/spec/selector".into()),
        });
        self
    }

    fn sub(
        mut self,
        name: &'static str,
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        verbs: &[&'static str],
    ) -> Self {
        let verbs = verbs.iter().map(|&verb| Name::from(verb)).collect();
        let (name, group, version, kind) = (name.into(), group.into(), version.into(), kind.into());
        self.kind.subresources.push(Subresource { name, group, version, kind, verbs });
        self
    }

    fn without(mut self, verb: &str) -> Self {
        self.kind.verbs.retain(|known| known != verb);
        self
    }

    fn shape<T: shape::Known>(mut self) -> Self {
        self.kind.schema = Some(Arc::new(shape::Shape::<T>::default()));
        self
    }

    fn fields(mut self, labels: Vec<FieldLabel>) -> Self {
        self.kind.field_labels = labels;
        self
    }

    fn rules(mut self, strategy: impl Strategy + 'static) -> Self {
        self.kind.strategy = Arc::new(strategy);
        self
    }
}

#[cfg(test)]
mod tests;
