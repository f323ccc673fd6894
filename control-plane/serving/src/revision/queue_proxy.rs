//! The queue-proxy container (controllers.md 6.4). Its environment is a contract with every queue-proxy, ours and upstream's; the
//! order and the texts are fixed, because a difference would roll all pods when one controller replaces the other.

mod observability;
mod probe;
mod resources;

use api::keys::{features, ports, queue_sidecar, serving};
use api::serving::v1::Revision;
use controller::key::controller_of;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::deployment::Settings;
use super::pod::{self, variable};

pub(super) fn container(revision: &Revision, settings: &Settings<'_>) -> Result<Value, String> {
    let Some(serving) = revision.spec.pod.serving_container() else {
        return Err("failed to create queue-proxy container: no container serves".to_owned());
    };
    let port = if revision.spec.pod.protocol() == api::keys::PROTOCOL_H2C {
        ports::BACKEND_HTTP2
    } else {
        ports::BACKEND_HTTP
    };
    let mut container = json!({
        "name": "queue-proxy",
        "image": settings.deployment.queue_sidecar_image,
        "ports": container_ports(port, settings.observability.runtime_profiling),
        "env": env(revision, settings, port)?,
        "resources": resources::resources(revision, serving, settings)?,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    if let Some(readiness) = probe::kubelet(serving, port) {
        container["readinessProbe"] = readiness;
    }
    let mut mounts = Vec::new();
    if pod::mounts_pod_info(revision, settings) {
        mounts.push(json!({"name": pod::POD_INFO, "mountPath": "/etc/podinfo", "readOnly": true}));
    }
    if !settings.deployment.queue_sidecar_token_audiences.is_empty() {
        mounts.push(json!({"name": pod::TOKENS, "mountPath": "/var/run/secrets/tokens"}));
    }
    if !mounts.is_empty() {
        container["volumeMounts"] = mounts.into();
    }
    Ok(container)
}

fn container_ports(queue: u16, profiling: bool) -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "containerPort": port});
    let mut list =
        vec![port("http-autometric", ports::AUTOSCALING_METRICS), port("http-usermetric", ports::USER_METRICS)];
    if profiling {
        list.push(port("profiling-port", ports::PROFILING));
    }
    list.push(port("queue-port", queue));
    list.push(port("https-port", ports::BACKEND_HTTPS));
    list.into()
}

fn env(revision: &Revision, settings: &Settings<'_>, queue: u16) -> Result<Vec<Value>, String> {
    let label = |key: &str| revision.labels().get(key).cloned().unwrap_or_default();
    let configuration = controller_of::<_, api::serving::v1::Configuration>(revision);
    let seconds = |value: Option<i64>| value.unwrap_or_default().to_string();
    let port = pod::user_port(revision);
    let flag = |enabled: bool| enabled.to_string();
    let full_duplex = revision.annotations().get(features::HTTP_FULL_DUPLEX);
    let level = settings.logging.level("queueproxy").map(|level| level.as_str()).unwrap_or_default();
    let config = settings.deployment;
    let text = variable;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut variables = vec![
        text("SERVING_NAMESPACE", &revision.namespace().unwrap_or_default()),
        text("SERVING_SERVICE", &label(serving::SERVICE)),
        text("SERVING_CONFIGURATION", configuration.map(|owner| owner.name.as_str()).unwrap_or_default()),
        text("SERVING_REVISION", &revision.name_any()),
        text("QUEUE_SERVING_PORT", &queue.to_string()),
        text("QUEUE_SERVING_TLS_PORT", &ports::BACKEND_HTTPS.to_string()),
        text("CONTAINER_CONCURRENCY", &seconds(revision.spec.container_concurrency)),
        text("REVISION_TIMEOUT_SECONDS", &seconds(revision.spec.timeout_seconds)),
        text("REVISION_RESPONSE_START_TIMEOUT_SECONDS", &seconds(revision.spec.response_start_timeout_seconds)),
        text("REVISION_IDLE_TIMEOUT_SECONDS", &seconds(revision.spec.idle_timeout_seconds)),
        field("SERVING_POD", "metadata.name"),
        field("SERVING_POD_IP", "status.podIP"),
        text("SERVING_LOGGING_CONFIG", &settings.logging.zap_logger_config),
        text("SERVING_LOGGING_LEVEL", level),
        text("USER_PORT", &port.to_string()),
        text("SYSTEM_NAMESPACE", settings.system_namespace),
        text(
            "SERVING_READINESS_PROBE",
            &probe::queue_proxy(revision, port, settings.features.multi_container_probing.is_enabled())?,
        ),
        json!({"name": "HOST_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.hostIP"}}}),
        text("ENABLE_HTTP2_AUTO_DETECTION", &flag(settings.features.autodetect_http2.is_enabled())),
        text("ENABLE_HTTP_FULL_DUPLEX", &flag(full_duplex.is_some_and(|value| value.eq_ignore_ascii_case("enabled")))),
        text("ROOT_CA", &config.queue_sidecar_rootca),
        text("QUEUE_PROXY_TLS_MIN_VERSION", &config.queue_sidecar_tls_min_version),
        text("QUEUE_PROXY_TLS_MAX_VERSION", &config.queue_sidecar_tls_max_version),
        text("QUEUE_PROXY_TLS_CIPHER_SUITES", &config.queue_sidecar_tls_cipher_suites),
        text("QUEUE_PROXY_TLS_CURVE_PREFERENCES", &config.queue_sidecar_tls_curve_preferences),
        text("ENABLE_MULTI_CONTAINER_PROBES", &flag(settings.features.multi_container_probing.is_enabled())),
        text("OBSERVABILITY_CONFIG", &observability::json(settings.observability)),
    ];
    // Only where it is asked for: upstream's sidecar does not know it, and pods without it stay as they are.
    let server_timing = revision.annotations().get(queue_sidecar::SERVER_TIMING);
    if server_timing.is_some_and(|value| value.eq_ignore_ascii_case("enabled")) {
        variables.push(text("QUEUE_SERVER_TIMING", "true"));
    }
    // A value the sidecar cannot read would end it, so only one it can is passed on.
    let idle = revision.annotations().get(queue_sidecar::DRAIN_IDLE_PERIOD).filter(|value| is_period(value));
    if let Some(idle) = idle {
        variables.push(text("QUEUE_DRAIN_IDLE_PERIOD", idle));
    }
    Ok(variables)
}

/// Whole milliseconds or seconds.
fn is_period(text: &str) -> bool {
    let digits = text.strip_suffix("ms").or_else(|| text.strip_suffix('s')).unwrap_or("");
    (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
}
