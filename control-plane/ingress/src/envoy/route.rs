//! Route tables and their virtual hosts.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            HeaderMatcher, RedirectAction, Route, RouteAction, RouteConfiguration, RouteMatch,
            ScopedRouteConfiguration, VirtualHost, WeightedCluster,
            header_matcher::HeaderMatchSpecifier,
            redirect_action::SchemeRewriteSpecifier,
            route::Action,
            route_action::{ClusterSpecifier, HostRewriteSpecifier, UpgradeConfig},
            route_match::PathSpecifier,
            scoped_route_configuration::{
                Key,
                key::{Fragment, fragment},
            },
            weighted_cluster::ClusterWeight,
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::UInt32Value,
};
use prost::Message;

use super::{bool_value, duration, filters, scopes::SCOPE_HEADER, set_headers};
use crate::model::{self, Access, Table};

/// The static cluster of the bootstrap that leads to the gateway's admin interface.
const ADMIN_CLUSTER: &str = "service_stats";

/// A table without its hosts.
pub fn table(table: Table) -> RouteConfiguration {
    RouteConfiguration { name: table.name().to_owned(), validate_clusters: bool_value(true), ..Default::default() }
}

/// What a host does not share with others that route alike.
pub fn host_domains(name: &str, domains: &[String]) -> VirtualHost {
    VirtualHost { name: name.to_owned(), domains: domains.to_vec(), ..Default::default() }
}

/// What it shares: the rest of the message, encoded.
pub fn host_routes(host: &model::VirtualHost) -> Vec<u8> {
    let message = VirtualHost {
        routes: host.routes.iter().map(route).collect(),
        typed_per_filter_config: filters::access(&host.authorization),
        ..Default::default()
    };
    message.encode_to_vec()
}

/// Which routes requests take whose scope header is this.
pub fn scope(name: &str, key: &str, routes: &str) -> ScopedRouteConfiguration {
    ScopedRouteConfiguration {
        name: name.to_owned(),
        route_configuration_name: routes.to_owned(),
        key: Some(Key { fragments: vec![Fragment { r#type: Some(fragment::Type::StringKey(key.to_owned())) }] }),
        ..Default::default()
    }
}

/// The routes of some hosts, without these.
pub fn scoped_routes(name: &str) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        validate_clusters: bool_value(true),
        request_headers_to_remove: vec![SCOPE_HEADER.to_owned()],
        ..Default::default()
    }
}

fn route(route: &model::Route) -> Route {
    let action = match &route.action {
        model::Action::Split { backends, rewrite_host } => {
            let clusters = backends.iter().map(weight).collect();
            Action::Route(forward(clusters, rewrite_host.as_deref(), Duration::ZERO))
        }
        model::Action::Status => {
            let cluster = ClusterWeight {
                name: ADMIN_CLUSTER.to_owned(),
                weight: Some(UInt32Value { value: 100 }),
                ..Default::default()
            };
            Action::Route(forward(vec![cluster], None, Duration::from_secs(1)))
        }
        model::Action::RedirectToHttps => Action::Redirect(RedirectAction {
            scheme_rewrite_specifier: Some(SchemeRewriteSpecifier::HttpsRedirect(true)),
            ..Default::default()
        }),
    };
    Route {
        name: route.name.clone(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(route.prefix.clone())),
            headers: route.headers.iter().map(|(name, value)| header(name, value)).collect(),
            ..Default::default()
        }),
        request_headers_to_add: set_headers(&route.set_headers),
        typed_per_filter_config: filters::access(if route.open { &Access::Open } else { &Access::Unsaid }),
        action: Some(action),
        ..Default::default()
    }
}

/// No retries and no time limit: those are the application's business, and what upstream does.
fn forward(clusters: Vec<ClusterWeight>, rewrite_host: Option<&str>, timeout: Duration) -> RouteAction {
    let websocket =
        UpgradeConfig { upgrade_type: "websocket".to_owned(), enabled: bool_value(true), ..Default::default() };
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster { clusters, ..Default::default() })),
        timeout: duration(timeout),
        upgrade_configs: vec![websocket],
        host_rewrite_specifier: rewrite_host.map(|host| HostRewriteSpecifier::HostRewriteLiteral(host.to_owned())),
        ..Default::default()
    }
}

fn weight(backend: &model::Weighted) -> ClusterWeight {
    ClusterWeight {
        name: backend.cluster.clone(),
        weight: Some(UInt32Value { value: backend.weight }),
        request_headers_to_add: set_headers(&backend.set_headers),
        ..Default::default()
    }
}

fn header(name: &str, value: &str) -> HeaderMatcher {
    let specifier = if value.is_empty() {
        HeaderMatchSpecifier::PresentMatch(true)
    } else {
        let match_pattern = Some(MatchPattern::Exact(value.to_owned()));
        HeaderMatchSpecifier::StringMatch(StringMatcher { match_pattern, ..Default::default() })
    };
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..Default::default() }
}
