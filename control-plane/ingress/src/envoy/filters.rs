//! External authorization and tracing: the filter or tracer, and the cluster it talks to.

use std::{collections::HashMap, time::Duration};

use envoy_types::{
    pb::{
        envoy::{
            config::{
                core::v3::{self as core, GrpcService, HeaderValue, HttpUri, grpc_service, http_uri::HttpUpstreamType},
                trace::v3::{OpenTelemetryConfig, tracing},
            },
            extensions::filters::{
                http::ext_authz::v3::{
                    AuthorizationRequest, BufferSettings, CheckSettings, ExtAuthz, ExtAuthzPerRoute, HttpService,
                    ext_authz::Services, ext_authz_per_route::Override,
                },
                network::http_connection_manager::v3::{HttpFilter, http_connection_manager::Tracing, http_filter},
            },
            r#type::{
                matcher::v3::{ListStringMatcher, StringMatcher, string_matcher::MatchPattern},
                v3::Percent,
            },
        },
        google::protobuf::Any,
    },
    util::pack_any,
};

use super::duration;
use crate::{
    model::{Access, Headers},
    options::{self, Authorization, AuthorizationProtocol},
};

pub const AUTHORIZATION_CLUSTER: &str = "extAuthz";
pub const TRACING_CLUSTER: &str = "otel-collector";

const AUTHORIZATION_FILTER: &str = "envoy.filters.http.ext_authz";
const TRACING_GRPC_TIMEOUT: Duration = Duration::from_millis(250);
const TRACING_HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// The authorizer is not told of headers named `hidden`, which clients did not send.
pub(super) fn authorization(from: &Authorization, hidden: &[&str]) -> HttpFilter {
    let timeout = duration(from.timeout);
    let client = HeaderValue { key: "client".to_owned(), value: "kourier".to_owned(), ..Default::default() };
    let address = authority(&from.host, from.port);
    let http = |scheme: &str| {
        Services::HttpService(HttpService {
            server_uri: Some(HttpUri {
                uri: format!("{scheme}://{address}"),
                timeout,
                http_upstream_type: Some(HttpUpstreamType::Cluster(AUTHORIZATION_CLUSTER.to_owned())),
            }),
            path_prefix: from.path_prefix.clone(),
            authorization_request: Some(AuthorizationRequest {
                headers_to_add: vec![client.clone()],
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    let services = match from.protocol {
        AuthorizationProtocol::Grpc => Services::GrpcService(GrpcService {
            timeout,
            initial_metadata: vec![client],
            ..grpc(AUTHORIZATION_CLUSTER)
        }),
        AuthorizationProtocol::Http => http("http"),
        AuthorizationProtocol::Https => http("https"),
    };
    let filter = ExtAuthz {
        transport_api_version: core::ApiVersion::V3 as i32,
        failure_mode_allow: from.failure_mode_allow,
        with_request_body: Some(BufferSettings {
            max_request_bytes: from.max_request_bytes,
            allow_partial_message: true,
            pack_as_bytes: from.pack_as_bytes,
        }),
        services: Some(services),
        disallowed_headers: (!hidden.is_empty())
            .then(|| ListStringMatcher { patterns: hidden.iter().map(|name| exact(name)).collect() }),
        ..Default::default()
    };
    HttpFilter {
        name: AUTHORIZATION_FILTER.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(filter))),
        ..Default::default()
    }
}

/// What a virtual host or a route says to the authorization filter.
pub(super) fn access(access: &Access) -> HashMap<String, Any> {
    let choice = match access {
        Access::Unsaid => return HashMap::new(),
        Access::Open => Override::Disabled(true),
        Access::Asked(words) => Override::CheckSettings(check(words)),
    };
    let settings = ExtAuthzPerRoute { r#override: Some(choice) };
    [(AUTHORIZATION_FILTER.to_owned(), pack_any(settings))].into()
}

pub(super) fn tracing(from: &options::Tracing) -> Tracing {
    let mut config = OpenTelemetryConfig { service_name: from.service_name.clone(), ..Default::default() };
    if from.grpc {
        let service = grpc(TRACING_CLUSTER);
        config.grpc_service = Some(GrpcService { timeout: duration(TRACING_GRPC_TIMEOUT), ..service });
    } else {
        config.http_service = Some(core::HttpService {
            http_uri: Some(HttpUri {
                uri: format!("http://{}{}", authority(&from.host, from.port), from.path),
                timeout: duration(TRACING_HTTP_TIMEOUT),
                http_upstream_type: Some(HttpUpstreamType::Cluster(TRACING_CLUSTER.to_owned())),
            }),
            ..Default::default()
        });
    }
    Tracing {
        overall_sampling: Some(Percent { value: f64::from(from.sampled_per_million) / 10_000.0 }),
        provider: Some(tracing::Http {
            name: "envoy.tracers.opentelemetry".to_owned(),
            config_type: Some(tracing::http::ConfigType::TypedConfig(pack_any(config))),
        }),
        ..Default::default()
    }
}

/// As a URL has them.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn exact(text: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text.to_owned())), ..Default::default() }
}

fn check(words: &Headers) -> CheckSettings {
    CheckSettings {
        context_extensions: words.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        ..Default::default()
    }
}

fn grpc(cluster: &str) -> GrpcService {
    let envoy = grpc_service::EnvoyGrpc { cluster_name: cluster.to_owned(), ..Default::default() };
    GrpcService { target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(envoy)), ..Default::default() }
}
