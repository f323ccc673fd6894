//! The revisions by name, for readers that take no lock and disturb nobody.
//!
//! A request looks its revision up once; changes are rare. So a reader takes a snapshot of the few revisions that share
//! its part of the table, and a change replaces the snapshot of one part. The number of parts is fixed, and so large
//! that a part has a handful of revisions in an installation of thousands.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Revision;

const PARTS: usize = 1024;

type Part = Vec<(u64, Arc<Revision>)>;

pub(super) struct Table {
    parts: Box<[ArcSwap<Part>]>,
    hasher: RandomState,
    /// Held by whoever changes it.
    changing: Mutex<()>,
}

// === impl Table ===

impl Table {
    pub(super) fn new() -> Self {
        let empty = Arc::new(Part::new());
        let parts = (0..PARTS).map(|_| ArcSwap::new(empty.clone())).collect();
        Self { parts, hasher: RandomState::new(), changing: Mutex::new(()) }
    }

    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Revision>> {
        let hash = self.hasher.hash_one((namespace, name));
        let part = self.part(hash).load();
        let mut same = part.iter().filter(|(other, _)| *other == hash).map(|(_, revision)| revision);
        same.find(|revision| is(revision, namespace, name)).cloned()
    }

    /// Adds a revision, instead of the one with its name if there is one.
    pub(super) fn insert(&self, revision: Arc<Revision>) {
        let key = &revision.key;
        let (namespace, name) = (key.namespace.clone(), key.name.clone());
        self.replace(&namespace, &name, Some(revision));
    }

    pub(super) fn remove(&self, namespace: &str, name: &str) -> Option<Arc<Revision>> {
        self.replace(namespace, name, None)
    }

    pub(super) fn all(&self) -> Vec<Arc<Revision>> {
        let parts = self.parts.iter().map(ArcSwap::load_full);
        parts.flat_map(|part| part.iter().map(|(_, revision)| revision.clone()).collect::<Vec<_>>()).collect()
    }

    fn replace(&self, namespace: &str, name: &str, new: Option<Arc<Revision>>) -> Option<Arc<Revision>> {
        let _changing = self.changing.lock();
        let hash = self.hasher.hash_one((namespace, name));
        let part = self.part(hash);
        let mut entries = Part::clone(&part.load());
        let index = entries.iter().position(|(_, revision)| is(revision, namespace, name));
        let old = index.map(|index| entries.swap_remove(index).1);
        entries.extend(new.map(|revision| (hash, revision)));
        part.store(Arc::new(entries));
        old
    }

    fn part(&self, hash: u64) -> &ArcSwap<Part> {
        &self.parts[hash as usize % PARTS]
    }
}

fn is(revision: &Revision, namespace: &str, name: &str) -> bool {
    revision.key.name == name && revision.key.namespace == namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_revision_is_found_by_its_name_and_no_other() {
        let table = Table::new();
        let names: Vec<_> = (0..5000).map(|number| format!("rev-{number}")).collect();
        names.iter().for_each(|name| table.insert(Revision::idle(name)));
        for name in &names {
            assert_eq!(table.get("default", name).expect("inserted").key.name, *name);
            assert!(table.get("other", name).is_none());
        }
        let again = Revision::idle("rev-7");
        table.insert(again.clone());
        assert!(Arc::ptr_eq(&table.get("default", "rev-7").expect("inserted"), &again));
        assert_eq!(table.all().len(), names.len());
        assert!(Arc::ptr_eq(&table.remove("default", "rev-7").expect("inserted"), &again));
        assert!(table.get("default", "rev-7").is_none() && table.remove("default", "rev-7").is_none());
    }
}
