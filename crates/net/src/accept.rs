//! Accepting connections and serving HTTP/1.1 and HTTP/2 (prior knowledge) on them.
//!
//! There is no read timeout between requests: gateways keep connections for an hour, and closing one just as a
//! request comes in would lose it. A head that has begun has a minute to arrive (see `watched`).
//!
//! Shutdown is graceful per connection: idle ones close at once, busy ones after their response (HTTP/1.1) or after
//! GOAWAY and their last stream (HTTP/2). Connections learn of it through a flag and their task's waker, which is
//! registered once; polling a connection touches nothing shared.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::{Request, Response, StatusCode, Version, header, header::HeaderValue};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::{
    ResponseBody, h2c,
    watched::{HEAD_TIME, HeadClock, Served, Watched, Wire},
};

const STREAMS: u32 = 250;
const WINDOW: u32 = 1 << 20;
const FRAME: u32 = 1 << 20;
const HEADERS: u32 = 1 << 20;

/// The open connections of a server, and the way to end them.
#[derive(Clone, Default)]
pub struct Connections {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    closing: AtomicBool,
    open: AtomicUsize,
    next: AtomicUsize,
    /// By connection, so that one which ended leaves nothing behind.
    wakers: Mutex<std::collections::HashMap<usize, Waker>>,
    changed: Notify,
}

/// One connection's membership, until it is dropped.
pub struct Member {
    id: usize,
    shared: Arc<Shared>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    New,
    Registered,
    Closing,
}

/// Binds a listening socket.
///
/// # Errors
/// Names the address and says what to do if it is taken.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => ": stop what uses this port, or choose another",
            io::ErrorKind::PermissionDenied => ": ports below 1024 need privileges",
            io::ErrorKind::AddrNotAvailable => ": no interface has this address",
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
    })
}

/// How HTTP is spoken on connections, whatever carries them. Clones are cheap.
#[derive(Clone)]
pub struct Http {
    builder: Arc<auto::Builder<TokioExecutor>>,
    http2: Arc<http2::Builder<TokioExecutor>>,
    head_time: Duration,
}

/// Accepts until `connections` are told to close. `handler` gets every request with its peer's address.
pub async fn serve<H, F, G>(listener: TcpListener, connections: Connections, handler: H)
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<ResponseBody<G>>> + Send + 'static,
    G: Send + Unpin + 'static,
{
    let http = Http::new();
    accept(listener, connections.clone(), move |stream, peer| {
        let (http, connections, handler) = (http.clone(), connections.clone(), handler.clone());
        async move { http.serve(stream, peer, &connections, handler).await }
    })
    .await;
}

/// Accepts until `connections` are told to close; `each` is a task of its own for every connection.
pub async fn accept<C, F>(listener: TcpListener, connections: Connections, each: C)
where
    C: Fn(TcpStream, SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closing() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                tokio::spawn(each(stream, peer));
            }
            // Out of file descriptors, most likely: those in use will be closed, so accept again soon.
            Err(error) if !is_peer_error(&error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(_) => {}
        }
    }
}

fn is_peer_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
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
            .max_header_list_size(HEADERS);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME)
            .max_header_list_size(HEADERS);
        Self { builder: Arc::new(builder), http2: Arc::new(http2), head_time }
    }

    /// Serves one connection to its end; it is a member of `connections` until then.
    pub async fn serve<I, H, F, G>(&self, io: I, peer: SocketAddr, connections: &Connections, handler: H)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = Response<ResponseBody<G>>> + Send + 'static,
        G: Send + Unpin + 'static,
    {
        let wire = Wire::new();
        let handler = Arc::new(handler);
        let (noted, http2, members) = (wire.clone(), self.http2.clone(), connections.clone());
        let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
            let serving = noted.serve();
            let answer = if h2c::is_asked(&request) {
                let switch = Switch { http2: http2.clone(), peer, connections: members.clone() };
                Answer::Switch(Box::pin(switch.run(request, handler.clone())))
            } else {
                if request.version() == Version::HTTP_11 {
                    request.extensions_mut().insert(noted.clone());
                }
                Answer::Handler(handler(request, peer))
            };
            async move {
                let response = match answer {
                    Answer::Handler(response) => response.await,
                    Answer::Switch(response) => response.await,
                };
                Ok::<_, Infallible>(response.map(|body| Served::new(body, serving)))
            }
        });
        let io = TokioIo::new(Watched::new(io, wire.clone()));
        let mut connection = std::pin::pin!(self.builder.serve_connection_with_upgrades(io, service));
        let mut member = connections.join();
        let mut heads = HeadClock::default();
        let result = std::future::poll_fn(|cx| {
            if member.poll_closing(cx) {
                connection.as_mut().graceful_shutdown();
            }
            let polled = connection.as_mut().poll(cx);
            if polled.is_pending() && heads.poll(&wire, self.head_time, cx).is_ready() {
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

/// A connection that is to become one of HTTP/2.
struct Switch {
    http2: Arc<http2::Builder<TokioExecutor>>,
    peer: SocketAddr,
    connections: Connections,
}

/// Who answers a request.
enum Answer<F, S> {
    Handler(F),
    Switch(S),
}

// === impl Switch ===

impl Switch {
    async fn run<H, F, G>(self, mut request: Request<Incoming>, handler: Arc<H>) -> Response<ResponseBody<G>>
    where
        H: Fn(Request<Incoming>, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = Response<ResponseBody<G>>> + Send + 'static,
        G: Send + Unpin + 'static,
    {
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let Some(body) = h2c::whole(body).await else {
            return crate::http_error(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large for an upgrade to h2c");
        };
        let first = h2c::frames(&Request::from_parts(parts, ()), &body);
        tokio::spawn(async move {
            let Ok(io) = upgrade.await else { return };
            match h2c::begin(TokioIo::new(io), first).await {
                Ok(io) => self.serve(io, handler).await,
                Err(error) => tracing::debug!(peer = %self.peer, %error, "upgrade to HTTP/2 failed"),
            }
        });
        let mut response = crate::empty(StatusCode::SWITCHING_PROTOCOLS);
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("h2c"));
        response
    }

    async fn serve<I, H, F, G>(&self, io: I, handler: Arc<H>)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>, SocketAddr) -> F + Send + Sync + 'static,
        F: Future<Output = Response<ResponseBody<G>>> + Send + 'static,
        G: Send + Unpin + 'static,
    {
        let peer = self.peer;
        let service = hyper::service::service_fn(move |request| {
            let response = handler(request, peer);
            async move { Ok::<_, Infallible>(response.await) }
        });
        let mut connection = std::pin::pin!(self.http2.serve_connection(TokioIo::new(io), service));
        let mut member = self.connections.join();
        let result = std::future::poll_fn(|cx| {
            if member.poll_closing(cx) {
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await;
        if let Err(error) = result {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

// === impl Connections ===

impl Connections {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Acquire)
    }

    /// Stops accepting and lets every connection end after what it is doing.
    pub fn close(&self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.changed.notify_waiters();
        let wakers = std::mem::take(&mut *self.shared.wakers.lock());
        for waker in wakers.into_values() {
            waker.wake();
        }
    }

    /// Completes when no connection is open.
    pub async fn closed(&self) {
        self.until(|| self.open() == 0).await;
    }

    async fn closing(&self) {
        self.until(|| self.shared.closing.load(Ordering::SeqCst)).await;
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if condition() {
                return;
            }
            changed.await;
        }
    }

    /// Adds a connection.
    pub fn join(&self) -> Member {
        self.shared.open.fetch_add(1, Ordering::AcqRel);
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        Member { id, shared: self.shared.clone(), state: State::New }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connections({} open)", self.open())
    }
}

// === impl Member ===

impl Member {
    /// True from when the connection is to close.
    pub fn is_closing(&self) -> bool {
        self.shared.closing.load(Ordering::SeqCst)
    }

    /// True once: when the connection is to close. Always polled by the same task.
    pub fn poll_closing(&mut self, cx: &mut Context<'_>) -> bool {
        if self.state == State::Closing {
            return false;
        }
        if self.state == State::New {
            self.shared.wakers.lock().insert(self.id, cx.waker().clone());
            self.state = State::Registered;
        }
        let closing = self.shared.closing.load(Ordering::SeqCst);
        if closing {
            self.state = State::Closing;
        }
        closing
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({})", self.id)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.shared.wakers.lock().remove(&self.id);
        if self.shared.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.changed.notify_waiters();
        }
    }
}
