//! Where Prometheus scrapes, and how it is encrypted.
//!
//! Looked at only if the installation is scraped: what makes no sense does not matter otherwise, as upstream.

use std::{io, net::SocketAddr, path::PathBuf};

use super::{Environment, Mistake, TlsNames, set, tls};
use crate::tls::{ClientAuth, Fixed, Paths};

const HOST: &str = "METRICS_PROMETHEUS_HOST";
const PORT: &str = "METRICS_PROMETHEUS_PORT";
const CERTIFICATE: &str = "METRICS_PROMETHEUS_TLS_CERT";
const KEY: &str = "METRICS_PROMETHEUS_TLS_KEY";
const AUTH: &str = "METRICS_PROMETHEUS_TLS_CLIENT_AUTH";
const AUTHORITIES: &str = "METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE";
const TLS: TlsNames = [
    "METRICS_PROMETHEUS_TLS_MIN_VERSION",
    "METRICS_PROMETHEUS_TLS_MAX_VERSION",
    "METRICS_PROMETHEUS_TLS_CIPHER_SUITES",
    "METRICS_PROMETHEUS_TLS_CURVE_PREFERENCES",
];

const LOWEST_PORT: u16 = 1024;

/// Where the controllers and the activator are scraped if nothing else is said.
pub const METRICS_PORT: u16 = 9090;
/// The key in `config-observability` that may say something else.
pub const METRICS_ENDPOINT: &str = "metrics-endpoint";

/// Where Prometheus scrapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scraped {
    /// A name or an address without brackets; empty for all addresses.
    pub host: String,
    pub port: u16,
    pub tls: Option<Fixed>,
}

// === impl Scraped ===

impl Scraped {
    /// What `METRICS_PROMETHEUS_*` say has precedence over the endpoint in the installation's settings, which stands at
    /// `place` ([`METRICS_ENDPOINT`], for instance); where neither names a port it is the `usual` one.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn of(env: &Environment, endpoint: &str, place: &'static str, usual: u16) -> Result<Self, Mistake> {
        // `:9090` is how Go says any address.
        let (host, port) = endpoint.rsplit_once(':').unwrap_or((endpoint, ""));
        let host = set(env, HOST).unwrap_or(host).trim_start_matches('[').trim_end_matches(']').to_owned();
        let (port, name) = match set(env, PORT) {
            Some(port) => (port, PORT),
            None => (port, place),
        };
        let parsed = if port.is_empty() { Some(usual) } else { port.parse().ok() };
        let parsed = parsed.filter(|port| *port >= LOWEST_PORT);
        let port = parsed.ok_or_else(|| Mistake::invalid(name, port, "a port from 1024 to 65535"))?;
        Ok(Self { host, port, tls: metrics_tls(env)? })
    }

    /// The address to listen on.
    ///
    /// # Errors
    /// If the host has none.
    pub async fn address(&self) -> io::Result<SocketAddr> {
        let host = if self.host.is_empty() { "0.0.0.0" } else { &self.host };
        let unknown = |reason: &dyn std::fmt::Display| {
            let place = format!("{HOST}, or the endpoint in config-observability");
            io::Error::other(format!(
                "the host {host:?} to serve metrics on has no address ({reason}): correct {place}"
            ))
        };
        let mut found = tokio::net::lookup_host((host, self.port)).await.map_err(|error| unknown(&error))?;
        found.next().ok_or_else(|| unknown(&"none found"))
    }
}

/// Certificate and key of `/metrics`, and who has to show one.
fn metrics_tls(env: &Environment) -> Result<Option<Fixed>, Mistake> {
    let asked = set(env, AUTH).unwrap_or_default();
    let required = match &*asked.trim().to_ascii_lowercase() {
        "" | "none" => None,
        "optional" => Some(false),
        "require" => Some(true),
        _ => return Err(Mistake::invalid(AUTH, asked, "none, optional or require")),
    };
    let authorities = set(env, AUTHORITIES).map(str::trim).filter(|path| !path.is_empty()).map(PathBuf::from);
    let files = match (set(env, CERTIFICATE), set(env, KEY)) {
        (Some(certificate), Some(key)) => Paths { certificate: certificate.into(), key: key.into() },
        (None, None) if required.is_some() => return Err(Mistake::Alone(AUTH, CERTIFICATE)),
        (None, None) if authorities.is_some() => return Err(Mistake::Alone(AUTHORITIES, CERTIFICATE)),
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(Mistake::Alone(CERTIFICATE, KEY)),
        (None, Some(_)) => return Err(Mistake::Alone(KEY, CERTIFICATE)),
    };
    let auth = match (required, authorities) {
        (Some(required), Some(authorities)) => Some(ClientAuth { authorities, required }),
        (Some(_), None) => return Err(Mistake::Alone(AUTH, AUTHORITIES)),
        (None, Some(_)) => return Err(Mistake::Alone(AUTHORITIES, AUTH)),
        (None, None) => None,
    };
    Ok(Some(Fixed { files, settings: tls(env, TLS)?, auth }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scraped(endpoint: &str, variables: &[(&str, &str)]) -> Result<Scraped, Mistake> {
        let env = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Scraped::of(&env, endpoint, METRICS_ENDPOINT, METRICS_PORT)
    }

    #[tokio::test]
    async fn the_environment_has_precedence_over_the_settings() {
        let address = async |endpoint, variables: &[(&str, &str)]| {
            let address = scraped(endpoint, variables).expect("sound").address().await;
            address.expect("an address").to_string()
        };
        assert_eq!(address("", &[]).await, "0.0.0.0:9090");
        assert_eq!(address(":1234", &[(HOST, ""), (PORT, "")]).await, "0.0.0.0:1234");
        assert_eq!(address("127.0.0.1:1234", &[(PORT, "65535")]).await, "127.0.0.1:65535");
        assert_eq!(address("127.0.0.1:1234", &[(HOST, "::1")]).await, "[::1]:1234");
        assert_eq!(address("[::1]:1234", &[]).await, "[::1]:1234");
        assert!(address("localhost:1234", &[]).await.ends_with(":1234"));
    }

    #[test]
    fn a_port_is_one_that_upstream_takes() {
        for port in ["80", "1023", "65536", "-1", "x", " 9090"] {
            let error = scraped("", &[(PORT, port)]).expect_err(port).to_string();
            let wanted = format!("{PORT} has the value {port:?}, which is not a port from 1024 to 65535: correct it");
            assert!(error.starts_with(&wanted), "{error}");
            let error = scraped(&format!("localhost:{port}"), &[]).expect_err(port).to_string();
            assert!(error.starts_with(&format!("{METRICS_ENDPOINT} has the value {port:?}")), "{error}");
        }
    }

    #[test]
    fn encryption_is_asked_for_completely() {
        let files = [(CERTIFICATE, "/tls.crt"), (KEY, "/tls.key")];
        assert!(scraped("", &[]).expect("sound").tls.is_none());
        assert!(scraped("", &[(AUTH, "None"), (TLS[0], "nonsense")]).expect("not encrypted").tls.is_none());
        let both = |more: &[(&'static str, &'static str)]| scraped("", &[&files[..], more].concat());
        let Fixed { files: paths, auth, .. } =
            both(&[(AUTH, " Require"), (AUTHORITIES, "/ca.crt")]).expect("sound").tls.expect("asked for");
        assert_eq!((paths.key, auth.map(|auth| auth.required)), (PathBuf::from("/tls.key"), Some(true)));
        let alone = |result: Result<Scraped, Mistake>| match result.expect_err("incomplete") {
            Mistake::Alone(asked, missing) => (asked, missing),
            other => panic!("{other}"),
        };
        assert_eq!(alone(scraped("", &files[..1])), (CERTIFICATE, KEY));
        assert_eq!(alone(scraped("", &files[1..])), (KEY, CERTIFICATE));
        assert_eq!(alone(scraped("", &[(AUTH, "optional")])), (AUTH, CERTIFICATE));
        assert_eq!(alone(scraped("", &[(AUTHORITIES, "/ca.crt")])), (AUTHORITIES, CERTIFICATE));
        assert_eq!(alone(both(&[(AUTH, "require")])), (AUTH, AUTHORITIES));
        assert_eq!(alone(both(&[(AUTHORITIES, "/ca.crt")])), (AUTHORITIES, AUTH));
        for wrong in [(AUTH, "maybe"), (TLS[0], "1.1")] {
            let error = both(&[wrong]).expect_err("nonsense").to_string();
            assert!(error.starts_with(&format!("{} has the value {:?}", wrong.0, wrong.1)), "{error}");
        }
    }
}
