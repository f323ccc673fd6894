//! One request on a connection of its own, to wherever a URL points: collectors and HTTPS probes.
//!
//! They are rare, so nothing is kept between two of them.

use std::{net::SocketAddr, sync::Arc};

use http::{Request, Response};
use net::{BoxIo, Incoming, RequestBody};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;

/// Where a request goes.
#[derive(Clone)]
pub struct Target {
    pub host: String,
    pub port: u16,
    /// For `https`.
    pub tls: Option<Arc<ClientConfig>>,
    pub http2: bool,
}

// === impl Target ===

impl Target {
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// What kept the answer's head from coming, as text for a log.
    pub async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, String> {
        let stream = net::connect(self.address().await?).await.map_err(|error| error.to_string())?;
        let io: BoxIo = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from(self.host.clone());
                let name = name.map_err(|error| format!("{:?}: {error}", self.host))?;
                let connector = tokio_rustls::TlsConnector::from(config.clone());
                Box::new(connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?)
            }
        };
        net::send_on(io, self.http2, request).await.map_err(|error| chain(&error))
    }

    async fn address(&self) -> Result<SocketAddr, String> {
        if let Ok(ip) = self.host.parse() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found.map_err(|error| format!("cannot look up {:?}: {error}", self.host))?.next();
        found.ok_or_else(|| format!("{:?} has no address", self.host))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
