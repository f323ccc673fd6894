//! Who made and who last changed an object, kept in annotations (Service, DomainMapping, and Configuration and Route without owner).

use serde_json::{Map, Value, json};

use super::{Operation, Request};
use crate::field_error::FieldErrors;
use crate::keys::serving::{CREATOR, LAST_MODIFIER};
use crate::validation::same;

pub(super) fn applies(kind: &str, object: &Value) -> bool {
    match kind {
        "Service" | "DomainMapping" => true,
        "Configuration" | "Route" => object["metadata"]["ownerReferences"].as_array().is_none_or(Vec::is_empty),
        _ => false,
    }
}

/// `old_spec` is the stored spec after defaulting.
pub(super) fn annotate(request: &Request<'_>, object: &mut Value, old_spec: Option<&Value>) {
    if !applies(request.kind, object) {
        return;
    }
    match request.operation {
        Operation::Create => {
            let annotations = annotations_mut(object);
            annotations.insert(CREATOR.to_owned(), request.user.into());
            annotations.insert(LAST_MODIFIER.to_owned(), request.user.into());
        }
        Operation::Update if old_spec.is_some_and(|old| !same(old, &object["spec"])) => {
            annotations_mut(object).insert(LAST_MODIFIER.to_owned(), request.user.into());
        }
        Operation::Update | Operation::Delete => {}
    }
}

pub(super) fn validate(object: &Value, old: &Value) -> FieldErrors {
    let annotation = |object: &Value, key: &str| object["metadata"]["annotations"][key].as_str().map(str::to_owned);
    let mut errors = FieldErrors::none();
    if annotation(object, CREATOR).unwrap_or_default() != annotation(old, CREATOR).unwrap_or_default() {
        errors.add(FieldErrors::new("annotation value is immutable", &[CREATOR]));
    }
    let modifier = annotation(object, LAST_MODIFIER).unwrap_or_default();
    if modifier != annotation(old, LAST_MODIFIER).unwrap_or_default() && same(&object["spec"], &old["spec"]) {
        errors.add(FieldErrors::invalid(modifier, LAST_MODIFIER));
    }
    errors.via("metadata.annotations")
}

pub(super) fn annotations_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"]["annotations"].is_object() {
        object["metadata"]["annotations"] = json!({});
    }
    object["metadata"]["annotations"].as_object_mut().expect("made an object above")
}
