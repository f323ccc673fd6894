use serde_json::{Value, json};

use super::{IncludeObject, builtin, custom, of_object, table};
use crate::{Kind, Scope};

fn now() -> jiff::Timestamp {
    "2026-11-20T10:00:00Z".parse().expect("a time")
}

fn cells(group: &'static str, kind: &'static str, object: Value) -> Vec<Value> {
    let mut entry = Kind::new(group, "v1", kind, kind.to_lowercase(), Scope::Namespaced);
    builtin::install(&mut entry);
    let table = of_object(&entry, &object, IncludeObject::None, now(), true);
    let cells = table["rows"][0]["cells"].as_array().expect("cells").clone();
    assert_eq!(cells.len(), table["columnDefinitions"].as_array().expect("columns").len(), "one cell per column");
    cells
}

fn shown(cells: &[Value]) -> String {
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    cells.iter().map(text).collect::<Vec<_>>().join(" | ")
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "creationTimestamp": "2026-11-20T09:58:30Z"})
}

#[test]
fn pods() {
    let status = |ready: bool, state: Value, last: Value| json!({"name": "c", "ready": ready, "restartCount": 3, "state": state, "lastState": last});
    let pod = |statuses: Value, phase: &str, deleted: bool| {
        let mut pod = json!({
            "metadata": metadata("p"),
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "nodeName": "n"},
            "status": {"phase": phase, "podIPs": [{"ip": "10.244.0.31"}], "containerStatuses": statuses},
        });
        if deleted {
            pod["metadata"]["deletionTimestamp"] = "2026-11-20T09:59:00Z".into();
        }
        shown(&cells("", "Pod", pod))
    };
    let exited = json!({"terminated": {"exitCode": 5, "reason": "Error", "finishedAt": "2026-11-20T09:59:42Z"}});
    let crashing = status(false, json!({"waiting": {"reason": "CrashLoopBackOff"}}), exited);
    assert_eq!(
        pod(json!([crashing]), "Running", false),
        "p | 0/2 | CrashLoopBackOff | 3 (18s ago) | 90s | 10.244.0.31 | n | <none> | <none>"
    );
    let running = json!({"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}});
    assert_eq!(
        pod(json!([running, running]), "Running", false),
        "p | 2/2 | Running | 0 | 90s | 10.244.0.31 | n | <none> | <none>"
    );
    assert!(pod(json!([running]), "Running", true).starts_with("p | 1/2 | Terminating | 0"));
    assert!(pod(json!([]), "Pending", false).starts_with("p | 0/2 | Pending | 0"));
    let signalled = json!({"name": "c", "state": {"terminated": {"exitCode": 137, "signal": 9}}});
    assert!(pod(json!([signalled]), "Failed", false).starts_with("p | 0/2 | Signal:9 | 0"));
}

#[test]
fn init_containers() {
    let pod = json!({
        "metadata": metadata("p"),
        "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "x"}, {"name": "y"}]},
        "status": {"phase": "Pending", "initContainerStatuses": [
            {"name": "x", "state": {"terminated": {"exitCode": 0}}}, {"name": "y", "state": {"running": {}}}]},
    });
    assert!(shown(&cells("", "Pod", pod)).starts_with("p | 0/1 | Init:1/2 | 0"));
}

#[test]
fn services() {
    let plain = json!({"metadata": metadata("s"), "spec": {"type": "ClusterIP", "clusterIP": "10.96.48.14",
        "ports": [{"port": 80, "protocol": "TCP"}, {"port": 443, "nodePort": 30443, "protocol": "TCP"}], "selector": {"b": "2", "a": "1"}}});
    assert_eq!(
        shown(&cells("", "Service", plain)),
        "s | ClusterIP | 10.96.48.14 | <none> | 80/TCP,443:30443/TCP | 90s | a=1,b=2"
    );
    let external =
        json!({"metadata": metadata("s"), "spec": {"type": "ExternalName", "externalName": "kourier", "ports": []}});
    assert_eq!(shown(&cells("", "Service", external)), "s | ExternalName | <none> | kourier | <none> | 90s | <none>");
}

#[test]
fn workloads_and_endpoints() {
    let deployment = json!({"metadata": metadata("d"),
        "spec": {"replicas": 2, "selector": {"matchLabels": {"b": "2", "a": "1"}},
            "template": {"spec": {"containers": [{"name": "x", "image": "i"}, {"name": "y", "image": "j"}]}}},
        "status": {"readyReplicas": 1, "updatedReplicas": 2}});
    assert_eq!(shown(&cells("apps", "Deployment", deployment)), "d | 1/2 | 2 | 0 | 90s | x,y | i,j | a=1,b=2");
    let endpoints = json!({"metadata": metadata("e"), "subsets": [{"addresses": [{"ip": "10.244.0.35"}, {"ip": "10.244.0.36"}],
        "ports": [{"port": 9090}, {"port": 8013}]}]});
    assert_eq!(
        shown(&cells("", "Endpoints", endpoints)),
        "e | 10.244.0.35:9090,10.244.0.36:9090,10.244.0.35:8013 + 1 more... | 90s"
    );
    assert_eq!(shown(&cells("", "Endpoints", json!({"metadata": metadata("e")}))), "e | <none> | 90s");
    let slice = json!({"metadata": metadata("e"), "addressType": "IPv4", "ports": [{"port": 8112}, {"port": 8012}],
        "endpoints": [{"addresses": ["10.244.0.17"]}]});
    assert_eq!(shown(&cells("discovery.k8s.io", "EndpointSlice", slice)), "e | IPv4 | 8112,8012 | 10.244.0.17 | 90s");
}

#[test]
fn events_in_both_forms() {
    let core = json!({"metadata": metadata("ev"), "type": "Normal", "reason": "Created", "message": "made it\n", "count": 4,
        "firstTimestamp": "2026-11-20T09:59:00Z", "lastTimestamp": "2026-11-20T09:59:50Z", "eventTime": null,
        "involvedObject": {"kind": "ReplicaSet", "name": "r"}, "source": {"component": "c"}});
    let expected = "10s | Normal | Created | replicaset/r |  | c | made it | 60s | 4 | ev";
    assert_eq!(shown(&cells("", "Event", core)), expected);
    let other = json!({"metadata": metadata("ev"), "type": "Normal", "reason": "Created", "note": "made it", "deprecatedCount": 4,
        "deprecatedFirstTimestamp": "2026-11-20T09:59:00Z", "deprecatedLastTimestamp": "2026-11-20T09:59:50Z",
        "regarding": {"kind": "ReplicaSet", "name": "r"}, "reportingController": "c"});
    assert_eq!(shown(&cells("events.k8s.io", "Event", other)), expected);
}

#[test]
fn custom_resources() {
    let columns = json!([
        {"name": "URL", "type": "string", "jsonPath": ".status.url"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        {"name": "Replicas", "type": "integer", "jsonPath": ".status.actualReplicas", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let mut kind = Kind::new("serving.knative.dev", "v1", "Service", "services", Scope::Namespaced);
    let (columns, row) = custom::columns(columns.as_array().expect("list")).expect("columns");
    (kind.columns, kind.row) = (columns, Some(row));
    let ready = json!({"metadata": metadata("hello"), "status": {"url": "http://hello", "actualReplicas": 2,
        "conditions": [{"type": "Ready", "status": "True"}]}});
    let new = json!({"metadata": metadata("new")});
    let table = table(&kind, [&ready, &new], json!({"resourceVersion": "7"}), IncludeObject::Metadata, now(), true);
    assert_eq!(table["rows"][0]["cells"], json!(["hello", "http://hello", "True", 2, "90s"]));
    assert_eq!(table["rows"][1]["cells"], json!(["new", null, null, null, "90s"]));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["columnDefinitions"][3]["priority"], 1);
    assert_eq!(table["metadata"]["resourceVersion"], "7");
}

#[test]
fn later_watch_rows_have_no_columns() {
    let kind = Kind::new("", "v1", "Thing", "things", Scope::Cluster);
    let table = of_object(&kind, &json!({"metadata": metadata("t")}), IncludeObject::None, now(), false);
    assert_eq!(table["columnDefinitions"], Value::Null);
    assert_eq!(table["rows"], json!([{"cells": ["t", "90s"]}]));
}
