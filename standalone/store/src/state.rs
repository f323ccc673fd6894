//! The truth in memory: one ordered map, one ring of events and the watchers per resource.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::event::Event;
use crate::object::{Key, Object};
use crate::watch::{CAPACITY, TooOld, Watch};

/// A watcher that comes back within this time finds every event, unless there were very many.
const KEEP: Duration = Duration::from_secs(90);
const KEEP_EVENTS: usize = 4096;
const KEEP_BYTES: usize = 6 << 20;
/// However old, so that a quiet resource can be resumed after a long pause.
const KEEP_AT_LEAST: usize = 16;

pub(crate) struct State {
    pub(crate) revision: u64,
    /// Events up to here were before this process.
    pub(crate) started_at: u64,
    pub(crate) tables: HashMap<String, Table>,
}

#[derive(Default)]
pub(crate) struct Table {
    pub(crate) objects: BTreeMap<Key, Arc<Object>>,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Revision of the newest event that the ring no longer has.
    trimmed: u64,
    watchers: Vec<mpsc::Sender<Arc<Event>>>,
}

// === impl State ===

impl State {
    pub(crate) fn new(revision: u64) -> Self {
        Self { revision, started_at: revision, tables: HashMap::new() }
    }

    pub(crate) fn table(&mut self, resource: &str) -> &mut Table {
        if !self.tables.contains_key(resource) {
            self.tables.insert(resource.to_owned(), Table { trimmed: self.started_at, ..Table::default() });
        }
        self.tables.get_mut(resource).expect("was inserted if absent")
    }
}

// === impl Table ===

impl Table {
    /// Tells the watchers and remembers the event. The change to `objects` is the caller's, under the same lock.
    pub(crate) fn publish(&mut self, event: Event) {
        let event = Arc::new(event);
        self.watchers.retain(|watcher| match watcher.try_send(Arc::clone(&event)) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                tracing::info!(object = ?event.object, "dropped a watcher that is {CAPACITY} events behind; it resumes by its revision");
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        self.ring_bytes += weight(&event);
        self.ring.push_back(event);
        self.trim();
    }

    pub(crate) fn trim(&mut self) {
        while let Some(oldest) = self.ring.front() {
            let many =
                self.ring.len() > KEEP_EVENTS || (self.ring_bytes > KEEP_BYTES && self.ring.len() > KEEP_AT_LEAST);
            let old = self.ring.len() > KEEP_AT_LEAST && oldest.at.elapsed() > KEEP;
            if !many && !old {
                break;
            }
            self.trimmed = oldest.revision();
            self.ring_bytes -= weight(oldest);
            self.ring.pop_front();
        }
    }

    /// Everything after `revision`, and from now on.
    pub(crate) fn watch_after(&mut self, revision: u64) -> Result<Watch, TooOld> {
        if revision < self.trimmed {
            return Err(TooOld { asked: revision, oldest: self.trimmed });
        }
        let start = self.ring.partition_point(|event| event.revision() <= revision);
        let backlog = self.ring.range(start..).map(Arc::clone).collect();
        Ok(Watch { backlog, ..self.watch() })
    }

    pub(crate) fn watch(&mut self) -> Watch {
        self.watchers.retain(|watcher| !watcher.is_closed());
        let (sender, live) = mpsc::channel(CAPACITY);
        self.watchers.push(sender);
        Watch { backlog: VecDeque::new(), live }
    }

    pub(crate) fn drop_watchers(&mut self) {
        self.watchers.clear();
    }
}

/// A rough size: parsed JSON and its text.
fn weight(event: &Event) -> usize {
    event.object.bytes().len() * 3
}
