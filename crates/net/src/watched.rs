//! What a connection needs that its HTTP implementation does not give: interim responses, and a limit on heads.
//!
//! hyper's server sends no 1xx but 100. Here others are written straight to the connection, which is right exactly
//! while no byte of another response is under way: after a flush, and before the next write. At any other moment an
//! interim response is left out, as a recipient may never rely on one.
//!
//! A head has to arrive within a limit that starts with its first byte, so that idle connections have no timer. What
//! is read while a request is served belongs to that request.
//!
//! A request's target may have characters that the standard asks to be encoded and hyper refuses; they are encoded on
//! the way to it (see `target`).

use std::{
    io::{self, Write as _},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use crate::{Prefixed, headers, target::Line};

/// How long a client may take to send a head.
pub const HEAD_TIME: Duration = Duration::from_secs(60);
/// Interim responses waiting to be written, in bytes; further ones are left out.
const MAX_INTERIM: usize = 64 << 10;

/// A connection together with what is noted about it.
pub(crate) struct Watched<I> {
    io: I,
    wire: Wire,
    /// What was read and had to be changed.
    changed: Prefixed<tokio::io::Empty>,
}

/// Writes interim responses to a client over HTTP/1.1.
#[derive(Clone)]
pub(crate) struct Wire {
    state: Arc<Mutex<State>>,
}

struct State {
    /// Nothing of another response is under way.
    flushed: bool,
    interim: Vec<u8>,
    /// When an interim response was last taken.
    told: Option<Instant>,
    waker: Option<Waker>,
    /// Requests being served.
    serving: usize,
    /// The first byte of a head that is not complete.
    head_since: Option<Instant>,
    /// Where what is read next begins.
    line: Line,
    /// The last bytes that were read.
    tail: [u8; 4],
}

/// A body at whose end its request is no longer served.
pub(crate) struct Served<B> {
    body: B,
    _request: Serving,
}

pub(crate) struct Serving(Wire);

/// Ends a connection whose head takes too long.
#[derive(Default)]
pub(crate) struct HeadClock {
    sleep: Option<Pin<Box<Sleep>>>,
}

// === impl Wire ===

impl Wire {
    pub(crate) fn new() -> Self {
        let state = State {
            flushed: true,
            interim: Vec::new(),
            told: None,
            waker: None,
            serving: 0,
            head_since: None,
            line: Line::Method,
            tail: [0; 4],
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A request has arrived; `alone` if nothing but another request can follow its head.
    pub(crate) fn serve(&self, alone: bool) -> Serving {
        let mut state = self.state.lock();
        state.serving += 1;
        state.head_since = None;
        // What was read with it is at the end of a head too, or it would not be at the end of this one.
        state.line = if alone && state.tail == *b"\r\n\r\n" { Line::Method } else { Line::Unknown };
        Serving(self.clone())
    }

    /// Sends an interim response, if this is a moment at which one can be sent.
    pub(crate) fn send(&self, status: StatusCode, map: &HeaderMap) {
        let mut state = self.state.lock();
        if !state.flushed || state.serving != 1 || state.interim.len() > MAX_INTERIM {
            return;
        }
        let mut map = map.clone();
        headers::strip_hop_by_hop(&mut map);
        let out = &mut state.interim;
        let reason = status.canonical_reason().unwrap_or("");
        let _ = write!(out, "HTTP/1.1 {} {reason}\r\n", status.as_u16());
        for (name, value) in &map {
            let mut first = true;
            out.extend(name.as_str().bytes().map(|byte| {
                let cased = if first { byte.to_ascii_uppercase() } else { byte };
                first = byte == b'-';
                cased
            }));
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        state.told = Some(Instant::now());
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// When the last interim response of the running request was taken.
    pub(crate) fn told(&self) -> Option<Instant> {
        self.state.lock().told
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

// === impl Serving ===

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.serving -= 1;
        state.told = None;
    }
}

// === impl HeadClock ===

impl HeadClock {
    /// Ready when the connection is to end.
    pub(crate) fn poll(&mut self, wire: &Wire, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let since = {
            let mut state = wire.state.lock();
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            state.head_since
        };
        let Some(since) = since else {
            self.sleep = None;
            return Poll::Pending;
        };
        let until = since + limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx)
    }
}

// === impl Watched ===

impl<I> Watched<I> {
    pub(crate) fn new(io: I, wire: Wire) -> Self {
        Self { io, wire, changed: Prefixed::new(Vec::new(), tokio::io::empty()) }
    }
}

impl<I: AsyncWrite + Unpin> Watched<I> {
    /// Writes what interim responses are there.
    fn poll_interim(&mut self, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = 0;
        let mut result = Poll::Ready(Ok(()));
        while written < state.interim.len() {
            match Pin::new(&mut self.io).poll_write(cx, &state.interim[written..]) {
                Poll::Ready(Ok(0)) => result = Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(step)) => {
                    written += step;
                    continue;
                }
                Poll::Ready(Err(error)) => result = Poll::Ready(Err(error)),
                Poll::Pending => result = Poll::Pending,
            }
            break;
        }
        state.interim.drain(..written);
        result
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Watched<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.changed).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut state = this.wire.state.lock();
        if state.serving == 0 {
            state.head_since.get_or_insert_with(Instant::now);
        }
        for byte in &read[read.len().saturating_sub(4)..] {
            state.tail.rotate_left(1);
            state.tail[3] = *byte;
        }
        if let Some(changed) = state.line.encode(read) {
            buf.set_filled(before);
            this.changed = Prefixed::new(changed, tokio::io::empty());
            return Pin::new(&mut this.changed).poll_read(cx, buf);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let wire = this.wire.clone();
        let state = &mut *wire.state.lock();
        ready!(this.poll_interim(state, cx))?;
        state.flushed = false;
        Pin::new(&mut this.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let wire = this.wire.clone();
        let state = &mut *wire.state.lock();
        ready!(this.poll_interim(state, cx))?;
        state.flushed = false;
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let wire = this.wire.clone();
        let state = &mut *wire.state.lock();
        ready!(this.poll_interim(state, cx))?;
        ready!(Pin::new(&mut this.io).poll_flush(cx))?;
        state.flushed = true;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

// === impl Served ===

impl<B> Served<B> {
    pub(crate) fn new(body: B, request: Serving) -> Self {
        Self { body, _request: request }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Served<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::{Connections, Http};

    /// A server at the other end, which answers every request with `hello` after `wait`.
    fn client(wait: Duration) -> DuplexStream {
        let (client, server) = tokio::io::duplex(64 << 10);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        tokio::spawn(async move {
            let handler = move |request: http::Request<crate::Incoming>, _| async move {
                let _ = http_body_util::BodyExt::collect(request.into_body()).await;
                tokio::time::sleep(wait).await;
                crate::text::<()>(StatusCode::OK, "hello")
            };
            Http::new().serve(server, peer, &Connections::new(), handler).await;
        });
        client
    }

    async fn answered(client: &mut DuplexStream) {
        let mut seen = Vec::new();
        while !seen.ends_with(b"hello") {
            seen.push(client.read_u8().await.expect("an answer"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_a_minute_from_its_first_byte() {
        let mut client = client(Duration::ZERO);
        tokio::time::sleep(HEAD_TIME * 10).await;
        client.write_all(b"GET / HTTP/1.1\r\nHo").await.expect("sent");
        let begun = Instant::now();
        assert!(client.read_u8().await.is_err(), "still open");
        assert_eq!(begun.elapsed().as_secs(), HEAD_TIME.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_request_or_for_an_answer_has_no_limit() {
        let mut client = client(HEAD_TIME * 3);
        for _ in 0..3 {
            client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n").await.expect("sent");
            tokio::time::sleep(HEAD_TIME * 2).await;
            client.write_all(b"ab").await.expect("sent");
            answered(&mut client).await;
            tokio::time::sleep(HEAD_TIME * 10).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn http2_connections_are_no_heads() {
        let mut client = client(Duration::ZERO);
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sent");
        let mut settings = [0; 9];
        client.read_exact(&mut settings).await.expect("settings");
        tokio::time::sleep(HEAD_TIME * 10).await;
        // PING, answered after the rest of the settings and their acknowledgement.
        client.write_all(b"\0\0\x08\x06\0\0\0\0\x00pingpong").await.expect("sent");
        let mut seen = Vec::new();
        while !seen.ends_with(b"\0\0\x08\x06\x01\0\0\0\x00pingpong") {
            seen.push(client.read_u8().await.expect("still open"));
        }
    }

    #[tokio::test]
    async fn interim_responses_keep_between_the_others() {
        let (mut client, server) = tokio::io::duplex(16);
        let wire = Wire::new();
        let mut server = Watched::new(server, wire.clone());
        let mut map = HeaderMap::new();
        map.insert("x-own", http::HeaderValue::from_static("1"));
        let hints = StatusCode::EARLY_HINTS;
        wire.send(hints, &map);
        let serving = wire.serve(true);
        assert!(wire.told().is_none(), "nobody had asked");
        // Longer than what the connection takes at once.
        server.write_all(b"begun").await.expect("room");
        wire.send(hints, &map);
        assert!(wire.told().is_none(), "in the middle of a response");
        server.flush().await.expect("room");
        wire.send(hints, &map);
        assert!(wire.told().is_some());
        let writing = tokio::spawn(async move {
            server.write_all(b"the rest").await.expect("in the end");
            server.shutdown().await.expect("in the end");
        });
        let mut seen = String::new();
        client.read_to_string(&mut seen).await.expect("text");
        writing.await.expect("no panic");
        assert_eq!(seen, "begunHTTP/1.1 103 Early Hints\r\nX-Own: 1\r\n\r\nthe rest");
        drop(serving);
        assert!(wire.told().is_none());
    }
}
