//! What is scaled: read from a watch of the revisions' Deployments, written through the `scale` subresource, so that any kind with
//! that subresource can be a target.

use api::autoscaling::v1alpha1::PodAutoscaler;
use api::keys::serving;
use controller::{Cache, Context, Error};
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::json;

#[derive(Clone)]
pub struct Targets {
    client: kube::Client,
    deployments: Cache<Deployment>,
}

// === impl Targets ===

impl Targets {
    /// Watches the Deployments of revisions, keeping only their scale.
    pub fn watch(ctx: &Context) -> Self {
        let deployments = Cache::<Deployment>::builder()
            .label_selector(serving::REVISION_UID)
            .transform(|deployment| {
                if let Some(spec) = &mut deployment.spec {
                    spec.template = Default::default();
                }
                deployment.metadata.annotations = None;
                deployment.status = None;
            })
            .start(ctx);
        Targets { client: ctx.client.clone(), deployments }
    }

    pub fn deployments(&self) -> &Cache<Deployment> {
        &self.deployments
    }

    /// The target's `spec.replicas` as last seen; `None` if it is not watched (or not yet).
    pub fn replicas(&self, autoscaler: &PodAutoscaler) -> Option<i32> {
        let target = &autoscaler.spec.scale_target_ref;
        if target.kind != "Deployment" || !target.api_version.starts_with("apps/") {
            return None;
        }
        let deployment = self.deployments.get(&autoscaler.namespace()?, &target.name)?;
        Some(replicas(&deployment))
    }

    /// Sets the scale unless it is known to be so already.
    pub async fn apply(&self, autoscaler: &PodAutoscaler, want: i32) -> Result<(), Error> {
        let target = &autoscaler.spec.scale_target_ref;
        let api = self.api(autoscaler)?;
        let current = match self.replicas(autoscaler) {
            Some(replicas) => replicas,
            None => {
                let scale = api.get_scale(&target.name).await.map_err(|error| {
                    Error::from(error).context(format!("failed to get scale target {} {}", target.kind, target.name))
                })?;
                scale.spec.and_then(|spec| spec.replicas).unwrap_or(1)
            }
        };
        if current == want {
            return Ok(());
        }
        let patch = json!([{"op": "add", "path": "/spec/replicas", "value": want}]);
        let patch = serde_json::from_value(patch).expect("a constant JSON patch is valid");
        api.patch_scale(&target.name, &PatchParams::default(), &Patch::<()>::Json(patch)).await.map_err(|error| {
            Error::from(error).context(format!("failed to apply scale {want} to scale target {}", target.name))
        })?;
        tracing::info!(namespace = %autoscaler.namespace().unwrap_or_default(), target = target.name, from = current, to = want, "scaled");
        Ok(())
    }

    fn api(&self, autoscaler: &PodAutoscaler) -> Result<Api<DynamicObject>, Error> {
        let target = &autoscaler.spec.scale_target_ref;
        let Some((group, version)) = target.api_version.split_once('/') else {
            return Err(Error::Permanent(format!(
                "PodAutoscaler {}: spec.scaleTargetRef.apiVersion {:?} must be group/version",
                autoscaler.name_any(),
                target.api_version
            )));
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &target.kind));
        let namespace = autoscaler.namespace().unwrap_or_default();
        Ok(Api::namespaced_with(self.client.clone(), &namespace, &resource))
    }
}

pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}
