//! Connections to one destination.
//!
//! HTTP/1.1: idle connections (see `Idle`). A connection goes back the moment its response has ended; whether it is
//! really ready for the next request (the request's body may still be under way) is looked at when it is taken out,
//! which needs no task and no waiting. HTTP/2: as few connections as the streams need.
//!
//! A request comes back to the caller if it was certainly not sent. On a kept-alive connection that the other side
//! closes at the same moment, a request that may be repeated (idempotent and without a body) is sent again here.

mod body;
mod http1;
mod http2;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use self::{
    body::Lease,
    http1::{Failed, Sender},
    http2::Http2,
};
pub use self::{body::PooledBody, http1::is_closed};
use crate::{ConnectionError, DialError, Idle, IdleLimits, Incoming, Look, RequestBody, dial, incoming::Interim};

#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Idle HTTP/1.1 connections to keep.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// Write header names as Go does (`X-Forwarded-For`), for programs that look at their case.
    pub title_case: bool,
}

/// What goes between a connection and HTTP: TLS.
pub trait Wrap: Send + Sync + fmt::Debug {
    /// # Errors
    /// Why there can be no such connection; nothing was sent that matters.
    fn wrap(&self, stream: TcpStream) -> BoxFuture<'static, io::Result<Box<dyn Wrapped>>>;
}

/// A connection with something in between.
pub trait Wrapped: Io {
    /// What it runs over, to look whether something has arrived that nobody has heard of yet.
    fn socket(&self) -> Option<&TcpStream>;
}

/// Any connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
pub type BoxIo = Box<dyn Io>;

/// Connections to one address. Clones share them.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    address: SocketAddr,
    wrap: Option<Arc<dyn Wrap>>,
    title_case: bool,
    idle: Arc<Idle<Sender>>,
    http2: Http2,
}

/// A connection before its first request.
pub(crate) enum Connection {
    Plain(TcpStream),
    Wrapped(Box<dyn Wrapped>),
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection; the request has not left.
    #[error("{error}")]
    Dial { error: DialError, request: Box<Request<RequestBody>> },
    /// The connection went away before the request was written.
    #[error("{error}")]
    NotSent { error: ConnectionError, request: Box<Request<RequestBody>> },
    /// Not a byte of the request was written, but it is gone.
    #[error("{0}")]
    Unwritten(ConnectionError),
    /// The request, or a part of it, was sent.
    #[error("{0}")]
    Broken(ConnectionError),
}

// === impl BoxIo ===

/// One that is used once, and not looked at before.
impl Wrapped for BoxIo {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }
}

// === impl PoolOptions ===

impl Default for PoolOptions {
    fn default() -> Self {
        Self { max_idle: 1000, idle_timeout: Duration::from_secs(90), title_case: true }
    }
}

// === impl SendError ===

impl SendError {
    /// The request, if it has certainly not been sent and may go elsewhere.
    pub fn into_request(self) -> Result<Request<RequestBody>, Self> {
        match self {
            Self::Dial { request, .. } | Self::NotSent { request, .. } => Ok(*request),
            Self::Unwritten(_) | Self::Broken(_) => Err(self),
        }
    }

    pub fn is_unsent(&self) -> bool {
        !matches!(self, Self::Broken(_))
    }

    fn of(error: hyper::Error, unwritten: bool) -> Self {
        if unwritten { Self::Unwritten(error.into()) } else { Self::Broken(error.into()) }
    }
}

// === impl Pool ===

impl Pool {
    pub fn new(address: SocketAddr, options: PoolOptions) -> Self {
        Self::wrapped(address, options, None)
    }

    /// With something between its connections and HTTP.
    pub fn wrapped(address: SocketAddr, options: PoolOptions, wrap: Option<Arc<dyn Wrap>>) -> Self {
        let limits = IdleLimits::new(options.max_idle, options.max_idle, options.idle_timeout, 0);
        Self { shared: Arc::new(Shared::new(address, wrap, options.title_case, &limits)) }
    }

    /// One of several whose idle connections share `limits`.
    pub fn limited(address: SocketAddr, limits: &Arc<IdleLimits>, wrap: Option<Arc<dyn Wrap>>) -> Self {
        Self { shared: Arc::new(Shared::new(address, wrap, true, limits)) }
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Sends over HTTP/1.1. The request has an origin-form URI and a `Host`.
    ///
    /// Dropping the future closes the connection in use.
    ///
    /// # Errors
    /// See [`SendError`]: whether the request may go elsewhere.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<PooledBody>, SendError> {
        loop {
            let Some(mut sender) = self.shared.checkout() else {
                return self.send_fresh(request).await;
            };
            let spare = repeatable(&request).then(|| copy(&request));
            match sender.send(request, spare.is_none()).await {
                Ok(response) => return Ok(self.respond(response, sender)),
                Err(Failed { mut error, unwritten }) => {
                    // A response that makes no sense is an answer; asking again would not improve it.
                    let spare = spare.filter(|_| !error.error().is_parse());
                    match error.take_message().or(spare) {
                        Some(again) => request = again,
                        None => return Err(SendError::of(error.into_error(), unwritten)),
                    }
                }
            }
        }
    }

    /// Sends over HTTP/2 with prior knowledge. The URI has scheme and authority.
    ///
    /// Dropping the future resets the stream.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send_http2(&self, request: Request<RequestBody>) -> Result<Response<PooledBody>, SendError> {
        self.send_http2_for(request, None).await
    }

    /// The same, telling `interim` of interim responses.
    pub(crate) async fn send_http2_for(
        &self,
        request: Request<RequestBody>,
        interim: Option<&Interim>,
    ) -> Result<Response<PooledBody>, SendError> {
        self.shared.http2.send(&self.shared, request, interim).await
    }

    /// Sends on a connection of its own that is not shared afterwards: for upgrades.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send_fresh(&self, request: Request<RequestBody>) -> Result<Response<PooledBody>, SendError> {
        let mut sender = match self.dial().await {
            Ok(sender) => sender,
            Err(error) => return Err(SendError::Dial { error, request: Box::new(request) }),
        };
        match sender.send(request, false).await {
            Ok(response) => Ok(self.respond(response, sender)),
            Err(Failed { mut error, unwritten }) => Err(match error.take_message() {
                Some(request) => SendError::NotSent { error: error.into_error().into(), request: Box::new(request) },
                None => SendError::of(error.into_error(), unwritten),
            }),
        }
    }

    /// Idle HTTP/1.1 connections at the moment.
    pub fn idle(&self) -> usize {
        self.shared.idle.kept()
    }

    async fn dial(&self) -> Result<Sender, DialError> {
        let connection = self.shared.connect().await?;
        let sender = Sender::new(connection, self.shared.title_case).await;
        sender.map_err(|error| DialError::Failed { address: self.shared.address, source: io::Error::other(error) })
    }

    fn respond(&self, response: Response<hyper::body::Incoming>, sender: Sender) -> Response<PooledBody> {
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let lease = if upgraded { None } else { Some(Lease::Http1 { sender, pool: self.shared.clone() }) };
        response.map(|body| PooledBody::new(Incoming::Http1(body), lease))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}, {} idle)", self.shared.address, self.idle())
    }
}

// === impl Shared ===

impl Shared {
    fn new(address: SocketAddr, wrap: Option<Arc<dyn Wrap>>, title_case: bool, limits: &Arc<IdleLimits>) -> Self {
        let http2 = Http2::new(limits.threads());
        Self { address, wrap, title_case, idle: Arc::new(Idle::new(limits.clone())), http2 }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection, ready for HTTP.
    pub(crate) async fn connect(&self) -> Result<Connection, DialError> {
        let stream = dial::connect(self.address).await?;
        match &self.wrap {
            None => Ok(Connection::Plain(stream)),
            Some(wrap) => {
                let wrapped = wrap.wrap(stream).await;
                let failed = |source| DialError::Failed { address: self.address, source };
                wrapped.map(Connection::Wrapped).map_err(failed)
            }
        }
    }

    fn checkout(&self) -> Option<Sender> {
        self.idle.take(|sender| match sender {
            closed if closed.is_closed() => Look::Close,
            ready if ready.is_ready() => Look::Take,
            _ => Look::Leave,
        })
    }

    fn checkin(&self, sender: Sender) {
        if !sender.is_closed() {
            self.idle.keep(sender);
        }
    }
}

/// One request on a connection that is used for nothing else: over HTTP/2 with prior knowledge, or HTTP/1.1.
///
/// Dropping the future closes the connection.
///
/// # Errors
/// What went wrong on the connection.
pub async fn send_on(
    io: BoxIo,
    http2: bool,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, ConnectionError> {
    if http2 {
        return http2::send_on(io, request).await;
    }
    let sent = Sender::new(Connection::Wrapped(Box::new(io)), true).await?.send(request, false).await;
    Ok(sent.map_err(|failed| failed.error.into_error())?.map(Incoming::Http1))
}

/// True for a request that may be sent twice and is complete without a body.
fn repeatable(request: &Request<RequestBody>) -> bool {
    request.body().is_end_stream()
        && (matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
            || request.headers().contains_key("idempotency-key")
            || request.headers().contains_key("x-idempotency-key"))
}

fn copy(request: &Request<RequestBody>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    // Who is to be told of interim responses.
    *copy.extensions_mut() = request.extensions().clone();
    copy
}
