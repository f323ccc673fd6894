//! Kubernetes Events, off the reconcile path: recording never waits and never fails a reconcile.
//!
//! The same event about the same object raises the `count` of the one already there instead of adding another. The
//! queue and the memory of past events are bounded; beyond the bound events are dropped, with a log line.
//!
//! Telling what happened must not slow down what happens: events wait until nothing new was recorded for a moment
//! ([`QUIET`], at most [`LONGEST`]), so that a storm of wake-ups has the API to itself and its events follow.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::{Context, status::rfc3339};

const QUEUE: usize = 4096;
/// No new record for this long: time to write.
const QUIET: Duration = Duration::from_millis(250);
/// A record waits no longer than this.
const LONGEST: Duration = Duration::from_secs(2);
const REMEMBERED: usize = 4096;
/// Longer messages are cut, as the API refuses them.
const MESSAGE_LIMIT: usize = 1024;

/// Records events of one component. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Record>,
}

#[derive(Debug)]
struct Record {
    component: &'static str,
    about: ObjectReference,
    kind: &'static str,
    reason: String,
    message: String,
    at: Timestamp,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Same {
    uid: String,
    name: String,
    kind: &'static str,
    reason: String,
    message: String,
}

struct Seen {
    namespace: String,
    name: String,
    count: i32,
}

// === impl Recorder ===

impl Recorder {
    /// Starts the writing task on the context's group.
    pub fn new(ctx: &Context, component: &'static str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        ctx.tasks.spawn("events", write_all(ctx.client.clone(), receiver));
        Self { component, sender }
    }

    /// The same writing task under another component's name.
    pub fn named(&self, component: &'static str) -> Self {
        Self { component, sender: self.sender.clone() }
    }

    /// A recorder whose events go nowhere: for tests of reconcilers.
    pub fn discard() -> Self {
        let (sender, _) = mpsc::channel(1);
        Self { component: "test", sender }
    }

    pub fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, message: &str) {
        self.record(about, "Normal", reason, message);
    }

    pub fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &str, message: &str) {
        self.record(about, "Warning", reason, message);
    }

    fn record<K: Resource<DynamicType = ()>>(&self, about: &K, kind: &'static str, reason: &str, message: &str) {
        let mut message = message.to_owned();
        if message.len() > MESSAGE_LIMIT {
            message.truncate(message.floor_char_boundary(MESSAGE_LIMIT));
        }
        let record = Record {
            component: self.component,
            about: about.object_ref(&()),
            kind,
            reason: reason.to_owned(),
            message,
            at: Timestamp::now(),
        };
        if let Err(mpsc::error::TrySendError::Full(record)) = self.sender.try_send(record) {
            tracing::warn!(object = ?record.about.name, record.reason, "too many events waiting; this one is dropped");
        }
    }
}

async fn write_all(client: kube::Client, mut records: mpsc::Receiver<Record>) {
    let mut seen: HashMap<Same, Seen> = HashMap::new();
    while let Some(first) = records.recv().await {
        for record in gather(first, &mut records).await {
            write(&client, &mut seen, record).await;
        }
    }
}

/// The records up to the next quiet moment.
async fn gather(first: Record, records: &mut mpsc::Receiver<Record>) -> Vec<Record> {
    let latest = Instant::now() + LONGEST;
    let mut gathered = vec![first];
    while gathered.len() < QUEUE {
        let until = latest.min(Instant::now() + QUIET);
        match tokio::time::timeout_at(until, records.recv()).await {
            Ok(Some(record)) => gathered.push(record),
            Ok(None) | Err(_) => break,
        }
    }
    gathered
}

async fn write(client: &kube::Client, seen: &mut HashMap<Same, Seen>, record: Record) {
    if seen.len() >= REMEMBERED {
        seen.clear();
    }
    let same = Same {
        uid: record.about.uid.clone().unwrap_or_default(),
        name: record.about.name.clone().unwrap_or_default(),
        kind: record.kind,
        reason: record.reason.clone(),
        message: record.message.clone(),
    };
    if let Some(known) = seen.get_mut(&same) {
        known.count += 1;
        let api = Api::<Event>::namespaced(client.clone(), &known.namespace);
        let patch = json!({"count": known.count, "lastTimestamp": rfc3339(record.at)});
        if api.patch(&known.name, &PatchParams::default(), &Patch::Merge(&patch)).await.is_ok() {
            return;
        }
        seen.remove(&same);
    }
    let event = event_of(record);
    let namespace = event.namespace().unwrap_or_default();
    match Api::<Event>::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await {
        Ok(event) => {
            seen.insert(same, Seen { namespace, name: event.name_any(), count: 1 });
        }
        Err(error) => tracing::debug!(%error, object = same.name, reason = same.reason, "event not recorded"),
    }
}

fn event_of(record: Record) -> Event {
    let name = record.about.name.clone().unwrap_or_default();
    let namespace = record.about.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".to_owned());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", record.at.as_nanosecond())),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: record.about,
        type_: Some(record.kind.to_owned()),
        reason: Some(record.reason),
        message: Some(record.message),
        count: Some(1),
        first_timestamp: Some(Time(record.at)),
        last_timestamp: Some(Time(record.at)),
        source: Some(EventSource { component: Some(record.component.to_owned()), host: None }),
        reporting_component: Some(record.component.to_owned()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}
