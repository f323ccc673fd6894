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
    future::{Future, poll_fn, ready},
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{Method, Request, Response, StatusCode, Version, header, header::HeaderValue};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::timeout,
};

use crate::{
    BoxIo, Connections, Incoming, Prefixed, ResponseBody,
    accept::Member,
    h2c, headers, streams,
    watched::{HEAD_TIME, HeadClock, Served, Watched, Wire},
};

const HEAD: usize = 1 << 20;
/// Upstream has no limit on their number, only on their size.
pub(crate) const MAX_HEADERS: usize = 1000;
/// What a stream may have written that its client has not taken, in bytes: enough to fill the way to it.
pub(crate) const UNSENT: usize = 64 << 10;

type Answer<G> = Pin<Box<dyn Future<Output = Response<ResponseBody<G>>> + Send>>;
pub(crate) type Handler<G> = Arc<dyn Fn(Request<Incoming>, SocketAddr) -> Answer<G> + Send + Sync>;

/// How HTTP is spoken on connections, whatever carries them. Clones are cheap.
#[derive(Clone)]
pub struct Http {
    builder: Arc<http1::Builder>,
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

/// What a connection begins with.
enum Beginning {
    Http1(Vec<u8>),
    Http2(Vec<u8>),
}

/// Why a connection ended that was not at its end.
type Reason = Box<dyn std::error::Error + Send + Sync>;

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
        let mut builder = http1::Builder::new();
        builder.title_case_headers(true).max_buf_size(HEAD).max_headers(MAX_HEADERS);
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

    async fn run(mut self) {
        let mut member = self.connections.join();
        let peer = self.peer;
        let limit = self.http.head_time;
        let ended = match beginning(&mut self.io, &mut member, limit).await {
            Some(Beginning::Http1(read)) => self.run_http1(read, &mut member).await,
            Some(Beginning::Http2(read)) => {
                let io = Prefixed::new(read, self.io);
                streams::serve(io, peer, &mut member, self.handler, limit).await.map_err(Reason::from)
            }
            None => return,
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    /// As one of HTTP/1.1, of which `read` is here.
    async fn run_http1(self, read: Vec<u8>, member: &mut Member) -> Result<(), Reason> {
        let Self { http, io, peer, connections, handler } = self;
        let wire = Wire::new();
        let (noted, again) = (wire.clone(), http.clone());
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let mut request = request.map(Incoming::Http1);
            let alone =
                hyper::body::Body::is_end_stream(request.body()) && !request.headers().contains_key(header::UPGRADE);
            let serving = noted.serve(alone);
            let answer: Answer<G> = if let Some((status, text)) = objection(&request) {
                Box::pin(ready(refused(status, text)))
            } else if h2c::is_asked(&request) {
                let (http, connections, handler) = (again.clone(), connections.clone(), handler.clone());
                Box::pin(switch(request, http, peer, connections, handler))
            } else {
                if request.version() == Version::HTTP_11 {
                    request.extensions_mut().insert(noted.clone());
                }
                handler(request, peer)
            };
            async move { Ok::<_, Infallible>(answer.await.map(|body| Served::new(body, serving))) }
        });
        let io = TokioIo::new(Watched::new(Prefixed::new(read, io), wire.clone()));
        let mut connection = pin!(http.builder.serve_connection(io, service).with_upgrades());
        let mut heads = HeadClock::default();
        poll_fn(|cx| {
            if member.poll_closing(cx) {
                connection.as_mut().graceful_shutdown();
            }
            let polled = connection.as_mut().poll(cx).map_err(Reason::from);
            if polled.is_pending() && heads.poll(&wire, http.head_time, cx).is_ready() {
                return Poll::Ready(Err("its next request took too long to arrive".into()));
            }
            polled
        })
        .await
    }
}

/// What two readers could take for different requests, and what is said of it.
fn objection(request: &Request<Incoming>) -> Option<(StatusCode, &'static str)> {
    const BAD: StatusCode = StatusCode::BAD_REQUEST;
    if request.method() == Method::CONNECT {
        return None;
    }
    let (map, uri) = (request.headers(), request.uri());
    let mut hosts = map.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => {
            return Some((BAD, "400 Bad Request: missing required Host header"));
        }
        (Some(_), Some(_)) => return Some((BAD, "400 Bad Request: too many Host headers")),
        (Some(host), _) if !headers::is_host(host.as_bytes()) => {
            return Some((BAD, "400 Bad Request: malformed Host header"));
        }
        _ => {}
    }
    if uri.scheme().is_none() && uri.authority().is_some() {
        return Some((BAD, "400 Bad Request"));
    }
    // Codings are named outside in; another than the last would be lost on the way, as the header is this hop's.
    let mut codings = map.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next()?;
    let chunked = first.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    (!chunked || codings.next().is_some()).then_some((StatusCode::NOT_IMPLEMENTED, "Unsupported transfer encoding"))
}

/// The last answer of a connection.
fn refused<G>(status: StatusCode, text: &'static str) -> Response<ResponseBody<G>> {
    let mut response = crate::text(status, text);
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Reads until it is clear what the client speaks, which has `limit` from the first byte on. Nothing if the client
/// leaves before, or if the connection is to close.
async fn beginning(io: &mut BoxIo, member: &mut Member, limit: Duration) -> Option<Beginning> {
    let mut read = Vec::with_capacity(h2c::PREFACE.len());
    let mut more = async |read: &mut Vec<u8>| {
        let mut reading = pin!(io.read_buf(read));
        let step = poll_fn(|cx| {
            // What is here already is served.
            let polled = reading.as_mut().poll(cx).map(Result::ok);
            if polled.is_pending() && member.poll_closing(cx) { Poll::Ready(None) } else { polled }
        });
        step.await.filter(|step| *step > 0)
    };
    more(&mut read).await?;
    let whole = async {
        loop {
            let seen = read.len().min(h2c::PREFACE.len());
            if read[..seen] != h2c::PREFACE[..seen] {
                return Some(Beginning::Http1(read));
            }
            if seen == h2c::PREFACE.len() {
                return Some(Beginning::Http2(read));
            }
            more(&mut read).await?;
        }
    };
    timeout(limit, whole).await.ok()?
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
