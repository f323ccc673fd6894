//! In-process admission: defaulting and validation that is not part of the API itself, called where the API server calls webhooks.

use http::StatusCode;
use serde_json::Value;

use crate::errors::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What is being done to what.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionRequest<'a> {
    pub operation: Operation,
    pub group: &'a str,
    pub version: &'a str,
    /// The plural.
    pub resource: &'a str,
    pub kind: &'a str,
    /// Empty for cluster scope.
    pub namespace: &'a str,
    pub name: &'a str,
    /// Empty for the main path.
    pub subresource: &'a str,
    pub user: &'a str,
    /// None on create.
    pub old: Option<&'a Value>,
    pub dry_run: bool,
}

/// A refusal.
#[derive(Clone, Debug)]
pub struct Denied {
    /// Who refuses, as a webhook is named: `validation.webhook.serving.knative.dev`.
    pub webhook: String,
    /// 400 unless there is a better one.
    pub code: u16,
    pub message: String,
}

/// Called for every write, in order of registration: all `mutate`, then, after the schema, all `validate`. Both must be quick and without side
/// effects. On delete only `validate` is called, with the stored object.
pub trait Admission: Send + Sync {
    fn mutate(&self, _request: &AdmissionRequest<'_>, _object: &mut Value) -> Result<(), Denied> {
        Ok(())
    }

    /// Warnings for the client, or a refusal.
    fn validate(&self, _request: &AdmissionRequest<'_>, _object: &Value) -> Result<Vec<String>, Denied> {
        Ok(Vec::new())
    }
}

// === impl Denied ===

impl Denied {
    pub fn new(webhook: impl Into<String>, message: impl Into<String>) -> Self {
        Self { webhook: webhook.into(), code: 400, message: message.into() }
    }
}

impl From<Denied> for Status {
    fn from(denied: Denied) -> Self {
        let code = StatusCode::from_u16(denied.code).unwrap_or(StatusCode::BAD_REQUEST);
        let reason = match denied.code {
            403 => "Forbidden",
            409 => "Conflict",
            422 => "Invalid",
            500 => "InternalError",
            _ => "BadRequest",
        };
        Self::new(
            code,
            reason,
            format!("admission webhook {:?} denied the request: {}", denied.webhook, denied.message),
        )
    }
}

// === impl Operation ===

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}
