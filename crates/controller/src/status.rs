//! Statuses as data: what makes two of them the same, and how condition times survive a reconcile.
//!
//! Works on JSON, so that one implementation serves every kind. A condition that did not change (ignoring its time)
//! keeps its time; all that changed get the same new one. Empty lists and maps equal absent ones, as in upstream's
//! semantic comparison.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// Gives every condition of `new` that equals its counterpart in `old` (ignoring time) the old time, and all others
/// `now`.
pub fn groom(old: &Value, new: &mut Value, now: Timestamp) {
    let before = conditions(old);
    let Some(Value::Array(after)) = new.get_mut("conditions") else { return };
    let now = Value::String(rfc3339(now));
    for condition in after {
        let kept = before
            .iter()
            .find(|old| old.get("type") == condition.get("type") && without_time(old) == without_time(condition));
        let time = kept.and_then(|old| old.get("lastTransitionTime")).filter(|time| !time.is_null()).unwrap_or(&now);
        if let Value::Object(fields) = condition {
            fields.insert("lastTransitionTime".to_owned(), time.clone());
        }
    }
}

/// Marks `Ready` as not yet observed if the status is of an older generation, as the generated reconcilers do before
/// the reconcile proper; a reconcile that reaches its end overwrites it.
pub fn mark_new_generation(status: &mut Value, generation: i64) {
    let observed = status.get("observedGeneration").and_then(Value::as_i64).unwrap_or_default();
    if observed == generation {
        return;
    }
    let Value::Object(fields) = status else { return };
    let Value::Array(list) = fields.entry("conditions").or_insert_with(|| Value::Array(Vec::new())) else { return };
    let ready = serde_json::json!({
        "type": "Ready",
        "status": "Unknown",
        "reason": "NewObservedGenFailure",
        "message": "unsuccessfully observed a new generation",
    });
    match list.iter_mut().find(|condition| condition.get("type").and_then(Value::as_str) == Some("Ready")) {
        Some(condition) => *condition = ready,
        None => list.push(ready),
    }
}

/// Whether two statuses say the same: nulls, empty lists, maps and strings count as absent.
pub fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let present = |map: &Map<String, Value>| map.values().filter(|v| !is_empty(v)).count();
            present(a) == present(b)
                && a.iter().filter(|(_, v)| !is_empty(v)).all(|(k, v)| b.get(k).is_some_and(|other| equal(v, other)))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (a, b) => a == b || (is_empty(a) && is_empty(b)),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn conditions(status: &Value) -> &[Value] {
    status.get("conditions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn without_time(condition: &Value) -> Vec<(&str, &Value)> {
    let Value::Object(fields) = condition else { return Vec::new() };
    let mut fields: Vec<_> = fields
        .iter()
        .filter(|(name, value)| *name != "lastTransitionTime" && !is_empty(value))
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    fields.sort_by_key(|(name, _)| *name);
    fields
}

/// Kubernetes' time format: whole seconds, UTC.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unchanged_conditions_keep_their_time() {
        let old = json!({"conditions": [
            {"type": "A", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "B", "status": "Unknown", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        ]});
        let mut new = json!({"conditions": [
            {"type": "A", "status": "True", "reason": ""},
            {"type": "B", "status": "True"},
        ]});
        groom(&old, &mut new, Timestamp::from_second(1_800_000_000).expect("in range"));
        assert_eq!(new["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(new["conditions"][1]["lastTransitionTime"], "2027-01-15T08:00:00Z");
    }

    #[test]
    fn empty_and_absent_are_the_same() {
        assert!(equal(&json!({"a": 1, "b": [], "c": {"d": null}}), &json!({"a": 1})));
        assert!(!equal(&json!({"a": 0}), &json!({})));
        assert!(!equal(&json!({"a": [1]}), &json!({"a": [1, 2]})));
    }

    #[test]
    fn a_new_generation_makes_ready_unknown() {
        let mut status = json!({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]});
        mark_new_generation(&mut status, 1);
        assert_eq!(status["conditions"][0]["status"], "True");
        mark_new_generation(&mut status, 2);
        assert_eq!(status["conditions"][0]["reason"], "NewObservedGenFailure");
    }
}
