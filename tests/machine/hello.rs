//! The first thing a newcomer does.

use crate::harness::{Machine, binary};

pub fn ready_and_answers(machine: &Machine) {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello.yaml");
    machine.kubectl(&["apply", "-f", example]);
    machine.wait_ready("hello");
    let answer = machine.get("hello", "/");
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("Hello World!"), "{}", answer.body);
    assert_eq!(answer.headers["server"], "envoy");
    let answer = machine.get("nobody", "/");
    assert_eq!(answer.status, 404, "an unknown host is not found");
}

/// The headings are those that upstream prints (`kubectl get` of each kind).
pub fn columns(machine: &Machine) {
    let headings: &[(&str, &[&str])] = &[
        ("ksvc", &["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON"]),
        ("configuration", &["NAME", "LATESTCREATED", "LATESTREADY", "READY", "REASON"]),
        ("revision", &["NAME", "CONFIG NAME", "GENERATION", "READY", "REASON", "ACTUAL REPLICAS", "DESIRED REPLICAS"]),
        ("route", &["NAME", "URL", "READY", "REASON"]),
        ("kingress", &["NAME", "READY", "REASON"]),
        ("sks", &["NAME", "MODE", "ACTIVATORS", "SERVICENAME", "PRIVATESERVICENAME", "READY", "REASON"]),
        ("podautoscaler", &["NAME", "DESIREDSCALE", "ACTUALSCALE", "READY", "REASON"]),
        ("deployment", &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]),
        ("pod", &["NAME", "READY", "STATUS", "RESTARTS", "AGE"]),
    ];
    for (kind, expected) in headings {
        let text = machine.kubectl(&["get", kind]);
        let heading = text.lines().next().unwrap_or_default();
        let found: Vec<_> = heading.split("  ").map(str::trim).filter(|word| !word.is_empty()).collect();
        assert_eq!(&found, expected, "{kind}:\n{text}");
    }
    let row = machine.kubectl(&["get", "ksvc", "hello", "--no-headers"]);
    let row: Vec<_> = row.split_whitespace().collect();
    assert_eq!(row, ["hello", "http://hello.default.example.com", "hello-00001", "hello-00001", "True"]);
}

/// `dev.local/host` runs a program of the host with the command as given.
pub fn host_program(machine: &Machine) {
    let program = binary("hello");
    machine.apply(&format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: host}}\nspec:\n  template:\n    spec:\n      \
         containers:\n      - image: dev.local/host\n        command: [\"{}\"]\n        env: [{{name: TARGET, value: Host}}]\n",
        program.display()
    ));
    machine.wait_ready("host");
    assert!(machine.get("host", "/").body.contains("Hello Host!"));
    machine.delete("host");
}
