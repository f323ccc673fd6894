//! The Deployment of a Revision (controllers.md 6.2).
//!
//! It is built as JSON, because the pod spec must carry fields that no typed form of today knows. Whether an existing one is up to
//! date is told by a hash in a label alone, so that what the API defaulted, or somebody edited on purpose, is left alone.

use api::keys::{autoscaling, first, serving};
use api::serving::v1::Revision;
use api::{child_name, config};
use controller::owner_reference;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{meta, pod};

/// The ConfigMaps a Deployment depends on.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    pub autoscaler: &'a config::Autoscaler,
    pub defaults: &'a config::Defaults,
    pub deployment: &'a config::Deployment,
    pub features: &'a config::Features,
    pub logging: &'a config::Logging,
    pub observability: &'a config::Observability,
    pub system_namespace: &'a str,
}

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

pub fn name(revision: &Revision) -> String {
    child_name(&revision.name_any(), "-deployment")
}

/// The wanted Deployment.
pub fn desired(revision: &Revision, settings: &Settings<'_>) -> Result<Value, String> {
    let labels = meta::labels(revision);
    let annotations = meta::pod_annotations(revision);
    let mut pod_annotations = annotations.clone();
    pod_annotations.insert(DEFAULT_CONTAINER.to_owned(), pod::serving_name(revision));
    let deadline = meta::seconds(revision, serving::PROGRESS_DEADLINE)
        .unwrap_or(settings.deployment.progress_deadline.as_secs().cast_signed());

    let spec = json!({
        "replicas": initial_scale(revision, settings.autoscaler),
        "selector": {"matchLabels": {serving::REVISION_UID: revision.uid().unwrap_or_default()}},
        "progressDeadlineSeconds": deadline,
        "revisionHistoryLimit": 0,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
        "template": {
            "metadata": {"labels": labels, "annotations": pod_annotations},
            "spec": pod::spec(revision, settings)?,
        },
    });
    let mut labels = json!(labels);
    labels[serving::DEPLOYMENT_HASH] = hash(&json!([spec, annotations, labels])).into();
    Ok(json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name(revision),
            "namespace": revision.namespace(),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(revision)],
        },
        "spec": spec,
    }))
}

fn initial_scale(revision: &Revision, config: &config::Autoscaler) -> i32 {
    let annotation = first(revision.annotations(), autoscaling::INITIAL_SCALE);
    annotation.map_or(config.initial_scale, |(_, value)| value.parse().unwrap_or(0))
}

/// The update that makes `current` what is `desired`; `None` if it is so already. Scale and selector stay, and so do labels and
/// annotations that are not Knative's.
pub fn update(current: &Deployment, desired: &Value) -> Option<Value> {
    let wanted = desired["metadata"]["labels"][serving::DEPLOYMENT_HASH].as_str();
    if current.labels().get(serving::DEPLOYMENT_HASH).map(String::as_str) == wanted {
        return None;
    }
    let mut update = desired.clone();
    let spec = current.spec.as_ref();
    update["metadata"]["resourceVersion"] = json!(current.resource_version());
    update["spec"]["replicas"] = json!(spec.and_then(|spec| spec.replicas));
    update["spec"]["selector"] = json!(spec.map(|spec| &spec.selector));
    keep_foreign(&mut update["metadata"], current.labels(), current.annotations());
    if let Some(template) = spec.and_then(|spec| spec.template.metadata.as_ref()) {
        let empty = Default::default();
        let (labels, annotations) = (&template.labels, &template.annotations);
        let metadata = &mut update["spec"]["template"]["metadata"];
        keep_foreign(metadata, labels.as_ref().unwrap_or(&empty), annotations.as_ref().unwrap_or(&empty));
    }
    Some(update)
}

type Map = std::collections::BTreeMap<String, String>;

fn keep_foreign(metadata: &mut Value, labels: &Map, annotations: &Map) {
    for (field, present) in [("labels", labels), ("annotations", annotations)] {
        for (key, value) in present {
            if key != serving::APP && !key.contains("knative.dev/") && metadata[field].get(key).is_none() {
                metadata[field][key] = json!(value);
            }
        }
    }
}

/// A short name for a value that does not depend on the order of object keys: base 36 of FNV-1a.
fn hash(value: &Value) -> String {
    let mut state = 0x811c_9dc5_u32;
    feed(value, &mut state);
    let mut digits = Vec::new();
    while state > 0 || digits.is_empty() {
        digits.push(char::from_digit(state % 36, 36).unwrap_or('0'));
        state /= 36;
    }
    digits.iter().rev().collect()
}

fn feed(value: &Value, state: &mut u32) {
    let mut text = |text: &str| {
        for byte in text.bytes() {
            *state = (*state ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    };
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            text("{");
            for key in keys {
                feed(&Value::String(key.clone()), state);
                feed(&map[key], state);
            }
        }
        Value::Array(list) => {
            text("[");
            list.iter().for_each(|value| feed(value, state));
            feed(&Value::Null, state);
        }
        scalar => {
            text(&scalar.to_string());
            text(",");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_content_only() {
        let one: Value = serde_json::from_str(r#"{"a": 1, "b": [1, {"c": null}]}"#).unwrap();
        let other: Value = serde_json::from_str(r#"{"b": [1, {"c": null}], "a": 1}"#).unwrap();
        assert_eq!(hash(&one), hash(&other));
        assert_ne!(hash(&one), hash(&json!({"a": 1, "b": [1, {"c": 0}]})));
        assert_ne!(hash(&json!([["a"], "b"])), hash(&json!([["a", "b"]])));
        assert!(hash(&one).chars().all(|c| c.is_ascii_alphanumeric()));
    }

    #[test]
    fn an_update_keeps_scale_selector_and_what_others_added() {
        let current: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "d", "resourceVersion": "7",
                "labels": {"app": "old", "team": "blue", "serving.knative.dev/stale": "x", serving::DEPLOYMENT_HASH: "1"}},
            "spec": {"replicas": 4, "selector": {"matchLabels": {"s": "1"}},
                "template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}},
                    "spec": {"containers": []}}},
        }))
        .unwrap();
        let mut desired = json!({
            "metadata": {"name": "d", "labels": {"app": "new", serving::DEPLOYMENT_HASH: "2"}, "annotations": {}},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"s": "2"}},
                "template": {"metadata": {"labels": {"app": "new"}, "annotations": {"a": "b"}}, "spec": {"containers": [{}]}}},
        });
        assert_eq!(
            update(&current, &desired).unwrap(),
            json!({
                "metadata": {"name": "d", "resourceVersion": "7", "annotations": {},
                    "labels": {"app": "new", "team": "blue", serving::DEPLOYMENT_HASH: "2"}},
                "spec": {"replicas": 4, "selector": {"matchLabels": {"s": "1"}},
                    "template": {"metadata": {"labels": {"app": "new"},
                        "annotations": {"a": "b", "kubectl.kubernetes.io/restartedAt": "now"}}, "spec": {"containers": [{}]}}},
            })
        );
        desired["metadata"]["labels"][serving::DEPLOYMENT_HASH] = json!("1");
        assert_eq!(update(&current, &desired), None, "edits of a Deployment survive until the revision's hash changes");
    }
}
