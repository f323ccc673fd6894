//! Names of objects, and the owner references that tie them together.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

/// `namespace/name`; the namespace is empty for cluster-scoped objects.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    pub namespace: String,
    pub name: String,
}

// === impl ObjectKey ===

impl ObjectKey {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self { namespace: meta.namespace.clone().unwrap_or_default(), name: meta.name.clone().unwrap_or_default() }
    }

    /// The key of the object's controlling owner if that has this kind and API group; the version does not matter.
    pub fn controller_of<K: Resource, O: Resource<DynamicType = ()>>(object: &K) -> Option<Self> {
        let owner = controller_of::<K, O>(object)?;
        Some(Self::new(object.namespace().unwrap_or_default(), owner.name.clone()))
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// The controller reference of `object` if it points at a `O`.
pub fn controller_of<K: Resource, O: Resource<DynamicType = ()>>(object: &K) -> Option<&OwnerReference> {
    let owner = object.owner_references().iter().find(|o| o.controller == Some(true))?;
    let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
    (owner.kind == O::kind(&()) && group == O::group(&())).then_some(owner)
}

/// Whether `owner` (by uid) controls `object`.
pub fn is_controlled_by<K: Resource, O: Resource>(object: &K, owner: &O) -> bool {
    let uid = owner.meta().uid.as_deref().unwrap_or_default();
    object.owner_references().iter().any(|o| o.controller == Some(true) && o.uid == uid)
}

/// The controlling owner reference that every child we create carries.
pub fn owner_reference<O: Resource<DynamicType = ()>>(owner: &O) -> OwnerReference {
    OwnerReference {
        api_version: O::api_version(&()).into_owned(),
        kind: O::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
