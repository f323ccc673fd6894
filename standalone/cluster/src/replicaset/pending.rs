//! Creations and deletions of ours that the cache does not show yet.
//!
//! Without them a ReplicaSet handled twice in quick succession would create its pods twice. They are named pods and
//! not a count, so nothing has to wait until they are all seen.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use controller::ObjectKey;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::UNSEEN;

#[derive(Debug, Default)]
pub(crate) struct Pending {
    by_set: Mutex<HashMap<ObjectKey, Unseen>>,
}

#[derive(Debug, Default)]
struct Unseen {
    /// Names of pods being created.
    creating: HashMap<String, Instant>,
    /// Uids of pods being deleted.
    deleting: HashMap<String, Instant>,
}

/// The pods a ReplicaSet has, counting what is under way as done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) effective: usize,
    pub(crate) deleting: HashSet<Option<String>>,
    /// When the oldest of what is under way should have been seen.
    pub(crate) recheck: Option<Duration>,
}

// === impl Pending ===

impl Pending {
    /// Forgets what the cache shows by now, and counts.
    pub(crate) fn observe(&self, set: &ObjectKey, pods: &[Arc<Pod>], active: &[&Arc<Pod>]) -> Counts {
        let mut by_set = self.by_set.lock();
        let Some(unseen) = by_set.get_mut(set) else {
            return Counts { effective: active.len(), ..Counts::default() };
        };
        let now = Instant::now();
        let fresh = |since: &Instant| now.duration_since(*since) < UNSEEN;
        let names: HashSet<&str> = pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect();
        unseen.creating.retain(|name, since| fresh(since) && !names.contains(name.as_str()));
        let uids: HashSet<&str> = active.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        unseen.deleting.retain(|uid, since| fresh(since) && uids.contains(uid.as_str()));
        let counts = Counts {
            effective: active.len() - unseen.deleting.len() + unseen.creating.len(),
            deleting: unseen.deleting.keys().cloned().map(Some).collect(),
            recheck: unseen
                .creating
                .values()
                .chain(unseen.deleting.values())
                .min()
                .map(|since| UNSEEN.saturating_sub(now.duration_since(*since)) + Duration::from_millis(1)),
        };
        if unseen.creating.is_empty() && unseen.deleting.is_empty() {
            by_set.remove(set);
        }
        counts
    }

    pub(crate) fn creating(&self, set: &ObjectKey, name: &str) {
        let mut by_set = self.by_set.lock();
        by_set.entry(set.clone()).or_default().creating.insert(name.to_owned(), Instant::now());
    }

    pub(crate) fn not_created(&self, set: &ObjectKey, name: &str) {
        if let Some(unseen) = self.by_set.lock().get_mut(set) {
            unseen.creating.remove(name);
        }
    }

    pub(crate) fn deleting(&self, set: &ObjectKey, pod: &Pod) {
        let mut by_set = self.by_set.lock();
        by_set.entry(set.clone()).or_default().deleting.insert(pod.uid().unwrap_or_default(), Instant::now());
    }

    /// The pod is deleted, or its deletion failed: nothing is under way for it.
    pub(crate) fn gone(&self, set: &ObjectKey, pod: &Pod) {
        if let Some(unseen) = self.by_set.lock().get_mut(set) {
            unseen.creating.remove(&pod.name_any());
            unseen.deleting.remove(&pod.uid().unwrap_or_default());
        }
    }

    pub(crate) fn forget(&self, set: &ObjectKey) {
        self.by_set.lock().remove(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn pod(name: &str) -> Arc<Pod> {
        let metadata = ObjectMeta { name: Some(name.into()), uid: Some(name.into()), ..ObjectMeta::default() };
        Arc::new(Pod { metadata, ..Pod::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_counts_until_it_is_seen() {
        let pending = Pending::default();
        let set = ObjectKey::new("ns", "set");
        pending.creating(&set, "a");
        assert_eq!(pending.observe(&set, &[], &[]).effective, 1);
        let pods = [pod("a")];
        let active = [&pods[0]];
        let counts = pending.observe(&set, &pods, &active);
        assert_eq!((counts.effective, counts.recheck), (1, None), "not twice");
        pending.deleting(&set, &pods[0]);
        assert_eq!(pending.observe(&set, &pods, &active).effective, 0);
        assert_eq!(pending.observe(&set, &pods, &[]).effective, 0, "terminating by now");
        assert!(pending.by_set.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_seen_is_given_up() {
        let pending = Pending::default();
        let set = ObjectKey::new("ns", "set");
        pending.creating(&set, "a");
        let recheck = pending.observe(&set, &[], &[]).recheck.unwrap();
        tokio::time::advance(recheck).await;
        assert_eq!(pending.observe(&set, &[], &[]).effective, 0);
    }
}
