//! Serving HTTP/1.1 and HTTP/2 (prior knowledge, or by upgrade) on a connection.
//!
//! There is no read timeout between requests: gateways keep connections for an hour, and closing one just as a
//! request comes in would lose it. A head that has begun has a minute to arrive (see `watched`).
//!
//! What carries the connection and who answers are behind pointers: an instance of the whole protocol for each would
//! make up most of a small program.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Request, Response, StatusCode, Version, header, header::HeaderValue};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    BoxIo, Connections, ResponseBody, h2c,
    watched::{HEAD_TIME, HeadClock, Served, Watched, Wire},
};

const STREAMS: u32 = 250;
const WINDOW: u32 = 1 << 20;
const FRAME: u32 = 1 << 20;
const HEADERS: u32 = 1 << 20;
/// What a stream may have written that its client has not taken, in bytes: enough to fill the way to it.
const UNSENT: usize = 64 << 10;

type Answer<G> = Pin<Box<dyn Future<Output = Response<ResponseBody<G>>> + Send>>;
type Handler<G> = Arc<dyn Fn(Request<Incoming>, SocketAddr) -> Answer<G> + Send + Sync>;

/// How HTTP is spoken on connections, whatever carries them. Clones are cheap.
#[derive(Clone)]
pub struct Http {
    builder: Arc<auto::Builder<TokioExecutor>>,
    head_time: Duration,
}

/// A connection, and what is needed to serve it.
struct Connection<G> {
    http: Http,
    io: BoxIo,
    peer: SocketAddr,
    connections: Connections,
    handler: Handler<G>,
}

// === impl Http ===

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

impl Http {
    pub fn new() -> Self {
        Self::with_head_time(HEAD_TIME)
    }

    /// With another limit for heads than upstream's minute.
    pub fn with_head_time(head_time: Duration) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().title_case_headers(true).max_buf_size(HEADERS as usize);
        builder
            .http2()
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME)
            .max_send_buf_size(UNSENT)
            .max_header_list_size(HEADERS);
        Self { builder: Arc::new(builder), head_time }
    }

    /// Serves one connection to its end; it is a member of `connections` until then.
    pub async fn serve<I, H, F, G>(&self, io: I, peer: SocketAddr, connections: &Connections, handler: H)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = Response<ResponseBody<G>>> + Send + 'static,
        G: Send + Unpin + 'static,
    {
        let handler: Handler<G> = Arc::new(move |request, peer| Box::pin(handler(request, peer)));
        let (http, connections) = (self.clone(), connections.clone());
        Connection { http, io: Box::new(io), peer, connections, handler }.boxed().await;
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

// === impl Connection ===

impl<G: Send + Unpin + 'static> Connection<G> {
    /// Apart, since a connection can turn into another.
    fn boxed(self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self.run())
    }

    async fn run(self) {
        let Self { http, io, peer, connections, handler } = self;
        let wire = Wire::new();
        let (noted, again, members) = (wire.clone(), http.clone(), connections.clone());
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let serving = noted.serve();
            let answer: Answer<G> = if h2c::is_asked(&request) {
                let (http, connections, handler) = (again.clone(), members.clone(), handler.clone());
                Box::pin(switch(request, http, peer, connections, handler))
            } else {
                if request.version() == Version::HTTP_11 {
                    request.extensions_mut().insert(noted.clone());
                }
                handler(request, peer)
            };
            async move { Ok::<_, Infallible>(answer.await.map(|body| Served::new(body, serving))) }
        });
        let io = TokioIo::new(Watched::new(io, wire.clone()));
        let mut connection = pin!(http.builder.serve_connection_with_upgrades(io, service));
        let mut member = connections.join();
        let mut heads = HeadClock::default();
        let result = poll_fn(|cx| {
            if member.poll_closing(cx) {
                connection.as_mut().graceful_shutdown();
            }
            let polled = connection.as_mut().poll(cx);
            if polled.is_pending() && heads.poll(&wire, http.head_time, cx).is_ready() {
                return Poll::Ready(Err("its next request took too long to arrive".into()));
            }
            polled
        })
        .await;
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

/// Answers that the protocol is switched, and serves the connection as one of HTTP/2 whose first request is `request`.
async fn switch<G: Send + Unpin + 'static>(
    mut request: Request<Incoming>,
    http: Http,
    peer: SocketAddr,
    connections: Connections,
    handler: Handler<G>,
) -> Response<ResponseBody<G>> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let Some(body) = h2c::whole(body).await else {
        return crate::http_error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large for an upgrade to h2c");
    };
    let first = h2c::frames(&Request::from_parts(parts, ()), &body);
    tokio::spawn(async move {
        let Ok(io) = upgrade.await else { return };
        match h2c::begin(TokioIo::new(io), first).await {
            Ok(io) => Connection { http, io: Box::new(io), peer, connections, handler }.boxed().await,
            Err(error) => tracing::debug!(%peer, %error, "upgrade to HTTP/2 failed"),
        }
    });
    let mut response = crate::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("h2c"));
    response
}
