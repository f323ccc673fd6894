//! Columns and cells of the built-in kinds, by kind.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::format::{NONE, containers, first_three, items, labels, number, or_none, selector, text};
use super::{age, name, pods};
use crate::registry::RowFn;
use crate::{Column, Kind, duration};

type Cells = fn(&Value, Timestamp) -> Vec<Value>;

/// Gives the kind its columns, if it is one of those that have their own.
pub fn install(kind: &mut Kind) {
    if let Some((columns, cells)) = printer(&kind.group, &kind.kind) {
        kind.columns = columns;
        let row: RowFn = Arc::new(cells);
        kind.row = Some(row);
    }
}

fn printer(group: &str, kind: &str) -> Option<(Vec<Column>, Cells)> {
    let string = |name, description| Column::new(name, "string", description);
    let integer = |name, description| Column::new(name, "integer", description);
    let (n, a) = (Column::name_column, Column::age_column);
    let created = || Column::new("Created At", "date", "When the object was created.");
    let template = || {
        [
            string("Containers", "Names of each container in the template.").wide(),
            string("Images", "Images referenced by each container in the template.").wide(),
            string("Selector", "Label selector for pods.").wide(),
        ]
    };
    Some(match (group, kind) {
        ("", "Pod") => (
            vec![
                n(),
                string("Ready", "The aggregate readiness state of this pod for accepting traffic."),
                string("Status", "The aggregate status of the containers in this pod."),
                string(
                    "Restarts",
                    "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
                ),
                string(
                    "Age",
                    "CreationTimestamp is a timestamp representing the server time when this object was created.",
                ),
                string("IP", "IP address allocated to the pod.").wide(),
                string("Node", "The node that runs the pod.").wide(),
                string("Nominated Node", "The node that the pod is expected to run on after preemption.").wide(),
                string("Readiness Gates", "Conditions that are evaluated for pod readiness.").wide(),
            ],
            pods::row,
        ),
        ("", "Service") => (
            vec![
                n(),
                string("Type", "How the Service is exposed."),
                string("Cluster-IP", "The IP address of the service."),
                string("External-IP", "Addresses outside of the cluster that reach the service."),
                string("Port(s)", "The ports that are exposed by this service."),
                a(),
                string("Selector", "Label selector for the pods that receive the traffic.").wide(),
            ],
            service,
        ),
        ("apps", "Deployment") => {
            let mut columns = vec![
                n(),
                string("Ready", "Number of the pod with ready state"),
                string("Up-to-date", "Number of pods that have the desired template."),
                string("Available", "Number of available pods."),
                a(),
            ];
            columns.extend(template());
            (columns, deployment)
        }
        ("apps", "ReplicaSet") => {
            let mut columns = vec![
                n(),
                integer("Desired", "The number of desired pods."),
                integer("Current", "The number of observed pods."),
                integer("Ready", "The number of ready pods."),
                a(),
            ];
            columns.extend(template());
            (columns, replica_set)
        }
        ("", "Endpoints") => (vec![n(), string("Endpoints", "Addresses and ports of the service."), a()], endpoints),
        ("discovery.k8s.io", "EndpointSlice") => (
            vec![
                n(),
                string("AddressType", "The type of address carried by this slice."),
                string("Ports", "The ports of each endpoint of this slice."),
                string("Endpoints", "The addresses of this slice."),
                a(),
            ],
            endpoint_slice,
        ),
        ("", "ConfigMap") => (vec![n(), string("Data", "Number of entries."), a()], config_map),
        ("", "Secret") => (
            vec![
                n(),
                string("Type", "Facilitates programmatic handling of the data."),
                string("Data", "Number of entries."),
                a(),
            ],
            secret,
        ),
        ("", "Namespace") => (vec![n(), string("Status", "The status of the namespace"), a()], namespace),
        ("", "Node") => (
            vec![
                n(),
                string("Status", "The status of the node"),
                string("Roles", "The roles of the node"),
                a(),
                string("Version", "The version of the node agent."),
                string("Internal-IP", "Address inside of the cluster.").wide(),
                string("External-IP", "Address outside of the cluster.").wide(),
                string("OS-Image", "The operating system.").wide(),
                string("Kernel-Version", "The kernel.").wide(),
                string("Container-Runtime", "What runs the containers.").wide(),
            ],
            node,
        ),
        ("" | "events.k8s.io", "Event") => (
            vec![
                string("Last Seen", "The time at which the most recent occurrence of this event was recorded."),
                string("Type", "Type of this event (Normal, Warning), new types could be added in the future"),
                string("Reason", "A short, machine understandable reason for the transition."),
                string("Object", "The object that this event is about."),
                string("Subobject", "The part of the object that this event is about.").wide(),
                string("Source", "The component reporting this event.").wide(),
                string("Message", "A human-readable description of the status of this operation."),
                string("First Seen", "The time at which the event was first recorded.").wide(),
                string("Count", "The number of times this event has occurred.").wide(),
                n().wide(),
            ],
            event,
        ),
        ("", "ServiceAccount") => (vec![n(), a()], plain),
        ("coordination.k8s.io", "Lease") => {
            (vec![n(), string("Holder", "The identity of the holder of a current lease."), a()], lease)
        }
        ("autoscaling", "HorizontalPodAutoscaler") => (
            vec![
                n(),
                string("Reference", "The object whose replicas are scaled."),
                string("Targets", "Current and wanted values of the metrics."),
                string("MinPods", "The lower limit for the number of replicas."),
                string("MaxPods", "The upper limit for the number of replicas."),
                string("Replicas", "The present number of replicas."),
                a(),
            ],
            autoscaler,
        ),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => (vec![n(), created()], created_at),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => (vec![n(), created()], created_at),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => (
            vec![
                n(),
                string("Role", "The role that is granted."),
                a(),
                string("Users", "Users in the binding.").wide(),
                string("Groups", "Groups in the binding.").wide(),
                string("ServiceAccounts", "ServiceAccounts in the binding.").wide(),
            ],
            binding,
        ),
        ("admissionregistration.k8s.io", _) => {
            (vec![n(), integer("Webhooks", "The number of webhooks."), a()], webhooks)
        }
        _ => return None,
    })
}

fn plain(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

fn created_at(object: &Value, _now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/metadata/creationTimestamp").into()]
}

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let external_ips: Vec<&str> = items(object, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    let ingress = items(object, "/status/loadBalancer/ingress").iter();
    let balancer = ingress.map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") });
    let external = match text(object, "/spec/type") {
        "ExternalName" => text(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let all = balancer.chain(external_ips).collect::<Vec<_>>().join(",");
            if all.is_empty() { "<pending>".to_owned() } else { all }
        }
        _ => or_none(&external_ips.join(",")).to_owned(),
    };
    let port = |port: &Value| match number(port, "/nodePort") {
        0 => format!("{}/{}", number(port, "/port"), text(port, "/protocol")),
        node_port => format!("{}:{node_port}/{}", number(port, "/port"), text(port, "/protocol")),
    };
    let ports: Vec<String> = items(object, "/spec/ports").iter().map(port).collect();
    vec![
        name(object),
        text(object, "/spec/type").into(),
        or_none(text(object, "/spec/clusterIP")).into(),
        external.into(),
        or_none(&ports.join(",")).into(),
        age(object, now),
        labels(object.pointer("/spec/selector")).into(),
    ]
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object);
    vec![
        name(object),
        format!("{}/{}", number(object, "/status/readyReplicas"), number(object, "/spec/replicas")).into(),
        number(object, "/status/updatedReplicas").into(),
        number(object, "/status/availableReplicas").into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(object.pointer("/spec/selector")).into(),
    ]
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let (names, images) = containers(object);
    vec![
        name(object),
        number(object, "/spec/replicas").into(),
        number(object, "/status/replicas").into(),
        number(object, "/status/readyReplicas").into(),
        age(object, now),
        names.into(),
        images.into(),
        selector(object.pointer("/spec/selector")).into(),
    ]
}

fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let join = |ip: &str, port: i64| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    let mut all = Vec::new();
    for subset in items(object, "/subsets") {
        let ips = || items(subset, "/addresses").iter().map(|a| text(a, "/ip"));
        match items(subset, "/ports") {
            [] => all.extend(ips().map(str::to_owned)),
            ports => all.extend(ports.iter().flat_map(|p| ips().map(|ip| join(ip, number(p, "/port"))))),
        }
    }
    let empty = if items(object, "/subsets").is_empty() { NONE } else { "" };
    vec![name(object), first_three(all, empty).into(), age(object, now)]
}

fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports = items(object, "/ports").iter().map(|p| match p.get("port").and_then(Value::as_i64) {
        Some(port) => port.to_string(),
        None => "*".to_owned(),
    });
    let addresses = items(object, "/endpoints").iter().flat_map(|e| items(e, "/addresses"));
    let addresses = addresses.map(|a| a.as_str().unwrap_or_default().to_owned());
    vec![
        name(object),
        text(object, "/addressType").into(),
        first_three(ports, "<unset>").into(),
        first_three(addresses, "<unset>").into(),
        age(object, now),
    ]
}

fn count(object: &Value, field: &str) -> usize {
    object.get(field).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), (count(object, "data") + count(object, "binaryData")).into(), age(object, now)]
}

fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/type").into(), count(object, "data").into(), age(object, now)]
}

fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/status/phase").into(), age(object, now)]
}

fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = items(object, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut status = match ready.map(|c| text(c, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
        status.push_str(",SchedulingDisabled");
    }
    let labels = object.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
    let roles: Vec<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str().filter(|role| !role.is_empty()),
            _ => None,
        })
        .collect();
    let address = |wanted: &str| {
        let found = items(object, "/status/addresses").iter().find(|a| text(a, "/type") == wanted);
        or_none(found.map_or("", |a| text(a, "/address"))).to_owned()
    };
    let info = |field: &str| match text(object, &format!("/status/nodeInfo/{field}")) {
        "" => "<unknown>".to_owned(),
        known => known.to_owned(),
    };
    vec![
        name(object),
        status.into(),
        or_none(&roles.join(",")).into(),
        age(object, now),
        text(object, "/status/nodeInfo/kubeletVersion").into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        info("osImage").into(),
        info("kernelVersion").into(),
        info("containerRuntimeVersion").into(),
    ]
}

fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    // The stored form is the core one; a view as events.k8s.io has its names changed already.
    let either = |core: &str, other: &str| {
        let found = object.pointer(core).filter(|v| !v.is_null());
        found.or_else(|| object.pointer(other)).filter(|v| !v.is_null())
    };
    let string = |core: &str, other: &str| either(core, other).and_then(Value::as_str).unwrap_or_default();
    let since = |time: Option<&Value>| duration::since(time, now);
    let event_time = object.get("eventTime").filter(|v| !v.is_null());
    let first = either("/firstTimestamp", "/deprecatedFirstTimestamp").or(event_time);
    let last = either("/lastTimestamp", "/deprecatedLastTimestamp").or(first);
    let series = object.get("series").filter(|v| !v.is_null());
    let last = series.map_or(last, |s| s.get("lastObservedTime"));
    let count = series.map_or_else(
        || either("/count", "/deprecatedCount").and_then(Value::as_i64).unwrap_or(1).max(1),
        |s| number(s, "/count"),
    );
    let kind = string("/involvedObject/kind", "/regarding/kind").to_lowercase();
    let about = match string("/involvedObject/name", "/regarding/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = match string("/source/component", "/deprecatedSource/component") {
        "" => string("/reportingComponent", "/reportingController"),
        component => component,
    };
    let host = match string("/source/host", "/deprecatedSource/host") {
        "" => string("/reportingInstance", "/reportingInstance"),
        host => host,
    };
    let source = if host.is_empty() { component.to_owned() } else { format!("{component}, {host}") };
    vec![
        since(last).into(),
        text(object, "/type").into(),
        text(object, "/reason").into(),
        about.into(),
        string("/involvedObject/fieldPath", "/regarding/fieldPath").into(),
        source.into(),
        string("/message", "/note").trim().into(),
        since(first).into(),
        count.into(),
        name(object),
    ]
}

fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), text(object, "/spec/holderIdentity").into(), age(object, now)]
}

fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let shown = |value: &Value| {
        let utilization = value.get("averageUtilization").and_then(Value::as_i64).map(|u| format!("{u}%"));
        let plain = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        utilization.or_else(|| plain("averageValue")).or_else(|| plain("value"))
    };
    let current = items(object, "/status/currentMetrics");
    let targets = items(object, "/spec/metrics").iter().enumerate().map(|(index, metric)| {
        let source = match text(metric, "/type") {
            "Resource" => "resource",
            "ContainerResource" => "containerResource",
            "Pods" => "pods",
            "Object" => "object",
            _ => "external",
        };
        let now = current.get(index).and_then(|c| c.get(source)?.get("current")).and_then(shown);
        let wanted = metric.get(source).and_then(|m| m.get("target")).and_then(shown);
        let label =
            metric.pointer("/resource/name").and_then(Value::as_str).map(|n| format!("{n}: ")).unwrap_or_default();
        format!("{label}{}/{}", now.as_deref().unwrap_or("<unknown>"), wanted.as_deref().unwrap_or("<unknown>"))
    });
    let targets = targets.collect::<Vec<_>>().join(", ");
    let minimum = match object.pointer("/spec/minReplicas").and_then(Value::as_i64) {
        Some(minimum) => minimum.to_string(),
        None => "<unset>".to_owned(),
    };
    let reference =
        format!("{}/{}", text(object, "/spec/scaleTargetRef/kind"), text(object, "/spec/scaleTargetRef/name"));
    vec![
        name(object),
        reference.into(),
        or_none(&targets).into(),
        minimum.into(),
        number(object, "/spec/maxReplicas").into(),
        number(object, "/status/currentReplicas").into(),
        age(object, now),
    ]
}

fn binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let found = items(object, "/subjects").iter().filter(|s| text(s, "/kind") == kind);
        let shown = found.map(|s| match text(s, "/namespace") {
            "" => text(s, "/name").to_owned(),
            namespace => format!("{namespace}/{}", text(s, "/name")),
        });
        shown.collect::<Vec<_>>().join(", ")
    };
    vec![
        name(object),
        format!("{}/{}", text(object, "/roleRef/kind"), text(object, "/roleRef/name")).into(),
        age(object, now),
        subjects("User").into(),
        subjects("Group").into(),
        subjects("ServiceAccount").into(),
    ]
}

fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), items(object, "/webhooks").len().into(), age(object, now)]
}
