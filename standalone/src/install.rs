//! The objects of an installation.
//!
//! Definitions and Services belong to this program and are brought up to date at every start; ConfigMaps belong to the
//! user and are only created when missing. Endpoints say where this process listens now.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

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

/// Where clients of this machine reach the gateway: the first address of each kind.
#[derive(Debug, Clone, Copy)]
pub struct Outside {
    pub http: Option<SocketAddr>,
    pub https: Option<SocketAddr>,
    /// What a listener on every address is called.
    pub node: Ipv4Addr,
    /// Whether pods reach listeners on the loopback interface.
    pub loopback: bool,
}

/// What a Service may publish on a node; the API refuses others.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

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

/// Makes Service kourier say how the gateway is reached, as the load balancer of a cluster would: by address if the
/// ports are the usual ones, by node port if they can be such, and behind its cluster address if pods can get there.
pub async fn expose(client: &kube::Client, outside: Outside) -> Result<()> {
    let api = Api::<Service>::namespaced(client.clone(), "kourier-system");
    let params = PatchParams::default();
    api.patch("kourier", &params, &Patch::Merge(outside.spec())).await.context("cannot write Service kourier")?;
    api.patch_status("kourier", &params, &Patch::Merge(outside.status())).await?;
    publish(client, &[outside.backend()]).await
}

// === impl Outside ===

impl Outside {
    fn address(&self, listener: SocketAddr) -> IpAddr {
        if listener.ip().is_unspecified() { self.node.into() } else { listener.ip() }
    }

    /// Port of the Service, name, listener.
    fn ports(&self) -> impl Iterator<Item = (u16, &'static str, SocketAddr)> {
        let http = self.http.map(|at| (80, "http2", at));
        http.into_iter().chain(self.https.map(|at| (443, "https", at)))
    }

    fn balanced(&self) -> Option<IpAddr> {
        let usual = self.ports().all(|(port, _, at)| at.port() == port);
        self.http.filter(|_| usual).map(|at| self.address(at))
    }

    fn spec(&self) -> Value {
        let on_node = self.ports().all(|(_, _, at)| NODE_PORTS.contains(&at.port()));
        let kind = match self.balanced() {
            Some(_) => "LoadBalancer",
            None if on_node => "NodePort",
            None => "ClusterIP",
        };
        let ports = self.ports().map(|(port, name, at)| {
            let mut entry = json!({"name": name, "port": port, "targetPort": at.port(), "protocol": "TCP"});
            if kind == "NodePort" {
                entry["nodePort"] = at.port().into();
            }
            entry
        });
        let none_allocated = (kind == "LoadBalancer").then_some(false);
        json!({"spec": {
            "type": kind,
            "ports": ports.collect::<Vec<_>>(),
            "allocateLoadBalancerNodePorts": none_allocated,
            "externalTrafficPolicy": (kind != "ClusterIP").then_some("Cluster"),
        }})
    }

    fn status(&self) -> Value {
        let ingress = self.balanced().map(|ip| json!([{"ip": ip, "ipMode": "Proxy"}]));
        json!({"status": {"loadBalancer": {"ingress": ingress}}})
    }

    fn backend(&self) -> Backend {
        let reachable = |at: &SocketAddr| self.loopback || !at.ip().is_loopback();
        let ports = self.ports().map(|(_, name, at)| (name, SocketAddr::from((self.address(at), at.port()))));
        let ports: Vec<_> = ports.filter(|(_, at)| reachable(at)).collect();
        Backend { namespace: "kourier-system", service: "kourier", ports }
    }
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
        subsets: (!backend.ports.is_empty()).then(|| {
            vec![EndpointSubset {
                addresses: Some(addresses.into_iter().collect()),
                ports: Some(ports.collect()),
                ..EndpointSubset::default()
            }]
        }),
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

    fn outside(http: &str, https: Option<&str>) -> Outside {
        let parse = |text: &str| text.parse().expect("an address");
        Outside { http: Some(parse(http)), https: https.map(parse), node: [10, 244, 0, 1].into(), loopback: false }
    }

    #[test]
    fn the_gateway_is_published_the_way_it_is_reached() {
        let usual = outside("0.0.0.0:80", Some("0.0.0.0:443"));
        assert_eq!(usual.spec()["spec"]["type"], "LoadBalancer");
        assert_eq!(usual.status()["status"]["loadBalancer"]["ingress"][0]["ip"], "10.244.0.1");
        assert_eq!(usual.backend().ports[1], ("https", ([10, 244, 0, 1], 443).into()));

        let ports = outside("127.0.0.1:30080", None);
        assert_eq!(ports.spec()["spec"]["type"], "NodePort");
        assert_eq!(ports.spec()["spec"]["ports"][0]["nodePort"], 30080);
        assert_eq!(ports.status()["status"]["loadBalancer"]["ingress"], Value::Null);

        let default = outside("127.0.0.1:8080", None);
        assert_eq!(default.spec()["spec"]["type"], "ClusterIP");
        assert_eq!(default.spec()["spec"]["ports"][0]["targetPort"], 8080);
        assert_eq!(endpoints(&default.backend()).subsets, None, "pods do not reach this machine's loopback interface");
    }
}
