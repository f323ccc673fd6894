//! The small decisions of a write: whether it is for this object, what it may not touch, and what it means for generation and deletion.

use std::sync::Arc;

use serde_json::{Value, json};
use store::Object;

use super::Source;
use crate::core::Call;
use crate::errors::{FieldError, FieldReason, Status};
use crate::metadata;
use crate::registry::Kind;

/// One higher; absent counts as nothing.
pub(crate) fn bump_generation(object: &mut Value) {
    let generation = object.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
    metadata::fields(object).insert("generation".into(), (generation + 1).into());
}

/// apiVersion and kind are the resource's; built-ins may leave them out.
pub(super) fn check_type(kind: &Kind, object: &mut Value) -> Result<(), Status> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Status::bad_request(format!("the body must be an object of kind {}", kind.kind)));
    };
    let api_version = kind.api_version();
    let given = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
    if !given("kind").is_empty() && given("kind") != kind.kind {
        return Err(Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): its kind is {:?}",
            kind.kind,
            given("kind")
        )));
    }
    if kind.custom && given("kind").is_empty() {
        return Err(Status::bad_request("Object 'Kind' is missing in the body"));
    }
    if !given("apiVersion").is_empty() && given("apiVersion") != api_version {
        let given = given("apiVersion");
        return Err(Status::bad_request(format!(
            "the API version in the data ({given}) does not match the expected API version ({api_version})"
        )));
    }
    fields.insert("kind".into(), (&*kind.kind).into());
    fields.insert("apiVersion".into(), api_version.into());
    Ok(())
}

/// Name and namespace agree with the URL.
pub(super) fn check_place(call: &Call, object: &Value) -> Result<(), Status> {
    let name = metadata::name(object);
    if !call.name.is_empty() && !name.is_empty() && name != call.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name
        )));
    }
    let namespace = metadata::namespace(object);
    if call.kind.namespaced() && !namespace.is_empty() && namespace != call.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if !call.kind.namespaced() && !namespace.is_empty() {
        return Err(Status::bad_request("namespace is not allowed on this type: it is cluster-scoped"));
    }
    Ok(())
}

/// A resourceVersion or uid in what the client sends must be the stored one.
pub(super) fn check_preconditions(
    call: &Call,
    old: &Object,
    object: &Value,
    source: &Source<'_>,
) -> Result<(), Status> {
    let uid = metadata::uid(object);
    if !uid.is_empty() && uid != old.uid() {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid());
        return Err(Status::conflict(&call.kind, &call.name, &why));
    }
    match metadata::resource_version(object) {
        "" | "0" if call.kind.custom && call.subresource != "scale" && matches!(source, Source::Object { .. }) => {
            let message = "Invalid value: 0x0: must be specified for an update";
            let error = FieldError::new(FieldReason::Invalid, "metadata.resourceVersion", message);
            Err(Status::invalid(&call.kind, &call.name, &[error]))
        }
        "" | "0" => Ok(()),
        version if version == old.revision.to_string() => Ok(()),
        _ => Err(Status::modified(&call.kind, &call.name)),
    }
}

/// A subresource changes only its part; the main path does not change status where `/status` exists.
pub(super) fn keep_the_rest(call: &Call, object: &mut Value, old: &Value) {
    let part = |from: &Value, to: &mut Value, field: &str| match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => drop(to.as_object_mut().map(|fields| fields.remove(field))),
    };
    match &*call.subresource {
        "status" => {
            let mut next = old.clone();
            part(object, &mut next, "status");
            *object = next;
        }
        "finalize" => {
            let mut next = old.clone();
            next["spec"]["finalizers"] = object.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
            *object = next;
        }
        "binding" => {}
        _ if call.kind.has_status => part(old, object, "status"),
        _ => {}
    }
}

pub(super) fn start_metadata(call: &Call, object: &mut Value) {
    let metadata = metadata::fields(object);
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(name);
    }
    metadata::tidy(metadata);
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), metadata::timestamp(call.now).into());
    if call.kind.namespaced() {
        metadata.insert("namespace".into(), (&*call.namespace).into());
    }
    if call.kind.has_generation {
        metadata.insert("generation".into(), 1.into());
    }
}

pub(super) fn exists(kind: &Kind, name: &str, found: &Arc<Object>) -> Status {
    let mut status = Status::already_exists(kind, name);
    if metadata::deleting(&found.value) {
        status.message = format!("object is being deleted: {}", status.message);
    }
    status
}

/// Anything outside metadata, and outside status where it is a subresource.
pub(super) fn spec_differs(kind: &Kind, new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    let counts = |name: &str| name != "metadata" && name != "apiVersion" && !(kind.has_status && name == "status");
    new.keys().chain(old.keys()).filter(|name| counts(name)).any(|name| new.get(name) != old.get(name))
}

/// The last finalizer is gone from an object that only waited for that.
pub(super) fn ends_with_update(kind: &Kind, object: &Value, old: &Value) -> bool {
    let graceful =
        object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or_default() > 0;
    let held = kind.storage == "namespaces"
        && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    metadata::deleting(old) && metadata::finalizers(object).is_empty() && !graceful && !held
}
