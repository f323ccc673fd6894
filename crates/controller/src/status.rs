//! What makes two statuses the same, and how condition times survive a reconcile.
//!
//! A condition that did not change (ignoring its time) keeps its time; all that changed get the same new one. Empty lists
//! and maps equal absent ones, as in upstream's semantic comparison.

use api::{Condition, StatusFields, conditions};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Gives every condition of `new` that equals its counterpart in `old` (ignoring time) the old time, and all others
/// `now`, in whole seconds as the API keeps it.
pub fn groom(old: &impl StatusFields, new: &mut impl StatusFields, now: Timestamp) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    conditions::groom(old.conditions(), new.conditions_mut(), now);
}

/// Marks `Ready` as not yet observed if the status is of an older generation, as the generated reconcilers do before
/// the reconcile proper; a reconcile that reaches its end overwrites it.
pub fn mark_new_generation(status: &mut impl StatusFields, generation: i64) {
    if status.observed_generation() == generation {
        return;
    }
    let ready = Condition {
        kind: conditions::READY.to_owned(),
        status: conditions::UNKNOWN.to_owned(),
        reason: "NewObservedGenFailure".to_owned(),
        message: "unsuccessfully observed a new generation".to_owned(),
        ..Condition::default()
    };
    let list = status.conditions_mut();
    match list.iter_mut().find(|condition| condition.kind == conditions::READY) {
        Some(condition) => *condition = ready,
        None => list.push(ready),
    }
}

/// Whether two statuses say the same. What all have in common tells most often, without a look at the rest as [`equal`]
/// has it.
pub fn same<S: StatusFields>(a: &S, b: &S) -> bool {
    let rest = || match (serde_json::to_value(a), serde_json::to_value(b)) {
        (Ok(a), Ok(b)) => equal(&a, &b),
        _ => false,
    };
    a.observed_generation() == b.observed_generation() && a.conditions() == b.conditions() && (a == b || rest())
}

/// Whether two values say the same: nulls, empty lists, maps and strings count as absent.
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

/// Kubernetes' time format: whole seconds, UTC.
pub fn rfc3339(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use api::networking::v1alpha1::IngressStatus;
    use serde_json::json;

    use super::*;

    fn status(value: Value) -> IngressStatus {
        serde_json::from_value(value).expect("a status")
    }

    #[test]
    fn unchanged_conditions_keep_their_time() {
        let old = status(json!({"conditions": [
            {"type": "A", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "B", "status": "Unknown", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        ]}));
        let mut new = status(json!({"conditions": [
            {"type": "A", "status": "True", "reason": ""},
            {"type": "B", "status": "True"},
        ]}));
        groom(&old, &mut new, Timestamp::new(1_800_000_000, 999_999_999).expect("in range"));
        let written = serde_json::to_value(&new).expect("JSON");
        assert_eq!(written["conditions"][0]["lastTransitionTime"], "2020-01-01T00:00:00Z");
        assert_eq!(written["conditions"][1]["lastTransitionTime"], "2027-01-15T08:00:00Z");
        assert_eq!(status(written), new, "it is read as it is remembered");
    }

    #[test]
    fn statuses_are_the_same_whatever_is_empty() {
        let old = json!({"observedGeneration": 1, "conditions": [{"type": "A", "status": "True"}]});
        let with = |name: &str, value: Value| {
            let mut changed = old.clone();
            changed[name] = value;
            status(changed)
        };
        let before = status(old.clone());
        assert!(same(&before, &before.clone()));
        assert!(same(&before, &with("publicLoadBalancer", json!({"ingress": []}))));
        assert!(!same(&before, &with("publicLoadBalancer", json!({"ingress": [{"ip": "10.0.0.1"}]}))));
        assert!(!same(&before, &with("observedGeneration", json!(2))));
        assert!(!same(&before, &with("conditions", json!([{"type": "A", "status": "False"}]))));
    }

    #[test]
    fn empty_and_absent_are_the_same() {
        assert!(equal(&json!({"a": 1, "b": [], "c": {"d": null}}), &json!({"a": 1})));
        assert!(!equal(&json!({"a": 0}), &json!({})));
        assert!(!equal(&json!({"a": [1]}), &json!({"a": [1, 2]})));
    }

    #[test]
    fn a_new_generation_makes_ready_unknown() {
        let mut known = status(json!({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}));
        mark_new_generation(&mut known, 1);
        assert_eq!(known.conditions[0].status, "True");
        mark_new_generation(&mut known, 2);
        assert_eq!((&*known.conditions[0].status, &*known.conditions[0].reason), ("Unknown", "NewObservedGenFailure"));
        let mut new = IngressStatus::default();
        mark_new_generation(&mut new, 1);
        assert_eq!(new.conditions, known.conditions);
    }
}
