//! Events: one storage, two vocabularies, and an end after an hour.
//!
//! The stored form is the core one, which `kubectl describe` selects on; events.k8s.io is a view with other names for the same fields.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::edit::{remove, set, text};
use crate::{FieldError, FieldLabel, Strategy, WriteContext};

/// How long an event is kept after it last happened.
pub const EVENT_TTL: SignedDuration = SignedDuration::from_hours(1);

/// Core name, events.k8s.io name.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

pub(super) struct Event;

pub(super) fn to_core(event: &mut Value) {
    rename(event, RENAMED.into_iter().map(|(core, other)| (other, core)), "v1");
}

pub(super) fn from_core(event: &mut Value) {
    rename(event, RENAMED, "events.k8s.io/v1");
}

fn rename<'a>(event: &mut Value, names: impl IntoIterator<Item = (&'a str, &'a str)>, api_version: &str) {
    for (from, to) in names {
        if let Some(value) = remove(event, from).filter(|value| !value.is_null()) {
            set(event, to, value);
        }
    }
    set(event, "apiVersion", api_version);
}

/// What field selectors may name. The pointers are into the stored form and, for the other vocabulary, into the view as well.
pub(super) fn labels(view: bool) -> Vec<FieldLabel> {
    let prefix = if view { "regarding" } else { "involvedObject" };
    let mut labels: Vec<FieldLabel> =
        ["kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath"]
            .into_iter()
            .map(|field| FieldLabel {
                label: format!("{prefix}.{field}").into(),
                pointers: vec![format!("/involvedObject/{field}").into(), format!("/regarding/{field}").into()],
                default: "".into(),
            })
            .collect();
    let component = |label: &'static str| FieldLabel {
        label: label.into(),
        pointers: ["/source/component", "/deprecatedSource/component", "/reportingComponent", "/reportingController"]
            .map(Into::into)
            .to_vec(),
        default: "".into(),
    };
    labels.extend(["reason", "type"].map(FieldLabel::dotted));
    labels.push(component(if view { "reportingController" } else { "reportingComponent" }));
    labels.push(component("source"));
    labels
}

/// Whether the event is older than it is worth keeping.
pub fn event_expired(event: &Value, now: Timestamp) -> bool {
    let times = [
        "/series/lastObservedTime",
        "/lastTimestamp",
        "/deprecatedLastTimestamp",
        "/eventTime",
        "/metadata/creationTimestamp",
    ];
    let latest = times.into_iter().filter_map(|pointer| text(event, pointer).parse::<Timestamp>().ok()).max();
    latest.is_some_and(|latest| now.duration_since(latest) > EVENT_TTL)
}

// === impl Event ===

impl Strategy for Event {
    fn validate(&self, cx: &WriteContext<'_>, event: &Value, old: Option<&Value>) -> Vec<FieldError> {
        if old.is_some() {
            return Vec::new();
        }
        let (prefix, about) = match event.get("regarding") {
            Some(regarding) => ("regarding", regarding),
            None => ("involvedObject", event.get("involvedObject").unwrap_or(&Value::Null)),
        };
        let namespace = text(about, "/namespace");
        // Events about cluster-scoped objects live in `default`.
        let fits = if namespace.is_empty() {
            matches!(cx.namespace, "default" | "kube-system")
        } else {
            namespace == cx.namespace
        };
        if fits {
            return Vec::new();
        }
        vec![FieldError::invalid(format!("{prefix}.namespace"), &namespace.into(), "does not match event.namespace")]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_vocabularies() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod"}, "message": "m", "count": 2,
            "reportingComponent": "c", "eventTime": "2026-11-20T10:00:00.000000Z"});
        let mut view = core.clone();
        from_core(&mut view);
        assert_eq!(view["regarding"]["kind"], "Pod");
        assert_eq!(view["note"], "m");
        assert_eq!(view["deprecatedCount"], 2);
        assert!(view.get("message").is_none());
        to_core(&mut view);
        assert_eq!(view, core);
    }

    #[test]
    fn an_hour_after_it_last_happened() {
        let event =
            json!({"metadata": {"creationTimestamp": "2026-11-20T08:00:00Z"}, "lastTimestamp": "2026-11-20T09:30:00Z"});
        let at = |text: &str| event_expired(&event, text.parse().expect("a time"));
        assert!(!at("2026-11-20T10:29:00Z"));
        assert!(at("2026-11-20T10:31:00Z"));
        assert!(!event_expired(&json!({}), Timestamp::now()));
    }
}
