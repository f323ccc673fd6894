//! The objects of an installation.
//!
//! Definitions and Services belong to this program and are brought up to date at every start; ConfigMaps belong to the
//! user and are only created when missing. Endpoints say where this process listens now.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde::de::DeserializeOwned;

const CONFIG: &str = include_str!("../manifests/config.yaml");
const SERVICES: &str = include_str!("../manifests/services.yaml");

/// One address behind a Service of [`SERVICES`].
#[derive(Debug, Clone)]
pub struct Backend {
    pub namespace: &'static str,
    pub service: &'static str,
    /// Port name and where it listens; all of a Service's ports are on one IP.
    pub ports: Vec<(&'static str, SocketAddr)>,
}

/// Creates what is missing.
pub async fn install(client: &kube::Client) -> Result<()> {
    for map in documents::<ConfigMap>(CONFIG)? {
        create_if_missing(client, &map).await?;
    }
    for service in documents::<Service>(SERVICES)? {
        create_if_missing(client, &service).await?;
    }
    Ok(())
}

/// Writes the Endpoints of the Services whose backends are parts of this process.
pub async fn publish(client: &kube::Client, backends: &[Backend]) -> Result<()> {
    for backend in backends {
        let api = Api::<Endpoints>::namespaced(client.clone(), backend.namespace);
        let desired = endpoints(backend);
        match api.get_opt(backend.service).await? {
            None => drop(api.create(&PostParams::default(), &desired).await?),
            Some(present) if present.subsets == desired.subsets => {}
            Some(mut present) => {
                present.subsets = desired.subsets;
                api.replace(backend.service, &PostParams::default(), &present).await?;
            }
        }
    }
    Ok(())
}

fn endpoints(backend: &Backend) -> Endpoints {
    let addresses = backend
        .ports
        .first()
        .map(|(_, address)| EndpointAddress { ip: address.ip().to_string(), ..EndpointAddress::default() });
    let ports = backend.ports.iter().map(|(name, address)| EndpointPort {
        name: Some((*name).to_owned()),
        port: i32::from(address.port()),
        protocol: Some("TCP".to_owned()),
        ..EndpointPort::default()
    });
    Endpoints {
        metadata: ObjectMeta {
            name: Some(backend.service.to_owned()),
            namespace: Some(backend.namespace.to_owned()),
            ..ObjectMeta::default()
        },
        subsets: Some(vec![EndpointSubset {
            addresses: Some(addresses.into_iter().collect()),
            ports: Some(ports.collect()),
            ..EndpointSubset::default()
        }]),
    }
}

async fn create_if_missing<K>(client: &kube::Client, object: &K) -> Result<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    if api.get_opt(&object.name_any()).await?.is_none() {
        let created = api.create(&PostParams::default(), object).await;
        created.with_context(|| format!("cannot create {} {}", K::kind(&()), object.name_any()))?;
    }
    Ok(())
}

fn documents<T: DeserializeOwned>(yaml: &str) -> Result<Vec<T>> {
    yaml.split("\n---\n")
        .map(|document| {
            serde_saphyr::from_str(document).map_err(|error| anyhow::anyhow!("a manifest of mine: {error}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_parse_and_every_config_map_is_valid() {
        let maps = documents::<ConfigMap>(CONFIG).expect("valid");
        assert_eq!(maps.len(), 13);
        assert_eq!(documents::<Service>(SERVICES).expect("valid").len(), 4);
    }

    #[test]
    fn endpoints_name_the_ports_of_their_service() {
        let backend = Backend {
            namespace: "knative-serving",
            service: "activator-service",
            ports: vec![("http", ([10, 244, 0, 1], 8012).into()), ("http2", ([10, 244, 0, 1], 8013).into())],
        };
        let subset = endpoints(&backend).subsets.expect("one")[0].clone();
        assert_eq!(subset.addresses.expect("one")[0].ip, "10.244.0.1");
        let ports: Vec<_> = subset.ports.expect("two").into_iter().map(|p| (p.name, p.port)).collect();
        assert_eq!(ports, [(Some("http".into()), 8012), (Some("http2".into()), 8013)]);
    }
}
