//! Where Prometheus scrapes.

use std::time::Duration;

use http::{
    Method, Request, Response, StatusCode,
    header::{self, HeaderValue},
};
use net::{Connections, Http, Incoming, ResponseBody};
use observe::Registry;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const HEAD: Duration = Duration::from_secs(5);

/// Serves `/metrics`, and nothing else, as long as it is polled.
pub(crate) async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, registry: Registry) {
    let http = Http::with_head_time(HEAD);
    let connections = Connections::new();
    net::accept(listener, connections.clone(), move |stream, peer| {
        let (tls, http, connections, registry) = (tls.clone(), http.clone(), connections.clone(), registry.clone());
        async move {
            let answer = move |request: Request<Incoming>, _| std::future::ready(exposition(&request, &registry));
            match tls {
                None => http.serve(stream, peer, &connections, answer).await,
                Some(acceptor) => {
                    let Some(stream) = telemetry::tls::handshake(acceptor, stream, peer).await else { return };
                    http.serve(stream, peer, &connections, answer).await;
                }
            }
        }
    })
    .await;
}

fn exposition(request: &Request<Incoming>, registry: &Registry) -> Response<ResponseBody<()>> {
    if request.uri().path() != "/metrics" {
        return net::http_error(StatusCode::NOT_FOUND, "404 page not found");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = net::http_error(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = net::text(StatusCode::OK, registry.render());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
