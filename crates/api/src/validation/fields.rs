//! Helpers to look at JSON objects the way Go's typed structs would.

use serde_json::{Map, Value};

use crate::field_error::FieldErrors;

/// Scalars without pointer in Go: their zero value is the same as absent.
const PLAIN_BOOLS: &[&str] = &["hostNetwork", "hostPID", "hostIPC", "stdin", "stdinOnce", "tty", "readOnly"];

pub(super) fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

pub(super) fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object[key].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn present(object: &Value, key: &str) -> bool {
    object.get(key).is_some_and(|value| is_set(key, value))
}

pub(super) fn is_set(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Bool(false) => !PLAIN_BOOLS.contains(&key),
        _ => true,
    }
}

/// The fields of `known` that are set but not allowed, as one error.
pub(super) fn mask(object: &Map<String, Value>, known: &[&str], allowed: impl Fn(&str) -> bool) -> FieldErrors {
    let paths: Vec<&str> = known
        .iter()
        .copied()
        .filter(|key| object.get(*key).is_some_and(|value| is_set(key, value)) && !allowed(key))
        .collect();
    FieldErrors::disallowed(&paths)
}
