//! Small pieces of cells that several kinds share.

use serde_json::Value;

pub(super) const NONE: &str = "<none>";

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

pub(super) fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

/// `k=v,k2=v2`.
pub(super) fn labels(map: Option<&Value>) -> String {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    let pairs: Vec<String> = pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    or_none(&pairs.join(",")).to_owned()
}

/// A LabelSelector object in the form of the query parameter, sorted by key.
pub(crate) fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return NONE.to_owned() };
    let mut terms: Vec<(String, String)> = Vec::new();
    for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        terms.push((key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())));
    }
    for expression in items(selector, "/matchExpressions") {
        let key = text(expression, "/key");
        let mut values: Vec<&str> = items(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match text(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        terms.push((key.to_owned(), term));
    }
    terms.sort();
    or_none(&terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",")).to_owned()
}

/// Names and images of the containers of a pod template.
pub(super) fn containers(object: &Value) -> (String, String) {
    let containers = items(object, "/spec/template/spec/containers");
    let joined = |pointer| containers.iter().map(|c| text(c, pointer)).collect::<Vec<_>>().join(",");
    (joined("/name"), joined("/image"))
}

/// The first three, and how many more there are.
pub(super) fn first_three(all: impl IntoIterator<Item = String>, empty: &str) -> String {
    const SHOWN: usize = 3;
    let all: Vec<String> = all.into_iter().collect();
    match all.len() {
        0 => empty.to_owned(),
        1..=SHOWN => all.join(","),
        more => format!("{} + {} more...", all[..SHOWN].join(","), more - SHOWN),
    }
}
