//! What users get wrong, and what they are told.

use serde_json::Value;

use crate::harness::{Machine, eventually, hello_yaml};

fn condition(object: &Value, kind: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

pub fn invalid_manifest(machine: &Machine) {
    let refused = |yaml: &str| {
        let output = machine.try_apply(yaml);
        assert!(!output.status.success(), "accepted:\n{yaml}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let negative = refused(&hello_yaml("wrong", "x", &[], "      containerConcurrency: -1\n"));
    assert!(negative.contains("expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency"), "{negative}");
    let scale = refused(&hello_yaml("wrong", "x", &[("autoscaling.knative.dev/min-scale", "lots")], ""));
    assert!(
        scale.contains("invalid value: lots: spec.template.metadata.annotations.autoscaling.knative.dev/min-scale"),
        "{scale}"
    );
    let traffic =
        format!("{}  traffic:\n  - {{latestRevision: true, percent: 50}}\n", hello_yaml("wrong", "x", &[], ""));
    let traffic = refused(&traffic);
    assert!(traffic.contains("Traffic targets sum to 50, want 100: spec.traffic"), "{traffic}");
    let unknown = refused(&hello_yaml("wrong", "x", &[], "      wibble: 1\n"));
    assert!(unknown.contains("unknown field \"spec.template.spec.wibble\""), "{unknown}");
    let image = refused(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: wrong}\nspec: {template: {spec: {containers: [{}]}}}\n",
    );
    assert!(image.contains("missing field(s): spec.template.spec.containers[0].image"), "{image}");
    assert!(machine.kubectl(&["get", "ksvc", "wrong", "--ignore-not-found"]).is_empty());
}

pub fn missing_image(machine: &Machine) {
    machine.apply(&hello_yaml("noimage", "x", &[], "").replace("dev.local/hello", "dev.local/no-such-program"));
    let pod = eventually("a waiting container", || {
        let pod = machine.pods("noimage").into_iter().next()?;
        let statuses = pod["status"]["containerStatuses"].as_array()?.clone();
        let user = statuses.into_iter().find(|status| status["name"] == "user-container")?;
        user["state"]["waiting"]["reason"].is_string().then_some(user)
    });
    let reason = pod["state"]["waiting"]["reason"].as_str().expect("a reason");
    assert!(["ErrImagePull", "ImagePullBackOff"].contains(&reason), "{pod}");
    let message = pod["state"]["waiting"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("no-such-program"), "{message}");
    machine.delete("noimage");

    machine.apply(&hello_yaml("badtag", "x", &[], "").replace("dev.local/hello", "registry.invalid/nothing:1"));
    let (reason, message) = eventually("a failed revision", || {
        let revision = machine.json(&["get", "rev", "badtag-00001"]);
        let (status, reason, message) = condition(&revision, "ContainerHealthy");
        (status == "False").then_some((reason, message))
    });
    assert_eq!(reason, "ContainerMissing");
    assert!(message.contains("Unable to fetch image \"registry.invalid/nothing:1\""), "{message}");
    machine.delete("badtag");
}

pub fn exiting_program(machine: &Machine) {
    machine.hello("crash", &[("autoscaling.knative.dev/min-scale", "1")], "");
    let broken = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: crash}\nspec:\n  template:\n    spec:\n      \
                  containers:\n      - image: dev.local/host\n        command: [\"/bin/sh\", \"-c\", \"echo out of beans; exit 3\"]\n";
    machine.apply(broken);
    let (reason, message) = eventually("a failed revision", || {
        let revision = machine.json(&["get", "rev", "crash-00002"]);
        let (status, reason, message) = condition(&revision, "ContainerHealthy");
        (status == "False").then_some((reason, message))
    });
    assert_eq!(reason, "ExitCode3");
    assert_eq!(message, "Container failed with: out of beans\n");
    let service = eventually("a failed service", || {
        let service = machine.json(&["get", "ksvc", "crash"]);
        (condition(&service, "ConfigurationsReady").0 == "False").then_some(service)
    });
    assert_eq!(condition(&service, "ConfigurationsReady").1, "RevisionFailed");
    assert_eq!(service["status"]["latestReadyRevisionName"], "crash-00001");
    assert!(machine.get("crash", "/").body.contains("Hello crash!"), "the last good revision serves");
    machine.delete("crash");
}

pub fn silent_port(machine: &Machine) {
    let silent = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: silent}\nspec:\n  template:\n    metadata:\n      \
                  annotations: {serving.knative.dev/progress-deadline: 5s}\n    spec:\n      containers:\n      - image: dev.local/host\n        \
                  command: [\"/bin/sleep\", \"1000\"]\n";
    machine.apply(silent);
    let (reason, message) = eventually("the deadline", || {
        let revision = machine.json(&["get", "rev", "silent-00001"]);
        let (status, reason, message) = condition(&revision, "ResourcesAvailable");
        (status == "False").then_some((reason, message))
    });
    assert_eq!(reason, "ProgressDeadlineExceeded", "{message}");
    assert_eq!(machine.get("hello", "/").status, 200, "others are not affected");
    machine.delete("silent");
}
