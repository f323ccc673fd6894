//! An HTTP/1.1 connection that tells whether a request has begun to leave.
//!
//! The other side may close a connection while it is idle. A request that is written to it then may or may not have
//! been read, and is not sent again unless it may be repeated. So what cannot be repeated is preceded by a look at the
//! connection, and a connection that failed before a byte of the request was written has not passed it on.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http::{Request, Response};
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Connection;
use crate::{RequestBody, serve::MAX_HEADERS};

/// Whoever has it may send one request at a time.
pub(crate) struct Sender {
    inner: http1::SendRequest<RequestBody>,
    noted: Arc<Noted>,
}

/// Why there is no response.
pub(super) struct Failed {
    pub(super) error: TrySendError<Request<RequestBody>>,
    /// Not a byte of the request was written.
    pub(super) unwritten: bool,
}

#[derive(Default)]
struct Noted {
    written: AtomicUsize,
    /// Whether to look before the next byte is written.
    look: AtomicBool,
}

struct Noting {
    io: Connection,
    noted: Arc<Noted>,
}

/// Whether the other side has closed a connection on which nothing is under way, or said what nobody asked for.
pub fn is_closed(stream: &impl AsFd) -> bool {
    let looked = recv(stream, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    !matches!(looked, Err(rustix::io::Errno::AGAIN))
}

// === impl Sender ===

impl Sender {
    pub(super) async fn new(io: Connection, title_case: bool) -> Result<Self, hyper::Error> {
        let mut builder = http1::Builder::new();
        builder.title_case_headers(title_case).max_headers(MAX_HEADERS).ignore_invalid_headers_in_responses(true);
        let noted = Arc::new(Noted::default());
        let (inner, connection) = builder.handshake(TokioIo::new(Noting { io, noted: noted.clone() })).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "backend connection ended");
            }
        });
        Ok(Self { inner, noted })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.inner.is_ready()
    }

    /// Sends, after a look at the connection if that is asked for.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
        look: bool,
    ) -> Result<Response<hyper::body::Incoming>, Failed> {
        let before = self.noted.written.load(Relaxed);
        self.noted.look.store(look, Relaxed);
        let sent = self.inner.try_send_request(request).await;
        sent.map_err(|error| Failed { error, unwritten: self.noted.written.load(Relaxed) == before })
    }
}

// === impl Noting ===

impl Noting {
    /// Notes what was written by `write`, after a look if one is due.
    fn note(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Connection>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.noted.look.load(Relaxed) && self.noted.look.swap(false, Relaxed) && self.io.is_closed(cx) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "closed while it was idle")));
        }
        let written = write(Pin::new(&mut self.io), cx);
        if let Poll::Ready(Ok(count)) = &written {
            self.noted.written.fetch_add(*count, Relaxed);
        }
        written
    }
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Noting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.note(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.note(cx, |io, cx| io.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// === impl Connection ===

impl Connection {
    /// Whether no request should be written here: the other side has closed it, or said what nobody asked for.
    fn is_closed(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Plain(stream) => is_closed(stream),
            // What was heard of is understood first: it may be no more than a ticket for the next connection. What is
            // in the socket still has not been heard of and may be anything; there are other connections.
            Self::Wrapped(io) => {
                let heard = Pin::new(&mut **io).poll_read(cx, &mut ReadBuf::new(&mut [0]));
                heard.is_ready() || io.socket().is_some_and(is_closed)
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Wrapped(io) => Pin::new(io).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Wrapped(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Wrapped(io) => Pin::new(io).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Wrapped(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Wrapped(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Wrapped(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
