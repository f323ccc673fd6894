//! The PodAutoscaler of a Revision (controllers.md 6.6).

use std::collections::BTreeMap;

use api::Conditioned;
use api::autoscaling::v1alpha1::{PodAutoscaler, PodAutoscalerSpec, ScaleTargetRef};
use api::keys::{autoscaling, serving};
use api::serving::v1::Revision;
use controller::owner_reference;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::{deployment, meta};

/// Set by admission on PodAutoscalers; not missed if the revision does not ask for them.
const DEFAULTED: [&str; 2] = [autoscaling::CLASS, autoscaling::METRIC];

pub fn desired(revision: &Revision, deployment: Option<&Deployment>, class: &str) -> PodAutoscaler {
    let mut annotations = meta::annotations(revision);
    annotations.entry(autoscaling::CLASS.to_owned()).or_insert_with(|| class.to_owned());
    PodAutoscaler {
        metadata: ObjectMeta {
            name: Some(revision.name_any()),
            namespace: revision.namespace(),
            labels: Some(meta::labels(revision)),
            annotations: Some(annotations),
            owner_references: Some(vec![owner_reference(revision)]),
            ..ObjectMeta::default()
        },
        spec: PodAutoscalerSpec {
            container_concurrency: revision.spec.container_concurrency.unwrap_or_default(),
            scale_target_ref: ScaleTargetRef {
                api_version: "apps/v1".to_owned(),
                kind: "Deployment".to_owned(),
                name: deployment::name(revision),
                ..ScaleTargetRef::default()
            },
            reachability: reachability(revision, deployment).to_owned(),
            protocol_type: revision.spec.pod.protocol().to_owned(),
            ..PodAutoscalerSpec::default()
        },
        status: None,
    }
}

/// Whether anybody can send requests. A revision that cannot start counts as unreachable, so that it does not keep its minimum.
fn reachability(revision: &Revision, deployment: Option<&Deployment>) -> &'static str {
    let failed = |kind: &str| revision.condition(kind).is_some_and(|condition| condition.is_false());
    let starved = deployment.is_some_and(|deployment| {
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
        wanted > 0 && ready == 0
    });
    if starved && (failed("ResourcesAvailable") || failed("ContainerHealthy")) {
        return "Unreachable";
    }
    match revision.labels().get(serving::ROUTING_STATE).map(String::as_str) {
        Some(serving::ROUTING_ACTIVE) => "Reachable",
        Some(serving::ROUTING_RESERVE) => "Unreachable",
        _ => "",
    }
}

/// The update that makes `current` what is `desired`; `None` if it is so already. Labels are not kept in line.
pub fn update(current: &PodAutoscaler, desired: &PodAutoscaler) -> Option<PodAutoscaler> {
    let mut annotations: BTreeMap<String, String> = current.annotations().clone();
    annotations.retain(|key, _| {
        !key.starts_with(autoscaling::GROUP)
            || DEFAULTED.contains(&key.as_str())
            || desired.annotations().contains_key(key)
    });
    for (key, value) in desired.annotations() {
        if !DEFAULTED.contains(&key.as_str()) || annotations.contains_key(key) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    if current.spec == desired.spec && *current.annotations() == annotations {
        return None;
    }
    let mut update = current.clone();
    update.spec = desired.spec.clone();
    update.metadata.annotations = Some(annotations);
    Some(update)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn revision(annotations: serde_json::Value, state: &str) -> Revision {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "namespace": "default", "uid": "u", "annotations": annotations,
                "labels": {"serving.knative.dev/routingState": state}},
            "spec": {"containers": [{"image": "x"}]},
        }))
        .unwrap()
    }

    #[test]
    fn drift_is_put_right_but_admissions_defaults_stay() {
        let annotations = json!({"autoscaling.knative.dev/min-scale": "2"});
        let wanted = desired(&revision(annotations, "active"), None, autoscaling::KPA);
        let mut current = wanted.clone();
        assert_eq!(update(&current, &wanted), None);
        current.metadata.annotations.as_mut().unwrap().extend([
            ("autoscaling.knative.dev/metric".to_owned(), "concurrency".to_owned()),
            ("foreign".to_owned(), "kept".to_owned()),
        ]);
        assert_eq!(update(&current, &wanted), None);
        current.metadata.annotations.as_mut().unwrap().extend([
            ("autoscaling.knative.dev/max-scale".to_owned(), "9".to_owned()),
            ("autoscaling.knative.dev/min-scale".to_owned(), "1".to_owned()),
        ]);
        let updated = update(&current, &wanted).unwrap();
        assert_eq!(
            json!(updated.annotations()),
            json!({"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev", "autoscaling.knative.dev/metric": "concurrency",
                "autoscaling.knative.dev/min-scale": "2", "foreign": "kept"})
        );
        let reserve = desired(&revision(json!({}), "reserve"), None, autoscaling::KPA);
        assert_eq!(update(&wanted, &reserve).unwrap().spec.reachability, "Unreachable");
    }

    #[test]
    fn a_revision_that_cannot_start_is_unreachable() {
        let mut revision = revision(json!({}), "active");
        let deployment: Deployment = serde_json::from_value(json!({
            "spec": {"replicas": 1, "selector": {}, "template": {}}, "status": {"readyReplicas": 0}}))
        .unwrap();
        assert_eq!(reachability(&revision, Some(&deployment)), "Reachable");
        revision.mark().mark_false("ContainerHealthy", "ExitCode1", "x");
        assert_eq!(reachability(&revision, Some(&deployment)), "Unreachable");
        assert_eq!(reachability(&revision, None), "Reachable");
    }
}
