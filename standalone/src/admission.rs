//! Knative's defaulting and validation in front of the embedded API: the same functions that the webhook serves.
//!
//! They look at ConfigMaps, which are read from the API they guard: until [`Knative::follow`] has run, upstream's
//! defaults are in force.

use std::sync::Arc;

use api::admission::{self, ConfigSnapshot, Request};
use api::config::{Autoscaler, Defaults, Features};
use apiserver::admission::{Admission, AdmissionRequest, Denied, Operation};
use controller::{Config, Context};
use parking_lot::RwLock;
use serde_json::Value;

/// The admission hook. Clones share the configuration.
#[derive(Debug, Clone, Default)]
pub struct Knative {
    config: Arc<RwLock<Option<Live>>>,
}

#[derive(Debug)]
struct Live {
    defaults: Config<Defaults>,
    features: Config<Features>,
    autoscaler: Config<Autoscaler>,
    cluster_domain: Arc<str>,
}

// === impl Knative ===

impl Knative {
    /// From now on the ConfigMaps of the system namespace count.
    ///
    /// # Errors
    /// If one is missing or does not parse.
    pub async fn follow(&self, ctx: &Context) -> Result<(), controller::Error> {
        let live = Live {
            defaults: Config::watch(ctx, "config-defaults", Defaults::parse).await?,
            features: Config::watch(ctx, "config-features", Features::parse).await?,
            autoscaler: Config::watch(ctx, "config-autoscaler", Autoscaler::parse).await?,
            cluster_domain: ctx.cluster_domain.as_str().into(),
        };
        *self.config.write() = Some(live);
        Ok(())
    }

    fn snapshot(&self) -> ConfigSnapshot {
        match &*self.config.read() {
            None => ConfigSnapshot::default(),
            Some(live) => ConfigSnapshot {
                defaults: live.defaults.load(),
                features: live.features.load(),
                autoscaler: live.autoscaler.load(),
                cluster_domain: live.cluster_domain.clone(),
            },
        }
    }
}

impl Admission for Knative {
    fn mutate(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<(), Denied> {
        if !admission::handles(request.group, request.kind) {
            return Ok(());
        }
        admission::default_object(&translate(request), object, &self.snapshot())
            .map_err(|message| Denied::new(admission::DEFAULTING_WEBHOOK, message))
    }

    fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> Result<Vec<String>, Denied> {
        if request.group.is_empty() && request.kind == "ConfigMap" && request.operation != Operation::Delete {
            let system = request.namespace == "knative-serving";
            let valid = if system { admission::validate_config_map(object) } else { Ok(()) };
            return valid.map(|()| Vec::new()).map_err(|message| Denied::new(admission::CONFIG_WEBHOOK, message));
        }
        if !admission::handles(request.group, request.kind) {
            return Ok(Vec::new());
        }
        admission::validate_object(&translate(request), object, &self.snapshot())
            .map_err(|message| Denied::new(admission::VALIDATION_WEBHOOK, message))
    }
}

fn translate<'a>(request: &AdmissionRequest<'a>) -> Request<'a> {
    Request {
        group: request.group,
        kind: request.kind,
        operation: match request.operation {
            Operation::Create => admission::Operation::Create,
            Operation::Update => admission::Operation::Update,
            Operation::Delete => admission::Operation::Delete,
        },
        subresource: Some(request.subresource).filter(|name| !name.is_empty()),
        namespace: request.namespace,
        user: request.user,
        old: request.old,
    }
}
