//! Namespaces that are being deleted: their content goes first, then the `kubernetes` finalizer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use controller::{Context, Error, ObjectKey, Queue};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};

use crate::caches::Caches;
use crate::error::told;
use crate::gc::{Gc, Resource};
use crate::{names, write};

const FINALIZER: &str = "kubernetes";
/// In case an object leaves unseen; normally its going brings us back.
const RECHECK: Duration = Duration::from_secs(5);

struct Controller {
    client: Client,
    caches: Caches,
    gc: Arc<Gc>,
}

/// What is left in a namespace.
#[derive(Debug, Default)]
struct Remaining {
    /// By `plural.group`.
    objects: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
    failure: Option<String>,
}

pub(crate) fn start(ctx: &Context, caches: &Caches, gc: &Arc<Gc>) {
    let queue: Queue = Queue::new();
    let changed = queue.clone();
    caches.namespaces.on_event(move |change| {
        let namespace = change.object();
        if namespace.metadata.deletion_timestamp.is_some() && !change.is_deleted() {
            changed.add(ObjectKey::new("", namespace.name_any()));
        }
    });
    let changed = queue.clone();
    let namespaces = caches.namespaces.clone();
    gc.on_gone(move |name| {
        if namespaces.get("", name).is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
            changed.add(ObjectKey::new("", name));
        }
    });
    let controller = Arc::new(Controller { client: ctx.client.clone(), caches: caches.clone(), gc: gc.clone() });
    queue.run(&ctx.tasks, "namespace", 2, move |key| {
        let controller = controller.clone();
        async move { told("namespace", &key, controller.sync(&key.name).await) }
    });
}

// === impl Controller ===

impl Controller {
    async fn sync(&self, name: &str) -> Result<(), Error> {
        let Some(namespace) = self.caches.namespaces.get("", name) else { return Ok(()) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || !finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(());
        }
        let all = self.gc.resources.all();
        if all.is_empty() {
            return Err(Error::RequeueAfter(Duration::from_millis(50)));
        }
        let mut remaining = Remaining::default();
        for resource in all.iter().filter(|r| r.namespaced && r.verbs.list && r.verbs.delete) {
            if let Err(error) = self.empty(resource, name, &mut remaining).await {
                remaining.failure.get_or_insert_with(|| error.to_string());
            }
        }
        if remaining.objects.is_empty() && remaining.failure.is_none() {
            return self.finalize(&namespace, &finalizers).await;
        }
        let old = namespace.status.clone().unwrap_or_default();
        let new = status(&old, &remaining, &names::now());
        match write::status(&write::cluster_api::<Namespace>(&self.client), name, &old, &new).await {
            Err(error) if !controller::error::is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
        match remaining.failure {
            Some(failure) => Err(Error::retry(format!("namespace {name}: {failure}"))),
            None => Err(Error::RequeueAfter(RECHECK)),
        }
    }

    async fn empty(&self, resource: &Resource, namespace: &str, remaining: &mut Remaining) -> Result<(), kube::Error> {
        let api = resource.api(&self.client, namespace);
        let everything = ListParams::default();
        let present = api.list_metadata(&everything).await?;
        if present.items.is_empty() {
            return Ok(());
        }
        // What is on its way out is not told again.
        if present.items.iter().any(|object| object.metadata.deletion_timestamp.is_none()) {
            let background = DeleteParams::background();
            if resource.verbs.delete_collection {
                api.delete_collection(&background, &everything).await?;
            } else {
                for object in &present.items {
                    match api.delete(&object.name_any(), &background).await {
                        Err(error) if !controller::error::is_not_found(&error) => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        let left = api.list_metadata(&everything).await?;
        if !left.items.is_empty() {
            let api = &resource.api;
            let name = if api.group.is_empty() { api.plural.clone() } else { format!("{}.{}", api.plural, api.group) };
            remaining.objects.insert(name, left.items.len());
            for finalizer in left.items.iter().flat_map(|object| object.metadata.finalizers.iter().flatten()) {
                *remaining.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        Ok(())
    }

    async fn finalize(&self, namespace: &Namespace, finalizers: &[String]) -> Result<(), Error> {
        let mut finalized = namespace.clone();
        let left: Vec<String> = finalizers.iter().filter(|name| *name != FINALIZER).cloned().collect();
        finalized.spec.get_or_insert_default().finalizers = Some(left);
        let api: kube::Api<Namespace> = kube::Api::all(self.client.clone());
        match api.replace_subresource("finalize", &namespace.name_any(), &PostParams::default(), &finalized).await {
            Err(error) if controller::error::is_not_found(&error) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}

fn status(old: &NamespaceStatus, remaining: &Remaining, now: &Time) -> NamespaceStatus {
    let objects = remaining.objects.iter().map(|(name, count)| format!("{name} has {count} resource instances"));
    let finalizers = remaining.finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances"));
    let (objects, finalizers) = (objects.collect::<Vec<_>>().join(", "), finalizers.collect::<Vec<_>>().join(", "));
    let mut conditions = vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        match &remaining.failure {
            None => condition(
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            Some(failure) => condition("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", failure),
        },
        if remaining.objects.is_empty() {
            condition("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed")
        } else {
            let message = format!("Some resources are remaining: {objects}");
            condition("NamespaceContentRemaining", true, "SomeResourcesRemain", &message)
        },
        if remaining.finalizers.is_empty() {
            let message = "All content-preserving finalizers finished";
            condition("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", message)
        } else {
            let message = format!("Some content in the namespace has finalizers remaining: {finalizers}");
            condition("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", &message)
        },
    ];
    for condition in &mut conditions {
        let before =
            old.conditions.iter().flatten().find(|c| c.type_ == condition.type_ && c.status == condition.status);
        let kept = before.and_then(|before| before.last_transition_time.clone());
        condition.last_transition_time = kept.or_else(|| Some(now.clone()));
    }
    NamespaceStatus { phase: Some("Terminating".into()), conditions: Some(conditions) }
}

fn condition(type_: &str, is_true: bool, reason: &str, message: &str) -> NamespaceCondition {
    NamespaceCondition {
        type_: type_.to_owned(),
        status: if is_true { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditions_name_what_is_left() {
        let remaining = Remaining {
            objects: [("pods".to_owned(), 2)].into(),
            finalizers: [("a.b/c".to_owned(), 1)].into(),
            failure: None,
        };
        let status = status(&NamespaceStatus::default(), &remaining, &names::now());
        let told: Vec<_> =
            status.conditions.unwrap().into_iter().filter(|c| c.status == "True").map(|c| c.message.unwrap()).collect();
        assert_eq!(
            told,
            [
                "Some resources are remaining: pods has 2 resource instances",
                "Some content in the namespace has finalizers remaining: a.b/c in 1 resource instances",
            ]
        );
    }
}
