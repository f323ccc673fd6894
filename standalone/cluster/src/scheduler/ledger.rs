//! What the pods of each node have been promised.

use std::collections::{BTreeMap, HashMap};

use controller::ObjectKey;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::milli;

/// Thousandths by resource name; "pods" is one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Requests(pub(crate) BTreeMap<String, i128>);

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pods: HashMap<ObjectKey, (String, Requests)>,
    nodes: HashMap<String, Requests>,
}

// === impl Requests ===

impl Requests {
    /// What the pod needs at its hungriest: containers and sidecars together, or one init container beside the
    /// sidecars started before it.
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let mut total = Self::default();
        for container in &spec.containers {
            total.add(&Self::of_container(container), 1);
        }
        let mut sidecars = Self::default();
        let mut peak = Self::default();
        for init in spec.init_containers.iter().flatten() {
            let own = Self::of_container(init);
            if init.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&own, 1);
                peak.raise(&sidecars);
            } else {
                let mut now = sidecars.clone();
                now.add(&own, 1);
                peak.raise(&now);
            }
        }
        total.add(&sidecars, 1);
        total.raise(&peak);
        total.add(&Self::of_quantities(spec.overhead.as_ref()), 1);
        total.0.insert("pods".to_owned(), 1000);
        total
    }

    pub(crate) fn of_quantities(quantities: Option<&BTreeMap<String, Quantity>>) -> Self {
        let each = quantities.into_iter().flatten();
        Self(each.filter_map(|(name, quantity)| Some((name.clone(), milli(&quantity.0)?))).collect())
    }

    /// A limit without a request is a request.
    fn of_container(container: &Container) -> Self {
        let resources = container.resources.as_ref();
        let mut requests = Self::of_quantities(resources.and_then(|r| r.limits.as_ref()));
        requests.0.extend(Self::of_quantities(resources.and_then(|r| r.requests.as_ref())).0);
        requests
    }

    fn add(&mut self, other: &Self, sign: i128) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() += sign * amount;
        }
    }

    fn raise(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let own = self.0.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }
}

// === impl Ledger ===

impl Ledger {
    pub(crate) fn assign(&mut self, key: &ObjectKey, node: &str, requests: Requests) {
        if self.pods.get(key).is_some_and(|(on, before)| on == node && *before == requests) {
            return;
        }
        self.release(key);
        self.nodes.entry(node.to_owned()).or_default().add(&requests, 1);
        self.pods.insert(key.clone(), (node.to_owned(), requests));
    }

    /// Whether there was something to release.
    pub(crate) fn release(&mut self, key: &ObjectKey) -> bool {
        let Some((node, requests)) = self.pods.remove(key) else { return false };
        if let Some(used) = self.nodes.get_mut(&node) {
            used.add(&requests, -1);
        }
        true
    }

    pub(crate) fn used(&self, node: &str, resource: &str) -> i128 {
        self.nodes.get(node).and_then(|used| used.0.get(resource)).copied().unwrap_or(0)
    }
}
