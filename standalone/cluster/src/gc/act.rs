//! Carrying out what the graph decided.

use std::collections::HashMap;

use controller::Error;
use controller::error::{is_conflict, is_not_found};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::Gc;
use super::graph::{Decision, Node, Propagation};

/// Rounds of asking for owners before the object is left for its next event.
const ROUNDS: usize = 3;

// === impl Gc ===

impl Gc {
    pub(super) async fn attempt(&self, uid: &str) -> Result<(), Error> {
        let mut verified = HashMap::new();
        for _ in 0..ROUNDS {
            let (decision, node) = {
                let graph = self.graph.lock();
                (graph.decide(uid, &verified), graph.get(uid).cloned())
            };
            let Some(node) = node else { return Ok(()) };
            match decision {
                Decision::Nothing => return Ok(()),
                Decision::Verify(owners) => {
                    // First: a list that completes while we ask brings us back.
                    self.unobserved.lock().insert(uid.to_owned());
                    for owner in owners {
                        let Some(exists) = self.exists(&owner, &node.namespace).await? else {
                            self.unresolved.lock().push(uid.to_owned());
                            return Ok(());
                        };
                        verified.insert(owner.uid, exists);
                    }
                }
                Decision::Delete(propagation) => return self.delete(&node, propagation).await,
                Decision::DropOwners(gone) => return self.drop_owners(&node, &gone).await,
                Decision::Finish(finalizer) => return self.drop_finalizer(&node, finalizer).await,
                Decision::Orphan(dependents) => {
                    for dependent in dependents {
                        let dependent = self.graph.lock().get(&dependent).cloned();
                        if let Some(dependent) = dependent {
                            self.drop_owners(&dependent, std::slice::from_ref(&node.uid)).await?;
                        }
                    }
                    // The graph sees the references go and brings us back here for the finalizer.
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether the API has the owner under this uid; none if it does not serve its kind.
    async fn exists(&self, owner: &OwnerReference, namespace: &str) -> Result<Option<bool>, Error> {
        let Some(resource) = self.resources.find(&owner.api_version, &owner.kind) else {
            tracing::debug!(kind = owner.kind, name = owner.name, "the owner's kind is not served; kept");
            return Ok(None);
        };
        if resource.namespaced && namespace.is_empty() {
            // A cluster-scoped object cannot be owned from within a namespace: nothing to conclude from that.
            return Ok(None);
        }
        let meta = resource.api(&self.client, namespace).get_metadata_opt(&owner.name).await?;
        Ok(Some(meta.is_some_and(|object| object.metadata.uid.as_deref() == Some(owner.uid.as_str()))))
    }

    async fn delete(&self, node: &Node, propagation: Propagation) -> Result<(), Error> {
        let params = match propagation {
            Propagation::Background => DeleteParams::background(),
            Propagation::Foreground => DeleteParams::foreground(),
            Propagation::Orphan => DeleteParams::orphan(),
        };
        let params = params.preconditions(Preconditions { uid: Some(node.uid.clone()), resource_version: None });
        match node.resource.api(&self.client, &node.namespace).delete(&node.name, &params).await {
            // Gone already, or another object by now.
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    async fn drop_owners(&self, node: &Node, gone: &[String]) -> Result<(), Error> {
        self.edit(node, |meta| {
            let owners = meta.owner_references.clone().unwrap_or_default();
            let left: Vec<_> = owners.iter().filter(|owner| !gone.contains(&owner.uid)).collect();
            (left.len() < owners.len()).then(|| json!({"ownerReferences": left}))
        })
        .await
    }

    async fn drop_finalizer(&self, node: &Node, finalizer: &str) -> Result<(), Error> {
        self.edit(node, |meta| {
            let finalizers = meta.finalizers.clone().unwrap_or_default();
            let left: Vec<_> = finalizers.iter().filter(|name| *name != finalizer).collect();
            (left.len() < finalizers.len()).then(|| json!({"finalizers": left}))
        })
        .await
    }

    /// Changes metadata of the object as it is now, unless it changes meanwhile.
    async fn edit(&self, node: &Node, change: impl Fn(&ObjectMeta) -> Option<Value>) -> Result<(), Error> {
        let api = node.resource.api(&self.client, &node.namespace);
        let Some(current) = api.get_metadata_opt(&node.name).await? else { return Ok(()) };
        if current.metadata.uid.as_deref() != Some(node.uid.as_str()) {
            return Ok(());
        }
        let Some(mut metadata) = change(&current.metadata) else { return Ok(()) };
        metadata["resourceVersion"] = json!(current.metadata.resource_version);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        match api.patch_metadata(&node.name, &PatchParams::default(), &patch).await {
            Err(error) if is_not_found(&error) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }
}
