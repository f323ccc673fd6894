//! Rules about an object's own metadata.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::field_error::FieldErrors;
use crate::keys::{self, autoscaling, serving};
use crate::{checks, go};

/// Name, generateName, and (where autoscaling belongs on the template) no autoscaling annotations.
pub fn object(meta: &ObjectMeta, allow_autoscaling: bool) -> FieldErrors {
    let mut errors = name(meta);
    if !allow_autoscaling {
        for key in meta.annotations.iter().flatten().map(|(key, _)| key).filter(|k| k.starts_with(autoscaling::GROUP)) {
            errors.add(FieldErrors::bad_key(key, "annotations").with_details(
                "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work",
            ));
        }
    }
    errors.via("metadata")
}

fn name(meta: &ObjectMeta) -> FieldErrors {
    let name = meta.name.as_deref().unwrap_or_default();
    let generate = meta.generate_name.as_deref().unwrap_or_default();
    if !generate.is_empty() {
        let texts = checks::dns1035_prefix(generate);
        if !texts.is_empty() {
            let message = format!("not a DNS 1035 label prefix: {}", go::list(&texts));
            return FieldErrors::new(message, &["generateName"]);
        }
    }
    if !name.is_empty() {
        let texts = checks::dns1035_label(name);
        if !texts.is_empty() {
            return FieldErrors::new(format!("not a DNS 1035 label: {}", go::list(&texts)), &["name"]);
        }
    }
    if name.is_empty() && generate.is_empty() {
        return FieldErrors::new("name or generateName is required", &["name"]);
    }
    FieldErrors::none()
}

pub fn rollout_duration(meta: &ObjectMeta) -> FieldErrors {
    let empty = BTreeMap::new();
    match keys::first(meta.annotations.as_ref().unwrap_or(&empty), serving::ROLLOUT_DURATION_ALIASES) {
        Some((key, value)) => whole_seconds("rollout-duration", key, value).via("metadata.annotations"),
        None => FieldErrors::none(),
    }
}

/// A duration annotation in whole seconds, not negative; empty is ignored.
pub(super) fn whole_seconds(what: &str, key: &str, value: &str) -> FieldErrors {
    if value.is_empty() {
        return FieldErrors::none();
    }
    match go::parse_duration(value) {
        Err(_) => FieldErrors::invalid(value, key),
        Ok(nanos) if nanos % 1_000_000_000 != 0 => {
            FieldErrors::new(format!("{what}={value} is not at second precision"), &[key])
        }
        Ok(nanos) if nanos < 0 => FieldErrors::new(format!("{what}={value} must be positive"), &[key]),
        Ok(_) => FieldErrors::none(),
    }
}

pub fn owned_by_service(meta: &ObjectMeta) -> FieldErrors {
    owned_by(meta, serving::SERVICE, "Service")
}

pub fn owned_by_configuration(meta: &ObjectMeta) -> FieldErrors {
    owned_by(meta, serving::CONFIGURATION, "Configuration")
}

/// A label that names an owner is only for objects that owner made.
fn owned_by(meta: &ObjectMeta, label: &str, kind: &str) -> FieldErrors {
    let Some(name) = meta.labels.as_ref().and_then(|labels| labels.get(label)) else { return FieldErrors::none() };
    let owned = meta.owner_references.iter().flatten().any(|o| o.kind == kind && &o.name == name);
    if owned { FieldErrors::none() } else { FieldErrors::missing(label).via("metadata.labels") }
}
