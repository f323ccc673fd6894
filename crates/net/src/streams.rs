//! HTTP/2 without a framework around it: streams of a server's connection, and bodies into streams.
//!
//! hyper puts a task and a channel between a connection and each of its streams, on either side, and sends no interim
//! responses. Here a stream of a server is one task, which sends to the backend's connection itself.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server};
use http::{HeaderMap, Request, Response, header, header::HeaderValue};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    Incoming, ResponseBody,
    accept::Member,
    date::with_date,
    incoming::Answer,
    serve::{Handler, UNSENT},
};

const STREAMS: u32 = 250;
const WINDOW: u32 = 1 << 20;
const FRAME: u32 = 1 << 20;
const HEADERS: u32 = 1 << 20;

/// A body on its way into a stream.
pub(crate) struct Pump<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Waits for room, and whether it is the last.
    held: Option<(Bytes, bool)>,
}

/// Serves a connection whose client speaks HTTP/2, to its end. The preface has to arrive within `limit`.
pub(crate) async fn serve<I, G>(
    io: I,
    peer: SocketAddr,
    member: &mut Member,
    handler: Handler<G>,
    limit: Duration,
) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    G: Send + Unpin + 'static,
{
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(UNSENT)
        .max_header_list_size(HEADERS);
    let handshake = tokio::time::timeout(limit, builder.handshake::<_, Bytes>(io));
    let Ok(shaken) = handshake.await else { return Ok(()) };
    let mut connection = shaken?;
    while let Some(accepted) = poll_fn(|cx| {
        if member.poll_closing(cx) {
            connection.graceful_shutdown();
        }
        connection.poll_accept(cx)
    })
    .await
    {
        let (request, respond) = accepted?;
        tokio::spawn(stream(request, respond, peer, handler.clone()));
    }
    Ok(())
}

/// One request and its answer.
async fn stream<G>(
    request: Request<RecvStream>,
    respond: server::SendResponse<Bytes>,
    peer: SocketAddr,
    handler: Handler<G>,
) where
    G: Send + Unpin + 'static,
{
    let answer = Answer::new(respond);
    let mut handling = handler(Incoming::of_request(request, answer.clone()), peer);
    // Whoever leaves before the answer ends the work for it.
    let response = poll_fn(|cx| match handling.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => answer.respond.lock().poll_reset(cx).map(|_| None),
    })
    .await;
    drop(handling);
    let Some(response) = response else { return };
    answer.begin();
    let (mut parts, body) = response.into_parts();
    let ends = body.is_end_stream();
    complete(&mut parts.headers, &body);
    let head = Response::from_parts(parts, ());
    let sent = answer.respond.lock().send_response(head, ends);
    drop(answer);
    match sent {
        Ok(stream) if !ends => {
            if let Err(error) = Pump::new(body, stream).await {
                tracing::debug!(%peer, %error, "response ended early");
            }
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(%peer, %error, "no response could be sent"),
    }
}

/// What a server says of its responses: when, and how long they are.
fn complete<G: Unpin>(map: &mut HeaderMap, body: &ResponseBody<G>) {
    if !map.contains_key(header::DATE) {
        let date = with_date(HeaderValue::from_bytes);
        map.insert(header::DATE, date.expect("a date is a header value"));
    }
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0)
        && !map.contains_key(header::CONTENT_LENGTH)
    {
        map.insert(header::CONTENT_LENGTH, length.into());
    }
}

// === impl Pump ===

impl<B> Pump<B> {
    pub(crate) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, held: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Pump<B> {
    /// Puts the piece at hand into the stream, once there is room for some of it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, h2::Error>> {
        while self.held.is_some() && self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            }
        }
        let Some((data, last)) = self.held.take() else { return Poll::Ready(Ok(false)) };
        self.stream.send_data(data, last)?;
        Poll::Ready(Ok(last))
    }
}

impl<B> Future for Pump<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Output = Result<(), h2::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(reason) = this.stream.poll_reset(cx)? {
                return Poll::Ready(Err(reason.into()));
            }
            if ready!(this.poll_send(cx))? {
                return Poll::Ready(Ok(()));
            }
            // A piece first, then room for it: room that nobody uses would be kept from other streams.
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = this.body.is_end_stream();
                        if data.is_empty() {
                            if last {
                                this.stream.send_data(data, true)?;
                                return Poll::Ready(Ok(()));
                            }
                            continue;
                        }
                        this.stream.reserve_capacity(1);
                        this.held = Some((data, last));
                    }
                    Err(frame) => {
                        this.stream.reserve_capacity(0);
                        return Poll::Ready(match frame.into_trailers() {
                            Ok(trailers) => this.stream.send_trailers(trailers),
                            Err(_) => this.stream.send_data(Bytes::new(), true),
                        });
                    }
                },
                Some(Err(_)) => {
                    this.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Err(Reason::INTERNAL_ERROR.into()));
                }
                None => return Poll::Ready(this.stream.send_data(Bytes::new(), true)),
            }
        }
    }
}
