//! GET of one object and of collections.
//!
//! Pages are served by key from the present state under the revision of the first page. That is consistent for a client that goes on watching
//! from that revision as long as its events are still in memory; when they are not, the page answers 410 and the client starts again.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::{Value, json};
use store::{Key, Object, Snapshot};

use crate::core::{Call, Core};
use crate::errors::{FieldError, Status};
use crate::pipeline::in_version;
use crate::registry::Kind;
use crate::request::Query;
use crate::selectors::{FieldSelector, LabelSelector};
use crate::view::View;

/// How long a read waits for a revision that is not there yet.
const FUTURE: Duration = Duration::from_secs(3);

/// Which objects of a collection.
pub(crate) struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
}

struct Continue {
    revision: u64,
    after: Key,
}

// === impl Filter ===

impl Filter {
    pub(crate) fn parse(kind: &Kind, query: &Query) -> Result<Self, Status> {
        let labels = LabelSelector::parse(query.get("labelSelector")).map_err(|error| {
            Status::bad_request(format!(
                "unable to parse requirement: {}",
                error.trim_start_matches("unable to parse requirement: ")
            ))
        })?;
        let fields = FieldSelector::parse(query.get("fieldSelector")).map_err(Status::bad_request)?;
        fields.check(kind).map_err(Status::bad_request)?;
        Ok(Self { labels, fields })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, kind: &Kind, object: &Value) -> bool {
        self.labels.matches_object(object)
            && (self.fields.is_empty() || self.fields.matches(kind, &in_version(kind, object)))
    }
}

// === impl Core ===

impl Core {
    pub(crate) async fn read(&self, call: &Call, query: &Query, view: View) -> Result<Bytes, Status> {
        self.wait_for(query).await?;
        let object = self.get(call)?;
        Ok(view.object(&call.kind, &object.value, Some(&object), call.now))
    }

    pub(crate) async fn list(&self, call: &Call, query: &Query, view: View) -> Result<Bytes, Status> {
        let kind = &*call.kind;
        let filter = Filter::parse(kind, query)?;
        check_options(query)?;
        let exact = self.wait_for(query).await?.filter(|_| query.get("resourceVersionMatch") == "Exact");
        let limit = usize::try_from(query.number("limit")?.unwrap_or_default()).unwrap_or_default();
        let from = match query.get("continue") {
            "" => None,
            token => Some(self.check_continue(kind, Continue::parse(token)?)?),
        };
        let mut snapshot = self.select(call, &filter);
        if let Some(revision) = exact.filter(|revision| *revision != snapshot.revision) {
            self.check_memory(kind, revision)?;
        }
        if let Some(from) = &from {
            snapshot.objects.retain(|object| object.key > from.after);
            snapshot.revision = from.revision;
        }
        let mut metadata = json!({ "resourceVersion": snapshot.revision.to_string() });
        if limit > 0 && snapshot.objects.len() > limit {
            let remaining = snapshot.objects.len() - limit;
            snapshot.objects.truncate(limit);
            let after = snapshot.objects[limit - 1].key.clone();
            metadata["continue"] = Continue { revision: snapshot.revision, after }.text().into();
            if filter.is_empty() {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        Ok(view.list(kind, snapshot.objects.iter().map(|object| &**object), metadata, call.now))
    }

    /// The objects of a collection request, in order.
    pub(crate) fn select(&self, call: &Call, filter: &Filter) -> Snapshot {
        let namespace = Some(&*call.namespace).filter(|namespace| !namespace.is_empty());
        let named = filter.fields.exact("metadata.name").filter(|_| namespace.is_some() || !call.kind.namespaced());
        let mut snapshot = match named {
            // By name: a lookup, not a scan.
            Some(name) => {
                let revision = self.store.revision();
                let object = self.store.get(&call.kind.storage, &Key::new(&*call.namespace, name));
                Snapshot { objects: object.into_iter().collect::<Vec<Arc<Object>>>(), revision }
            }
            None => self.store.list(&call.kind.storage, namespace),
        };
        if !filter.is_empty() {
            snapshot.objects.retain(|object| filter.matches(&call.kind, &object.value));
        }
        snapshot
    }

    /// Waits for the revision a client has already seen elsewhere.
    pub(crate) async fn wait_for(&self, query: &Query) -> Result<Option<u64>, Status> {
        let Some(revision) = revision(query)?.filter(|revision| *revision > 0) else { return Ok(None) };
        if revision > self.store.revision() && !self.store.reached(revision, FUTURE).await {
            return Err(Status::future_revision(revision, self.store.revision()));
        }
        Ok(Some(revision))
    }

    fn check_continue(&self, kind: &Kind, token: Continue) -> Result<Continue, Status> {
        match self.store.watch(&kind.storage, token.revision) {
            Ok(_) => Ok(token),
            Err(_) => {
                let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                               without the continue parameter, or use the continue token in this response to retrieve the remainder of \
                               the results. Continuing with the provided token results in an inconsistent list - objects that were \
                               created, modified, or deleted between the time the first chunk was returned and now may show up in the \
                               list.";
                let mut status = Status::expired(message);
                let fresh = Continue { revision: self.store.revision(), after: token.after };
                status.details = Some(json!({}));
                status.list_continue = Some(fresh.text());
                Err(status)
            }
        }
    }

    /// A list at an exact revision is possible when nothing has changed since.
    fn check_memory(&self, kind: &Kind, revision: u64) -> Result<(), Status> {
        let unchanged = self.store.watch(&kind.storage, revision).is_ok_and(|mut watch| watch.try_next().is_none());
        if unchanged {
            Ok(())
        } else {
            Err(Status::expired(format!("The resourceVersion for the provided list is too old: {revision}")))
        }
    }
}

/// The resourceVersion parameter.
pub(crate) fn revision(query: &Query) -> Result<Option<u64>, Status> {
    match query.get("resourceVersion") {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            let error = FieldError::invalid("resourceVersion", &text.into(), "strconv.ParseUint: invalid syntax");
            Status::invalid_options("ListOptions", &[error])
        }),
    }
}

fn check_options(query: &Query) -> Result<(), Status> {
    let mut errors = Vec::new();
    if !query.get("sendInitialEvents").is_empty() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    let forbidden = |detail: &str| FieldError::forbidden("resourceVersionMatch", detail);
    match (query.get("resourceVersionMatch"), query.get("resourceVersion")) {
        ("", _) => {}
        ("Exact" | "NotOlderThan", "") => {
            errors.push(forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"))
        }
        ("Exact", "0") => {
            errors.push(forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""))
        }
        ("Exact" | "NotOlderThan", _) => {}
        (other, _) => {
            errors.push(FieldError::not_supported("resourceVersionMatch", &other.into(), &["Exact", "NotOlderThan"]))
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_options("ListOptions", &errors)) }
}

// === impl Continue ===

impl Continue {
    fn parse(token: &str) -> Result<Self, Status> {
        let invalid = || Status::bad_request("continue key is not valid: it is not one of this server's");
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|_| invalid())?;
        let value: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        let (Some(revision), Some(namespace), Some(name)) =
            (value["rv"].as_u64(), value["ns"].as_str(), value["start"].as_str())
        else {
            return Err(invalid());
        };
        Ok(Self { revision, after: Key::new(namespace, name) })
    }

    fn text(&self) -> String {
        let token =
            json!({ "v": "meta.k8s.io/v1", "rv": self.revision, "ns": self.after.namespace, "start": self.after.name });
        URL_SAFE_NO_PAD.encode(token.to_string())
    }
}
