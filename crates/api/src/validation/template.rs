//! The revision template of a Service or Configuration.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::metadata::whole_seconds;
use super::{annotations, revision_spec};
use crate::admission::ConfigSnapshot;
use crate::field_error::FieldErrors;
use crate::keys::{self, networking, queue_sidecar, serving};
use crate::serving::v1::{RevisionTemplateSpec, TemplateMeta};
use crate::{checks, go};

/// `networking.knative.dev` annotations that a template (or ServerlessService) may carry.
const NETWORKING_ANNOTATIONS: &[&[&str]] = &[
    networking::INGRESS_CLASS_ALIASES,
    networking::CERTIFICATE_CLASS_ALIASES,
    networking::DISABLE_EXTERNAL_TLS,
    networking::HTTP_PROTOCOL,
];

/// Paths relative to the template.
pub fn template(template: &RevisionTemplateSpec, parent: &ObjectMeta, config: &ConfigSnapshot) -> FieldErrors {
    let meta = &template.metadata;
    let mut errors = revision_spec(&template.spec, config).via("spec");
    errors.add(annotations::check(&meta.annotations, config).via("metadata"));
    errors.add(networking_annotations(&meta.annotations).via("metadata.annotations"));
    errors.add(name(meta, parent).via("metadata"));
    errors.add(queue_sidecar(&meta.annotations).via("metadata"));
    if let Some(deadline) = meta.annotations.get(serving::PROGRESS_DEADLINE) {
        errors
            .add(whole_seconds("progress-deadline", serving::PROGRESS_DEADLINE, deadline).via("metadata.annotations"));
    }
    errors
}

pub(super) fn networking_annotations(annotations: &BTreeMap<String, String>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for key in annotations.keys().filter(|key| key.starts_with(networking::PREFIX)) {
        if !NETWORKING_ANNOTATIONS.iter().any(|aliases| aliases.contains(&key.as_str())) {
            errors.add(FieldErrors::bad_key(key, ""));
        }
    }
    errors
}

fn name(meta: &TemplateMeta, parent: &ObjectMeta) -> FieldErrors {
    if !meta.generate_name.is_empty() {
        let texts = checks::dns1035_prefix(&meta.generate_name);
        if !texts.is_empty() {
            let value = format!("not a DNS 1035 label prefix: {}", go::list(&texts));
            return FieldErrors::invalid(value, "generateName");
        }
    }
    if meta.name.is_empty() {
        return FieldErrors::none();
    }
    let texts = checks::dns1035_label(&meta.name);
    if !texts.is_empty() {
        return FieldErrors::invalid(format!("not a DNS 1035 label: {}", go::list(&texts)), "name");
    }
    let parent_name = parent.name.as_deref().unwrap_or_default();
    if parent_name.is_empty() && parent.generate_name.as_deref().is_some_and(|n| !n.is_empty()) {
        return FieldErrors::disallowed(&["name"]);
    }
    let prefix = format!("{parent_name}-");
    if !meta.name.starts_with(&prefix) {
        let value = format!("{} must have prefix {}", go::quote(&meta.name), go::quote(&prefix));
        return FieldErrors::invalid(value, "name");
    }
    FieldErrors::none()
}

fn queue_sidecar(annotations: &BTreeMap<String, String>) -> FieldErrors {
    let mut errors = FieldErrors::none();
    if let Some((key, value)) = keys::first(annotations, queue_sidecar::RESOURCE_PERCENTAGE) {
        errors.add(FieldErrors::new("Queue proxy resource percentage annotation is deprecated. Please use the available annotations to explicitly set resource values per service", &[]).as_warning());
        let invalid = match go::parse_f64(value) {
            Err(_) => FieldErrors::invalid(value, ""),
            Ok(n) if !(0.1..=100.0).contains(&n) => FieldErrors::out_of_range(value, 0.1, 100, ""),
            Ok(_) => FieldErrors::none(),
        };
        errors.add(invalid.via_key("annotations", key));
    }
    for key in [
        queue_sidecar::CPU_REQUEST,
        queue_sidecar::CPU_LIMIT,
        queue_sidecar::MEMORY_REQUEST,
        queue_sidecar::MEMORY_LIMIT,
        queue_sidecar::EPHEMERAL_STORAGE_REQUEST,
        queue_sidecar::EPHEMERAL_STORAGE_LIMIT,
    ] {
        if let Some(value) = annotations.get(key).filter(|value| go::parse_quantity(value).is_err()) {
            errors.add(FieldErrors::invalid(value, "").via_key("annotations", key));
        }
    }
    errors
}
