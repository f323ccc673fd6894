//! A client's connection as long as its requests are plain.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use net::{Limits, Member, with_date};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use crate::{
    Incoming, Plain,
    buffers::{self, Buffer},
    clock::Clock,
};

/// How long a client may take to send a head.
const HEAD_TIME: Duration = Duration::from_secs(60);

/// The connection, what was read from it and not consumed, and the time limits of the request under way.
pub struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) member: Member,
    pub(crate) clock: Clock,
    /// What the client has sent: the current request, if it is still needed, and what follows.
    pub(crate) input: Option<Buffer>,
    have: usize,
    /// The current request is one whose answers have no body.
    bodiless: bool,
}

/// What comes next on a connection.
pub enum Next<R> {
    /// Nothing.
    Closed,
    /// A request that is not plain.
    Other,
    Plain(Plain, R),
}

/// Why an exchange cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// A time limit.
    Time,
    /// The client left.
    Gone,
}

// === impl Client ===

impl Client {
    pub fn new(stream: TcpStream, member: Member, limits: Limits) -> Self {
        Self { stream, member, clock: Clock::new(limits), input: None, have: 0, bodiless: false }
    }

    /// The connection's parts and what was read from it, for whoever serves what is not plain.
    pub fn into_parts(self) -> (TcpStream, Member, Vec<u8>) {
        let read = self.input().to_vec();
        (self.stream, self.member, read)
    }

    /// Whether nothing was read that has not been answered.
    pub fn is_between_requests(&self) -> bool {
        self.have == 0
    }

    /// Waits for a request; `look` says what the bytes so far are.
    pub async fn next<R>(&mut self, mut look: impl FnMut(&[u8]) -> Incoming<R>) -> Next<R> {
        let mut partial_since = None;
        loop {
            if self.have == 0 {
                self.input = None;
                if !self.fill().await {
                    return Next::Closed;
                }
            }
            match look(self.input()) {
                Incoming::Plain(plain, made) => {
                    self.bodiless = plain.bodiless;
                    return Next::Plain(plain, made);
                }
                Incoming::Other => return Next::Other,
                Incoming::Partial if self.have == buffers::SIZE => return Next::Other,
                Incoming::Partial => {
                    let since = *partial_since.get_or_insert_with(Instant::now);
                    match tokio::time::timeout_at(since + HEAD_TIME, self.fill()).await {
                        Ok(true) => {}
                        _ => return Next::Closed,
                    }
                }
            }
        }
    }

    /// A request starts, with these limits.
    pub fn start(&mut self, now: Instant, limits: Limits) {
        self.clock.start(now, limits);
    }

    /// What was received and not consumed.
    pub fn input(&self) -> &[u8] {
        self.input.as_ref().map_or(&[], |input| &input[..self.have])
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
        ready!(self.stream.poll_read_ready(cx))?;
        let input = self.input.get_or_insert_with(Buffer::take);
        let polled = poll_read(&mut self.stream, cx, &mut input[self.have..]);
        if let Poll::Ready(Ok(read)) = &polled {
            self.have += read;
        }
        // What looked readable may not be: whoever waits has no buffer.
        if self.have == 0 {
            self.input = None;
        }
        polled
    }

    /// Forgets the first `bytes` of the input.
    pub fn consume(&mut self, bytes: usize) {
        if let Some(input) = &mut self.input {
            input.copy_within(bytes..self.have, 0);
        }
        self.have -= bytes;
        if self.have == 0 {
            self.input = None;
        }
    }

    /// Gives the buffer back early: `plain`'s head was rewritten already, and its body, if it has one and `body` takes
    /// it, is copied there.
    pub fn release(&mut self, plain: Plain, body: Option<&mut Vec<u8>>) -> Plain {
        let kept = match body {
            Some(body) => {
                body.extend_from_slice(&self.input()[plain.head..plain.head + plain.body]);
                0
            }
            None => plain.body,
        };
        if kept > 0 {
            return plain;
        }
        self.consume(plain.head + plain.body);
        Plain { head: 0, body: 0, ..plain }
    }

    /// Runs `work` while there is time and a client to do it for.
    ///
    /// # Errors
    /// What ended it; the work is dropped.
    pub async fn race<F: Future>(&mut self, work: F) -> Result<F::Output, Cut> {
        let mut work = pin!(work);
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

    /// Writes to the client, however long it takes within the limits. False if that failed.
    pub async fn write(&mut self, parts: [&[u8]; 3]) -> bool {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut written = 0;
        let done = poll_fn(|cx| {
            while written < total {
                match try_write(&self.stream, parts, written) {
                    Ok(step) => written += step,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if self.clock.poll(cx).is_ready() {
                            return Poll::Ready(false);
                        }
                        if ready!(self.stream.poll_write_ready(cx)).is_err() {
                            return Poll::Ready(false);
                        }
                    }
                    Err(_) => return Poll::Ready(false),
                }
            }
            Poll::Ready(true)
        })
        .await;
        if done {
            self.clock.wrote();
        }
        done
    }

    /// What a cut leads to: silence, or the message of the time limit. True if the connection can carry another
    /// request.
    pub async fn cut(&mut self, cut: Cut) -> bool {
        match cut {
            Cut::Gone => false,
            Cut::Time => self.reply("504 Gateway Timeout", "", self.message()).await,
        }
    }

    /// The current request is one whose answers have no body.
    pub fn is_bodiless(&self) -> bool {
        self.bodiless
    }

    /// What is said when a time limit is reached.
    pub fn message(&self) -> &'static str {
        self.clock.message()
    }

    /// An answer of our own, with more `fields` if not empty (each with its line end).
    pub async fn reply(&mut self, status: &str, fields: &str, text: &str) -> bool {
        let date = with_date(|date| String::from_utf8_lossy(date).into_owned());
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n{fields}Content-Length: {}\r\n\
             Date: {date}\r\n\r\n{}",
            text.len(),
            if self.bodiless { "" } else { text }
        );
        self.write([answer.as_bytes(), &[], &[]]).await
    }
}

/// Unlike `try_read`, this remembers that a short read has emptied the socket, which saves the next one.
pub(crate) fn poll_read(stream: &mut TcpStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
    Poll::Ready(Ok(buffer.filled().len()))
}

/// So many bytes are put together sooner than the kernel has looked at a list of them.
const SMALL: usize = 1024;

/// Writes what is left of `parts` after their first `skip` bytes.
pub(crate) fn try_write(stream: &TcpStream, parts: [&[u8]; 3], mut skip: usize) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); 3];
    let mut used = 0;
    for part in parts {
        let start = skip.min(part.len());
        skip -= start;
        if start < part.len() {
            slices[used] = IoSlice::new(&part[start..]);
            used += 1;
        }
    }
    let total: usize = slices[..used].iter().map(|slice| slice.len()).sum();
    match used {
        0 => Ok(0),
        1 => stream.try_write(&slices[0]),
        _ if total <= SMALL => {
            let (mut copy, mut filled) = ([0; SMALL], 0);
            for slice in &slices[..used] {
                copy[filled..filled + slice.len()].copy_from_slice(slice);
                filled += slice.len();
            }
            stream.try_write(&copy[..filled])
        }
        _ => stream.try_write_vectored(&slices[..used]),
    }
}
