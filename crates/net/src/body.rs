//! The two bodies of an exchange.
//!
//! A `ResponseBody` carries what must live exactly as long as the response: the backend connection, the time limits
//! and the caller's guard (a slot, a count). All of them go the moment the last frame is handed over or the body is
//! dropped, whichever comes first.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::{ConnectionError, Incoming, Timer, kept::KeptBody, pool::PooledBody};

/// What is sent to a backend.
#[derive(Debug, Default)]
pub enum RequestBody {
    #[default]
    Empty,
    Full(Bytes),
    Stream(Incoming),
    /// One that may begin again elsewhere.
    Kept(KeptBody),
}

/// What is sent to a client, with the guard `G` that lasts as long.
#[derive(Debug)]
pub struct ResponseBody<G = ()> {
    source: Source,
    timer: Option<Timer>,
    guard: Option<G>,
    observer: Option<Observer>,
}

/// Tells at the end how many bytes went out, and whether the body was broken off.
struct Observer {
    bytes: u64,
    broken: bool,
    end: Option<EndCallback>,
}

type EndCallback = Box<dyn FnOnce(u64, bool) + Send>;

#[derive(Debug)]
enum Source {
    Done,
    Full(Bytes),
    Stream(Box<PooledBody>),
    /// Stops for this reason, before its announced length.
    Broken {
        message: &'static str,
        /// What was said of it has yet to be written.
        flush: bool,
    },
}

/// Why a body ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("{0}")]
    TimedOut(&'static str),
    #[error("the backend broke off its response: {0}")]
    Backend(#[from] ConnectionError),
}

// === impl RequestBody ===

impl Body for RequestBody {
    type Data = Bytes;
    type Error = ConnectionError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ConnectionError>>> {
        match self.get_mut() {
            Self::Stream(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Kept(kept) => Pin::new(kept).poll_frame(cx),
            this => match std::mem::take(this) {
                Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(_) => false,
            Self::Stream(incoming) => incoming.is_end_stream(),
            Self::Kept(kept) => kept.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(incoming) => incoming.size_hint(),
            Self::Kept(kept) => kept.size_hint(),
        }
    }
}

// === impl ResponseBody ===

impl<G> ResponseBody<G> {
    pub fn empty() -> Self {
        Self { source: Source::Done, timer: None, guard: None, observer: None }
    }

    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let source = if bytes.is_empty() { Source::Done } else { Source::Full(bytes) };
        Self { source, timer: None, guard: None, observer: None }
    }

    /// A backend's response, under the limits of `timer`; `guard` is dropped at its end.
    pub fn stream(body: PooledBody, timer: Option<Timer>, guard: G) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self { source: Source::Stream(Box::new(body)), timer, guard: Some(guard), observer: None }
    }

    /// Calls `end` once, when the body has ended or is dropped, with the bytes that were taken from it and whether
    /// the backend or a time limit broke it off.
    pub fn on_end(&mut self, end: Box<dyn FnOnce(u64, bool) + Send>) {
        self.observer = Some(Observer { bytes: 0, broken: false, end: Some(end) });
    }

    fn finish(&mut self) {
        self.source = Source::Done;
        self.timer = None;
        self.guard = None;
    }
}

impl<G: Unpin> Body for ResponseBody<G> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = this.poll_source(cx);
        if let (Some(observer), Poll::Ready(frame)) = (&mut this.observer, &polled) {
            match frame {
                Some(Ok(frame)) => observer.bytes += frame.data_ref().map_or(0, |data| data.len() as u64),
                Some(Err(_)) => observer.broken = true,
                None => {}
            }
            if matches!(this.source, Source::Done) {
                this.observer = None;
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Done)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Done => SizeHint::with_exact(0),
            Source::Broken { .. } => SizeHint::default(),
            Source::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream(body) => body.size_hint(),
        }
    }
}

impl<G> ResponseBody<G> {
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self;
        let body = match &mut this.source {
            Source::Stream(body) => body,
            Source::Done => return Poll::Ready(None),
            Source::Broken { flush: flush @ true, .. } => {
                // An error makes hyper drop what it has not written; a pause makes it write.
                *flush = false;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Source::Broken { message, .. } => {
                let message = *message;
                this.finish();
                return Poll::Ready(Some(Err(BodyError::TimedOut(message))));
            }
            Source::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                this.finish();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        };
        if let Poll::Ready(frame) = Pin::new(&mut **body).poll_frame(cx) {
            match &frame {
                Some(Ok(_)) if !body.is_end_stream() => {
                    if let Some(timer) = &mut this.timer {
                        timer.wrote();
                    }
                }
                _ => this.finish(),
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Backend)));
        }
        let Some(timer) = &mut this.timer else { return Poll::Pending };
        if timer.poll_expired(cx).is_pending() {
            return Poll::Pending;
        }
        // The status is out; what is left is to say why it stops. Where a length was announced, the text has to fit
        // into what is left of it, and the connection breaks afterwards.
        let message = timer.message();
        let left = body.size_hint().exact();
        this.finish();
        if let Some(left) = left {
            let fits = left >= message.len() as u64;
            this.source = Source::Broken { message, flush: fits };
            if !fits {
                return this.poll_source(cx);
            }
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(message.as_bytes())))))
    }
}

// === impl Observer ===

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Observer({} bytes)", self.bytes)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end(self.bytes, self.broken);
        }
    }
}
