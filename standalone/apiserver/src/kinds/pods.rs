//! Pods: what a client may say, what admission adds, what may change later, and how long deletion takes.

use serde_json::{Value, json};

use super::edit::{carry, child, fill, has, items, items_mut, set, text};
use super::{pod_spec, pod_spec_check};
use crate::{FieldError, FieldLabel, Status, Strategy, WriteContext};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
    `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` \
    (allow it to be set to 1 if it was previously negative)";

pub(super) struct Pod;

/// What field selectors may name.
pub(super) fn labels() -> Vec<FieldLabel> {
    let mut labels: Vec<FieldLabel> = [
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ]
    .into_iter()
    .map(FieldLabel::dotted)
    .collect();
    labels.push(super::boolean("spec.hostNetwork"));
    labels.push(FieldLabel { pointers: vec!["/status/podIPs/0/ip".into()], ..FieldLabel::dotted("status.podIPs") });
    labels
}

// === impl Pod ===

impl Strategy for Pod {
    fn default(&self, pod: &mut Value) {
        let Some(spec) = pod.get_mut("spec") else { return };
        pod_spec::default(spec);
        pod_spec::default_pod(spec);
    }

    fn prepare_create(&self, cx: &WriteContext<'_>, pod: &mut Value) -> Result<(), Status> {
        let spec = child(pod, "spec");
        // Hooks run again when a write is retried; what was added once stays.
        service_account(cx, spec)?;
        fill(spec, "priority", 0);
        fill(spec, "preemptionPolicy", "PreemptLowerPriority");
        tolerations(spec);
        let quality = pod_spec::quality_of_service(spec);
        set(pod, "status", json!({ "phase": "Pending", "qosClass": quality }));
        Ok(())
    }

    fn prepare_update(&self, _cx: &WriteContext<'_>, pod: &mut Value, old: &Value) -> Result<(), Status> {
        if !has(child(pod, "status"), "qosClass") && old.pointer("/status/qosClass").is_some() {
            let old_status = &old["status"];
            carry(old_status, child(pod, "status"), "qosClass");
        }
        Ok(())
    }

    fn validate(&self, cx: &WriteContext<'_>, pod: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        let Some(old) = old else { return pod_spec_check::check(spec, "spec") };
        if cx.subresource == "status" {
            return Vec::new();
        }
        let old_spec = old.get("spec").unwrap_or(&Value::Null);
        if spec == old_spec {
            return Vec::new();
        }
        let mut errors = pod_spec_check::check(spec, "spec");
        if !same_but_for_what_may_change(cx, spec, old_spec) {
            errors.push(FieldError::forbidden("spec", IMMUTABLE));
        }
        errors
    }

    fn deletion_grace(&self, pod: &Value, requested: Option<i64>) -> Option<i64> {
        if text(pod, "/spec/nodeName").is_empty() || matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
            return None;
        }
        let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
        Some(requested.unwrap_or(own).max(0)).filter(|&grace| grace > 0)
    }

    fn delete_returns_object(&self) -> bool {
        true
    }
}

fn service_account(cx: &WriteContext<'_>, spec: &mut Value) -> Result<(), Status> {
    let given = text(spec, "/serviceAccountName").to_owned();
    let name = if given.is_empty() { "default".to_owned() } else { given.clone() };
    set(spec, "serviceAccountName", name.as_str());
    set(spec, "serviceAccount", name.as_str());
    let account = (cx.lookup)("serviceaccounts", cx.namespace, &name);
    if account.is_none() && !given.is_empty() && given != "default" {
        let why =
            format!("error looking up service account {}/{name}: serviceaccount {name:?} not found", cx.namespace);
        return Err(Status::forbidden(cx.kind, cx.name, &why));
    }
    // The default account of a namespace is made right after it; a pod may come first, and it will be there when the pod starts.
    let account = account.as_deref().unwrap_or(&Value::Null);
    if items(spec, "imagePullSecrets").is_empty()
        && let Some(secrets) = account.get("imagePullSecrets").filter(|s| s.as_array().is_some_and(|s| !s.is_empty()))
    {
        set(spec, "imagePullSecrets", secrets.clone());
    }
    let wish = |value: &Value| value.get("automountServiceAccountToken").and_then(Value::as_bool);
    if wish(spec).or_else(|| wish(account)).unwrap_or(true) {
        mount_token(spec, (cx.lookup)("configmaps", cx.namespace, "kube-root-ca.crt").is_some());
    }
    Ok(())
}

/// The volume with the token, the root certificate and the namespace, in every container that has nothing at its place yet. Without a certificate
/// (an API that pods cannot reach) the volume goes without it, and the pod starts.
fn mount_token(spec: &mut Value, has_certificate: bool) {
    let present = items(spec, "volumes").iter().map(|v| text(v, "/name")).find(|n| n.starts_with("kube-api-access-"));
    let (volume, is_new) = match present {
        Some(name) => (name.to_owned(), false),
        None => (format!("kube-api-access-{}", suffix()), true),
    };
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            if items(container, "volumeMounts").iter().any(|mount| text(mount, "/mountPath") == TOKEN_PATH) {
                continue;
            }
            used = true;
            let mount = json!({ "name": volume, "mountPath": TOKEN_PATH, "readOnly": true });
            push(container, "volumeMounts", mount);
        }
    }
    if used && is_new {
        let mut sources = vec![json!({ "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } })];
        if has_certificate {
            let items = json!([{ "key": "ca.crt", "path": "ca.crt" }]);
            sources.push(json!({ "configMap": { "name": "kube-root-ca.crt", "items": items } }));
        }
        let namespace = json!({ "apiVersion": "v1", "fieldPath": "metadata.namespace" });
        sources.push(json!({ "downwardAPI": { "items": [{ "path": "namespace", "fieldRef": namespace }] } }));
        push(spec, "volumes", json!({ "name": volume, "projected": { "defaultMode": 420, "sources": sources } }));
    }
}

fn tolerations(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = items(spec, "tolerations").iter().any(|t| {
            let own = text(t, "/key");
            (own == key || own.is_empty()) && matches!(text(t, "/effect"), "" | "NoExecute")
        });
        if !tolerated {
            let one = json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 });
            push(spec, "tolerations", one);
        }
    }
}

fn push(value: &mut Value, field: &str, item: Value) {
    fill(value, field, Value::Array(Vec::new()));
    if let Some(list) = value.get_mut(field).and_then(Value::as_array_mut) {
        list.push(item);
    }
}

fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| char::from(ALPHABET[fastrand::usize(..ALPHABET.len())])).collect()
}

fn same_but_for_what_may_change(cx: &WriteContext<'_>, new: &Value, old: &Value) -> bool {
    let mut allowed = new.clone();
    for list in ["initContainers", "containers"] {
        for (container, old) in items_mut(&mut allowed, list).iter_mut().zip(items(old, list)) {
            carry(old, container, "image");
        }
    }
    carry(old, &mut allowed, "activeDeadlineSeconds");
    if items(old, "tolerations").iter().all(|toleration| items(new, "tolerations").contains(toleration)) {
        carry(old, &mut allowed, "tolerations");
    }
    if cx.subresource == "binding" && text(old, "/nodeName").is_empty() {
        carry(old, &mut allowed, "nodeName");
    }
    allowed == *old
}
