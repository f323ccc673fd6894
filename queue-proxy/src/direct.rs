//! The short way for plain requests: one task moves the bytes of both connections.
//!
//! Most requests are complete when they arrive, speak HTTP/1.1 and need no feature of it. For those, parsing into
//! maps and handing bodies from task to task costs more than everything else the sidecar does. Here a request goes
//! from the client's buffer to the program's connection and back with four system calls and nothing in between but
//! the chain: drain, time limits, statistics, breaker.
//!
//! The first request that is not plain (see `head`) hands its connection, from that request's first byte on, to the
//! full implementation behind `Chain::handle`. What both do must stay the same; `tests/` runs its HTTP/1.1 cases through both.

mod backends;
mod buffers;
mod chunks;
mod clock;
mod exchange;
mod head;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use net::{Connections, Http, Member, Prefixed};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
};

use self::{backends::Backends, buffers::Buffer, clock::Clock};
use crate::chain::Chain;

pub(crate) use self::{
    chunks::Chunks,
    head::{Framing, Incoming, request as parse_request, response as parse_response},
};

/// How long a client may take to send a head.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// The short way of a process.
pub(crate) struct Direct {
    chain: Arc<Chain>,
    backends: Arc<Backends>,
    http: Http,
}

/// A client's connection as long as its requests are plain.
struct Connection<'a> {
    direct: &'a Direct,
    client: TcpStream,
    member: Member,
    /// For `X-Forwarded-For`.
    peer: String,
    clock: Clock,
    /// What the client has sent: the current request, if it is still needed, and what follows.
    input: Option<Buffer>,
    have: usize,
}

/// What becomes of a connection.
enum End {
    Closed,
    /// The next request is not plain.
    HandOver,
}

/// Why an exchange cannot go on.
enum Cut {
    /// A time limit.
    Time,
    /// The client left.
    Gone,
}

// === impl Direct ===

impl Direct {
    pub(crate) fn new(chain: Arc<Chain>, program: SocketAddr, max_idle: usize) -> Arc<Self> {
        Arc::new(Self { chain, backends: Backends::new(program, max_idle), http: Http::new() })
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(self: Arc<Self>, client: TcpStream, peer: SocketAddr, connections: Connections) {
        if self.chain.observers.any() {
            // Whoever looks at requests gets them taken apart.
            return Box::pin(self.hand_over(Vec::new(), client, peer, &connections)).await;
        }
        let mut connection = Connection {
            direct: &self,
            client,
            member: connections.join(),
            peer: peer.ip().to_canonical().to_string(),
            clock: Clock::new(self.chain.limits),
            input: None,
            have: 0,
        };
        if let End::Closed = connection.run().await {
            return;
        }
        let read = connection.input.as_ref().map_or_else(Vec::new, |input| input[..connection.have].to_vec());
        let Connection { client, member, .. } = connection;
        // Apart, so that connections that stay here do not carry the room for it.
        Box::pin(self.hand_over(read, client, peer, &connections)).await;
        drop(member);
    }

    async fn hand_over(&self, read: Vec<u8>, client: TcpStream, peer: SocketAddr, connections: &Connections) {
        let chain = self.chain.clone();
        let handler = move |request, peer| chain.clone().handle(request, peer, false);
        self.http.serve(Prefixed::new(read, client), peer, connections, handler).await;
    }
}

// === impl Connection ===

impl Connection<'_> {
    async fn run(&mut self) -> End {
        let mut out = Vec::new();
        let mut partial_since = None;
        loop {
            if self.have == 0 {
                self.input = None;
                if !self.fill().await {
                    return End::Closed;
                }
            }
            let input = self.input.as_ref().map_or(&[][..], |input| &input[..self.have]);
            match head::request(input, &self.peer, &mut out) {
                head::Incoming::Plain(plain) => {
                    partial_since = None;
                    if !self.exchange(plain, &mut out).await {
                        return End::Closed;
                    }
                }
                head::Incoming::Other => return End::HandOver,
                head::Incoming::Partial if self.have == buffers::SIZE => return End::HandOver,
                head::Incoming::Partial => {
                    let since = *partial_since.get_or_insert_with(tokio::time::Instant::now);
                    match tokio::time::timeout_at(since + HEAD_TIME, self.fill()).await {
                        Ok(true) => {}
                        _ => return End::Closed,
                    }
                }
            }
        }
    }

    /// Reads what the client sends next; false if the connection is to close.
    async fn fill(&mut self) -> bool {
        poll_fn(|cx| {
            if self.member.poll_closing(cx) || self.member.is_closing() {
                return Poll::Ready(false);
            }
            self.poll_input(cx).map(|read| read.is_ok_and(|read| read > 0))
        })
        .await
    }

    /// Reads once, taking a buffer only when there is something to read.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        ready!(self.client.poll_read_ready(cx))?;
        let input = self.input.get_or_insert_with(Buffer::take);
        let read = ready!(poll_read(&mut self.client, cx, &mut input[self.have..]))?;
        self.have += read;
        Poll::Ready(Ok(read))
    }

    /// Forgets the first `bytes` of the input.
    fn consume(&mut self, bytes: usize) {
        if let Some(input) = &mut self.input {
            input.copy_within(bytes..self.have, 0);
        }
        self.have -= bytes;
        if self.have == 0 {
            self.input = None;
        }
    }

    /// Runs `work` while there is time and a client to do it for.
    async fn race<F: Future>(&mut self, work: F) -> Result<F::Output, Cut> {
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            if self.clock.poll(cx).is_ready() {
                return Poll::Ready(Err(Cut::Time));
            }
            self.poll_gone(cx).map(|()| Err(Cut::Gone))
        })
        .await
    }

    /// Ready when the client has closed. What it sends meanwhile is the next request.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.have < buffers::SIZE {
            if !matches!(ready!(self.poll_input(cx)), Ok(1..)) {
                return Poll::Ready(());
            }
        }
        // No room to look further; that the client left is seen when it is answered.
        Poll::Pending
    }
}

/// Unlike `try_read`, this remembers that a short read has emptied the socket, which saves the next one.
fn poll_read(stream: &mut TcpStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}
