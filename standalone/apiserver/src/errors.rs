//! Failures as Kubernetes reports them: the `Status` object, and field errors that add up to one 422.
//!
//! Messages and details follow what API machinery emits, because clients parse them: kubectl prints them verbatim, client libraries look at
//! `reason`, and `details.kind` is the plural resource everywhere except for invalid objects, where it is the kind.

use std::fmt;

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::registry::Kind;

/// A failure that becomes a `Status` object.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: StatusCode,
    pub reason: &'static str,
    pub message: String,
    /// name, group, kind, uid, causes, retryAfterSeconds
    pub details: Option<Value>,
    /// Not a Status object but this text: an unknown group answers `404 page not found`.
    pub plain: bool,
    /// metadata.continue of an expired list.
    pub list_continue: Option<String>,
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    pub reason: FieldReason,
    /// `spec.template.spec.containers[0].image`; empty for the object as a whole.
    pub field: String,
    /// Everything after the field: `Required value: must be set`.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldReason {
    Required,
    Invalid,
    TypeInvalid,
    NotSupported,
    Duplicate,
    Forbidden,
    TooLong,
    TooMany,
    NotFound,
    InternalError,
}

// === impl FieldError ===

impl FieldError {
    pub fn new(reason: FieldReason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, field: field.into(), message: message.into() }
    }

    fn titled(reason: FieldReason, field: impl Into<String>, title: &str, detail: &str) -> Self {
        Self::new(reason, field, if detail.is_empty() { title.to_owned() } else { format!("{title}: {detail}") })
    }

    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self::titled(FieldReason::Required, field, "Required value", detail)
    }

    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self::titled(FieldReason::Invalid, field, &format!("Invalid value: {}", shown(value)), detail)
    }

    /// A value of the wrong type; upstream shows the type instead of the value.
    pub fn type_invalid(field: impl Into<String>, shown: &str, detail: &str) -> Self {
        Self::titled(FieldReason::TypeInvalid, field, &format!("Invalid value: \"{shown}\""), detail)
    }

    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let supported: Vec<String> = supported.iter().map(|one| format!("\"{one}\"")).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        Self::titled(FieldReason::NotSupported, field, &format!("Unsupported value: {}", shown(value)), &detail)
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::titled(FieldReason::Duplicate, field, &format!("Duplicate value: {}", shown(value)), "")
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::titled(FieldReason::Forbidden, field, "Forbidden", detail)
    }

    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::titled(FieldReason::NotFound, field, &format!("Not found: {}", shown(value)), "")
    }

    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        Self::titled(FieldReason::TooLong, field, "Too long", &format!("may not be more than {limit} bytes"))
    }

    pub fn too_many(field: impl Into<String>, actual: usize, limit: usize) -> Self {
        Self::titled(
            FieldReason::TooMany,
            field,
            &format!("Too many: {actual}"),
            &format!("must have at most {limit} items"),
        )
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            out.write_str(&self.message)
        } else {
            write!(out, "{}: {}", self.field, self.message)
        }
    }
}

impl FieldReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::TypeInvalid => "FieldValueTypeInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::NotFound => "FieldValueNotFound",
            Self::InternalError => "InternalError",
        }
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        other => other.to_string(),
    }
}

// === impl Status ===

impl Status {
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, plain: false, list_continue: None }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        let mut details = Map::new();
        if !name.is_empty() {
            details.insert("name".into(), name.into());
        }
        if !kind.group.is_empty() {
            details.insert("group".into(), (&*kind.group).into());
        }
        details.insert("kind".into(), (&*kind.plural).into());
        self.details = Some(Value::Object(details));
        self
    }

    fn cause(mut self, cause: Value) -> Self {
        let details = self.details.get_or_insert_with(|| json!({}));
        match details.get_mut("causes").and_then(Value::as_array_mut) {
            Some(causes) => causes.push(cause),
            None => details["causes"] = json!([cause]),
        }
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = match name {
            "" => format!("{} is forbidden: {why}", kind.resource()),
            name => format!("{} {name:?} is forbidden: {why}", kind.resource()),
        };
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind, name)
    }

    pub fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{} {name:?} not found", kind.resource()))
            .about(kind, name)
    }

    /// A path nothing serves below a group that exists.
    pub fn no_such_resource() -> Self {
        let mut status =
            Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource");
        status.details = Some(json!({}));
        status
    }

    /// A path outside everything; clients tell a missing API from a missing object by this text.
    pub fn no_such_page() -> Self {
        Self { plain: true, ..Self::new(StatusCode::NOT_FOUND, "NotFound", "404 page not found\n") }
    }

    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::new(StatusCode::CONFLICT, "AlreadyExists", format!("{} {name:?} already exists", kind.resource()))
            .about(kind, name)
    }

    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.resource());
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(kind, name)
    }

    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub fn invalid(kind: &Kind, name: &str, errors: &[FieldError]) -> Self {
        let list = match errors {
            [one] => one.to_string(),
            many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let mut details = json!({ "name": name, "kind": &*kind.kind });
        if !kind.group.is_empty() {
            details["group"] = (&*kind.group).into();
        }
        details["causes"] = errors
            .iter()
            .map(|error| json!({ "reason": error.reason.as_str(), "message": error.message, "field": error.field }))
            .collect();
        let message = format!("{} {name:?} is invalid: {list}", kind.qualified_kind());
        Self { details: Some(details), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message) }
    }

    /// List options that do not go together.
    pub fn invalid_options(kind: &str, errors: &[FieldError]) -> Self {
        let options = Kind::new("meta.k8s.io", "v1", kind.to_owned(), "listoptions", crate::registry::Scope::Cluster);
        let mut status = Self::invalid(&options, "", errors);
        status.message = status.message.replace(" \"\" is invalid", " is invalid");
        if let Some(Value::Object(details)) = &mut status.details {
            details.remove("name");
        }
        status
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self { details: Some(json!({})), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message) }
    }

    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", "Request entity too large: limit is 3145728")
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub fn future_revision(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let mut status = Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", format!("Timeout: {message}"));
        status.details = Some(json!({ "retryAfterSeconds": 1 }));
        status.cause(json!({ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }))
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        let mut status = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {message}"),
        );
        status.details = Some(json!({ "causes": [{ "message": message.to_string() }] }));
        status
    }

    pub fn namespace_terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let message = format!("namespace {namespace} is being terminated");
        Self::forbidden(kind, name, &why)
            .cause(json!({ "reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace" }))
    }

    /// The object clients get.
    pub fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let Some(token) = &self.list_continue {
            status["metadata"] = json!({ "continue": token });
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}
