//! What to write for a Deployment, given its ReplicaSets.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::ResourceExt;
use serde_json::{Map, Value, json};

use super::rolling::{Bounds, Size, proportional, replicas};
use super::{DESIRED, HASH_LABEL, MAX, REVISION, REVISION_HISTORY, conditions, template};

/// Everything to write, in this order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) create: Option<ReplicaSet>,
    pub(crate) edits: Vec<Edit>,
    /// The Deployment's own revision annotation, if it is to change.
    pub(crate) revision: Option<String>,
    /// ReplicaSets beyond the history limit: name and uid.
    pub(crate) delete: Vec<(String, String)>,
    pub(crate) events: Vec<String>,
    pub(crate) status: DeploymentStatus,
    /// Look again after this long even if nothing happens: the progress deadline.
    pub(crate) recheck: Option<Duration>,
}

/// A change of one ReplicaSet.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Edit {
    pub(crate) name: String,
    pub(crate) replicas: Option<i32>,
    pub(crate) min_ready_seconds: Option<i32>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// Set while several ReplicaSets share the replicas: sizes computed from old numbers must not be written then.
    pub(crate) resource_version: Option<String>,
}

/// The ReplicaSets in their roles.
struct Roles<'a> {
    deployment: &'a Deployment,
    spec: &'a DeploymentSpec,
    bounds: Bounds,
    /// Oldest first.
    old: Vec<&'a ReplicaSet>,
    new: Option<&'a ReplicaSet>,
}

/// See the module documentation.
pub(crate) fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], now: &Time) -> Plan {
    let Some(spec) = deployment.spec.as_ref() else { return Plan::default() };
    let roles = Roles::new(deployment, spec, sets);
    let mut plan = Plan::default();
    if deployment.metadata.deletion_timestamp.is_some() {
        plan.status = conditions::counts(deployment, &roles.all(), roles.new, now);
        return plan;
    }
    if spec.paused == Some(true) || roles.is_resized() {
        roles.resize(&mut plan);
        plan.status = conditions::counts(deployment, &roles.all(), roles.new, now);
        conditions::pause(deployment, &mut plan.status, now);
        return plan;
    }
    roles.roll(&mut plan, now);
    conditions::pause(deployment, &mut plan.status, now);
    plan
}

// === impl Edit ===

impl Edit {
    pub(crate) fn patch(&self) -> Value {
        let mut meta = Map::new();
        if !self.annotations.is_empty() {
            meta.insert("annotations".into(), json!(self.annotations));
        }
        if let Some(version) = &self.resource_version {
            meta.insert("resourceVersion".into(), json!(version));
        }
        let mut spec = Map::new();
        if let Some(replicas) = self.replicas {
            spec.insert("replicas".into(), json!(replicas));
        }
        if let Some(seconds) = self.min_ready_seconds {
            spec.insert("minReadySeconds".into(), json!(seconds));
        }
        json!({"metadata": meta, "spec": spec})
    }

    fn is_empty(&self) -> bool {
        self.replicas.is_none() && self.min_ready_seconds.is_none() && self.annotations.is_empty()
    }
}

// === impl Roles ===

impl<'a> Roles<'a> {
    fn new(deployment: &'a Deployment, spec: &'a DeploymentSpec, sets: &'a [Arc<ReplicaSet>]) -> Self {
        let mut sorted: Vec<&ReplicaSet> = sets.iter().map(|set| &**set).collect();
        sorted.sort_by_key(|set| (set.metadata.creation_timestamp.clone(), set.name_any()));
        let current = |set: &&ReplicaSet| {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            template.is_some_and(|t| template::same(t, &spec.template))
        };
        let new = sorted.iter().copied().find(current);
        let old = sorted.into_iter().filter(|set| new.is_none_or(|new| !std::ptr::eq(*set, new))).collect();
        Self { deployment, spec, bounds: Bounds::of(deployment), old, new }
    }

    fn all(&self) -> Vec<&'a ReplicaSet> {
        self.old.iter().copied().chain(self.new).collect()
    }

    fn active(&self) -> Vec<&'a ReplicaSet> {
        self.all().into_iter().filter(|set| replicas(set) > 0).collect()
    }

    /// The wanted number changed since the ReplicaSets were last sized.
    fn is_resized(&self) -> bool {
        self.active().iter().any(|set| {
            let desired = set.annotations().get(DESIRED).and_then(|desired| desired.parse::<i32>().ok());
            desired.is_some_and(|desired| desired != self.bounds.replicas)
        })
    }

    fn resize(&self, plan: &mut Plan) {
        let active = self.active();
        let only = match active[..] {
            [] => self.new.or(self.old.last().copied()),
            [only] => Some(only),
            _ => None,
        };
        if let Some(only) = only {
            self.scale(plan, only, self.bounds.replicas);
            return;
        }
        if self.new.is_some_and(|new| self.is_saturated(new)) {
            for old in &self.old {
                self.scale(plan, old, 0);
            }
            return;
        }
        let mut active = active;
        let growing =
            active.iter().map(|set| replicas(set)).sum::<i32>() < self.bounds.replicas + self.bounds.max_surge;
        // The largest takes what rounding leaves over; among equals the newest when growing, the oldest otherwise.
        if growing {
            active.reverse();
        }
        active.sort_by_key(|set| std::cmp::Reverse(replicas(set)));
        for (set, size) in active.iter().zip(proportional(self.deployment, &self.bounds, &active)) {
            self.scale(plan, set, size);
        }
    }

    fn is_saturated(&self, set: &ReplicaSet) -> bool {
        let desired = set.annotations().get(DESIRED).and_then(|desired| desired.parse::<i32>().ok());
        let available = set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
        replicas(set) == self.bounds.replicas
            && desired == Some(self.bounds.replicas)
            && available == self.bounds.replicas
    }

    fn roll(&self, plan: &mut Plan, now: &Time) {
        let recreate = self.spec.strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("Recreate"));
        let revision = self.revision();
        let mut created = None;
        let old_pods = self.old.iter().any(|set| {
            replicas(set) > 0 || set.status.as_ref().is_some_and(|s| s.replicas > 0 || s.terminating_replicas > Some(0))
        });
        match self.new {
            _ if recreate && old_pods => {
                for old in &self.old {
                    self.scale(plan, old, 0);
                }
            }
            None => {
                let set = self.new_set(&revision);
                let size = replicas(&set);
                if size > 0 {
                    plan.events.push(format!("Scaled up replica set {} from 0 to {size}", set.name_any()));
                }
                created = Some(set);
            }
            Some(new) => self.update(plan, new, &revision),
        }
        if created.is_some() || self.new.is_some() {
            plan.revision = (self.deployment.annotations().get(REVISION) != Some(&revision)).then_some(revision);
        }
        let scaled = plan.edits.iter().any(|edit| edit.replicas.is_some());
        if created.is_none() && !scaled && !recreate {
            self.shrink(plan);
        }

        let new = created.as_ref().or(self.new);
        let all: Vec<&ReplicaSet> = self.old.iter().copied().chain(new).collect();
        plan.status = conditions::counts(self.deployment, &all, new, now);
        if let Some(new) = new {
            conditions::introduced(self.deployment, &new.name_any(), created.is_some(), &mut plan.status, now);
        }
        plan.recheck = conditions::progress(self.deployment, new, &mut plan.status, now);
        conditions::replica_failure(&all, new, &mut plan.status);
        if conditions::complete(self.deployment, &plan.status) {
            self.clean_up(plan);
        }
        plan.create = created;
    }

    /// Sizes the ReplicaSet of the current template and keeps what it copies from the Deployment.
    fn update(&self, plan: &mut Plan, new: &ReplicaSet, revision: &str) {
        let total = self.all().iter().map(|set| replicas(set)).sum();
        let size = self.bounds.grow_new(self.size(new), total);
        let mut edit = self.resized(plan, new, size);
        for (key, value) in self.annotations() {
            if new.annotations().get(&key) != Some(&value) {
                edit.annotations.insert(key, value);
            }
        }
        let before = new.annotations().get(REVISION);
        if before.is_none_or(|before| number(before) < number(revision)) {
            edit.annotations.insert(REVISION.to_owned(), revision.to_owned());
            if let Some(before) = before {
                let history = new.annotations().get(REVISION_HISTORY).filter(|history| !history.is_empty());
                let history = history.map_or_else(|| before.clone(), |history| format!("{history},{before}"));
                edit.annotations.insert(REVISION_HISTORY.to_owned(), history);
            }
        }
        let seconds = self.spec.min_ready_seconds.unwrap_or(0);
        if new.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0) != seconds {
            edit.min_ready_seconds = Some(seconds);
        }
        self.push(plan, edit);
    }

    fn shrink(&self, plan: &mut Plan) {
        let Some(new) = self.new else { return };
        let active: Vec<&ReplicaSet> = self.old.iter().copied().filter(|set| replicas(set) > 0).collect();
        let sizes: Vec<Size> = active.iter().map(|set| self.size(set)).collect();
        for (set, size) in active.iter().zip(self.bounds.shrink_old(&sizes, self.size(new))) {
            if size != replicas(set) {
                self.scale(plan, set, size);
            }
        }
    }

    fn clean_up(&self, plan: &mut Plan) {
        let Some(limit) = self.spec.revision_history_limit else { return };
        let mut old: Vec<&ReplicaSet> =
            self.old.iter().copied().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|set| set.annotations().get(REVISION).map_or(0, |revision| number(revision)));
        for set in old.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let idle = status.replicas == 0 && replicas(set) == 0;
            if idle && status.observed_generation >= set.metadata.generation {
                plan.delete.push((set.name_any(), set.uid().unwrap_or_default()));
            }
        }
    }

    fn scale(&self, plan: &mut Plan, set: &ReplicaSet, size: i32) {
        let edit = self.resized(plan, set, size);
        self.push(plan, edit);
    }

    fn resized(&self, plan: &mut Plan, set: &ReplicaSet, size: i32) -> Edit {
        let mut edit = Edit { name: set.name_any(), ..Edit::default() };
        let before = replicas(set);
        if before != size {
            edit.replicas = Some(size);
            let direction = if size > before { "up" } else { "down" };
            plan.events.push(format!("Scaled {direction} replica set {} from {before} to {size}", edit.name));
            if self.active().len() > 1 {
                edit.resource_version = set.metadata.resource_version.clone();
            }
        }
        for (key, value) in self.size_annotations() {
            if set.annotations().get(&key) != Some(&value) {
                edit.annotations.insert(key, value);
            }
        }
        edit
    }

    fn push(&self, plan: &mut Plan, edit: Edit) {
        if !edit.is_empty() {
            plan.edits.push(edit);
        }
    }

    fn size(&self, set: &ReplicaSet) -> Size {
        let available = set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
        Size { replicas: replicas(set), available }
    }

    /// One more than the largest revision of the other ReplicaSets.
    fn revision(&self) -> String {
        let largest = self.old.iter().filter_map(|set| set.annotations().get(REVISION)).map(|r| number(r)).max();
        let next = largest.unwrap_or(0) + 1;
        let own = self.new.and_then(|set| set.annotations().get(REVISION)).map_or(0, |revision| number(revision));
        next.max(own).to_string()
    }

    fn size_annotations(&self) -> [(String, String); 2] {
        let max = self.bounds.replicas + self.bounds.max_surge;
        [(DESIRED.to_owned(), self.bounds.replicas.to_string()), (MAX.to_owned(), max.to_string())]
    }

    /// The Deployment's annotations that its ReplicaSets carry too.
    fn annotations(&self) -> BTreeMap<String, String> {
        let own = [
            "kubectl.kubernetes.io/last-applied-configuration",
            REVISION,
            REVISION_HISTORY,
            DESIRED,
            MAX,
            "deprecated.deployment.rollback.to",
        ];
        let annotations = self.deployment.annotations().iter();
        annotations.filter(|(key, _)| !own.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn new_set(&self, revision: &str) -> ReplicaSet {
        let collisions = self.deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = template::hash(&self.spec.template, collisions);
        let template = template::labelled(&self.spec.template, &hash);
        let mut selector = self.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
        let mut annotations = self.annotations();
        annotations.extend(self.size_annotations());
        annotations.insert(REVISION.to_owned(), revision.to_owned());
        let total = self.old.iter().map(|set| replicas(set)).sum();
        let size = self.bounds.grow_new(Size { replicas: 0, available: 0 }, total);
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", self.deployment.name_any())),
                namespace: self.deployment.namespace(),
                labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
                annotations: Some(annotations),
                owner_references: Some(vec![controller::owner_reference(self.deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: self.spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        }
    }
}

fn number(revision: &str) -> i64 {
    revision.parse().unwrap_or(0)
}
