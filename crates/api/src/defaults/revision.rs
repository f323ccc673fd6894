//! Defaults of a RevisionSpec. The pod part is edited as JSON, so that nothing unknown is lost.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::admission::ConfigSnapshot;
use crate::child_name;
use crate::config::{Defaults, EnableServiceLinks, SecurePodDefaults};
use crate::podspec::has_ports;
use crate::serving::v1::RevisionSpec;
use crate::template::Template;

/// `parent` is the metadata that container name templates refer to.
pub fn revision_spec(spec: &mut RevisionSpec, parent: &Value, config: &ConfigSnapshot, create: bool) {
    let defaults = &config.defaults;
    timeouts(spec, defaults);
    spec.container_concurrency.get_or_insert(defaults.container_concurrency);

    let containers = spec.pod.containers().len();
    let mut names: BTreeSet<String> = spec
        .pod
        .containers()
        .iter()
        .chain(spec.pod.init_containers())
        .filter_map(|c| c["name"].as_str().filter(|name| !name.is_empty()).map(str::to_owned))
        .collect();
    let read_write = read_write_volumes(spec);
    fill_names(spec.pod.containers_mut(), &defaults.container_name_template, parent, &mut names);
    fill_names(spec.pod.init_containers_mut(), &defaults.init_container_name_template, parent, &mut names);

    for container in spec.pod.containers_mut().iter_mut().filter_map(Value::as_object_mut) {
        resources(container, defaults);
        ports(container);
        let serving = containers == 1 || has_ports_map(container);
        probes(container, serving);
        read_only_mounts(container, &read_write);
    }
    for container in spec.pod.init_containers_mut().iter_mut().filter_map(Value::as_object_mut) {
        container.entry("resources").or_insert_with(|| json!({}));
    }
    if create && !spec.pod.0.contains_key("enableServiceLinks") {
        match defaults.enable_service_links {
            EnableServiceLinks::Default => {}
            value => {
                spec.pod.0.insert("enableServiceLinks".to_owned(), (value == EnableServiceLinks::True).into());
            }
        }
    }
    if config.features.secure_pod_defaults.is_on() {
        secure(spec, config.features.secure_pod_defaults);
    }
}

fn timeouts(spec: &mut RevisionSpec, defaults: &Defaults) {
    let timeout = match spec.timeout_seconds {
        None | Some(0) => defaults.revision_timeout_seconds,
        Some(timeout) => timeout,
    };
    spec.timeout_seconds = Some(timeout);
    let below = |value: i64| (value != 0 && value < timeout).then_some(value);
    spec.idle_timeout_seconds = spec.idle_timeout_seconds.or_else(|| below(defaults.revision_idle_timeout_seconds));
    spec.response_start_timeout_seconds =
        spec.response_start_timeout_seconds.or_else(|| below(defaults.revision_response_start_timeout_seconds));
}

fn fill_names(containers: &mut [Value], template: &Template, parent: &Value, names: &mut BTreeSet<String>) {
    let several = containers.len() > 1;
    let mut next = 0;
    for container in containers.iter_mut().filter_map(Value::as_object_mut) {
        if container.get("name").and_then(Value::as_str).is_some_and(|name| !name.is_empty()) {
            continue;
        }
        // Checked when the ConfigMap was read; a template that fails for this parent leaves the name to validation.
        let base = template.render(parent).unwrap_or_default();
        let mut name = base.clone();
        if several || names.contains(&name) {
            loop {
                name = child_name(&base, &format!("-{next}"));
                next += 1;
                if !names.contains(&name) {
                    break;
                }
            }
        }
        names.insert(name.clone());
        container.insert("name".to_owned(), name.into());
    }
}

fn resources(container: &mut Map<String, Value>, defaults: &Defaults) {
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    let Some(resources) = resources.as_object_mut() else { return };
    for (kind, values) in [
        (
            "requests",
            [
                ("cpu", &defaults.revision_cpu_request),
                ("memory", &defaults.revision_memory_request),
                ("ephemeral-storage", &defaults.revision_ephemeral_storage_request),
            ],
        ),
        (
            "limits",
            [
                ("cpu", &defaults.revision_cpu_limit),
                ("memory", &defaults.revision_memory_limit),
                ("ephemeral-storage", &defaults.revision_ephemeral_storage_limit),
            ],
        ),
    ] {
        for (name, value) in values {
            let Some(value) = value else { continue };
            let list = resources.entry(kind).or_insert_with(|| json!({}));
            if let Some(list) = list.as_object_mut() {
                list.entry(name).or_insert_with(|| value.clone().into());
            }
        }
    }
}

/// The schema's default, repeated for callers that bypass the schema.
fn ports(container: &mut Map<String, Value>) {
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            port.entry("protocol").or_insert_with(|| "TCP".into());
        }
    }
}

fn probes(container: &mut Map<String, Value>, serving: bool) {
    if serving {
        let probe = container.entry("readinessProbe").or_insert_with(|| json!({}));
        if probe.is_null() {
            *probe = json!({});
        }
        if let Some(probe) = probe.as_object_mut()
            && !["httpGet", "tcpSocket", "exec", "grpc"].iter().any(|h| probe.get(*h).is_some_and(|v| !v.is_null()))
        {
            probe.insert("tcpSocket".to_owned(), json!({"port": 0}));
        }
    }
    if let Some(probe) = container.get_mut("readinessProbe").and_then(Value::as_object_mut) {
        let unset = |probe: &Map<String, Value>, key: &str| probe.get(key).and_then(Value::as_i64).unwrap_or(0) == 0;
        if unset(probe, "successThreshold") {
            probe.insert("successThreshold".to_owned(), 1.into());
        }
        if !unset(probe, "periodSeconds") {
            for (key, value) in [("failureThreshold", 3), ("timeoutSeconds", 1)] {
                if unset(probe, key) {
                    probe.insert(key.to_owned(), value.into());
                }
            }
        }
    }
    for kind in ["readinessProbe", "livenessProbe", "startupProbe"] {
        for handler in ["httpGet", "tcpSocket"] {
            let handler = container.get_mut(kind).and_then(|p| p.get_mut(handler));
            if let Some(handler) = handler.and_then(Value::as_object_mut) {
                // Written even when unset; it then means the container's port.
                handler.entry("port").or_insert_with(|| 0.into());
            }
        }
        if let Some(grpc) = container.get_mut(kind).and_then(|p| p.get_mut("grpc")).and_then(Value::as_object_mut) {
            grpc.entry("service").or_insert_with(|| "".into());
        }
    }
}

fn read_only_mounts(container: &mut Map<String, Value>, read_write: &BTreeSet<String>) {
    for mount in container.get_mut("volumeMounts").and_then(Value::as_array_mut).into_iter().flatten() {
        let writable = mount["name"].as_str().is_some_and(|name| read_write.contains(name));
        if let Some(mount) = mount.as_object_mut().filter(|_| !writable) {
            mount.insert("readOnly".to_owned(), true.into());
        }
    }
}

/// Names of the volumes that may be mounted for writing.
fn read_write_volumes(spec: &RevisionSpec) -> BTreeSet<String> {
    spec.pod
        .volumes()
        .iter()
        .filter(|v| ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|source| !v[*source].is_null()))
        .filter_map(|v| v["name"].as_str().map(str::to_owned))
        .collect()
}

fn secure(spec: &mut RevisionSpec, level: SecurePodDefaults) {
    let pod_context = spec.pod.0.get("securityContext").cloned().unwrap_or_default();
    let pod_seccomp = pod_context["seccompProfile"]["type"].as_str().is_some_and(|t| !t.is_empty());
    let pod_non_root = !pod_context["runAsNonRoot"].is_null();
    for key in ["containers", "initContainers"] {
        let containers = spec.pod.0.get_mut(key).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            let low_port = container
                .get("ports")
                .and_then(Value::as_array)
                .is_some_and(|ports| ports.iter().any(|p| p["containerPort"].as_i64().is_some_and(|p| p < 1024)));
            let context = container.entry("securityContext").or_insert_with(|| json!({}));
            let Some(context) = context.as_object_mut() else { continue };
            context.entry("allowPrivilegeEscalation").or_insert(Value::Bool(false));
            if !pod_seccomp {
                let profile = context.entry("seccompProfile").or_insert_with(|| json!({}));
                if profile["type"].as_str().is_none_or(str::is_empty) {
                    profile["type"] = "RuntimeDefault".into();
                }
            }
            context.entry("capabilities").or_insert_with(|| {
                if low_port { json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}) } else { json!({"drop": ["ALL"]}) }
            });
            if level == SecurePodDefaults::Enabled && !pod_non_root {
                context.entry("runAsNonRoot").or_insert(Value::Bool(true));
            }
        }
    }
}

fn has_ports_map(container: &Map<String, Value>) -> bool {
    container.get("ports").is_some_and(|ports| has_ports(&json!({ "ports": ports })))
}
