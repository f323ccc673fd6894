use serde_json::{Value, json};

use super::*;
use crate::{Registry, Status, WriteContext};

fn registry() -> Registry {
    Registry::new(builtin(&Options::default()))
}

/// What the pipeline does with a new object, as far as the rules are concerned.
fn created(object: Value) -> Result<Value, Status> {
    let registry = registry();
    let text = |field: &str| object[field].as_str().expect("a string").to_owned();
    let kind = registry.by_kind(&text("apiVersion"), &text("kind")).expect("a built-in kind");
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let context = WriteContext {
        kind,
        namespace: &namespace,
        name: object["metadata"]["name"].as_str().unwrap_or_default(),
        subresource: "",
        user: "admin",
        groups: &[],
        dry_run: false,
        now: jiff::Timestamp::now(),
        lookup: &|_, _, _| None,
    };
    let mut made = object.clone();
    if let Some(schema) = &kind.schema {
        assert_eq!(schema.decode_error(&made), None);
        assert_eq!(schema.unknown_fields(&mut made, true), [] as [&str; 0]);
    }
    kind.strategy.default(&mut made);
    kind.strategy.prepare_create(&context, &mut made)?;
    kind.strategy.default(&mut made);
    match kind.strategy.validate(&context, &made, None) {
        errors if errors.is_empty() => Ok(made),
        errors => Err(Status::invalid(kind, context.name, &errors)),
    }
}

fn refused(object: Value) -> String {
    created(object).expect_err("refused").message
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

#[test]
fn every_name_is_known_once() {
    let registry = registry();
    let mut names = std::collections::HashSet::new();
    for kind in registry.kinds() {
        assert!(names.insert((kind.group.clone(), kind.plural.clone())), "{} twice", kind.plural);
        assert_eq!(kind.columns.is_empty(), kind.row.is_none());
    }
    assert_eq!(registry.groups().first(), Some(&""));
}

#[test]
fn deployments_get_defaults() {
    let made = created(deployment(
        json!({"selector": {"matchLabels": {"app": "x"}}, "template": {"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c", "image": "nginx:1"}]}}}),
    ))
    .expect("created");
    assert_eq!(made["spec"]["replicas"], 1);
    assert_eq!(
        made["spec"]["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
    );
    assert_eq!(made["spec"]["revisionHistoryLimit"], 10);
    assert_eq!(made["spec"]["progressDeadlineSeconds"], 600);
    let pod = &made["spec"]["template"]["spec"];
    let expected = json!({
        "containers": [{"name": "c", "image": "nginx:1", "imagePullPolicy": "IfNotPresent", "resources": {},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
        "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {},
        "terminationGracePeriodSeconds": 30,
    });
    assert_eq!(*pod, expected);
}

#[test]
fn deployments_are_checked() {
    let message = refused(deployment(
        json!({"selector": {"matchLabels": {"app": "y"}}, "template": {"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "c"}]}}}),
    ));
    let expected = "Deployment.apps \"d\" is invalid: [spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not \
        match template `labels`, spec.template.spec.containers[0].image: Required value]";
    assert_eq!(message, expected);
    let message = refused(deployment(json!({"replicas": -1})));
    assert!(message.contains("spec.replicas: Invalid value: -1: must be greater than or equal to 0"), "{message}");
    assert!(message.contains("spec.selector: Required value"), "{message}");
    assert!(message.contains("spec.template.spec.containers: Required value"), "{message}");
}

#[test]
fn pods_get_an_account_a_token_and_a_status() {
    let made = created(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": "1"}}}]}}))
    .expect("created");
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["containers"][0]["resources"]["requests"], json!({"cpu": "1"}));
    let volume = spec["volumes"][0]["name"].as_str().expect("a volume");
    assert!(volume.starts_with("kube-api-access-"));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["name"], volume);
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(made["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
    let message = refused(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "robot", "containers": []}}));
    let expected =
        "pods \"p\" is forbidden: error looking up service account default/robot: serviceaccount \"robot\" not found";
    assert_eq!(message, expected);
}

#[test]
fn deleting_a_pod_takes_its_grace() {
    let grace = |pod: Value, requested| pods::Pod.deletion_grace(&pod, requested);
    let running =
        json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 300}, "status": {"phase": "Running"}});
    assert_eq!(grace(running.clone(), None), Some(300));
    assert_eq!(grace(running.clone(), Some(5)), Some(5));
    assert_eq!(grace(running, Some(0)), None);
    assert_eq!(grace(json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), None), None);
    assert_eq!(grace(json!({"spec": {}, "status": {"phase": "Pending"}}), None), None);
}

#[test]
fn secrets_and_config_maps() {
    let made = created(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"b": "eA=="},
        "stringData": {"a": "hello"}}))
    .expect("created");
    assert_eq!((&made["type"], &made["data"]), (&json!("Opaque"), &json!({"a": "aGVsbG8=", "b": "eA=="})));
    assert!(made.get("stringData").is_none());
    let message =
        refused(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a b": ""}}));
    assert!(
        message.starts_with("ConfigMap \"c\" is invalid: data[a b]: Invalid value: \"a b\": a valid config key"),
        "{message}"
    );
}

#[test]
fn namespaces_start_active_with_their_label() {
    let made = created(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}})).expect("created");
    assert_eq!(made["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    assert_eq!(made["status"]["phase"], "Active");
}

#[test]
fn events_belong_to_the_namespace_of_their_object() {
    let event = |namespace: &str| {
        created(json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "namespace": namespace}}))
    };
    assert!(event("default").is_ok());
    assert!(event("other").expect_err("refused").message.contains("does not match event.namespace"));
}

#[test]
fn reviews_are_answered() {
    let registry = registry();
    let kind = registry.get("authorization.k8s.io", "v1", "selfsubjectaccessreviews").expect("a review");
    let context = WriteContext {
        kind,
        namespace: "",
        name: "",
        subresource: "",
        user: "admin",
        groups: &[],
        dry_run: false,
        now: jiff::Timestamp::now(),
        lookup: &|_, _, _| None,
    };
    let answer = kind.strategy.answer(&context, &json!({"spec": {}})).expect("an answer").expect("no error");
    assert_eq!(answer["status"]["allowed"], true);
}
