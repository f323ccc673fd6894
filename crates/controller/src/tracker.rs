//! Who wants to hear of objects that they name but do not own, whether those exist yet or not.
//!
//! Upstream's tracker lets registrations expire and pays for it with extra reconciles; here an observer states its
//! complete set of references at each reconcile, and the difference is applied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Cache, Change, ObjectKey, Queue, cache};

/// `kind` names the group of references, for example `Revision`.
type Reference = (&'static str, ObjectKey);

#[derive(Debug, Clone, Default)]
pub struct Tracker {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    observers: BTreeMap<Reference, BTreeSet<ObjectKey>>,
    references: BTreeMap<ObjectKey, BTreeSet<Reference>>,
}

// === impl Tracker ===

impl Tracker {
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on `observer` refers to exactly these objects.
    pub fn set(&self, observer: &ObjectKey, references: impl IntoIterator<Item = Reference>) {
        let new: BTreeSet<_> = references.into_iter().collect();
        let mut inner = self.inner.lock();
        let old = inner.references.remove(observer).unwrap_or_default();
        for gone in old.difference(&new) {
            if let Some(observers) = inner.observers.get_mut(gone) {
                observers.remove(observer);
                if observers.is_empty() {
                    inner.observers.remove(gone);
                }
            }
        }
        for added in new.difference(&old) {
            inner.observers.entry(added.clone()).or_default().insert(observer.clone());
        }
        if !new.is_empty() {
            inner.references.insert(observer.clone(), new);
        }
    }

    /// Forgets an observer that is gone.
    pub fn forget(&self, observer: &ObjectKey) {
        self.set(observer, []);
    }

    /// Who refers to this object.
    pub fn observers(&self, kind: &'static str, key: &ObjectKey) -> Vec<ObjectKey> {
        let inner = self.inner.lock();
        inner.observers.get(&(kind, key.clone())).map(|o| o.iter().cloned().collect()).unwrap_or_default()
    }

    /// Enqueues the observers of every object of `cache` that changes.
    pub fn feed<K: cache::Object>(&self, kind: &'static str, cache: &Cache<K>, queue: &Queue) {
        let (tracker, queue) = (self.clone(), queue.clone());
        cache.on_event(move |change: &Change<'_, K>| {
            for observer in tracker.observers(kind, &ObjectKey::of(&**change.object())) {
                queue.add(observer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_set_of_references_counts() {
        let tracker = Tracker::new();
        let (route, a, b) = (ObjectKey::new("ns", "route"), ObjectKey::new("ns", "a"), ObjectKey::new("ns", "b"));
        tracker.set(&route, [("Revision", a.clone())]);
        tracker.set(&route, [("Revision", b.clone())]);
        assert!(tracker.observers("Revision", &a).is_empty());
        assert_eq!(tracker.observers("Revision", &b), std::slice::from_ref(&route));
        tracker.forget(&route);
        assert!(tracker.inner.lock().observers.is_empty() && tracker.inner.lock().references.is_empty());
    }
}
