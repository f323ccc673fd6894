//! Image objects: hints for node-side caches of what the revision runs (controllers.md 6.7). Created once, never changed.

use api::caching::v1alpha1::{Image, ImageSpec};
use api::child_name;
use api::serving::v1::Revision;
use controller::owner_reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::meta;

pub fn desired(revision: &Revision) -> Vec<Image> {
    let Some(status) = &revision.status else { return Vec::new() };
    let pull_secrets = revision.spec.pod.0.get("imagePullSecrets").cloned().unwrap_or_default();
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses);
    containers
        .map(|container| Image {
            metadata: ObjectMeta {
                name: Some(child_name(&child_name(&revision.name_any(), "-cache"), &format!("-{}", container.name))),
                namespace: revision.namespace(),
                labels: Some(meta::labels(revision)),
                annotations: Some(meta::pod_annotations(revision)).filter(|annotations| !annotations.is_empty()),
                owner_references: Some(vec![owner_reference(revision)]),
                ..ObjectMeta::default()
            },
            spec: ImageSpec {
                image: container.image_digest.clone(),
                service_account_name: revision.spec.pod.service_account_name().to_owned(),
                image_pull_secrets: serde_json::from_value(pull_secrets.clone()).unwrap_or_default(),
                ..ImageSpec::default()
            },
            status: None,
        })
        .collect()
}
