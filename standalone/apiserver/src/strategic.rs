//! Strategic merge patch: JSON merge patch that knows which lists are maps.
//!
//! The rules of a list come from the kind ([`ListStrategy`]), everything else is in the patch: `$patch`, `$retainKeys`,
//! `$setElementOrder/<list>` and `$deleteFromPrimitiveList/<list>`. The order of a merged list is part of the contract, because `kubectl apply`
//! compares lists by position: items the patch names come in the patch's order, the others keep their place relative to them.

use serde_json::{Map, Value};

use crate::ListStrategy;

/// Rules of the lists of a kind, by the path of field names from the root.
pub type Lists = fn(&[&str]) -> ListStrategy;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// The object after the patch. The error is for a 400.
pub fn merge(object: &Value, patch: &Value, lists: Lists) -> Result<Value, String> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err("cannot merge anything but objects".to_owned());
    };
    let mut merger = Merger { lists, path: Vec::new() };
    Ok(Value::Object(merger.map(object.clone(), patch.clone())?))
}

/// The lists that are maps or sets in any of the built-in kinds. The names are unambiguous across kinds, so one table serves them all.
pub fn builtin_lists(path: &[&str]) -> ListStrategy {
    use ListStrategy::{Atomic, Merge, Set};
    match path {
        [.., "metadata", "ownerReferences"] => Merge("uid"),
        [.., "metadata", "finalizers"] | ["spec", "podCIDRs"] => Set,
        ["status", "conditions" | "addresses"] => Merge("type"),
        ["status", "podIPs" | "hostIPs"] => Merge("ip"),
        ["spec", "ports"] => Merge("port"),
        ["webhooks"] | ["secrets"] => Merge("name"),
        [.., "containers" | "initContainers" | "ephemeralContainers", field] => match *field {
            "env" => Merge("name"),
            "ports" => Merge("containerPort"),
            "volumeMounts" => Merge("mountPath"),
            "volumeDevices" => Merge("devicePath"),
            _ => Atomic,
        },
        ["spec"] | ["spec", "template", "spec"] => Atomic,
        ["spec", field] | [.., "template", "spec", field] => match *field {
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "imagePullSecrets"
            | "resourceClaims"
            | "schedulingGates" => Merge("name"),
            "hostAliases" => Merge("ip"),
            "topologySpreadConstraints" => Merge("topologyKey"),
            _ => Atomic,
        },
        _ => Atomic,
    }
}

struct Merger {
    lists: Lists,
    path: Vec<String>,
}

// === impl Merger ===

impl Merger {
    fn strategy(&self) -> ListStrategy {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        (self.lists)(&path)
    }

    fn within<T>(&mut self, field: &str, run: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(field.to_owned());
        let result = run(self);
        self.path.pop();
        result
    }

    fn map(
        &mut self,
        mut object: Map<String, Value>,
        mut patch: Map<String, Value>,
    ) -> Result<Map<String, Value>, String> {
        match patch.remove(PATCH) {
            None => {}
            Some(Value::String(directive)) => match directive.as_str() {
                "replace" => return Ok(without_directives(patch)),
                "delete" => return Ok(Map::new()),
                "merge" => {}
                other => return Err(format!("Unknown patch type found: {other}")),
            },
            Some(other) => return Err(format!("Unknown patch type found: {other}")),
        }
        if let Some(keep) = patch.remove(RETAIN_KEYS) {
            let Value::Array(keep) = keep else {
                return Err(format!("invalid value for {RETAIN_KEYS}: must be a list"));
            };
            object.retain(|key, _| keep.iter().any(|k| k == key));
        }
        self.ordered_lists(&mut object, &mut patch)?;
        for (key, value) in patch {
            if let Some(list) = key.strip_prefix(DELETE_FROM) {
                if let (Some(Value::Array(items)), Value::Array(gone)) = (object.get_mut(list), &value) {
                    items.retain(|item| !gone.contains(item));
                }
                continue;
            }
            if value.is_null() {
                object.remove(&key);
                continue;
            }
            let merged = match (object.remove(&key), value) {
                (Some(Value::Object(old)), Value::Object(new)) => {
                    Value::Object(self.within(&key, |merger| merger.map(old, new))?)
                }
                (Some(Value::Array(old)), Value::Array(new)) => self.within(&key, |merger| merger.list(old, new))?,
                (_, new) => match fresh(new) {
                    Some(value) => value,
                    None => continue,
                },
            };
            object.insert(key, merged);
        }
        Ok(object)
    }

    /// The lists whose order the patch fixes, whether it changes their items or not.
    fn ordered_lists(&mut self, object: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), String> {
        let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(ELEMENT_ORDER)).cloned().collect();
        for directive in directives {
            let Some(Value::Array(order)) = patch.remove(&directive) else {
                return Err(format!("invalid value for {directive}: must be a list"));
            };
            let list = directive.trim_start_matches(ELEMENT_ORDER).to_owned();
            let before = match object.get(&list) {
                Some(Value::Array(items)) => items.clone(),
                None | Some(Value::Null) => Vec::new(),
                Some(_) => return Err(format!("{list} is not a list")),
            };
            let in_patch = patch.remove(&list);
            if in_patch.as_ref().is_some_and(Value::is_null) {
                object.remove(&list);
                continue;
            }
            if let Some(Value::Array(gone)) = patch.remove(&format!("{DELETE_FROM}{list}"))
                && let Some(Value::Array(items)) = object.get_mut(&list)
            {
                items.retain(|item| !gone.contains(item));
            }
            let present =
                object.remove(&list).and_then(|v| if let Value::Array(items) = v { Some(items) } else { None });
            let ordered = self.within(&list, |merger| {
                let key = merge_key(merger.strategy());
                let merged = match (present, in_patch) {
                    (Some(present), Some(Value::Array(new))) => match merger.list(present, new)? {
                        Value::Array(items) => items,
                        _ => Vec::new(),
                    },
                    (Some(present), _) => present,
                    (None, Some(new)) => match fresh(new) {
                        Some(Value::Array(items)) => items,
                        _ => Vec::new(),
                    },
                    (None, None) => return Ok(None),
                };
                Ok::<_, String>(Some(arrange(merged, &order, &before, key)))
            })?;
            if let Some(items) = ordered {
                object.insert(list, Value::Array(items));
            }
        }
        Ok(())
    }

    fn list(&mut self, old: Vec<Value>, new: Vec<Value>) -> Result<Value, String> {
        let replace = |item: &Value| item.get(PATCH).and_then(Value::as_str) == Some("replace");
        let key = match self.strategy() {
            ListStrategy::Atomic => return Ok(without(Value::Array(new))),
            ListStrategy::Set => {
                let mut merged = old.clone();
                merged.extend(new.iter().filter(|item| !old.contains(item)).cloned());
                return Ok(Value::Array(arrange(merged, &new, &old, None)));
            }
            ListStrategy::Merge(key) => key,
        };
        if new.iter().any(replace) {
            let kept = new.into_iter().filter(|item| !replace(item));
            return Ok(without(Value::Array(kept.collect())));
        }
        let mut merged = old.clone();
        let mut named = Vec::new();
        for item in new {
            let Some(id) = item.get(key).cloned() else {
                return Err(format!("map: {item} does not contain declared merge key: {key}"));
            };
            let at = merged.iter().position(|present| present.get(key) == Some(&id));
            if item.get(PATCH).and_then(Value::as_str) == Some("delete") {
                merged.retain(|present| present.get(key) != Some(&id));
                continue;
            }
            named.push(item.clone());
            match (at, item) {
                (Some(at), Value::Object(item)) => {
                    let present = match merged[at].take() {
                        Value::Object(present) => present,
                        _ => Map::new(),
                    };
                    // Items do not lengthen the path: it is one of field names.
                    merged[at] = Value::Object(self.map(present, item)?);
                }
                (_, item) => merged.extend(fresh(item)),
            }
        }
        Ok(Value::Array(arrange(merged, &named, &old, Some(key))))
    }
}

fn merge_key(strategy: ListStrategy) -> Option<&'static str> {
    if let ListStrategy::Merge(key) = strategy { Some(key) } else { None }
}

/// Items that `order` names in its order; the others stay in front of those they were in front of in `before`.
fn arrange(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let same = |a: &Value, b: &Value| match key {
        Some(key) => a.get(key) == b.get(key),
        None => a == b,
    };
    let rank = |list: &[Value], item: &Value| list.iter().position(|other| same(item, other));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.into_iter().partition(|item| rank(order, item).is_some());
    named.sort_by_key(|item| rank(order, item));
    others.sort_by_key(|item| rank(before, item));
    let mut out = Vec::with_capacity(named.len() + others.len());
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), named.peek()) {
            (Some(other), Some(item)) => match (rank(before, other), rank(before, item)) {
                (Some(other), Some(item)) => other < item,
                _ => false,
            },
            (other, _) => other.is_some(),
        };
        match if other_first { others.next() } else { named.next() } {
            Some(item) => out.push(item),
            None => return out,
        }
    }
}

/// What a patch value means where nothing was before: no directives, no nulls; None when it only deletes.
fn fresh(value: Value) -> Option<Value> {
    if value.get(PATCH).and_then(Value::as_str) == Some("delete") {
        return None;
    }
    Some(without(value))
}

fn without(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(items.into_iter().filter_map(fresh).collect()),
        other => other,
    }
}

fn without_directives(map: Map<String, Value>) -> Map<String, Value> {
    let plain = map.into_iter().filter(|(key, value)| {
        let directive =
            key == PATCH || key == RETAIN_KEYS || key.starts_with(ELEMENT_ORDER) || key.starts_with(DELETE_FROM);
        !directive && !value.is_null()
    });
    plain.filter_map(|(key, value)| Some((key, fresh(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn containers(before: Value, patch: Value) -> Value {
        let object = json!({"spec": {"template": {"spec": {"containers": before}}}});
        let patch = json!({"spec": {"template": {"spec": patch}}});
        let merged = merge(&object, &patch, builtin_lists).expect("merges");
        merged.pointer("/spec/template/spec/containers").cloned().unwrap_or_default()
    }

    #[test]
    fn lists_merge_by_key() {
        let before = json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]);
        let patch = json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]});
        let merged = containers(before, patch);
        assert_eq!(merged[0]["image"], "2");
        assert_eq!(merged[0]["env"], json!([{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]));
        assert_eq!(merged[1]["name"], "b");
    }

    #[test]
    fn new_items_go_first_without_an_order_and_where_the_order_says_with_one() {
        let names = |list: Value| -> Vec<String> {
            list.as_array().expect("list").iter().map(|c| c["name"].as_str().expect("name").to_owned()).collect()
        };
        let before = json!([{"name": "a"}, {"name": "b"}]);
        assert_eq!(names(containers(before.clone(), json!({"containers": [{"name": "c"}]}))), ["c", "a", "b"]);
        let patch = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "c"}, {"name": "a"}], "containers": [{"name": "c"}]});
        assert_eq!(names(containers(before.clone(), patch)), ["b", "c", "a"]);
        let patch = json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]});
        assert_eq!(names(containers(before, patch)), ["b", "a"]);
    }

    #[test]
    fn directives() {
        let before = json!([{"name": "a"}, {"name": "b"}]);
        assert_eq!(
            containers(before.clone(), json!({"containers": [{"name": "a", "$patch": "delete"}]})),
            json!([{"name": "b"}])
        );
        assert_eq!(
            containers(before.clone(), json!({"containers": [{"name": "z"}, {"$patch": "replace"}]})),
            json!([{"name": "z"}])
        );
        assert_eq!(containers(before, json!({"$patch": "replace", "x": 1})), Value::Null);
        let object = json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
        let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        assert_eq!(merge(&object, &patch, builtin_lists), Ok(json!({"spec": {"strategy": {"type": "Recreate"}}})));
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}});
        assert_eq!(merge(&object, &patch, builtin_lists), Ok(json!({"metadata": {"finalizers": ["c", "b"]}})));
        assert!(merge(&object, &json!({"$patch": "x"}), builtin_lists).is_err());
    }

    #[test]
    fn atomic_lists_nulls_and_missing_keys() {
        let object = json!({"spec": {"args": [1, 2], "x": 1}});
        let patch = json!({"spec": {"args": [3], "x": null, "y": {"z": null, "w": 1}}});
        assert_eq!(merge(&object, &patch, builtin_lists), Ok(json!({"spec": {"args": [3], "y": {"w": 1}}})));
        let object = json!({"spec": {"ports": [{"port": 80}]}});
        let patch = json!({"spec": {"ports": [{"name": "x"}]}});
        assert!(merge(&object, &patch, builtin_lists).expect_err("no key").contains("declared merge key: port"));
    }
}
