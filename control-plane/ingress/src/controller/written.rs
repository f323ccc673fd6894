//! Statuses that this replica wrote a moment ago: the watch shows them, and there is nothing to do about that.

use std::{collections::VecDeque, sync::Arc};

use api::{
    keys::networking::INGRESS_FINALIZER,
    networking::v1alpha1::{Ingress, IngressStatus},
};
use controller::ObjectKey;
use kube::ResourceExt;
use parking_lot::Mutex;

/// Cheap to clone. It forgets: not to know a status of its own costs one more look at the Ingress.
#[derive(Debug, Clone, Default)]
pub(super) struct Written(Arc<Mutex<VecDeque<(ObjectKey, IngressStatus)>>>);

/// More are never on their way at the same time, except at the start.
const LIMIT: usize = 64;

// === impl Written ===

impl Written {
    pub(super) fn note(&self, key: &ObjectKey, status: &IngressStatus) {
        let mut written = self.0.lock();
        if written.len() == LIMIT {
            written.pop_front();
        }
        written.push_back((key.clone(), status.clone()));
    }

    /// Whether a change, of neither spec nor annotations nor labels, is nothing that its writer does not know.
    pub(super) fn knows(&self, old: &Ingress, new: &Ingress) -> bool {
        let finalizer = new.finalizers().iter().any(|finalizer| finalizer == INGRESS_FINALIZER);
        let ends = new.metadata.deletion_timestamp.is_some();
        finalizer && !ends && (old.status == new.status || self.take(new))
    }

    /// Whether the newest status that was written is that of the Ingress.
    fn take(&self, ingress: &Ingress) -> bool {
        let key = ObjectKey::of(ingress);
        let mut written = self.0.lock();
        let Some(at) = written.iter().rposition(|(known, _)| *known == key) else { return false };
        let same = ingress.status.as_ref() == Some(&written[at].1);
        if same {
            written.retain(|(known, _)| *known != key);
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use api::Conditioned;
    use serde_json::json;

    use super::*;

    fn ingress(ready: bool) -> Ingress {
        let metadata = json!({"name": "a", "namespace": "default", "finalizers": [INGRESS_FINALIZER]});
        let mut ingress: Ingress = serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress", "metadata": metadata, "spec": {},
        }))
        .unwrap();
        ingress.mark().init();
        if ready {
            ingress.mark().mark_true("NetworkConfigured");
        }
        ingress
    }

    #[test]
    fn only_the_newest_own_status_is_no_news() {
        let (old, new) = (ingress(false), ingress(true));
        let key = ObjectKey::of(&old);
        let written = Written::default();
        assert!(!written.knows(&old, &new), "nothing was written");
        written.note(&key, old.status.as_ref().unwrap());
        written.note(&key, new.status.as_ref().unwrap());
        assert!(!written.knows(&new, &old), "an older one");
        assert!(written.knows(&old, &new));
        assert!(!written.knows(&old, &new), "somebody else wrote the same once more");
        assert!(written.knows(&new, &new), "it is about something else");
    }

    #[test]
    fn what_ends_or_lost_its_finalizer_is_looked_at() {
        let written = Written::default();
        let old = ingress(true);
        let mut new = old.clone();
        new.metadata.finalizers = None;
        assert!(!written.knows(&old, &new));
        let mut new = old.clone();
        new.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(!written.knows(&old, &new));
    }

    #[test]
    fn it_forgets() {
        let written = Written::default();
        for n in 0..LIMIT * 2 {
            written.note(&ObjectKey::new("default", format!("{n}")), &IngressStatus::default());
        }
        assert_eq!(written.0.lock().len(), LIMIT);
    }
}
