//! Children as upstream's controllers made them: `golden/` holds revisions and what became of them on a real API.

use std::collections::BTreeSet;

use api::config;
use serde_json::json;

use super::*;

const GOLDEN: [&str; 3] = [
    include_str!("golden/hello-00001.json"),
    include_str!("golden/multi-00001.json"),
    include_str!("golden/rich-00001.json"),
];

/// What the Kubernetes API added to the Deployments, and the scale that the autoscaler set later.
const DEFAULTED: [&str; 22] = [
    "spec.strategy.rollingUpdate.maxSurge",
    "containers.env.valueFrom.fieldRef.apiVersion",
    "containers.imagePullPolicy",
    "containers.lifecycle.preStop.httpGet.scheme",
    "containers.livenessProbe.failureThreshold",
    "containers.livenessProbe.periodSeconds",
    "containers.livenessProbe.successThreshold",
    "containers.livenessProbe.timeoutSeconds",
    "containers.ports.protocol",
    "containers.readinessProbe.failureThreshold",
    "containers.readinessProbe.httpGet.path",
    "containers.readinessProbe.httpGet.scheme",
    "containers.readinessProbe.periodSeconds",
    "containers.readinessProbe.timeoutSeconds",
    "containers.terminationMessagePath",
    "containers.terminationMessagePolicy",
    "dnsPolicy",
    "restartPolicy",
    "schedulerName",
    "securityContext",
    "serviceAccount",
    "volumes.configMap.defaultMode",
];

struct Case {
    revision: Revision,
    golden: Value,
}

fn cases() -> Vec<Case> {
    let cases = GOLDEN.map(|text| {
        let mut golden: Value = serde_json::from_str(text).unwrap();
        let revision = serde_json::from_value(golden["revision"].take()).unwrap();
        Case { revision, golden }
    });
    cases.into()
}

fn desired(revision: &Revision, deployment: &config::Deployment, features: &config::Features) -> Value {
    let settings = deployment::Settings {
        autoscaler: &config::Autoscaler::default(),
        defaults: &config::Defaults::default(),
        deployment,
        features,
        logging: &config::Logging::default(),
        observability: &config::Observability::default(),
        system_namespace: "knative-serving",
    };
    deployment::desired(revision, &settings).unwrap()
}

fn rig() -> config::Deployment {
    let data = [("queue-sidecar-image", "ko.local/knative.dev/serving/cmd/queue"), ("progress-deadline", "120s")];
    config::Deployment::parse(&data.map(|(key, value)| (key.to_owned(), value.to_owned())).into()).unwrap()
}

/// Checks that everything in `ours` is in `theirs`; collects what only they have.
fn compare(ours: &Value, theirs: &Value, path: &str, extra: &mut BTreeSet<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                let at = format!("{path}.{key}");
                compare(value, b.get(key).unwrap_or_else(|| panic!("{at}: only ours has {value}")), &at, extra);
            }
            extra.extend(b.keys().filter(|key| !a.contains_key(*key)).map(|key| format!("{path}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{path}");
            a.iter().zip(b).for_each(|(a, b)| compare(a, b, path, extra));
        }
        (a, b) => assert_eq!(a, b, "{path}"),
    }
}

#[test]
fn deployments_are_upstreams() {
    for case in cases() {
        let mut ours = desired(&case.revision, &rig(), &config::Features::default());
        let theirs = &case.golden["deployment"];
        // The hash is a different function of the same things, and the scale has moved on since.
        ours["metadata"]["labels"][serving::DEPLOYMENT_HASH] =
            theirs["metadata"]["labels"][serving::DEPLOYMENT_HASH].clone();
        assert_eq!(ours["spec"]["replicas"], 1);
        ours["spec"]["replicas"] = theirs["spec"]["replicas"].clone();
        let mut extra = BTreeSet::new();
        compare(&ours, theirs, "", &mut extra);
        let unknown: Vec<_> = extra
            .iter()
            .map(|path| path.trim_start_matches('.').trim_start_matches("spec.template.spec.").to_owned())
            .filter(|path| !DEFAULTED.contains(&path.as_str()))
            .collect();
        assert_eq!(unknown, Vec::<String>::new(), "only upstream has these");
    }
}

#[test]
fn autoscalers_and_images_are_upstreams() {
    for case in cases() {
        let ours =
            serde_json::to_value(pod_autoscaler::desired(&case.revision, None, "kpa.autoscaling.knative.dev")).unwrap();
        let mut extra = BTreeSet::new();
        compare(&ours, &case.golden["podAutoscaler"], "", &mut extra);
        // Added at admission.
        assert_eq!(extra, [".metadata.annotations.autoscaling.knative.dev/metric".to_owned()].into());
        assert_eq!(serde_json::to_value(images::desired(&case.revision)).unwrap(), case.golden["images"]);
    }
}

#[test]
fn fields_that_nobody_knows_reach_the_pod_and_digests_replace_tags() {
    let mut revision = cases().remove(0).revision;
    revision.spec.pod.0.insert("futureField".to_owned(), json!({"a": 1}));
    revision.spec.pod.containers_mut()[0]["futureField"] = json!(true);
    revision.spec.pod.containers_mut()[0]["readinessProbe"] = json!({"exec": {"command": ["ok"]}});
    revision.status_mut().container_statuses[0].image_digest = "reg/x@sha256:1".to_owned();
    let pod = &desired(&revision, &rig(), &config::Features::default())["spec"]["template"]["spec"];
    assert_eq!(pod["futureField"], json!({"a": 1}));
    assert_eq!(pod["containers"][0]["futureField"], true);
    assert_eq!(pod["containers"][0]["image"], "reg/x@sha256:1");
    assert_eq!(pod["containers"][0]["readinessProbe"]["exec"]["command"][0], "ok", "commands stay with the kubelet");
}

#[test]
fn the_hash_follows_what_pods_are_made_of() {
    let hash = |revision: &Revision| {
        let desired = desired(revision, &rig(), &config::Features::default());
        desired["metadata"]["labels"][serving::DEPLOYMENT_HASH].as_str().unwrap().to_owned()
    };
    let mut revision = cases().remove(0).revision;
    let before = hash(&revision);
    revision.annotations_mut().insert("autoscaling.knative.dev/min-scale".into(), "3".into());
    revision.labels_mut().insert(serving::ROUTING_STATE.into(), "reserve".into());
    assert_eq!(hash(&revision), before, "scaling and routing make no new pods");
    revision.annotations_mut().insert("example.com/a".into(), "b".into());
    assert_ne!(hash(&revision), before);
}

#[test]
fn the_sidecar_says_where_time_goes_only_when_it_is_asked_to() {
    let mut revision = cases().remove(0).revision;
    let asked = |revision: &Revision| {
        let made = desired(revision, &rig(), &config::Features::default());
        let env = made["spec"]["template"]["spec"]["containers"][1]["env"].as_array().unwrap().clone();
        env.contains(&json!({"name": "QUEUE_SERVER_TIMING", "value": "true"}))
    };
    assert!(!asked(&revision));
    for (value, expected) in [("Enabled", true), ("disabled", false)] {
        revision.annotations_mut().insert(api::keys::queue_sidecar::SERVER_TIMING.into(), value.into());
        assert_eq!(asked(&revision), expected, "{value}");
    }
}

#[test]
fn a_drain_can_be_told_to_end_when_nothing_is_left() {
    let mut revision = cases().remove(0).revision;
    for (value, expected) in [("500ms", true), ("2s", true), ("", false), ("s", false), ("2", false), ("1.5s", false)] {
        revision.annotations_mut().insert(api::keys::queue_sidecar::DRAIN_IDLE_PERIOD.into(), value.into());
        let made = desired(&revision, &rig(), &config::Features::default());
        let env = made["spec"]["template"]["spec"]["containers"][1]["env"].as_array().unwrap().clone();
        assert_eq!(env.contains(&json!({"name": "QUEUE_DRAIN_IDLE_PERIOD", "value": value})), expected, "{value:?}");
        assert_eq!(env.iter().any(|one| one["name"] == "QUEUE_DRAIN_IDLE_PERIOD"), expected, "{value:?}");
    }
}

#[test]
fn features_add_volumes_and_resources() {
    let mut revision = cases().remove(0).revision;
    revision.annotations_mut().extend([
        ("features.knative.dev/queueproxy-podinfo".to_owned(), "Enabled".to_owned()),
        ("features.knative.dev/http-full-duplex".to_owned(), "enabled".to_owned()),
        ("queue.sidecar.serving.knative.dev/memory-resource-limit".to_owned(), "1Gi".to_owned()),
    ]);
    let features = config::Features {
        queue_proxy_mount_podinfo: config::Flag::Allowed,
        queue_proxy_resource_defaults: config::Flag::Enabled,
        ..config::Features::default()
    };
    let deployment =
        config::Deployment { queue_sidecar_token_audiences: ["b".to_owned(), "a".to_owned()].into(), ..rig() };
    let pod = &desired(&revision, &deployment, &features)["spec"]["template"]["spec"];
    let names: Vec<_> =
        pod["volumes"].as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["pod-info", "knative-token-volume"]);
    assert_eq!(pod["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"]["audience"], "a");
    let queue = &pod["containers"][1];
    assert_eq!(
        queue["resources"],
        json!({"requests": {"cpu": "25m", "memory": "400Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}})
    );
    assert_eq!(queue["volumeMounts"][0]["mountPath"], "/etc/podinfo");
    let env = queue["env"].as_array().unwrap();
    let duplex = env.iter().find(|variable| variable["name"] == "ENABLE_HTTP_FULL_DUPLEX").unwrap();
    assert_eq!(duplex["value"], "true");
}
