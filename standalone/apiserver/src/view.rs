//! In which form objects are sent: as they are, as rows of a Table, or as metadata only.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, header};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value};
use store::Object;

use crate::errors::Status;
use crate::pipeline::{in_version, shown_as_stored};
use crate::registry::Kind;
use crate::request::Query;
use crate::tables::{self, IncludeObject};

const ACCEPTED: [&str; 2] = ["application/json", "application/json;as=Table;v=v1;g=meta.k8s.io"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Object,
    Table(IncludeObject),
    Metadata,
}

// === impl View ===

impl View {
    /// The first form of the Accept header that we have.
    pub(crate) fn negotiate(headers: &HeaderMap, query: &Query) -> Result<Self, Status> {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accept.trim().is_empty() {
            return Ok(Self::Object);
        }
        for clause in accept.split(',') {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(media, "application/json" | "*/*" | "application/*") {
                continue;
            }
            let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
            let parameter =
                |name: &str| parameters.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| *value);
            match (parameter("as"), parameter("g"), parameter("v")) {
                ("", _, _) => return Ok(Self::Object),
                ("Table", "meta.k8s.io", "v1") => {
                    let include = IncludeObject::parse(query.get("includeObject")).map_err(Status::bad_request)?;
                    return Ok(Self::Table(include));
                }
                ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                    return Ok(Self::Metadata);
                }
                _ => {}
            }
        }
        Err(Status::not_acceptable(&ACCEPTED))
    }

    /// One object as the whole answer.
    pub(crate) fn object(self, kind: &Kind, object: &Value, stored: Option<&Object>, now: jiff::Timestamp) -> Bytes {
        match (self, stored) {
            (Self::Object, Some(stored)) if shown_as_stored(kind, object) => stored.bytes().clone(),
            (Self::Object, _) => text(&*in_version(kind, object)),
            (Self::Table(include), _) => text(&tables::of_object(kind, &in_version(kind, object), include, now, true)),
            (Self::Metadata, _) => text(&tables::partial_metadata(object)),
        }
    }

    /// The object of one watch event.
    pub(crate) fn event(self, kind: &Kind, object: &Value, now: jiff::Timestamp, first: bool) -> Bytes {
        match self {
            Self::Table(include) => text(&tables::of_object(kind, &in_version(kind, object), include, now, first)),
            other => other.object(kind, object, None, now),
        }
    }

    pub(crate) fn list<'a>(
        self,
        kind: &Kind,
        objects: impl Iterator<Item = &'a Object> + Clone,
        metadata: Value,
        now: jiff::Timestamp,
    ) -> Bytes {
        match self {
            Self::Object => {
                let mut out = format!(
                    "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    kind.list_kind,
                    kind.api_version()
                )
                .into_bytes();
                for (index, object) in objects.enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    match in_version(kind, &object.value) {
                        Cow::Borrowed(_) if kind.custom => out.extend_from_slice(object.bytes()),
                        value if kind.custom => out.extend_from_slice(&text(&*value)),
                        value => out.extend_from_slice(&text(&Bare(&value))),
                    }
                }
                out.extend_from_slice(b"]}");
                out.into()
            }
            Self::Table(include) => {
                let objects: Vec<Cow<'_, Value>> = objects.map(|object| in_version(kind, &object.value)).collect();
                text(&tables::table(kind, objects.iter().map(|object| &**object), metadata, include, now, true))
            }
            Self::Metadata => {
                let items: Vec<Value> = objects.map(|object| tables::partial_metadata(&object.value)).collect();
                text(&serde_json::json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
                }))
            }
        }
    }
}

/// Items of built-in lists leave kind and apiVersion to the list.
struct Bare<'a>(&'a Value);

impl Serialize for Bare<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let empty = Map::new();
        let fields = self.0.as_object().unwrap_or(&empty);
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in fields.iter().filter(|(name, _)| *name != "kind" && *name != "apiVersion") {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn text(value: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(value).expect("a JSON value always serialises"))
}
