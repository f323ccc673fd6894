//! What containers learn about their pod: the downward API and the objects their environment and volumes refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, Volume,
};
use kube::{Api, ResourceExt};

use crate::quantity;

/// Facts about the pod that are known only once it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) pod_ip: Ipv4Addr,
    pub(crate) host_ip: Ipv4Addr,
    pub(crate) kubernetes: (Ipv4Addr, u16),
    /// What a missing limit means.
    pub(crate) node_millicpu: u64,
    pub(crate) node_memory: u64,
}

/// The ConfigMaps and Secrets a pod refers to; `None` for one that does not exist.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, Option<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Option<Secret>>,
}

/// Names of the objects something refers to.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
}

// === impl Wanted ===

impl Wanted {
    pub(crate) fn of_env(container: &Container) -> Self {
        let mut wanted = Self::default();
        for from in container.env_from.iter().flatten() {
            wanted.config_maps.extend(from.config_map_ref.iter().map(|reference| reference.name.clone()));
            wanted.secrets.extend(from.secret_ref.iter().map(|reference| reference.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            wanted.config_maps.extend(source.config_map_key_ref.iter().map(|reference| reference.name.clone()));
            wanted.secrets.extend(source.secret_key_ref.iter().map(|reference| reference.name.clone()));
        }
        wanted
    }

    pub(crate) fn of_volumes(volumes: &[Volume]) -> Self {
        let mut wanted = Self::default();
        for volume in volumes {
            wanted.config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
            wanted.secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
            let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
            for source in projected {
                wanted.config_maps.extend(source.config_map.iter().map(|source| source.name.clone()));
                wanted.secrets.extend(source.secret.iter().map(|source| source.name.clone()));
            }
        }
        wanted
    }

    pub(crate) async fn fetch(self, client: &kube::Client, namespace: &str) -> Result<Sources, kube::Error> {
        if self == Self::default() {
            return Ok(Sources::default());
        }
        let config_maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
        let mut sources = Sources::default();
        for name in self.config_maps {
            let found = config_maps.get_opt(&name).await?;
            sources.config_maps.insert(name, found);
        }
        for name in self.secrets {
            let found = secrets.get_opt(&name).await?;
            sources.secrets.insert(name, found);
        }
        Ok(sources)
    }
}

/// The value of a pod field; `Err` names a field that cannot be had this way.
pub(crate) fn field(pod: &Pod, facts: &Facts, selector: &ObjectFieldSelector) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let spec = pod.spec.as_ref();
    let subscript = |prefix: &str| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(key.to_owned())
    };
    if let Some(key) = subscript("metadata.labels") {
        return Ok(pod.labels().get(&key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Ok(pod.annotations().get(&key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name_any(),
        "metadata.namespace" => pod.namespace().unwrap_or_default(),
        "metadata.uid" => pod.uid().unwrap_or_default(),
        "metadata.labels" => quoted(pod.labels()),
        "metadata.annotations" => quoted(pod.annotations()),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.to_string(),
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}

/// One `key="value"` per line, as the downward API writes maps.
fn quoted(map: &BTreeMap<String, String>) -> String {
    let line = |(key, value): (&String, &String)| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{key}=\"{value}\"")
    };
    map.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The value of a resource field of a container, in units of the divisor, rounded up.
pub(crate) fn resource(
    containers: &[Container],
    own: Option<&str>,
    facts: &Facts,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let name = selector.container_name.as_deref().or(own).unwrap_or_default();
    let container = containers.iter().find(|container| container.name == name);
    let container = container.ok_or_else(|| format!("container {name:?} not found"))?;
    let (side, resource) = selector.resource.split_once('.').ok_or("unsupported container resource")?;
    let resources = container.resources.as_ref();
    let given = |map: Option<&BTreeMap<String, quantity::Quantity>>| {
        map.and_then(|map| map.get(resource)).and_then(|quantity| quantity::nano(&quantity.0))
    };
    let limit = given(resources.and_then(|resources| resources.limits.as_ref()));
    let request = given(resources.and_then(|resources| resources.requests.as_ref()));
    let node = match resource {
        "cpu" => i128::from(facts.node_millicpu) * 1_000_000,
        "memory" => i128::from(facts.node_memory) * quantity::NANO,
        _ => 0,
    };
    let value = match side {
        "limits" => limit.unwrap_or(node),
        "requests" => request.or(limit).unwrap_or(0),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let divisor =
        selector.divisor.as_ref().and_then(|divisor| quantity::nano(&divisor.0)).filter(|divisor| *divisor > 0);
    let divisor = divisor.unwrap_or(quantity::NANO);
    Ok(((value + divisor - 1) / divisor).to_string())
}
