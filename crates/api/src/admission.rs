//! Admission: what happens to an object on its way into the API.
//!
//! Two pure functions over JSON objects, [`default_object`] and [`validate_object`], and one for ConfigMaps. The embedded API calls
//! them in process, the webhook over HTTP; the texts are the same. Metadata is edited in place and only `spec` passes
//! through the types, so a field unknown to this version is never lost.

mod config_map;
mod objects;
mod users;

use std::sync::Arc;

use serde_json::Value;

pub use config_map::validate_config_map;
pub use objects::{default_object, validate_object};

use crate::config::{Autoscaler, Defaults, Features};

/// Names of the webhooks, which the API server puts before a denial.
pub const DEFAULTING_WEBHOOK: &str = "webhook.serving.knative.dev";
pub const VALIDATION_WEBHOOK: &str = "validation.webhook.serving.knative.dev";
pub const CONFIG_WEBHOOK: &str = "config.webhook.serving.knative.dev";

/// The configuration that defaulting and validation look at, frozen for one request or reconcile. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ConfigSnapshot {
    pub defaults: Arc<Defaults>,
    pub features: Arc<Features>,
    pub autoscaler: Arc<Autoscaler>,
    pub cluster_domain: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What is being done, besides the object itself.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub group: &'a str,
    pub kind: &'a str,
    pub operation: Operation,
    /// `Some("status")` for the status subresource.
    pub subresource: Option<&'a str>,
    pub namespace: &'a str,
    /// `userInfo.username`.
    pub user: &'a str,
    /// The stored object, on update.
    pub old: Option<&'a Value>,
}

// === impl ConfigSnapshot ===

impl Default for ConfigSnapshot {
    fn default() -> Self {
        Self {
            defaults: Arc::default(),
            features: Arc::default(),
            autoscaler: Arc::default(),
            cluster_domain: Arc::from("cluster.local"),
        }
    }
}

/// Whether objects of this kind are defaulted and validated here.
pub fn handles(group: &str, kind: &str) -> bool {
    matches!(
        (group, kind),
        (crate::serving::GROUP, "Service" | "Configuration" | "Revision" | "Route" | "DomainMapping")
            | (crate::autoscaling::GROUP, "PodAutoscaler" | "Metric")
            | (crate::networking::GROUP, "Ingress" | "ServerlessService" | "Certificate")
    )
}
