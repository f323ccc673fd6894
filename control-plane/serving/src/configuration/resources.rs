//! The Revision of a Configuration's generation.

use api::serving::v1::{Configuration, Revision};
use api::{child_name, keys};
use controller::{owner_reference, status};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

/// The desired Revision. `now` stamps the routing state: a Configuration that routes already point at makes Revisions
/// that are active from birth.
pub fn revision(configuration: &Configuration, now: Timestamp) -> Revision {
    let template = &configuration.spec.template;
    let generation = configuration.metadata.generation.unwrap_or_default();
    let name = match template.metadata.name.as_str() {
        "" => child_name(&configuration.name_any(), &format!("-{generation:05}")),
        pinned => pinned.to_owned(),
    };

    let routes = configuration.annotations().get(keys::serving::ROUTES).filter(|routes| !routes.is_empty());
    let state = if routes.is_some() { keys::serving::ROUTING_ACTIVE } else { keys::serving::ROUTING_PENDING };
    let mut labels = template.metadata.labels.clone();
    labels.insert(keys::serving::ROUTING_STATE.to_owned(), state.to_owned());
    labels.insert(keys::serving::CONFIGURATION.to_owned(), configuration.name_any());
    labels.insert(keys::serving::CONFIGURATION_GENERATION.to_owned(), generation.to_string());
    labels.insert(keys::serving::CONFIGURATION_UID.to_owned(), configuration.uid().unwrap_or_default());
    for key in [keys::serving::SERVICE, keys::serving::SERVICE_UID] {
        if let Some(value) = configuration.labels().get(key).filter(|value| !value.is_empty()) {
            labels.insert(key.to_owned(), value.clone());
        }
    }

    let mut annotations = template.metadata.annotations.clone();
    annotations.insert(keys::serving::ROUTING_STATE_MODIFIED.to_owned(), status::rfc3339(now));
    if let Some(user) = configuration.annotations().get(keys::serving::LAST_MODIFIER) {
        annotations.insert(keys::serving::CREATOR.to_owned(), user.clone());
    }
    if let Some(routes) = routes {
        annotations.insert(keys::serving::ROUTES.to_owned(), routes.clone());
    }

    let mut owners = template.metadata.owner_references.clone();
    owners.push(owner_reference(configuration));
    let finalizers = template.metadata.finalizers.clone();
    Revision {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: configuration.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(owners),
            finalizers: (!finalizers.is_empty()).then_some(finalizers),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}
