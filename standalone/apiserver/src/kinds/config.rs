//! ConfigMaps and Secrets: keys, sizes, `immutable`, and `stringData` that becomes `data`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::edit::{child, fill_text, has, remove, set, text};
use crate::{FieldError, Status, Strategy, WriteContext, names};

const LIMIT: usize = 1024 * 1024;

pub(super) struct ConfigMap;

pub(super) struct Secret;

// === impl ConfigMap ===

impl Strategy for ConfigMap {
    fn validate(&self, _cx: &WriteContext<'_>, map: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let mut size = 0;
        for field in ["data", "binaryData"] {
            size += keys(map, field, &mut errors);
        }
        for key in map.get("data").and_then(Value::as_object).into_iter().flat_map(|data| data.keys()) {
            if map.get("binaryData").and_then(|b| b.get(key)).is_some() {
                errors.push(FieldError::invalid(
                    "data",
                    &key.as_str().into(),
                    "duplicate of key present in binaryData",
                ));
            }
        }
        if size > LIMIT {
            errors.push(FieldError::new(
                crate::errors::FieldReason::TooLong,
                "",
                format!("Too long: may not be more than {LIMIT} bytes"),
            ));
        }
        immutable(map, old, &["data", "binaryData"], &mut errors);
        errors
    }
}

// === impl Secret ===

impl Secret {
    fn merge_plain_text(secret: &mut Value) {
        let Some(Value::Object(plain)) = remove(secret, "stringData") else { return };
        if plain.is_empty() {
            return;
        }
        let data = child(secret, "data");
        for (key, value) in plain {
            set(data, &key, STANDARD.encode(value.as_str().unwrap_or_default()));
        }
    }
}

impl Strategy for Secret {
    fn default(&self, secret: &mut Value) {
        fill_text(secret, "type", "Opaque");
        Self::merge_plain_text(secret);
    }

    fn prepare_update(&self, _cx: &WriteContext<'_>, secret: &mut Value, _old: &Value) -> Result<(), Status> {
        Self::merge_plain_text(secret);
        Ok(())
    }

    fn validate(&self, _cx: &WriteContext<'_>, secret: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let size = keys(secret, "data", &mut errors);
        if size > LIMIT {
            errors.push(FieldError::too_long("data", LIMIT));
        }
        for (key, value) in secret.get("data").and_then(Value::as_object).into_iter().flatten() {
            if STANDARD.decode(value.as_str().unwrap_or_default()).is_err() {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    &"<value omitted>".into(),
                    "must be base64 encoded",
                ));
            }
        }
        let needs: &[&str] = match text(secret, "/type") {
            "kubernetes.io/tls" => &["tls.crt", "tls.key"],
            "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
            "kubernetes.io/dockercfg" => &[".dockercfg"],
            "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
            _ => &[],
        };
        for key in needs {
            if secret.get("data").and_then(|data| data.get(key)).is_none() {
                errors.push(FieldError::required(format!("data[{key}]"), ""));
            }
        }
        if let Some(old) = old {
            let kind = text(secret, "/type");
            if kind != text(old, "/type") {
                errors.push(FieldError::invalid("type", &kind.into(), "field is immutable"));
            }
        }
        immutable(secret, old, &["data"], &mut errors);
        errors
    }
}

/// Checks the keys and answers the size of the values.
fn keys(object: &Value, field: &str, errors: &mut Vec<FieldError>) -> usize {
    let mut size = 0;
    for (key, value) in object.get(field).and_then(Value::as_object).into_iter().flatten() {
        if let Err(message) = names::config_key(key) {
            errors.push(FieldError::invalid(format!("{field}[{key}]"), &key.as_str().into(), &message));
        }
        size += value.as_str().map_or(0, str::len);
    }
    size
}

fn immutable(object: &Value, old: Option<&Value>, fields: &[&str], errors: &mut Vec<FieldError>) {
    let Some(old) = old.filter(|old| old.get("immutable") == Some(&Value::Bool(true))) else { return };
    const MESSAGE: &str = "field is immutable when `immutable` is set";
    if !has(object, "immutable") || object["immutable"] == Value::Bool(false) {
        errors.push(FieldError::forbidden("immutable", MESSAGE));
    }
    for field in fields {
        if object.get(field) != old.get(field) {
            errors.push(FieldError::forbidden(*field, MESSAGE));
        }
    }
}
