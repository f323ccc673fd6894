//! What a DomainMapping leads to: anything in its namespace with a cluster-local address.

use api::serving::v1beta1::KReference;
use controller::ObjectKey;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;

use crate::Shared;

pub const SERVICE: &str = "Service";
pub const ROUTE: &str = "Route";
pub const CORE_SERVICE: &str = "core Service";

/// A cluster-local host that is the name of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub service: String,
}

// === impl Target ===

impl Target {
    /// Only names of the mapping's own namespace: another would let it take over foreign Services.
    pub fn parse(url: &str, namespace: &str, cluster_domain: &str) -> Result<Self, String> {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        if rest.contains('/') {
            return Err(format!("resolved URI {url:?} contains a path"));
        }
        let suffix = format!(".svc.{cluster_domain}");
        let parts = rest.strip_suffix(&suffix).and_then(|name| name.split_once('.'));
        let Some((service, own)) = parts.filter(|(service, own)| !service.is_empty() && !own.contains('.')) else {
            return Err(format!(
                "resolved URI {url:?} must be of the form {{name}}.{{namespace}}.svc.{cluster_domain}"
            ));
        };
        if own != namespace {
            return Err(format!("resolved URI {url:?} must be in same namespace as DomainMapping"));
        }
        Ok(Self { host: rest.to_owned(), service: service.to_owned() })
    }
}

/// Group of a reference, however it is written.
fn group(reference: &KReference) -> &str {
    let of_version = reference.api_version.split_once('/').map_or("", |(group, _)| group);
    if reference.group.is_empty() { of_version } else { &reference.group }
}

/// What the mapping hears of when it changes.
pub fn tracked(reference: &KReference) -> Option<(&'static str, ObjectKey)> {
    let kind = match (group(reference), reference.kind.as_str()) {
        (api::serving::GROUP, "Service") => SERVICE,
        (api::serving::GROUP, "Route") => ROUTE,
        ("", "Service") => CORE_SERVICE,
        _ => return None,
    };
    Some((kind, ObjectKey::new(&reference.namespace, &reference.name)))
}

/// The address that the object says it has.
pub async fn address(shared: &Shared, reference: &KReference) -> Result<String, String> {
    let (namespace, name) = (&reference.namespace, &reference.name);
    let missing = || format!("failed to get object {namespace}/{name}: {} {name:?} not found", reference.kind);
    let address = match tracked(reference).map(|(kind, _)| kind) {
        Some(CORE_SERVICE) => {
            shared.k8s_services.get(namespace, name).ok_or_else(missing)?;
            return Ok(format!("http://{name}.{namespace}.svc.{}", shared.ctx.cluster_domain));
        }
        Some(SERVICE) => {
            let service = shared.services.get(namespace, name).ok_or_else(missing)?;
            service.status.as_ref().and_then(|status| status.address.clone()?.url)
        }
        Some(ROUTE) => {
            let route = shared.routes.get(namespace, name).ok_or_else(missing)?;
            route.status.as_ref().and_then(|status| status.address.clone()?.url)
        }
        _ => other(shared, reference).await?,
    };
    address.ok_or_else(|| format!("URL missing in address of {} {namespace}/{name}", reference.kind))
}

/// Of a kind that this controller does not know: asked for, and asked for again until it has an address.
async fn other(shared: &Shared, reference: &KReference) -> Result<Option<String>, String> {
    let version = reference.api_version.rsplit('/').next().unwrap_or_default();
    let kind = GroupVersionKind::gvk(group(reference), version, &reference.kind);
    let resource = ApiResource::from_gvk(&kind);
    let api = Api::<DynamicObject>::namespaced_with(shared.ctx.client.clone(), &reference.namespace, &resource);
    let object = api.get(&reference.name).await;
    let object =
        object.map_err(|error| format!("failed to get object {}/{}: {error}", reference.namespace, reference.name))?;
    let status = &object.data["status"];
    let url = [&status["addresses"][0]["url"], &status["address"]["url"]];
    Ok(url.into_iter().find_map(Value::as_str).map(str::to_owned))
}
