//! Bodies as changes: patches of each type, and the Scale view.

use serde_json::{Map, Value, json};

use crate::errors::{FieldError, Status};
use crate::metadata;
use crate::registry::{Kind, ScalePaths};
use crate::strategic;

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// A parsed patch; applying it may happen several times.
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

// === impl Patch ===

impl Patch {
    pub(crate) fn parse(kind: &Kind, media_type: &str, body: &[u8]) -> Result<Self, Status> {
        let parsed = || crate::body::decode_json(body).map(|decoded| decoded.value);
        match media_type {
            JSON => serde_json::from_slice(body)
                .map(Self::Json)
                .map_err(|error| Status::bad_request(format!("couldn't parse the JSON patch: {error}"))),
            MERGE => parsed().map(Self::Merge),
            STRATEGIC if kind.strategic.is_some() => parsed().map(Self::Strategic),
            _ if kind.strategic.is_some() => Err(Status::unsupported_media_type(&[JSON, MERGE, STRATEGIC])),
            _ => Err(Status::unsupported_media_type(&[JSON, MERGE])),
        }
    }

    pub(crate) fn apply(&self, kind: &Kind, current: &Value) -> Result<Value, Status> {
        match self {
            Self::Json(patch) => {
                let mut next = current.clone();
                json_patch::patch(&mut next, patch).map_err(|_| rejected())?;
                Ok(next)
            }
            Self::Merge(patch) => {
                let mut next = current.clone();
                json_patch::merge(&mut next, patch);
                Ok(next)
            }
            Self::Strategic(patch) => match kind.strategic {
                Some(lists) => strategic::merge(current, patch, lists).map_err(Status::bad_request),
                None => Err(Status::unsupported_media_type(&[JSON, MERGE])),
            },
        }
    }

    /// A merge patch creates nothing, so a patch never has to be applied to a missing object; it may carry the kind of another object.
    pub(crate) fn as_scale(&self, current: &Value) -> Result<Value, Status> {
        let scale = Kind::new("autoscaling", "v1", "Scale", "scales", crate::registry::Scope::Namespaced);
        match self {
            Self::Strategic(patch) => {
                let mut next = current.clone();
                json_patch::merge(&mut next, patch);
                Ok(next)
            }
            other => other.apply(&scale, current),
        }
    }
}

fn rejected() -> Status {
    let message = "the server rejected our request due to an error in our request";
    let mut status = Status::new(http::StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
    status.details = Some(json!({}));
    status
}

/// `autoscaling/v1 Scale` of an object.
pub(crate) fn scale_of(paths: &ScalePaths, object: &Value) -> Value {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
    let mut fields = Map::new();
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(name) {
            fields.insert(name.into(), value.clone());
        }
    }
    let mut spec = Map::new();
    // Zero is left out and the object stays: Serving patches it with `add`.
    if number(&paths.spec_replicas) != 0 {
        spec.insert("replicas".into(), number(&paths.spec_replicas).into());
    }
    let mut status = json!({ "replicas": number(&paths.status_replicas) });
    let selector =
        paths.selector.as_ref().and_then(|pointer| object.pointer(pointer)).map(selector_text).unwrap_or_default();
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({ "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": fields, "spec": spec, "status": status })
}

/// The object with the replicas of a Scale, carrying its preconditions.
pub(crate) fn scaled(kind: &Kind, paths: &ScalePaths, object: &Value, scale: &Value) -> Result<Value, Status> {
    let replicas = scale.pointer("/spec/replicas").unwrap_or(&Value::Null);
    let replicas = match replicas {
        Value::Null => 0,
        other => other.as_i64().ok_or_else(|| Status::bad_request("Scale: spec.replicas must be an integer"))?,
    };
    if replicas < 0 {
        let error = FieldError::invalid("spec.replicas", &replicas.into(), "must be greater than or equal to 0");
        let scale_kind = Kind::new("autoscaling", "v1", "Scale", "scales", kind.scope);
        return Err(Status::invalid(&scale_kind, metadata::name(object), &[error]));
    }
    let mut next = object.clone();
    set(&mut next, &paths.spec_replicas, replicas.into());
    for name in ["resourceVersion", "uid"] {
        let given = scale["metadata"].get(name).cloned().unwrap_or(Value::Null);
        metadata::fields(&mut next).insert(name.into(), given);
    }
    Ok(next)
}

fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut place = object;
    for name in pointer.split('/').skip(1) {
        place = &mut place[name];
    }
    *place = value;
}

/// A LabelSelector as the text of a label selector; text stays.
pub(crate) fn selector_text(selector: &Value) -> String {
    if let Some(text) = selector.as_str() {
        return text.to_owned();
    }
    let mut terms: Vec<String> = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for term in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = term["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> = term["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        terms.push(match term["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.sort();
    terms.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_leaves_zero_out_and_keeps_spec() {
        let paths = ScalePaths {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: Some("/spec/selector".into()),
        };
        let object = json!({"metadata": {"name": "d", "resourceVersion": "7"}, "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "d"}}}});
        let scale = scale_of(&paths, &object);
        assert_eq!(scale["spec"], json!({}));
        assert_eq!(scale["status"], json!({"replicas": 0, "selector": "app=d"}));
        let add =
            serde_json::from_value(json!([{"op": "add", "path": "/spec/replicas", "value": 3}])).expect("a patch");
        let kind = Kind::new("apps", "v1", "Deployment", "deployments", crate::registry::Scope::Namespaced);
        let next = Patch::Json(add).as_scale(&scale).expect("applies");
        let next = scaled(&kind, &paths, &object, &next).expect("scales");
        assert_eq!(next["spec"]["replicas"], 3);
        assert!(scaled(&kind, &paths, &object, &json!({"spec": {"replicas": -1}})).is_err());
    }
}
