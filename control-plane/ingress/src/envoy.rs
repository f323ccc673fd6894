//! The model as Envoy messages. Values that are not spelled out are Envoy's defaults, which users see as Kourier's.

mod cluster;
mod filters;
mod listener;
mod route;
mod scopes;
mod tls;

use std::time::Duration;

use envoy_types::pb::{
    envoy::config::core::v3::{
        Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address,
        config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
    },
    google::protobuf,
};

pub use self::{
    cluster::{authorization_cluster, cluster, endpoints, tracing_cluster},
    filters::{AUTHORIZATION_CLUSTER, TRACING_CLUSTER},
    listener::{Chain, Listener, Routes, listener},
    route::{host_domains, host_routes, scope, scoped_routes, table},
    tls::{AUTHORIZER_TRUST, TRUST, certificate, trust},
};

fn duration(duration: Duration) -> Option<protobuf::Duration> {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Some(protobuf::Duration { seconds, nanos: duration.subsec_nanos().cast_signed() })
}

fn bool_value(value: bool) -> Option<protobuf::BoolValue> {
    Some(protobuf::BoolValue { value })
}

fn ads(initial_fetch_timeout: Option<Duration>) -> ConfigSource {
    ConfigSource {
        initial_fetch_timeout: initial_fetch_timeout.and_then(duration),
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

fn socket(address: &str, port: u16, ipv4_compat: bool) -> Address {
    let socket = SocketAddress {
        address: address.to_owned(),
        ipv4_compat,
        port_specifier: Some(PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    };
    Address { address: Some(address::Address::SocketAddress(socket)) }
}
