//! Servers behind the gateway.

use std::{collections::HashMap, convert::Infallible, net::SocketAddr};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use super::Certificate;

pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

// === impl Backend ===

impl Backend {
    /// Speaks HTTP/1 and h2c and tells who it is and what it got.
    pub(crate) async fn start(name: &'static str) -> Self {
        Self::serve(name, None).await
    }

    /// The same over TLS.
    pub(crate) async fn start_tls(name: &'static str, certificate: &Certificate) -> Self {
        Self::serve(name, Some(certificate.acceptor())).await
    }

    /// Whatever `handle` does with a connection.
    pub(crate) async fn connections<F: Future<Output = ()> + Send + 'static>(
        handle: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(handle(stream));
            }
        });
        Backend { address, task }
    }

    async fn serve(name: &'static str, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| async move {
                    let mut headers: HashMap<String, String> = HashMap::new();
                    for (name, value) in request.headers() {
                        headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned());
                    }
                    if let Some(authority) = request.uri().authority() {
                        headers.insert("host".to_owned(), authority.to_string());
                    }
                    let hash = headers.get("k-network-hash").cloned();
                    let body = json!({"backend": name, "version": format!("{:?}", request.version()),
                        "path": request.uri().path(), "headers": headers});
                    let mut response = hyper::Response::new(Full::new(Bytes::from(body.to_string())));
                    // The probe handshake of Knative's data plane.
                    if let Some(hash) = hash {
                        response.headers_mut().insert("k-network-hash", hash.parse().unwrap());
                    }
                    Ok::<_, Infallible>(response)
                });
                let tls = tls.clone();
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(builder.serve_connection(TokioIo::new(stream), service).await);
                        }
                    }
                });
            }
        });
        Backend { address, task }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}
