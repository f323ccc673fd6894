//! Which Deployments are known to be as wanted.
//!
//! A revision is reconciled for each change of its children's status, about ten times per wake-up, while what its
//! Deployment should be depends on the revision, ConfigMaps and the Deployment's hash label alone. Making the wanted
//! Deployment only to find the same hash was a twentieth of a wake-up's CPU time.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use api::keys::serving;
use api::serving::v1::Revision;
use controller::ObjectKey;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use parking_lot::Mutex;

/// What a comparison was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inputs {
    configs: u64,
    objects: u64,
}

#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Counts changes of ConfigMaps.
    configs: AtomicU64,
    known: Mutex<HashMap<ObjectKey, Inputs>>,
}

// === impl Settled ===

impl Settled {
    /// To be taken before the ConfigMaps are read.
    pub(super) fn inputs(&self, revision: &Revision, current: &Deployment) -> Inputs {
        let configs = self.configs.load(Ordering::Acquire);
        let mut hasher = DefaultHasher::new();
        let meta = &revision.metadata;
        (&meta.uid, meta.generation, &meta.labels, &meta.annotations).hash(&mut hasher);
        let status = revision.status.as_ref();
        for container in status.iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses)) {
            (&container.name, &container.image_digest).hash(&mut hasher);
        }
        current.labels().get(serving::DEPLOYMENT_HASH).hash(&mut hasher);
        Inputs { configs, objects: hasher.finish() }
    }

    pub(super) fn is_known(&self, key: &ObjectKey, inputs: Inputs) -> bool {
        self.known.lock().get(key) == Some(&inputs)
    }

    pub(super) fn note(&self, key: ObjectKey, inputs: Inputs) {
        self.known.lock().insert(key, inputs);
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.known.lock().remove(key);
    }

    /// A ConfigMap changed: everything has to be compared again.
    pub(super) fn config_changed(&self) {
        self.configs.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_comparison_holds_until_something_it_was_made_of_changes() {
        let revision: Revision = from_value(json!({"metadata": {"name": "r", "namespace": "n", "uid": "u", "generation": 1,
            "labels": {"a": "b"}}, "spec": {"containers": []}, "status": {"containerStatuses": [{"name": "c", "imageDigest": "d"}]}}))
        .unwrap();
        let deployment = |hash: &str| -> Deployment {
            from_value(json!({"metadata": {"labels": {serving::DEPLOYMENT_HASH: hash}}})).unwrap()
        };
        let (settled, key) = (Settled::default(), ObjectKey::of(&revision));
        let inputs = settled.inputs(&revision, &deployment("h"));
        assert!(!settled.is_known(&key, inputs));
        settled.note(key.clone(), inputs);
        let mut changed_status = revision.clone();
        changed_status.status.as_mut().unwrap().observed_generation = 7;
        assert!(settled.is_known(&key, settled.inputs(&changed_status, &deployment("h"))));

        let mut relabelled = revision.clone();
        relabelled.metadata.labels.as_mut().unwrap().insert("a".into(), "c".into());
        let mut resolved = revision.clone();
        resolved.status.as_mut().unwrap().container_statuses[0].image_digest = "e".into();
        for other in [&relabelled, &resolved] {
            assert!(!settled.is_known(&key, settled.inputs(other, &deployment("h"))));
        }
        assert!(!settled.is_known(&key, settled.inputs(&revision, &deployment("edited"))));
        settled.config_changed();
        assert!(!settled.is_known(&key, settled.inputs(&revision, &deployment("h"))));
    }
}
