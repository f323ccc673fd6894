//! HTTP/1 requests to the gateway, and the backends behind it.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

/// Requests one after another, on one connection while it lasts.
pub(crate) struct Client {
    to: SocketAddr,
    sender: Option<http1::SendRequest<Empty<Bytes>>>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Name of the backend, and the `x-step` header it got.
    pub(crate) body: String,
}

// === impl Client ===

impl Client {
    pub(crate) fn new(to: SocketAddr) -> Self {
        Self { to, sender: None }
    }

    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        let mut sender = match self.sender.take() {
            Some(sender) if sender.is_ready() => sender,
            _ => {
                let stream = TcpStream::connect(self.to).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        let request = Request::get(path).header("host", host).body(Empty::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        if sender.ready().await.is_ok() {
            self.sender = Some(sender);
        }
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    }
}

/// Answers with its name and the step header.
pub(crate) async fn backend(name: &'static str, address: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                let step = request.headers().get("x-step").and_then(|step| step.to_str().ok()).unwrap_or_default();
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("{name} {step}")))))
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}
