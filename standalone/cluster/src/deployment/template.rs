//! Pod templates: when two are the same, and the name that one gives its ReplicaSet.

use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::HASH_LABEL;
use crate::names;

/// Equal but for the hash label that we add ourselves.
pub(crate) fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let labels = |template: &PodTemplateSpec| {
        let labels = template.metadata.iter().flat_map(|meta| meta.labels.iter().flatten());
        labels.filter(|(key, _)| *key != HASH_LABEL).map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>()
    };
    let annotations = |template: &PodTemplateSpec| {
        template.metadata.as_ref().and_then(|meta| meta.annotations.clone()).unwrap_or_default()
    };
    a.spec == b.spec && labels(a) == labels(b) && annotations(a) == annotations(b)
}

/// The `pod-template-hash` of a template; `collisions` makes another one when the name is taken.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(template).unwrap_or_default();
    match collisions {
        None => names::hash(&[&json]),
        Some(count) => names::hash(&[&json, &count.to_be_bytes()]),
    }
}

/// The template with the hash among its labels.
pub(crate) fn labelled(template: &PodTemplateSpec, hash: &str) -> PodTemplateSpec {
    let mut template = template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.to_owned());
    template
}
