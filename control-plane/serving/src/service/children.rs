//! The Configuration and the Route that a Service asks for.

use std::collections::{BTreeMap, BTreeSet};

use api::keys;
use api::serving::v1::{Configuration, ConfigurationSpec, Route, RouteSpec, Service};
use controller::{owner_reference, status};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::Serialize;

/// The desired Configuration; `existing` contributes the routes that already point at it.
pub fn configuration(service: &Service, existing: Option<&Configuration>) -> Configuration {
    let name = service.name_any();
    let mut labels = service.labels().clone();
    labels.insert(keys::serving::SERVICE.to_owned(), name.clone());
    labels.insert(keys::serving::SERVICE_UID.to_owned(), service.uid().unwrap_or_default());

    let mut annotations = without(service.annotations(), &[keys::LAST_APPLIED]);
    annotations.retain(|key, _| !keys::serving::ROLLOUT_DURATION_ALIASES.contains(&key.as_str()));
    let routes = existing.and_then(|c| c.annotations().get(keys::serving::ROUTES)).cloned().unwrap_or_default();
    let mut routes: BTreeSet<_> = routes.split(',').filter(|r| !r.is_empty()).map(str::to_owned).collect();
    routes.insert(name);
    annotations.insert(keys::serving::ROUTES.to_owned(), routes.into_iter().collect::<Vec<_>>().join(","));

    let spec = ConfigurationSpec { template: service.spec.template.clone(), ..ConfigurationSpec::default() };
    Configuration { metadata: metadata(service, labels, annotations), spec, status: None }
}

/// The desired Route: the Service's traffic, its own configuration wherever no revision is named.
pub fn route(service: &Service) -> Route {
    let name = service.name_any();
    let mut labels = service.labels().clone();
    labels.insert(keys::serving::SERVICE.to_owned(), name.clone());
    let annotations = without(service.annotations(), &[keys::LAST_APPLIED]);
    let mut traffic = service.spec.traffic.clone();
    for target in traffic.iter_mut().filter(|target| target.revision_name.is_empty()) {
        target.configuration_name.clone_from(&name);
    }
    let spec = RouteSpec { traffic, ..RouteSpec::default() };
    Route { metadata: metadata(service, labels, annotations), spec, status: None }
}

fn metadata(service: &Service, labels: BTreeMap<String, String>, annotations: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(service.name_any()),
        namespace: service.namespace(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![owner_reference(service)]),
        ..ObjectMeta::default()
    }
}

fn without(map: &BTreeMap<String, String>, keys: &[&str]) -> BTreeMap<String, String> {
    map.iter().filter(|(key, _)| !keys.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Whether spec, labels or annotations of what exists are not what is desired.
pub fn differs<K: Resource, S: Serialize>(existing: &K, existing_spec: &S, desired: &K, desired_spec: &S) -> bool {
    existing.labels() != desired.labels()
        || existing.annotations() != desired.annotations()
        || !same(existing_spec, desired_spec)
}

/// Semantic equality: empty and absent are the same.
pub fn same<T: Serialize>(a: &T, b: &T) -> bool {
    match (serde_json::to_value(a), serde_json::to_value(b)) {
        (Ok(a), Ok(b)) => status::equal(&a, &b),
        _ => false,
    }
}

/// `desired` with the identity of `existing`, to be written over it.
pub fn onto<K: Resource>(existing: &K, mut desired: K) -> K {
    let metadata = ObjectMeta {
        labels: desired.meta().labels.clone(),
        annotations: desired.meta().annotations.clone(),
        ..existing.meta().clone()
    };
    *desired.meta_mut() = metadata;
    desired
}
