//! Clusters, and their endpoints as resources of their own: scaling never rebuilds a cluster.

use std::time::Duration;

use envoy_types::{
    pb::envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::Http2ProtocolOptions,
            endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint},
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
    },
    util::pack_any,
};

use super::{ads, duration, socket};
use crate::model::{self, Location};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

pub fn cluster(cluster: &model::Cluster) -> Cluster {
    let mut out =
        Cluster { name: cluster.name.clone(), connect_timeout: duration(CONNECT_TIMEOUT), ..Default::default() };
    let kind = match &cluster.location {
        Location::Endpoints => {
            out.eds_cluster_config = Some(EdsClusterConfig { eds_config: Some(ads(None)), ..Default::default() });
            DiscoveryType::Eds
        }
        Location::Dns { host, port } => {
            out.load_assignment = Some(assignment(&cluster.name, &[(host.clone(), *port)]));
            DiscoveryType::LogicalDns
        }
    };
    out.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind as i32));
    if cluster.http2 {
        let protocol = ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default());
        let options = HttpProtocolOptions {
            upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(protocol),
            })),
            ..Default::default()
        };
        out.typed_extension_protocol_options.insert(PROTOCOL_OPTIONS.to_owned(), pack_any(options));
    }
    out
}

pub fn endpoints(cluster: &str, endpoints: &model::Endpoints) -> ClusterLoadAssignment {
    assignment(cluster, &endpoints.addresses)
}

fn assignment(cluster: &str, addresses: &[(String, u16)]) -> ClusterLoadAssignment {
    let endpoint = |(address, port): &(String, u16)| {
        let endpoint = Endpoint { address: Some(socket(address, *port, true)), ..Default::default() };
        LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() }
    };
    let locality = LocalityLbEndpoints { lb_endpoints: addresses.iter().map(endpoint).collect(), ..Default::default() };
    ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: if addresses.is_empty() { Vec::new() } else { vec![locality] },
        ..Default::default()
    }
}
