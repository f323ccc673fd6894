//! One request on a connection of its own, to wherever a URL points: collectors and HTTPS probes.
//!
//! They are rare, so nothing is kept between two of them.

use std::{net::SocketAddr, sync::Arc};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use net::RequestBody;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};

/// Where a request goes.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// For `https`.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) http2: bool,
}

// === impl Target ===

impl Target {
    pub(crate) fn authority(&self) -> String {
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
    pub(crate) async fn send(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, String> {
        let stream = net::connect(self.address().await?).await.map_err(|error| error.to_string())?;
        let Some(config) = &self.tls else {
            return self.exchange(stream, request).await;
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| format!("{:?}: {error}", self.host))?;
        let connector = tokio_rustls::TlsConnector::from(config.clone());
        let stream = connector.connect(name, stream).await.map_err(|error| format!("TLS: {error}"))?;
        self.exchange(stream, request).await
    }

    async fn address(&self) -> Result<SocketAddr, String> {
        if let Ok(ip) = self.host.parse() {
            return Ok(SocketAddr::new(ip, self.port));
        }
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found = found.map_err(|error| format!("cannot look up {:?}: {error}", self.host))?.next();
        found.ok_or_else(|| format!("{:?} has no address", self.host))
    }

    async fn exchange<I>(&self, io: I, request: Request<RequestBody>) -> Result<Response<Incoming>, String>
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let text = |error: hyper::Error| chain(&error);
        if self.http2 {
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await;
            let (mut sender, connection) = handshake.map_err(text)?;
            tokio::spawn(connection);
            return sender.send_request(request).await.map_err(text);
        }
        let handshake = http1::Builder::new().title_case_headers(true).handshake(TokioIo::new(io)).await;
        let (mut sender, connection) = handshake.map_err(text)?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(text)
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
