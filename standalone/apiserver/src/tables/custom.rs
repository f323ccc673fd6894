//! Columns of custom resources, from `additionalPrinterColumns`.

use std::sync::Arc;

use serde_json::Value;

use crate::jsonpath::JsonPath;
use crate::registry::RowFn;
use crate::{Column, duration};

/// Columns and row function of a CRD version. Without printer columns the result is Name and Age. A path that does not parse is an error
/// for the one who registers the CRD.
pub fn columns(printer_columns: &[Value]) -> Result<(Vec<Column>, RowFn), String> {
    let mut columns = vec![Column::name_column()];
    let mut paths = Vec::new();
    for definition in printer_columns {
        let text = |field: &str| definition.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let path = text("jsonPath");
        let description = match text("description") {
            empty if empty.is_empty() => format!("Custom resource definition column (in JSONPath format): {path}"),
            given => given,
        };
        paths.push((JsonPath::parse(&path)?, text("type")));
        columns.push(Column {
            name: text("name").into(),
            kind: text("type").into(),
            format: text("format").into(),
            description: description.into(),
            priority: definition.get("priority").and_then(Value::as_i64).unwrap_or(0) as i32,
        });
    }
    if printer_columns.is_empty() {
        columns.push(Column::age_column());
        paths.push((JsonPath::parse(".metadata.creationTimestamp")?, "date".to_owned()));
    }
    let row: RowFn = Arc::new(move |object, now| {
        let mut cells = vec![super::name(object)];
        cells.extend(paths.iter().map(|(path, kind)| path.first(object).map_or(Value::Null, |v| cell(v, kind, now))));
        cells
    });
    Ok((columns, row))
}

fn cell(value: &Value, kind: &str, now: jiff::Timestamp) -> Value {
    match kind {
        "string" => match value {
            Value::String(_) => value.clone(),
            Value::Null => Value::Null,
            other => other.to_string().into(),
        },
        "integer" => match value.as_i64().or_else(|| value.as_f64().map(|n| n as i64)) {
            Some(number) => number.into(),
            None => Value::Null,
        },
        "number" if value.is_number() => value.clone(),
        "boolean" if value.is_boolean() => value.clone(),
        "date" if value.is_string() => duration::since(Some(value), now).into(),
        _ => Value::Null,
    }
}
