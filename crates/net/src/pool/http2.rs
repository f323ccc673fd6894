//! HTTP/2 connections with prior knowledge to one destination.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
};

use bytes::Bytes;
use h2::client::{self, SendRequest};
use http::{Request, Response, header};
use http_body::Body;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::{
    BoxIo, Connection as Io, SendError, Shared,
    body::{Lease, PooledBody},
};
use crate::{
    ConnectionError, DialError, Incoming, RequestBody, Workers, incoming::Interim, serve::UNSENT, streams::Pump,
};

/// Streams on one connection before another is opened: what servers commonly allow.
const STREAMS: usize = 100;
/// What a backend may send of a response that its client does not take. Upstream allows 4 MiB, which a few hundred slow
/// clients turn into the pod's memory.
const STREAM_WINDOW: u32 = 256 << 10;
/// As much as all streams together, so that slow ones do not hold up the others.
const CONNECTION_WINDOW: u32 = 1 << 30;
const HEADERS: u32 = 1 << 20;

pub(crate) struct Http2 {
    threads: usize,
    /// Made when the first is needed: most destinations never are.
    parts: OnceLock<Box<[Part]>>,
}

/// The connections of one thread (see `Workers`).
#[derive(Default)]
struct Part {
    connections: Mutex<Vec<Connection>>,
    /// Only one task dials at a time; the others find its connection when their turn comes.
    dialing: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Bytes>,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    streams: AtomicUsize,
    /// It takes no more requests.
    closed: AtomicBool,
}

/// One stream of a connection's allowance.
struct StreamGuard(Arc<State>);

/// What an exchange holds until its response has ended. A request's body that is still under way then is not wanted.
pub(crate) struct Exchange {
    _stream: StreamGuard,
    _pump: Option<Pumping>,
}

/// The task of a request's body, which ends with this.
struct Pumping(Option<AbortHandle>);

// === impl Http2 ===

impl Http2 {
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads, parts: OnceLock::new() }
    }

    fn part(&self) -> &Part {
        let parts = self.parts.get_or_init(|| (0..=self.threads).map(|_| Part::default()).collect());
        parts.get(Workers::current()).unwrap_or(&parts[0])
    }

    pub(crate) async fn send(
        &self,
        shared: &Shared,
        request: Request<RequestBody>,
        interim: Option<&Interim>,
    ) -> Result<Response<PooledBody>, SendError> {
        // A connection may have been told to go without our having noticed; a new one is not asked twice.
        let (sender, stream) = loop {
            let (sender, stream, fresh) = match self.part().stream(shared).await {
                Ok(stream) => stream,
                Err(error) => return Err(SendError::Dial { error, request: Box::new(request) }),
            };
            match sender.ready().await {
                Ok(sender) => break (sender, stream),
                Err(error) if fresh => {
                    return Err(SendError::NotSent { error: error.into(), request: Box::new(request) });
                }
                Err(_) => stream.0.closed.store(true, Ordering::Release),
            }
        };
        let sent = exchange(sender, request, interim).await;
        let (response, pump) = sent.map_err(|error| SendError::Broken(error.into()))?;
        let lease = Lease::Http2 { _exchange: Exchange { _stream: stream, _pump: pump } };
        Ok(response.map(|body| PooledBody::new(body, Some(lease))))
    }
}

// === impl Part ===

impl Part {
    /// A connection with room for a stream, and whether it is new.
    async fn stream(&self, shared: &Shared) -> Result<(SendRequest<Bytes>, StreamGuard, bool), DialError> {
        match self.existing() {
            Some((sender, stream)) => Ok((sender, stream, false)),
            None => Box::pin(self.dial(shared)).await,
        }
    }

    /// The same, where there is none yet.
    async fn dial(&self, shared: &Shared) -> Result<(SendRequest<Bytes>, StreamGuard, bool), DialError> {
        let _turn = self.dialing.lock().await;
        if let Some((sender, stream)) = self.existing() {
            return Ok((sender, stream, false));
        }
        let io: BoxIo = match shared.connect().await? {
            Io::Plain(stream) => Box::new(stream),
            Io::Wrapped(io) => io,
        };
        let address = shared.address();
        let connection =
            handshake(io).await.map_err(|error| DialError::Failed { address, source: std::io::Error::other(error) })?;
        self.connections.lock().push(connection.clone());
        let stream = connection.enter();
        Ok((connection.sender, stream, true))
    }

    fn existing(&self) -> Option<(SendRequest<Bytes>, StreamGuard)> {
        let mut connections = self.connections.lock();
        connections.retain(|connection| !connection.state.closed.load(Ordering::Acquire));
        let has_room = |connection: &&Connection| connection.state.streams.load(Ordering::Relaxed) < STREAMS;
        let free = connections.iter().find(has_room)?;
        Some((free.sender.clone(), free.enter()))
    }
}

/// One request on a connection that is used for nothing else.
pub(super) async fn send_on(io: BoxIo, request: Request<RequestBody>) -> Result<Response<Incoming>, ConnectionError> {
    let sender = handshake(io).await?.sender.ready().await?;
    let (response, pump) = exchange(sender, request, None).await?;
    if let Some(pump) = pump {
        pump.detach();
    }
    Ok(response)
}

/// Sends on `sender`, which is ready; the response comes with what sends the rest of the request.
async fn exchange(
    mut sender: SendRequest<Bytes>,
    request: Request<RequestBody>,
    interim: Option<&Interim>,
) -> Result<(Response<Incoming>, Option<Pumping>), h2::Error> {
    let (mut parts, body) = request.into_parts();
    parts.extensions.clear();
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0)
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
    {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    let ends = body.is_end_stream();
    let (mut response, stream) = sender.send_request(Request::from_parts(parts, ()), ends)?;
    // Its own handle would keep the connection open.
    drop(sender);
    let pump = (!ends).then(|| {
        let pump = tokio::spawn(async move {
            if let Err(error) = Pump::new(body, stream).await {
                tracing::debug!(%error, "request ended early");
            }
        });
        Pumping(Some(pump.abort_handle()))
    });
    let response = poll_fn(|cx| {
        if let Some(interim) = interim {
            while let Poll::Ready(Some(Ok(early))) = response.poll_informational(cx) {
                interim.send(early.status(), early.headers());
            }
        }
        Pin::new(&mut response).poll(cx)
    })
    .await?;
    Ok((Incoming::of_response(response), pump))
}

async fn handshake(io: BoxIo) -> Result<Connection, h2::Error> {
    let (sender, connection) = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(STREAMS)
        .max_send_buffer_size(UNSENT)
        .max_header_list_size(HEADERS)
        .enable_push(false)
        .handshake(io)
        .await?;
    let state = Arc::new(State::default());
    let ended = state.clone();
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "backend HTTP/2 connection ended");
        }
        ended.closed.store(true, Ordering::Release);
    });
    Ok(Connection { sender, state })
}

// === impl Connection ===

impl Connection {
    fn enter(&self) -> StreamGuard {
        self.state.streams.fetch_add(1, Ordering::Relaxed);
        StreamGuard(self.state.clone())
    }
}

// === impl StreamGuard ===

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Pumping ===

impl Pumping {
    /// Lets it go on by itself.
    fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Pumping {
    fn drop(&mut self) {
        if let Some(pump) = &self.0 {
            pump.abort();
        }
    }
}
