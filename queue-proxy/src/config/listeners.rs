//! Settings of listeners: TLS by prefix, and where Prometheus finds the request metrics.

use std::net::IpAddr;

use super::{ConfigError, Observability, values::Variables};
use crate::tls::{ClientAuth, Paths, TlsSettings, Which};

/// The four variables of a prefix, in the order of `TlsSettings::parse`.
type TlsNames = [&'static str; 4];

pub(super) const SERVING_TLS: TlsNames = [
    "QUEUE_PROXY_TLS_MIN_VERSION",
    "QUEUE_PROXY_TLS_MAX_VERSION",
    "QUEUE_PROXY_TLS_CIPHER_SUITES",
    "QUEUE_PROXY_TLS_CURVE_PREFERENCES",
];
const METRICS_TLS: TlsNames = [
    "METRICS_PROMETHEUS_TLS_MIN_VERSION",
    "METRICS_PROMETHEUS_TLS_MAX_VERSION",
    "METRICS_PROMETHEUS_TLS_CIPHER_SUITES",
    "METRICS_PROMETHEUS_TLS_CURVE_PREFERENCES",
];
const HOST: &str = "METRICS_PROMETHEUS_HOST";
const PORT: &str = "METRICS_PROMETHEUS_PORT";
const CERTIFICATE: &str = "METRICS_PROMETHEUS_TLS_CERT";
const KEY: &str = "METRICS_PROMETHEUS_TLS_KEY";
const CLIENT_AUTH: &str = "METRICS_PROMETHEUS_TLS_CLIENT_AUTH";
const CLIENT_AUTHORITIES: &str = "METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE";
const ENDPOINT: &str = "OBSERVABILITY_CONFIG";

/// Where Prometheus scrapes request metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsListener {
    /// All interfaces unless one is named.
    pub host: Option<IpAddr>,
    pub port: u16,
    pub tls: Option<(Paths, TlsSettings, Option<ClientAuth>)>,
}

pub(super) fn tls(vars: &Variables<'_>, names: TlsNames) -> Result<TlsSettings, ConfigError> {
    let [min, max, suites, curves] = names.map(|name| vars.text(name).unwrap_or(""));
    TlsSettings::parse(min, max, suites, curves).map_err(|mistake| {
        let (name, value) = match mistake.which {
            Which::Min => (names[0], min),
            Which::Max => (names[1], max),
            Which::Suites => (names[2], suites),
            Which::Curves => (names[3], curves),
        };
        ConfigError::Invalid { name, value: value.to_owned(), expected: mistake.expected }
    })
}

/// The variables have precedence over the endpoint of the installation's settings.
pub(super) fn metrics(vars: &Variables<'_>, settings: &Observability) -> Result<MetricsListener, ConfigError> {
    let configured = &settings.request_metrics;
    let mut listener = MetricsListener { host: None, port: super::METRICS_PORT, tls: None };
    if configured.protocol == "prometheus" && !configured.endpoint.is_empty() {
        let (host, port) = configured.endpoint.rsplit_once(':').unwrap_or((&configured.endpoint, ""));
        listener.host = address(host, ENDPOINT)?;
        if !port.is_empty() {
            listener.port = unprivileged(port, ENDPOINT)?;
        }
    }
    if let Some(host) = vars.text(HOST) {
        listener.host = address(host, HOST)?;
    }
    if let Some(port) = vars.text(PORT) {
        listener.port = unprivileged(port, PORT)?;
    }
    let path = |name| vars.text(name).filter(|path| !path.is_empty());
    let files = match (path(CERTIFICATE), path(KEY)) {
        (Some(certificate), Some(key)) => Paths { certificate: certificate.into(), key: key.into() },
        (None, None) => return Ok(listener),
        (Some(_), None) => return Err(ConfigError::Missing(KEY)),
        (None, Some(_)) => return Err(ConfigError::Missing(CERTIFICATE)),
    };
    let auth = match vars.text(CLIENT_AUTH).unwrap_or("") {
        "" | "none" => None,
        asked @ ("optional" | "require") => Some(ClientAuth {
            authorities: path(CLIENT_AUTHORITIES).ok_or(ConfigError::Missing(CLIENT_AUTHORITIES))?.into(),
            required: asked == "require",
        }),
        other => {
            let expected = "none, optional or require";
            return Err(ConfigError::Invalid { name: CLIENT_AUTH, value: other.to_owned(), expected });
        }
    };
    listener.tls = Some((files, tls(vars, METRICS_TLS)?, auth));
    Ok(listener)
}

fn address(host: &str, name: &'static str) -> Result<Option<IpAddr>, ConfigError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare {
        "" => Ok(None),
        "localhost" => Ok(Some(IpAddr::from([127, 0, 0, 1]))),
        _ => {
            let expected = "an address to listen on";
            bare.parse().map(Some).map_err(|_| ConfigError::Invalid { name, value: host.to_owned(), expected })
        }
    }
}

fn unprivileged(port: &str, name: &'static str) -> Result<u16, ConfigError> {
    let parsed = port.parse().ok().filter(|port| *port >= 1024);
    parsed.ok_or_else(|| ConfigError::Invalid { name, value: port.to_owned(), expected: "a port from 1024 to 65535" })
}
