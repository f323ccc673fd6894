//! Whether a pod fits a node, and the sentence that tells why not.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint};
use kube::ResourceExt;

use super::ledger::{Ledger, Requests};

/// The first node that takes the pod, or the message for its condition.
pub(crate) fn choose(nodes: &[Arc<Node>], ledger: &Ledger, pod: &Pod, requests: &Requests) -> Result<String, String> {
    let Some(spec) = pod.spec.as_ref() else { return Err("the pod has no spec".to_owned()) };
    if nodes.is_empty() {
        return Err("no nodes available to schedule pods".to_owned());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes {
        let refused = refusals(node, ledger, spec, requests);
        if refused.is_empty() {
            return Ok(node.name_any());
        }
        for reason in refused {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    let mut reasons: Vec<String> = reasons.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    Err(format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", ")))
}

fn refusals(node: &Node, ledger: &Ledger, spec: &PodSpec, requests: &Requests) -> Vec<String> {
    if node.spec.as_ref().is_some_and(|s| s.unschedulable == Some(true)) && !tolerates(spec, &cordoned()) {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_ref()).into_iter().flatten();
    let untolerated = taints.filter(|taint| taint.effect != "PreferNoSchedule").any(|taint| !tolerates(spec, taint));
    if untolerated {
        return vec!["node(s) had untolerated taint(s)".to_owned()];
    }
    if !selected(node, spec) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
    let allocatable = Requests::of_quantities(allocatable);
    let mut refused = Vec::new();
    for (resource, wanted) in &requests.0 {
        let Some(total) = allocatable.0.get(resource) else {
            // A node that does not count pods or storage takes any; an unknown device it does not have.
            let counted = resource.contains('/') || resource.starts_with("hugepages-");
            if counted && *wanted > 0 {
                refused.push(format!("Insufficient {resource}"));
            }
            continue;
        };
        if *wanted > 0 && ledger.used(&node.name_any(), resource) + wanted > *total {
            refused.push(if resource == "pods" {
                "Too many pods".to_owned()
            } else {
                format!("Insufficient {resource}")
            });
        }
    }
    refused
}

fn selected(node: &Node, spec: &PodSpec) -> bool {
    let labels = node.labels();
    if !spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(node, term)))
}

fn term_matches(node: &Node, term: &NodeSelectorTerm) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    let name = node.name_any();
    labels.iter().all(|r| requirement_matches(r, node.labels().get(&r.key).map(String::as_str)))
        && fields.iter().all(|r| r.key == "metadata.name" && requirement_matches(r, Some(&name)))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|v| v == value));
    let compare = |test: fn(&i64, &i64) -> bool| {
        let own = value.and_then(|value| value.parse::<i64>().ok());
        let bound = values.first().and_then(|bound| bound.parse::<i64>().ok());
        own.zip(bound).is_some_and(|(own, bound)| test(&own, &bound))
    };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

fn tolerates(spec: &PodSpec, taint: &Taint) -> bool {
    spec.tolerations.iter().flatten().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || (key.is_empty() && exists))
            && (exists || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
    })
}

fn cordoned() -> Taint {
    Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use controller::ObjectKey;
    use serde_json::{Value, json};

    fn node(spec: Value) -> Vec<Arc<Node>> {
        let node = json!({
            "metadata": {"name": "box", "labels": {"disk": "fast"}},
            "spec": spec,
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}},
        });
        vec![Arc::new(serde_json::from_value(node).unwrap())]
    }

    fn pod(cpu: &str, memory: &str, more: Value) -> Pod {
        let resources = json!({"requests": {"cpu": cpu, "memory": memory}});
        let mut spec = json!({"containers": [{"name": "c", "resources": resources}]});
        spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn choose_on(nodes: &[Arc<Node>], ledger: &Ledger, pod: &Pod) -> Result<String, String> {
        choose(nodes, ledger, pod, &Requests::of(pod.spec.as_ref().unwrap()))
    }

    #[test]
    fn a_pod_that_is_too_large_is_told_what_is_missing() {
        let nodes = node(json!({}));
        let ledger = Ledger::default();
        let message = choose_on(&nodes, &ledger, &pod("3", "1Mi", json!({}))).unwrap_err();
        assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu.");
        let message = choose_on(&nodes, &ledger, &pod("3", "2Gi", json!({}))).unwrap_err();
        assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.");
        assert_eq!(choose_on(&nodes, &ledger, &pod("2", "1Gi", json!({}))), Ok("box".into()));
    }

    #[test]
    fn what_others_have_is_not_given_twice_and_comes_back() {
        let nodes = node(json!({}));
        let mut ledger = Ledger::default();
        let large = pod("1500m", "1Mi", json!({}));
        let other = ObjectKey::new("ns", "other");
        ledger.assign(&other, "box", Requests::of(large.spec.as_ref().unwrap()));
        assert!(choose_on(&nodes, &ledger, &large).is_err());
        assert!(ledger.release(&other));
        assert!(choose_on(&nodes, &ledger, &large).is_ok());
        for name in ["a", "b"] {
            let tiny = pod("1m", "1", json!({}));
            ledger.assign(&ObjectKey::new("ns", name), "box", Requests::of(tiny.spec.as_ref().unwrap()));
        }
        let message = choose_on(&nodes, &ledger, &pod("1m", "1", json!({}))).unwrap_err();
        assert_eq!(message, "0/1 nodes are available: 1 Too many pods.");
    }

    #[test]
    fn labels_taints_and_no_node_at_all() {
        let ledger = Ledger::default();
        let slow = pod("1m", "1", json!({"nodeSelector": {"disk": "slow"}}));
        let message = choose_on(&node(json!({})), &ledger, &slow).unwrap_err();
        assert_eq!(message, "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.");
        let tainted = node(json!({"taints": [{"key": "a", "value": "b", "effect": "NoSchedule"}]}));
        assert!(choose_on(&tainted, &ledger, &pod("1m", "1", json!({}))).is_err());
        let tolerant = pod("1m", "1", json!({"tolerations": [{"key": "a", "value": "b"}]}));
        assert!(choose_on(&tainted, &ledger, &tolerant).is_ok());
        assert_eq!(choose_on(&[], &ledger, &slow).unwrap_err(), "no nodes available to schedule pods");
    }
}
