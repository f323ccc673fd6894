//! The `Table` form of objects: what `kubectl get` prints.
//!
//! A list becomes one Table; a watch event wraps a Table of one row, and only the first event of a stream carries the column definitions.
//! Columns and cells come from the [`Kind`]: compiled in for the built-in kinds ([`builtin`]), from `additionalPrinterColumns` for custom
//! resources ([`custom`]), Name and Age for the rest.

pub mod builtin;
pub mod custom;
mod format;
mod pods;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{Column, Kind, duration};

/// What the rows carry besides the cells (`?includeObject=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    None,
    #[default]
    Metadata,
    Object,
}

// === impl IncludeObject ===

impl IncludeObject {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "Metadata" => Ok(Self::Metadata),
            "None" => Ok(Self::None),
            "Object" => Ok(Self::Object),
            other => Err(format!("unrecognized includeObject value: {other:?}")),
        }
    }
}

// === impl Column ===

impl Column {
    pub fn new(name: &'static str, kind: &'static str, description: &'static str) -> Self {
        Self { name: name.into(), kind: kind.into(), format: "".into(), description: description.into(), priority: 0 }
    }

    pub fn name_column() -> Self {
        Self { format: "name".into(), ..Self::new("Name", "string", NAME) }
    }

    pub fn age_column() -> Self {
        Self::new("Age", "date", AGE)
    }

    pub fn wide(self) -> Self {
        Self { priority: 1, ..self }
    }
}

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources. Cannot be updated.";
const AGE: &str = "CreationTimestamp is a timestamp representing the server time when this object was created.";

/// One Table of these objects. `metadata` is the list's (or, for a single object, what it says about its resourceVersion);
/// `with_columns` is false from the second event of a watch on.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: Value,
    include: IncludeObject,
    now: Timestamp,
    with_columns: bool,
) -> Value {
    let rows: Vec<Value> = objects.into_iter().map(|object| row(kind, object, include, now)).collect();
    let columns = if with_columns { definitions(kind) } else { Value::Null };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns, "rows": rows,
    })
}

/// The Table of a single object, as GET and each watch event answer it.
pub fn of_object(kind: &Kind, object: &Value, include: IncludeObject, now: Timestamp, with_columns: bool) -> Value {
    let version = object.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    table(kind, [object], json!({ "resourceVersion": version }), include, now, with_columns)
}

/// `PartialObjectMetadata` of an object, also an answer of its own (`as=PartialObjectMetadata`).
pub fn partial_metadata(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
}

fn definitions(kind: &Kind) -> Value {
    let defaults;
    let columns = if kind.columns.is_empty() || kind.row.is_none() {
        defaults = [Column::name_column(), Column::age_column()];
        &defaults[..]
    } else {
        &kind.columns[..]
    };
    let definition = |column: &Column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    };
    columns.iter().map(definition).collect()
}

fn row(kind: &Kind, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let cells = match &kind.row {
        Some(cells) if !kind.columns.is_empty() => cells(object, now),
        _ => vec![name(object), age(object, now)],
    };
    let mut row = Map::new();
    row.insert("cells".into(), Value::Array(cells));
    match include {
        IncludeObject::None => {}
        IncludeObject::Metadata => {
            row.insert("object".into(), partial_metadata(object));
        }
        IncludeObject::Object => {
            row.insert("object".into(), object.clone());
        }
    }
    Value::Object(row)
}

/// The cell of the name column.
fn name(object: &Value) -> Value {
    object.pointer("/metadata/name").cloned().unwrap_or_else(|| "".into())
}

/// The cell of the age column.
fn age(object: &Value, now: Timestamp) -> Value {
    duration::since(object.pointer("/metadata/creationTimestamp"), now).into()
}

#[cfg(test)]
mod tests;
