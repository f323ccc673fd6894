//! Who owns whom, by uid, and what follows from it.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::Resource;

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
pub(crate) const ORPHAN: &str = "orphan";
/// Uids of deleted objects to remember, so that their dependents need not ask the API.
const REMEMBERED: usize = 8192;

/// What of an object matters here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) resource: Arc<Resource>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) owners: Vec<OwnerReference>,
    pub(crate) deleting: bool,
    pub(crate) foreground: bool,
    pub(crate) orphan: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<String, Node>,
    /// By owner uid, whether or not the owner is known.
    dependents: HashMap<String, BTreeSet<String>>,
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

/// What to do with one object now.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision {
    Nothing,
    /// The API must tell whether these owners exist; then decide again with what it told.
    Verify(Vec<OwnerReference>),
    /// All owners are gone.
    Delete(Propagation),
    /// Some owners are gone and others not.
    DropOwners(Vec<String>),
    /// In foreground deletion with nothing left that blocks it.
    Finish(&'static str),
    /// In orphaning deletion: these lose the reference first.
    Orphan(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

// === impl Node ===

impl Node {
    fn new(resource: &Arc<Resource>, meta: &ObjectMeta) -> Self {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        Self {
            resource: resource.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
        }
    }

    fn is_waiting(&self) -> bool {
        self.deleting && self.foreground
    }

    /// Goes only when its dependents have gone, or have let go of it.
    fn is_held(&self) -> bool {
        self.deleting && (self.foreground || self.orphan)
    }

    /// Whether the reference means this object and not another that had its uid once.
    fn is(&self, owner: &OwnerReference, namespace: &str) -> bool {
        self.name == owner.name
            && self.resource.kind() == owner.kind
            && (self.namespace.is_empty() || self.namespace == namespace)
    }
}

// === impl Graph ===

impl Graph {
    /// Takes in an object; returns the uids to look at.
    pub(crate) fn apply(&mut self, resource: &Arc<Resource>, meta: &ObjectMeta) -> Vec<String> {
        let new = Node::new(resource, meta);
        if new.uid.is_empty() {
            return Vec::new();
        }
        let old = self.nodes.get(&new.uid);
        if old == Some(&new) {
            return Vec::new();
        }
        let mut concerned = Vec::new();
        let old_owners: Vec<String> = old.into_iter().flat_map(|old| &old.owners).map(|o| o.uid.clone()).collect();
        let began = |now: bool, before: fn(&Node) -> bool| now && !old.is_some_and(before);
        if began(new.deleting && (new.foreground || new.orphan), |old| old.deleting && (old.foreground || old.orphan)) {
            concerned.push(new.uid.clone());
            concerned.extend(self.dependents.get(&new.uid).into_iter().flatten().cloned());
        }
        if old.is_none_or(|old| old.owners != new.owners) && !new.owners.is_empty() {
            concerned.push(new.uid.clone());
        }
        for owner in old_owners.iter().filter(|uid| !new.owners.iter().any(|owner| owner.uid == **uid)) {
            self.unlink(owner, &new.uid);
        }
        for owner in &new.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(new.uid.clone());
        }
        // An owner that waits for its dependents may have one less to wait for.
        concerned.extend(old_owners.into_iter().filter(|uid| self.nodes.get(uid).is_some_and(Node::is_held)));
        self.nodes.insert(new.uid.clone(), new);
        concerned
    }

    /// The object is gone; returns its namespace and the uids to look at, unless it was not known.
    pub(crate) fn remove(&mut self, uid: &str) -> Option<(String, Vec<String>)> {
        let node = self.nodes.remove(uid)?;
        self.remember(uid);
        let mut concerned: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            if self.nodes.get(&owner.uid).is_some_and(Node::is_held) {
                concerned.push(owner.uid.clone());
            }
        }
        Some((node.namespace, concerned))
    }

    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Uids of everything of one resource, for when the resource itself goes.
    pub(crate) fn of_resource(&self, resource: &Resource) -> Vec<String> {
        let nodes = self.nodes.values().filter(|node| *node.resource == *resource);
        nodes.map(|node| node.uid.clone()).collect()
    }

    /// `verified` tells of owners that the graph does not know whether the API does.
    pub(crate) fn decide(&self, uid: &str, verified: &HashMap<String, bool>) -> Decision {
        let Some(node) = self.nodes.get(uid) else { return Decision::Nothing };
        if node.deleting {
            return self.decide_deleting(node);
        }
        let (mut solid, mut gone, mut waiting, mut unknown) = (0, Vec::new(), Vec::new(), Vec::new());
        for owner in &node.owners {
            match self.nodes.get(&owner.uid).filter(|known| known.is(owner, &node.namespace)) {
                Some(known) if known.is_waiting() => waiting.push(owner.uid.clone()),
                Some(_) => solid += 1,
                None if self.gone.contains(&owner.uid) => gone.push(owner.uid.clone()),
                None => match verified.get(&owner.uid) {
                    Some(true) => solid += 1,
                    Some(false) => gone.push(owner.uid.clone()),
                    None => unknown.push(owner.clone()),
                },
            }
        }
        if !unknown.is_empty() {
            return Decision::Verify(unknown);
        }
        if solid > 0 {
            gone.extend(waiting);
            return if gone.is_empty() { Decision::Nothing } else { Decision::DropOwners(gone) };
        }
        if gone.is_empty() && waiting.is_empty() {
            return Decision::Nothing;
        }
        let has_dependents = self.dependents.get(uid).is_some_and(|dependents| !dependents.is_empty());
        Decision::Delete(match () {
            () if !waiting.is_empty() && has_dependents => Propagation::Foreground,
            () if node.orphan => Propagation::Orphan,
            () if node.foreground => Propagation::Foreground,
            () => Propagation::Background,
        })
    }

    fn decide_deleting(&self, node: &Node) -> Decision {
        let dependents = || self.dependents.get(&node.uid).into_iter().flatten().filter_map(|uid| self.nodes.get(uid));
        let reference = |dependent: &Node| dependent.owners.iter().find(|o| o.uid == node.uid).cloned();
        if node.orphan {
            let left: Vec<String> = dependents().map(|dependent| dependent.uid.clone()).collect();
            return if left.is_empty() { Decision::Finish(ORPHAN) } else { Decision::Orphan(left) };
        }
        if node.foreground {
            let blocked = dependents()
                .filter(|dependent| dependent.uid != node.uid)
                .any(|dependent| reference(dependent).is_some_and(|owner| owner.block_owner_deletion == Some(true)));
            return if blocked { Decision::Nothing } else { Decision::Finish(FOREGROUND) };
        }
        Decision::Nothing
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn remember(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        if self.gone_order.len() > REMEMBERED
            && let Some(oldest) = self.gone_order.pop_front()
        {
            self.gone.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn kind() -> Arc<Resource> {
        Arc::new(Resource::of::<ConfigMap>())
    }

    fn owner(uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: uid.into(),
            uid: uid.into(),
            controller: None,
            block_owner_deletion: Some(true),
        }
    }

    fn object(uid: &str, owners: &[&str], finalizer: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            name: Some(uid.into()),
            namespace: Some("ns".into()),
            uid: Some(uid.into()),
            owner_references: Some(owners.iter().map(|uid| owner(uid)).collect()),
            deletion_timestamp: finalizer.map(|_| crate::names::now()),
            finalizers: finalizer.map(|name| vec![name.to_owned()]),
            ..ObjectMeta::default()
        }
    }

    fn graph(objects: &[(&str, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        for (uid, owners) in objects {
            graph.apply(&kind(), &object(uid, owners, None));
        }
        graph
    }

    fn decide(graph: &Graph, uid: &str) -> Decision {
        graph.decide(uid, &HashMap::new())
    }

    #[test]
    fn an_owner_that_goes_takes_its_dependents_along() {
        let mut graph = graph(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]);
        assert_eq!(decide(&graph, "b"), Decision::Nothing);
        assert_eq!(graph.remove("a").unwrap().1, ["b"]);
        assert_eq!(decide(&graph, "b"), Decision::Delete(Propagation::Background));
        assert_eq!(decide(&graph, "c"), Decision::Nothing, "its owner is still there");
    }

    #[test]
    fn an_unknown_owner_is_asked_for_and_a_remaining_one_keeps_the_object() {
        let graph = graph(&[("a", &[]), ("b", &["a", "x"]), ("c", &["x"])]);
        assert_eq!(decide(&graph, "b"), Decision::Verify(vec![owner("x")]));
        let absent = HashMap::from([("x".to_owned(), false)]);
        assert_eq!(graph.decide("b", &absent), Decision::DropOwners(vec!["x".into()]));
        assert_eq!(graph.decide("c", &absent), Decision::Delete(Propagation::Background));
        let present = HashMap::from([("x".to_owned(), true)]);
        assert_eq!(graph.decide("c", &present), Decision::Nothing);
    }

    #[test]
    fn a_reference_into_another_namespace_is_not_that_object() {
        let mut graph = graph(&[("a", &[])]);
        let mut far = object("b", &["a"], None);
        far.namespace = Some("other".into());
        graph.apply(&kind(), &far);
        assert_eq!(decide(&graph, "b"), Decision::Verify(vec![owner("a")]));
    }

    #[test]
    fn foreground_goes_from_the_leaves_up() {
        let mut graph = graph(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]);
        let concerned = graph.apply(&kind(), &object("a", &[], Some(FOREGROUND)));
        assert_eq!(concerned, ["a", "b"]);
        assert_eq!(decide(&graph, "a"), Decision::Nothing);
        assert_eq!(decide(&graph, "b"), Decision::Delete(Propagation::Foreground));
        assert_eq!(graph.apply(&kind(), &object("b", &["a"], Some(FOREGROUND))), ["b", "c", "a"]);
        assert_eq!(decide(&graph, "c"), Decision::Delete(Propagation::Background));
        assert_eq!(graph.remove("c").unwrap().1, ["b"]);
        assert_eq!(decide(&graph, "b"), Decision::Finish(FOREGROUND));
        assert_eq!(graph.remove("b").unwrap().1, ["a"]);
        assert_eq!(decide(&graph, "a"), Decision::Finish(FOREGROUND));
    }

    #[test]
    fn orphans_lose_their_reference_before_the_owner_goes() {
        let mut graph = graph(&[("a", &[]), ("b", &["a"])]);
        graph.apply(&kind(), &object("a", &[], Some(ORPHAN)));
        assert_eq!(decide(&graph, "a"), Decision::Orphan(vec!["b".into()]));
        assert_eq!(graph.apply(&kind(), &object("b", &[], None)), ["a"]);
        assert_eq!(decide(&graph, "a"), Decision::Finish(ORPHAN));
        graph.remove("a");
        assert_eq!(decide(&graph, "b"), Decision::Nothing);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut graph = Graph::default();
        for n in 0..REMEMBERED + 10 {
            graph.apply(&kind(), &object(&n.to_string(), &[], None));
            graph.remove(&n.to_string());
        }
        assert_eq!((graph.gone.len(), graph.gone_order.len()), (REMEMBERED, REMEMBERED));
    }
}
