//! Request bodies in the Kubernetes protobuf form, which typed clients prefer for built-in kinds and cannot do without.
//!
//! Everything behind this module is JSON: a body is transcoded by a table of field numbers and names, and what it becomes is what the same client
//! would have sent as JSON. Answers are always JSON, which those clients accept.

mod describe;
mod table;
mod wire;

use serde_json::{Map, Value};

pub(crate) use self::describe::describe;
use self::table::{Arity, Field, Table, Type};
use self::wire::{Fields, Malformed, Payload};
use crate::errors::Status;

pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";

/// The object in a body.
pub(crate) fn decode(body: &[u8]) -> Result<Value, Status> {
    let malformed = |_| Status::bad_request("the body is not a well-formed protobuf message");
    let envelope = body
        .strip_prefix(MAGIC)
        .ok_or_else(|| Status::bad_request("the body does not start as Kubernetes protobuf bodies do"))?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields::new(envelope) {
        match field.map_err(malformed)? {
            (1, Payload::Bytes(type_meta)) => {
                for field in Fields::new(type_meta) {
                    match field.map_err(malformed)? {
                        (1, Payload::Bytes(text)) => api_version = wire::text(text).map_err(malformed)?,
                        (2, Payload::Bytes(text)) => kind = wire::text(text).map_err(malformed)?,
                        _ => {}
                    }
                }
            }
            (2, Payload::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let table = Table::get();
    let message = table.message_of(&api_version, &kind).ok_or_else(|| {
        Status::bad_request(format!(
            "no kind {kind:?} of version {api_version:?} is known in protobuf form: send application/json instead"
        ))
    })?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    read(table, message, raw, &mut object).map_err(malformed)?;
    Ok(Value::Object(object))
}

/// Adds the fields of a message to an object. Unknown numbers are fields of later versions and are left out.
fn read(table: &Table, message: &str, bytes: &[u8], into: &mut Map<String, Value>) -> Result<(), Malformed> {
    for entry in Fields::new(bytes) {
        let (number, payload) = entry?;
        let Some(field) = table.field(message, number) else { continue };
        match (field.arity, &field.kind) {
            (Arity::One, Type::Message(inner)) if field.name.is_empty() => read(table, inner, payload.bytes()?, into)?,
            (Arity::One, _) => {
                let value = value(table, &field.kind, &payload)?;
                if !absent(field, &value) {
                    into.insert(field.name.to_owned(), value);
                }
            }
            (Arity::List, Type::Integer) if matches!(payload, Payload::Bytes(_)) => {
                let numbers = wire::packed(payload.bytes()?)?;
                list(into, field).extend(numbers.into_iter().map(Value::from));
            }
            (Arity::List, kind) => {
                let value = value(table, kind, &payload)?;
                list(into, field).push(value);
            }
            (Arity::Map, kind) => {
                let (mut key, mut held) = (String::new(), None);
                for entry in Fields::new(payload.bytes()?) {
                    match entry? {
                        (1, payload) => key = wire::text(payload.bytes()?)?,
                        (2, payload) => held = Some(value(table, kind, &payload)?),
                        _ => {}
                    }
                }
                let held = match held {
                    Some(held) => held,
                    None => value(table, kind, &Payload::Bytes(&[]))?,
                };
                let map = into.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                map.as_object_mut().ok_or(Malformed)?.insert(key, held);
            }
        }
    }
    Ok(())
}

fn list<'a>(into: &'a mut Map<String, Value>, field: &Field) -> &'a mut Vec<Value> {
    let slot = into.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut().expect("it was just made one")
}

fn value(table: &Table, kind: &Type, payload: &Payload<'_>) -> Result<Value, Malformed> {
    Ok(match kind {
        Type::Text => wire::text(payload.bytes()?)?.into(),
        Type::Integer => payload.integer()?.into(),
        Type::Boolean => (payload.integer()? != 0).into(),
        Type::Float => payload.float()?.into(),
        Type::Bytes => wire::base64(payload.bytes()?).into(),
        Type::Quantity => wire::inner_text(payload.bytes()?, 1)?.into(),
        Type::IntegerOrText => wire::integer_or_text(payload.bytes()?)?,
        Type::Time => wire::time(payload.bytes()?, false)?,
        Type::MicroTime => wire::time(payload.bytes()?, true)?,
        Type::Raw => {
            let text = wire::inner_text(payload.bytes()?, 1)?;
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).map_err(|_| Malformed)? }
        }
        Type::Texts => {
            let mut texts = Vec::new();
            for entry in Fields::new(payload.bytes()?) {
                texts.push(wire::text(entry?.1.bytes()?)?.into());
            }
            Value::Array(texts)
        }
        Type::Message(message) => {
            let mut object = Map::new();
            read(table, message, payload.bytes()?, &mut object)?;
            Value::Object(object)
        }
    })
}

/// Go writes zeros of fields that are no pointers; in JSON they are left out.
fn absent(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => !field.pointer && text.is_empty(),
        Value::Number(number) => !field.pointer && number.as_f64() == Some(0.0),
        Value::Bool(flag) => !field.pointer && !flag,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
