//! The same API for clients outside of the process: HTTP/1.1 and HTTP/2, with TLS unless it is for a throw-away test.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::auth::{anonymous, authenticate};
use crate::body;
use crate::core::Core;
use crate::handler::Origin;
use crate::server::Server;

/// What a stranger may ask: whether there is somebody.
const OPEN: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Between the stop signal and the end of connections that do not finish by themselves.
const DRAIN: Duration = Duration::from_secs(2);
/// After a failed accept (out of file descriptors), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);

// === impl Server ===

impl Server {
    /// Starts to serve connections, until [`Server::shutdown`]. With an empty token everybody is the administrator.
    pub fn serve(&self, listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, token: &str) {
        let acceptor = tls.map(|tls| {
            let mut tls = rustls::ServerConfig::clone(&tls);
            tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsAcceptor::from(Arc::new(tls))
        });
        let token = Some(token).filter(|token| !token.is_empty()).map(Arc::from);
        self.listeners.lock().spawn(Arc::clone(&self.core).accept(listener, acceptor, token));
    }
}

// === impl Core ===

impl Core {
    async fn accept(self: Arc<Self>, listener: TcpListener, acceptor: Option<TlsAcceptor>, token: Option<Arc<str>>) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the API");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // Watch events are small and must not wait for each other.
            let _ = stream.set_nodelay(true);
            let (core, acceptor, token) = (Arc::clone(&self), acceptor.clone(), token.clone());
            connections.spawn(async move {
                match acceptor {
                    None => connection(core, stream, token).await,
                    Some(acceptor) => match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => connection(core, stream, token).await,
                        Ok(Err(error)) => tracing::debug!(%error, "TLS handshake with an API client failed"),
                        Err(_) => tracing::debug!("TLS handshake with an API client took too long"),
                    },
                }
            });
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, all).await.is_err() {
            connections.shutdown().await;
        }
    }
}

async fn connection(
    core: Arc<Core>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    token: Option<Arc<str>>,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000);
    let shared = Arc::clone(&core);
    let service = service_fn(move |request: Request<Incoming>| {
        let (core, token) = (Arc::clone(&shared), token.clone());
        async move {
            let asked = match OPEN.contains(&request.uri().path()) {
                true => Ok(anonymous()),
                false => authenticate(&core, request.headers(), token.as_deref()),
            };
            let response = match asked {
                Ok(identity) => core.respond(request, Origin { identity, durable: true }).await,
                Err(status) => body::failure(&status),
            };
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = core.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an API connection ended early");
    }
}
