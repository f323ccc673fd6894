//! Listeners: one filter chain in plain text, or one per certificate.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use envoy_types::{
    pb::envoy::{
        config::{
            accesslog::v3::{AccessLog, access_log},
            core::v3::{DataSource, SubstitutionFormatString, data_source, substitution_format_string::Format},
            listener::v3::{
                self, AdditionalAddress, Filter, FilterChain, FilterChainMatch, ListenerFilter, filter, listener_filter,
            },
        },
        extensions::{
            access_loggers::file::v3::{FileAccessLog, file_access_log::AccessLogFormat},
            filters::{
                http::router::v3::Router,
                listener::{proxy_protocol::v3::ProxyProtocol, tls_inspector::v3::TlsInspector},
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds,
                    http_connection_manager::{RouteSpecifier, ServerHeaderTransformation, UpgradeConfig},
                    http_filter,
                },
            },
        },
    },
    util::pack_any,
};

use super::{ads, bool_value, duration, filters, scopes, socket, tls};
use crate::{model::Table, options::Settings};

const ROUTES_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listener {
    pub name: String,
    pub addresses: Vec<SocketAddr>,
    pub table: Table,
    pub proxy_protocol: bool,
    /// Empty for plain text.
    pub chains: Vec<Chain>,
    /// Every host can have a scope.
    pub scopes: bool,
    pub settings: Settings,
}

/// How routes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    Table,
    Scopes,
}

/// One certificate, for these server names; without names for all that have no chain of their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    /// `None`: the secret of each server name, asked for when somebody connects.
    pub secret: Option<String>,
    pub server_names: BTreeSet<String>,
}

/// `None` without an address.
pub fn listener(listener: &Listener, routes: Routes) -> Option<v3::Listener> {
    let (first, rest) = listener.addresses.split_first()?;
    let address = |address: &SocketAddr| Some(socket(&address.ip().to_string(), address.port(), false));
    let mut listener_filters = Vec::new();
    let mut filter = |name: &str, config| {
        let config_type = Some(listener_filter::ConfigType::TypedConfig(config));
        listener_filters.push(ListenerFilter { name: name.to_owned(), config_type, ..Default::default() });
    };
    if listener.proxy_protocol {
        filter("envoy.filters.listener.proxy_protocol", pack_any(ProxyProtocol::default()));
    }
    if listener.chains.iter().any(|chain| !chain.server_names.is_empty()) {
        filter("envoy.filters.listener.tls_inspector", pack_any(TlsInspector::default()));
    }
    let manager = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager(listener, routes)))),
    };
    let plain = FilterChain { filters: vec![manager.clone()], ..Default::default() };
    let secured = |chain: &Chain| FilterChain {
        filter_chain_match: (!chain.server_names.is_empty()).then(|| FilterChainMatch {
            server_names: chain.server_names.iter().cloned().collect(),
            ..Default::default()
        }),
        transport_socket: Some(tls::downstream(chain.secret.as_deref(), listener.settings.cipher_suites.iter())),
        filters: vec![manager.clone()],
        name: chain.secret.clone().unwrap_or_else(|| "on-demand".to_owned()),
        ..Default::default()
    };
    let filter_chains =
        if listener.chains.is_empty() { vec![plain] } else { listener.chains.iter().map(secured).collect() };
    Some(v3::Listener {
        name: listener.name.clone(),
        address: address(first),
        additional_addresses: rest
            .iter()
            .map(|other| AdditionalAddress { address: address(other), ..Default::default() })
            .collect(),
        filter_chains,
        listener_filters,
        ..Default::default()
    })
}

fn manager(listener: &Listener, routes: Routes) -> HttpConnectionManager {
    let settings = &listener.settings;
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
        ..Default::default()
    };
    let transformation = match settings.hide_server_header {
        true => ServerHeaderTransformation::PassThrough,
        false => ServerHeaderTransformation::Overwrite,
    };
    let specifier = match routes {
        Routes::Table => RouteSpecifier::Rds(Rds {
            config_source: Some(ads(Some(ROUTES_TIMEOUT))),
            route_config_name: listener.table.name().to_owned(),
        }),
        Routes::Scopes => RouteSpecifier::ScopedRoutes(scopes::routes()),
    };
    let by_scope = routes == Routes::Scopes;
    // Which filters there are for an upgrade is decided by the route, which hosts with capitals do not have yet.
    let websocket = UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() };
    let hidden: &[&str] = if by_scope { &[scopes::SCOPE_HEADER] } else { &[] };
    let authorization = settings.authorization.as_ref().map(|from| filters::authorization(from, hidden));
    let filters = by_scope.then(scopes::correction).into_iter().chain(authorization).chain([router]);
    HttpConnectionManager {
        stat_prefix: "ingress_http".to_owned(),
        route_specifier: Some(specifier),
        early_header_mutation_extensions: by_scope.then(|| scopes::header(listener.table)).into_iter().collect(),
        upgrade_configs: by_scope.then_some(websocket).into_iter().collect(),
        http_filters: filters.collect(),
        generate_request_id: settings.tracing.as_ref().and_then(|_| bool_value(true)),
        tracing: settings.tracing.as_ref().map(filters::tracing),
        stream_idle_timeout: duration(settings.stream_idle_timeout),
        xff_num_trusted_hops: settings.trusted_hops,
        use_remote_address: bool_value(settings.use_remote_address || settings.proxy_protocol),
        server_header_transformation: transformation as i32,
        access_log: access_log(settings),
        ..Default::default()
    }
}

fn access_log(settings: &Settings) -> Vec<AccessLog> {
    if !settings.access_log {
        return Vec::new();
    }
    let template = &settings.access_log_template;
    let format = (!template.is_empty()).then(|| {
        let inline = DataSource {
            specifier: Some(data_source::Specifier::InlineString(template.clone())),
            ..Default::default()
        };
        AccessLogFormat::LogFormat(SubstitutionFormatString {
            format: Some(Format::TextFormatSource(inline)),
            ..Default::default()
        })
    });
    let file = FileAccessLog { path: "/dev/stdout".to_owned(), access_log_format: format };
    vec![AccessLog {
        name: "envoy.file_access_log".to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(pack_any(file))),
        ..Default::default()
    }]
}
