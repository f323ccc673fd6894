//! The probes the controller writes into the environment: Kubernetes' `Probe` as JSON, one or an array.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

/// One readiness probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub(crate) check: Check,
    /// Zero: try until ready.
    pub(crate) period: Duration,
    pub(crate) timeout: Duration,
    pub(crate) success_threshold: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    Tcp(SocketAddr),
    Http {
        address: SocketAddr,
        host: String,
        path: String,
        https: bool,
        headers: Vec<(String, String)>,
    },
    Grpc {
        address: SocketAddr,
        service: String,
    },
    /// Nothing the sidecar can run; never passes.
    Impossible(&'static str),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    Many(Vec<Wire>),
    One(Box<Wire>),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    http_get: Option<HttpGet>,
    tcp_socket: Option<TcpSocket>,
    grpc: Option<Grpc>,
    exec: Option<serde_json::Value>,
    period_seconds: u64,
    timeout_seconds: u64,
    success_threshold: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct HttpGet {
    path: String,
    port: Port,
    host: String,
    scheme: String,
    http_headers: Vec<Header>,
}

#[derive(Deserialize)]
struct Header {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct TcpSocket {
    port: Port,
    host: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Grpc {
    port: u16,
    service: Option<String>,
}

/// An `IntOrString`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u16),
    Text(String),
}

// === impl Probe ===

impl Probe {
    /// Parses the environment variable; `""` means that there are none. A probe without a port means `user_port`.
    ///
    /// # Errors
    /// Says what in the JSON is not a probe.
    pub fn parse(json: &str, user_port: u16) -> Result<Vec<Self>, String> {
        if json.trim().is_empty() {
            return Ok(Vec::new());
        }
        let wires = match serde_json::from_str(json).map_err(|error| error.to_string())? {
            OneOrMany::Many(wires) => wires,
            OneOrMany::One(wire) => vec![*wire],
        };
        wires.into_iter().map(|wire| wire.probe(user_port)).collect()
    }
}

// === impl Wire ===

impl Wire {
    fn probe(self, user_port: u16) -> Result<Probe, String> {
        let (period, timeout, threshold) = (self.period_seconds, self.timeout_seconds, self.success_threshold);
        Ok(Probe {
            check: self.check(user_port)?,
            period: Duration::from_secs(period),
            timeout: Duration::from_secs(timeout.max(1)),
            success_threshold: threshold.max(1),
        })
    }

    fn check(self, user_port: u16) -> Result<Check, String> {
        if let Some(get) = self.http_get {
            let address = address(&get.host, &get.port, user_port)?;
            let path = if get.path.starts_with('/') { get.path } else { format!("/{}", get.path) };
            let headers = get.http_headers.into_iter().map(|header| (header.name, header.value)).collect();
            let https = get.scheme.eq_ignore_ascii_case("https");
            let host = if get.host.is_empty() { "127.0.0.1".to_owned() } else { get.host };
            let host = format!("{host}:{}", address.port());
            return Ok(Check::Http { address, host, path, https, headers });
        }
        if let Some(tcp) = self.tcp_socket {
            return Ok(Check::Tcp(address(&tcp.host, &tcp.port, user_port)?));
        }
        if let Some(grpc) = self.grpc {
            let address = address("", &Port::Number(grpc.port), user_port)?;
            return Ok(Check::Grpc { address, service: grpc.service.unwrap_or_default() });
        }
        if self.exec.is_some() {
            return Ok(Check::Impossible("exec probe not supported"));
        }
        Ok(Check::Impossible("no probe found"))
    }
}

fn address(host: &str, port: &Port, user_port: u16) -> Result<SocketAddr, String> {
    let host = if host.is_empty() || host == "localhost" { "127.0.0.1" } else { host };
    let ip = host.parse().map_err(|_| format!("host {host:?} is not an address"))?;
    let port = match port {
        Port::Number(port) => *port,
        Port::Text(text) if text.is_empty() => 0,
        Port::Text(text) => text.parse().map_err(|_| format!("port {text:?} is not a number"))?,
    };
    Ok(SocketAddr::new(ip, if port == 0 { user_port } else { port }))
}

// === impl Port ===

impl Default for Port {
    fn default() -> Self {
        Self::Number(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_probe_of_a_revision() {
        let json = r#"{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}"#;
        let probes = Probe::parse(json, 1).expect("valid");
        assert_eq!(probes[0].check, Check::Tcp("127.0.0.1:8080".parse().unwrap()));
        assert!(probes[0].period.is_zero());
    }

    #[test]
    fn several_containers_and_missing_ports() {
        let json = r#"[{"httpGet":{"path":"health","port":0,"host":"127.0.0.1","scheme":"HTTP",
            "httpHeaders":[{"name":"X-A","value":"b"}]},"periodSeconds":5,"timeoutSeconds":2},{"grpc":{"port":50051}}]"#;
        let probes = Probe::parse(json, 9000).expect("valid");
        assert_eq!((probes[0].period.as_secs(), probes[0].timeout.as_secs()), (5, 2));
        let Check::Http { address, host, path, .. } = &probes[0].check else { panic!("{:?}", probes[0].check) };
        assert_eq!((address.port(), host.as_str(), path.as_str()), (9000, "127.0.0.1:9000", "/health"));
        assert!(matches!(&probes[1].check, Check::Grpc { address, .. } if address.port() == 50051));
    }

    #[test]
    fn nothing_means_ready_and_nonsense_is_refused() {
        assert!(Probe::parse("", 1).expect("valid").is_empty());
        assert!(Probe::parse(r#"{"tcpSocket":{"port":"web"}}"#, 1).is_err());
    }
}
