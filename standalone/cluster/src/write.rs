//! The smallest write that makes an object what it should be.

use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Client, Resource};
use serde::Serialize;
use serde_json::{Map, Value};

/// An [`Api`] whose answers are read for their metadata only.
pub(crate) type MetaApi<K> = Api<PartialObjectMeta<K>>;

pub(crate) fn meta_api<K>(client: &Client, namespace: &str) -> MetaApi<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::namespaced(client.clone(), namespace)
}

pub(crate) fn cluster_api<K>(client: &Client) -> MetaApi<K>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>,
{
    Api::all(client.clone())
}

/// Writes the status as a merge patch of what differs; nothing if nothing does.
///
/// No resource version goes along: each status has one writer, whose keys are handled one at a time.
pub(crate) async fn status<K, S: Serialize>(api: &MetaApi<K>, name: &str, old: &S, new: &S) -> Result<bool, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug,
{
    let Some(patch) = difference(old, new) else { return Ok(false) };
    let body = Value::Object(Map::from_iter([("status".to_owned(), patch)]));
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&body)).await?;
    Ok(true)
}

/// The merge patch that turns `old` into `new`, if they differ.
pub(crate) fn difference(old: &impl Serialize, new: &impl Serialize) -> Option<Value> {
    let old = serde_json::to_value(old).unwrap_or_default();
    let new = serde_json::to_value(new).unwrap_or_default();
    (old != new).then(|| merge_patch(&old, new))
}

fn merge_patch(old: &Value, new: Value) -> Value {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
            for (key, value) in new {
                match old.get(&key) {
                    Some(before) if *before == value => {}
                    Some(before) => {
                        patch.insert(key, merge_patch(before, value));
                    }
                    None => {
                        patch.insert(key, value);
                    }
                }
            }
            Value::Object(patch)
        }
        (_, new) => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_difference_names_what_changed_and_what_went() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "e": [1]});
        let new = json!({"a": 1, "b": {"c": 3}, "e": [1, 2], "f": 0});
        assert_eq!(difference(&old, &new), Some(json!({"b": {"c": 3, "d": null}, "e": [1, 2], "f": 0})));
        assert_eq!(difference(&old, &old), None);
    }
}
