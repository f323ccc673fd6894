//! What arrives on a connection: the body of a request or of a response, over either version of HTTP, and the way back
//! for interim responses.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{headers, watched::Wire};

/// The body of a message as it comes in.
#[derive(Debug)]
pub enum Incoming {
    Http1(hyper::body::Incoming),
    Http2(Stream),
}

/// A body over HTTP/2.
#[derive(Debug)]
pub struct Stream {
    receive: RecvStream,
    /// All data is here; trailers may follow.
    data_done: bool,
    /// What was announced and has not come.
    left: Option<u64>,
    /// Of a request: where its responses go.
    answer: Option<Arc<Answer>>,
}

/// Where the responses of a request over HTTP/2 go.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) respond: Mutex<SendResponse<Bytes>>,
    /// When the last interim response was sent.
    told: Mutex<Option<Instant>>,
    /// No interim response can follow.
    begun: AtomicBool,
}

/// The way of interim responses to the client of a request.
#[derive(Debug, Clone)]
pub(crate) enum Interim {
    Http1(Wire),
    Http2(Arc<Answer>),
}

/// What went wrong on a connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error(transparent)]
    Http1(#[from] hyper::Error),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

// === impl Incoming ===

impl Incoming {
    pub(crate) fn of_request(request: Request<RecvStream>, answer: Arc<Answer>) -> Request<Self> {
        let length = announced(request.headers());
        request.map(|receive| Self::Http2(Stream::new(receive, length, Some(answer))))
    }

    pub(crate) fn of_response(response: Response<RecvStream>) -> Response<Self> {
        let length = announced(response.headers());
        response.map(|receive| Self::Http2(Stream::new(receive, length, None)))
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = ConnectionError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ConnectionError>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(ConnectionError::Http1),
            Self::Http2(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(stream) => stream.receive.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(stream) if stream.receive.is_end_stream() => SizeHint::with_exact(0),
            Self::Http2(stream) => stream.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// The length that a message says its body has. That it is true is looked after by the protocol.
fn announced(map: &HeaderMap) -> Option<u64> {
    map.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

// === impl Stream ===

impl Stream {
    fn new(receive: RecvStream, left: Option<u64>, answer: Option<Arc<Answer>>) -> Self {
        Self { receive, data_done: false, left, answer }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ConnectionError>>> {
        if !self.data_done {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Who takes it has room for it.
                    let _ = self.receive.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // A peer that has answered may not want the rest, and says so in this way.
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => {
                    self.data_done = true;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => self.data_done = true,
            }
        }
        match ready!(self.receive.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn new(respond: SendResponse<Bytes>) -> Arc<Self> {
        Arc::new(Self { respond: Mutex::new(respond), told: Mutex::new(None), begun: AtomicBool::new(false) })
    }

    /// The response itself comes next.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    fn send(&self, status: StatusCode, map: &HeaderMap) {
        if self.begun.load(Ordering::Acquire) || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = map.clone();
        headers::strip_hop_by_hop(response.headers_mut());
        if self.respond.lock().send_informational(response).is_ok() {
            *self.told.lock() = Some(Instant::now());
        }
    }
}

// === impl Interim ===

impl Interim {
    pub(crate) fn of(request: &Request<Incoming>) -> Option<Self> {
        match request.body() {
            Incoming::Http1(_) => request.extensions().get().cloned().map(Self::Http1),
            Incoming::Http2(stream) => stream.answer.clone().map(Self::Http2),
        }
    }

    /// Sends an interim response of the backend, if this is a moment at which one can be sent.
    pub(crate) fn send(&self, status: StatusCode, map: &HeaderMap) {
        match self {
            // Leave to send a body is given by the server itself.
            Self::Http1(_) if status == StatusCode::CONTINUE => {}
            Self::Http1(wire) => wire.send(status, map),
            Self::Http2(answer) => answer.send(status, map),
        }
    }

    /// When the last one of the running request was taken.
    pub(crate) fn told(&self) -> Option<Instant> {
        match self {
            Self::Http1(wire) => wire.told(),
            Self::Http2(answer) => *answer.told.lock(),
        }
    }
}
