//! Watch streams: from the store's events to lines of JSON.
//!
//! A plain watch sends each event's line as it was serialised once for everybody. Selectors, Tables and other versions of a kind cost each watcher
//! its own work. Lines that are ready together leave in one frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use store::{Event, EventKind, Watch};
use tokio::time::Instant;

use crate::body::Body;
use crate::core::{Call, Core};
use crate::errors::{FieldError, Status};
use crate::pipeline::shown_as_stored;
use crate::read::{Filter, revision};
use crate::request::Query;
use crate::view::View;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Clients that name no time get one between this and twice this.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const FRAME_BYTES: usize = 64 << 10;

struct Stream {
    core: Arc<Core>,
    call: Call,
    filter: Filter,
    view: View,
    watch: Watch,
    /// Lines that are due before anything from `watch`.
    lines: VecDeque<Bytes>,
    until: Instant,
    bookmarks: bool,
    next_bookmark: Instant,
    /// The next Table carries the columns.
    first: bool,
    done: bool,
}

// === impl Core ===

impl Core {
    pub(crate) async fn watch(
        self: &Arc<Self>,
        call: Call,
        query: &Query,
        view: View,
    ) -> Result<Response<Body>, Status> {
        let filter = Filter::parse(&call.kind, query)?;
        let bookmarks = query.flag("allowWatchBookmarks");
        let initial = initial_events(query, bookmarks)?;
        let from = revision(query)?.filter(|revision| *revision > 0);
        let timeout = match query
            .number("timeoutSeconds")?
            .and_then(|seconds| u64::try_from(seconds).ok())
            .filter(|seconds| *seconds > 0)
        {
            Some(seconds) => Duration::from_secs(seconds),
            None => DEFAULT_TIMEOUT + Duration::from_secs(fastrand::u64(..DEFAULT_TIMEOUT.as_secs())),
        };
        if from.is_some_and(|from| from > self.store.revision()) {
            self.wait_for(query).await?;
        }
        let storage = call.kind.storage.clone();
        let namespace = Some(&*call.namespace).filter(|namespace| !namespace.is_empty());
        let (watch, snapshot) = match (initial, from) {
            (Some(true), _) | (None, None) => {
                let (snapshot, watch) = self.store.list_and_watch(&storage, namespace);
                (Ok(watch), Some(snapshot))
            }
            (Some(false), None) => (self.store.watch(&storage, self.store.revision()), None),
            (_, Some(from)) => (self.store.watch(&storage, from), None),
        };
        let now = Instant::now();
        let mut stream = match watch {
            Ok(watch) => Stream {
                core: Arc::clone(self),
                filter,
                view,
                watch,
                lines: VecDeque::new(),
                until: now + timeout,
                bookmarks,
                next_bookmark: now + BOOKMARK_EVERY,
                first: true,
                done: false,
                call,
            },
            Err(old) => {
                return Ok(respond(stream::iter([Ok(Frame::data(error_line(&Status::expired(old.to_string()))))])));
            }
        };
        if let Some(snapshot) = snapshot {
            for object in &snapshot.objects {
                if stream.filter.matches(&stream.call.kind, &object.value) {
                    stream.push(EventKind::Added, &object.value, None);
                }
            }
            if initial == Some(true) {
                let line = stream.bookmark(snapshot.revision, true);
                stream.lines.push_back(line);
            }
        }
        Ok(respond(stream::unfold(stream, |mut stream| async move {
            let frame = stream.next().await?;
            Some((Ok(Frame::data(frame)), stream))
        })))
    }
}

// === impl Stream ===

impl Stream {
    /// The next frame; None at the end.
    async fn next(&mut self) -> Option<Bytes> {
        let stop = self.core.stop.clone();
        loop {
            while let Some(event) = self.lines.len().lt(&256).then(|| self.watch.try_next()).flatten() {
                self.event(&event);
            }
            if !self.lines.is_empty() {
                return Some(self.frame());
            }
            if self.done {
                return None;
            }
            let timer = if self.bookmarks { self.until.min(self.next_bookmark) } else { self.until };
            tokio::select! {
                event = self.watch.next() => match event {
                    Some(event) => self.event(&event),
                    None => self.done = true,
                },
                () = stop.cancelled() => self.done = true,
                () = tokio::time::sleep_until(timer) => self.tick(),
            }
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.done = now >= self.until;
        if !self.bookmarks {
            return;
        }
        self.next_bookmark = now + BOOKMARK_EVERY;
        // Everything up to this revision is in the channel by now.
        let revision = self.core.store.revision();
        while let Some(event) = self.watch.try_next() {
            self.event(&event);
        }
        let line = self.bookmark(revision, false);
        self.lines.push_back(line);
    }

    fn event(&mut self, event: &Event) {
        let call = &self.call;
        if !call.namespace.is_empty() && call.namespace != event.object.key.namespace {
            return;
        }
        if self.filter.is_empty() {
            return self.push(event.kind, &event.object.value, Some(event));
        }
        let matched = |object: &store::Object| self.filter.matches(&call.kind, &object.value);
        let before = event.previous.as_ref().is_some_and(|object| matched(object));
        let after = event.kind != EventKind::Deleted && matched(&event.object);
        match (before, after) {
            (false, false) => {}
            (true, true) => self.push(EventKind::Modified, &event.object.value, Some(event)),
            (false, true) => self.push(EventKind::Added, &event.object.value, Some(event)),
            (true, false) if event.kind == EventKind::Deleted => {
                self.push(EventKind::Deleted, &event.object.value, Some(event))
            }
            // It has left: the old object under the revision at which it did.
            (true, false) => {
                let mut last = event.previous.as_ref().map(|object| Value::clone(&object.value)).unwrap_or_default();
                last["metadata"]["resourceVersion"] = event.revision().to_string().into();
                self.push(EventKind::Deleted, &last, None);
            }
        }
    }

    fn push(&mut self, kind: EventKind, object: &Value, event: Option<&Event>) {
        let line = match (self.view, event) {
            (View::Object, Some(event)) if event.kind == kind && shown_as_stored(&self.call.kind, object) => {
                event.frame().clone()
            }
            (view, _) => kind.frame(&view.event(&self.call.kind, object, jiff::Timestamp::now(), self.first)),
        };
        self.first = false;
        self.lines.push_back(line);
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let mut metadata = json!({ "resourceVersion": revision.to_string(), "creationTimestamp": null });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let kind = &self.call.kind;
        let object = match self.view {
            View::Object => json!({ "kind": &*kind.kind, "apiVersion": kind.api_version(), "metadata": metadata }),
            View::Metadata => {
                json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata })
            }
            View::Table(_) => {
                json!({ "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": null, "rows": [] })
            }
        };
        line("BOOKMARK", &object)
    }

    fn frame(&mut self) -> Bytes {
        if self.lines.len() == 1 {
            return self.lines.pop_front().unwrap_or_default();
        }
        let mut frame = BytesMut::new();
        while let Some(line) = self.lines.front() {
            if !frame.is_empty() && frame.len() + line.len() > FRAME_BYTES {
                break;
            }
            frame.extend_from_slice(line);
            self.lines.pop_front();
        }
        frame.freeze()
    }
}

/// Whether the present objects come first, when the client says so.
fn initial_events(query: &Query, bookmarks: bool) -> Result<Option<bool>, Status> {
    let wanted = match query.get("sendInitialEvents") {
        "" => None,
        _ => Some(query.flag("sendInitialEvents")),
    };
    let matching = query.get("resourceVersionMatch");
    let error = match (wanted, matching) {
        (Some(_), "NotOlderThan") if bookmarks || wanted == Some(false) => None,
        (Some(_), "NotOlderThan") => Some(FieldError::forbidden(
            "allowWatchBookmarks",
            "sendInitialEvents requires setting allowWatchBookmarks to true",
        )),
        (Some(_), _) => {
            let detail = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            Some(FieldError::forbidden("resourceVersionMatch", detail))
        }
        (None, "") => None,
        (None, _) => Some(FieldError::forbidden(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        )),
    };
    error.map_or(Ok(wanted), |error| Err(Status::invalid_options("ListOptions", &[error])))
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
}

fn error_line(status: &Status) -> Bytes {
    line("ERROR", &status.to_value())
}

fn respond(frames: impl futures::Stream<Item = std::io::Result<Frame<Bytes>>> + Send + 'static) -> Response<Body> {
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}
