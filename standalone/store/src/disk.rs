//! The durable image: one redb file, written in groups by one thread.
//!
//! Commits are queued in their order and written together: the thread takes what is there, waits a moment for more unless somebody waits for it,
//! and makes one transaction of it. Memory may therefore be ahead of the disk when the process is killed, and clients may have seen those
//! revisions. So that the counter never goes back, the file also holds a ceiling that the counter stays below while the process runs; after an
//! unclean end the counter continues from the ceiling.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch as latest;

use crate::object::{Key, Object};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const COUNTERS: TableDefinition<'_, &str, u64> = TableDefinition::new("counters");
const REVISION: &str = "revision";
const CEILING: &str = "ceiling";
/// No process commits that often between two group commits.
const RESERVE: u64 = 1_000_000;
/// How long a group waits for company when nobody waits for the group.
const GATHER: Duration = Duration::from_millis(5);
const CACHE_BYTES: usize = 4 << 20;

/// The database cannot be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "cannot open the object database {path}: {source}; check the path, its permissions and that no other process uses it"
    )]
    Open { path: String, source: Arc<redb::Error> },
    #[error("the object database {path} has an unreadable object {key}: {source}; restore the file from a copy")]
    Object { path: String, key: String, source: Arc<serde_json::Error> },
    #[error("cannot write the object database: {0}; check the free space of its disk and start again")]
    Write(String),
}

pub(crate) struct Record {
    pub(crate) resource: String,
    pub(crate) key: Key,
    pub(crate) object: Option<Arc<Object>>,
    pub(crate) revision: u64,
}

enum Message {
    Record(Record),
    /// Somebody waits.
    Hurry,
    Stop,
}

#[derive(Default)]
pub(crate) struct Loaded {
    pub(crate) revision: u64,
    pub(crate) objects: Vec<(String, Object)>,
}

pub(crate) struct Disk {
    queue: mpsc::Sender<Message>,
    written: latest::Receiver<Result<u64, DiskError>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

// === impl Disk ===

impl Disk {
    pub(crate) fn open(path: &Path) -> Result<(Self, Loaded), DiskError> {
        let shown = path.display().to_string();
        let failed = |source: redb::Error| DiskError::Open { path: shown.clone(), source: Arc::new(source) };
        let database =
            Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| failed(error.into()))?;
        let loaded = load(&database, &shown, &failed)?;
        let (queue, messages) = mpsc::channel();
        let (done, written) = latest::channel(Ok(loaded.revision));
        let start = loaded.revision;
        write(&database, &[], start, start + RESERVE).map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer(&database, &messages, &done, start))
            .map_err(|error| failed(redb::Error::Io(error)))?;
        Ok((Self { queue, written, thread: Mutex::new(Some(thread)) }, loaded))
    }

    pub(crate) fn write(&self, record: Record) {
        // The receiver only goes away after a write error, which `durable` reports.
        let _ = self.queue.send(Message::Record(record));
    }

    pub(crate) async fn durable(&self, revision: u64) -> Result<(), DiskError> {
        let mut written = self.written.clone();
        if matches!(*written.borrow(), Ok(done) if done >= revision) {
            return Ok(());
        }
        let _ = self.queue.send(Message::Hurry);
        let outcome = written.wait_for(|done| !matches!(done, Ok(done) if *done < revision)).await;
        match outcome {
            Ok(done) => done.clone().map(drop),
            Err(_) => Err(DiskError::Write("the writer has ended".to_owned())),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.queue.send(Message::Stop);
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

fn load(database: &Database, path: &str, failed: &dyn Fn(redb::Error) -> DiskError) -> Result<Loaded, DiskError> {
    let mut loaded = Loaded { revision: 1, objects: Vec::new() };
    let transaction = database.begin_read().map_err(|error| failed(error.into()))?;
    match transaction.open_table(COUNTERS) {
        Ok(counters) => {
            let counter = |name| counters.get(name).map(|found| found.map(|value| value.value()));
            let revision = counter(REVISION).map_err(|error| failed(error.into()))?;
            let ceiling = counter(CEILING).map_err(|error| failed(error.into()))?;
            loaded.revision = ceiling.or(revision).unwrap_or(1);
        }
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(loaded),
        Err(error) => return Err(failed(error.into())),
    }
    let objects = transaction.open_table(OBJECTS).map_err(|error| failed(error.into()))?;
    for entry in objects.iter().map_err(|error| failed(error.into()))? {
        let (path_key, bytes) = entry.map_err(|error| failed(error.into()))?;
        let mut parts = path_key.value().splitn(3, '\0');
        let (Some(resource), Some(namespace), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let object = Object::loaded(Key::new(namespace, name), bytes.value()).map_err(|source| DiskError::Object {
            path: path.to_owned(),
            key: format!("{resource} {namespace}/{name}"),
            source: Arc::new(source),
        })?;
        loaded.objects.push((resource.to_owned(), object));
    }
    Ok(loaded)
}

fn writer(
    database: &Database,
    messages: &mpsc::Receiver<Message>,
    done: &latest::Sender<Result<u64, DiskError>>,
    start: u64,
) {
    let mut revision = start;
    let mut ceiling = start + RESERVE;
    let mut stop = false;
    while !stop {
        let mut group = Vec::new();
        stop = gather(messages, &mut group);
        revision = group.last().map_or(revision, |record: &Record| record.revision);
        if revision + RESERVE / 2 > ceiling {
            ceiling = revision + RESERVE;
        }
        // A clean end leaves no reserve behind.
        let limit = if stop { revision } else { ceiling };
        if group.is_empty() && !stop {
            continue;
        }
        if let Err(error) = write(database, &group, revision, limit) {
            tracing::error!(%error, "cannot write the object database; changes are no longer kept");
            let _ = done.send_replace(Err(DiskError::Write(error.to_string())));
            return;
        }
        let _ = done.send_replace(Ok(revision));
    }
}

/// Waits for the first record, then for its company. True when the store is closed.
fn gather(messages: &mpsc::Receiver<Message>, group: &mut Vec<Record>) -> bool {
    let mut until: Option<Instant> = None;
    loop {
        let message = match until {
            None => messages.recv().ok(),
            Some(until) => match messages.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => Some(message),
                Err(mpsc::RecvTimeoutError::Timeout) => return false,
                Err(mpsc::RecvTimeoutError::Disconnected) => None,
            },
        };
        match message {
            Some(Message::Record(record)) => {
                group.push(record);
                until.get_or_insert_with(|| Instant::now() + GATHER);
            }
            Some(Message::Hurry) => until = Some(Instant::now()),
            Some(Message::Stop) | None => return true,
        }
    }
}

fn write(database: &Database, group: &[Record], revision: u64, ceiling: u64) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut objects = transaction.open_table(OBJECTS)?;
        for record in group {
            let path = format!("{}\0{}\0{}", record.resource, record.key.namespace, record.key.name);
            match &record.object {
                Some(object) => drop(objects.insert(path.as_str(), &object.bytes()[..])?),
                None => drop(objects.remove(path.as_str())?),
            }
        }
        let mut counters = transaction.open_table(COUNTERS)?;
        counters.insert(REVISION, revision)?;
        counters.insert(CEILING, ceiling)?;
    }
    transaction.commit()?;
    Ok(())
}
