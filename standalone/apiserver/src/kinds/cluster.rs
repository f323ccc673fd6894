//! Namespaces, nodes and leases.

use serde_json::{Value, json};

use super::edit::{child, has, items, set, text};
use crate::{FieldError, Status, Strategy, WriteContext};

/// The label every namespace has with its own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) struct Namespace;

pub(super) struct Node;

pub(super) struct Lease;

// === impl Namespace ===

impl Strategy for Namespace {
    fn default(&self, namespace: &mut Value) {
        let name = text(namespace, "/metadata/name").to_owned();
        if !name.is_empty() {
            set(child(child(namespace, "metadata"), "labels"), NAME_LABEL, name);
        }
    }

    fn prepare_create(&self, _cx: &WriteContext<'_>, namespace: &mut Value) -> Result<(), Status> {
        set(namespace, "status", json!({ "phase": "Active" }));
        let spec = child(namespace, "spec");
        if !items(spec, "finalizers").contains(&"kubernetes".into()) {
            let mut finalizers = items(spec, "finalizers").to_vec();
            finalizers.push("kubernetes".into());
            set(spec, "finalizers", finalizers);
        }
        Ok(())
    }

    fn prepare_update(&self, cx: &WriteContext<'_>, namespace: &mut Value, old: &Value) -> Result<(), Status> {
        if cx.subresource != "finalize" {
            let finalizers = items(&old["spec"], "finalizers").to_vec();
            if !finalizers.is_empty() {
                set(child(namespace, "spec"), "finalizers", finalizers);
            }
        }
        Ok(())
    }

    fn delete_returns_object(&self) -> bool {
        true
    }
}

// === impl Node ===

impl Strategy for Node {
    fn validate(&self, _cx: &WriteContext<'_>, node: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (index, taint) in items(&node["spec"], "taints").iter().enumerate() {
            if !matches!(text(taint, "/effect"), "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
                let supported = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
                let given = text(taint, "/effect").into();
                errors.push(FieldError::not_supported(format!("spec.taints[{index}].effect"), &given, &supported));
            }
        }
        let before = old.map_or("", |old| text(old, "/spec/providerID"));
        if !before.is_empty() && before != text(node, "/spec/providerID") {
            errors.push(FieldError::forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            ));
        }
        errors
    }
}

// === impl Lease ===

impl Strategy for Lease {
    fn validate(&self, _cx: &WriteContext<'_>, lease: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let spec = lease.get("spec").unwrap_or(&Value::Null);
        let mut errors = Vec::new();
        for (field, least, message) in [
            ("leaseDurationSeconds", 1, "must be greater than 0"),
            ("leaseTransitions", 0, "must be greater than or equal to 0"),
        ] {
            if has(spec, field) && spec[field].as_i64().is_some_and(|n| n < least) {
                errors.push(FieldError::invalid(format!("spec.{field}"), &spec[field], message));
            }
        }
        errors
    }
}
