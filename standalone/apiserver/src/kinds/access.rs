//! RBAC objects and webhook configurations. They are kept and shown; what they say is acted on elsewhere.

use serde_json::{Value, json};

use super::edit::{child, fill, fill_text, items, items_mut, text};
use crate::{FieldError, Strategy, WriteContext};

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) struct Role;

pub(super) struct Binding;

pub(super) struct Webhooks;

// === impl Role ===

impl Strategy for Role {
    fn validate(&self, _cx: &WriteContext<'_>, role: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (index, rule) in items(role, "rules").iter().enumerate() {
            if items(rule, "verbs").is_empty() {
                let message = "verbs must contain at least one value";
                errors.push(FieldError::required(format!("rules[{index}].verbs"), message));
            }
        }
        errors
    }
}

// === impl Binding ===

impl Strategy for Binding {
    fn default(&self, binding: &mut Value) {
        if binding.get("roleRef").is_some() {
            fill_text(child(binding, "roleRef"), "apiGroup", RBAC);
        }
        for subject in items_mut(binding, "subjects") {
            if matches!(text(subject, "/kind"), "User" | "Group") {
                fill_text(subject, "apiGroup", RBAC);
            }
        }
    }

    fn validate(&self, _cx: &WriteContext<'_>, binding: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if !matches!(text(binding, "/roleRef/kind"), "Role" | "ClusterRole") {
            let given = text(binding, "/roleRef/kind").into();
            errors.push(FieldError::not_supported("roleRef.kind", &given, &["ClusterRole", "Role"]));
        }
        if text(binding, "/roleRef/name").is_empty() {
            errors.push(FieldError::required("roleRef.name", ""));
        }
        for (index, subject) in items(binding, "subjects").iter().enumerate() {
            let path = format!("subjects[{index}]");
            if text(subject, "/name").is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
            match text(subject, "/kind") {
                "ServiceAccount" if text(subject, "/namespace").is_empty() => {
                    errors.push(FieldError::required(format!("{path}.namespace"), ""));
                }
                "ServiceAccount" | "User" | "Group" => {}
                other => {
                    let supported = ["Group", "ServiceAccount", "User"];
                    errors.push(FieldError::not_supported(format!("{path}.kind"), &other.into(), &supported));
                }
            }
        }
        if old.is_some_and(|old| old.get("roleRef") != binding.get("roleRef")) {
            errors.push(FieldError::invalid("roleRef", &binding["roleRef"], "cannot change roleRef"));
        }
        errors
    }
}

// === impl Webhooks ===

impl Strategy for Webhooks {
    fn default(&self, configuration: &mut Value) {
        let mutating = text(configuration, "/kind") == "MutatingWebhookConfiguration";
        for webhook in items_mut(configuration, "webhooks") {
            fill_text(webhook, "failurePolicy", "Fail");
            fill_text(webhook, "matchPolicy", "Equivalent");
            fill(webhook, "namespaceSelector", json!({}));
            fill(webhook, "objectSelector", json!({}));
            fill(webhook, "timeoutSeconds", 10);
            if mutating {
                fill_text(webhook, "reinvocationPolicy", "Never");
            }
            for rule in items_mut(webhook, "rules") {
                fill_text(rule, "scope", "*");
            }
            if let Some(service) = webhook.get_mut("clientConfig").and_then(|config| config.get_mut("service")) {
                fill(service, "port", 443);
            }
        }
    }

    fn validate(&self, _cx: &WriteContext<'_>, configuration: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        for (index, webhook) in items(configuration, "webhooks").iter().enumerate() {
            let path = format!("webhooks[{index}]");
            if text(webhook, "/name").is_empty() {
                errors.push(FieldError::required(format!("{path}.name"), ""));
            }
            if text(webhook, "/sideEffects").is_empty() {
                errors.push(FieldError::required(
                    format!("{path}.sideEffects"),
                    "must specify one of None, NoneOnDryRun",
                ));
            }
            if items(webhook, "admissionReviewVersions").is_empty() {
                let message = "must specify one of v1, v1beta1";
                errors.push(FieldError::required(format!("{path}.admissionReviewVersions"), message));
            }
        }
        errors
    }
}
