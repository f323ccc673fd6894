//! Equality as Kubernetes means it, and the description of a difference.

use serde_json::{Map, Value};

use crate::go;

/// Equal, where absent, null, `{}` and `[]` are the same and resource quantities compare by value.
pub fn same(a: &Value, b: &Value) -> bool {
    same_in("", a, b)
}

fn same_in(key: &str, a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let quantities = key == "limits" || key == "requests";
            a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))).all(|name| {
                let (x, y) = (a.get(name).unwrap_or(&Value::Null), b.get(name).unwrap_or(&Value::Null));
                if quantities { same_quantity(x, y) } else { same_in(name, x, y) }
            })
        }
        (Value::Array(a), Value::Array(b)) if !a.is_empty() || !b.is_empty() => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_in(key, a, b))
        }
        (a, b) => a == b || (empty(a) && empty(b)),
    }
}

fn same_quantity(a: &Value, b: &Value) -> bool {
    let parse = |v: &Value| go::parse_quantity(&plain(v)).ok();
    a == b || matches!((parse(a), parse(b)), (Some(a), Some(b)) if a == b)
}

fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(empty),
        _ => false,
    }
}

/// One entry per differing leaf, with the path spelled as in Go's types.
pub fn diff(root: &str, old: &Value, new: &Value) -> String {
    let mut out = String::new();
    walk(
        &Place { path: root.to_owned(), in_spec: root.contains("RevisionSpec"), key: String::new() },
        old,
        new,
        &mut out,
    );
    out
}

struct Place {
    path: String,
    /// At the level where pod fields and our own fields are side by side.
    in_spec: bool,
    key: String,
}

const OWN: &[&str] = &["containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds"];
const MAPS: &[&str] = &["limits", "requests", "labels", "annotations", "nodeSelector", "matchLabels"];

fn walk(place: &Place, old: &Value, new: &Value, out: &mut String) {
    if same_in(&place.key, old, new) {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => fields(place, a, b, out),
        (Value::Object(a), Value::Null) if !a.is_empty() => fields(place, a, &Map::new(), out),
        (Value::Null, Value::Object(b)) if !b.is_empty() => fields(place, &Map::new(), b, out),
        (Value::Array(a), Value::Array(b)) => {
            for i in 0..a.len().max(b.len()) {
                let index = match (i < a.len(), i < b.len()) {
                    (true, true) => format!("[{i}]"),
                    (true, false) => format!("[{i}->?]"),
                    _ => format!("[?->{i}]"),
                };
                let at = Place { path: format!("{}{index}", place.path), in_spec: false, key: place.key.clone() };
                leaf_or_walk(&at, a.get(i), b.get(i), out);
            }
        }
        _ => leaf(&place.path, Some(old), Some(new), out),
    }
}

fn leaf_or_walk(place: &Place, old: Option<&Value>, new: Option<&Value>, out: &mut String) {
    match (old, new) {
        (Some(old), Some(new)) => walk(place, old, new, out),
        _ => leaf(&place.path, old, new, out),
    }
}

fn fields(place: &Place, a: &Map<String, Value>, b: &Map<String, Value>, out: &mut String) {
    for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
        let (old, new) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
        let path = if MAPS.contains(&place.key.as_str()) {
            format!("{}[{}]", place.path, go::quote(key))
        } else if place.in_spec && OWN.contains(&key.as_str()) {
            format!("*{}.{}", place.path, go_name(key))
        } else if place.in_spec {
            format!("{}.PodSpec.{}", place.path, go_name(key))
        } else {
            format!("{}.{}", place.path, go_name(key))
        };
        let in_spec = !place.in_spec && key == "spec" && place.path.ends_with('}');
        walk(&Place { path, in_spec, key: key.clone() }, old, new, out);
    }
}

fn leaf(path: &str, old: Option<&Value>, new: Option<&Value>, out: &mut String) {
    out.push_str(path);
    out.push_str(":\n");
    for (sign, value) in [('-', old), ('+', new)] {
        if let Some(value) = value.filter(|v| !v.is_null()) {
            out.push_str(&format!("\t{sign}: {}\n", go::quote(&plain(value))));
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn go_name(key: &str) -> String {
    for (json, name) in
        [("httpGet", "HTTPGet"), ("tcpSocket", "TCPSocket"), ("grpc", "GRPC"), ("httpHeaders", "HTTPHeaders")]
    {
        if key == json {
            return name.to_owned();
        }
    }
    let mut chars = key.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn empty_is_absent_and_quantities_compare_by_value() {
        assert!(same(&json!({"a": {}, "b": []}), &json!({"c": null})));
        assert!(same(&json!({"limits": {"cpu": "1"}}), &json!({"limits": {"cpu": "1000m"}})));
        assert!(!same(&json!({"a": 1}), &json!({"a": 2})));
        assert!(!same(&json!({"a": [1]}), &json!({})));
    }

    #[test]
    fn differences_are_spelled_in_go() {
        let old = json!({"containers": [{"image": "a"}], "containerConcurrency": 1});
        let new = json!({"containers": [{"image": "b"}], "containerConcurrency": 2});
        assert_eq!(
            diff("{v1.RevisionSpec}", &old, &new),
            "*{v1.RevisionSpec}.ContainerConcurrency:\n\t-: \"1\"\n\t+: \"2\"\n{v1.RevisionSpec}.PodSpec.Containers[0].Image:\n\t-: \"a\"\n\t+: \"b\"\n"
        );
        let path = diff("{*v1.RevisionTemplateSpec}", &json!({"spec": old}), &json!({"spec": new}));
        assert!(path.contains("{*v1.RevisionTemplateSpec}.Spec.PodSpec.Containers[0].Image:"), "{path}");
    }
}
