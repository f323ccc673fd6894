//! Listeners and the certificates their TLS chains ask for. Certificates travel as secrets: a renewed one changes no
//! listener.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use envoy_types::{
    pb::envoy::{
        config::{
            accesslog::v3::{AccessLog, access_log},
            core::v3::{
                DataSource, SubstitutionFormatString, TransportSocket, data_source, substitution_format_string::Format,
                transport_socket,
            },
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
                    http_connection_manager::{RouteSpecifier, ServerHeaderTransformation},
                    http_filter,
                },
            },
            transport_sockets::tls::v3::{
                CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, Secret, TlsCertificate, TlsParameters, secret,
                tls_parameters::TlsProtocol,
            },
        },
    },
    util::pack_any,
};

use super::{ads, bool_value, duration, socket};
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
    pub settings: Settings,
}

/// One certificate, for these server names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Chain {
    pub secret: String,
    pub server_names: BTreeSet<String>,
}

/// `None` without an address.
pub fn listener(listener: &Listener) -> Option<v3::Listener> {
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
    if !listener.chains.is_empty() {
        filter("envoy.filters.listener.tls_inspector", pack_any(TlsInspector::default()));
    }
    let manager = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager(listener)))),
    };
    let plain = FilterChain { filters: vec![manager.clone()], ..Default::default() };
    let secured = |chain: &Chain| FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            server_names: chain.server_names.iter().cloned().collect(),
            ..Default::default()
        }),
        transport_socket: Some(transport_socket(&chain.secret)),
        filters: vec![manager.clone()],
        name: chain.secret.clone(),
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

pub fn secret(name: &str, chain: &[u8], key: &[u8]) -> Secret {
    let inline = |bytes: &[u8]| {
        Some(DataSource { specifier: Some(data_source::Specifier::InlineBytes(bytes.to_vec())), ..Default::default() })
    };
    let certificate =
        TlsCertificate { certificate_chain: inline(chain), private_key: inline(key), ..Default::default() };
    Secret { name: name.to_owned(), r#type: Some(secret::Type::TlsCertificate(certificate)) }
}

fn manager(listener: &Listener) -> HttpConnectionManager {
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
    HttpConnectionManager {
        stat_prefix: "ingress_http".to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads(Some(ROUTES_TIMEOUT))),
            route_config_name: listener.table.name().to_owned(),
        })),
        http_filters: vec![router],
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

fn transport_socket(secret: &str) -> TransportSocket {
    let context = DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: vec!["h2".to_owned(), "http/1.1".to_owned()],
            tls_params: Some(TlsParameters {
                tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
                ..Default::default()
            }),
            tls_certificate_sds_secret_configs: vec![SdsSecretConfig {
                name: secret.to_owned(),
                sds_config: Some(ads(None)),
            }],
            ..Default::default()
        }),
        ..Default::default()
    };
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(context))),
    }
}
