//! The pod of a Revision: the user's pod spec with what serving needs around it (controllers.md 6.3).

use api::config;
use api::keys::{features, ports, serving};
use api::serving::v1::Revision;
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use super::deployment::Settings;
use super::queue_proxy;

/// Volumes and mounts that depend on features.
const VAR_LOG: &str = "knative-var-log";
pub(super) const POD_INFO: &str = "pod-info";
pub(super) const TOKENS: &str = "knative-token-volume";
const TOKEN_SECONDS: i64 = 3600;

/// The port the user's program is to listen on.
pub(super) fn user_port(revision: &Revision) -> i64 {
    let declared =
        revision.spec.pod.serving_container().and_then(|container| container["ports"][0]["containerPort"].as_i64());
    declared.filter(|port| *port != 0).unwrap_or(ports::DEFAULT_USER.into())
}

pub(super) fn serving_name(revision: &Revision) -> String {
    let name = revision.spec.pod.serving_container().and_then(|container| container["name"].as_str());
    name.unwrap_or_default().to_owned()
}

pub(super) fn mounts_pod_info(revision: &Revision, settings: &Settings<'_>) -> bool {
    let wanted = revision.annotations().get(features::QUEUE_PROXY_PODINFO);
    match settings.features.queue_proxy_mount_podinfo {
        config::Flag::Enabled => true,
        config::Flag::Allowed => wanted.is_some_and(|value| value.eq_ignore_ascii_case("enabled")),
        config::Flag::Disabled => false,
    }
}

/// The `spec` of the pod template.
pub(super) fn spec(revision: &Revision, settings: &Settings<'_>) -> Result<Value, String> {
    let mut spec = revision.spec.pod.0.clone();
    let serving = revision.spec.pod.serving_index();
    let mut containers: Vec<Value> = Vec::new();
    for (index, container) in revision.spec.pod.containers().iter().enumerate() {
        let Value::Object(container) = container else {
            return Err(format!("spec.containers[{index}] is not an object"));
        };
        containers.push(Value::Object(user_container(revision, settings, container, index, serving == Some(index))));
    }
    containers.push(queue_proxy::container(revision, settings)?);
    spec.insert("containers".to_owned(), Value::Array(containers));

    spec.insert("terminationGracePeriodSeconds".to_owned(), json!(revision.spec.timeout_seconds.unwrap_or_default()));
    let links = match settings.defaults.enable_service_links {
        config::EnableServiceLinks::True => Some(true),
        config::EnableServiceLinks::False => Some(false),
        config::EnableServiceLinks::Default => None,
    };
    if let (false, Some(links)) = (present(&spec, "enableServiceLinks"), links) {
        spec.insert("enableServiceLinks".to_owned(), json!(links));
    }
    if !present(&spec, "runtimeClassName")
        && let Some(class) = settings.deployment.runtime_class_for(revision.labels())
    {
        spec.insert("runtimeClassName".to_owned(), json!(class));
    }
    let spread = settings.deployment.default_affinity_type == config::AffinityType::PreferSpreadRevisionOverNodes;
    if spread && !present(&spec, "affinity") {
        spec.insert("affinity".to_owned(), spread_over_nodes(revision));
    }
    let added = volumes(revision, settings);
    if !added.is_empty() {
        let present = revision.spec.pod.volumes().iter().cloned();
        spec.insert("volumes".to_owned(), present.chain(added).collect());
    }
    Ok(Value::Object(spec))
}

fn present(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).is_some_and(|value| !value.is_null())
}

fn user_container(
    revision: &Revision,
    settings: &Settings<'_>,
    container: &Map<String, Value>,
    index: usize,
    is_serving: bool,
) -> Map<String, Value> {
    let mut container = container.clone();
    let digest = revision.status.as_ref().and_then(|status| status.container_statuses.get(index));
    if let Some(digest) = digest.map(|status| &status.image_digest).filter(|digest| !digest.is_empty()) {
        container.insert("image".to_owned(), json!(digest));
    }
    // Requests under way are waited for by the queue-proxy; the program stays up as long.
    let pre_stop = json!({"preStop": {"httpGet": {"port": ports::QUEUE_ADMIN, "path": "/wait-for-drain"}}});
    container.insert("lifecycle".to_owned(), pre_stop);
    container.remove("stdin");
    container.remove("tty");
    if !present(&container, "terminationMessagePolicy") {
        container.insert("terminationMessagePolicy".to_owned(), json!("FallbackToLogsOnError"));
    }
    // The queue-proxy does these probes; those that run in the container stay with the kubelet.
    let probed = container
        .get("readinessProbe")
        .is_some_and(|probe| ["httpGet", "tcpSocket", "grpc"].iter().any(|handler| !probe[handler].is_null()));
    if probed {
        container.remove("readinessProbe");
    }

    let mut env = Vec::new();
    if is_serving {
        let port = user_port(revision);
        container.insert("ports".to_owned(), json!([{"name": "user-port", "containerPort": port}]));
        env.push(json!({"name": "PORT", "value": port.to_string()}));
        let keeps_port = settings.features.multi_container_probing.is_enabled();
        if let Some(probe) = container.get_mut("livenessProbe") {
            for handler in ["httpGet", "tcpSocket"] {
                let own =
                    probe[handler]["port"].as_i64().unwrap_or_default() != 0 || probe[handler]["port"].is_string();
                if probe[handler].is_object() && !(keeps_port && own) {
                    probe[handler]["port"] = json!(port);
                }
            }
        }
    }
    let label = |key: &str| revision.labels().get(key).map(String::as_str).unwrap_or_default();
    let named = [
        ("K_REVISION", revision.name_any()),
        ("K_CONFIGURATION", label(serving::CONFIGURATION).to_owned()),
        ("K_SERVICE", label(serving::SERVICE).to_owned()),
    ];
    env.extend(named.map(|(name, value)| variable(name, &value)));
    if settings.observability.enable_var_log_collection {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        let path = format!("$(K_INTERNAL_POD_NAMESPACE)_$(K_INTERNAL_POD_NAME)_{name}");
        let mount = json!({"name": VAR_LOG, "mountPath": "/var/log", "subPathExpr": path});
        append(&mut container, "volumeMounts", [mount]);
        env.push(json!({"name": "K_INTERNAL_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}));
        env.push(
            json!({"name": "K_INTERNAL_POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}),
        );
    }
    append(&mut container, "env", env);
    container
}

/// An environment variable; an empty value is left out, as Kubernetes stores it.
pub(super) fn variable(name: &str, value: &str) -> Value {
    if value.is_empty() { json!({"name": name}) } else { json!({"name": name, "value": value}) }
}

fn append(container: &mut Map<String, Value>, key: &str, values: impl IntoIterator<Item = Value>) {
    match container.entry(key.to_owned()).or_insert_with(|| json!([])) {
        Value::Array(list) => list.extend(values),
        other => *other = values.into_iter().collect(),
    }
}

fn spread_over_nodes(revision: &Revision) -> Value {
    json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
        "weight": 100,
        "podAffinityTerm": {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {serving::REVISION: revision.name_any()}},
        },
    }]}})
}

/// What is mounted besides the user's volumes. The certificates of `system-internal-tls` belong before the log volume.
fn volumes(revision: &Revision, settings: &Settings<'_>) -> Vec<Value> {
    let mut volumes = Vec::new();
    if mounts_pod_info(revision, settings) {
        let annotations = json!({"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}});
        volumes.push(json!({"name": POD_INFO, "downwardAPI": {"items": [annotations]}}));
    }
    let audiences = &settings.deployment.queue_sidecar_token_audiences;
    if !audiences.is_empty() {
        let token = |audience: &String| json!({"serviceAccountToken": {"audience": audience, "path": audience, "expirationSeconds": TOKEN_SECONDS}});
        let sources: Vec<_> = audiences.iter().map(token).collect();
        volumes.push(json!({"name": TOKENS, "projected": {"sources": sources}}));
    }
    if settings.observability.enable_var_log_collection {
        volumes.push(json!({"name": VAR_LOG, "emptyDir": {}}));
    }
    volumes
}
