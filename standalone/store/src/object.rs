//! An object at one revision: immutable, shared, and serialised at most once.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::Value;

/// Namespace (empty for cluster scope) and name, in the order lists have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

/// One version of one object.
pub struct Object {
    pub key: Key,
    /// The commit that made this version; also its metadata.resourceVersion.
    pub revision: u64,
    pub value: Arc<Value>,
    bytes: OnceLock<Bytes>,
}

// === impl Key ===

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            out.write_str(&self.name)
        } else {
            write!(out, "{}/{}", self.namespace, self.name)
        }
    }
}

// === impl Object ===

impl Object {
    pub(crate) fn new(key: Key, revision: u64, mut value: Value) -> Self {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
        }
        Self { key, revision, value: Arc::new(value), bytes: OnceLock::new() }
    }

    pub(crate) fn loaded(key: Key, bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let value: Value = serde_json::from_slice(bytes)?;
        let revision = value
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
            .and_then(|revision| revision.parse().ok())
            .unwrap_or_default();
        Ok(Self { key, revision, value: Arc::new(value), bytes: OnceLock::new() })
    }

    /// The JSON of the object.
    pub fn bytes(&self) -> &Bytes {
        self.bytes
            .get_or_init(|| Bytes::from(serde_json::to_vec(&*self.value).expect("a JSON value always serialises")))
    }

    pub fn uid(&self) -> &str {
        self.value.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{}", self.key, self.revision)
    }
}
