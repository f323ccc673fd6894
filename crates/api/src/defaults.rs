//! Defaulting, as pure functions over the types.
//!
//! The API admission runs them on what is written; controllers run the same ones in memory before they reconcile, so that objects
//! stored under an older configuration behave as if written now.

mod revision;

pub use revision::revision_spec;
use serde_json::{Value, json};

use crate::admission::ConfigSnapshot;
use crate::autoscaling::v1alpha1::PodAutoscaler;
use crate::keys::autoscaling as scaling;
use crate::keys::networking::EXTERNAL_IP;
use crate::networking::v1alpha1::IngressSpec;
use crate::serving::v1::{Configuration, Revision, RevisionTemplateSpec, Route, Service, TrafficTarget};
use crate::serving::v1beta1::DomainMapping;

/// How defaults are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Inside the admission of a creation; some defaults are only for new objects.
    pub create: bool,
    /// The template's name before this change; a template that keeps its name is not touched.
    pub old_template_name: Option<&'a str>,
}

pub fn service(object: &mut Service, config: &ConfigSnapshot, scope: Scope<'_>) {
    let parent = template_meta(&object.metadata);
    template(&mut object.spec.template, &parent, config, scope);
    if object.spec.traffic.is_empty() {
        object.spec.traffic.push(TrafficTarget {
            percent: Some(100),
            latest_revision: Some(true),
            ..TrafficTarget::default()
        });
    }
    traffic(&mut object.spec.traffic);
}

pub fn configuration(object: &mut Configuration, config: &ConfigSnapshot, scope: Scope<'_>) {
    let parent = template_meta(&object.metadata);
    template(&mut object.spec.template, &parent, config, scope);
}

pub fn route(object: &mut Route) {
    traffic(&mut object.spec.traffic);
}

/// Not for updates through the API: a Revision is never changed after its creation.
pub fn revision(object: &mut Revision, config: &ConfigSnapshot, scope: Scope<'_>) {
    let empty = template_meta(&Default::default());
    revision_spec(&mut object.spec, &empty, config, scope.create);
}

pub fn domain_mapping(object: &mut DomainMapping) {
    if object.spec.reference.namespace.is_empty() {
        object.spec.reference.namespace = object.metadata.namespace.clone().unwrap_or_default();
    }
}

pub fn pod_autoscaler(object: &mut PodAutoscaler, config: &ConfigSnapshot) {
    let annotations = object.metadata.annotations.get_or_insert_default();
    let class = annotations
        .entry(scaling::CLASS.to_owned())
        .or_insert_with(|| config.autoscaler.pod_autoscaler_class.clone())
        .clone();
    annotations.entry(scaling::METRIC.to_owned()).or_insert_with(|| {
        match class.as_str() {
            scaling::KPA => scaling::CONCURRENCY,
            scaling::HPA => scaling::CPU,
            _ => "",
        }
        .to_owned()
    });
}

pub fn ingress(spec: &mut IngressSpec) {
    for rule in &mut spec.rules {
        if rule.visibility.is_empty() {
            EXTERNAL_IP.clone_into(&mut rule.visibility);
        }
        for path in rule.http.iter_mut().flat_map(|http| &mut http.paths) {
            if let [only] = path.splits.as_mut_slice()
                && only.percent == 0
            {
                only.percent = 100;
            }
        }
    }
}

fn template(template: &mut RevisionTemplateSpec, parent: &Value, config: &ConfigSnapshot, scope: Scope<'_>) {
    let name = &template.metadata.name;
    if !name.is_empty() && scope.old_template_name == Some(name) {
        return;
    }
    revision_spec(&mut template.spec, parent, config, scope.create);
}

fn traffic(targets: &mut [TrafficTarget]) {
    for target in targets {
        target.latest_revision.get_or_insert(target.revision_name.is_empty());
        target.percent.get_or_insert(0);
    }
}

/// What container name templates can refer to.
fn template_meta(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Value {
    json!({
        "Name": meta.name.as_deref().unwrap_or_default(),
        "GenerateName": meta.generate_name.as_deref().unwrap_or_default(),
        "Namespace": meta.namespace.as_deref().unwrap_or_default(),
        "UID": meta.uid.as_deref().unwrap_or_default(),
        "Labels": meta.labels,
        "Annotations": meta.annotations,
    })
}
