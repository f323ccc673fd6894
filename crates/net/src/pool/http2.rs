//! HTTP/2 connections with prior knowledge to one destination.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use http::{Request, Response};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;

use super::{
    BoxIo, Connection as Io, SendError, Shared,
    body::{Lease, PooledBody},
};
use crate::{DialError, RequestBody, Workers};

/// Streams on one connection before another is opened: what servers commonly allow.
const STREAMS: usize = 100;
/// What a backend may send of a response that its client does not take. Upstream allows 4 MiB, which a few hundred slow
/// clients turn into the pod's memory.
const STREAM_WINDOW: u32 = 256 << 10;
/// As much as all streams together, so that slow ones do not hold up the others.
const CONNECTION_WINDOW: u32 = 1 << 30;

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

struct Connection {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<AtomicUsize>,
}

/// One stream of a connection's allowance.
pub(crate) struct StreamGuard(Arc<AtomicUsize>);

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
    ) -> Result<Response<PooledBody>, SendError> {
        let (mut sender, stream) = match self.part().stream(shared).await {
            Ok(stream) => stream,
            Err(error) => return Err(SendError::Dial { error, request: Box::new(request) }),
        };
        match sender.try_send_request(request).await {
            Ok(response) => {
                let lease = Lease::Http2 { _stream: stream };
                Ok(response.map(|body| PooledBody::new(body, Some(lease))))
            }
            Err(mut error) => Err(match error.take_message() {
                Some(request) => SendError::NotSent { error: error.into_error(), request: Box::new(request) },
                None => SendError::Broken(error.into_error()),
            }),
        }
    }
}

// === impl Part ===

impl Part {
    async fn stream(&self, shared: &Shared) -> Result<(http2::SendRequest<RequestBody>, StreamGuard), DialError> {
        if let Some(stream) = self.existing() {
            return Ok(stream);
        }
        let _turn = self.dialing.lock().await;
        if let Some(stream) = self.existing() {
            return Ok(stream);
        }
        let io: BoxIo = match shared.connect().await? {
            Io::Plain(stream) => Box::new(stream),
            Io::Wrapped(io) => io,
        };
        let address = shared.address();
        let sender =
            handshake(io).await.map_err(|error| DialError::Failed { address, source: std::io::Error::other(error) })?;
        let streams = Arc::new(AtomicUsize::new(1));
        let guard = StreamGuard(streams.clone());
        self.connections.lock().push(Connection { sender: sender.clone(), streams });
        Ok((sender, guard))
    }

    fn existing(&self) -> Option<(http2::SendRequest<RequestBody>, StreamGuard)> {
        let mut connections = self.connections.lock();
        connections.retain(|connection| !connection.sender.is_closed());
        let free = connections.iter().find(|connection| connection.streams.load(Ordering::Relaxed) < STREAMS)?;
        free.streams.fetch_add(1, Ordering::Relaxed);
        Some((free.sender.clone(), StreamGuard(free.streams.clone())))
    }
}

pub(super) async fn handshake(io: BoxIo) -> Result<http2::SendRequest<RequestBody>, hyper::Error> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "backend HTTP/2 connection ended");
        }
    });
    Ok(sender)
}

// === impl StreamGuard ===

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
