//! The same table as OpenAPI schemas: names and types of all fields of the built-in kinds, for `kubectl explain`.

use serde_json::{Map, Value, json};

use super::table::{Arity, Field, Table, Type};

/// The message of metadata, whose schema all kinds share.
const OBJECT_META: &str = "meta.ObjectMeta";

/// The properties of a kind; the schemas they refer to are added to `schemas`. `object_meta` is the name of the schema of metadata.
pub(crate) fn describe(
    api_version: &str,
    kind: &str,
    object_meta: &str,
    schemas: &mut Map<String, Value>,
) -> Option<Value> {
    let table = Table::get();
    let message = table.message_of(api_version, kind)?;
    Some(properties(table, message, object_meta, schemas))
}

fn properties(table: &Table, message: &str, object_meta: &str, schemas: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    for field in table.fields(message) {
        match field.kind {
            Type::Message(inner) if field.name.is_empty() => {
                if let Value::Object(inner) = self::properties(table, inner, object_meta, schemas) {
                    properties.extend(inner);
                }
            }
            _ => drop(properties.insert(field.name.to_owned(), property(table, field, object_meta, schemas))),
        }
    }
    Value::Object(properties)
}

fn property(table: &Table, field: &Field, object_meta: &str, schemas: &mut Map<String, Value>) -> Value {
    let one = match field.kind {
        Type::Text | Type::Quantity => json!({ "type": "string" }),
        Type::Integer => json!({ "type": "integer", "format": "int64" }),
        Type::Boolean => json!({ "type": "boolean" }),
        Type::Float => json!({ "type": "number" }),
        Type::Bytes => json!({ "type": "string", "format": "byte" }),
        Type::IntegerOrText => {
            json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] })
        }
        Type::Time | Type::MicroTime => json!({ "type": "string", "format": "date-time" }),
        Type::Raw => json!({ "type": "object" }),
        Type::Texts => json!({ "type": "array", "items": { "type": "string" } }),
        Type::Message(OBJECT_META) => json!({ "allOf": [{ "$ref": format!("#/components/schemas/{object_meta}") }] }),
        Type::Message(message) => {
            let name = format!("io.k8s.api.{message}");
            if !schemas.contains_key(&name) {
                // Its place is taken first: no message contains itself, but nothing here relies on that.
                schemas.insert(name.clone(), Value::Null);
                let properties = properties(table, message, object_meta, schemas);
                schemas.insert(name.clone(), json!({ "type": "object", "properties": properties }));
            }
            json!({ "allOf": [{ "$ref": format!("#/components/schemas/{name}") }] })
        }
    };
    match field.arity {
        Arity::One => one,
        Arity::List => json!({ "type": "array", "items": one }),
        Arity::Map => json!({ "type": "object", "additionalProperties": one }),
    }
}
