//! Several fleets of gateways on one control plane: which gateways belong together, and which Ingresses they carry.
//!
//! Upstream has one fleet that carries everything, and so has this unless `KOURIER_GATEWAYS` says more. There every
//! fleet names its gateways by node id, cluster or metadata (what its bootstrap says under `node`) and what it carries:
//! a visibility, an ingress class, labels, namespaces. What no fleet carries stays with the gateways that no fleet
//! names, so a fleet can be split off while everything else goes on as before.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    keys::networking::{CLUSTER_LOCAL_VISIBILITY, INGRESS_CLASS, KOURIER_INGRESS_CLASS},
    networking::v1alpha1::{Ingress, IngressRule},
};
use kube::ResourceExt;
use serde::Deserialize;
use xds::Node;

/// One fleet, as it is written in `KOURIER_GATEWAYS`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fleet {
    /// For logs and statuses.
    pub name: String,
    /// Which gateways; all of these must match. Without any, every gateway that no earlier fleet names.
    #[serde(default)]
    pub node: Match,
    /// Rules of this visibility only: `ExternalIP` or `ClusterLocal`.
    #[serde(default)]
    pub visibility: Option<Visibility>,
    /// The ingress class it serves, Kourier's if there is none.
    #[serde(default)]
    pub class: Option<String>,
    /// Labels an Ingress must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Namespaces of Ingresses; empty: all.
    #[serde(default)]
    pub namespaces: BTreeSet<String>,
    /// Where its Services are, and their names, as written into statuses; upstream's if not given.
    #[serde(default)]
    pub service_namespace: Option<String>,
    #[serde(default)]
    pub external_service: Option<String>,
    #[serde(default)]
    pub internal_service: Option<String>,
    /// It also carries what the other fleets do not.
    #[serde(skip)]
    rest: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Match {
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default)]
    pub cluster: Option<String>,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Visibility {
    #[serde(rename = "ExternalIP")]
    External,
    #[serde(rename = "ClusterLocal")]
    Local,
}

/// All fleets, in the order in which gateways look for theirs. There is always one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleets(Vec<Fleet>);

/// Which rules of an Ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Part {
    #[default]
    All,
    External,
    Local,
}

const REST: &str = "default";

// === impl Fleets ===

impl Default for Fleets {
    fn default() -> Self {
        Fleets(vec![Fleet { name: REST.to_owned(), rest: true, ..Fleet::default() }])
    }
}

impl Fleets {
    /// Reads `KOURIER_GATEWAYS`: a list, as YAML or JSON.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut fleets: Vec<Fleet> =
            serde_saphyr::from_str(text).map_err(|error| format!("it is no list of gateways: {error}"))?;
        let mut names = BTreeSet::new();
        for fleet in &fleets {
            if fleet.name.is_empty() || !names.insert(fleet.name.as_str()) {
                return Err(format!("the name {:?} is empty or given twice", fleet.name));
            }
        }
        if !fleets.iter().any(|fleet| fleet.node.is_empty()) {
            if names.contains(REST) {
                return Err(format!("{REST:?} is the name of the gateways without a fleet; choose another"));
            }
            fleets.extend(Fleets::default().0);
        }
        Ok(Fleets(fleets))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Fleet> {
        self.0.iter()
    }

    /// The fleet of a gateway. A gateway that no fleet names gets the last one's view, as upstream knows no others.
    pub fn of_node(&self, node: &Node) -> usize {
        self.0.iter().position(|fleet| fleet.node.matches(node)).unwrap_or(self.0.len() - 1)
    }

    /// Whether an Ingress is of a class that a fleet serves.
    pub fn serve(&self, ingress: &Ingress) -> bool {
        let class = ingress.annotations().get(INGRESS_CLASS);
        class.is_some_and(|class| self.0.iter().any(|fleet| fleet.class() == class))
    }

    /// Which rules of an Ingress each fleet carries.
    pub fn parts(&self, ingress: &Ingress) -> Vec<Option<Part>> {
        let rules = &ingress.spec.rules;
        let has = |part: Part| rules.iter().any(|rule| part.has(rule));
        let (mut external, mut local) = (has(Part::External), has(Part::Local));
        let chosen: Vec<bool> = self.0.iter().map(|fleet| !fleet.rest && fleet.selects(ingress)).collect();
        let mut parts: Vec<Option<Part>> = Vec::with_capacity(self.0.len());
        for (fleet, chosen) in self.0.iter().zip(&chosen) {
            let part = chosen.then(|| fleet.part());
            // Without rules of its visibility there is nothing for a fleet to carry.
            parts.push(part.filter(|part| *part == Part::All || has(*part)));
        }
        for part in parts.iter().flatten() {
            external &= *part == Part::Local;
            local &= *part == Part::External;
        }
        let nobodys = !chosen.contains(&true);
        let rest = match (external, local) {
            _ if nobodys => Some(Part::All),
            (true, true) => Some(Part::All),
            (true, false) => Some(Part::External),
            (false, true) => Some(Part::Local),
            (false, false) => None,
        };
        for (fleet, part) in self.0.iter().zip(&mut parts).filter(|(fleet, _)| fleet.rest) {
            *part = rest.filter(|_| fleet.selects(ingress));
        }
        parts
    }
}

// === impl Fleet ===

impl Fleet {
    fn class(&self) -> &str {
        self.class.as_deref().unwrap_or(KOURIER_INGRESS_CLASS)
    }

    fn part(&self) -> Part {
        match self.visibility {
            None => Part::All,
            Some(Visibility::External) => Part::External,
            Some(Visibility::Local) => Part::Local,
        }
    }

    fn selects(&self, ingress: &Ingress) -> bool {
        let labels = ingress.labels();
        ingress.annotations().get(INGRESS_CLASS).is_some_and(|class| class == self.class())
            && self.labels.iter().all(|(name, value)| labels.get(name) == Some(value))
            && (self.namespaces.is_empty() || ingress.namespace().is_some_and(|own| self.namespaces.contains(&own)))
    }
}

// === impl Match ===

impl Match {
    fn is_empty(&self) -> bool {
        *self == Match::default()
    }

    fn matches(&self, node: &Node) -> bool {
        self.id.as_ref().is_none_or(|id| *id == node.id)
            && self.cluster.as_ref().is_none_or(|cluster| *cluster == node.cluster)
            && self.metadata.iter().all(|(name, value)| node.metadata.get(name) == Some(value))
    }
}

// === impl Part ===

impl Part {
    pub fn has(self, rule: &IngressRule) -> bool {
        match self {
            Part::All => true,
            Part::Local => rule.visibility == CLUSTER_LOCAL_VISIBILITY,
            Part::External => rule.visibility != CLUSTER_LOCAL_VISIBILITY,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ingress(class: &str, team: &str, visibilities: &[&str]) -> Ingress {
        let rules: Vec<_> = visibilities.iter().map(|v| json!({"hosts": [v], "visibility": v})).collect();
        serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": "a", "namespace": "default", "labels": {"team": team},
                "annotations": {INGRESS_CLASS: class}},
            "spec": {"rules": rules},
        }))
        .unwrap()
    }

    fn node(id: &str, tenant: &str) -> Node {
        let metadata = [("tenant".to_owned(), tenant.to_owned())].into();
        Node { id: id.to_owned(), cluster: "kourier-knative".to_owned(), metadata }
    }

    const BOTH: &[&str] = &["ExternalIP", "ClusterLocal"];

    #[test]
    fn one_fleet_carries_everything_for_everybody() {
        let fleets = Fleets::default();
        assert_eq!(fleets.of_node(&node("3scale-kourier-gateway", "")), 0);
        assert_eq!(fleets.of_node(&node("whatever", "")), 0);
        assert_eq!(fleets.parts(&ingress(KOURIER_INGRESS_CLASS, "", BOTH)), [Some(Part::All)]);
        assert!(fleets.serve(&ingress(KOURIER_INGRESS_CLASS, "", &[])));
        assert!(!fleets.serve(&ingress("istio.ingress.networking.knative.dev", "", &[])));
    }

    #[test]
    fn a_visibility_is_split_off() {
        let fleets = Fleets::parse("[{name: inside, node: {id: inside}, visibility: ClusterLocal}]").unwrap();
        assert_eq!((fleets.of_node(&node("inside", "")), fleets.of_node(&node("3scale-kourier-gateway", ""))), (0, 1));
        let parts = |visibilities| fleets.parts(&ingress(KOURIER_INGRESS_CLASS, "", visibilities));
        assert_eq!(parts(BOTH), [Some(Part::Local), Some(Part::External)]);
        assert_eq!(parts(&["ClusterLocal"]), [Some(Part::Local), None]);
        assert_eq!(parts(&["ExternalIP"]), [None, Some(Part::External)]);
        // Defaulted later: no visibility is the external one.
        assert_eq!(parts(&[""]), [None, Some(Part::External)]);
    }

    #[test]
    fn tenants_by_label_and_class() {
        let fleets = Fleets::parse(
            r#"[{"name": "blue", "node": {"metadata": {"tenant": "blue"}}, "labels": {"team": "blue"}},
                {"name": "own", "node": {"id": "own", "cluster": "kourier-knative"}, "class": "own.example.com"}]"#,
        )
        .unwrap();
        assert_eq!(fleets.of_node(&node("3scale-kourier-gateway", "blue")), 0);
        assert_eq!(fleets.of_node(&node("own", "red")), 1);
        assert_eq!(fleets.of_node(&node("3scale-kourier-gateway", "red")), 2);
        assert_eq!(fleets.parts(&ingress(KOURIER_INGRESS_CLASS, "blue", BOTH)), [Some(Part::All), None, None]);
        assert_eq!(fleets.parts(&ingress(KOURIER_INGRESS_CLASS, "red", BOTH)), [None, None, Some(Part::All)]);
        assert_eq!(fleets.parts(&ingress("own.example.com", "blue", BOTH)), [None, Some(Part::All), None]);
        assert!(fleets.serve(&ingress("own.example.com", "", BOTH)));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("{", "no list of gateways"),
            ("[{name: a, nodes: {}}]", "nodes"),
            ("[{name: a}, {name: a}]", "given twice"),
            ("[{name: a, visibility: Public}]", "Public"),
            ("[{name: default, node: {id: x}}]", "choose another"),
        ] {
            let error = Fleets::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
