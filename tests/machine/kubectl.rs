//! Unmodified kubectl, verb by verb.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::harness::{Machine, eventually};

pub fn edits(machine: &Machine) {
    machine.kubectl(&["label", "ksvc", "hello", "team=blue"]);
    machine.kubectl(&["annotate", "ksvc", "hello", "note=first"]);
    let json = r#"[{"op":"add","path":"/metadata/annotations/two","value":"json"}]"#;
    machine.kubectl(&["patch", "ksvc", "hello", "--type=json", "-p", json]);
    machine.kubectl(&["patch", "ksvc", "hello", "--type=merge", "-p", r#"{"metadata":{"annotations":{"note":null}}}"#]);
    let service = machine.json(&["get", "ksvc", "hello"]);
    assert_eq!(service["metadata"]["labels"]["team"], "blue");
    assert_eq!(service["metadata"]["annotations"]["two"], "json");
    assert!(service["metadata"]["annotations"].get("note").is_none());
    assert_eq!(service["metadata"]["generation"], 1, "metadata alone is no new generation");

    machine.kubectl(&["create", "configmap", "cm", "--from-literal=a=1"]);
    machine.kubectl(&["patch", "configmap", "cm", "--type=strategic", "-p", r#"{"data":{"b":"2"}}"#]);
    assert_eq!(machine.json(&["get", "cm", "cm"])["data"], serde_json::json!({"a": "1", "b": "2"}));
    let edited = machine
        .kubectl_command(&["edit", "cm", "cm"])
        .env("KUBE_EDITOR", "sed -i 's/\"1\"/\"9\"/'")
        .output()
        .expect("runs");
    assert!(edited.status.success(), "{}", String::from_utf8_lossy(&edited.stderr));
    assert_eq!(machine.json(&["get", "cm", "cm"])["data"], serde_json::json!({"a": "9", "b": "2"}));

    let path = machine.data().join("cm.json");
    let mut map = machine.json(&["get", "cm", "cm"]);
    map["data"] = serde_json::json!({"only": "this"});
    std::fs::write(&path, map.to_string()).expect("writable");
    machine.kubectl(&["replace", "-f", path.to_str().expect("UTF-8")]);
    assert_eq!(machine.json(&["get", "cm", "cm"])["data"], serde_json::json!({"only": "this"}));
    let stale = machine.kubectl_fails(&["replace", "-f", path.to_str().expect("UTF-8")]);
    assert!(stale.contains("the object has been modified"), "{stale}");
    machine.kubectl(&["delete", "cm", "cm"]);

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/hello.yaml");
    let exists = machine.kubectl_fails(&["create", "-f", file]);
    assert!(exists.contains("services.serving.knative.dev \"hello\" already exists"), "{exists}");
    // Defaults make kubectl send a patch; it says nothing new, so nothing changes.
    let version = |machine: &Machine| machine.json(&["get", "ksvc", "hello"])["metadata"]["resourceVersion"].clone();
    let before = version(machine);
    machine.kubectl(&["apply", "-f", file]);
    assert_eq!(version(machine), before);
}

pub fn watches(machine: &Machine) {
    let mut watch = machine
        .kubectl_command(&["get", "ksvc", "-w", "-o", "name"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl is installed");
    let lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    machine.hello("watched", &[], "");
    let seen = lines.map_while(Result::ok).find(|line| line.ends_with("/watched"));
    assert!(seen.is_some());
    watch.kill().expect("a child of ours");
    watch.wait().expect("a child of ours");

    for part in
        ["Latest Ready Revision Name: watched-00001", "Created Configuration \"watched\"", "Created Route \"watched\""]
    {
        eventually(part, || {
            let text = machine.kubectl(&["describe", "ksvc", "watched"]);
            let words: Vec<_> = text.split_whitespace().collect();
            words.join(" ").contains(part).then_some(())
        });
    }
    eventually("the Deployment's event", || {
        let about = "involvedObject.name=watched-00001-deployment";
        machine.kubectl(&["get", "events", "--field-selector", about]).contains("ScalingReplicaSet").then_some(())
    });
    machine.kubectl(&["delete", "ksvc", "watched", "--wait=false"]);
    machine.kubectl(&["wait", "--for=delete", "ksvc/watched", "--timeout=60s"]);
}

pub fn selects(machine: &Machine) {
    let names = |arguments: &[&str]| machine.kubectl(&[arguments, &["-o", "name"]].concat());
    let revision = "revision.serving.knative.dev/hello-00001";
    assert_eq!(names(&["get", "rev", "-l", "serving.knative.dev/service=hello"]).trim(), revision);
    assert_eq!(names(&["get", "rev", "-l", "serving.knative.dev/service in (nobody)"]).trim(), "");
    assert_eq!(
        names(&["get", "ksvc", "--field-selector", "metadata.name=hello"]).trim(),
        "service.serving.knative.dev/hello"
    );
    let unknown = machine.kubectl_fails(&["get", "ksvc", "--field-selector", "spec.nothing=1"]);
    assert!(unknown.contains("\"spec.nothing\" is not a known field selector"), "{unknown}");
    let url = machine.kubectl(&["get", "ksvc", "hello", "-o", "jsonpath={.status.url}"]);
    assert_eq!(url, "http://hello.default.example.com");
    let yaml = machine.kubectl(&["get", "ksvc", "hello", "-o", "yaml"]);
    assert!(yaml.contains("latestReadyRevisionName: hello-00001"), "{yaml}");
    let wide = machine.kubectl(&["get", "deployment", "-o", "wide"]);
    assert!(wide.contains("user-container,queue-proxy"), "{wide}");
    let missing = machine.kubectl_fails(&["get", "ksvc", "nobody"]);
    assert!(missing.contains("services.serving.knative.dev \"nobody\" not found"), "{missing}");
}

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: plain}
spec:
  replicas: 1
  selector: {matchLabels: {app: plain}}
  template:
    metadata: {labels: {app: plain}}
    spec:
      containers: [{name: main, image: dev.local/hello, ports: [{containerPort: 8080}]}]
";

pub fn deployment(machine: &Machine) {
    machine.apply(DEPLOYMENT);
    let done = machine.kubectl(&["rollout", "status", "deployment/plain", "--timeout=60s"]);
    assert!(done.contains("successfully rolled out"), "{done}");
    machine.kubectl(&["scale", "deployment/plain", "--replicas=3"]);
    machine.kubectl(&["rollout", "status", "deployment/plain", "--timeout=60s"]);
    eventually("three pods", || {
        (machine.kubectl(&["get", "pods", "-l", "app=plain", "-o", "name"]).lines().count() == 3).then_some(())
    });
    machine.kubectl(&["set", "env", "deployment/plain", "A=b"]);
    machine.kubectl(&["rollout", "status", "deployment/plain", "--timeout=60s"]);
    let sets = machine.kubectl(&["get", "rs", "-l", "app=plain", "-o", "name"]);
    assert_eq!(sets.lines().count(), 2, "{sets}");
    machine.kubectl(&["delete", "deployment", "plain"]);
    eventually("no pods", || {
        machine.kubectl(&["get", "pods", "-l", "app=plain", "-o", "name"]).is_empty().then_some(())
    });
}

pub fn logs(machine: &Machine) {
    machine.hello("talker", &[("autoscaling.knative.dev/min-scale", "1")], "");
    let pod = machine.pods("talker")[0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let mut follow = machine
        .kubectl_command(&["logs", "-f", &pod, "-c", "user-container"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl is installed");
    let lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    machine.get("talker", "/find-this-line");
    assert!(lines.map_while(Result::ok).any(|line| line.contains("find-this-line")));
    follow.kill().expect("a child of ours");
    follow.wait().expect("a child of ours");
    let tail = machine.kubectl(&["logs", &pod, "--tail=1"]);
    assert_eq!(tail.lines().count(), 1, "{tail}");
    machine.delete("talker");
}

pub fn deletes(machine: &Machine) {
    machine.hello("gone", &[("autoscaling.knative.dev/min-scale", "1")], "");
    machine.kubectl(&["delete", "ksvc", "gone"]);
    let kinds = "ksvc,configuration,revision,route,kingress,sks,podautoscaler,metric.autoscaling.internal.knative.dev,\
                 images.caching.internal.knative.dev,deployment,replicaset,pod,service,endpoints,endpointslice";
    eventually("nothing of it", || {
        let names = machine.kubectl(&["get", kinds, "-o", "name"]);
        (!names.lines().any(|name| name.contains("/gone"))).then_some(())
    });
    eventually("no answer", || (machine.get("gone", "/").status == 404).then_some(()));
}
