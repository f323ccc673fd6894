//! The patches that add or remove a Route's mark.

use std::collections::{BTreeMap, BTreeSet};

use api::keys::serving::{ROUTES, ROUTING_ACTIVE, ROUTING_RESERVE, ROUTING_STATE, ROUTING_STATE_MODIFIED};
use api::serving::v1::Revision;
use controller::status::rfc3339;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

/// The routes that an object is marked with.
pub fn routes(annotations: &BTreeMap<String, String>) -> BTreeSet<String> {
    let routes = annotations.get(ROUTES).map(String::as_str).unwrap_or_default();
    routes.split(',').filter(|route| !route.is_empty()).map(str::to_owned).collect()
}

/// The merge patch, if the mark is not there yet.
pub fn add(annotations: &BTreeMap<String, String>, route: &str) -> Option<Value> {
    let mut routes = routes(annotations);
    routes.insert(route.to_owned()).then(|| annotation(&routes))
}

/// The merge patch, if the mark is there.
pub fn remove(annotations: &BTreeMap<String, String>, route: &str) -> Option<Value> {
    let mut routes = routes(annotations);
    routes.remove(route).then(|| annotation(&routes))
}

/// As [`add`], with the routing state.
pub fn add_to_revision(revision: &Revision, route: &str, now: Timestamp) -> Option<Value> {
    let patch = add(revision.annotations(), route);
    if patch.is_none() && state(revision) == Some(ROUTING_ACTIVE) {
        return None;
    }
    Some(with_state(revision, patch, ROUTING_ACTIVE, now))
}

/// As [`remove`], with the routing state.
pub fn remove_from_revision(revision: &Revision, route: &str, now: Timestamp) -> Option<Value> {
    if state(revision) != Some(ROUTING_ACTIVE) {
        return None;
    }
    let patch = remove(revision.annotations(), route)?;
    let is_last = routes(revision.annotations()).len() == 1;
    let state = if is_last { ROUTING_RESERVE } else { ROUTING_ACTIVE };
    Some(with_state(revision, Some(patch), state, now))
}

fn annotation(routes: &BTreeSet<String>) -> Value {
    let joined = routes.iter().map(String::as_str).collect::<Vec<_>>().join(",");
    let value = if joined.is_empty() { Value::Null } else { json!(joined) };
    json!({"metadata": {"annotations": {ROUTES: value}}})
}

fn with_state(revision: &Revision, patch: Option<Value>, wanted: &str, now: Timestamp) -> Value {
    let mut patch = patch.unwrap_or_else(|| json!({"metadata": {"annotations": {}}}));
    if state(revision) != Some(wanted) {
        patch["metadata"]["labels"] = json!({ROUTING_STATE: wanted});
        patch["metadata"]["annotations"][ROUTING_STATE_MODIFIED] = json!(rfc3339(now));
    }
    patch
}

fn state(revision: &Revision) -> Option<&str> {
    revision.labels().get(ROUTING_STATE).map(String::as_str)
}
