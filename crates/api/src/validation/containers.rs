//! Containers: the serving one, sidecars and init containers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::fields::{self, items, present, text};
use super::{podspec, probes};
use crate::PodSpecMap;
use crate::config::{Features, SecurePodDefaults};
use crate::field_error::FieldErrors;
use crate::go;
use crate::podspec::has_ports;

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Serving,
    Sidecar,
    Init,
}

/// Known to Kubernetes, never allowed here.
const NEVER: &[&str] =
    &["lifecycle", "resizePolicy", "restartPolicy", "restartPolicyRules", "stdin", "stdinOnce", "tty", "volumeDevices"];
const RESERVED_PORTS: &[i64] = &[8008, 8012, 8013, 8022, 9090, 9091];
const RESERVED_ENV: &[&str] = &["K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
const RESERVED_PATHS: &[&str] = &["/", "/dev", "/dev/log"];

pub(super) fn containers(pod: &PodSpecMap, features: &Features) -> FieldErrors {
    let list = pod.containers();
    let mut errors = ports_overall(list);
    match list {
        [] => errors.add(FieldErrors::missing("containers")),
        [only] => errors.add(container(only, pod, features, Role::Serving).via_index("containers", 0)),
        many if !features.multi_container.is_enabled() => {
            let message = format!("multi-container is off, but found {} containers", many.len());
            return errors.and(FieldErrors::new(message, &[]));
        }
        many => {
            let mut names = BTreeSet::new();
            for (i, each) in many.iter().enumerate() {
                let name = text(each, "name");
                if !names.insert(name) {
                    errors.add(duplicate(name, i));
                }
                let role = if has_ports(each) { Role::Serving } else { Role::Sidecar };
                errors.add(container(each, pod, features, role).via_index("containers", i));
            }
        }
    }
    errors
}

pub(super) fn init_containers(pod: &PodSpecMap, features: &Features) -> FieldErrors {
    let list = pod.init_containers();
    if list.is_empty() {
        return FieldErrors::none();
    }
    if !features.podspec_init_containers.is_enabled() {
        let message = format!("pod spec support for init-containers is off, but found {} init containers", list.len());
        return FieldErrors::new(message, &[]);
    }
    let mut errors = FieldErrors::none();
    for (i, each) in list.iter().enumerate() {
        let name = text(each, "name");
        if pod.containers().iter().any(|c| text(c, "name") == name) {
            errors.add(duplicate(name, i));
        }
        let mut own = container(each, pod, features, Role::Init);
        for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            if present(each, field) {
                own.add(FieldErrors::new("field not allowed in an init container", &[field]));
            }
        }
        errors.add(own.via_index("containers", i));
    }
    errors
}

fn duplicate(name: &str, index: usize) -> FieldErrors {
    FieldErrors::new(format!("duplicate container name {}", go::quote(name)), &["name"]).via_index("containers", index)
}

fn ports_overall(list: &[Value]) -> FieldErrors {
    let count: usize = list.iter().map(|c| items(c, "ports").len()).sum();
    match count {
        0 if list.len() > 1 => FieldErrors::missing("containers[*].ports"),
        0 | 1 => FieldErrors::none(),
        _ => FieldErrors::new("more than one container port is set", &["containers[*].ports"])
            .with_details("Only a single port is allowed across all containers"),
    }
}

fn container(container: &Value, pod: &PodSpecMap, features: &Features, role: Role) -> FieldErrors {
    let Some(map) = container.as_object().filter(|map| map.iter().any(|(k, v)| fields::is_set(k, v))) else {
        return FieldErrors::missing("");
    };
    let mut errors = fields::mask(map, NEVER, |_| false);
    if text(container, "name") == "queue-proxy" {
        errors.add(FieldErrors::new("\"queue-proxy\" is a reserved container name", &["name"]));
    }
    errors.add(image(text(container, "image")));
    let policy = text(container, "terminationMessagePolicy");
    if !["", "File", "FallbackToLogsOnError"].contains(&policy) {
        errors.add(FieldErrors::invalid(policy, "terminationMessagePolicy"));
    }
    if present(&container["resources"], "claims") {
        errors.add(FieldErrors::disallowed(&["resources.claims"]));
    }
    errors.add(env(container, features, role));
    errors.add(env_from(container));
    match role {
        Role::Serving => {
            let port = &container["ports"][0];
            if !port.is_null() {
                errors.add(port_numbers(port));
                errors.add(port_names(port));
            }
            errors.add(probes::serving(container, text(port, "name")));
        }
        Role::Sidecar => errors.add(probes::sidecar(container, features)),
        Role::Init => items(container, "ports").iter().for_each(|port| errors.add(port_numbers(port))),
    }
    errors.add(volume_mounts(container, pod, features));
    if let Some(context) = map.get("securityContext").filter(|v| !v.is_null()) {
        errors.add(security_context(context, features).via("securityContext"));
    }
    errors
}

fn image(image: &str) -> FieldErrors {
    if image.is_empty() {
        return FieldErrors::missing("image");
    }
    if valid_reference(image) {
        return FieldErrors::none();
    }
    FieldErrors::new("Failed to parse image reference", &["image"])
        .with_details(format!("image: {}, error: could not parse reference: {image}", go::quote(image)))
}

fn valid_reference(image: &str) -> bool {
    if let Some((name, digest)) = image.split_once('@') {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        let tagged = tag_split(name).map_or(name, |(repository, _)| repository);
        return hex.len() == 64
            && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            && valid_repository(tagged);
    }
    match tag_split(image) {
        Some((repository, tag)) => {
            let chars = tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
            (1..=128).contains(&tag.len()) && chars && valid_repository(repository)
        }
        None => valid_repository(image),
    }
}

fn tag_split(image: &str) -> Option<(&str, &str)> {
    image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))
}

fn valid_repository(name: &str) -> bool {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) => (Some(first), rest),
        _ => (None, name),
    };
    let authority = |r: &str| {
        let (host, port) = r.rsplit_once(':').unwrap_or((r, "0"));
        !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':'))
            && port.bytes().all(|b| b.is_ascii_digit())
    };
    registry.is_none_or(authority)
        && (2..=255).contains(&repository.len())
        && repository
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.' | b'/'))
}

fn env(container: &Value, features: &Features, role: Role) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (i, variable) in items(container, "env").iter().enumerate() {
        let name = text(variable, "name");
        let mut own = FieldErrors::none();
        if name.is_empty() {
            own.add(FieldErrors::missing("name"));
        } else if RESERVED_ENV.contains(&name) || (name == "PORT" && role == Role::Serving) {
            own.add(FieldErrors::new(format!("{} is a reserved environment variable", go::quote(name)), &["name"]));
        }
        if let Some(from) = variable["valueFrom"].as_object() {
            let refs = ["fieldRef", "resourceFieldRef"];
            own.add(
                fields::mask(from, &["fieldRef", "resourceFieldRef", "fileKeyRef"], |key| {
                    refs.contains(&key) && features.podspec_field_ref.is_permitted()
                })
                .via("valueFrom"),
            );
        }
        errors.add(own.via_index("env", i));
    }
    errors
}

fn env_from(container: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for source in items(container, "envFrom") {
        let paths = ["configMapRef", "secretRef"];
        match paths.iter().filter(|p| present(source, p)).count() {
            0 => errors.add(FieldErrors::neither(&paths).via("envFrom")),
            1 => {}
            _ => errors.add(FieldErrors::both(&paths).via("envFrom")),
        }
    }
    errors
}

/// Upstream does not name the port's index.
fn port_numbers(port: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let known = ["hostIP", "hostPort"];
    if let Some(map) = port.as_object() {
        errors.add(fields::mask(map, &known, |key| key == "hostPort" && port[key] == 0));
    }
    let number = port["containerPort"].as_i64().unwrap_or(0);
    if RESERVED_PORTS.contains(&number) {
        errors.add(
            FieldErrors::invalid(format!("{number} is a reserved port"), "containerPort")
                .with_details(format!("{number} is a reserved port, please use a different value")),
        );
    }
    if !(0..=65535).contains(&number) {
        errors.add(FieldErrors::out_of_range(number, 0, 65535, "containerPort"));
    }
    errors.via("ports")
}

fn port_names(port: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let protocol = text(port, "protocol");
    if !["", "TCP"].contains(&protocol) {
        errors.add(FieldErrors::invalid(protocol, "ports.protocol"));
    }
    let name = text(port, "name");
    if !["", "h2c", "http1"].contains(&name) {
        errors.add(
            FieldErrors::new(format!("Port name {name} is not allowed"), &["ports"])
                .with_details("Name must be empty, or one of: 'h2c', 'http1'"),
        );
    }
    errors
}

fn volume_mounts(container: &Value, pod: &PodSpecMap, features: &Features) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut seen = BTreeSet::new();
    let propagation = features.podspec_volumes_mount_propagation;
    for (i, mount) in items(container, "volumeMounts").iter().enumerate() {
        let name = text(mount, "name");
        let mut own = FieldErrors::none();
        if let Some(map) = mount.as_object() {
            let known = ["mountPropagation", "recursiveReadOnly", "subPathExpr"];
            own.add(fields::mask(map, &known, |key| key == "mountPropagation" && propagation.is_permitted()));
        }
        let volume = pod.volumes().iter().find(|v| text(v, "name") == name);
        if volume.is_none() {
            own.add(FieldErrors::new("volumeMount has no matching volume", &["name"]));
        }
        own.add(mount_path(text(mount, "mountPath"), &mut seen));
        let read_only = mount["readOnly"] == true;
        if let Some(volume) = volume.filter(|_| !read_only) {
            if !["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|source| present(volume, source)) {
                own.add(FieldErrors::new("volume mount should be readOnly for this type of volume", &["readOnly"]));
            }
            if volume["persistentVolumeClaim"]["readOnly"] == true {
                own.add(FieldErrors::new("volume is readOnly but volume mount is not", &["readOnly"]));
            }
        }
        let mode = text(mount, "mountPropagation");
        if !mode.is_empty() {
            if !propagation.is_enabled() {
                own.add(FieldErrors::new(format!("Volume Mount Propagation support is disabled, but found volume mount {name} with mount propagation"), &[]));
            }
            if !["None", "HostToContainer"].contains(&mode) {
                own.add(FieldErrors::new(
                    "mount propagation should be set to None or HostToContainer",
                    &["mountPropagation"],
                ));
            }
        }
        errors.add(own.via_index("volumeMounts", i));
    }
    errors
}

fn mount_path(path: &str, seen: &mut BTreeSet<String>) -> FieldErrors {
    let clean = clean(path);
    if path.is_empty() {
        FieldErrors::missing("mountPath")
    } else if RESERVED_PATHS.contains(&clean.as_str()) {
        FieldErrors::new(format!("mountPath {} is a reserved path", go::quote(&clean)), &["mountPath"])
    } else if !path.starts_with('/') {
        FieldErrors::invalid(path, "mountPath")
    } else if !seen.insert(clean) {
        FieldErrors::invalid(format!("{} must be unique", go::quote(path)), "mountPath")
    } else {
        FieldErrors::none()
    }
}

/// Go's `path.Clean`, for absolute paths.
fn clean(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let root = if path.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

fn security_context(context: &Value, features: &Features) -> FieldErrors {
    let Some(map) = context.as_object() else { return FieldErrors::none() };
    let known = ["appArmorProfile", "privileged", "procMount", "seLinuxOptions", "windowsOptions"];
    let mut errors = fields::mask(map, &known, |key| key == "privileged" && context[key] == false);
    let add = items(&context["capabilities"], "add");
    if !add.is_empty() {
        let bind_only = add.len() == 1 && add[0] == "NET_BIND_SERVICE";
        let secure = features.secure_pod_defaults != SecurePodDefaults::Disabled && bind_only;
        if !features.containerspec_add_capabilities.is_enabled() && !secure {
            errors.add(FieldErrors::disallowed(&["capabilities.add"]));
        }
    }
    errors.and(podspec::ids(context, &["runAsUser", "runAsGroup"]))
}
