//! What one commit did, shared by everybody who hears of it.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use crate::object::Object;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    /// The new version; for a deletion the last content under the revision of the deletion.
    pub object: Arc<Object>,
    /// What was there before, for watchers whose selector the object enters or leaves.
    pub previous: Option<Arc<Object>>,
    pub(crate) at: Instant,
    frame: OnceLock<Bytes>,
}

// === impl EventKind ===

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }

    /// One line of a watch stream.
    pub fn frame(self, object: &[u8]) -> Bytes {
        let mut line = BytesMut::with_capacity(object.len() + 40);
        line.put_slice(b"{\"type\":\"");
        line.put_slice(self.as_str().as_bytes());
        line.put_slice(b"\",\"object\":");
        line.put_slice(object);
        line.put_slice(b"}\n");
        line.freeze()
    }
}

// === impl Event ===

impl Event {
    pub(crate) fn new(kind: EventKind, object: Arc<Object>, previous: Option<Arc<Object>>) -> Self {
        Self { kind, object, previous, at: Instant::now(), frame: OnceLock::new() }
    }

    pub fn revision(&self) -> u64 {
        self.object.revision
    }

    /// The watch line of the event as it is, made once for all watchers.
    pub fn frame(&self) -> &Bytes {
        self.frame.get_or_init(|| self.kind.frame(self.object.bytes()))
    }
}
