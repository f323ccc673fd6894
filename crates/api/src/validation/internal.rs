//! The kinds that controllers write to each other.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::container_concurrency;
use super::fields::{items, present, text};
use super::template::networking_annotations;
use crate::admission::ConfigSnapshot;
use crate::checks;
use crate::field_error::FieldErrors;

pub fn pod_autoscaler(spec: &Value, config: &ConfigSnapshot) -> FieldErrors {
    if empty(spec) {
        return FieldErrors::missing("spec");
    }
    let mut errors = object_reference(&spec["scaleTargetRef"]).via("scaleTargetRef");
    errors.add(container_concurrency(spec["containerConcurrency"].as_i64().unwrap_or(0), config));
    errors.add(protocol(spec));
    errors.via("spec")
}

pub fn metric(spec: &Value) -> FieldErrors {
    // Its fields are always written, so zero values count as empty.
    let unset = text(spec, "scrapeTarget").is_empty()
        && ["stableWindow", "panicWindow"].iter().all(|k| spec[*k].as_i64().unwrap_or(0) == 0);
    if unset { FieldErrors::missing("spec") } else { FieldErrors::none() }
}

pub fn serverless_service(meta: &ObjectMeta, spec: &Value) -> FieldErrors {
    let mut errors = meta
        .annotations
        .as_ref()
        .map_or_else(FieldErrors::none, |annotations| networking_annotations(annotations).via("annotations"));
    if empty(spec) {
        return errors.and(FieldErrors::missing("spec"));
    }
    let mut own = FieldErrors::none();
    match text(spec, "mode") {
        "" => own.add(FieldErrors::missing("mode")),
        "Serve" | "Proxy" => {}
        other => own.add(FieldErrors::invalid(other, "mode")),
    }
    if let Some(n) = spec["numActivators"].as_i64().filter(|n| *n < 0) {
        own.add(FieldErrors::invalid(n, "numActivators"));
    }
    own.add(object_reference(&spec["objectRef"]).via("objectRef"));
    own.add(protocol(spec));
    errors.add(own.via("spec"));
    errors
}

pub fn ingress(spec: &Value, namespace: &str) -> FieldErrors {
    if empty(spec) {
        return FieldErrors::missing("spec");
    }
    let mut errors = FieldErrors::none();
    let rules = items(spec, "rules");
    if rules.is_empty() {
        errors.add(FieldErrors::missing("rules"));
    }
    for (i, rule) in rules.iter().enumerate() {
        errors.add(ingress_rule(rule, namespace).via_index("rules", i));
    }
    for (i, tls) in items(spec, "tls").iter().enumerate() {
        let mut own = FieldErrors::none();
        if empty(tls) {
            own.add(FieldErrors::missing(""));
        } else {
            for key in ["secretName", "secretNamespace"] {
                if text(tls, key).is_empty() {
                    own.add(FieldErrors::missing(key));
                }
            }
        }
        errors.add(own.via_index("tls", i));
    }
    let option = text(spec, "httpOption");
    if !["", "Enabled", "Redirected"].contains(&option) {
        errors.add(FieldErrors::invalid(option, "httpOption"));
    }
    errors.via("spec")
}

fn ingress_rule(rule: &Value, namespace: &str) -> FieldErrors {
    if empty(rule) {
        return FieldErrors::missing("");
    }
    if !present(rule, "http") {
        return FieldErrors::missing("http");
    }
    let paths = items(&rule["http"], "paths");
    if paths.is_empty() {
        return FieldErrors::missing("http.paths");
    }
    let mut errors = FieldErrors::none();
    for (i, path) in paths.iter().enumerate() {
        errors.add(ingress_path(path, namespace).via_index("paths", i));
    }
    errors.via("http")
}

fn ingress_path(path: &Value, namespace: &str) -> FieldErrors {
    if empty(path) {
        return FieldErrors::missing("");
    }
    let splits = items(path, "splits");
    if splits.is_empty() {
        return FieldErrors::missing("splits");
    }
    let mut total = 0;
    for (i, split) in splits.iter().enumerate() {
        let own = ingress_split(split, namespace);
        if !own.is_empty() {
            return own.via_index("splits", i);
        }
        total += split["percent"].as_i64().unwrap_or(0);
    }
    if total != 100 && !(splits.len() == 1 && total == 0) {
        let message = format!("traffic split percentage must total to 100, but was {total}");
        return FieldErrors::new(message, &["splits"]);
    }
    FieldErrors::none()
}

fn ingress_split(split: &Value, namespace: &str) -> FieldErrors {
    if empty(split) {
        return FieldErrors::missing("");
    }
    let mut errors = FieldErrors::none();
    let percent = split["percent"].as_i64().unwrap_or(0);
    if !(0..=100).contains(&percent) {
        errors.add(FieldErrors::invalid(percent, "percent"));
    }
    match text(split, "serviceNamespace") {
        "" => errors.add(FieldErrors::missing("serviceNamespace")),
        other if other != namespace => {
            errors.add(FieldErrors::new("service namespace must match ingress namespace", &["serviceNamespace"]))
        }
        _ => {}
    }
    if text(split, "serviceName").is_empty() {
        errors.add(FieldErrors::missing("serviceName"));
    }
    if split["servicePort"].is_null() || split["servicePort"] == 0 {
        errors.add(FieldErrors::missing("servicePort"));
    }
    errors
}

pub fn certificate(spec: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let names = items(spec, "dnsNames");
    if names.is_empty() {
        errors.add(FieldErrors::missing("dnsNames"));
    }
    for (i, name) in names.iter().enumerate() {
        if name.as_str().is_none_or(str::is_empty) {
            errors.add(FieldErrors::invalid("", "").via_index("dnsNames", i));
        }
    }
    if text(spec, "secretName").is_empty() {
        errors.add(FieldErrors::missing("secretName"));
    }
    let domain = text(spec, "domain");
    if !domain.is_empty() && !names.iter().any(|n| n.as_str().is_some_and(|n| n.ends_with(domain))) {
        errors.add(FieldErrors::invalid(
            "domain",
            "domain must be a suffix of, or match exactly, at least one entry in dnsNames",
        ));
    }
    errors.via("spec")
}

fn object_reference(reference: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let set: Vec<&str> = ["namespace", "fieldPath", "resourceVersion", "uid"]
        .into_iter()
        .filter(|key| present(reference, key))
        .collect();
    errors.add(FieldErrors::disallowed(&set));
    for (key, check) in [
        ("apiVersion", checks::qualified_name as fn(&str) -> Vec<String>),
        ("kind", checks::c_identifier),
        ("name", checks::dns1123_label),
    ] {
        let value = text(reference, key);
        if value.is_empty() {
            errors.add(FieldErrors::missing(key));
            continue;
        }
        let texts = check(value);
        if !texts.is_empty() {
            errors.add(FieldErrors::invalid(texts.join(", "), key));
        }
    }
    errors
}

fn protocol(spec: &Value) -> FieldErrors {
    match text(spec, "protocolType") {
        "" => FieldErrors::missing("protocolType"),
        "http1" | "h2c" => FieldErrors::none(),
        other => FieldErrors::invalid(other, "protocolType"),
    }
}

/// Nothing but zero values.
fn empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(empty),
    }
}
