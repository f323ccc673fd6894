//! `config-kourier`: settings of the gateway. Not covered by the admission of ConfigMaps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::data::{Data, duration};
use crate::go;

#[derive(Clone, Debug, PartialEq)]
pub struct Kourier {
    pub enable_service_access_logging: bool,
    pub service_access_log_template: String,
    pub enable_proxy_protocol: bool,
    pub use_remote_address: bool,
    pub enable_cryptomb: bool,
    pub disable_envoy_server_header: bool,
    pub cluster_cert_secret: String,
    pub stream_idle_timeout: Duration,
    pub trusted_hops_count: u32,
    pub cipher_suites: Option<BTreeSet<String>>,
    pub listen_ip_addresses: Vec<String>,
    /// `None`: no tracing.
    pub tracing: Option<KourierTracing>,
    pub external_authz: Option<ExternalAuthz>,
    pub certs_secret_name: String,
    pub certs_secret_namespace: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct KourierTracing {
    pub host: String,
    pub port: u16,
    pub path: String,
    pub protocol: TracingProtocol,
    pub sampling_rate: f64,
    pub service_name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TracingProtocol {
    Grpc,
    HttpProtobuf,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ExternalAuthz {
    pub host: String,
    pub port: u16,
    /// `grpc`, `http` or `https`.
    pub protocol: String,
    pub failure_mode_allow: bool,
    pub pack_as_bytes: bool,
    pub max_request_body_bytes: u32,
    pub timeout_millis: i64,
    pub path_prefix: String,
}

// === impl Kourier ===

impl Default for Kourier {
    fn default() -> Self {
        Self {
            enable_service_access_logging: true,
            service_access_log_template: String::new(),
            enable_proxy_protocol: false,
            use_remote_address: false,
            enable_cryptomb: false,
            disable_envoy_server_header: false,
            cluster_cert_secret: String::new(),
            stream_idle_timeout: Duration::ZERO,
            trusted_hops_count: 0,
            cipher_suites: None,
            listen_ip_addresses: vec!["0.0.0.0".to_owned()],
            tracing: None,
            external_authz: None,
            certs_secret_name: String::new(),
            certs_secret_namespace: String::new(),
        }
    }
}

impl Kourier {
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let data = Data(data);
        let mut config = Self::default();
        let mut idle = 0;
        data.bool(&["enable-service-access-logging"], &mut config.enable_service_access_logging)?;
        // Not trimmed: the template's white space is the user's.
        if let Some(text) = data.raw("service-access-log-template") {
            text.clone_into(&mut config.service_access_log_template);
        }
        data.bool(&["enable-proxy-protocol"], &mut config.enable_proxy_protocol)?;
        data.bool(&["use-remote-address"], &mut config.use_remote_address)?;
        data.bool(&["enable-cryptomb"], &mut config.enable_cryptomb)?;
        data.bool(&["disable-envoy-server-header"], &mut config.disable_envoy_server_header)?;
        data.string(&["cluster-cert-secret"], &mut config.cluster_cert_secret);
        data.nanos(&["stream-idle-timeout"], &mut idle)?;
        data.u32(&["trusted-hops-count"], &mut config.trusted_hops_count)?;
        data.string(&["certs-secret-name"], &mut config.certs_secret_name);
        data.string(&["certs-secret-namespace"], &mut config.certs_secret_namespace);
        config.stream_idle_timeout = duration(idle);
        if data.raw("cipher-suites").is_some() {
            let mut suites = BTreeSet::new();
            data.set(&["cipher-suites"], &mut suites);
            config.cipher_suites = Some(suites);
        }
        if let Some(text) = data.text(&["listen-ip-addresses"]) {
            config.listen_ip_addresses = text.split(',').map(|ip| ip.trim().to_owned()).collect();
            if let Some(bad) = config.listen_ip_addresses.iter().find(|ip| ip.parse::<IpAddr>().is_err()) {
                return Err(format!("invalid IP address {} in listen-ip-addresses", go::quote(bad)));
            }
        }
        config.tracing = tracing(&data)?;
        config.external_authz = external_authz(&data)?;
        Ok(config)
    }
}

fn tracing(data: &Data<'_>) -> Result<Option<KourierTracing>, String> {
    let Some(endpoint) = data.text(&["tracing-endpoint"]).filter(|e| !e.is_empty()) else { return Ok(None) };
    let invalid = |error: &str| format!("invalid tracing endpoint {}: {error}", go::quote(endpoint));
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let (authority, path) = rest.find('/').map_or((rest, ""), |i| rest.split_at(i));
    let (host, port) = host_and_port(authority).map_err(|()| invalid("port not specified in URL"))?;
    let port = port.parse().map_err(|error| invalid(&format!("invalid port: {error}")))?;
    let protocol = match data.text(&["tracing-protocol"]) {
        None | Some("" | "grpc") => TracingProtocol::Grpc,
        Some("http/protobuf") => TracingProtocol::HttpProtobuf,
        Some(other) => {
            return Err(format!(
                "invalid tracing protocol {}, must be \"http/protobuf\" or \"grpc\"",
                go::quote(other)
            ));
        }
    };
    let mut sampling_rate = 1.0;
    if let Some(text) = data.text(&["tracing-sampling-rate"]) {
        sampling_rate = go::parse_f64(text)
            .map_err(|error| format!("invalid tracing sampling rate {}: {error}", go::quote(text)))?;
        if !(0.0..=1.0).contains(&sampling_rate) {
            return Err(format!("tracing sampling rate {sampling_rate:.6} must be between 0.0 and 1.0"));
        }
    }
    let mut service_name = "kourier-knative".to_owned();
    data.string(&["tracing-service-name"], &mut service_name);
    Ok(Some(KourierTracing {
        host: host.to_owned(),
        port,
        path: path.to_owned(),
        protocol,
        sampling_rate,
        service_name,
    }))
}

/// As Go splits them: an address of IPv6 is in brackets, which are not part of it.
fn host_and_port(text: &str) -> Result<(&str, &str), ()> {
    let (host, port) = text.rsplit_once(':').ok_or(())?;
    match host.strip_prefix('[') {
        Some(rest) => Ok((rest.strip_suffix(']').ok_or(())?, port)),
        None => Ok((host, port)),
    }
}

fn external_authz(data: &Data<'_>) -> Result<Option<ExternalAuthz>, String> {
    let Some(address) = data.text(&["extauthz-host"]).filter(|h| !h.is_empty()) else { return Ok(None) };
    let failed = |why: &str| format!("failed to split host and port from {address}: address {address}: {why}");
    let (host, port) = host_and_port(address).map_err(|()| failed("missing port in address"))?;
    if host.contains(':') && !address.starts_with('[') {
        return Err(failed("too many colons in address"));
    }
    let port: u64 = port.parse().map_err(|error| format!("failed to convert port {port} to int: {error}"))?;
    let port = u16::try_from(port).map_err(|_| format!("port {port} bigger than 65535"))?;
    let protocol = data.text(&["extauthz-protocol"]).unwrap_or_default().to_owned();
    if !["grpc", "http", "https"].contains(&protocol.as_str()) {
        return Err(format!("protocol {protocol} is invalid, must be in map[grpc:{{}} http:{{}} https:{{}}]"));
    }
    let mut authz = ExternalAuthz {
        host: host.to_owned(),
        port,
        protocol,
        failure_mode_allow: false,
        pack_as_bytes: false,
        max_request_body_bytes: 8192,
        timeout_millis: 2000,
        path_prefix: String::new(),
    };
    let failed = |error| format!("failed to parse external authz config: {error}");
    data.bool(&["extauthz-failure-mode-allow"], &mut authz.failure_mode_allow).map_err(failed)?;
    data.bool(&["extauthz-pack-as-bytes"], &mut authz.pack_as_bytes).map_err(failed)?;
    data.u32(&["extauthz-max-request-body-bytes"], &mut authz.max_request_body_bytes).map_err(failed)?;
    data.i64(&["extauthz-timeout"], &mut authz.timeout_millis).map_err(failed)?;
    data.string(&["extauthz-path-prefix"], &mut authz.path_prefix);
    Ok(Some(authz))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Kourier, String> {
        Kourier::parse(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn hosts_and_ports_are_split_as_go_does() {
        let authorizer = |host: &str| parse(&[("extauthz-host", host), ("extauthz-protocol", "grpc")]);
        for (text, host) in [("authz.default:50051", "authz.default"), ("[fd00::1]:50051", "fd00::1")] {
            let found = authorizer(text).unwrap().external_authz.unwrap();
            assert_eq!((found.host.as_str(), found.port), (host, 50051));
        }
        for (text, error) in [
            ("authz", "failed to split host and port from authz: address authz: missing port in address"),
            (
                "fd00::1:50",
                "failed to split host and port from fd00::1:50: address fd00::1:50: too many colons in address",
            ),
            ("authz:70000", "port 70000 bigger than 65535"),
        ] {
            assert_eq!(authorizer(text).unwrap_err(), error);
        }
        let collector = |endpoint: &str| parse(&[("tracing-endpoint", endpoint)]);
        let found = collector("http://[fd00::1]:4318/v1/traces").unwrap().tracing.unwrap();
        assert_eq!((found.host.as_str(), found.port, found.path.as_str()), ("fd00::1", 4318, "/v1/traces"));
        for (endpoint, error) in [
            ("http://collector", "invalid tracing endpoint \"http://collector\": port not specified in URL"),
            ("http://collector:x", "invalid tracing endpoint \"http://collector:x\": invalid port: "),
        ] {
            let found = collector(endpoint).unwrap_err();
            assert!(found.starts_with(error), "{found}");
        }
    }

    #[test]
    fn an_explicit_empty_list_of_addresses_is_a_mistake() {
        let error = parse(&[("listen-ip-addresses", "")]).unwrap_err();
        assert_eq!(error, "invalid IP address \"\" in listen-ip-addresses");
    }
}
