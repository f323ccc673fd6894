//! Validation of a pod spec: the mistakes people make, with the field and the sentence Kubernetes has for them.
//!
//! Not every rule is here: what the node agent would refuse anyway, and what no form of pod on one machine can express, is left out.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::edit::{has, items, text};
use super::quantity::Quantity;
use crate::{FieldError, names};

/// Where a mounted volume comes from.
const SOURCES: [&str; 9] = [
    "emptyDir",
    "secret",
    "configMap",
    "downwardAPI",
    "projected",
    "hostPath",
    "persistentVolumeClaim",
    "csi",
    "ephemeral",
];

pub(super) fn check(spec: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    volumes(spec, path, &mut errors);
    let containers = items(spec, "containers");
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for (list, one) in [("initContainers", "init"), ("containers", "")] {
        for (index, container) in items(spec, list).iter().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            check_container(container, &path, spec, one == "init", &mut errors);
            let name = text(container, "/name");
            if !name.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &name.into()));
            }
        }
    }
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, &mut errors);
    one_of(spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path, &mut errors);
    if let Some(grace) = spec.get("terminationGracePeriodSeconds").filter(|g| g.as_i64().is_some_and(|g| g < 0)) {
        let field = format!("{path}.terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(field, grace, "must be greater than or equal to 0"));
    }
    if let Some(deadline) = spec.get("activeDeadlineSeconds").filter(|d| d.as_i64().is_some_and(|d| d < 1)) {
        let field = format!("{path}.activeDeadlineSeconds");
        errors.push(FieldError::invalid(field, deadline, "must be between 1 and 2147483647, inclusive"));
    }
    for (field, value) in
        [("nodeName", text(spec, "/nodeName")), ("serviceAccountName", text(spec, "/serviceAccountName"))]
    {
        if let Err(message) = if value.is_empty() { Ok(()) } else { names::subdomain(value) } {
            errors.push(FieldError::invalid(format!("{path}.{field}"), &value.into(), &message));
        }
    }
    errors
}

fn one_of(value: &Value, field: &str, supported: &[&str], path: &str, errors: &mut Vec<FieldError>) {
    match value.get(field).and_then(Value::as_str) {
        None | Some("") => errors.push(FieldError::required(format!("{path}.{field}"), "")),
        Some(given) if !supported.contains(&given) => {
            let mut supported = supported.to_vec();
            supported.sort_unstable();
            errors.push(FieldError::not_supported(format!("{path}.{field}"), &given.into(), &supported));
        }
        Some(_) => {}
    }
}

fn volumes(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if let Err(message) = names::label(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &name.into(), &message));
        } else if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), &name.into()));
        }
        let given: Vec<&str> = SOURCES.into_iter().filter(|source| has(volume, source)).collect();
        for extra in given.iter().skip(1) {
            let message = "may not specify more than 1 volume type";
            errors.push(FieldError::forbidden(format!("{path}.{extra}"), message));
        }
        let needs = |pointer: &str, field: &str, errors: &mut Vec<FieldError>| {
            if text(volume, pointer).is_empty() {
                errors.push(FieldError::required(format!("{path}.{field}"), ""));
            }
        };
        match given.first() {
            Some(&"secret") => needs("/secret/secretName", "secret.secretName", errors),
            Some(&"configMap") => needs("/configMap/name", "configMap.name", errors),
            Some(&"hostPath") => needs("/hostPath/path", "hostPath.path", errors),
            Some(&"persistentVolumeClaim") => {
                needs("/persistentVolumeClaim/claimName", "persistentVolumeClaim.claimName", errors);
            }
            _ => {}
        }
    }
}

fn check_container(container: &Value, path: &str, spec: &Value, init: bool, errors: &mut Vec<FieldError>) {
    let name = text(container, "/name");
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else if let Err(message) = names::label(name) {
        errors.push(FieldError::invalid(format!("{path}.name"), &name.into(), &message));
    }
    let image = text(container, "/image");
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{path}.image"),
            &image.into(),
            "must not have leading or trailing whitespace",
        ));
    }
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    one_of(container, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], path, errors);
    ports(container, path, errors);
    environment(container, path, errors);
    resources(container, path, errors);
    mounts(container, path, spec, errors);
    let sidecar = text(container, "/restartPolicy") == "Always";
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if !has(container, probe) {
            continue;
        }
        if init && !sidecar {
            let message = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(format!("{path}.{probe}"), message));
            continue;
        }
        check_probe(&container[probe], &format!("{path}.{probe}"), probe, errors);
    }
    for hook in ["preStop", "postStart"] {
        if let Some(handler) = container.get("lifecycle").and_then(|l| l.get(hook)).filter(|h| !h.is_null()) {
            check_handler(
                handler,
                &format!("{path}.lifecycle.{hook}"),
                &["exec", "httpGet", "tcpSocket", "sleep"],
                errors,
            );
        }
    }
}

fn ports(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "/name");
        if !name.is_empty() {
            if let Err(message) = names::port_name(name) {
                errors.push(FieldError::invalid(format!("{path}.name"), &name.into(), &message));
            } else if !seen.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), &name.into()));
            }
        }
        match port.get("containerPort").and_then(Value::as_i64) {
            None | Some(0) => errors.push(FieldError::required(format!("{path}.containerPort"), "")),
            Some(1..=65535) => {}
            Some(other) => errors.push(port_range(format!("{path}.containerPort"), other)),
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
    }
}

pub(super) fn port_range(field: String, value: i64) -> FieldError {
    FieldError::invalid(field, &value.into(), "must be between 1 and 65535, inclusive")
}

fn environment(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (index, variable) in items(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if let Err(message) = names::env_name(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), &name.into(), &message));
        }
        let Some(from) = variable.get("valueFrom").filter(|f| !f.is_null()) else { continue };
        if !text(variable, "/value").is_empty() {
            let message = "may not be specified when `value` is not empty";
            errors.push(FieldError::invalid(format!("{path}.valueFrom"), &"".into(), message));
        }
        let sources: Vec<&str> = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"]
            .into_iter()
            .filter(|source| has(from, source))
            .collect();
        match sources.as_slice() {
            [] => errors.push(FieldError::invalid(
                format!("{path}.valueFrom"),
                &"".into(),
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            )),
            [source @ ("configMapKeyRef" | "secretKeyRef")] if text(&from[*source], "/key").is_empty() => {
                errors.push(FieldError::required(format!("{path}.valueFrom.{source}.key"), ""));
            }
            ["fieldRef"] if text(from, "/fieldRef/fieldPath").is_empty() => {
                errors.push(FieldError::required(format!("{path}.valueFrom.fieldRef.fieldPath"), ""));
            }
            [_] => {}
            _ => {
                let message = "may not have more than one field specified at a time";
                errors.push(FieldError::invalid(format!("{path}.valueFrom"), &"".into(), message));
            }
        }
    }
}

fn resources(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let parsed = |what: &str, name: &str| {
        Quantity::parse(text(container, &format!("/resources/{what}/{}", name.replace('~', "~0").replace('/', "~1"))))
    };
    for what in ["limits", "requests"] {
        let list = container.get("resources").and_then(|r| r.get(what)).and_then(Value::as_object);
        for (name, value) in list.into_iter().flatten() {
            let field = format!("{path}.resources.{what}[{name}]");
            match parsed(what, name) {
                None => errors.push(FieldError::invalid(
                    field,
                    value,
                    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
                )),
                Some(amount) if amount.is_negative() => {
                    errors.push(FieldError::invalid(field, value, "must be greater than or equal to 0"));
                }
                Some(amount) if what == "requests" => {
                    if parsed("limits", name).is_some_and(|limit| amount > limit && !amount.equals(limit)) {
                        let limit = text(container, &format!("/resources/limits/{}", name.replace('/', "~1")));
                        let message = format!("must be less than or equal to {name} limit of {limit}");
                        errors.push(FieldError::invalid(format!("{path}.resources.requests"), value, &message));
                    }
                }
                Some(_) => {}
            }
        }
    }
}

fn mounts(container: &Value, path: &str, spec: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let name = text(mount, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !items(spec, "volumes").iter().any(|volume| text(volume, "/name") == name) {
            errors.push(FieldError::not_found(format!("{path}.name"), &name.into()));
        }
        let at = text(mount, "/mountPath");
        if at.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !seen.insert(at) {
            errors.push(FieldError::invalid(format!("{path}.mountPath"), &at.into(), "must be unique"));
        }
        if !text(mount, "/subPath").is_empty() && !text(mount, "/subPathExpr").is_empty() {
            let value = json!(text(mount, "/subPathExpr"));
            errors.push(FieldError::invalid(
                format!("{path}.subPathExpr"),
                &value,
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
    }
}

fn check_probe(probe: &Value, path: &str, name: &str, errors: &mut Vec<FieldError>) {
    check_handler(probe, path, &["exec", "httpGet", "tcpSocket", "grpc"], errors);
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if let Some(value) = probe.get(field).filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
            errors.push(FieldError::invalid(format!("{path}.{field}"), value, "must be greater than or equal to 0"));
        }
    }
    if let Some(threshold) = probe.get("successThreshold").filter(|v| name != "readinessProbe" && v.as_i64() != Some(1))
    {
        errors.push(FieldError::invalid(format!("{path}.successThreshold"), threshold, "must be 1"));
    }
}

fn check_handler(handler: &Value, path: &str, kinds: &[&str], errors: &mut Vec<FieldError>) {
    let given: Vec<&str> = kinds.iter().copied().filter(|kind| has(handler, kind)).collect();
    let Some(first) = given.first() else {
        errors.push(FieldError::required(path, "must specify a handler type"));
        return;
    };
    for extra in given.iter().skip(1) {
        errors.push(FieldError::forbidden(format!("{path}.{extra}"), "may not specify more than 1 handler type"));
    }
    match *first {
        "exec" if items(&handler["exec"], "command").is_empty() => {
            errors.push(FieldError::required(format!("{path}.exec.command"), ""));
        }
        kind @ ("httpGet" | "tcpSocket" | "grpc") => match handler[kind].get("port") {
            Some(Value::Number(port)) if !(1..=65535).contains(&port.as_i64().unwrap_or_default()) => {
                errors.push(port_range(format!("{path}.{kind}.port"), port.as_i64().unwrap_or_default()));
            }
            Some(Value::String(port)) => {
                if let Err(message) = names::port_name(port) {
                    errors.push(FieldError::invalid(format!("{path}.{kind}.port"), &port.as_str().into(), &message));
                }
            }
            Some(Value::Number(_)) => {}
            _ => errors.push(port_range(format!("{path}.{kind}.port"), 0)),
        },
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(mut spec: Value) -> Vec<String> {
        super::super::pod_spec::default(&mut spec);
        check(&spec, "spec").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_spec() {
        let spec = json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "name": "http"}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}], "readinessProbe": {"tcpSocket": {"port": "http"}}}],
            "volumes": [{"name": "v"}]});
        assert_eq!(messages(spec), [] as [&str; 0]);
    }

    #[test]
    fn what_people_get_wrong() {
        assert_eq!(messages(json!({"containers": []})), ["spec.containers: Required value"]);
        let spec = json!({"containers": [{"name": "A", "ports": [{"containerPort": 70000}]},
            {"name": "b", "image": "i", "volumeMounts": [{"name": "x", "mountPath": "/x"}], "env": [{"name": ""}],
             "livenessProbe": {}, "imagePullPolicy": "Sometimes",
             "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]});
        let messages = messages(spec);
        let expected = [
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label",
            "spec.containers[0].image: Required value",
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            "spec.containers[1].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            "spec.containers[1].env[0].name: Required value",
            "spec.containers[1].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            "spec.containers[1].volumeMounts[0].name: Not found: \"x\"",
            "spec.containers[1].livenessProbe: Required value: must specify a handler type",
        ];
        assert_eq!(messages.len(), expected.len(), "{messages:#?}");
        for (message, expected) in messages.iter().zip(expected) {
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
