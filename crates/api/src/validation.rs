//! Validation, as pure functions that return field errors with upstream's texts and paths.
//!
//! Pod specs are checked as JSON: what matters is which fields are set, including those the typed form does not have.
//! Where upstream's nesting of error paths is plainly a slip (errors of one container prefixed with the index of another), the path
//! of the field is given instead.

mod annotations;
mod containers;
mod fields;
pub mod internal;
pub mod metadata;
mod podspec;
mod probes;
mod semantic;
mod template;
mod traffic;
mod volumes;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use annotations::autoscaling_annotations;
pub use semantic::{diff, same};
pub use template::template;
pub use traffic::traffic;

use crate::admission::ConfigSnapshot;
use crate::checks;
use crate::field_error::FieldErrors;
use crate::go;
use crate::serving::v1::{RevisionSpec, ServiceSpec};
use crate::serving::v1beta1::DomainMappingSpec;

pub fn service_spec(spec: &ServiceSpec, parent: &ObjectMeta, config: &ConfigSnapshot) -> FieldErrors {
    template(&spec.template, parent, config).via("template").and(traffic(&spec.traffic, true))
}

pub fn revision_spec(spec: &RevisionSpec, config: &ConfigSnapshot) -> FieldErrors {
    let mut errors = podspec::pod_spec(&spec.pod, config);
    let defaults = &config.defaults;
    if let Some(timeout) = spec.timeout_seconds {
        let max = defaults.max_revision_timeout_seconds;
        if timeout < 0 || timeout > max {
            errors.add(FieldErrors::out_of_range(timeout, 0, max, "timeoutSeconds"));
        }
    }
    if let Some(concurrency) = spec.container_concurrency {
        errors.add(container_concurrency(concurrency, config));
    }
    errors
}

fn container_concurrency(concurrency: i64, config: &ConfigSnapshot) -> FieldErrors {
    let low = i64::from(!config.defaults.allow_container_concurrency_zero);
    let max = config.defaults.container_concurrency_max_limit;
    if concurrency < low || concurrency > max {
        return FieldErrors::out_of_range(concurrency, low, max, "containerConcurrency");
    }
    FieldErrors::none()
}

pub fn domain_mapping(
    meta: &ObjectMeta,
    spec: &DomainMappingSpec,
    namespace: &str,
    config: &ConfigSnapshot,
) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let name = meta.name.as_deref().unwrap_or_default();
    if meta.generate_name.as_deref().is_some_and(|n| !n.is_empty()) {
        errors.add(FieldErrors::disallowed(&["metadata.generateName"]));
    }
    let texts = checks::fqdn(name);
    if let Some(text) = texts.first() {
        let message = format!("invalid name {0}: name: Invalid value: {0}: {text}", go::quote(name));
        errors.add(FieldErrors::new(message, &["metadata.name"]));
    } else if name.ends_with(&format!(".{}", config.cluster_domain)) {
        let message = format!(
            "invalid name {}: must not be a subdomain of cluster local domain {}",
            go::quote(name),
            go::quote(&config.cluster_domain)
        );
        errors.add(FieldErrors::new(message, &["metadata.name"]));
    }
    let reference = &spec.reference;
    let mut in_ref = FieldErrors::none();
    for (field, value) in [("name", &reference.name), ("kind", &reference.kind), ("apiVersion", &reference.api_version)]
    {
        if value.is_empty() {
            in_ref.add(FieldErrors::missing(field));
        }
    }
    if !reference.group.is_empty() {
        in_ref.add(FieldErrors::disallowed(&["group"]));
    }
    if reference.namespace != namespace {
        in_ref.add(FieldErrors::new("mismatched namespaces", &["namespace"]).with_details(format!(
            "parent namespace: {} does not match ref: {}",
            go::quote(namespace),
            go::quote(&reference.namespace)
        )));
    }
    errors.and(in_ref.via("spec.ref"))
}
