//! Validation of a value against a compiled schema, with the messages the usual validator has.

use serde_json::{Map, Value};

use super::schema::{Kind, Node};
use crate::errors::FieldError;

pub(super) fn node(schema: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && schema.nullable {
        return;
    }
    if schema.int_or_string {
        if !value.is_string() && !integer(value) {
            wrong_type(path, "integer,string", value, errors);
        }
    } else if let Some(kind) = schema.kind
        && !fits(kind, value)
    {
        return wrong_type(path, kind.as_str(), value, errors);
    }
    if !schema.allowed.is_empty() && !schema.allowed.contains(value) {
        let shown: Vec<String> =
            schema.allowed.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)).collect();
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value, &shown));
    }
    match value {
        Value::Object(fields) => object(schema, fields, path, errors),
        Value::Array(items) => list(schema, items, path, errors),
        Value::String(text) => string(schema, text, path, errors),
        Value::Number(number) => numeric(schema, value, number.as_f64().unwrap_or_default(), path, errors),
        _ => {}
    }
    composed(schema, value, path, errors);
}

fn object(schema: &Node, fields: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    for name in &schema.required {
        if !fields.contains_key(name) {
            errors.push(FieldError::required(join(path, name), ""));
        }
    }
    for (name, field) in fields {
        if let Some(inner) = schema.properties.get(name).or(schema.additional.as_deref()) {
            node(inner, field, &join(path, name), errors);
        }
    }
    let limit =
        |name: &str| schema.limits.get(name).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
    if let Some(most) = limit("maxProperties").filter(|most| fields.len() > *most) {
        errors.push(FieldError::too_many(path, fields.len(), most));
    }
    if let Some(least) = limit("minProperties").filter(|least| fields.len() < *least) {
        body(path, &Value::Object(fields.clone()), &format!("should have at least {least} properties"), errors);
    }
}

fn list(schema: &Node, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let limit =
        |name: &str| schema.limits.get(name).and_then(Value::as_u64).and_then(|limit| usize::try_from(limit).ok());
    if let Some(most) = limit("maxItems").filter(|most| items.len() > *most) {
        errors.push(FieldError::too_many(path, items.len(), most));
    }
    if let Some(least) = limit("minItems").filter(|least| items.len() < *least) {
        body(path, &items.len().into(), &format!("should have at least {least} items"), errors);
    }
    if let Some(inner) = &schema.items {
        for (index, item) in items.iter().enumerate() {
            node(inner, item, &format!("{path}[{index}]"), errors);
        }
    }
    let keys = |item: &Value| -> Value {
        match schema.list_keys.as_slice() {
            [] => item.clone(),
            keys => keys
                .iter()
                .filter_map(|key| item.get(key).map(|value| (key.clone(), value.clone())))
                .collect::<Map<_, _>>()
                .into(),
        }
    };
    if schema.list_set || !schema.list_keys.is_empty() {
        let mut seen: Vec<Value> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let key = keys(item);
            if seen.contains(&key) {
                errors.push(FieldError::duplicate(format!("{path}[{index}]"), &key));
            } else {
                seen.push(key);
            }
        }
    }
}

fn string(schema: &Node, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(pattern) = schema.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
        body(path, &text.into(), &format!("should match '{}'", pattern.as_str()), errors);
    }
    let length = text.chars().count() as u64;
    let limit = |name: &str| schema.limits.get(name).and_then(Value::as_u64);
    if let Some(most) = limit("maxLength").filter(|most| length > *most) {
        errors.push(FieldError::too_long(path, usize::try_from(most).unwrap_or(usize::MAX)));
    }
    if let Some(least) = limit("minLength").filter(|least| length < *least) {
        body(path, &text.into(), &format!("should be at least {least} chars long"), errors);
    }
    let formed = match schema.format.as_str() {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        _ => true,
    };
    if !formed {
        body(path, &text.into(), &format!("must be of type {}: {text:?}", schema.format), errors);
    }
}

fn numeric(schema: &Node, value: &Value, number: f64, path: &str, errors: &mut Vec<FieldError>) {
    let limit = |name: &str| schema.limits.get(name).and_then(Value::as_f64);
    let exclusive = |name: &str| schema.limits.get(name) == Some(&Value::Bool(true));
    if let Some(least) = limit("minimum") {
        if exclusive("exclusiveMinimum") && number <= least {
            body(path, value, &format!("should be greater than {least}"), errors);
        } else if number < least {
            body(path, value, &format!("should be greater than or equal to {least}"), errors);
        }
    }
    if let Some(most) = limit("maximum") {
        if exclusive("exclusiveMaximum") && number >= most {
            body(path, value, &format!("should be less than {most}"), errors);
        } else if number > most {
            body(path, value, &format!("should be less than or equal to {most}"), errors);
        }
    }
    if let Some(step) = limit("multipleOf").filter(|step| *step > 0.0 && number % *step != 0.0) {
        body(path, value, &format!("should be a multiple of {step}"), errors);
    }
    if schema.format == "int32" && value.as_i64().is_some_and(|number| i32::try_from(number).is_err()) {
        body(path, value, &format!("must be of type int32: \"{value}\""), errors);
    }
}

fn composed(schema: &Node, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let valid = |inner: &Node| {
        let mut found = Vec::new();
        node(inner, value, path, &mut found);
        found.is_empty()
    };
    for inner in &schema.all_of {
        node(inner, value, path, errors);
    }
    if !schema.int_or_string && !schema.any_of.is_empty() && !schema.any_of.iter().any(valid) {
        errors.push(FieldError::invalid(
            path,
            value,
            &format!("{} must validate at least one schema (anyOf)", quoted(path)),
        ));
    }
    if !schema.one_of.is_empty() && schema.one_of.iter().filter(|inner| valid(inner)).count() != 1 {
        errors.push(FieldError::invalid(
            path,
            value,
            &format!("{} must validate one and only one schema (oneOf)", quoted(path)),
        ));
    }
    if schema.not.as_deref().is_some_and(valid) {
        errors.push(FieldError::invalid(path, value, &format!("{} must not validate the schema (not)", quoted(path))));
    }
}

fn quoted(path: &str) -> String {
    format!("{path:?}")
}

fn fits(kind: Kind, value: &Value) -> bool {
    match kind {
        Kind::Object => value.is_object(),
        Kind::Array => value.is_array(),
        Kind::Text => value.is_string(),
        Kind::Integer => integer(value),
        Kind::Number => value.is_number(),
        Kind::Boolean => value.is_boolean(),
    }
}

fn integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

fn wrong_type(path: &str, wanted: &str, value: &Value, errors: &mut Vec<FieldError>) {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    errors.push(FieldError::type_invalid(
        path,
        found,
        &format!("{path} in body must be of type {wanted}: \"{found}\""),
    ));
}

fn body(path: &str, value: &Value, why: &str, errors: &mut Vec<FieldError>) {
    errors.push(FieldError::invalid(path, value, &format!("{path} in body {why}")));
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
