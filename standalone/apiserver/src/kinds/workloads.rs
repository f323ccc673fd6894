//! Deployments and ReplicaSets: defaults, the selector that must fit its template and never changes.

use serde_json::{Value, json};

use super::edit::{child, fill, fill_text, has, set, text};
use super::{pod_spec, pod_spec_check};
use crate::selectors::LabelSelector;
use crate::{FieldError, Status, Strategy, WriteContext, names};

pub(super) struct Deployment;

pub(super) struct ReplicaSet;

// === impl Deployment ===

impl Strategy for Deployment {
    fn default(&self, deployment: &mut Value) {
        let spec = child(deployment, "spec");
        fill(spec, "replicas", 1);
        fill(spec, "revisionHistoryLimit", 10);
        fill(spec, "progressDeadlineSeconds", 600);
        let strategy = child(spec, "strategy");
        fill_text(strategy, "type", "RollingUpdate");
        if text(strategy, "/type") == "RollingUpdate" {
            let rolling = child(strategy, "rollingUpdate");
            fill(rolling, "maxSurge", "25%");
            fill(rolling, "maxUnavailable", "25%");
        }
        template(spec);
    }

    fn prepare_create(&self, _cx: &WriteContext<'_>, deployment: &mut Value) -> Result<(), Status> {
        set(deployment, "status", json!({}));
        Ok(())
    }

    fn validate(&self, cx: &WriteContext<'_>, deployment: &Value, old: Option<&Value>) -> Vec<FieldError> {
        if cx.subresource == "status" {
            return Vec::new();
        }
        let spec = deployment.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        not_negative(
            spec,
            &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
            &mut errors,
        );
        selector_and_template(spec, old, &mut errors);
        let strategy = spec.get("strategy").unwrap_or(&Value::Null);
        match text(strategy, "/type") {
            "Recreate" if has(strategy, "rollingUpdate") => errors.push(FieldError::forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            )),
            "Recreate" => {}
            "RollingUpdate" => rolling_update(&strategy["rollingUpdate"], &mut errors),
            other => {
                errors.push(FieldError::not_supported(
                    "spec.strategy.type",
                    &other.into(),
                    &["Recreate", "RollingUpdate"],
                ));
            }
        }
        let seconds = |field: &str| spec.get(field).and_then(Value::as_i64).unwrap_or_default();
        if has(spec, "progressDeadlineSeconds") && seconds("progressDeadlineSeconds") <= seconds("minReadySeconds") {
            let value = seconds("progressDeadlineSeconds").into();
            errors.push(FieldError::invalid(
                "spec.progressDeadlineSeconds",
                &value,
                "must be greater than minReadySeconds",
            ));
        }
        errors
    }
}

// === impl ReplicaSet ===

impl Strategy for ReplicaSet {
    fn default(&self, set: &mut Value) {
        let spec = child(set, "spec");
        fill(spec, "replicas", 1);
        if has(spec, "template") {
            template(spec);
        }
    }

    fn prepare_create(&self, _cx: &WriteContext<'_>, object: &mut Value) -> Result<(), Status> {
        set(object, "status", json!({ "replicas": 0 }));
        Ok(())
    }

    fn validate(&self, cx: &WriteContext<'_>, set: &Value, old: Option<&Value>) -> Vec<FieldError> {
        if cx.subresource == "status" {
            return Vec::new();
        }
        let spec = set.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        not_negative(spec, &["replicas", "minReadySeconds"], &mut errors);
        selector_and_template(spec, old, &mut errors);
        errors
    }
}

fn template(spec: &mut Value) {
    let template = child(spec, "template");
    child(template, "metadata");
    pod_spec::default(child(template, "spec"));
}

fn not_negative(spec: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    for field in fields {
        if let Some(value) = spec.get(field).filter(|v| v.as_i64().is_some_and(|n| n < 0)) {
            errors.push(FieldError::invalid(format!("spec.{field}"), value, "must be greater than or equal to 0"));
        }
    }
}

fn selector_and_template(spec: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let labels = spec.pointer("/template/metadata/labels");
    match spec.get("selector").filter(|s| !s.is_null()) {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(selector) => match LabelSelector::from_object(selector) {
            Err(message) => errors.push(FieldError::invalid("spec.selector", selector, &message)),
            Ok(parsed) if parsed.is_empty() => {
                errors.push(FieldError::invalid("spec.selector", selector, "empty selector is invalid for deployment"));
            }
            Ok(parsed) => {
                if !parsed.matches(labels.and_then(Value::as_object)) {
                    let shown = labels.cloned().unwrap_or(Value::Null);
                    let message = "`selector` does not match template `labels`";
                    errors.push(FieldError::invalid("spec.template.metadata.labels", &shown, message));
                }
                let before = old.and_then(|old| old.pointer("/spec/selector"));
                if before.is_some_and(|before| before != selector) {
                    errors.push(FieldError::invalid("spec.selector", selector, "field is immutable"));
                }
            }
        },
    }
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        let checked = names::label_key(key).and_then(|()| names::label_value(value.as_str().unwrap_or_default()));
        if let Err(message) = checked {
            errors.push(FieldError::invalid("spec.template.metadata.labels", value, &message));
        }
    }
    let template = spec.pointer("/template/spec").unwrap_or(&Value::Null);
    if old.is_some_and(|old| old.pointer("/spec/template/spec") == Some(template)) {
        return;
    }
    errors.extend(pod_spec_check::check(template, "spec.template.spec"));
    let policy = text(template, "/restartPolicy");
    if policy != "Always" && matches!(policy, "OnFailure" | "Never") {
        errors.push(FieldError::not_supported("spec.template.spec.restartPolicy", &policy.into(), &["Always"]));
    }
}

fn rolling_update(rolling: &Value, errors: &mut Vec<FieldError>) {
    let zero = |field: &str| rolling.get(field).is_some_and(|v| v == 0 || v == "0%");
    for field in ["maxUnavailable", "maxSurge"] {
        let path = format!("spec.strategy.rollingUpdate.{field}");
        match rolling.get(field) {
            Some(Value::Number(number)) if number.as_i64().is_some_and(|n| n < 0) => {
                let value = number.as_i64().unwrap_or_default().into();
                errors.push(FieldError::invalid(path, &value, "must be greater than or equal to 0"));
            }
            Some(Value::String(share)) if share.strip_suffix('%').is_none_or(|n| n.parse::<u32>().is_err()) => {
                let message = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
                    for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(path, &share.as_str().into(), message));
            }
            _ => {}
        }
    }
    if zero("maxUnavailable") && zero("maxSurge") {
        let value = rolling["maxUnavailable"].clone();
        errors.push(FieldError::invalid(
            "spec.strategy.rollingUpdate.maxUnavailable",
            &value,
            "may not be 0 when `maxSurge` is 0",
        ));
    }
}
