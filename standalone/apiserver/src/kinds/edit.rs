//! Small steps on JSON values that every family of rules takes.

use serde_json::{Map, Value};

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn items<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn items_mut<'a>(value: &'a mut Value, field: &str) -> &'a mut [Value] {
    value.get_mut(field).and_then(Value::as_array_mut).map_or(&mut [], Vec::as_mut_slice)
}

/// Whether the field holds something: absent and null are the same.
pub(super) fn has(value: &Value, field: &str) -> bool {
    value.get(field).is_some_and(|v| !v.is_null())
}

/// Sets a field that is absent. Values that are not objects are left for validation to complain about.
pub(super) fn fill(value: &mut Value, field: &str, default: impl Into<Value>) {
    if let Value::Object(map) = value
        && map.get(field).is_none_or(Value::is_null)
    {
        map.insert(field.to_owned(), default.into());
    }
}

/// The same for strings, whose zero value counts as absent.
pub(super) fn fill_text(value: &mut Value, field: &str, default: &str) {
    if value.get(field).is_none_or(|v| v.is_null() || v == "") {
        set(value, field, default);
    }
}

/// The same for numbers, whose zero value counts as absent.
pub(super) fn fill_number(value: &mut Value, field: &str, default: i64) {
    if value.get(field).is_none_or(|v| v.is_null() || v == 0) {
        set(value, field, default);
    }
}

pub(super) fn set(value: &mut Value, field: &str, new: impl Into<Value>) {
    if let Value::Object(map) = value {
        map.insert(field.to_owned(), new.into());
    }
}

pub(super) fn remove(value: &mut Value, field: &str) -> Option<Value> {
    value.as_object_mut().and_then(|map| map.remove(field))
}

/// The object in a field, made when absent.
pub(super) fn child<'a>(value: &'a mut Value, field: &str) -> &'a mut Value {
    fill(value, field, Map::new());
    match value {
        Value::Object(map) => map.entry(field).or_insert(Value::Null),
        other => other,
    }
}

/// Copies a field from one object to another, or removes it there.
pub(super) fn carry(from: &Value, to: &mut Value, field: &str) {
    match from.get(field) {
        Some(value) => set(to, field, value.clone()),
        None => {
            remove(to, field);
        }
    }
}
