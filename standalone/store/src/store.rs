//! The store itself: reads, the compare-and-swap commit, and subscriptions.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::watch as latest;

use crate::disk::{Disk, DiskError, Record};
use crate::event::{Event, EventKind};
use crate::object::{Key, Object};
use crate::state::{State, Table};
use crate::watch::{TooOld, Watch};

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The database file. None: memory only, for tests.
    pub path: Option<PathBuf>,
}

/// Cheap to clone; all clones are one store. The last one to go writes out what is left.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    state: RwLock<State>,
    revision: latest::Sender<u64>,
    disk: Option<Disk>,
}

/// What the caller believes is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Absent,
    Revision(u64),
}

#[derive(Debug)]
pub enum Change {
    Put(Value),
    Delete,
}

/// Somebody else was faster: what is there now.
#[derive(Debug, thiserror::Error)]
#[error("the stored object is not the one the change was made for")]
pub struct CommitError {
    pub found: Option<Arc<Object>>,
}

/// Objects at one revision, in key order.
#[derive(Debug)]
pub struct Snapshot {
    pub objects: Vec<Arc<Object>>,
    pub revision: u64,
}

// === impl Store ===

impl Store {
    /// Opens the database, or an empty memory store.
    pub fn open(options: Options) -> Result<Self, DiskError> {
        let Some(path) = options.path else {
            return Ok(Self::with(State::new(1), None));
        };
        let (disk, loaded) = Disk::open(&path)?;
        let mut state = State::new(loaded.revision);
        for (resource, object) in loaded.objects {
            state.table(&resource).objects.insert(object.key.clone(), Arc::new(object));
        }
        Ok(Self::with(state, Some(disk)))
    }

    /// A store that ends with the process.
    pub fn memory() -> Self {
        Self::with(State::new(1), None)
    }

    fn with(state: State, disk: Option<Disk>) -> Self {
        let revision = latest::Sender::new(state.revision);
        Self { shared: Arc::new(Shared { state: RwLock::new(state), revision, disk }) }
    }

    pub fn revision(&self) -> u64 {
        self.shared.state.read().revision
    }

    pub fn get(&self, resource: &str, key: &Key) -> Option<Arc<Object>> {
        self.shared.state.read().tables.get(resource)?.objects.get(key).cloned()
    }

    /// All objects of a resource, or of one of its namespaces.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> Snapshot {
        list(&self.shared.state.read(), resource, namespace)
    }

    /// The number of objects of a resource.
    pub fn count(&self, resource: &str) -> usize {
        self.shared.state.read().tables.get(resource).map_or(0, |table| table.objects.len())
    }

    /// The present objects and every later event, with nothing between them.
    pub fn list_and_watch(&self, resource: &str, namespace: Option<&str>) -> (Snapshot, Watch) {
        let mut state = self.shared.state.write();
        let snapshot = list(&state, resource, namespace);
        let watch = state.table(resource).watch();
        (snapshot, watch)
    }

    /// Every event after a revision, in order.
    pub fn watch(&self, resource: &str, after: u64) -> Result<Watch, TooOld> {
        self.shared.state.write().table(resource).watch_after(after)
    }

    /// Lets go of events that are too old to keep; commits do it for their own resource, so a timer does it for the quiet ones.
    pub fn trim(&self) {
        self.shared.state.write().tables.values_mut().for_each(Table::trim);
    }

    /// Ends the watches of a resource that is no longer served.
    pub fn drop_watchers(&self, resource: &str) {
        self.shared.state.write().table(resource).drop_watchers();
    }

    /// Applies one change if the object is still as expected. The object's metadata.resourceVersion becomes the new revision; a deletion has a
    /// revision too, and the returned object is the last content under it. `observe` sees old and new under the lock, in order of commits.
    pub fn commit(
        &self,
        resource: &str,
        key: &Key,
        expected: Expected,
        change: Change,
        observe: &dyn Fn(Option<&Value>, Option<&Value>),
    ) -> Result<Arc<Object>, CommitError> {
        let mut state = self.shared.state.write();
        let revision = state.revision + 1;
        let table = state.table(resource);
        let found = table.objects.get(key).cloned();
        let as_expected = match (&found, expected) {
            (None, Expected::Absent) => true,
            (Some(object), Expected::Revision(revision)) => object.revision == revision,
            _ => false,
        };
        let (kind, object) = match (change, &found) {
            _ if !as_expected => return Err(CommitError { found }),
            (Change::Delete, None) => return Err(CommitError { found }),
            (Change::Delete, Some(old)) => {
                let last = Arc::new(Object::new(key.clone(), revision, Value::clone(&old.value)));
                observe(Some(&old.value), None);
                table.objects.remove(key);
                (EventKind::Deleted, last)
            }
            (Change::Put(value), old) => {
                let object = Arc::new(Object::new(key.clone(), revision, value));
                observe(old.as_ref().map(|old| &*old.value), Some(&object.value));
                table.objects.insert(key.clone(), Arc::clone(&object));
                (if old.is_some() { EventKind::Modified } else { EventKind::Added }, object)
            }
        };
        if let Some(disk) = &self.shared.disk {
            let stored = (kind != EventKind::Deleted).then(|| Arc::clone(&object));
            disk.write(Record { resource: resource.to_owned(), key: key.clone(), object: stored, revision });
        }
        tracing::trace!(resource, %key, ?kind, revision, "committed");
        table.publish(Event::new(kind, Arc::clone(&object), found));
        state.revision = revision;
        drop(state);
        self.shared.revision.send_replace(revision);
        Ok(object)
    }

    /// Waits until the store has reached a revision; false when it did not in time.
    pub async fn reached(&self, revision: u64, within: Duration) -> bool {
        let mut seen = self.shared.revision.subscribe();
        let reached = seen.wait_for(|now| *now >= revision);
        tokio::time::timeout(within, reached).await.is_ok()
    }

    /// Waits until everything up to a revision is on disk. At once for a memory store. Cancel safe.
    pub async fn durable(&self, revision: u64) -> Result<(), DiskError> {
        match &self.shared.disk {
            Some(disk) => disk.durable(revision).await,
            None => Ok(()),
        }
    }
}

fn list(state: &State, resource: &str, namespace: Option<&str>) -> Snapshot {
    let objects = match (state.tables.get(resource), namespace) {
        (None, _) => Vec::new(),
        (Some(table), None) => table.objects.values().cloned().collect(),
        (Some(table), Some(namespace)) => {
            let from = table.objects.range(Key::new(namespace, "")..);
            from.take_while(|(key, _)| key.namespace == namespace).map(|(_, object)| Arc::clone(object)).collect()
        }
    };
    Snapshot { objects, revision: state.revision }
}
