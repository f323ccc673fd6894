//! What upstream really emitted, against what this crate makes of the same input.

use std::fs;
use std::path::{Path, PathBuf};

use api::admission::{ConfigSnapshot, Operation, Request, default_object, validate_object};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn fixtures(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder)
}

fn objects(resource: &str) -> Vec<Value> {
    let path = fixtures("objects").join(format!("{resource}.yaml"));
    let list: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    list["items"].as_array().unwrap_or(&Vec::new()).clone()
}

fn round_trip<T: DeserializeOwned + Serialize>(resource: &str) {
    for object in objects(resource) {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(&typed).unwrap(), object, "{resource}");
    }
}

#[test]
fn every_object_survives_a_round_trip() {
    round_trip::<api::serving::v1::Service>("services.serving.knative.dev");
    round_trip::<api::serving::v1::Configuration>("configurations.serving.knative.dev");
    round_trip::<api::serving::v1::Revision>("revisions.serving.knative.dev");
    round_trip::<api::serving::v1::Route>("routes.serving.knative.dev");
    round_trip::<api::serving::v1beta1::DomainMapping>("domainmappings.serving.knative.dev");
    round_trip::<api::autoscaling::v1alpha1::PodAutoscaler>("podautoscalers.autoscaling.internal.knative.dev");
    round_trip::<api::autoscaling::v1alpha1::Metric>("metrics.autoscaling.internal.knative.dev");
    round_trip::<api::networking::v1alpha1::Ingress>("ingresses.networking.internal.knative.dev");
    round_trip::<api::networking::v1alpha1::ServerlessService>("serverlessservices.networking.internal.knative.dev");
    round_trip::<api::networking::v1alpha1::ClusterDomainClaim>("clusterdomainclaims.networking.internal.knative.dev");
    round_trip::<api::caching::v1alpha1::Image>("images.caching.internal.knative.dev");
}

#[test]
fn unknown_fields_survive() {
    let object = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "a"},
        "spec": {
            "later": {"x": 1},
            "traffic": [{"percent": 100, "weightless": true}],
            "template": {"metadata": {"finalizers": ["f"], "odd": 1}, "also": 2, "spec": {"containers": [{"image": "i", "newField": [1]}], "podField": "y"}}
        }
    });
    let typed: api::serving::v1::Service = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), object);
}

fn request<'a>(kind: &'a str, operation: Operation, old: Option<&'a Value>) -> Request<'a> {
    let group = match kind {
        "PodAutoscaler" | "Metric" => api::autoscaling::GROUP,
        "Ingress" | "ServerlessService" | "Certificate" => api::networking::GROUP,
        _ => api::serving::GROUP,
    };
    Request { group, kind, operation, subresource: None, namespace: "default", user: "rig-admin", old }
}

#[test]
fn applied_manifests_are_defaulted_as_upstream_did() {
    let config = ConfigSnapshot::default();
    let mut seen = 0;
    for entry in fs::read_dir(fixtures("in")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for mut object in serde_saphyr::from_multiple::<Value>(&text).unwrap() {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            if object["apiVersion"] != "serving.knative.dev/v1" {
                continue;
            }
            let resource = format!("{}s.serving.knative.dev", kind.to_lowercase());
            let name = object["metadata"]["name"].clone();
            let Some(stored) = objects(&resource).into_iter().find(|o| o["metadata"]["name"] == name) else { continue };
            if stored["metadata"]["generation"] != 1 {
                continue;
            }
            let request = request(&kind, Operation::Create, None);
            default_object(&request, &mut object, &config).unwrap();
            assert_eq!(object["spec"], stored["spec"], "{kind} {name}");
            for key in ["creator", "lastModifier"] {
                let key = format!("serving.knative.dev/{key}");
                assert_eq!(object["metadata"]["annotations"][&key], stored["metadata"]["annotations"][&key]);
            }
            validate_object(&request, &object, &config).unwrap();
            seen += 1;
        }
    }
    assert!(seen >= 5, "only {seen} manifests compared");
}

#[test]
fn what_upstream_stored_is_valid_and_already_defaulted() {
    let config = ConfigSnapshot::default();
    for (resource, kind) in [
        ("services.serving.knative.dev", "Service"),
        ("configurations.serving.knative.dev", "Configuration"),
        ("revisions.serving.knative.dev", "Revision"),
        ("routes.serving.knative.dev", "Route"),
        ("domainmappings.serving.knative.dev", "DomainMapping"),
        ("podautoscalers.autoscaling.internal.knative.dev", "PodAutoscaler"),
        ("metrics.autoscaling.internal.knative.dev", "Metric"),
        ("ingresses.networking.internal.knative.dev", "Ingress"),
        ("serverlessservices.networking.internal.knative.dev", "ServerlessService"),
    ] {
        for stored in objects(resource) {
            let name = &stored["metadata"]["name"];
            let update = request(kind, Operation::Update, Some(&stored));
            let mut object = stored.clone();
            default_object(&update, &mut object, &config).unwrap();
            assert_eq!(object, stored, "{kind} {name}");
            validate_object(&update, &object, &config).unwrap_or_else(|e| panic!("{kind} {name}: {e}"));
        }
    }
}

// === Refusals ===

fn service(edit: impl FnOnce(&mut Value)) -> Value {
    let mut object = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [{"image": "dev.local/hello"}]}}}
    });
    edit(&mut object);
    object
}

fn refusal(mut object: Value) -> String {
    let config = ConfigSnapshot::default();
    let kind = object["kind"].as_str().unwrap().to_owned();
    let request = request(&kind, Operation::Create, None);
    default_object(&request, &mut object, &config).unwrap();
    validate_object(&request, &object, &config).unwrap_err()
}

#[test]
fn refusals_name_field_and_reason() {
    type Edit = fn(&mut Value);
    let cases: &[(Edit, &str)] = &[
        (
            |o| o["spec"]["template"]["spec"]["containers"][0]["image"] = "".into(),
            "missing field(s): spec.template.spec.containers[0].image",
        ),
        (
            |o| o["spec"]["template"]["spec"]["containers"] = json!([]),
            "missing field(s): spec.template.spec.containers",
        ),
        (
            |o| o["spec"]["template"]["spec"]["containerConcurrency"] = (-1).into(),
            "expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency",
        ),
        (
            |o| o["spec"]["template"]["spec"]["timeoutSeconds"] = 601.into(),
            "expected 0 <= 601 <= 600: spec.template.spec.timeoutSeconds",
        ),
        (
            |o| o["spec"]["template"]["spec"]["hostNetwork"] = true.into(),
            "must not set the field(s): spec.template.spec.hostNetwork",
        ),
        (
            |o| o["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8012}]),
            "invalid value: 8012 is a reserved port: spec.template.spec.containers[0].ports.containerPort\n8012 is a reserved port, please use a different value",
        ),
        (
            |o| o["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "PORT", "value": "1"}]),
            "\"PORT\" is a reserved environment variable: spec.template.spec.containers[0].env[0].name",
        ),
        (
            |o| o["spec"]["template"]["spec"]["containers"][0]["image"] = "UPPER case".into(),
            "Failed to parse image reference: spec.template.spec.containers[0].image\nimage: \"UPPER case\", error: could not parse reference: UPPER case",
        ),
        (
            |o| {
                o["spec"]["traffic"] =
                    json!([{"percent": 50, "latestRevision": true}, {"percent": 30, "revisionName": "hello-00001"}])
            },
            "Traffic targets sum to 80, want 100: spec.traffic",
        ),
        (
            |o| o["spec"]["traffic"] = json!([{"percent": 101, "tag": "a"}, {"percent": -1, "tag": "a"}]),
            "Multiple definitions for \"a\": spec.traffic[0].tag, spec.traffic[1].tag\nexpected 0 <= -1 <= 100: spec.traffic[1].percent\nexpected 0 <= 101 <= 100: spec.traffic[0].percent",
        ),
        (
            |o| o["metadata"]["name"] = "Hello".into(),
            "not a DNS 1035 label: [a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')]: metadata.name",
        ),
        (
            |o| o["metadata"]["annotations"] = json!({"autoscaling.knative.dev/min-scale": "1"}),
            "invalid key name \"autoscaling.knative.dev/min-scale\": metadata.annotations\nautoscaling annotations must be put under \"spec.template.metadata.annotations\" to work",
        ),
        (
            |o| o["spec"]["template"]["metadata"] = json!({"annotations": {"autoscaling.knative.dev/min-scale": "5", "autoscaling.knative.dev/max-scale": "2"}}),
            "max-scale=2 is less than min-scale=5: spec.template.metadata.annotations.autoscaling.knative.dev/max-scale, spec.template.metadata.annotations.autoscaling.knative.dev/min-scale",
        ),
        (
            |o| {
                o["spec"]["template"]["metadata"] = json!({"annotations": {"autoscaling.knative.dev/window": "2s", "autoscaling.knative.dev/target": "x"}})
            },
            "expected 6s <= 2s <= 1h0m0s: spec.template.metadata.annotations.autoscaling.knative.dev/window\ninvalid value: x: spec.template.metadata.annotations.autoscaling.knative.dev/target",
        ),
        (
            |o| o["spec"]["template"]["metadata"] = json!({"name": "other"}),
            "invalid value: \"other\" must have prefix \"hello-\": spec.template.metadata.name",
        ),
        (
            |o| {
                o["spec"]["template"]["spec"]["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}]);
                o["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
                    json!([{"name": "v", "mountPath": "/dev/"}]);
            },
            "HostPath volume support is disabled, but found HostPath volume v: \nmountPath \"/dev\" is a reserved path: spec.template.spec.containers[0].volumeMounts[0].mountPath\nmust not set the field(s): spec.template.spec.volumes[0].hostPath",
        ),
        (
            |o| {
                o["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
                    json!({"httpGet": {"path": "/"}, "exec": {"command": ["a"]}})
            },
            "expected exactly one, got both: spec.template.spec.containers[0].readinessProbe.exec, spec.template.spec.containers[0].readinessProbe.httpGet",
        ),
        (
            |o| o["spec"]["template"]["spec"]["containers"] = json!([{"image": "aa"}, {"image": "bb"}]),
            "missing field(s): spec.template.spec.containers[*].ports",
        ),
    ];
    for (edit, text) in cases {
        assert_eq!(refusal(service(edit)), format!("validation failed: {text}"));
    }
}

#[test]
fn revisions_do_not_change_and_named_templates_need_a_new_name() {
    let config = ConfigSnapshot::default();
    let stored = objects("revisions.serving.knative.dev").remove(0);
    let mut changed = stored.clone();
    changed["spec"]["containers"][0]["image"] = "other".into();
    let error = validate_object(&request("Revision", Operation::Update, Some(&stored)), &changed, &config).unwrap_err();
    assert!(error.starts_with("validation failed: Immutable fields changed (-old +new): spec\n{v1.RevisionSpec}.PodSpec.Containers[0].Image:\n\t-: "), "{error}");

    let named = service(|o| o["spec"]["template"]["metadata"] = json!({"name": "hello-one"}));
    let mut changed = named.clone();
    changed["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
    let update = request("Service", Operation::Update, Some(&named));
    default_object(&update, &mut changed, &config).unwrap();
    let error = validate_object(&update, &changed, &config).unwrap_err();
    assert!(
        error.contains("Saw the following changes without a name change (-old +new): spec.template.metadata.name"),
        "{error}"
    );
}

#[test]
fn users_are_recorded_and_protected() {
    let config = ConfigSnapshot::default();
    let mut stored = service(|_| {});
    default_object(&request("Service", Operation::Create, None), &mut stored, &config).unwrap();
    let mut update = request("Service", Operation::Update, Some(&stored));
    update.user = "other";

    let mut labelled = stored.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    default_object(&update, &mut labelled, &config).unwrap();
    assert_eq!(labelled["metadata"]["annotations"]["serving.knative.dev/lastModifier"], "rig-admin");

    let mut edited = stored.clone();
    edited["spec"]["template"]["spec"]["timeoutSeconds"] = 10.into();
    default_object(&update, &mut edited, &config).unwrap();
    assert_eq!(edited["metadata"]["annotations"]["serving.knative.dev/lastModifier"], "other");
    assert_eq!(edited["metadata"]["annotations"]["serving.knative.dev/creator"], "rig-admin");
    let warnings = validate_object(&update, &edited, &config).unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");

    edited["metadata"]["annotations"]["serving.knative.dev/creator"] = "thief".into();
    let error = validate_object(&update, &edited, &config).unwrap_err();
    assert_eq!(
        error,
        "validation failed: annotation value is immutable: metadata.annotations.serving.knative.dev/creator"
    );
}

#[test]
fn a_status_update_is_never_blocked_by_what_is_stored() {
    let config = ConfigSnapshot::default();
    let stored = service(|o| o["spec"]["traffic"] = json!([{"percent": 7}]));
    let mut update = request("Service", Operation::Update, Some(&stored));
    assert!(validate_object(&update, &stored, &config).is_err());
    update.subresource = Some("status");
    let mut object = stored.clone();
    default_object(&update, &mut object, &config).unwrap();
    assert_eq!(object, stored);
    validate_object(&update, &object, &config).unwrap();
}
