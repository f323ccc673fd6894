//! What the role can be told from outside, with upstream's values as defaults.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use controller::ObjectKey;

use crate::fleets::Fleets;

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
    /// External routes with TLS for the status probe; none when empty, or when external TLS has no address.
    pub probe_tls_listen: Vec<SocketAddr>,
    /// Namespace of the gateway's Services.
    pub gateway_namespace: String,
    /// The gateway's Services, as written into status.
    pub external_service: String,
    pub internal_service: String,
    /// Where gateways reach their own cluster-local listener, if they cannot resolve the name of its Service: a
    /// DomainMapping sends requests there once more, through an ExternalName.
    pub itself: Option<SocketAddr>,
    /// `Redirected` is honoured; false with `KOURIER_HTTPOPTION_DISABLED`.
    pub redirects: bool,
    /// How many Ingress statuses are written at once.
    pub workers: usize,
    /// Only Secrets with the label of Knative's certificates are watched
    /// (`ENABLE_SECRET_INFORMER_FILTERING_BY_CERT_UID`).
    pub labelled_secrets: bool,
    /// Gateways ask for the certificate of a server name when somebody connects (`KOURIER_CERTIFICATES`), instead of
    /// having a filter chain for each: see `docs/adr/0005-certificates.md`.
    pub certificates_on_demand: bool,
    /// How long to wait for `config-kourier` and `config-network`. Without it `settings` hold until they appear.
    pub config_wait: Option<Duration>,
    /// Which gateways carry which Ingresses (`KOURIER_GATEWAYS`).
    pub fleets: Fleets,
    /// Gateways that acknowledge to another replica are asked over the network, at least this often
    /// (`PROBE_MAX_RETRY_DELAY_SECONDS`). Without it every gateway is expected to be connected here.
    pub probe: Option<Duration>,
    /// Name of this replica among others of which one writes status; every replica serves gateways.
    pub replica: Option<String>,
    /// Namespace of `cluster-cert-secret` and of the trust bundles; the role sets it from its context.
    pub system_namespace: String,
    /// What holds for keys that `config-kourier` does not have.
    pub settings: Settings,
}

/// What `config-kourier` and `config-network` hold.
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
    /// Empty: Envoy's own.
    pub cipher_suites: BTreeSet<String>,
    /// Private keys of the one-certificate chains are used by CryptoMB.
    pub cryptomb: bool,
    /// Replace the IP addresses of the listeners in [`Options`].
    pub listen_ips: Vec<IpAddr>,
    /// One certificate for every external host that has none of its own.
    pub certificate: Option<ObjectKey>,
    /// The same for cluster-local hosts.
    pub cluster_certificate: Option<ObjectKey>,
    pub tracing: Option<Tracing>,
    /// From the environment it wins over `config-kourier`, as upstream.
    pub authorization: Option<Authorization>,
    /// Backends speak TLS (`system-internal-tls`).
    pub internal_tls: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tracing {
    pub host: String,
    pub port: u16,
    pub path: String,
    pub grpc: bool,
    /// Of a million requests, how many start a trace.
    pub sampled_per_million: u32,
    pub service_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Authorization {
    pub host: String,
    pub port: u16,
    pub protocol: AuthorizationProtocol,
    pub failure_mode_allow: bool,
    pub max_request_bytes: u32,
    pub timeout: Duration,
    pub path_prefix: String,
    pub pack_as_bytes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthorizationProtocol {
    Grpc,
    Http,
    Https,
}

// === impl Options ===

impl Options {
    /// Whether `host` is the Service of the cluster-local listener, in whichever cluster domain.
    pub(crate) fn is_internal_name(&self, host: &str) -> bool {
        let name = format!("{}.{}.svc", self.internal_service, self.gateway_namespace);
        host.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

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
            probe_tls_listen: any(9443),
            gateway_namespace: "kourier-system".to_owned(),
            external_service: "kourier".to_owned(),
            internal_service: "kourier-internal".to_owned(),
            itself: None,
            redirects: true,
            workers: 16,
            labelled_secrets: false,
            certificates_on_demand: false,
            config_wait: None,
            fleets: Fleets::default(),
            probe: None,
            replica: None,
            system_namespace: "knative-serving".to_owned(),
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
            cipher_suites: BTreeSet::new(),
            cryptomb: false,
            listen_ips: Vec::new(),
            certificate: None,
            cluster_certificate: None,
            tracing: None,
            authorization: None,
            internal_tls: false,
        }
    }
}
