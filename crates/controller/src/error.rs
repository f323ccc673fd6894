//! How a reconcile can end other than well, and what the loop does about it.

use std::time::Duration;

/// Result of one reconcile that did not simply succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody else wrote first: retried with back-off, no event.
    #[error("conflict: {0}")]
    Conflict(String),
    /// Retrying will not help; an event tells why, and the next change of the object tries again.
    #[error("{0}")]
    Permanent(String),
    /// Retried with back-off, and shown as an `InternalError` event.
    #[error("{0}")]
    Retry(String),
    /// Nothing to do here (not ours, not now): forgotten without an event.
    #[error("skipped")]
    Skip,
    /// Not an error: come back after this long.
    #[error("requeue after {0:?}")]
    RequeueAfter(Duration),
}

// === impl Error ===

impl Error {
    /// `context: cause`, keeping a conflict a conflict.
    pub fn context(self, context: impl std::fmt::Display) -> Self {
        match self {
            Error::Conflict(e) => Error::Conflict(format!("{context}: {e}")),
            Error::Permanent(e) => Error::Permanent(format!("{context}: {e}")),
            Error::Retry(e) => Error::Retry(format!("{context}: {e}")),
            other => other,
        }
    }

    pub fn retry(message: impl Into<String>) -> Self {
        Error::Retry(message.into())
    }

    /// Whether the loop tells the user through an event.
    pub fn is_reported(&self) -> bool {
        matches!(self, Error::Permanent(_) | Error::Retry(_))
    }
}

impl From<kube::Error> for Error {
    /// An object that exists already is one that the cache does not show yet: like a conflict, it is looked at again
    /// without a word to the user.
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 409 => Error::Conflict(status.message),
            kube::Error::Api(status) => Error::Retry(status.message),
            other => Error::Retry(other.to_string()),
        }
    }
}

/// Whether the API answered `404 NotFound`.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API answered `409 AlreadyExists`.
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists")
}

/// Whether the API answered `409 Conflict`.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict")
}
