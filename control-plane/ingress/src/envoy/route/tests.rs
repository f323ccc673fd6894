//! What is written by hand, compared with the generated types.

use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{HeaderValue, HeaderValueOption},
            route::v3::{
                HeaderMatcher, RedirectAction, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
                WeightedCluster,
                header_matcher::HeaderMatchSpecifier,
                redirect_action::SchemeRewriteSpecifier,
                route::Action,
                route_action::{ClusterSpecifier, HostRewriteSpecifier, UpgradeConfig},
                route_match::PathSpecifier,
                weighted_cluster::ClusterWeight,
            },
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::UInt32Value,
};
use prost::Message as _;

use super::*;
use crate::envoy::duration;

fn expected_host(name: &str, domains: &[String], host: &model::VirtualHost) -> VirtualHost {
    VirtualHost {
        name: name.to_owned(),
        domains: domains.to_vec(),
        routes: host.routes.iter().map(route).collect(),
        typed_per_filter_config: filters::access(&host.authorization),
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

fn set_headers(headers: &Headers) -> Vec<HeaderValueOption> {
    headers
        .iter()
        .map(|(key, value)| HeaderValueOption {
            header: Some(HeaderValue { key: key.clone(), value: value.replace('%', "%%"), ..Default::default() }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd as i32,
            ..Default::default()
        })
        .collect()
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn weighted(cluster: &str, weight: u32, set: &[(&str, &str)]) -> model::Weighted {
    model::Weighted { cluster: cluster.to_owned(), weight, set_headers: headers(set) }
}

/// Every field in every state that the model has. One word for the authorizer: the order of several is random.
fn models() -> Vec<model::VirtualHost> {
    let long = "a-long-value/".repeat(40);
    let splits = [
        vec![weighted("default/one", 100, &[])],
        vec![weighted("default/one", 0, &[("Knative-Serving-Revision", "one")]), weighted(&long, 300, &[("A", &long)])],
    ];
    let mut actions = vec![model::Action::RedirectToHttps, model::Action::Status];
    for backends in splits {
        for rewrite_host in [None, Some("another.example.com".to_owned())] {
            actions.push(model::Action::Split { backends: backends.clone(), rewrite_host });
        }
    }
    let matches = [headers(&[]), headers(&[("Present", ""), ("Exact", "value"), ("K-Network-Hash", "override")])];
    let sets = [headers(&[]), headers(&[("X-Empty", ""), ("X-Percent", "100%REQ(a)%"), ("X-Long", &long)])];
    let mut routes = Vec::new();
    for action in &actions {
        for (matched, set) in matches.iter().zip(&sets) {
            for (open, prefix) in [(false, "/"), (true, &*long)] {
                routes.push(model::Route {
                    name: format!("(default/a).Domain[a].Paths[{prefix}]"),
                    prefix: prefix.to_owned(),
                    headers: matched.clone(),
                    set_headers: set.clone(),
                    action: action.clone(),
                    open,
                });
            }
        }
    }
    let access = [Access::Unsaid, Access::Open, Access::Asked(headers(&[("client", "kourier")]))];
    let host = |routes: &[model::Route], authorization: &Access| model::VirtualHost {
        name: "(default/a).Domain[a]".to_owned(),
        domains: vec!["a".to_owned(), "a:*".to_owned()],
        routes: routes.to_vec().into(),
        authorization: authorization.clone(),
    };
    let single = routes.iter().flat_map(|route| access.iter().map(|access| host(std::slice::from_ref(route), access)));
    let many = access.iter().map(|access| host(&routes, access));
    single.chain(many).chain([host(&[], &Access::Unsaid)]).collect()
}

#[test]
fn hosts_are_as_the_generated_types_write_them() {
    for model in models() {
        let mut bytes = host_domains(&model.name, &model.domains);
        bytes.extend(host_routes(&model));
        let host = VirtualHost::decode(&*bytes).expect("a virtual host");
        let expected = expected_host(&model.name, &model.domains, &model);
        assert_eq!(host, expected);
        assert_eq!(bytes, expected.encode_to_vec());
    }
}

#[test]
fn scoped_routes_are_as_the_generated_types_write_them() {
    let expected = RouteConfiguration {
        name: "internal_services/default/a".to_owned(),
        validate_clusters: bool_value(true),
        request_headers_to_remove: vec![SCOPE_HEADER.to_owned()],
        ..Default::default()
    };
    assert_eq!(scoped_routes("internal_services/default/a"), expected.encode_to_vec());
}
