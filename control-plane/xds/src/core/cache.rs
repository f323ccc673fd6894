//! What is published now, and for each resource the last version a gateway accepted: that one is served to everybody
//! while the newest is refused, also to gateways that connect later.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use super::Change;
use crate::resource::{Kind, Name, Resource, Version, table_of};

#[derive(Debug, Default)]
pub(super) struct Cache {
    kinds: [BTreeMap<Name, Entry>; 8],
    revision: u64,
    /// The last assembled form of each route table, shared by all streams that hold the same hosts.
    assembled: HashMap<Name, Arc<Resource>>,
    /// Hosts and scoped routes whose newest version is refused.
    refused_routes: BTreeSet<Name>,
    /// No longer refused: other streams may have passed over it.
    released: Vec<(Kind, Name)>,
}

#[derive(Debug)]
pub(super) struct Entry {
    current: Arc<Resource>,
    good: Option<Arc<Resource>>,
    /// Refused by a gateway, and accepted by none.
    rejected: Option<Version>,
}

// === impl Entry ===

impl Entry {
    pub(super) fn current(&self) -> &Arc<Resource> {
        &self.current
    }

    /// What to offer, best first.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &Arc<Resource>> {
        let current = (self.rejected != Some(self.current.version)).then_some(&self.current);
        current.into_iter().chain(self.good.as_ref())
    }
}

// === impl Cache ===

impl Cache {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// Applies a change under one new revision and returns what really changed.
    pub(super) fn apply(&mut self, mut change: Change) -> Vec<(Kind, Name)> {
        // A scope is still found with the routes that go with it.
        change.remove.sort_by_key(|(kind, _)| *kind);
        let mut touched = Vec::with_capacity(change.set.len() + change.remove.len());
        for resource in change.set {
            let entries = &mut self.kinds[resource.kind as usize];
            let key = (resource.kind, resource.name.clone());
            match entries.get_mut(&resource.name) {
                Some(entry) if entry.current.version == resource.version => continue,
                Some(entry) => entry.current = Arc::new(resource),
                None => {
                    let entry = Entry { current: Arc::new(resource), good: None, rejected: None };
                    entries.insert(key.1.clone(), entry);
                }
            }
            touched.push(key);
        }
        for (kind, name) in change.remove {
            self.refused_routes.remove(&name);
            if self.kinds[kind as usize].remove(&name).is_some() {
                touched.push((kind, name));
            }
        }
        if !touched.is_empty() {
            self.revision += 1;
        }
        touched
    }

    /// A host is found under `Route` as well: an assembled table is followed by its hosts.
    pub(super) fn get(&self, kind: Kind, name: &str) -> Option<&Entry> {
        self.kinds[home(kind, name) as usize].get(name)
    }

    pub(super) fn names(&self, kind: Kind) -> impl Iterator<Item = &Name> {
        self.kinds[kind as usize].keys()
    }

    pub(super) fn hosts(&self, table: &str) -> impl Iterator<Item = (&Name, &Entry)> {
        self.kinds[Kind::VirtualHost as usize].range::<str, _>(bounds(&host_range(table)))
    }

    pub(super) fn accept(&mut self, resource: &Arc<Resource>) -> bool {
        let kind = home(resource.kind, &resource.name);
        let Some(entry) = self.kinds[kind as usize].get_mut(&resource.name) else { return false };
        if entry.current.version == resource.version {
            entry.good = Some(entry.current.clone());
            let recovered = entry.rejected.take().is_some();
            if recovered {
                self.refused_routes.remove(&resource.name);
                self.released.push((kind, resource.name.clone()));
            }
            return recovered;
        }
        false
    }

    pub(super) fn reject(&mut self, kind: Kind, name: &str, version: Version) {
        if let Some(entry) = self.kinds[home(kind, name) as usize].get_mut(name)
            && entry.current.version == version
            && entry.good.as_ref().is_none_or(|good| good.version != version)
        {
            entry.rejected = Some(version);
            if matches!(home(kind, name), Kind::VirtualHost | Kind::ScopedRoute) {
                self.refused_routes.insert(name.into());
            }
        }
    }

    pub(super) fn refused_routes(&self) -> impl Iterator<Item = &Name> {
        self.refused_routes.iter()
    }

    pub(super) fn take_released(&mut self) -> Vec<(Kind, Name)> {
        std::mem::take(&mut self.released)
    }

    /// A whole table in one resource: the table's own fields followed by its hosts.
    pub(super) fn assemble(&mut self, base: &Arc<Resource>, hosts: &[Arc<Resource>]) -> Arc<Resource> {
        let version = table_version(base, hosts.iter());
        if let Some(table) = self.assembled.get(&base.name)
            && table.version == version
        {
            return table.clone();
        }
        let body = base.body_with(hosts.iter().map(|host| &**host));
        let table = Arc::new(Resource { version, body, ..Resource::clone(base) });
        self.assembled.insert(base.name.clone(), table.clone());
        table
    }
}

pub(super) fn table_version<'a>(base: &Resource, hosts: impl Iterator<Item = &'a Arc<Resource>>) -> Version {
    hosts.fold(base.version, |version, host| version.join(&host.name, host.version))
}

fn home(kind: Kind, name: &str) -> Kind {
    if kind == Kind::Route && table_of(name).is_some() { Kind::VirtualHost } else { kind }
}

/// The names of all hosts of a table: `<table>/` up to the next possible string.
pub(super) fn host_range(table: &str) -> (String, String) {
    (format!("{table}/"), format!("{table}0"))
}

pub(super) fn bounds(range: &(String, String)) -> (Bound<&str>, Bound<&str>) {
    (Bound::Included(range.0.as_str()), Bound::Excluded(range.1.as_str()))
}
