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
        let warnings = admission::validate_object(&translate(request), object, &self.snapshot())
            .map_err(|message| Denied::new(admission::VALIDATION_WEBHOOK, message))?;
        if request.dry_run && has_pods(request, object) {
            dry_run(&object["spec"]["template"]["spec"])
                .map_err(|message| Denied::new(admission::VALIDATION_WEBHOOK, message))?;
        }
        Ok(warnings)
    }
}

/// Whose template becomes pods, unless its owner is asked already.
fn has_pods(request: &AdmissionRequest<'_>, object: &Value) -> bool {
    let owned = || object["metadata"]["labels"].get(api::keys::serving::SERVICE).is_some();
    let kind = match request.kind {
        "Service" => true,
        "Configuration" => !owned(),
        _ => false,
    };
    kind && request.group == api::serving::GROUP
        && request.operation != Operation::Delete
        && request.subresource.is_empty()
}

/// Who tries a template out learns what its pods would be refused for as well.
fn dry_run(template: &Value) -> Result<(), String> {
    let mut spec = template.clone();
    let Some(fields) = spec.as_object_mut() else { return Ok(()) };
    fields.retain(|name, _| !name.ends_with("Seconds") && name != "containerConcurrency");
    for container in fields.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
        // Probes become others: the sidecar's, or with the port of the program.
        for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
            container.as_object_mut().map(|container| container.remove(probe));
        }
    }
    let errors: Vec<String> = apiserver::kinds::pod_errors(spec).iter().map(ToString::to_string).collect();
    if errors.is_empty() {
        return Ok(());
    }
    let list = errors.join(", ");
    let list = if errors.len() == 1 { list } else { format!("[{list}]") };
    Err(format!(
        "validation callback failed: dry run failed with Pod \"dry-run-validation\" is invalid: {list}: spec.template"
    ))
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patch(name: &str, dry_run: bool) -> Result<Vec<String>, Denied> {
        let object = json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "ns"},
            "spec": {"template": {"spec": {"containerConcurrency": 0, "timeoutSeconds": 300, "containers": [{
                "name": name, "image": "dev.local/hello", "resources": {},
                "readinessProbe": {"successThreshold": 1, "tcpSocket": {"port": 0}},
            }]}}, "traffic": [{"latestRevision": true, "percent": 100}]},
        });
        let request = AdmissionRequest {
            operation: Operation::Create,
            group: "serving.knative.dev",
            version: "v1",
            resource: "services",
            kind: "Service",
            namespace: "ns",
            name: "hello",
            subresource: "",
            user: "somebody",
            old: None,
            dry_run,
        };
        let knative = Knative::default();
        let mut object = object;
        knative.mutate(&request, &mut object).expect("defaulted");
        knative.validate(&request, &object)
    }

    #[test]
    fn a_dry_run_tells_what_pods_would_be_refused_for() {
        patch("user-container", true).expect("a good template");
        patch("&InvalidValue", false).expect("told by the pod, as upstream");
        let denied = patch("&InvalidValue", true).expect_err("no such name");
        assert_eq!(denied.webhook, admission::VALIDATION_WEBHOOK);
        let start = "validation callback failed: dry run failed with Pod \"dry-run-validation\" is invalid: \
            spec.containers[0].name: Invalid value: \"&InvalidValue\"";
        assert!(denied.message.starts_with(start), "{}", denied.message);
    }
}
