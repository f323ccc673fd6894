//! Structural schemas, compiled once per definition: what is pruned, what is defaulted, what is refused.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use super::check;
use crate::errors::FieldError;
use crate::registry::Schema;

/// A schema node. Composition (`anyOf` and friends) only validates, as structural schemas demand.
#[derive(Default)]
pub(crate) struct Node {
    pub(super) kind: Option<Kind>,
    pub(super) properties: BTreeMap<String, Node>,
    /// `additionalProperties`: a schema, or true.
    pub(super) additional: Option<Box<Node>>,
    pub(super) additional_any: bool,
    pub(super) items: Option<Box<Node>>,
    pub(super) required: Vec<String>,
    pub(super) default: Option<Value>,
    pub(super) nullable: bool,
    pub(super) preserve: bool,
    pub(super) int_or_string: bool,
    pub(super) embedded: bool,
    pub(super) format: String,
    pub(super) pattern: Option<Regex>,
    pub(super) allowed: Vec<Value>,
    pub(super) limits: Map<String, Value>,
    /// `set`, or `map` with these keys.
    pub(super) list_set: bool,
    pub(super) list_keys: Vec<String>,
    pub(super) any_of: Vec<Node>,
    pub(super) all_of: Vec<Node>,
    pub(super) one_of: Vec<Node>,
    pub(super) not: Option<Box<Node>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    Text,
    Integer,
    Number,
    Boolean,
}

/// The schema of one version of a custom resource.
pub(crate) struct Structural {
    root: Node,
    source: Value,
}

/// Set by the server whatever the schema says.
const ROOT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];
const LIMITS: [&str; 10] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
];

// === impl Kind ===

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::Text => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }

    fn parse(text: &str) -> Result<Option<Self>, String> {
        Ok(Some(match text {
            "" => return Ok(None),
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::Text,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            other => return Err(format!("unsupported type {other:?}")),
        }))
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn compile(schema: &Value) -> Result<Self, String> {
        let flag = |name: &str| schema[name] == true;
        let text = |name: &str| schema[name].as_str().unwrap_or_default();
        let many = |name: &str| -> Result<Vec<Self>, String> {
            schema[name].as_array().into_iter().flatten().map(Self::compile).collect()
        };
        let one = |name: &str| -> Result<Option<Box<Self>>, String> {
            schema[name].is_object().then(|| Self::compile(&schema[name]).map(Box::new)).transpose()
        };
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            properties.insert(name.clone(), Self::compile(property)?);
        }
        let strings = |name: &str| -> Vec<String> {
            schema[name].as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
        };
        let pattern = match text("pattern") {
            "" => None,
            pattern => Some(Regex::new(pattern).map_err(|error| format!("invalid pattern {pattern:?}: {error}"))?),
        };
        let mut limits = Map::new();
        for name in LIMITS.iter().chain(&["minProperties", "maxProperties"]) {
            if let Some(limit) = schema.get(*name) {
                limits.insert((*name).to_owned(), limit.clone());
            }
        }
        Ok(Self {
            kind: Kind::parse(text("type"))?,
            properties,
            additional: one("additionalProperties")?,
            additional_any: schema["additionalProperties"] == true,
            items: one("items")?,
            required: strings("required"),
            default: schema.get("default").cloned(),
            nullable: flag("nullable"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            embedded: flag("x-kubernetes-embedded-resource"),
            format: text("format").to_owned(),
            pattern,
            allowed: schema["enum"].as_array().cloned().unwrap_or_default(),
            limits,
            list_set: text("x-kubernetes-list-type") == "set",
            list_keys: strings("x-kubernetes-list-map-keys"),
            any_of: many("anyOf")?,
            all_of: many("allOf")?,
            one_of: many("oneOf")?,
            not: one("not")?,
        })
    }

    /// Removes (or only reports) what the schema does not know.
    fn prune(&self, value: &mut Value, path: &str, root: bool, prune: bool, unknown: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                let kept = |name: &str| (root || self.embedded) && ROOT_FIELDS.contains(&name);
                let mut gone = Vec::new();
                for (name, field) in fields.iter_mut() {
                    let known = self.properties.get(name).or(self.additional.as_deref());
                    match known {
                        _ if kept(name) => {}
                        Some(node) => node.prune(field, &join(path, name), false, prune, unknown),
                        None if self.preserve || self.additional_any || self.int_or_string => {}
                        None => gone.push(name.clone()),
                    }
                }
                for name in gone {
                    unknown.push(join(path, &name));
                    if prune {
                        fields.remove(&name);
                    }
                }
            }
            Value::Array(items) => {
                if let Some(node) = &self.items {
                    for (index, item) in items.iter_mut().enumerate() {
                        node.prune(item, &format!("{path}[{index}]"), false, prune, unknown);
                    }
                }
            }
            _ => {}
        }
    }

    fn fill(&self, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, node) in &self.properties {
                    let Some(default) = &node.default else { continue };
                    let absent = fields.get(name).is_none_or(|value| value.is_null() && !node.nullable);
                    if absent {
                        fields.insert(name.clone(), default.clone());
                    }
                }
                for (name, field) in fields.iter_mut() {
                    let Some(node) = self.properties.get(name).or(self.additional.as_deref()) else { continue };
                    match &node.default {
                        Some(default) if field.is_null() && !node.nullable => *field = default.clone(),
                        _ => node.fill(field),
                    }
                }
            }
            Value::Array(items) => {
                if let Some(node) = &self.items {
                    items.iter_mut().for_each(|item| node.fill(item));
                }
            }
            _ => {}
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

// === impl Structural ===

impl Structural {
    pub(crate) fn compile(schema: &Value) -> Result<Self, String> {
        Ok(Self { root: Node::compile(schema)?, source: schema.clone() })
    }
}

impl Schema for Structural {
    fn unknown_fields(&self, object: &mut Value, prune: bool) -> Vec<String> {
        let mut unknown = Vec::new();
        self.root.prune(object, "", true, prune, &mut unknown);
        unknown
    }

    fn default(&self, object: &mut Value) {
        self.root.fill(object);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        check::node(&self.root, object, "", &mut errors);
        errors
    }

    fn openapi(&self) -> Option<Value> {
        Some(self.source.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Structural {
        Structural::compile(&json!({"type": "object", "properties": {
            "metadata": {"type": "object"},
            "spec": {"type": "object", "required": ["a"], "properties": {
                "a": {"type": "integer"},
                "name": {"type": "string", "default": "x", "pattern": "^[a-z]*$"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"k": {"type": "string"}}},
                "port": {"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"], "items": {
                    "type": "object", "properties": {"port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
            }},
        }}))
        .expect("a structural schema")
    }

    #[test]
    fn unknown_fields_go_and_preserved_ones_stay() {
        let mut object = json!({"metadata": {"x": 1}, "spec": {"a": 1, "b": 2, "free": {"z": {"y": 1}, "k": "v"}, "list": [{"port": 1, "q": 2}]}, "other": 1});
        let mut unknown = schema().unknown_fields(&mut object, true);
        unknown.sort();
        assert_eq!(unknown, ["other", "spec.b", "spec.list[0].q"]);
        assert_eq!(
            object,
            json!({"metadata": {"x": 1}, "spec": {"a": 1, "free": {"z": {"y": 1}, "k": "v"}, "list": [{"port": 1}]}})
        );
    }

    #[test]
    fn defaults_fill_absent_and_null() {
        let mut object = json!({"spec": {"name": null, "list": [{"port": 1}]}});
        schema().default(&mut object);
        assert_eq!(object, json!({"spec": {"name": "x", "list": [{"port": 1, "protocol": "TCP"}]}}));
    }

    #[test]
    fn values_are_checked_with_the_usual_messages() {
        let check = |spec: Value| -> Vec<String> {
            schema().validate(&json!({"spec": spec})).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            check(json!({"a": "x"})),
            [r#"spec.a: Invalid value: "string": spec.a in body must be of type integer: "string""#]
        );
        assert_eq!(check(json!({})), ["spec.a: Required value"]);
        assert_eq!(
            check(json!({"a": 1, "port": {}})),
            [r#"spec.port: Invalid value: "object": spec.port in body must be of type integer,string: "object""#]
        );
        assert_eq!(check(json!({"a": 1, "port": "http"})), [""; 0]);
        assert_eq!(
            check(json!({"a": 1, "name": "A"})),
            [r#"spec.name: Invalid value: "A": spec.name in body should match '^[a-z]*$'"#]
        );
        assert_eq!(
            check(json!({"a": 1, "map": {"k": 1}})),
            [r#"spec.map.k: Invalid value: "integer": spec.map.k in body must be of type string: "integer""#]
        );
        let twice = json!({"a": 1, "list": [{"port": 1, "protocol": "TCP"}, {"port": 1, "protocol": "TCP"}]});
        assert_eq!(check(twice), [r#"spec.list[1]: Duplicate value: {"port":1,"protocol":"TCP"}"#]);
    }
}
