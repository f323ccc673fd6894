//! Where Prometheus scrapes.

use std::time::Duration;

use http::Request;
use net::{Connections, Http, Incoming};
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
            let answer = move |request: Request<Incoming>, _| {
                std::future::ready(net::exposition::<_, ()>(&request, || registry.render()))
            };
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
