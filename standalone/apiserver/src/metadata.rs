//! Object metadata: reading it, what the server sets, and what it refuses.

use serde_json::{Map, Value, json};

use crate::errors::{FieldError, FieldReason};
use crate::names;

/// Characters of generated name suffixes: no vowels and nothing that looks like something else.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;
const GENERATED_LIMIT: usize = 63;
const ANNOTATIONS_LIMIT: usize = 256 << 10;

/// The text at a JSON pointer, "" when there is none.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

pub(crate) fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

pub(crate) fn resource_version(object: &Value) -> &str {
    text(object, "/metadata/resourceVersion")
}

pub(crate) fn deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(Value::is_string)
}

pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

pub(crate) fn set_finalizers(object: &mut Value, finalizers: &[String]) {
    let metadata = fields(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.into());
    }
}

/// The metadata of an object, made when it is absent or no object.
pub(crate) fn fields(object: &mut Value) -> &mut Map<String, Value> {
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata.as_object_mut().expect("was made an object")
}

/// Whole seconds, as Kubernetes writes times.
pub(crate) fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn generate_name(prefix: &str) -> String {
    let mut name: String = prefix.chars().take(GENERATED_LIMIT - SUFFIX_LENGTH).collect();
    name.extend((0..SUFFIX_LENGTH).map(|_| char::from(SUFFIX[fastrand::usize(..SUFFIX.len())])));
    name
}

/// Removes nulls: in typed objects null means absent.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Puts back what only the server sets, from the stored object.
pub(crate) fn restore(object: &mut Value, old: &Value) {
    const SERVER: [&str; 9] = [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ];
    let metadata = fields(object);
    for name in SERVER {
        match old.pointer("/metadata").and_then(|old| old.get(name)) {
            Some(value) => drop(metadata.insert(name.into(), value.clone())),
            None => drop(metadata.remove(name)),
        }
    }
    tidy(metadata);
}

/// What is never stored: server-side apply's records and empty collections.
pub(crate) fn tidy(metadata: &mut Map<String, Value>) {
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    metadata.retain(|name, value| match name.as_str() {
        "labels" | "annotations" => value.as_object().is_some_and(|map| !map.is_empty()),
        "finalizers" | "ownerReferences" => value.as_array().is_some_and(|list| !list.is_empty()),
        _ => !value.is_null(),
    });
}

/// Everything generic about metadata; name rules beyond DNS subdomains are the kind's.
pub(crate) fn validate(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let metadata = &object["metadata"];
    if let Some(why) = name(object).is_empty().then_some("name or generateName is required") {
        errors.push(FieldError::required("metadata.name", why));
    }
    for (key, value) in map(metadata, "labels", &mut errors) {
        if let Err(why) = names::label_key(key) {
            errors.push(FieldError::invalid("metadata.labels", &key.as_str().into(), &why));
        }
        if let Some(Err(why)) = value.as_str().map(names::label_value) {
            errors.push(FieldError::invalid("metadata.labels", value, &why));
        }
    }
    let mut size = 0;
    for (key, value) in map(metadata, "annotations", &mut errors) {
        size += key.len() + value.as_str().map_or(0, str::len);
        if let Err(why) = names::label_key(&key.to_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", &key.as_str().into(), &why));
        }
    }
    if size > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long("metadata.annotations", ANNOTATIONS_LIMIT));
    }
    for (index, finalizer) in finalizers(object).iter().enumerate() {
        if let Err(why) = names::label_key(finalizer) {
            errors.push(FieldError::invalid(format!("metadata.finalizers[{index}]"), &(*finalizer).into(), &why));
        }
    }
    let owners = metadata["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, owner) in owners.iter().enumerate() {
        for (field, why) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let path = format!("metadata.ownerReferences[{index}].{field}");
                errors.push(FieldError::invalid(path, &owner[field].as_str().unwrap_or_default().into(), why));
            }
        }
    }
    if owners.iter().filter(|owner| owner["controller"] == true).count() > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
    errors
}

fn map<'a>(metadata: &'a Value, field: &str, errors: &mut Vec<FieldError>) -> Vec<(&'a String, &'a Value)> {
    let entries: Vec<_> = metadata[field].as_object().into_iter().flatten().collect();
    if let Some((key, value)) = entries.iter().find(|(_, value)| !value.is_string()) {
        let path = format!("metadata.{field}.{key}");
        errors.push(FieldError::new(
            FieldReason::TypeInvalid,
            path,
            format!("Invalid value: {value}: must be of type string"),
        ));
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_fit() {
        let name = generate_name(&"x".repeat(80));
        assert_eq!(name.len(), 63);
    }

    #[test]
    fn metadata_is_checked() {
        let object =
            json!({"metadata": {"name": "a", "labels": {"a": "b c", "x": 1}, "ownerReferences": [{"kind": "A"}]}});
        let fields: Vec<String> = validate(&object).into_iter().map(|error| error.field).collect();
        assert!(
            fields.contains(&"metadata.labels".to_owned()) && fields.contains(&"metadata.labels.x".to_owned()),
            "{fields:?}"
        );
        assert!(fields.contains(&"metadata.ownerReferences[0].uid".to_owned()), "{fields:?}");
    }
}
