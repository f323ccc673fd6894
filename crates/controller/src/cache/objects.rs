//! The objects of a cache and its indexes, in as little memory as their use allows.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use kube::{Resource, ResourceExt};
use serde::{Serialize, de::DeserializeOwned};

use super::IndexFn;
use crate::ObjectKey;

pub(super) struct Objects<K> {
    by_key: BTreeMap<ObjectKey, Entry<K>>,
    indexes: HashMap<&'static str, BTreeMap<String, Keys>>,
    packing: Option<Packing<K>>,
    /// What changed last is packed later: whoever hears of a change looks at the object next, and most often changes it.
    recent: VecDeque<ObjectKey>,
}

struct Entry<K> {
    stored: Stored<K>,
    /// In how many places of the indexes it is.
    indexed: usize,
}

/// An object as it was before a change. A packed one is read when somebody looks at it.
pub struct Old<K> {
    stored: Stored<K>,
    packing: Option<Packing<K>>,
    whole: OnceLock<Arc<K>>,
}

/// How packed objects are written and read again.
pub(super) struct Packing<K> {
    pack: fn(&K) -> Vec<u8>,
    unpack: fn(&[u8]) -> K,
}

/// An object as it is kept.
pub(super) enum Stored<K> {
    Whole(Arc<K>),
    /// As JSON: a quarter of the memory, for some microseconds whenever it is looked at.
    Packed(Box<[u8]>),
}

/// Almost always one, for which a set of its own would be a waste.
enum Keys {
    One(ObjectKey),
    Many(BTreeSet<ObjectKey>),
}

const RECENT: usize = 8;

// === impl Old ===

impl<K> Deref for Old<K> {
    type Target = K;

    fn deref(&self) -> &K {
        match &self.stored {
            Stored::Whole(object) => object,
            Stored::Packed(_) => self.whole.get_or_init(|| Packing::load(self.packing, &self.stored)),
        }
    }
}

impl<K: fmt::Debug> fmt::Debug for Old<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

// === impl Packing ===

impl<K: Serialize + DeserializeOwned> Packing<K> {
    pub(super) fn json() -> Self {
        Packing {
            pack: |object| serde_json::to_vec(object).expect("it was made from JSON"),
            unpack: |bytes| serde_json::from_slice(bytes).expect("it was written from the same type"),
        }
    }
}

impl<K> Clone for Packing<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Packing<K> {}

impl<K> Packing<K> {
    pub(super) fn store(packing: Option<Self>, object: Arc<K>) -> Stored<K> {
        match packing {
            Some(packing) => Stored::Packed((packing.pack)(&object).into_boxed_slice()),
            None => Stored::Whole(object),
        }
    }

    pub(super) fn load(packing: Option<Self>, stored: &Stored<K>) -> Arc<K> {
        match (stored, packing) {
            (Stored::Whole(object), _) => object.clone(),
            (Stored::Packed(bytes), Some(packing)) => Arc::new((packing.unpack)(bytes)),
            (Stored::Packed(_), None) => unreachable!("only packing makes packed objects"),
        }
    }
}

// === impl Objects ===

impl<K> Objects<K> {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }
}

impl<K: Resource<DynamicType = ()>> Objects<K> {
    pub(super) fn new(indexers: &[(&'static str, IndexFn<K>)], packing: Option<Packing<K>>) -> Self {
        let indexes = indexers.iter().map(|(name, _)| (*name, BTreeMap::new())).collect();
        Self { by_key: BTreeMap::new(), indexes, packing, recent: VecDeque::new() }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ObjectKey> {
        self.by_key.keys()
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.by_key.get(key).map(|entry| self.load(&entry.stored))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Arc<K>> {
        self.by_key.values().map(|entry| self.load(&entry.stored))
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = Arc<K>> {
        let from = ObjectKey::new(namespace, "");
        let here = self.by_key.range(from..).take_while(move |(key, _)| key.namespace == namespace);
        here.map(|(_, entry)| self.load(&entry.stored))
    }

    pub(super) fn by_index(&self, index: &str, key: &str) -> Vec<Arc<K>> {
        let index = self.indexes.get(index).unwrap_or_else(|| panic!("no index {index} on {}", K::kind(&())));
        let keys = index.get(key).into_iter().flat_map(Keys::iter);
        keys.filter_map(|key| self.get(key)).collect()
    }

    pub(super) fn is_version(&self, key: &ObjectKey, version: Option<&str>) -> bool {
        version.is_some() && self.get(key).is_some_and(|known| known.resource_version().as_deref() == version)
    }

    pub(super) fn insert(
        &mut self,
        indexers: &[(&'static str, IndexFn<K>)],
        key: &ObjectKey,
        new: &Arc<K>,
    ) -> Option<Old<K>> {
        let places: Vec<(&'static str, BTreeSet<String>)> =
            indexers.iter().map(|(name, values)| (*name, values(new).into_iter().collect())).collect();
        let indexed = places.iter().map(|(_, values)| values.len()).sum();
        let entry = Entry { stored: Stored::Whole(new.clone()), indexed };
        let old = match self.by_key.get_mut(key) {
            Some(place) => Some(std::mem::replace(place, entry)),
            None => {
                self.by_key.insert(key.clone(), entry);
                None
            }
        };
        let before = old.as_ref().map_or(0, |entry| entry.indexed);
        self.note_recent(key);
        let old = old.map(|entry| self.old(entry.stored));
        if before != indexed || !self.is_indexed(&places, key) {
            if let Some(old) = old.as_ref().filter(|_| before > 0) {
                self.unindex(indexers, key, old);
            }
            for (name, values) in places {
                let index = self.indexes.entry(name).or_default();
                for value in values {
                    match index.get_mut(&value) {
                        Some(keys) => keys.add(key),
                        None => drop(index.insert(value, Keys::One(key.clone()))),
                    }
                }
            }
        }
        old
    }

    pub(super) fn remove(&mut self, indexers: &[(&'static str, IndexFn<K>)], key: &ObjectKey) -> Option<Arc<K>> {
        let entry = self.by_key.remove(key)?;
        self.recent.retain(|recent| recent != key);
        let old = self.load(&entry.stored);
        self.unindex(indexers, key, &old);
        Some(old)
    }

    /// The object is whole; the one that changed longest ago need not be any more.
    fn note_recent(&mut self, key: &ObjectKey) {
        if self.packing.is_none() {
            return;
        }
        let known = self.recent.iter().position(|recent| recent == key).and_then(|at| self.recent.remove(at));
        self.recent.push_back(known.unwrap_or_else(|| key.clone()));
        if self.recent.len() > RECENT
            && let Some(entry) = self.recent.pop_front().and_then(|oldest| self.by_key.get_mut(&oldest))
            && let Stored::Whole(object) = &entry.stored
        {
            entry.stored = Packing::store(self.packing, object.clone());
        }
    }

    fn old(&self, stored: Stored<K>) -> Old<K> {
        Old { stored, packing: self.packing, whole: OnceLock::new() }
    }

    /// Whether an object is in all of these places; it may be in others.
    fn is_indexed(&self, places: &[(&'static str, BTreeSet<String>)], key: &ObjectKey) -> bool {
        places.iter().all(|(name, values)| {
            let index = self.indexes.get(name);
            values.iter().all(|value| index.and_then(|index| index.get(value)).is_some_and(|keys| keys.has(key)))
        })
    }

    fn load(&self, stored: &Stored<K>) -> Arc<K> {
        Packing::load(self.packing, stored)
    }

    fn unindex(&mut self, indexers: &[(&'static str, IndexFn<K>)], key: &ObjectKey, object: &K) {
        for (name, keys) in indexers {
            let Some(index) = self.indexes.get_mut(name) else { continue };
            for value in keys(object) {
                if index.get_mut(&value).is_some_and(|keys| keys.take(key)) {
                    index.remove(&value);
                }
            }
        }
    }
}

// === impl Keys ===

impl Keys {
    fn iter(&self) -> impl Iterator<Item = &ObjectKey> {
        let (one, many) = match self {
            Keys::One(key) => (Some(key), None),
            Keys::Many(keys) => (None, Some(keys)),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn has(&self, key: &ObjectKey) -> bool {
        match self {
            Keys::One(one) => one == key,
            Keys::Many(keys) => keys.contains(key),
        }
    }

    fn add(&mut self, key: &ObjectKey) {
        match self {
            Keys::One(one) if one == key => {}
            Keys::One(one) => *self = Keys::Many([one.clone(), key.clone()].into()),
            Keys::Many(keys) => drop(keys.insert(key.clone())),
        }
    }

    /// Whether none is left.
    fn take(&mut self, key: &ObjectKey) -> bool {
        match self {
            Keys::One(one) => one == key,
            Keys::Many(keys) => {
                keys.remove(key);
                keys.is_empty()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn map(name: &str, version: &str, colour: &str) -> Arc<ConfigMap> {
        let metadata = json!({"namespace": "a", "name": name, "resourceVersion": version});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "data": {"colour": colour}})).unwrap())
    }

    fn names(found: &[Arc<ConfigMap>]) -> Vec<String> {
        found.iter().map(|map| map.name_any()).collect()
    }

    #[test]
    fn packed_and_whole_objects_are_found_alike() {
        let colour = |map: &ConfigMap| map.data.iter().flatten().map(|(_, value)| value.clone()).collect();
        let indexers: Vec<(&'static str, IndexFn<ConfigMap>)> = vec![("colour", Box::new(colour))];
        for packing in [None, Some(Packing::json())] {
            let mut objects = Objects::new(&indexers, packing);
            let key = |name: &str| ObjectKey::new("a", name);
            for (name, colour) in [("one", "red"), ("two", "red"), ("three", "blue")] {
                assert!(objects.insert(&indexers, &key(name), &map(name, "1", colour)).is_none());
            }
            assert_eq!(names(&objects.by_index("colour", "red")), ["one", "two"]);
            assert_eq!(names(&objects.by_index("colour", "blue")), ["three"]);
            let old = objects.insert(&indexers, &key("one"), &map("one", "2", "blue"));
            assert_eq!(old.as_deref(), Some(&*map("one", "1", "red")));
            // Whatever is not recent any more is what it was.
            for n in 0..RECENT {
                objects.insert(&indexers, &key(&format!("other-{n}")), &map("other", "1", "green"));
                objects.insert(&indexers, &key("two"), &map("two", "1", "red"));
            }
            assert_eq!(objects.get(&key("one")), Some(map("one", "2", "blue")));
            assert_eq!(names(&objects.by_index("colour", "red")), ["two"]);
            let old = objects.insert(&indexers, &key("one"), &map("one", "2", "blue"));
            assert_eq!(old.as_deref(), Some(&*map("one", "2", "blue")));
            assert_eq!(names(&objects.by_index("colour", "red")), ["two"]);
            assert_eq!(names(&objects.by_index("colour", "blue")), ["one", "three"]);
            assert!(objects.is_version(&key("one"), Some("2")) && !objects.is_version(&key("two"), Some("2")));
            assert_eq!(objects.remove(&indexers, &key("two")), Some(map("two", "1", "red")));
            assert_eq!(objects.remove(&indexers, &key("two")), None);
            assert_eq!(objects.remove(&indexers, &key("one")), Some(map("one", "2", "blue")));
            assert!(objects.by_index("colour", "red").is_empty());
            assert_eq!(names(&objects.by_index("colour", "blue")), ["three"]);
            let count = RECENT + 1;
            assert_eq!((objects.len(), objects.iter().count(), objects.in_namespace("b").count()), (count, count, 0));
        }
    }
}
