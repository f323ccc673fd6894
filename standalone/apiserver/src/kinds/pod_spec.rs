//! Defaults of a pod spec, wherever one is: in a Pod or in the template of a workload.
//!
//! Serving compares what it wants with what it finds, and users see these values in every `-o yaml`: the set is Kubernetes' own, no more
//! and no less.

use serde_json::{Value, json};

use super::edit::{child, fill, fill_number, fill_text, has, items, items_mut, set, text};
use super::quantity::{self, Quantity};

const DEFAULT_MODE: i64 = 0o644;

pub(super) fn default(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    fill_text(spec, "dnsPolicy", "ClusterFirst");
    fill_text(spec, "restartPolicy", "Always");
    fill_text(spec, "schedulerName", "default-scheduler");
    fill(spec, "securityContext", json!({}));
    fill(spec, "terminationGracePeriodSeconds", 30);
    // The old and the new name of one field.
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        let name = spec.get(from).and_then(Value::as_str).unwrap_or_default().to_owned();
        if !name.is_empty() {
            fill_text(spec, to, &name);
        }
    }
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or_default();
    for list in ["initContainers", "containers"] {
        for one in items_mut(spec, list) {
            container(one, host_network);
        }
    }
    items_mut(spec, "volumes").iter_mut().for_each(volume);
}

fn container(container: &mut Value, host_network: bool) {
    if !container.is_object() {
        return;
    }
    let policy = if moves(text(container, "/image")) { "Always" } else { "IfNotPresent" };
    fill_text(container, "imagePullPolicy", policy);
    fill_text(container, "terminationMessagePath", "/dev/termination-log");
    fill_text(container, "terminationMessagePolicy", "File");
    let resources = child(container, "resources");
    quantity::canonicalise(resources.get_mut("limits"));
    quantity::canonicalise(resources.get_mut("requests"));
    for port in items_mut(container, "ports") {
        fill_text(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").and_then(Value::as_i64) {
            fill_number(port, "hostPort", number);
        }
    }
    for variable in items_mut(container, "env") {
        let Some(from) = variable.get_mut("valueFrom") else { continue };
        if let Some(source) = from.get_mut("fieldRef") {
            fill_text(source, "apiVersion", "v1");
        }
        if let Some(source) = from.get_mut("resourceFieldRef") {
            fill(source, "divisor", "0");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name).filter(|probe| probe.is_object()) {
            fill_number(probe, "timeoutSeconds", 1);
            fill_number(probe, "periodSeconds", 10);
            fill_number(probe, "successThreshold", 1);
            fill_number(probe, "failureThreshold", 3);
            handler(probe);
        }
    }
    for name in ["preStop", "postStart"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut(name)) {
            handler(hook);
        }
    }
}

fn handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|get| get.is_object()) {
        fill_text(get, "path", "/");
        fill_text(get, "scheme", "HTTP");
    }
    if let Some(grpc) = handler.get_mut("grpc").filter(|grpc| grpc.is_object()) {
        fill(grpc, "service", "");
    }
}

fn volume(volume: &mut Value) {
    let Some(map) = volume.as_object() else { return };
    if map.iter().all(|(key, value)| key == "name" || value.is_null()) {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if has(volume, source) {
            fill(child(volume, source), "defaultMode", DEFAULT_MODE);
        }
    }
    if has(volume, "hostPath") {
        fill(child(volume, "hostPath"), "type", "");
    }
    if let Some(downward) = volume.get_mut("downwardAPI") {
        field_references(downward);
    }
    if let Some(projected) = volume.get_mut("projected") {
        for source in items_mut(projected, "sources") {
            if has(source, "serviceAccountToken") {
                fill(child(source, "serviceAccountToken"), "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI") {
                field_references(downward);
            }
        }
    }
}

fn field_references(downward: &mut Value) {
    for item in items_mut(downward, "items") {
        if let Some(reference) = item.get_mut("fieldRef") {
            fill_text(reference, "apiVersion", "v1");
        }
    }
}

/// Whether the tag may mean another image tomorrow: no tag, or `latest`, and no digest.
fn moves(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// What only Pods get: requests from limits, and service links.
pub(super) fn default_pod(spec: &mut Value) {
    fill(spec, "enableServiceLinks", true);
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            let limits = container.pointer("/resources/limits").and_then(Value::as_object).cloned().unwrap_or_default();
            if !limits.is_empty() {
                let requests = child(child(container, "resources"), "requests");
                for (name, value) in limits {
                    fill(requests, &name, value);
                }
            }
        }
    }
}

pub(super) fn quality_of_service(spec: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for container in ["initContainers", "containers"].into_iter().flat_map(|list| items(spec, list)) {
        for name in ["cpu", "memory"] {
            let amount = |what: &str| {
                let quantity = Quantity::parse(text(container, &format!("/resources/{what}/{name}")));
                quantity.filter(|q| !q.is_zero())
            };
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= matches!((request, limit), (Some(request), Some(limit)) if request.equals(limit));
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_and_probes() {
        let mut spec = json!({"containers": [{"name": "c", "image": "a.b:5000/x", "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 8012}}, "resources": {"requests": {"cpu": "0.025"}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}], "serviceAccountName": "robot"});
        default(&mut spec);
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(
            container["readinessProbe"],
            json!({"httpGet": {"port": 8012, "path": "/", "scheme": "HTTP"},
            "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(container["resources"]["requests"]["cpu"], "25m");
        let volumes =
            json!([{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}]);
        assert_eq!(spec["volumes"], volumes);
        assert_eq!(spec["serviceAccount"], "robot");
        let once = spec.clone();
        default(&mut spec);
        assert_eq!(spec, once);
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        assert!(moves("nginx") && moves("nginx:latest") && moves("localhost:5000/nginx"));
        assert!(!moves("nginx:1.27") && !moves("nginx@sha256:00") && !moves("nginx:latest@sha256:00"));
    }

    #[test]
    fn classes_of_service() {
        let class = |resources: Value| quality_of_service(&json!({"containers": [{"resources": resources}]}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"requests": {"cpu": "25m"}})), "Burstable");
        let all = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(class(json!({"requests": all, "limits": all})), "Guaranteed");
    }
}
