//! Clusters, and their endpoints as resources of their own: scaling never rebuilds a cluster.

use std::time::Duration;

use envoy_types::{
    pb::envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig},
            },
            core::v3::{Http1ProtocolOptions, Http2ProtocolOptions},
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

use super::{
    ads, duration,
    filters::{AUTHORIZATION_CLUSTER, TRACING_CLUSTER},
    socket, tls,
};
use crate::{
    model::{self, Location},
    options::{Authorization, AuthorizationProtocol, Tracing},
};

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
        speak(&mut out, ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()));
    }
    out.transport_socket = cluster.tls.as_ref().map(|identity| tls::upstream(identity, cluster.http2));
    out
}

/// Where authorization is asked for. `bundled`: over TLS its certificate is signed by a trust bundle.
pub fn authorization_cluster(from: &Authorization, bundled: bool) -> Cluster {
    let mut out = service(AUTHORIZATION_CLUSTER, &from.host, from.port);
    let protocol = match from.protocol {
        AuthorizationProtocol::Grpc => ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()),
        AuthorizationProtocol::Http | AuthorizationProtocol::Https => {
            ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default())
        }
    };
    speak(&mut out, protocol);
    if from.protocol == AuthorizationProtocol::Https {
        out.transport_socket = Some(tls::named(&from.host, bundled));
    }
    out
}

/// Where traces go.
pub fn tracing_cluster(from: &Tracing) -> Cluster {
    let mut out = service(TRACING_CLUSTER, &from.host, from.port);
    if from.grpc {
        speak(&mut out, ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default()));
    }
    out
}

fn service(name: &str, host: &str, port: u16) -> Cluster {
    Cluster {
        name: name.to_owned(),
        connect_timeout: duration(CONNECT_TIMEOUT),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns as i32)),
        load_assignment: Some(assignment(name, &[(host.to_owned(), port)])),
        ..Default::default()
    }
}

fn speak(cluster: &mut Cluster, protocol: ProtocolConfig) {
    let options = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })),
        ..Default::default()
    };
    cluster.typed_extension_protocol_options.insert(PROTOCOL_OPTIONS.to_owned(), pack_any(options));
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
