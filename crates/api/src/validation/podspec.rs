//! The pod part of a RevisionSpec: which fields may be set, security, and the parts in the sibling modules.

use std::collections::BTreeSet;

use serde_json::Value;

use super::fields::{self, is_set, items, text};
use super::{containers, volumes};
use crate::PodSpecMap;
use crate::admission::ConfigSnapshot;
use crate::checks;
use crate::config::Features;
use crate::field_error::FieldErrors;

/// Fields of a PodSpec that Serving never takes, besides those behind flags.
const NEVER: &[&str] = &[
    "activeDeadlineSeconds",
    "ephemeralContainers",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "nodeName",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "schedulingGates",
    "serviceAccount",
    "setHostnameAsFQDN",
    "subdomain",
    "terminationGracePeriodSeconds",
];

pub(super) const MAX_ID: i64 = i32::MAX as i64;

pub(super) fn pod_spec(pod: &PodSpecMap, config: &ConfigSnapshot) -> FieldErrors {
    let features = &config.features;
    if pod.0.values().all(Value::is_null) {
        return FieldErrors::missing("containers");
    }
    let mut errors = mask(pod, features);
    let context = pod.0.get("securityContext").filter(|v| !v.is_null());
    if let Some(context) = context {
        errors.add(security_context(context, features).via("securityContext"));
    }
    if !features.secure_pod_defaults.is_on() {
        errors.add(warnings(pod));
    }
    let mounted: BTreeSet<&str> = pod
        .containers()
        .iter()
        .chain(pod.init_containers())
        .flat_map(|c| items(c, "volumeMounts"))
        .map(|mount| text(mount, "name"))
        .collect();
    errors.add(volumes::volumes(pod.volumes(), &mounted, features));
    errors.add(containers::init_containers(pod, features));
    errors.add(containers::containers(pod, features));
    let account = pod.service_account_name();
    if !account.is_empty() {
        for detail in checks::dns1123_subdomain(account) {
            errors.add(FieldErrors::invalid(account, "serviceAccountName").with_details(detail));
        }
    }
    errors
}

fn mask(pod: &PodSpecMap, features: &Features) -> FieldErrors {
    let mut paths = Vec::new();
    for (key, value) in &pod.0 {
        if !is_set(key, value) {
            continue;
        }
        let flag = match key.as_str() {
            "affinity" => features.podspec_affinity,
            "topologySpreadConstraints" => features.podspec_topology_spread_constraints,
            "hostAliases" => features.podspec_host_aliases,
            "nodeSelector" => features.podspec_node_selector,
            "runtimeClassName" => features.podspec_runtime_class_name,
            "tolerations" => features.podspec_tolerations,
            "shareProcessNamespace" => features.podspec_share_process_namespace,
            "priorityClassName" => features.podspec_priority_class_name,
            "schedulerName" => features.podspec_scheduler_name,
            "initContainers" => features.podspec_init_containers,
            "dnsPolicy" => features.podspec_dns_policy,
            "dnsConfig" => features.podspec_dns_config,
            "hostIPC" => features.podspec_host_ipc,
            "hostPID" => features.podspec_host_pid,
            "hostNetwork" => features.podspec_host_network,
            "securityContext" if features.secure_pod_defaults.is_on() => continue,
            "securityContext" => features.podspec_security_context,
            "automountServiceAccountToken" if value == &Value::Bool(true) => {
                paths.push(key.as_str());
                continue;
            }
            never if NEVER.contains(&never) => {
                paths.push(never);
                continue;
            }
            _ => continue,
        };
        if !flag.is_permitted() {
            paths.push(key);
        }
    }
    FieldErrors::disallowed(&paths)
}

const POD_SECURITY: &[&str] = &[
    "appArmorProfile",
    "fsGroup",
    "fsGroupChangePolicy",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seLinuxChangePolicy",
    "seLinuxOptions",
    "seccompProfile",
    "supplementalGroups",
    "supplementalGroupsPolicy",
    "sysctls",
    "windowsOptions",
];

fn security_context(context: &Value, features: &Features) -> FieldErrors {
    let Some(map) = context.as_object() else { return FieldErrors::none() };
    let mut errors = fields::mask(map, POD_SECURITY, |key| {
        if features.podspec_security_context.is_permitted() {
            return ["runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "seccompProfile"]
                .contains(&key);
        }
        let profile = &context["seccompProfile"];
        features.secure_pod_defaults.is_on()
            && key == "seccompProfile"
            && ["RuntimeDefault", "Unconfined"].contains(&text(profile, "type"))
            && profile["localhostProfile"].is_null()
    });
    errors.add(ids(context, &["runAsUser", "runAsGroup", "fsGroup"]));
    for (i, group) in items(context, "supplementalGroups").iter().filter_map(Value::as_i64).enumerate() {
        if !(0..=MAX_ID).contains(&group) {
            errors.add(FieldErrors::out_of_range(group, 0, MAX_ID, "").via_index("supplementalGroups", i));
        }
    }
    errors
}

pub(super) fn ids(context: &Value, keys: &[&str]) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for key in keys {
        if let Some(id) = context[*key].as_i64().filter(|id| !(0..=MAX_ID).contains(id)) {
            errors.add(FieldErrors::out_of_range(id, 0, MAX_ID, key));
        }
    }
    errors
}

/// What Kubernetes leaves open and a later version may close. Merges to one warning.
fn warnings(pod: &PodSpecMap) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let empty = Value::Null;
    let pod_context = pod.0.get("securityContext").unwrap_or(&empty);
    for (field, list) in [("containers", pod.containers()), ("initContainers", pod.init_containers())] {
        for (i, container) in list.iter().enumerate() {
            let context = &container["securityContext"];
            let mut paths = Vec::new();
            if context["runAsNonRoot"].is_null() && pod_context["runAsNonRoot"].is_null() {
                paths.push("runAsNonRoot");
            }
            if context["allowPrivilegeEscalation"].is_null() {
                paths.push("allowPrivilegeEscalation");
            }
            let (own, inherited) = (&context["seccompProfile"], &pod_context["seccompProfile"]);
            if own.is_null() && inherited.is_null() {
                paths.push("seccompProfile");
            } else if text(own, "type").is_empty() && text(inherited, "type").is_empty() {
                paths.push("seccompProfile.type");
            }
            let capabilities = &context["capabilities"];
            let mut own = FieldErrors::none();
            if capabilities.is_null() {
                paths.push("capabilities");
            } else if items(capabilities, "drop").is_empty() {
                paths.push("capabilities.drop");
            } else if items(capabilities, "drop")[0] == "all" {
                own.add(FieldErrors::invalid("all", "capabilities.drop").with_details("Must be spelled as 'ALL'"));
            }
            if !paths.is_empty() {
                own.add(FieldErrors::new(
                    "Kubernetes default value is insecure, Knative may default this to secure in a future release",
                    &paths,
                ));
            }
            errors.add(own.via("securityContext").via_index(field, i).as_warning());
        }
    }
    errors
}
