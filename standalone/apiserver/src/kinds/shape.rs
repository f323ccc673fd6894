//! The fields of built-in kinds, from their typed definition.
//!
//! Objects are never stored typed. But which fields exist and of what type they are is known by the generated types, so an object is read into
//! its type and written back once per write: what does not come back is unknown, what cannot be read is of a wrong type.

use std::marker::PhantomData;

use k8s_openapi::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::quantity;
use crate::Schema;

pub(super) trait Known: Resource + DeserializeOwned + Serialize + 'static {}

impl<T: Resource + DeserializeOwned + Serialize + 'static> Known for T {}

pub(super) struct Shape<T>(PhantomData<fn() -> T>);

// === impl Shape ===

impl<T> Default for Shape<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Known> Schema for Shape<T> {
    fn unknown_fields(&self, object: &mut Value, prune: bool) -> Vec<String> {
        quantity::stringify(object);
        let Ok(known) = T::deserialize(&*object).and_then(serde_json::to_value) else { return Vec::new() };
        let mut unknown = Vec::new();
        compare(object, &known, "", prune, &mut unknown);
        unknown
    }

    fn decode_error(&self, object: &Value) -> Option<String> {
        let mut object = object.clone();
        quantity::stringify(&mut object);
        let error = T::deserialize(&object).err()?;
        let field = blame::<T>(&mut object);
        let field = if field.is_empty() { String::new() } else { format!("{field}: ") };
        Some(format!("{0} in version {1:?} cannot be handled as a {0}: {field}{error}", T::KIND, T::VERSION))
    }

    /// Reads the object once; who is to blame is only looked for when that fails.
    fn conform(&self, object: &mut Value) -> Result<Vec<String>, String> {
        quantity::stringify(object);
        let Ok(known) = T::deserialize(&*object).and_then(serde_json::to_value) else {
            return Err(self.decode_error(object).unwrap_or_else(|| format!("cannot be handled as a {}", T::KIND)));
        };
        let mut unknown = Vec::new();
        compare(object, &known, "", true, &mut unknown);
        Ok(unknown)
    }
}

/// Collects what only `object` has. Nulls mean absent in typed objects and go without a word.
fn compare(object: &mut Value, known: &Value, path: &str, prune: bool, unknown: &mut Vec<String>) {
    match (object, known) {
        (Value::Object(map), Value::Object(known)) => {
            map.retain(|key, value| {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match known.get(key) {
                    Some(known) => {
                        compare(value, known, &below, prune, unknown);
                        true
                    }
                    None if value.is_null() => !prune,
                    None => {
                        unknown.push(below);
                        !prune
                    }
                }
            });
        }
        (Value::Array(items), Value::Array(known)) => {
            for (index, (item, known)) in items.iter_mut().zip(known).enumerate() {
                compare(item, known, &format!("{path}[{index}]"), prune, unknown);
            }
        }
        _ => {}
    }
}

/// The path of the value that makes reading fail: the one whose removal makes it succeed, looked for level by level.
fn blame<T: Known>(object: &mut Value) -> String {
    let mut at = String::new();
    let mut shown = String::new();
    loop {
        let keys: Vec<String> = match object.pointer(&at) {
            Some(Value::Object(map)) => map.keys().cloned().collect(),
            Some(Value::Array(items)) => (0..items.len()).map(|index| index.to_string()).collect(),
            _ => return shown,
        };
        let in_list = object.pointer(&at).is_some_and(Value::is_array);
        let child = |key: &str| format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        let guilty = keys.into_iter().find(|key| {
            let Some(slot) = object.pointer_mut(&child(key)) else { return false };
            let neutral = if in_list { Value::Object(serde_json::Map::new()) } else { Value::Null };
            let was = std::mem::replace(slot, neutral);
            let fixed = T::deserialize(&*object).is_ok();
            if let Some(slot) = object.pointer_mut(&child(key)) {
                *slot = was;
            }
            fixed
        });
        let Some(key) = guilty else { return shown };
        at = child(&key);
        shown = match (in_list, shown.is_empty()) {
            (true, _) => format!("{shown}[{key}]"),
            (false, true) => key,
            (false, false) => format!("{shown}.{key}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_are_named_and_pruned() {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "creationTimestamp": null},
            "spec": {"replica": 1, "template": {"spec": {"containers": [
                {"name": "c", "imagee": "x", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}]}}}});
        let shape = <Shape<Deployment> as Default>::default();
        assert_eq!(shape.decode_error(&object), None);
        let unknown = shape.unknown_fields(&mut object, true);
        assert_eq!(unknown, ["spec.replica", "spec.template.spec.containers[0].imagee"]);
        assert_eq!(object["metadata"], json!({"name": "d"}));
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"], "1");
        assert!(shape.unknown_fields(&mut object, true).is_empty());
    }

    #[test]
    fn wrong_types_are_blamed() {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {},
            "spec": {"template": {"spec": {"containers": [{"name": "a"}, {"name": "b", "env": [{"name": "X", "value": 5}]}]}}}});
        let error = <Shape<Deployment> as Default>::default().decode_error(&object).expect("a wrong type");
        assert!(error.contains("spec.template.spec.containers[1].env[0].value: invalid type: integer `5`"), "{error}");
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "b3"},
            "spec": {"replicas": "x", "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "y"}]}}}});
        let error = <Shape<Deployment> as Default>::default().decode_error(&object).expect("a wrong type");
        assert!(error.contains("spec.replicas: invalid type: string"), "{error}");
    }
}
