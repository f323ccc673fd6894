//! What the role can be told from outside, with upstream's values as defaults.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

#[derive(Debug, Clone)]
pub struct Options {
    /// Where gateways fetch their configuration. Upstream: port 18000 on all interfaces.
    pub xds_listen: SocketAddr,
    /// Listener addresses of the gateway; the first is the listener's own, the others are additional ones.
    pub external_listen: Vec<SocketAddr>,
    pub internal_listen: Vec<SocketAddr>,
    /// External routes for the status probe; no listener when empty.
    pub probe_listen: Vec<SocketAddr>,
    /// External routes with TLS, once an Ingress has a certificate; none when empty.
    pub external_tls_listen: Vec<SocketAddr>,
    /// Cluster-local routes with TLS, once an Ingress has a certificate; none when empty.
    pub internal_tls_listen: Vec<SocketAddr>,
    /// Namespace of the gateway's Services.
    pub gateway_namespace: String,
    /// The gateway's Services, as written into status.
    pub external_service: String,
    pub internal_service: String,
    /// `Redirected` is honoured; false with `KOURIER_HTTPOPTION_DISABLED`.
    pub redirects: bool,
    /// How many Ingress statuses are written at once.
    pub workers: usize,
    /// Virtual hosts travel one by one to delta gateways (VHDS).
    pub host_discovery: bool,
    pub settings: Settings,
}

/// What `config-kourier` holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    pub access_log: bool,
    /// Empty: Envoy's own format.
    pub access_log_template: String,
    pub stream_idle_timeout: Duration,
    pub trusted_hops: u32,
    pub use_remote_address: bool,
    pub proxy_protocol: bool,
    pub hide_server_header: bool,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        let any = |port| vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
        Options {
            xds_listen: any(18000)[0],
            external_listen: any(8080),
            internal_listen: any(8081),
            probe_listen: any(8090),
            external_tls_listen: any(8443),
            internal_tls_listen: any(8444),
            gateway_namespace: "kourier-system".to_owned(),
            external_service: "kourier".to_owned(),
            internal_service: "kourier-internal".to_owned(),
            redirects: true,
            workers: 16,
            host_discovery: false,
            settings: Settings::default(),
        }
    }
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Settings {
            access_log: true,
            access_log_template: String::new(),
            stream_idle_timeout: Duration::ZERO,
            trusted_hops: 0,
            use_remote_address: false,
            proxy_protocol: false,
            hide_server_header: false,
        }
    }
}
