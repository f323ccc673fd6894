//! One plain request and its response.

use std::{future::poll_fn, io, io::IoSlice, task::Poll, task::ready};

use net::QueueFull;
use tokio::{net::TcpStream, time::Instant};

use super::{
    Connection, Cut,
    buffers::{self, Buffer, with_date},
    chunks::Chunks,
    head::{self, Answer, Framing, Plain},
    poll_read,
};
use crate::chain::Ticket;

/// The largest head of a response.
const MAX_HEAD: usize = 1 << 20;

/// What the program sent first: the answer's head, which is already in the output, and how its body begins.
struct Begun {
    backend: TcpStream,
    answer: Answer,
    buffer: Buffer,
    /// Of `buffer`, the beginning of the body.
    body: std::ops::Range<usize>,
}

/// Why there is no answer from the program.
enum Failure {
    Cut(Cut),
    /// A bad gateway, for this reason.
    Program(String),
    /// The client did not take an interim response.
    Client,
}

// === impl Connection ===

impl Connection<'_> {
    /// Serves the request at the start of the input, whose head for the program is `out`. True if the connection can
    /// carry another.
    pub(super) async fn exchange(&mut self, plain: Plain, out: &mut Vec<u8>) -> bool {
        let chain = &self.direct.chain;
        chain.drainer.request();
        let now = Instant::now();
        self.clock.start(now);
        let mut ticket = Ticket::new(chain.in_flight.enter());
        ticket.count(&chain.stats, now.into_std(), plain.proxied);
        if let Some(breaker) = &chain.breaker {
            let slot = match breaker.try_acquire() {
                Some(slot) => Ok(Ok(slot)),
                None => self.race(breaker.acquire()).await,
            };
            match slot {
                Ok(Ok(slot)) => ticket.admit(slot),
                Ok(Err(full)) => {
                    self.consume(plain.head + plain.body);
                    return self.refuse(&full).await;
                }
                Err(cut) => {
                    self.consume(plain.head + plain.body);
                    return self.cut(cut).await;
                }
            }
        }
        let begun = self.begin(plain, out).await;
        match begun {
            Ok(begun) => self.relay(begun, out).await,
            Err(Failure::Cut(cut)) => self.cut(cut).await,
            Err(Failure::Client) => false,
            Err(Failure::Program(error)) => {
                tracing::warn!(error, "error reverse proxying request");
                let text = format!("{error}\n");
                self.reply("502 Bad Gateway", "X-Content-Type-Options: nosniff\r\n", &text).await
            }
        }
    }

    /// Sends the request and waits for the answer's head.
    async fn begin(&mut self, plain: Plain, out: &mut Vec<u8>) -> Result<Begun, Failure> {
        // The head is in `out`; a body stays in the input until the program has answered.
        let kept = if plain.body == 0 {
            self.consume(plain.head);
            0
        } else {
            plain.head + plain.body
        };
        let result = loop {
            let (mut backend, used) = match self.direct.backends.idle() {
                Some(backend) => (backend, true),
                None => {
                    let backends = self.direct.backends.clone();
                    match self.race(async move { backends.dial().await }).await {
                        Ok(Ok(backend)) => (backend, false),
                        Ok(Err(error)) => break Err(Failure::Program(error.to_string())),
                        Err(cut) => break Err(Failure::Cut(cut)),
                    }
                }
            };
            let sent = self.send(&backend, plain, out).await;
            let received = match sent {
                Ok(Ok(())) => self.race(poll_fn(|cx| backend.poll_read_ready(cx))).await,
                other => other,
            };
            let mut buffer = match received {
                Ok(Ok(())) => Buffer::take(),
                Ok(Err(_)) if used && plain.repeatable => continue,
                Ok(Err(error)) => break Err(Failure::Program(error.to_string())),
                Err(cut) => break Err(Failure::Cut(cut)),
            };
            let read = match self.race(poll_fn(|cx| poll_read(&mut backend, cx, &mut buffer))).await {
                // The program closed a connection it had kept, at the moment it was used again.
                Ok(Ok(0) | Err(_)) if used && plain.repeatable => continue,
                Ok(Ok(0)) => break Err(Failure::Program("EOF".to_owned())),
                Ok(Ok(read)) => read,
                Ok(Err(error)) => break Err(Failure::Program(error.to_string())),
                Err(cut) => break Err(Failure::Cut(cut)),
            };
            break self.head(backend, buffer, read, plain, out).await;
        };
        self.consume(kept);
        result
    }

    async fn send(&mut self, backend: &TcpStream, plain: Plain, out: &[u8]) -> Result<io::Result<()>, Cut> {
        let body = match &self.input {
            Some(input) if plain.body > 0 => &input[plain.head..plain.head + plain.body],
            _ => &[],
        };
        let parts = [out, body, &[]];
        let mut written = match try_write(backend, parts, 0) {
            Ok(written) if written == out.len() + body.len() => return Ok(Ok(())),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Ok(Err(error)),
        };
        // Rare: more than fits into the socket. The body is copied, so that the client can be watched meanwhile.
        let all = [out, body].concat();
        self.race(poll_fn(|cx| {
            while written < all.len() {
                ready!(backend.poll_write_ready(cx))?;
                match backend.try_write(&all[written..]) {
                    Ok(step) => written += step,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            Poll::Ready(Ok(()))
        }))
        .await
    }

    /// Reads on until the head is complete; interim responses are passed on.
    async fn head(
        &mut self,
        mut backend: TcpStream,
        mut buffer: Buffer,
        mut have: usize,
        plain: Plain,
        out: &mut Vec<u8>,
    ) -> Result<Begun, Failure> {
        // Heads that do not come in one piece are put together here.
        let mut pieces = Vec::new();
        out.clear();
        loop {
            let seen = if pieces.is_empty() { &buffer[..have] } else { &pieces[..] };
            let answer = with_date(|date| head::response(seen, plain.bodiless, date, out))
                .map_err(|error| Failure::Program(error.to_string()))?;
            match answer {
                Some(answer) if answer.status == 101 => {
                    let text = "backend switched protocols without being asked to";
                    return Err(Failure::Program(text.to_owned()));
                }
                Some(answer) if answer.status < 200 => {
                    let rest = seen[answer.head..].to_vec();
                    // Nobody asked for leave to send a body.
                    if answer.status != 100 && !self.write([&out[..], &[], &[]]).await {
                        return Err(Failure::Client);
                    }
                    out.clear();
                    pieces = rest;
                    if !pieces.is_empty() {
                        continue;
                    }
                }
                Some(mut answer) => {
                    if self.member.is_closing() {
                        out.truncate(out.len() - 2);
                        out.extend_from_slice(b"Connection: close\r\n\r\n");
                    }
                    let mut body = answer.head..have;
                    if !pieces.is_empty() {
                        let rest = &pieces[answer.head..];
                        if rest.len() > buffers::SIZE {
                            return Err(Failure::Program("response head out of step".to_owned()));
                        }
                        buffer[..rest.len()].copy_from_slice(rest);
                        body = 0..rest.len();
                    }
                    answer.reusable &= !self.member.is_closing();
                    return Ok(Begun { backend, answer, buffer, body });
                }
                None if seen.len() > MAX_HEAD => {
                    return Err(Failure::Program("server response headers exceeded 1048576 bytes".to_owned()));
                }
                None if pieces.is_empty() => pieces.extend_from_slice(&buffer[..have]),
                None => {}
            }
            have = match self.race(poll_fn(|cx| poll_read(&mut backend, cx, &mut buffer))).await {
                Ok(Ok(0)) => return Err(Failure::Program("unexpected EOF".to_owned())),
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return Err(Failure::Program(error.to_string())),
                Err(cut) => return Err(Failure::Cut(cut)),
            };
            pieces.extend_from_slice(&buffer[..have]);
        }
    }

    /// Passes the answer on. True if the client's connection can carry another request.
    async fn relay(&mut self, begun: Begun, out: &mut Vec<u8>) -> bool {
        let Begun { mut backend, answer, buffer, body: range } = begun;
        let mut body = Body::new(answer.framing);
        let mut buffer = Some((buffer, range));
        loop {
            if let Some((bytes, range)) = buffer.take() {
                let piece = &bytes[range];
                let Some(taken) = body.take(piece) else { return false };
                let parts = body.wrap(&piece[..taken], out);
                if !self.write(parts).await {
                    return false;
                }
                out.clear();
                if body.is_done() {
                    // Bytes after the end belong to no request.
                    if answer.reusable && taken == piece.len() {
                        self.direct.backends.give_back(backend);
                    }
                    return !self.member.is_closing();
                }
            }
            match self.race(poll_fn(|cx| backend.poll_read_ready(cx))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(Cut::Gone) => return false,
                Err(Cut::Time) => {
                    if let Some(text) = body.appended(self.clock.message()) {
                        self.write([text.as_bytes(), &[], &[]]).await;
                    }
                    return false;
                }
            }
            let mut bytes = Buffer::take();
            match self.race(poll_fn(|cx| poll_read(&mut backend, cx, &mut bytes))).await {
                Ok(Ok(0)) if answer.framing == Framing::Close => {
                    return self.write([b"0\r\n\r\n", &[], &[]]).await && !self.member.is_closing();
                }
                Ok(Ok(read)) if read > 0 => buffer = Some((bytes, 0..read)),
                // Cut off in the middle: so is the client's answer.
                _ => return false,
            }
        }
    }

    /// Writes to the client, however long it takes within the limits. False if that failed.
    async fn write(&mut self, parts: [&[u8]; 3]) -> bool {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut written = 0;
        let done = poll_fn(|cx| {
            while written < total {
                match try_write(&self.client, parts, written) {
                    Ok(step) => written += step,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        if self.clock.poll(cx).is_ready() {
                            return Poll::Ready(false);
                        }
                        if ready!(self.client.poll_write_ready(cx)).is_err() {
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

    async fn cut(&mut self, cut: Cut) -> bool {
        match cut {
            Cut::Gone => false,
            Cut::Time => {
                let text = self.clock.message();
                self.reply("504 Gateway Timeout", "", text).await
            }
        }
    }

    async fn refuse(&mut self, full: &QueueFull) -> bool {
        let fields = "X-Content-Type-Options: nosniff\r\nRetry-After: 1\r\n";
        self.reply("503 Service Unavailable", fields, &format!("{full}\n")).await
    }

    /// An answer of our own.
    async fn reply(&mut self, status: &str, fields: &str, text: &str) -> bool {
        let date = with_date(|date| String::from_utf8_lossy(date).into_owned());
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n{fields}Content-Length: {}\r\n\
             Date: {date}\r\n\r\n{text}",
            text.len()
        );
        self.write([answer.as_bytes(), &[], &[]]).await
    }
}

/// How far the body has got.
enum Body {
    Length(u64),
    Chunked(Chunks),
    /// Ends with the connection; the client gets chunks.
    Close,
}

// === impl Body ===

impl Body {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::Close => Self::Close,
        }
    }

    /// How many of `bytes` belong to the body; `None` if they cannot be right.
    fn take(&mut self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::Length(left) => {
                let step = (*left).min(bytes.len() as u64);
                *left -= step;
                Some(step as usize)
            }
            Self::Chunked(chunks) => chunks.scan(bytes).ok(),
            Self::Close => Some(bytes.len()),
        }
    }

    /// What to write for `piece`, after what is in `out`.
    fn wrap<'a>(&self, piece: &'a [u8], out: &'a mut Vec<u8>) -> [&'a [u8]; 3] {
        match self {
            Self::Close if !piece.is_empty() => {
                out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                [out, piece, b"\r\n"]
            }
            _ => [out, piece, &[]],
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::Close => false,
        }
    }

    /// The end of a body that a time limit cuts off, where it can have one.
    fn appended(&self, message: &str) -> Option<String> {
        let possible = match self {
            Self::Length(_) => false,
            Self::Chunked(chunks) => chunks.is_between(),
            Self::Close => true,
        };
        possible.then(|| format!("{:x}\r\n{message}\r\n0\r\n\r\n", message.len()))
    }
}

fn try_write(stream: &TcpStream, parts: [&[u8]; 3], mut skip: usize) -> io::Result<usize> {
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
    match used {
        0 => Ok(0),
        1 => stream.try_write(&slices[0]),
        _ => stream.try_write_vectored(&slices[..used]),
    }
}
