//! One plain request and its response.

use std::{future::poll_fn, io, sync::Arc, task::Poll, task::ready};

use net::{Retry, after_break, reason, with_date};
use tokio::net::TcpStream;

use crate::{
    Answer, Backend, Client, Cut, Framing, Plain,
    body::Body,
    buffers::{self, Buffer},
    client::{poll_read, try_write},
    response::response,
};

/// The largest head of a response.
const MAX_HEAD: usize = 1 << 20;

/// What the backend sent first: the answer's head, which is already in the output, and how its body begins.
pub struct Begun {
    stream: TcpStream,
    pub answer: Answer,
    /// The client's connection closes afterwards.
    last: bool,
    buffer: Buffer,
    /// Of `buffer`, the beginning of the body.
    body: std::ops::Range<usize>,
}

/// Why there is no answer from the backend.
#[derive(Debug)]
pub enum Failure {
    Cut(Cut),
    /// A bad gateway, for this reason. Where nothing was sent, the input and the output are as they were.
    Backend {
        message: String,
        unsent: bool,
        /// It is the backend, a sidecar, that says so.
        told: bool,
    },
    /// The client did not take an interim response.
    Client,
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relayed {
    /// The connection can carry another request.
    pub keep: bool,
    /// Bytes of its body that went out.
    pub bytes: u64,
    /// It was broken off before its end, by the backend or by a time limit.
    pub broken: bool,
}

// === impl Client ===

impl Client {
    /// Sends the request at the start of the input and waits for the answer's head, which is then in `out`.
    ///
    /// `out` has the request's head; what of it depends on the backend, and its end, is in `rest`; `body` is what was
    /// taken out of the input before. What is still there is consumed, unless nothing was sent.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn begin(
        &mut self,
        backend: &Arc<Backend>,
        plain: Plain,
        rest: &[u8],
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Begun, Failure> {
        let mut head = Vec::new();
        let result = loop {
            let (mut stream, used) = match backend.idle() {
                // What may not be repeated is not sent to who has just closed, even if nobody was told of it yet.
                Some(stream) if !plain.repeatable && net::is_closed(&stream) => continue,
                Some(stream) => (stream, true),
                None => match self.race(backend.dial()).await {
                    Ok(Ok(stream)) => (stream, false),
                    Ok(Err(error)) => return Err(Failure::unsent(error.to_string())),
                    Err(cut) => break Err(Failure::Cut(cut)),
                },
            };
            let after = |written| after_break(used, written, plain.repeatable);
            let received = match self.send(&stream, plain, [out, rest, body]).await {
                Ok(Ok(())) => self.race(poll_fn(|cx| stream.poll_read_ready(cx))).await,
                Ok(Err((0, _))) if after(false) == Retry::Here => continue,
                Ok(Err((0, error))) => {
                    return Err(Failure::unsent(format!("write: {}", reason(&error))));
                }
                Ok(Err((_, error))) => Ok(Err(error)),
                Err(cut) => Err(cut),
            };
            let mut buffer = match received {
                Ok(Ok(())) => Buffer::take(),
                Ok(Err(_)) if after(true) == Retry::Here => continue,
                Ok(Err(error)) => break Err(Failure::broken(format!("read: {}", reason(&error)))),
                Err(cut) => break Err(Failure::Cut(cut)),
            };
            let read = match self.race(poll_fn(|cx| poll_read(&mut stream, cx, &mut buffer))).await {
                Ok(Ok(0) | Err(_)) if after(true) == Retry::Here => continue,
                Ok(Ok(0)) => break Err(Failure::broken("EOF")),
                Ok(Ok(read)) => read,
                Ok(Err(error)) => break Err(Failure::broken(format!("read: {}", reason(&error)))),
                Err(cut) => break Err(Failure::Cut(cut)),
            };
            // Now, since many may wait for an answer and only one of them gets the room that was kept.
            head = buffers::spare_head();
            break self.head(stream, buffer, read, plain, &mut head).await;
        };
        match &result {
            Ok(begun) if begun.answer.unsent && backend.sidecar => return Err(begun.unsent()),
            Ok(_) => std::mem::swap(out, &mut head),
            Err(_) => {}
        }
        buffers::keep_head(head);
        self.consume(plain.head + plain.body);
        result
    }

    /// An error comes with the number of bytes that left before.
    async fn send(
        &mut self,
        stream: &TcpStream,
        plain: Plain,
        [head, rest, body]: [&[u8]; 3],
    ) -> Result<Result<(), (usize, io::Error)>, Cut> {
        let body = match &self.input {
            Some(input) if plain.body > 0 => &input[plain.head..plain.head + plain.body],
            _ => body,
        };
        let parts = [head, rest, body];
        let total = head.len() + rest.len() + body.len();
        let mut written = match try_write(stream, parts, 0) {
            Ok(written) if written == total => return Ok(Ok(())),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Ok(Err((0, error))),
        };
        // Rare: more than fits into the socket. The body is copied, so that the client can be watched meanwhile.
        let all = parts.concat();
        self.race(poll_fn(|cx| {
            while written < all.len() {
                ready!(stream.poll_write_ready(cx)).map_err(|error| (written, error))?;
                match stream.try_write(&all[written..]) {
                    Ok(step) => written += step,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err((written, error))),
                }
            }
            Poll::Ready(Ok(()))
        }))
        .await
    }

    /// Reads on until the head is complete; interim responses are passed on.
    async fn head(
        &mut self,
        mut stream: TcpStream,
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
            let answer = with_date(|date| response(seen, plain.bodiless, date, out))
                .map_err(|error| Failure::broken(error.to_string()))?;
            match answer {
                Some(answer) if answer.status == 101 => {
                    let text = "backend switched protocols without being asked to";
                    return Err(Failure::broken(text));
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
                    let last = plain.last || self.member.is_closing();
                    if last {
                        out.truncate(out.len() - 2);
                        out.extend_from_slice(b"Connection: close\r\n\r\n");
                    }
                    let mut body = answer.head..have;
                    if !pieces.is_empty() {
                        let rest = &pieces[answer.head..];
                        if rest.len() > buffers::SIZE {
                            return Err(Failure::broken("response head out of step"));
                        }
                        buffer[..rest.len()].copy_from_slice(rest);
                        body = 0..rest.len();
                    }
                    answer.reusable &= !self.member.is_closing();
                    return Ok(Begun { stream, answer, last, buffer, body });
                }
                None if seen.len() > MAX_HEAD => {
                    return Err(Failure::broken("server response headers exceeded 1048576 bytes"));
                }
                None if pieces.is_empty() => pieces.extend_from_slice(&buffer[..have]),
                None => {}
            }
            have = match self.race(poll_fn(|cx| poll_read(&mut stream, cx, &mut buffer))).await {
                Ok(Ok(0)) => return Err(Failure::broken("unexpected EOF")),
                Ok(Ok(read)) => read,
                Ok(Err(error)) => return Err(Failure::broken(format!("read: {}", reason(&error)))),
                Err(cut) => return Err(Failure::Cut(cut)),
            };
            pieces.extend_from_slice(&buffer[..have]);
        }
    }

    /// Passes the answer on; its head is in `out`.
    pub async fn relay(&mut self, begun: Begun, backend: &Arc<Backend>, out: &mut Vec<u8>) -> Relayed {
        let Begun { mut stream, answer, last, buffer, body: range } = begun;
        let mut body = Body::new(answer.framing);
        let mut relayed = Relayed { keep: false, bytes: 0, broken: false };
        let mut buffer = Some((buffer, range));
        loop {
            if let Some((bytes, range)) = buffer.take() {
                let piece = &bytes[range];
                let Some((taken, parts)) = body.pass(piece, out) else {
                    relayed.broken = true;
                    return relayed;
                };
                relayed.bytes += taken.data as u64;
                if !self.write(parts).await {
                    return relayed;
                }
                out.clear();
                if body.is_done() {
                    // Bytes after the end belong to no request.
                    if answer.reusable && taken.bytes == piece.len() {
                        backend.give_back(stream);
                    }
                    relayed.keep = !last && !self.member.is_closing();
                    return relayed;
                }
            }
            match self.race(poll_fn(|cx| stream.poll_read_ready(cx))).await {
                Ok(Ok(())) => {}
                Err(Cut::Gone) => return relayed,
                Ok(Err(_)) => {
                    relayed.broken = true;
                    return relayed;
                }
                Err(Cut::Time) => {
                    let message = self.clock.message();
                    let appended = body.appended(message);
                    // Where there is a length, what is said does not make up for what is missing.
                    relayed.broken = appended.is_none() || matches!(body, Body::Length(_));
                    if let Some(text) = appended {
                        relayed.bytes += message.len() as u64;
                        self.write([text.as_bytes(), &[], &[]]).await;
                    }
                    return relayed;
                }
            }
            let mut bytes = Buffer::take();
            match self.race(poll_fn(|cx| poll_read(&mut stream, cx, &mut bytes))).await {
                Ok(Ok(0)) if answer.framing == Framing::Close => {
                    relayed.keep = self.write([b"0\r\n\r\n", &[], &[]]).await && !last && !self.member.is_closing();
                    return relayed;
                }
                Ok(Ok(read)) if read > 0 => buffer = Some((bytes, 0..read)),
                Err(Cut::Gone) => return relayed,
                // Cut off in the middle: so is the client's answer.
                _ => {
                    relayed.broken = true;
                    return relayed;
                }
            }
        }
    }
}

// === impl Begun ===

impl Begun {
    /// The answer of a sidecar that could not pass the request on.
    fn unsent(&self) -> Failure {
        let message = String::from_utf8_lossy(&self.buffer[self.body.clone()]).trim_end().to_owned();
        Failure::Backend { message, unsent: true, told: true }
    }
}

// === impl Failure ===

impl Failure {
    fn broken(message: impl Into<String>) -> Self {
        Self::Backend { message: message.into(), unsent: false, told: false }
    }

    fn unsent(message: String) -> Self {
        Self::Backend { message, unsent: true, told: false }
    }
}
