//! The ServerlessService and the Metric of a PodAutoscaler. After creation only their specs are kept in line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::Conditioned;
use api::autoscaling::v1alpha1::{Metric, MetricSpec, PodAutoscaler};
use api::config;
use api::keys::autoscaling as keys;
use api::networking::v1alpha1::{ServerlessService, ServerlessServiceSpec, SksObjectReference};
use controller::key::is_controlled_by;
use controller::{Error, ObjectKey, owner_reference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::{Resource, ResourceExt};

use super::{Kpa, SERVE};
use crate::settings::Settings;

/// Why a child is not as it should be.
pub(super) enum Failure {
    /// Somebody else's object has the name.
    NotOwned(&'static str),
    Other(Error),
}

// === impl Failure ===

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Other(error.into())
    }
}

/// Puts a failure into the conditions.
pub(super) fn failed(autoscaler: &mut PodAutoscaler, failure: Failure) -> Error {
    match failure {
        Failure::Other(error) => error,
        Failure::NotOwned(kind) => {
            let name = autoscaler.name_any();
            let message = format!("There is an existing {kind} {name:?} that we do not own.");
            autoscaler.mark().mark_false("Active", "NotOwned", &message);
            let short = if kind == "ServerlessService" { "SKS" } else { kind };
            Error::retry(format!("PA: {name} does not own {short}: {name}"))
        }
    }
}

// === impl Kpa ===

impl Kpa {
    pub(super) async fn ensure_service(
        &self,
        autoscaler: &PodAutoscaler,
        mode: &str,
        activators: i32,
    ) -> Result<Arc<ServerlessService>, Failure> {
        let spec = service_spec(autoscaler, mode, activators);
        let api = Api::<ServerlessService>::namespaced(self.client.clone(), &namespace(autoscaler));
        let Some(current) = self.services.get_key(&ObjectKey::of(autoscaler)) else {
            let mut service = ServerlessService::new(&autoscaler.name_any(), spec);
            service.metadata = child_meta(autoscaler);
            service.metadata.annotations.get_or_insert_default().remove(keys::METRIC);
            return Ok(Arc::new(api.create(&PostParams::default(), &service).await.map_err(raced)?));
        };
        if !is_controlled_by(&*current, autoscaler) {
            return Err(Failure::NotOwned("ServerlessService"));
        }
        if current.spec == spec {
            return Ok(current);
        }
        tracing::debug!(key = %ObjectKey::of(autoscaler), mode, serve = mode == SERVE, activators, "switching");
        let mut service = (*current).clone();
        service.spec = spec;
        Ok(Arc::new(api.replace(&autoscaler.name_any(), &PostParams::default(), &service).await?))
    }

    pub(super) async fn ensure_metric(
        &self,
        autoscaler: &PodAutoscaler,
        config: &config::Autoscaler,
    ) -> Result<(), Failure> {
        let spec = metric_spec(autoscaler, config);
        let api = Api::<Metric>::namespaced(self.client.clone(), &namespace(autoscaler));
        let Some(current) = self.metrics.get_key(&ObjectKey::of(autoscaler)) else {
            let mut metric = Metric::new(&autoscaler.name_any(), spec);
            metric.metadata = child_meta(autoscaler);
            api.create(&PostParams::default(), &metric).await.map_err(raced)?;
            return Ok(());
        };
        if !is_controlled_by(&*current, autoscaler) {
            return Err(Failure::NotOwned("Metric"));
        }
        if current.spec != spec {
            let mut metric = (*current).clone();
            metric.spec = spec;
            api.replace(&autoscaler.name_any(), &PostParams::default(), &metric).await?;
        }
        Ok(())
    }
}

fn namespace(autoscaler: &PodAutoscaler) -> String {
    autoscaler.namespace().unwrap_or_default()
}

/// Created already, but not in the cache yet: the event of its arrival, or the back-off, brings us here again.
fn raced(error: kube::Error) -> Error {
    if controller::error::is_already_exists(&error) { Error::Conflict(error.to_string()) } else { error.into() }
}

/// Same name, labels and annotations; owned.
fn child_meta(autoscaler: &PodAutoscaler) -> ObjectMeta {
    let present = |map: &BTreeMap<String, String>| Some(map.clone());
    ObjectMeta {
        name: autoscaler.meta().name.clone(),
        namespace: autoscaler.meta().namespace.clone(),
        labels: present(autoscaler.labels()),
        annotations: present(autoscaler.annotations()),
        owner_references: Some(vec![owner_reference(autoscaler)]),
        ..ObjectMeta::default()
    }
}

fn service_spec(autoscaler: &PodAutoscaler, mode: &str, activators: i32) -> ServerlessServiceSpec {
    let target = &autoscaler.spec.scale_target_ref;
    ServerlessServiceSpec {
        mode: mode.to_owned(),
        object_ref: SksObjectReference {
            kind: target.kind.clone(),
            name: target.name.clone(),
            api_version: target.api_version.clone(),
            ..SksObjectReference::default()
        },
        protocol_type: autoscaler.spec.protocol_type.clone(),
        num_activators: activators,
        ..ServerlessServiceSpec::default()
    }
}

fn metric_spec(autoscaler: &PodAutoscaler, config: &config::Autoscaler) -> MetricSpec {
    let settings = Settings::of(autoscaler, config);
    let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    let scraped = autoscaler.status.as_ref().map(|status| status.metrics_service_name.clone());
    MetricSpec {
        stable_window: nanos(settings.stable_window()),
        panic_window: nanos(settings.panic_window()),
        scrape_target: if settings.burst_capacity() == -1.0 { String::new() } else { scraped.unwrap_or_default() },
        ..MetricSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
    use api::config;
    use api::networking::v1alpha1::ServerlessService;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::{child_meta, metric_spec, service_spec};

    fn object<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn autoscaler(annotations: Value) -> PodAutoscaler {
        object(json!({
            "metadata": {"name": "hello-00001", "namespace": "default", "uid": "u", "annotations": annotations,
                         "labels": {"app": "hello-00001"}},
            "spec": {"protocolType": "http1", "reachability": "Reachable",
                     "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"}},
            "status": {"metricsServiceName": "hello-00001-private", "serviceName": "hello-00001"},
        }))
    }

    #[test]
    fn children_look_like_upstreams() {
        let pa = autoscaler(json!({"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev"}));
        let config = config::Autoscaler::default();
        let mut service = ServerlessService::new("hello-00001", service_spec(&pa, "Proxy", 3));
        service.metadata = child_meta(&pa);
        let metadata = json!({
            "name": "hello-00001", "namespace": "default", "labels": {"app": "hello-00001"},
            "annotations": {"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev"},
            "ownerReferences": [{"apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "PodAutoscaler",
                "name": "hello-00001", "uid": "u", "controller": true, "blockOwnerDeletion": true}],
        });
        assert_eq!(
            serde_json::to_value(&service).unwrap(),
            json!({
                "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ServerlessService", "metadata": metadata,
                "spec": {"mode": "Proxy", "numActivators": 3, "protocolType": "http1",
                    "objectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello-00001-deployment"}},
            })
        );
        let mut metric = Metric::new("hello-00001", metric_spec(&pa, &config));
        metric.metadata = child_meta(&pa);
        assert_eq!(
            serde_json::to_value(&metric).unwrap(),
            json!({
                "apiVersion": "autoscaling.internal.knative.dev/v1alpha1", "kind": "Metric", "metadata": metadata,
                "spec": {"panicWindow": 6000000000_i64, "scrapeTarget": "hello-00001-private", "stableWindow": 60000000000_i64},
            })
        );
    }

    #[test]
    fn nothing_is_scraped_if_the_activator_sees_everything() {
        let pa = autoscaler(json!({"autoscaling.knative.dev/target-burst-capacity": "-1"}));
        assert_eq!(metric_spec(&pa, &config::Autoscaler::default()).scrape_target, "");
    }
}
