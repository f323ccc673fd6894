//! The admin server: `/metrics`, `/health` and `/readiness`.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::AbortHandle};

use crate::Registry;

/// A running admin server; it ends when this is dropped.
#[derive(Debug)]
pub struct AdminHandle {
    address: SocketAddr,
    task: AbortHandle,
}

/// Serves the table. `unready` says why the process is not ready, or nothing if it is.
///
/// # Errors
/// Names the address that cannot be listened on.
pub async fn serve_admin(
    address: SocketAddr,
    registry: Registry,
    unready: impl Fn() -> Option<String> + Send + Sync + 'static,
) -> io::Result<AdminHandle> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address} for metrics: {error}")))?;
    let address = listener.local_addr()?;
    let unready = Arc::new(unready);
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            };
            let (registry, unready) = (registry.clone(), unready.clone());
            let service = service_fn(move |request| {
                let response = answer(&request, &registry, &*unready);
                async move { Ok::<_, Infallible>(response) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(AdminHandle { address, task: task.abort_handle() })
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
    unready: &(dyn Fn() -> Option<String> + Send + Sync),
) -> Response<Full<Bytes>> {
    let (status, kind, body) = match request.uri().path() {
        "/metrics" => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", registry.render()),
        "/health" | "/healthz" => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readiness" | "/readyz" => match unready() {
            None => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
            Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", reason),
        },
        _ => (StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

// === impl AdminHandle ===

impl AdminHandle {
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminHandle {
    fn drop(&mut self) {
        self.task.abort();
    }
}
