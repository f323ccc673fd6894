//! What all handlers share, and what one request asks for.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use serde_json::Value;
use store::{Key, Object, Store};
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::errors::Status;
use crate::logs::LogHolder;
use crate::openapi::OpenApi;
use crate::registry::{Kind, Kinds, WriteContext};
use crate::request::Query;

/// The state of the server.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) kinds: Kinds,
    pub(crate) openapi: OpenApi,
    pub(crate) admission: Vec<Arc<dyn Admission>>,
    pub(crate) logs: ArcSwapOption<LogHolder>,
    pub(crate) tokens: crate::auth::Tokens,
    pub(crate) version: String,
    /// PEM, for the ConfigMap of every namespace.
    pub(crate) root_certificate: Option<String>,
    /// Ends watches and listeners.
    pub(crate) stop: CancellationToken,
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

/// One request on one resource.
pub(crate) struct Call {
    pub(crate) kind: Arc<Kind>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    pub(crate) identity: Arc<Identity>,
    pub(crate) dry_run: bool,
    pub(crate) fields: FieldValidation,
    pub(crate) now: jiff::Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// The outcome of a write.
pub(crate) struct Written {
    pub(crate) answer: Answer,
    pub(crate) warnings: Vec<String>,
    /// Something was committed, up to this revision.
    pub(crate) revision: Option<u64>,
}

pub(crate) enum Answer {
    Stored(Arc<Object>),
    /// A dry run, a deletion's final object, or a view such as Scale.
    Computed(Value),
}

// === impl Core ===

impl Core {
    pub(crate) fn get(&self, call: &Call) -> Result<Arc<Object>, Status> {
        self.store.get(&call.kind.storage, &call.key()).ok_or_else(|| Status::not_found(&call.kind, &call.name))
    }

    /// Hands a strategy what it may know.
    pub(crate) fn with_context<T>(&self, call: &Call, name: &str, work: impl FnOnce(&WriteContext<'_>) -> T) -> T {
        let lookup = |storage: &str, namespace: &str, name: &str| {
            self.store.get(storage, &Key::new(namespace, name)).map(|object| Arc::clone(&object.value))
        };
        work(&WriteContext {
            kind: &call.kind,
            namespace: &call.namespace,
            name,
            subresource: &call.subresource,
            user: &call.identity.user,
            groups: &call.identity.groups,
            dry_run: call.dry_run,
            now: call.now,
            lookup: &lookup,
        })
    }
}

// === impl Call ===

impl Call {
    pub(crate) fn key(&self) -> Key {
        Key::new(&*self.namespace, &*self.name)
    }

    /// The same caller and options on another resource.
    pub(crate) fn on(&self, kind: &Arc<Kind>, namespace: &str, name: &str, subresource: &str) -> Self {
        Self {
            kind: Arc::clone(kind),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
            identity: Arc::clone(&self.identity),
            dry_run: self.dry_run,
            fields: self.fields,
            now: self.now,
        }
    }
}

// === impl FieldValidation ===

impl FieldValidation {
    pub(crate) fn parse(query: &Query) -> Result<Self, Status> {
        match query.get("fieldValidation") {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => {
                let error = crate::FieldError::not_supported(
                    "fieldValidation",
                    &other.into(),
                    &["", "Ignore", "Strict", "Warn"],
                );
                Err(Status::invalid_options("PatchOptions", &[error]))
            }
        }
    }
}

/// `dryRun=All`.
pub(crate) fn dry_run(query: &Query) -> Result<bool, Status> {
    match query.get("dryRun") {
        "" => Ok(false),
        "All" => Ok(true),
        other => {
            let error = crate::FieldError::not_supported("dryRun", &other.into(), &["All"]);
            Err(Status::invalid_options("CreateOptions", &[error]))
        }
    }
}

// === impl Identity ===

impl Identity {
    pub fn new(user: impl Into<String>, groups: &[&str]) -> Self {
        Self { user: user.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }
}

// === impl Written ===

impl Written {
    pub(crate) fn stored(object: Arc<Object>, warnings: Vec<String>) -> Self {
        Self { revision: Some(object.revision), answer: Answer::Stored(object), warnings }
    }

    pub(crate) fn unchanged(object: Arc<Object>, warnings: Vec<String>) -> Self {
        Self { revision: None, answer: Answer::Stored(object), warnings }
    }

    pub(crate) fn computed(value: Value, revision: Option<u64>, warnings: Vec<String>) -> Self {
        Self { revision, answer: Answer::Computed(value), warnings }
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn value(&self) -> &Value {
        match self {
            Self::Stored(object) => &object.value,
            Self::Computed(value) => value,
        }
    }
}
